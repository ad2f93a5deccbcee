"""A PCP client out of the project's own codecs, for what no program asks; and an ear for announcements."""

import ipaddress
import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import NO_OPTIONS, Options
from tests.e2e.serving import C1, GATEWAY
from tests.lab import Host

GATEWAY6 = "2001:470:100::1"
C1_IPV6 = "2001:470:100::2"
ANYCAST, ANYCAST6 = "192.0.0.9", "2001:1::1"
"""Where a client asks that knows no gateway (RFC 7723 §4)."""
NONCE = b"twelve bytes"
PATIENCE = 5.0  # seconds

Answer = pcp.Response | pcp.ErrorResponse
Heard = Answer | natpmp.Response | natpmp.OtherResponse


def exchange(client: Host, server: str, *datagrams: bytes, patience: float = PATIENCE) -> Iterator[bytes]:
    """Send these to a server at once and give what it answers, for so long as it goes on (seconds)."""
    with client.socket(_family(server), socket.SOCK_DGRAM) as asking:
        asking.settimeout(patience)
        asking.connect((server, pcp.SERVER_PORT))
        for datagram in datagrams:
            asking.send(datagram)
        try:
            while True:
                yield asking.recv(2048)
        except TimeoutError:
            return


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def map_port(  # noqa: PLR0913  what a request has, by name
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
    patience: float = PATIENCE,
) -> Answer:
    """Ask to map this port of `source`, or with lifetime 0 to map it no more; TimeoutError without an answer."""
    address = ipaddress.ip_address(source)
    nowhere, gateway = ("0.0.0.0", GATEWAY) if address.version == 4 else ("::", GATEWAY6)
    asked = Map(nonce, protocol, port, external_port, ipaddress.ip_address(nowhere))
    request = pcp.encode_request(pcp.Request(lifetime, address, asked, options))
    for answer in exchange(client, server or gateway, request, patience=patience):
        return pcp.decode_response(answer)
    raise TimeoutError("no answer")


def granted(answer: Answer) -> Map:
    """Give the mapping that an answer grants, or says to be no more."""
    assert isinstance(answer, pcp.Response), answer
    assert isinstance(answer.payload, Map), answer
    return answer.payload


def refused(answer: Answer) -> pcp.Result:
    """Give the reason that an answer refuses for."""
    assert isinstance(answer, pcp.ErrorResponse), answer
    return pcp.Result(answer.result)


class Ear:
    """Hears the announcements that reach one address of a client."""

    def __init__(self, hearing: socket.socket) -> None:
        self._hearing = hearing

    def hear(self, wanted: Callable[[Heard], bool], patience: float = PATIENCE) -> Heard:
        """Give the next announcement that is wanted; TimeoutError when for so long (seconds) there is none at all."""
        self._hearing.settimeout(patience)
        return next(filter(wanted, (self._next() for _ in itertools.count())))

    def _next(self) -> Heard:
        datagram = self._hearing.recv(2048)
        return natpmp.decode_response(datagram) if natpmp.is_natpmp(datagram) else pcp.decode_response(datagram)


@contextmanager
def listening(client: Host, address: str = C1) -> Iterator[Ear]:
    """Let a client listen for announcements meanwhile."""
    with client.socket(_family(address), socket.SOCK_DGRAM) as hearing:
        hearing.bind((address, pcp.CLIENT_PORT))
        yield Ear(hearing)


def announces(heard: Heard) -> bool:
    """Tell a server of PCP that says that it is there."""
    return isinstance(heard, pcp.Response) and heard.payload == Announce()


def tells_address(address: str) -> Callable[[Heard], bool]:
    """Give a test for NAT-PMP's announcement of this external address."""
    return lambda heard: isinstance(heard, natpmp.AddressResponse) and str(heard.address) == address


def tells_mapping(told: Map) -> Callable[[Heard], bool]:
    """Give a test for what PCP tells, unasked, of a mapping."""
    return lambda heard: isinstance(heard, pcp.Response) and heard.payload == told
