"""Calls from the internet to the server's public address: who answers, and where they seem to come from."""

import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from tests.firewall.three_hosts import EXTERNAL, PEER, ThreeHosts, joined

Transport = Literal["tcp", "udp"]
PATIENCE = 3.0  # seconds until a packet counts as lost


@dataclass(frozen=True)
class Reached:
    """Which listener answered, and the source address that it saw."""

    name: str
    source: str


def entry(
    port: int, inside: int | None = None, protocol: str = "udp", *, peer: IPv4Address = PEER, until: float = 120
) -> Entry:
    """Give an entry that leads the port to one of `peer`, the same one unless said otherwise."""
    internal = Endpoint(peer, inside or port)
    return Entry(PortMapping(TransportProtocol[protocol.upper()], port, internal, "peer"), Lease(until))


def listener(where: int, transport: Transport, port: int, address: str = "0.0.0.0") -> socket.socket:
    """Give a socket in the namespace `where` that waits for connections or datagrams."""
    with joined(where):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.bind((address, port))
    if transport == "tcp":
        made.listen()
    return made


def caller(where: int, transport: Transport, port: int, address: IPv4Address = EXTERNAL) -> socket.socket:
    """Give a socket in the namespace `where`, connected to the address and port."""
    with joined(where):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.connect((str(address), port))
    return made


def reach(
    hosts: ThreeHosts,
    transport: Transport,
    listeners: Mapping[str, socket.socket],
    port: int,
    address: IPv4Address = EXTERNAL,
) -> Reached:
    """Call from the remote, and give who answered; AssertionError where the call or its answer got lost."""
    with caller(hosts.remote, transport, port, address) as calling:
        calling.send(b"hello")
        ready = select.select(listeners.values(), [], [], PATIENCE)[0]
        assert len(ready) == 1, "nobody got the call"
        source = _answer_tcp(ready[0]) if transport == "tcp" else _answer_udp(ready[0])
        assert calling.recv(64) == b"answer"
    return Reached(next(name for name, listener in listeners.items() if listener is ready[0]), source)


def _answer_tcp(listener: socket.socket) -> str:
    connection, source = listener.accept()
    with connection:
        connection.settimeout(PATIENCE)
        assert connection.recv(64) == b"hello"
        connection.send(b"answer")
    return str(source[0])


def _answer_udp(listener: socket.socket) -> str:
    data, source = listener.recvfrom(64)
    assert data == b"hello"
    listener.sendto(b"answer", source)
    return str(source[0])
