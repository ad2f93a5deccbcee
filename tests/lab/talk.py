"""Prove that traffic passes, both ways, and from which source."""

import ipaddress
import socket
from typing import Literal, NamedTuple

from .host import Host
from .process import PATIENCE, Process
from .swallowed import ALL_PACKETS, sends_nothing, swallowed

Protocol = Literal["tcp", "udp"]

_SOCAT_LISTEN = {"tcp": "TCP{}-LISTEN", "udp": "UDP{}-RECVFROM"}  # RECVFROM: every datagram is a new talk
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Answer(NamedTuple):
    """What a listener sends back: the address that the question came from, and the question."""

    source: str
    echo: str


def answering(host: Host, port: int, protocol: Protocol = "tcp", *, ipv6: bool = False) -> Process:
    """Start a socat that sends each caller its source address, and then echoes."""
    address = f"{_SOCAT_LISTEN[protocol].format(6 if ipv6 else 4)}:{port},reuseaddr,fork"
    listener = host.start("socat", "-d", "-d", address, "SYSTEM:echo $SOCAT_PEERADDR; cat")
    listener.wait_for("listening on|receiving on")
    return listener


def call(
    host: Host, address: str, port: int, protocol: Protocol = "tcp", *, source: str = "", source_port: int = 0
) -> socket.socket:
    """Connect a socket that lives in `host`; ConnectionRefusedError if rejected, TimeoutError after PATIENCE."""
    remote = _new_socket(host, address, protocol)
    try:
        remote.settimeout(PATIENCE)
        remote.bind((source, source_port))
        remote.connect((address, port))
    except OSError:
        remote.close()
        raise
    return remote


def ask(
    host: Host, address: str, port: int, protocol: Protocol = "tcp", *, source: str = "", source_port: int = 0
) -> Answer:
    """Ask a listener once, from `host`; ConnectionRefusedError if rejected, TimeoutError after PATIENCE."""
    with call(host, address, port, protocol, source=source, source_port=source_port) as remote:
        return put(remote)


def swallows(
    firewall: Host, caller: Host, address: str, port: int, protocol: Protocol = "tcp", *, source: str = ""
) -> bool:
    """Return whether `firewall` drops what `caller` sends to this address: neither sends it on nor answers it."""
    watching = firewall.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ALL_PACKETS)
    with watching, _new_socket(caller, address, protocol) as calling:
        return swallowed(watching, calling, (address, port), source)


def swallows_more(firewall: Host, remote: socket.socket) -> bool:
    """Return whether `firewall` drops what a connected socket sends."""
    with firewall.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ALL_PACKETS) as watching:
        remote.sendall(b"more\n")
        return sends_nothing(watching, remote.getsockname()[1])


def _new_socket(host: Host, address: str, protocol: Protocol) -> socket.socket:
    ipv6 = ipaddress.ip_address(address).version == 6
    return host.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, _KINDS[protocol])


def put(remote: socket.socket, question: str = "who am I?") -> Answer:
    """Ask over a connected socket (of TCP only once: the source is sent at the beginning); OSError as by `ask`."""
    remote.sendall(f"{question}\n".encode())
    received = b""
    while received.count(b"\n") < 2:
        piece = remote.recv(65536)
        if not piece:
            raise ConnectionAbortedError(f"closed after {received!r}")
        received += piece
    source, echo = received.decode().splitlines()
    return Answer(str(ipaddress.ip_address(source.strip("[]"))), echo)
