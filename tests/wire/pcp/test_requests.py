"""What NAT-PMP and PCP ask becomes requests, and each reply and refusal the answer that the RFCs have for it."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import Endpoint, Pinhole, PortMapping, Remote, TransportProtocol
from igd.core.request import (
    ExternalAddress,
    GetExternalAddress,
    Mapped,
    MapPort,
    Refusal,
    Refused,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
)
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.natpmp import AddressRequest, AddressResponse, MapRequest, MapResponse
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import Filter, Options, PortSet
from igd.wire.pcp.requests import (
    LARGEST_SET,
    LONGEST_LIFETIME,
    NATPMP_RESULTS,
    PCP_RESULTS,
    SHORTEST_LIFETIME,
    changed,
    from_natpmp,
    from_pcp,
    to_natpmp,
    to_pcp,
)

EPOCH = 77
C1, C1_HOST = IPv4Address("10.100.0.2"), IPv4Address("192.168.7.20")
C1_IPV6 = IPv6Address("2001:db8::2")
EXTERNAL = IPv4Address("60.60.60.1")
ANY4, ANY6 = IPv4Address(0), IPv6Address(0)
NONCE = b"a nonce of 12"[:12]
TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP

MAPPING = PortMapping(TCP, 8043, Endpoint(C1, 80), "c1", "web", (), NONCE)
PINHOLE = Pinhole(TCP, Endpoint(C1_IPV6, 80), "c1", "web", (), NONCE)

# NAT-PMP

PMP_ASKED = MapPort(TCP, Endpoint(C1, 80), 8043, 7200, "NAT-PMP", any_port=True, nonce=b"", adds_remotes=True)

PMP_REQUESTS: dict[str, tuple[natpmp.Request, Request | natpmp.Result]] = {
    "the address (§3.2)": (AddressRequest(), GetExternalAddress()),
    "a wish (§3.3)": (MapRequest(TCP, 80, 8043, 7200), PMP_ASKED),
    "no wish: the internal port is ours (§3.3)": (MapRequest(TCP, 80, 0, 7200), replace(PMP_ASKED, external_port=80)),
    "UDP": (MapRequest(UDP, 80, 8043, 7200), replace(PMP_ASKED, protocol=UDP)),
    "the longest lifetime": (MapRequest(TCP, 80, 8043, 2**32 - 1), replace(PMP_ASKED, lifetime=2**32 - 1)),
    "delete one (§3.4)": (MapRequest(TCP, 80, 0, 0), UnmapInternal(TCP, C1, 80, b"")),
    "delete one, whatever port is suggested": (MapRequest(UDP, 80, 8043, 0), UnmapInternal(UDP, C1, 80, b"")),
    "delete all of a protocol (§3.4)": (MapRequest(UDP, 0, 0, 0), UnmapInternal(UDP, C1, None, b"")),
    "all ports are for deleting": (MapRequest(TCP, 0, 8043, 7200), natpmp.Result.NOT_AUTHORIZED),
}


@pytest.mark.parametrize(("asked", "request_"), PMP_REQUESTS.values(), ids=PMP_REQUESTS)
def test_what_natpmp_asks(asked: natpmp.Request, request_: Request | natpmp.Result) -> None:
    assert from_natpmp(asked, C1) == request_


ONE = MapRequest(TCP, 80, 8043, 7200)
PMP_REPLIES: dict[str, tuple[natpmp.Request, Reply | natpmp.Result, natpmp.Response]] = {
    "the address": (AddressRequest(), ExternalAddress(EXTERNAL), AddressResponse(0, EPOCH, EXTERNAL)),
    "no address": (AddressRequest(), Refused(Refusal.NO_EXTERNAL_ADDRESS), AddressResponse(3, EPOCH, ANY4)),
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
    "nothing was there (§3.4)": (MapRequest(TCP, 80, 0, 0), Unmapped(()), MapResponse(TCP, 0, EPOCH, 80, 0, 0)),
    "all deleted": (MapRequest(TCP, 0, 0, 0), Unmapped(()), MapResponse(TCP, 0, EPOCH, 0, 0, 0)),
    "settled without a decision": (ONE, natpmp.Result.NOT_AUTHORIZED, MapResponse(TCP, 2, EPOCH, 80, 0, 0)),
}


@pytest.mark.parametrize(("asked", "reply", "response"), PMP_REPLIES.values(), ids=PMP_REPLIES)
def test_what_natpmp_is_told(asked: natpmp.Request, reply: Reply | natpmp.Result, response: natpmp.Response) -> None:
    assert to_natpmp(asked, reply, EPOCH) == response


# Both protocols' codes for each refusal: RFC 6886 §3.5, RFC 6887 §7.4
REFUSALS: dict[Refusal, tuple[int, int]] = {
    Refusal.NOT_A_PEER: (2, 2),
    Refusal.NOT_YOUR_ADDRESS: (2, 2),
    Refusal.FORBIDDEN: (2, 2),
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


def test_every_refusal_has_its_codes() -> None:
    assert set(Refusal) == REFUSALS.keys() == NATPMP_RESULTS.keys() == PCP_RESULTS.keys()


@pytest.mark.parametrize(("reason", "codes"), REFUSALS.items(), ids=[reason.name for reason in REFUSALS])
def test_a_refusal_of_natpmp_has_no_port_and_no_lifetime(reason: Refusal, codes: tuple[int, int]) -> None:
    refusal = MapResponse(TCP, codes[0], EPOCH, 80, 0, 0)
    assert to_natpmp(MapRequest(TCP, 80, 8043, 7200), Refused(reason), EPOCH) == refusal
    assert to_natpmp(AddressRequest(), Refused(reason), EPOCH) == AddressResponse(codes[0], EPOCH, ANY4)


# PCP

MAP = Map(NONCE, 6, 80, 8043, ANY4)
ASKED = pcp.Request(7200, C1, MAP)
ASKED_IPV6 = pcp.Request(7200, C1_IPV6, replace(MAP, external_address=ANY6))
GRANTED = MapPort(TCP, Endpoint(C1, 80), 8043, 7200, "PCP", any_port=True, nonce=NONCE, adds_remotes=True)
GRANTED_IPV6 = replace(GRANTED, internal=Endpoint(C1_IPV6, 80))
NET = Filter(120, 443, IPv4Address("203.0.113.9"))
HOST = Filter(128, 0, IPv4Address("198.51.100.7"))
NET6 = Filter(32, 0, IPv6Address("2001:db8:1::9"))
ALL4, ALL6 = Filter(0, 0, ANY4), Filter(0, 0, ANY6)
NET_REMOTE = Remote(IPv4Network("203.0.113.0/24"), 443)
HOST_REMOTE = Remote(IPv4Network("198.51.100.7/32"))
NET6_REMOTE = Remote(IPv6Network("2001:db8::/32"))


def map_(**fields: Any) -> pcp.Request:  # noqa: ANN401 - each has its own type
    """Give ASKED with some of the opcode's own fields changed."""
    return replace(ASKED, payload=replace(MAP, **fields))


