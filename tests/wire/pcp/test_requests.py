"""Messages of NAT-PMP and PCP become requests, and replies become the responses that the RFCs require."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import (
    BY_INTERNAL_ENDPOINT,
    SAME_PORT,
    Claim,
    Endpoint,
    Pinhole,
    PortMapping,
    Remote,
    TransportProtocol,
)
from igd.core.request import (
    ExternalAddress,
    GetExternalAddress,
    Mapped,
    MapPort,
    Refusal,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
)
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.natpmp import AddressRequest, MapRequest
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import Address, Filter, Options, PortSet
from igd.wire.pcp.requests import (
    MAX_LIFETIME,
    MAX_PORT_SET_SIZE,
    MIN_LIFETIME,
    RESULTS,
    Exchange,
    PcpExchange,
    decode,
    encode_update,
)
from tests.wire.pcp import client_codec
from tests.wire.pcp.client_codec import (
    AddressResponse,
    ErrorResponse,
    MapResponse,
    NatpmpResponse,
    PcpResponse,
    Response,
)

EPOCH = 77
C1, C1_HOST = IPv4Address("10.100.0.2"), IPv4Address("192.168.7.20")
C1_IPV6 = IPv6Address("2001:db8::2")
EXTERNAL = IPv4Address("60.60.60.1")
ANY4, ANY6 = IPv4Address(0), IPv6Address(0)
NONCE = b"a nonce of 12"[:12]
CLAIM = Claim(by_internal=True, nonce=NONCE)
TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP

MAPPING = PortMapping(TCP, 8043, Endpoint(C1, 80), "c1", "web", (), CLAIM)
PINHOLE = Pinhole(TCP, Endpoint(C1_IPV6, 80), "c1", "web", (), CLAIM)

# NAT-PMP


def natpmp_exchange(message: natpmp.Request) -> Exchange:
    return decode(client_codec.encode(message), C1, EPOCH, EXTERNAL, third_party=False)


PMP_MAP = MapPort(
    TCP, Endpoint(C1, 80), 8043, 7200, "NAT-PMP", any_port=True, claim=BY_INTERNAL_ENDPOINT, adds_remotes=True
)

PMP_SAME_PORT = MapPort(
    UDP, Endpoint(C1, 0), None, 60, SAME_PORT, any_port=True, claim=BY_INTERNAL_ENDPOINT, adds_remotes=True
)

PMP_REQUESTS: dict[str, tuple[natpmp.Request, Request]] = {
    "external address (§3.2)": (AddressRequest(), GetExternalAddress()),
    "suggested port (§3.3)": (MapRequest(TCP, 80, 8043, 7200), PMP_MAP),
    "no suggested port: the internal port (§3.3)": (
        MapRequest(TCP, 80, 0, 7200),
        replace(PMP_MAP, external_port=80),
    ),
    "UDP": (MapRequest(UDP, 80, 8043, 7200), replace(PMP_MAP, protocol=UDP)),
    "longest lifetime": (MapRequest(TCP, 80, 8043, 2**32 - 1), replace(PMP_MAP, lifetime=2**32 - 1)),
    "delete one (§3.4)": (MapRequest(TCP, 80, 0, 0), UnmapInternal(TCP, C1, 80, BY_INTERNAL_ENDPOINT)),
    "delete one, suggested port ignored": (
        MapRequest(UDP, 80, 8043, 0),
        UnmapInternal(UDP, C1, 80, BY_INTERNAL_ENDPOINT),
    ),
    "delete all of a protocol (§3.4)": (MapRequest(UDP, 0, 0, 0), UnmapInternal(UDP, C1, None, BY_INTERNAL_ENDPOINT)),
    "a port of the gateway's choice": (MapRequest(UDP, 0, 0, 60), PMP_SAME_PORT),
    "a port of the gateway's choice, natpmpc -a 1 0": (MapRequest(UDP, 0, 1, 60), PMP_SAME_PORT),
    "a port of the gateway's choice, with a suggestion": (
        MapRequest(TCP, 0, 8043, 60),
        replace(PMP_SAME_PORT, protocol=TCP, external_port=8043),
    ),
    "port 1 is a suggestion otherwise": (MapRequest(TCP, 80, 1, 7200), replace(PMP_MAP, external_port=1)),
    "delete all of a protocol, suggested port ignored": (
        MapRequest(UDP, 0, 8043, 0),
        UnmapInternal(UDP, C1, None, BY_INTERNAL_ENDPOINT),
    ),
}


@pytest.mark.parametrize(("message", "request_"), PMP_REQUESTS.values(), ids=PMP_REQUESTS)
def test_requests_of_natpmp(message: natpmp.Request, request_: Request) -> None:
    assert natpmp_exchange(message).request == request_


ONE = MapRequest(TCP, 80, 8043, 7200)
PMP_REPLIES: dict[str, tuple[natpmp.Request, Reply, NatpmpResponse]] = {
    "external address": (AddressRequest(), ExternalAddress(EXTERNAL), AddressResponse(0, EPOCH, EXTERNAL)),
    "no external address": (AddressRequest(), Refusal.NO_EXTERNAL_ADDRESS, AddressResponse(3, EPOCH, ANY4)),
    "mapped": (ONE, Mapped(MAPPING, 3600), MapResponse(TCP, 0, EPOCH, 80, 8043, 3600)),
    "mapped to another port": (
        ONE,
        Mapped(replace(MAPPING, external_port=9), 60),
        MapResponse(TCP, 0, EPOCH, 80, 9, 60),
    ),
    "deleted: port and lifetime 0 (§3.4)": (
        MapRequest(UDP, 80, 8043, 0),
        Unmapped((MAPPING,)),
        MapResponse(UDP, 0, EPOCH, 80, 0, 0),
    ),
    "nothing to delete (§3.4)": (MapRequest(TCP, 80, 0, 0), Unmapped(()), MapResponse(TCP, 0, EPOCH, 80, 0, 0)),
    "all deleted": (MapRequest(TCP, 0, 0, 0), Unmapped(()), MapResponse(TCP, 0, EPOCH, 0, 0, 0)),
    "a port of the gateway's choice: internal port 0, as in the request": (
        MapRequest(TCP, 0, 0, 60),
        Mapped(replace(MAPPING, internal=Endpoint(C1, 8043)), 60),
        MapResponse(TCP, 0, EPOCH, 0, 8043, 60),
    ),
}


@pytest.mark.parametrize(("message", "reply", "response"), PMP_REPLIES.values(), ids=PMP_REPLIES)
def test_responses_of_natpmp(message: natpmp.Request, reply: Reply, response: NatpmpResponse) -> None:
    datagram = natpmp_exchange(message).encode(reply, EPOCH, EXTERNAL)
    assert client_codec.decode_natpmp(datagram) == response


# The result codes of NAT-PMP (RFC 6886 §3.5) and PCP (RFC 6887 §7.4) for each refusal
REFUSALS: dict[Refusal, tuple[int, int]] = {
    Refusal.NOT_A_PEER: (2, 2),
    Refusal.NOT_YOUR_ADDRESS: (2, 2),
    Refusal.PROTOCOL_FORBIDDEN: (2, 2),
    Refusal.STATIC: (2, 2),
    Refusal.FORBIDDEN: (2, 2),
    Refusal.NO_PINHOLES: (2, 2),
    Refusal.CONFLICT: (4, 11),
    Refusal.OTHER_NONCE: (2, 2),
    Refusal.TOO_MANY_REMOTES: (4, 13),
    Refusal.QUOTA: (4, 10),
    Refusal.NO_FREE_PORT: (4, 8),
    Refusal.TOO_MANY_REQUESTS: (4, 8),
    Refusal.NO_SUCH_MAPPING: (2, 2),
    Refusal.NO_EXTERNAL_ADDRESS: (3, 7),
    Refusal.SYSTEM_FAILURE: (4, 8),
}


def test_every_refusal_has_a_result_code_in_both_protocols() -> None:
    assert set(Refusal) == REFUSALS.keys() == RESULTS.keys()


@pytest.mark.parametrize(("reason", "codes"), REFUSALS.items(), ids=[reason.name for reason in REFUSALS])
def test_a_refusal_of_natpmp_has_no_port_and_no_lifetime(reason: Refusal, codes: tuple[int, int]) -> None:
    refusals = (
        (ONE, MapResponse(TCP, codes[0], EPOCH, 80, 0, 0)),
        (AddressRequest(), AddressResponse(codes[0], EPOCH, ANY4)),
    )
    for message, response in refusals:
        assert client_codec.decode_natpmp(natpmp_exchange(message).encode(reason, EPOCH, EXTERNAL)) == response


# PCP

MAP = Map(NONCE, 6, 80, 8043, ANY4)
MESSAGE = pcp.Request(7200, C1, MAP)
MESSAGE_IPV6 = pcp.Request(7200, C1_IPV6, replace(MAP, external_address=ANY6))
MAP_PORT = MapPort(TCP, Endpoint(C1, 80), 8043, 7200, "PCP", any_port=True, claim=CLAIM, adds_remotes=True)
MAP_PORT_IPV6 = replace(MAP_PORT, internal=Endpoint(C1_IPV6, 80))
NET = Filter(120, 443, IPv4Address("203.0.113.9"))
HOST = Filter(128, 0, IPv4Address("198.51.100.7"))
NET6 = Filter(32, 0, IPv6Address("2001:db8:1::9"))
ALL4, ALL6 = Filter(0, 0, ANY4), Filter(0, 0, ANY6)
NET_REMOTE = Remote(IPv4Network("203.0.113.0/24"), 443)
HOST_REMOTE = Remote(IPv4Network("198.51.100.7/32"))
NET6_REMOTE = Remote(IPv6Network("2001:db8::/32"))


def map_(**fields: Any) -> pcp.Request:  # noqa: ANN401 - fields of different types
    """Return MESSAGE with some fields of its payload changed."""
    return replace(MESSAGE, payload=replace(MAP, **fields))


def with_(request: pcp.Request = MESSAGE, **options: Any) -> pcp.Request:  # noqa: ANN401 - options of different types
    """Return a message with some options."""
    return replace(request, options=Options(**options))


PCP_REQUESTS: dict[str, tuple[pcp.Request, Request | pcp.Result]] = {
    "announce (§14.1)": (pcp.Request(0, C1, Announce()), pcp.Result.SUCCESS),
    "suggested port (§11.1)": (MESSAGE, MAP_PORT),
    "UDP": (map_(protocol=17), replace(MAP_PORT, protocol=UDP)),
    "no suggested port": (map_(external_port=0), replace(MAP_PORT, external_port=80)),
    "suggested address is ignored": (map_(external_address=C1), MAP_PORT),
    "shortest lifetime (§15)": (replace(MESSAGE, lifetime=1), replace(MAP_PORT, lifetime=MIN_LIFETIME)),
    "longest lifetime (§15)": (replace(MESSAGE, lifetime=2**32 - 1), replace(MAP_PORT, lifetime=MAX_LIFETIME)),
    "lifetime in range": (replace(MESSAGE, lifetime=121), replace(MAP_PORT, lifetime=121)),
    "pinhole": (MESSAGE_IPV6, MAP_PORT_IPV6),
    # Unsupported
    "all ports of all protocols (§11.3)": (map_(protocol=0, internal_port=0), pcp.Result.UNSUPP_PROTOCOL),
    "all ports of one protocol": (map_(internal_port=0), pcp.Result.UNSUPP_PROTOCOL),
    "ICMP": (map_(protocol=1), pcp.Result.UNSUPP_PROTOCOL),
    "SCTP": (map_(protocol=132), pcp.Result.UNSUPP_PROTOCOL),
    # §15.1
    "delete": (replace(MESSAGE, lifetime=0), UnmapInternal(TCP, C1, 80, CLAIM)),
    "delete a pinhole": (replace(MESSAGE_IPV6, lifetime=0), UnmapInternal(TCP, C1_IPV6, 80, CLAIM)),
    "delete all of a protocol": (replace(map_(internal_port=0), lifetime=0), UnmapInternal(TCP, C1, None, CLAIM)),
    "delete all": (replace(map_(protocol=0, internal_port=0), lifetime=0), UnmapInternal(None, C1, None, CLAIM)),
    "delete a port set (RFC 7753 §4.4)": (
        replace(with_(port_set=PortSet(8, 80)), lifetime=0),
        UnmapInternal(TCP, C1, 80, CLAIM, 8),
    ),
    "delete ICMP": (replace(map_(protocol=1), lifetime=0), pcp.Result.UNSUPP_PROTOCOL),
    # §13.1
    "third party": (with_(third_party=C1_HOST), replace(MAP_PORT, internal=Endpoint(C1_HOST, 80))),
    "delete a third party's": (
        replace(with_(third_party=C1_HOST), lifetime=0),
        UnmapInternal(TCP, C1_HOST, 80, CLAIM),
    ),
    "third party of the other address family": (with_(third_party=C1_IPV6), MAP_PORT_IPV6),
    # §13.2
    "prefer failure: port": (with_(prefer_failure=True), replace(MAP_PORT, any_port=False)),
    "prefer failure: port and external address": (
        with_(map_(external_address=EXTERNAL), prefer_failure=True),
        replace(MAP_PORT, any_port=False),
    ),
    "prefer failure: another address": (
        with_(map_(external_address=C1), prefer_failure=True),
        pcp.Result.CANNOT_PROVIDE_EXTERNAL,
    ),
    "prefer failure: the pinhole's address": (
        with_(replace(MESSAGE_IPV6, payload=replace(MAP, external_address=C1_IPV6)), prefer_failure=True),
        replace(MAP_PORT_IPV6, any_port=False),
    ),
    "prefer failure: another IPv6 address": (
        with_(replace(MESSAGE_IPV6, payload=replace(MAP, external_address=IPv6Address("::9"))), prefer_failure=True),
        pcp.Result.CANNOT_PROVIDE_EXTERNAL,
    ),
    # §13.3
    "filters": (with_(filters=(NET, HOST, NET)), replace(MAP_PORT, remotes=(NET_REMOTE, HOST_REMOTE))),
    "remove filters": (with_(filters=(ALL4,)), replace(MAP_PORT, adds_remotes=False)),
    "remove filters, with an IPv6 address": (with_(filters=(ALL6,)), replace(MAP_PORT, adds_remotes=False)),
    "filter, then remove filters": (with_(filters=(NET, ALL4)), replace(MAP_PORT, adds_remotes=False)),
    "remove filters, then filter": (
        with_(filters=(NET, ALL4, HOST)),
        replace(MAP_PORT, adds_remotes=False, remotes=(HOST_REMOTE,)),
    ),
    "IPv6 filter": (with_(MESSAGE_IPV6, filters=(NET6,)), replace(MAP_PORT_IPV6, remotes=(NET6_REMOTE,))),
    "IPv6 filter for IPv4": (with_(filters=(NET, NET6)), pcp.Result.MALFORMED_OPTION),
    "IPv4 filter for IPv6": (with_(MESSAGE_IPV6, filters=(NET,)), pcp.Result.MALFORMED_OPTION),
    # RFC 7753
    "port set": (with_(port_set=PortSet(8, 80)), replace(MAP_PORT, count=8)),
    "port set with parity": (
        with_(port_set=PortSet(8, 80, parity=True)),
        replace(MAP_PORT, count=8, keeps_parity=True),
    ),
    "largest port set": (with_(port_set=PortSet(65535, 80)), replace(MAP_PORT, count=MAX_PORT_SET_SIZE)),
    "prefer failure: port set": (with_(port_set=PortSet(8, 80), prefer_failure=True), pcp.Result.MALFORMED_OPTION),
}


def pcp_exchange(message: pcp.Request, *, third_party: bool = True) -> Exchange:
    return decode(client_codec.encode(message), message.client, EPOCH, EXTERNAL, third_party=third_party)


@pytest.mark.parametrize(("message", "request_"), PCP_REQUESTS.values(), ids=PCP_REQUESTS)
def test_requests_of_pcp(message: pcp.Request, request_: Request | pcp.Result) -> None:
    assert pcp_exchange(message).request == request_


@pytest.mark.parametrize("lifetime", [0, 7200])
def test_third_party_is_unsupported_unless_enabled(lifetime: int) -> None:
    message = replace(with_(third_party=C1_HOST), lifetime=lifetime)
    assert pcp_exchange(message, third_party=False).request is pcp.Result.UNSUPP_OPTION


def response_to(message: pcp.Request, reply: Reply | None) -> PcpResponse:
    return client_codec.decode_pcp(pcp_exchange(message).encode(reply, EPOCH, EXTERNAL))


ASSIGNED = replace(MAP, external_address=EXTERNAL)
PCP_REPLIES: dict[str, tuple[pcp.Request, Reply | None, Response]] = {
    "announce": (pcp.Request(0, C1, Announce()), None, Response(0, EPOCH, Announce())),
    "mapped (§11.4)": (MESSAGE, Mapped(MAPPING, 3600), Response(3600, EPOCH, ASSIGNED)),
    "mapped to another port": (
        MESSAGE,
        Mapped(replace(MAPPING, external_port=9), 3600),
        Response(3600, EPOCH, replace(ASSIGNED, external_port=9)),
    ),
    "the nonce of the request, not of the mapping": (
        MESSAGE,
        Mapped(replace(MAPPING, claim=Claim(by_internal=True, nonce=b"another nonc")), 3600),
        Response(3600, EPOCH, ASSIGNED),
    ),
    "a longer lease that another protocol requested": (
        MESSAGE,
        Mapped(MAPPING, 604800),
        Response(MAX_LIFETIME, EPOCH, ASSIGNED),
    ),
    "pinhole: external is internal (§11.4)": (
        MESSAGE_IPV6,
        Mapped(PINHOLE, 3600),
        Response(3600, EPOCH, Map(NONCE, 6, 80, 80, C1_IPV6)),
    ),
    "deleted (§15.1)": (replace(MESSAGE, lifetime=0), Unmapped((MAPPING,)), Response(0, EPOCH, MAP)),
    "nothing to delete (§15.1)": (replace(MESSAGE, lifetime=0), Unmapped(()), Response(0, EPOCH, MAP)),
    "processed options (§7.3)": (
        with_(third_party=C1_HOST, prefer_failure=True, filters=(NET,)),
        Mapped(MAPPING, 3600),
        Response(3600, EPOCH, ASSIGNED, Options(C1_HOST, prefer_failure=True, filters=(NET,))),
    ),
    "port set (RFC 7753)": (
        with_(port_set=PortSet(8, 80, parity=True)),
        Mapped(MAPPING, 3600, count=5),
        Response(3600, EPOCH, ASSIGNED, Options(port_set=PortSet(5, 80, parity=True))),
    ),
    "port set of one port (RFC 7753 §4.2)": (
        with_(port_set=PortSet(8, 80)),
        Mapped(MAPPING, 3600, count=1),
        Response(3600, EPOCH, ASSIGNED),
    ),
}


@pytest.mark.parametrize(("message", "reply", "response"), PCP_REPLIES.values(), ids=PCP_REPLIES)
def test_responses_of_pcp(message: pcp.Request, reply: Reply | None, response: Response) -> None:
    assert response_to(message, reply) == response


def error(message: pcp.Request, code: int) -> ErrorResponse:
    """Return the error response, with the lifetime of §7.4."""
    lifetime = pcp.SHORT_LIFETIME if code in (7, 8, 10, 11) else pcp.LONG_LIFETIME
    return ErrorResponse(code, lifetime, EPOCH, 1, message.payload)


@pytest.mark.parametrize(("reason", "codes"), REFUSALS.items(), ids=[reason.name for reason in REFUSALS])
def test_a_refusal_of_pcp_is_a_copy_of_the_request(reason: Refusal, codes: tuple[int, int]) -> None:
    for message in (with_(prefer_failure=True), with_(prefer_failure=True, filters=(NET,))):
        assert response_to(message, reason) == error(message, codes[1])


def test_cannot_provide_external_requires_prefer_failure() -> None:
    """§7.4."""
    assert response_to(MESSAGE, Refusal.CONFLICT) == error(MESSAGE, pcp.Result.NO_RESOURCES)


@pytest.mark.parametrize("result", [result for result in pcp.Result if result])
def test_a_result_without_a_decision_is_a_copy_of_the_request(result: pcp.Result) -> None:
    datagram = client_codec.encode(MESSAGE)
    response = PcpExchange(datagram, MESSAGE, result).encode(None, EPOCH, EXTERNAL)
    assert response[24:] == datagram[24:]
    assert client_codec.decode_pcp(response) == error(MESSAGE, result)


@pytest.mark.parametrize("payload", [Announce(), MAP])
def test_a_source_that_is_not_a_peer_is_not_authorized(payload: Announce | Map) -> None:
    response = response_to(pcp.Request(0, C1, payload), Refusal.NOT_A_PEER)
    assert isinstance(response, ErrorResponse)
    assert response.result == pcp.Result.NOT_AUTHORIZED


@pytest.mark.parametrize(
    ("mapped", "external", "response"),
    [
        (Mapped(MAPPING, 60), EXTERNAL, Response(60, EPOCH, Map(NONCE, 6, 80, 8043, EXTERNAL))),
        (
            Mapped(MAPPING, 604800),
            EXTERNAL,
            Response(MAX_LIFETIME, EPOCH, Map(NONCE, 6, 80, 8043, EXTERNAL)),
        ),
        (Mapped(MAPPING, 60), None, Response(60, EPOCH, Map(NONCE, 6, 80, 8043, ANY4))),
        (Mapped(PINHOLE, 60), None, Response(60, EPOCH, Map(NONCE, 6, 80, 80, C1_IPV6))),
    ],
)
def test_an_update_is_the_response_to_a_request_with_the_same_nonce(
    mapped: Mapped, external: IPv4Address | None, response: Response
) -> None:
    """§14.2."""
    assert client_codec.decode_pcp(encode_update(mapped, EPOCH, external)) == response


def test_a_reply_to_another_request_is_an_error_of_the_program() -> None:
    with pytest.raises(AssertionError):
        natpmp_exchange(AddressRequest()).encode(Unmapped(()), EPOCH, EXTERNAL)
    with pytest.raises(AssertionError):
        pcp_exchange(MESSAGE).encode(ExternalAddress(EXTERNAL), EPOCH, EXTERNAL)


# Every valid request has a response to each kind of reply, which is not longer than the request

clients: st.SearchStrategy[Address] = st.sampled_from([C1, C1_IPV6])
addresses: st.SearchStrategy[Address] = st.sampled_from([C1, C1_HOST, C1_IPV6, EXTERNAL, ANY4, ANY6])
ports = st.integers(0, 65535)
maps = st.builds(Map, st.binary(min_size=12, max_size=12), st.sampled_from([0, 1, 6, 17, 132]), ports, ports, addresses)
filters = st.lists(st.sampled_from([NET, HOST, NET6, ALL4, ALL6]), max_size=4).map(tuple)


@st.composite
def messages(draw: st.DrawFn) -> pcp.Request:
    payload, client = draw(maps | st.just(Announce())), draw(clients)
    lifetime = draw(st.integers(0, 2**32 - 1))
    if isinstance(payload, Announce):
        return pcp.Request(lifetime, client, payload)
    payload = replace(payload, internal_port=payload.internal_port if payload.protocol else 0)
    sets = st.builds(PortSet, st.integers(1, 65535), st.just(payload.internal_port), st.booleans())
    options = Options(
        draw(st.none() | addresses.filter(lambda address: address != client)),
        payload.external_port != 0 and draw(st.booleans()),
        draw(filters) if lifetime else (),
        draw(st.none() | sets),
    )
    return pcp.Request(lifetime, client, payload, options)


@given(
    message=messages(),
    third_party=st.booleans(),
    reason=st.sampled_from(Refusal),
    count=st.integers(1, MAX_PORT_SET_SIZE),
)
def test_every_request_has_a_response(message: pcp.Request, *, third_party: bool, reason: Refusal, count: int) -> None:
    exchange = pcp_exchange(message, third_party=third_party)
    request = exchange.request
    replies: list[Reply | None] = [reason]
    if isinstance(request, MapPort):
        assert MIN_LIFETIME <= request.lifetime <= MAX_LIFETIME
        assert 1 <= request.count <= MAX_PORT_SET_SIZE
        assert request.external_port
        replies.append(Mapped(PINHOLE if request.internal.address.version == 6 else MAPPING, 3600, count))
    elif isinstance(request, UnmapInternal):
        replies.append(Unmapped(()))
    elif isinstance(request, pcp.Result):
        replies.append(None)
    else:
        pytest.fail(f"PCP does not make the request {request}")
    for reply in replies:
        assert len(exchange.encode(reply, EPOCH, EXTERNAL)) <= len(client_codec.encode(message))
