"""Calls of either IP version from and to any socket address, and whether they are answered."""

import select
import socket

from tests.firewall.reaching import PATIENCE, Transport
from tests.firewall.three_hosts import joined

SocketAddress = tuple[str, int]

ANYWHERE: SocketAddress = ("", 0)


def waiting(where: int, transport: Transport, port: int, *, family: int = socket.AF_INET) -> socket.socket:
    """Give a socket in the namespace `where` that waits for connections or datagrams to any of its addresses."""
    with joined(where):
        made = socket.socket(family, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    if transport == "tcp":
        made.listen()
    return made


def call(
    where: int, transport: Transport, to: SocketAddress, listener: socket.socket, source: SocketAddress = ANYWHERE
) -> SocketAddress | None:
    """Call from the namespace `where`, let `listener` answer, and give the source that it saw; None: it was refused.

    AssertionError or TimeoutError where the call, or the answer, got lost.
    """
    with joined(where):
        kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
        calling = socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET, kind)
    with calling:
        calling.settimeout(PATIENCE)
        calling.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        calling.bind(source)
        try:
            calling.connect(to)
            calling.send(b"hello")
            ready = select.select([listener, calling], [], [], PATIENCE)[0]
            assert ready, "the call got lost"
            seen = _answer(listener, transport) if listener in ready else None
            assert calling.recv(64) == b"answer"
        except ConnectionError:
            return None
    return seen


def _answer(listener: socket.socket, transport: Transport) -> SocketAddress:
    if transport == "udp":
        _data, source = listener.recvfrom(64)
        listener.sendto(b"answer", source)
    else:
        connection, source = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            assert connection.recv(64) == b"hello"
            connection.send(b"answer")
    return source[0], source[1]