def with_(request: pcp.Request = ASKED, **options: Any) -> pcp.Request:  # noqa: ANN401
    """Give a request with some options."""
    return replace(request, options=Options(**options))


PCP_REQUESTS: dict[str, tuple[pcp.Request, Request | pcp.Result | None]] = {
    "announce (§14.1)": (pcp.Request(0, C1, Announce()), None),
    "a wish (§11.1)": (ASKED, GRANTED),
    "UDP": (map_(protocol=17), replace(GRANTED, protocol=UDP)),
    "no wish": (map_(external_port=0), replace(GRANTED, external_port=80)),
    "a wish for another address is no more than that": (map_(external_address=C1), GRANTED),
    "the shortest lifetime (§15)": (replace(ASKED, lifetime=1), replace(GRANTED, lifetime=SHORTEST_LIFETIME)),
    "the longest lifetime (§15)": (replace(ASKED, lifetime=2**32 - 1), replace(GRANTED, lifetime=LONGEST_LIFETIME)),
    "a lifetime as it was asked": (replace(ASKED, lifetime=121), replace(GRANTED, lifetime=121)),
    "IPv6: a pinhole": (ASKED_IPV6, GRANTED_IPV6),
    # What can be neither
    "all ports of all protocols (§11.3)": (map_(protocol=0, internal_port=0), pcp.Result.UNSUPP_PROTOCOL),
    "all ports of one protocol": (map_(internal_port=0), pcp.Result.UNSUPP_PROTOCOL),
    "ICMP": (map_(protocol=1), pcp.Result.UNSUPP_PROTOCOL),
    "SCTP": (map_(protocol=132), pcp.Result.UNSUPP_PROTOCOL),
    # §15.1
    "delete": (replace(ASKED, lifetime=0), UnmapInternal(TCP, C1, 80, NONCE)),
    "delete a pinhole": (replace(ASKED_IPV6, lifetime=0), UnmapInternal(TCP, C1_IPV6, 80, NONCE)),
    "delete all of a protocol": (replace(map_(internal_port=0), lifetime=0), UnmapInternal(TCP, C1, None, NONCE)),
    "delete all": (replace(map_(protocol=0, internal_port=0), lifetime=0), UnmapInternal(None, C1, None, NONCE)),
    "delete a row (RFC 7753 §4.4)": (
        replace(with_(port_set=PortSet(8, 80)), lifetime=0),
        UnmapInternal(TCP, C1, 80, NONCE, 8),
    ),
    "delete ICMP": (replace(map_(protocol=1), lifetime=0), pcp.Result.UNSUPP_PROTOCOL),
    # §13.1
    "for another host": (with_(third_party=C1_HOST), replace(GRANTED, internal=Endpoint(C1_HOST, 80))),
    "delete another host's": (
        replace(with_(third_party=C1_HOST), lifetime=0),
        UnmapInternal(TCP, C1_HOST, 80, NONCE),
    ),
    "for a host of the other family": (with_(third_party=C1_IPV6), GRANTED_IPV6),
    # §13.2
    "this port or none": (with_(prefer_failure=True), replace(GRANTED, any_port=False)),
    "this port and our address or none": (
        with_(map_(external_address=EXTERNAL), prefer_failure=True),
        replace(GRANTED, any_port=False),
    ),
    "another address or none": (
        with_(map_(external_address=C1), prefer_failure=True),
        pcp.Result.CANNOT_PROVIDE_EXTERNAL,
    ),
    "its own IPv6 address or none": (
        with_(replace(ASKED_IPV6, payload=replace(MAP, external_address=C1_IPV6)), prefer_failure=True),
        replace(GRANTED_IPV6, any_port=False),
    ),
    "another IPv6 address or none": (
        with_(replace(ASKED_IPV6, payload=replace(MAP, external_address=IPv6Address("::9"))), prefer_failure=True),
        pcp.Result.CANNOT_PROVIDE_EXTERNAL,
    ),
    # §13.3
    "filters": (with_(filters=(NET, HOST, NET)), replace(GRANTED, remotes=(NET_REMOTE, HOST_REMOTE))),
    "no filters any more": (with_(filters=(ALL4,)), replace(GRANTED, adds_remotes=False)),
    "no filters any more, in IPv6's words": (with_(filters=(ALL6,)), replace(GRANTED, adds_remotes=False)),
    "a filter and then none": (with_(filters=(NET, ALL4)), replace(GRANTED, adds_remotes=False)),
    "none and then a filter": (
        with_(filters=(NET, ALL4, HOST)),
        replace(GRANTED, adds_remotes=False, remotes=(HOST_REMOTE,)),
    ),
    "a filter of IPv6": (with_(ASKED_IPV6, filters=(NET6,)), replace(GRANTED_IPV6, remotes=(NET6_REMOTE,))),
    "IPv6's filter for IPv4": (with_(filters=(NET, NET6)), pcp.Result.MALFORMED_OPTION),
    "IPv4's filter for IPv6": (with_(ASKED_IPV6, filters=(NET,)), pcp.Result.MALFORMED_OPTION),
    # RFC 7753
    "a row": (with_(port_set=PortSet(8, 80)), replace(GRANTED, count=8)),
    "an even row": (with_(port_set=PortSet(8, 80, parity=True)), replace(GRANTED, count=8, keeps_parity=True)),
    "as long a row as can be": (with_(port_set=PortSet(65535, 80)), replace(GRANTED, count=LARGEST_SET)),
    "just this row or none": (with_(port_set=PortSet(8, 80), prefer_failure=True), pcp.Result.MALFORMED_OPTION),
}


