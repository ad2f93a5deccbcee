"""A PCP client made of the project's codecs, for requests that no real client sends, and for announcements."""

import ipaddress
import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import NO_OPTIONS, Options
from tests.e2e.serving import C1, GATEWAY
from tests.lab import PATIENCE, Host
from tests.wire.pcp import client_codec
from tests.wire.pcp.client_codec import AddressResponse, ErrorResponse, NatpmpResponse, PcpResponse, Response

GATEWAY6 = "2001:470:100::1"
C1_IPV6 = "2001:470:100::2"
ANYCAST, ANYCAST6 = "192.0.0.9", "2001:1::1"
"""The anycast addresses of PCP servers (RFC 7723 §4)."""
NONCE = b"twelve bytes"

Message = PcpResponse | NatpmpResponse


@contextmanager
def connected(client: Host, server: str) -> Iterator[socket.socket]:
    """Connect a socket of the client to a server; a rejected datagram raises ConnectionRefusedError."""
    with client.socket(_family(server), socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((server, pcp.SERVER_PORT))
        yield sock


def exchange(client: Host, server: str, datagram: bytes) -> bytes:
    """Send a datagram to a server and return its response; ConnectionRefusedError, or TimeoutError after PATIENCE."""
    with connected(client, server) as sock:
        sock.send(datagram)
        return sock.recv(2048)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def map_port(
    client: Host,
    port: int,
    protocol: TransportProtocol = TransportProtocol.TCP,
    *,
    source: str = C1,
    server: str = "",
    external_port: int = 0,
    lifetime: int = 7200,
    nonce: bytes = NONCE,
    options: Options = NO_OPTIONS,
) -> PcpResponse:
    """Request a mapping of this port of `source`, or with lifetime 0 its deletion."""
    address = ipaddress.ip_address(source)
    unspecified, gateway = ("0.0.0.0", GATEWAY) if address.version == 4 else ("::", GATEWAY6)
    payload = Map(nonce, protocol, port, external_port, ipaddress.ip_address(unspecified))
    request = client_codec.encode(pcp.Request(lifetime, address, payload, options))
    return client_codec.decode_pcp(exchange(client, server or gateway, request))


def granted(response: PcpResponse) -> Map:
    """Return the mapping that a success response grants or deletes."""
    assert isinstance(response, Response), response
    assert isinstance(response.payload, Map), response
    return response.payload


def refused(response: PcpResponse) -> pcp.Result:
    """Return the result of an error response."""
    assert isinstance(response, ErrorResponse), response
    return pcp.Result(response.result)


class Listener:
    """Receives the announcements to one address of a client."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def receive(self, wanted: Callable[[Message], bool]) -> Message:
        """Return the next announcement that is wanted; TimeoutError if none at all arrives for PATIENCE."""
        return next(filter(wanted, (self._next() for _ in itertools.count())))

    def _next(self) -> Message:
        datagram = self._socket.recv(2048)
        return client_codec.decode(datagram)


@contextmanager
def listening(client: Host, address: str = C1) -> Iterator[Listener]:
    """Listen for announcements at a client's address."""
    with client.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, pcp.CLIENT_PORT))
        sock.settimeout(PATIENCE)
        yield Listener(sock)


def is_restart(message: Message) -> bool:
    """Return whether a message is a PCP server's announcement of its restart."""
    return isinstance(message, Response) and message.payload == Announce()


def has_address(address: str) -> Callable[[Message], bool]:
    """Return a predicate for NAT-PMP's announcement of this external address."""
    return lambda message: isinstance(message, AddressResponse) and str(message.address) == address


def has_mapping(mapping: Map) -> Callable[[Message], bool]:
    """Return a predicate for PCP's unsolicited update of this mapping."""
    return lambda message: isinstance(message, Response) and message.payload == mapping
