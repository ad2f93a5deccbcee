"""Calls between namespaces: who answers them, where they seem to come from, and which are rejected or dropped."""

import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from tests.firewall.three_hosts import EXTERNAL, ThreeHosts, joined
from tests.lab import PATIENCE
from tests.lab.swallowed import ALL_PACKETS, swallowed

Transport = Literal["tcp", "udp"]
SocketAddress = tuple[str, int]

TRANSPORTS: tuple[Transport, ...] = ("tcp", "udp")
ANYWHERE: SocketAddress = ("", 0)

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True)
class Reached:
    """Which listener answered, and the source address that it saw."""

    name: str
    source: str


def listener(
    where: int, transport: Transport, port: int, address: str = "", *, family: socket.AddressFamily = socket.AF_INET
) -> socket.socket:
    """Return a socket in the namespace `where` that waits for connections or datagrams."""
    made = _socket(where, transport, family)
    made.bind((address, port))
    if transport == "tcp":
        made.listen()
    return made


def caller(where: int, transport: Transport, port: int, address: IPv4Address = EXTERNAL) -> socket.socket:
    """Return a socket in the namespace `where` that is connected to the address and port."""
    made = _socket(where, transport)
    made.connect((str(address), port))
    return made


def call(
    where: int, transport: Transport, to: SocketAddress, listener: socket.socket, source: SocketAddress = ANYWHERE
) -> SocketAddress | None:
    """Call from the namespace `where`, let `listener` answer, and return the source that it saw; None if rejected.

    AssertionError or TimeoutError where the call, or the answer, gets lost.
    """
    with _socket(where, transport, _family(to)) as calling:
        calling.bind(source)
        try:
            calling.connect(to)
            seen = _exchange(calling, listener, transport)
            if transport == "udp":  # the second time the flow is no longer new
                assert _exchange(calling, listener, transport) == seen
        except ConnectionError:
            return None
    return seen


def call_from_remote(hosts: ThreeHosts, transport: Transport, port: int, listener: socket.socket) -> str | None:
    """Call the server's external address from the remote, and return the source address that was seen, as `call`."""
    seen = call(hosts.remote, transport, (str(EXTERNAL), port), listener)
    return seen and seen[0]


def reach(
    hosts: ThreeHosts,
    transport: Transport,
    listeners: Mapping[str, socket.socket],
    port: int,
    address: IPv4Address = EXTERNAL,
) -> Reached:
    """Call from the remote, and return who answered; AssertionError where the call or its answer gets lost."""
    with caller(hosts.remote, transport, port, address) as calling:
        calling.send(b"hello")
        ready = select.select(listeners.values(), [], [], PATIENCE)[0]
        assert len(ready) == 1, "no listener got the call"
        source = _answer(ready[0], transport)[0]
        assert calling.recv(64) == b"answer"
    return Reached(next(name for name, listener in listeners.items() if listener is ready[0]), source)


def swallows(server: int, where: int, transport: Transport, to: SocketAddress) -> bool:
    """Return whether the namespace `server` drops a call from `where`: neither forwards nor answers nor rejects it."""
    with joined(server):
        watching = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ALL_PACKETS)
    with watching, _socket(where, transport, _family(to)) as calling:
        return swallowed(watching, calling, to)


def _family(address: SocketAddress) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _socket(where: int, transport: Transport, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    with joined(where):
        made = socket.socket(family, _KINDS[transport])
    made.settimeout(PATIENCE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _exchange(calling: socket.socket, listener: socket.socket, transport: Transport) -> SocketAddress | None:
    calling.send(b"hello")
    ready = select.select([listener, calling], [], [], PATIENCE)[0]
    assert ready, "the call got lost"
    seen = _answer(listener, transport) if listener in ready else None
    assert calling.recv(64) == b"answer"
    return seen


def _answer(listener: socket.socket, transport: Transport) -> SocketAddress:
    if transport == "udp":
        data, source = listener.recvfrom(64)
        assert data == b"hello"
        listener.sendto(b"answer", source)
    else:
        connection, source = listener.accept()
        with connection:
            connection.settimeout(PATIENCE)
            assert connection.recv(64) == b"hello"
            connection.send(b"answer")
    return source[0], source[1]