@pytest.mark.parametrize(("asked", "request_"), PCP_REQUESTS.values(), ids=PCP_REQUESTS)
def test_what_pcp_asks(asked: pcp.Request, request_: Request | pcp.Result | None) -> None:
    assert from_pcp(asked, EXTERNAL, third_party=True) == request_


@pytest.mark.parametrize("lifetime", [0, 7200])
def test_third_parties_are_for_who_allows_them(lifetime: int) -> None:
    asked = replace(with_(third_party=C1_HOST), lifetime=lifetime)
    assert from_pcp(asked, EXTERNAL, third_party=False) is pcp.Result.UNSUPP_OPTION


def answer(asked: pcp.Request, reply: Reply | pcp.Result | None, external: IPv4Address | None = EXTERNAL) -> object:
    return pcp.decode_response(to_pcp(pcp.encode_request(asked), asked, reply, EPOCH, external))


TOLD = replace(MAP, external_address=EXTERNAL)
PCP_REPLIES: dict[str, tuple[pcp.Request, Reply | None, pcp.Response]] = {
    "announce": (pcp.Request(0, C1, Announce()), None, pcp.Response(0, EPOCH, Announce())),
    "mapped (§11.4)": (ASKED, Mapped(MAPPING, 3600), pcp.Response(3600, EPOCH, TOLD)),
    "mapped to another port": (
        ASKED,
        Mapped(replace(MAPPING, external_port=9), 3600),
        pcp.Response(3600, EPOCH, replace(TOLD, external_port=9)),
    ),
    "the asker's nonce, whoever else has one": (
        ASKED,
        Mapped(replace(MAPPING, nonce=b"another nonc"), 3600),
        pcp.Response(3600, EPOCH, TOLD),
    ),
    "a longer lease of another protocol": (ASKED, Mapped(MAPPING, 604800), pcp.Response(LONGEST_LIFETIME, EPOCH, TOLD)),
    "a pinhole is outside what it is inside": (
        ASKED_IPV6,
        Mapped(PINHOLE, 3600),
        pcp.Response(3600, EPOCH, Map(NONCE, 6, 80, 80, C1_IPV6)),
    ),
    "deleted (§15.1)": (replace(ASKED, lifetime=0), Unmapped((MAPPING,)), pcp.Response(0, EPOCH, MAP)),
    "nothing was there (§15.1)": (replace(ASKED, lifetime=0), Unmapped(()), pcp.Response(0, EPOCH, MAP)),
    "options that were processed (§7.3)": (
        with_(third_party=C1_HOST, prefer_failure=True, filters=(NET,)),
        Mapped(MAPPING, 3600),
        pcp.Response(3600, EPOCH, TOLD, Options(C1_HOST, True, (NET,))),  # noqa: FBT003 - prefer_failure
    ),
    "a row (RFC 7753)": (
        with_(port_set=PortSet(8, 80, parity=True)),
        Mapped(MAPPING, 3600, count=5),
        pcp.Response(3600, EPOCH, TOLD, Options(port_set=PortSet(5, 80, parity=True))),
    ),
    "one port is no row": (
        with_(port_set=PortSet(8, 80)),
        Mapped(MAPPING, 3600, count=1),
        pcp.Response(3600, EPOCH, TOLD),
    ),
}


@pytest.mark.parametrize(("asked", "reply", "response"), PCP_REPLIES.values(), ids=PCP_REPLIES)
def test_what_pcp_is_told(asked: pcp.Request, reply: Reply | None, response: pcp.Response) -> None:
    assert answer(asked, reply) == response


def error(asked: pcp.Request, code: int) -> pcp.ErrorResponse:
    """§7.4: half a minute for what may change, half an hour for what will not."""
    lifetime = pcp.SHORT if code in (7, 8, 10, 11) else pcp.LONG
    return pcp.ErrorResponse(code, lifetime, EPOCH, 1, asked.payload)


@pytest.mark.parametrize(("reason", "codes"), REFUSALS.items(), ids=[reason.name for reason in REFUSALS])
def test_a_refusal_of_pcp_is_a_copy_of_the_request(reason: Refusal, codes: tuple[int, int]) -> None:
    for asked in (with_(prefer_failure=True), with_(prefer_failure=True, filters=(NET,))):
        assert answer(asked, Refused(reason)) == error(asked, codes[1])


def test_that_a_port_cannot_be_had_is_told_to_those_who_ask_for_this_or_none() -> None:
    """§7.4: CANNOT_PROVIDE_EXTERNAL is theirs alone."""
    assert answer(ASKED, Refused(Refusal.CONFLICT)) == error(ASKED, pcp.Result.NO_RESOURCES)


@pytest.mark.parametrize("result", [result for result in pcp.Result if result])
def test_what_is_settled_without_a_decision_is_a_copy_too(result: pcp.Result) -> None:
    assert answer(ASKED, result) == error(ASKED, result)


@pytest.mark.parametrize("payload", [Announce(), MAP])
def test_who_is_nobody_is_refused_whatever_it_asks(payload: Announce | Map) -> None:
    told = answer(pcp.Request(0, C1, payload), Refused(Refusal.NOT_A_PEER))
    assert isinstance(told, pcp.ErrorResponse)
    assert told.result == pcp.Result.NOT_AUTHORIZED


@pytest.mark.parametrize(
    ("mapped", "external", "told"),
    [
        (Mapped(MAPPING, 60), EXTERNAL, pcp.Response(60, EPOCH, Map(NONCE, 6, 80, 8043, EXTERNAL))),
        (Mapped(MAPPING, 604800), EXTERNAL, pcp.Response(LONGEST_LIFETIME, EPOCH, Map(NONCE, 6, 80, 8043, EXTERNAL))),
        (Mapped(MAPPING, 60), None, pcp.Response(60, EPOCH, Map(NONCE, 6, 80, 8043, ANY4))),
        (Mapped(PINHOLE, 60), None, pcp.Response(60, EPOCH, Map(NONCE, 6, 80, 80, C1_IPV6))),
    ],
)
def test_what_nobody_asked_for(mapped: Mapped, external: IPv4Address | None, told: pcp.Response) -> None:
    """§14.2: as the answer to a request of the same nonce."""
    assert pcp.decode_response(changed(mapped, EPOCH, external)) == told


def test_a_reply_to_another_request_is_a_mistake_of_our_own() -> None:
    with pytest.raises(AssertionError):
        to_natpmp(AddressRequest(), Unmapped(()), EPOCH)
    with pytest.raises(AssertionError):
        to_pcp(b"", ASKED, ExternalAddress(EXTERNAL), EPOCH, EXTERNAL)


# Whatever can be decoded can be asked, and every kind of reply can be told without being longer than the request

addresses = st.sampled_from([C1, C1_HOST, C1_IPV6, EXTERNAL, ANY4, ANY6])
ports = st.integers(0, 65535)
maps = st.builds(Map, st.binary(min_size=12, max_size=12), st.sampled_from([0, 1, 6, 17, 132]), ports, ports, addresses)
filters = st.lists(st.sampled_from([NET, HOST, NET6, ALL4, ALL6]), max_size=4).map(tuple)
sets = st.none() | st.builds(PortSet, st.integers(1, 65535), ports, st.booleans())
options = st.builds(Options, st.none() | addresses, st.booleans(), filters, sets)
requests = st.builds(
    pcp.Request, st.integers(0, 2**32 - 1), st.sampled_from([C1, C1_IPV6]), maps | st.just(Announce()), options
)


@given(requests, st.booleans(), st.sampled_from(Refusal), st.integers(1, LARGEST_SET))
def test_whatever_is_asked_has_an_answer(asked: pcp.Request, third_party: bool, reason: Refusal, count: int) -> None:  # noqa: FBT001
    datagram = pcp.encode_request(asked)
    request = from_pcp(asked, EXTERNAL, third_party=third_party)
    replies: list[Reply | pcp.Result | None] = [Refused(reason)]
    if isinstance(request, MapPort):
        assert SHORTEST_LIFETIME <= request.lifetime <= LONGEST_LIFETIME
        assert 1 <= request.count <= LARGEST_SET
        assert request.external_port
        replies.append(Mapped(PINHOLE if request.internal.address.version == 6 else MAPPING, 3600, count))
    elif isinstance(request, UnmapInternal):
        replies.append(Unmapped(()))
    elif request is None or isinstance(request, pcp.Result):
        replies.append(request)
    else:
        pytest.fail(f"{request} is not PCP's to ask")
    for reply in replies:
        assert len(to_pcp(datagram, asked, reply, EPOCH, EXTERNAL)) <= len(datagram)
