"""RFC 6887 and RFC 7753: requests, answers, options and errors, octet for octet."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.wire.malformed import Malformed, Rejected
from igd.wire.pcp.messages import (
    LONG,
    LONGEST_MESSAGE,
    SHORT,
    ErrorResponse,
    Request,
    Response,
    Result,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
)
from igd.wire.pcp.natpmp import is_natpmp
from igd.wire.pcp.opcodes import Announce, Map, Payload
from igd.wire.pcp.options import Address, Filter, Options, PortSet, decode_address, encode_address

EPOCH = 0x01020304

ANY4 = IPv4Address("0.0.0.0")
ANY6 = IPv6Address("::")
CLIENT = IPv4Address("10.77.0.2")
CLIENT6 = IPv6Address("fd77::2")
OUTSIDE = IPv4Address("198.51.100.1")
REMOTE = IPv4Address("203.0.113.9")
REMOTE6 = IPv6Address("2001:db8::9")
NONCE = bytes.fromhex("babf6b11ac0c50a9153d76b0")

MAPPED = " 00000000000000000000ffff "
HEAD = "0201 0000 00000e10" + MAPPED + "0a4d0002"
DELETE = "0201 0000 00000000" + MAPPED + "0a4d0002"
HEAD_OF_PEER = "0202 0000 00000e10" + MAPPED + "0a4d0002"
ANSWER = "0281 0000 00000e10 01020304 00000000 00000000 00000000"
TCP_6881 = "babf6b11ac0c50a9153d76b0 06 000000 1ae1 1ae1"
WISH = TCP_6881 + MAPPED + "00000000"
GIVEN = TCP_6881 + MAPPED + "c6336401"
FLOW = TCP_6881 + MAPPED + "c6336401 01bb 0000" + MAPPED + "cb007109"

MAP = Map(NONCE, 6, 6881, 6881, ANY4)
ASSIGNED = replace(MAP, external_address=OUTSIDE)

THIRD_PARTY = "01 00 0010" + MAPPED + "0a4d0003"
PREFER_FAILURE = "02 00 0000"
FILTER = "03 00 0014 00 78 01bb" + MAPPED + "cb007100"
NO_FILTER = "03 00 0014 00 00 0000" + MAPPED + "00000000"
FILTER6 = "03 00 0014 00 20 0000 20010db8000000000000000000000009"
PORT_SET = "82 00 0005 0100 1ae1 01 000000"

SUBNET = Filter(120, 443, IPv4Address("203.0.113.0"))
EVERYBODY = Filter(0, 0, ANY4)

# Captured, where a client is named.
REQUESTS: dict[str, tuple[str, Request]] = {
    "libtorrent maps": (HEAD + WISH, Request(3600, CLIENT, MAP)),
    "libtorrent unmaps, with the external address": (DELETE + GIVEN, Request(0, CLIENT, ASSIGNED)),
    "announce (§14.1)": ("0200 0000 00000000" + MAPPED + "0a4d0002", Request(0, CLIENT, Announce())),
    "map over IPv6, no wish (§5)": (
        "0201 0000 00000078 fd770000000000000000000000000002" + TCP_6881 + "00000000000000000000000000000000",
        Request(120, CLIENT6, replace(MAP, external_address=ANY6)),
    ),
    "unmap all (§15.1)": (
        DELETE + "babf6b11ac0c50a9153d76b0 00 000000 0000 0000" + MAPPED + "00000000",
        Request(0, CLIENT, Map(NONCE, 0, 0, 0, ANY4)),
    ),
    "the largest numbers": (
        "0201 0000 ffffffff" + MAPPED + "0a4d0002 ffffffffffffffffffffffff ff 000000 ffff ffff" + "ff" * 16,
        Request(0xFFFFFFFF, CLIENT, Map(b"\xff" * 12, 255, 65535, 65535, IPv6Address(2**128 - 1))),
    ),
    "third party (§13.1)": (
        HEAD + WISH + THIRD_PARTY,
        Request(3600, CLIENT, MAP, Options(third_party=IPv4Address("10.77.0.3"))),
    ),
    "prefer failure (§13.2)": (
        HEAD + WISH + PREFER_FAILURE,
        Request(3600, CLIENT, MAP, Options(prefer_failure=True)),
    ),
    "filter (§13.3)": (HEAD + WISH + FILTER, Request(3600, CLIENT, MAP, Options(filters=(SUBNET,)))),
    "these filters and no others": (
        HEAD + WISH + NO_FILTER + FILTER + FILTER,
        Request(3600, CLIENT, MAP, Options(filters=(EVERYBODY, SUBNET, SUBNET))),
    ),
    "filter for IPv6": (
        HEAD + WISH + FILTER6,
        Request(3600, CLIENT, MAP, Options(filters=(Filter(32, 0, REMOTE6),))),
    ),
    "port set (RFC 7753)": (
        HEAD + WISH + PORT_SET,
        Request(3600, CLIENT, MAP, Options(port_set=PortSet(256, 6881, parity=True))),
    ),
    "all options": (
        HEAD + WISH + THIRD_PARTY + PREFER_FAILURE + FILTER + PORT_SET,
        Request(
            3600,
            CLIENT,
            MAP,
            Options(IPv4Address("10.77.0.3"), True, (SUBNET,), PortSet(256, 6881, parity=True)),  # noqa: FBT003
        ),
    ),
}

RESPONSES: dict[str, tuple[str, Response]] = {
    "mapped, or the mapping has changed (§14.2)": (ANSWER + GIVEN, Response(3600, EPOCH, ASSIGNED)),
    "restarted (§14.1)": (
        "0280 0000 00000000 01020304 00000000 00000000 00000000",
        Response(0, EPOCH, Announce()),
    ),
    "mapped with all options": (
        ANSWER + GIVEN + THIRD_PARTY + PREFER_FAILURE + FILTER + PORT_SET,
        Response(
            3600,
            EPOCH,
            ASSIGNED,
            Options(IPv4Address("10.77.0.3"), True, (SUBNET,), PortSet(256, 6881, parity=True)),  # noqa: FBT003
        ),
    ),
    "a pinhole": (
        ANSWER + TCP_6881 + "fd770000000000000000000000000002",
        Response(3600, EPOCH, replace(MAP, external_address=CLIENT6)),
    ),
}

# Requests that fail, from 10.77.0.2, and how: §8.2, and the sections that the names tell
FAILING: dict[str, tuple[str, Result]] = {
    "version 1": ("0101", Result.UNSUPP_VERSION),
    "version 3, and anything else (§9)": ("0301 0000 00000e10 00", Result.UNSUPP_VERSION),
    "version 0, where NAT-PMP is off": ("0000", Result.UNSUPP_VERSION),
    "an opcode of another version": ("017f", Result.UNSUPP_VERSION),
    "a map without its address": (HEAD + TCP_6881, Result.MALFORMED_REQUEST),
    "a map of a head only": (HEAD, Result.MALFORMED_REQUEST),
    "an octet too much": (HEAD + WISH + "00", Result.MALFORMED_REQUEST),
    "an octet too few": ((HEAD + WISH)[:-2], Result.MALFORMED_REQUEST),
    "1104 octets": (HEAD + WISH + "ff000000" * 261, Result.MALFORMED_REQUEST),
    "too long before any other error": ("0263 0000 00000000" + "00" * 1096, Result.MALFORMED_REQUEST),
    "another's address": (HEAD.replace("0a4d0002", "0a4d0003") + WISH, Result.ADDRESS_MISMATCH),
    "IPv4 that is not mapped": (HEAD.replace("ffff", "0000") + WISH, Result.ADDRESS_MISMATCH),
    "another's address before the opcode": ("0263 0000 00000000" + "00" * 16, Result.ADDRESS_MISMATCH),
    "another's address before the options": (
        HEAD.replace("0a4d0002", "0a4d0003") + WISH + "7f000000",
        Result.ADDRESS_MISMATCH,
    ),
    "opcode 3, authentication": (HEAD.replace("0201", "0203"), Result.UNSUPP_OPCODE),
    "opcode 127": (HEAD.replace("0201", "027f"), Result.UNSUPP_OPCODE),
    "opcode 2, peer (§12)": (HEAD_OF_PEER + FLOW, Result.UNSUPP_OPCODE),
    "a peer of a head only": (HEAD_OF_PEER, Result.UNSUPP_OPCODE),
    "a peer as long as a map": (HEAD_OF_PEER + WISH, Result.UNSUPP_OPCODE),
    "a peer with a filter": (HEAD_OF_PEER + FLOW + FILTER, Result.UNSUPP_OPCODE),
    "a peer with an option longer than the message": (HEAD_OF_PEER + FLOW + "ff000001", Result.UNSUPP_OPCODE),
    "a peer of all protocols, one port": (
        HEAD_OF_PEER + FLOW.replace("06 000000", "00 000000"),
        Result.UNSUPP_OPCODE,
    ),
    "a peer and an octet too much": (HEAD_OF_PEER + FLOW + "00", Result.MALFORMED_REQUEST),
    "an option that must be known (§7.3)": (HEAD + WISH + "7f000000", Result.UNSUPP_OPTION),
    "option 0": (HEAD + WISH + "00000000", Result.UNSUPP_OPTION),
    "third party for announce": (REQUESTS["announce (§14.1)"][0] + THIRD_PARTY, Result.UNSUPP_OPTION),
    "an option longer than the message": (HEAD + WISH + "ff000001", Result.MALFORMED_OPTION),
    "a length past the end": (HEAD + WISH + "03 00 ffff", Result.MALFORMED_OPTION),
    "the structure before what cannot be known": (HEAD + WISH + "7f000000 03000014", Result.MALFORMED_OPTION),
    "third party of 4 octets": (HEAD + WISH + "01000004 0a4d0003", Result.MALFORMED_OPTION),
    "third party twice": (HEAD + WISH + THIRD_PARTY + THIRD_PARTY, Result.MALFORMED_OPTION),
    "third party is the client (§13.1)": (HEAD + WISH + "01000010" + MAPPED + "0a4d0002", Result.MALFORMED_REQUEST),
    "prefer failure with content": (HEAD + WISH + "02000004 00000000", Result.MALFORMED_OPTION),
    "prefer failure twice": (HEAD + WISH + PREFER_FAILURE * 2, Result.MALFORMED_OPTION),
    "prefer failure without a port (§13.2)": (
        HEAD + WISH.replace("1ae1 1ae1", "1ae1 0000") + PREFER_FAILURE,
        Result.MALFORMED_OPTION,
    ),
    "filter of 16 octets": (HEAD + WISH + "03000010" + "00" * 16, Result.MALFORMED_OPTION),
    "filter, /95 of IPv4 (§13.3)": (HEAD + WISH + FILTER.replace("78", "5f"), Result.MALFORMED_OPTION),
    "filter, /1 of IPv4": (HEAD + WISH + FILTER.replace("78", "01"), Result.MALFORMED_OPTION),
    "filter, /129 of IPv4": (HEAD + WISH + FILTER.replace("78", "81"), Result.MALFORMED_OPTION),
    "filter, /129 of IPv6": (HEAD + WISH + FILTER6.replace("00 20", "00 81"), Result.MALFORMED_OPTION),
    "one bad filter of two": (HEAD + WISH + FILTER + FILTER.replace("78", "01"), Result.MALFORMED_OPTION),
    "filter for what is deleted": (DELETE + WISH + FILTER, Result.MALFORMED_OPTION),
    "no filter for what is deleted": (DELETE + WISH + NO_FILTER, Result.MALFORMED_OPTION),
    "port set of 4 octets (RFC 7753)": (HEAD + WISH + "82000004 01001ae1", Result.MALFORMED_OPTION),
    "port set of no ports": (HEAD + WISH + PORT_SET.replace("0100", "0000"), Result.MALFORMED_OPTION),
    "port set from another port": (HEAD + WISH + PORT_SET.replace("1ae1", "1ae0"), Result.MALFORMED_OPTION),
    "port set twice": (HEAD + WISH + PORT_SET + PORT_SET, Result.MALFORMED_OPTION),
    "all protocols, one port (§11.3)": (HEAD + WISH.replace("06 000000", "00 000000"), Result.MALFORMED_REQUEST),
}

SILENT = {
    "nothing": "",
    "a version alone": "02",
    "another version alone": "01",
    "a version and an opcode": "0201",
    "a head one octet short": (HEAD.replace(" ", ""))[:-2],
    "our own answer": ANSWER + GIVEN,
    "an answer of another version": "0181",
}


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def rejection(datagram: bytes, source: Address = CLIENT) -> Rejected:
    with pytest.raises(Rejected) as rejected:
        decode_request(datagram, source, EPOCH)
    return rejected.value


@pytest.mark.parametrize(("text", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_requests_both_ways(text: str, request_: Request) -> None:
    assert decode_request(octets(text), request_.client, EPOCH) == request_
    assert encode_request(request_) == octets(text)


@pytest.mark.parametrize(("text", "response"), RESPONSES.values(), ids=RESPONSES)
def test_answers_both_ways(text: str, response: Response) -> None:
    assert decode_response(octets(text)) == response
    assert encode_response(response) == octets(text)


# What fails


@pytest.mark.parametrize(("text", "result"), FAILING.values(), ids=FAILING)
def test_a_request_that_cannot_be_understood_comes_back_with_its_error(text: str, result: Result) -> None:
    """§8.2: a copy, at most 1100 octets, padded to whole words; and at least a head."""
    datagram = octets(text)
    answer = rejection(datagram).answer
    assert answer is not None
    head = bytes((2, 0x80 | datagram[1], 0, result)) + LONG.to_bytes(4, "big") + EPOCH.to_bytes(4, "big")
    copy = datagram[12:LONGEST_MESSAGE].ljust(12, b"\0")
    assert answer == head + copy + bytes(-len(copy) % 4)


@pytest.mark.parametrize("text", SILENT.values(), ids=SILENT)
def test_what_is_no_request_at_all_has_no_answer(text: str) -> None:
    assert rejection(octets(text)).answer is None


@pytest.mark.parametrize(("text", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_cut_off_anywhere_fails_or_has_lost_options(text: str, request_: Request) -> None:
    datagram = octets(text)
    for length in range(len(datagram)):
        outcome = decoded(datagram[:length], request_.client)
        if isinstance(outcome, Request):
            assert replace(outcome, options=request_.options) == request_
            assert outcome.options != request_.options
        elif length < 24:
            assert outcome.answer is None
        else:
            answer = decode_response(outcome.answer or b"")
            assert isinstance(answer, ErrorResponse)
            assert answer.result in {Result.MALFORMED_REQUEST, Result.MALFORMED_OPTION}


@pytest.mark.parametrize(("text", "_"), RESPONSES.values(), ids=RESPONSES)
def test_an_answer_cut_off_anywhere_is_malformed_or_has_lost_options(text: str, _: Response) -> None:
    datagram = octets(text)
    whole = decode_response(datagram)
    for length in range(len(datagram)):
        with contextlib.suppress(Malformed):
            assert decode_response(datagram[:length]) != whole


PASSING = {Result.NETWORK_FAILURE, Result.NO_RESOURCES, Result.USER_EX_QUOTA, Result.CANNOT_PROVIDE_EXTERNAL}


@pytest.mark.parametrize("result", [result for result in Result if result is not Result.SUCCESS])
def test_a_request_that_is_understood_and_refused_comes_back_without_the_address(result: Result) -> None:
    """§7.2: then the reserved bits are 0; the options all come back (§7.3)."""
    datagram = octets(REQUESTS["all options"][0])
    answer = encode_error(datagram, result, EPOCH)
    seconds = SHORT if result in PASSING else LONG
    assert answer[:12] == bytes((2, 0x81, 0, result)) + seconds.to_bytes(4, "big") + EPOCH.to_bytes(4, "big")
    assert answer[12:24] == bytes(12)
    assert answer[24:] == datagram[24:]
    assert decode_response(answer) == ErrorResponse(result, seconds, EPOCH, 1, MAP)


def test_an_error_can_be_told_to_last_as_long_as_its_reason() -> None:
    answer = encode_error(octets(HEAD + WISH), Result.CANNOT_PROVIDE_EXTERNAL, EPOCH, lifetime=77)
    assert decode_response(answer) == ErrorResponse(Result.CANNOT_PROVIDE_EXTERNAL, 77, EPOCH, 1, MAP)


# What is passed over


def test_options_that_may_be_passed_over_are() -> None:
    unknown = "80000000 ff000003 ffffff00 c0000000"
    assert decode_request(octets(HEAD + WISH + unknown), CLIENT, EPOCH) == Request(3600, CLIENT, MAP)
    announce, request = REQUESTS["announce (§14.1)"]
    assert decode_request(octets(announce + PORT_SET), CLIENT, EPOCH) == request


def test_options_come_in_any_order_but_filters_keep_theirs() -> None:
    shuffled = PORT_SET + FILTER + PREFER_FAILURE + NO_FILTER + THIRD_PARTY
    assert decode_request(octets(HEAD + WISH + shuffled), CLIENT, EPOCH).options == Options(
        third_party=IPv4Address("10.77.0.3"),
        prefer_failure=True,
        filters=(SUBNET, EVERYBODY),
        port_set=PortSet(256, 6881, parity=True),
    )


def test_reserved_bits_and_padding_are_passed_over() -> None:
    request = HEAD.replace("0201 0000", "0201 ffff") + WISH.replace("06 000000", "06 ffffff")
    options = "02 ff 0000" + FILTER.replace("00 78", "ff 78") + "82 ff 0005 0100 1ae1 fe ffffff"
    assert decode_request(octets(request + options), CLIENT, EPOCH).options == Options(
        prefer_failure=True, filters=(SUBNET,), port_set=PortSet(256, 6881, parity=False)
    )


def test_a_message_of_1100_octets_is_not_too_long() -> None:
    datagram = octets(HEAD + WISH + "ff000000" * 260)
    assert len(datagram) == LONGEST_MESSAGE
    assert decode_request(datagram, CLIENT, EPOCH) == Request(3600, CLIENT, MAP)


def test_a_client_passes_over_options_that_it_does_not_know() -> None:
    """§7.3: even those that a server would have to process."""
    assert decode_response(octets(ANSWER + GIVEN + "7f000000 ff000000")) == Response(3600, EPOCH, ASSIGNED)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + WISH,
        "0081 0000" + ANSWER[9:] + GIVEN,
        ANSWER,
        ANSWER + GIVEN + "00",
        ANSWER + GIVEN + "ff000000" * 261,
        ANSWER.replace("0281", "02ff"),
    ],
    ids=["a request", "another version", "too short", "not in words", "too long", "an opcode that is none"],
)
def test_what_is_no_answer_is_malformed_to_a_client(text: str) -> None:
    with pytest.raises(Malformed):
        decode_response(octets(text))


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("0281 0001 00000708", ErrorResponse(Result.UNSUPP_VERSION, LONG, EPOCH, 1, None)),
        ("02e3 0004 00000708", ErrorResponse(Result.UNSUPP_OPCODE, LONG, EPOCH, 0x63, None)),
        ("0282 0004 00000708", ErrorResponse(Result.UNSUPP_OPCODE, LONG, EPOCH, 2, None)),
        ("0281 00ff 0000001e", ErrorResponse(255, SHORT, EPOCH, 1, None)),
    ],
    ids=["another version", "another opcode", "peer", "a code that is none yet"],
)
def test_errors_without_a_payload_are_read(text: str, response: ErrorResponse) -> None:
    assert decode_response(octets(text + "01020304 00000000 00000000 00000000")) == response


# Addresses and networks


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (MAPPED + "0a4d0002", CLIENT),
        (MAPPED + "00000000", ANY4),
        ("00" * 16, ANY6),
        ("00" * 15 + "01", IPv6Address("::1")),
        ("20010db8000000000000000000000009", REMOTE6),
    ],
)
def test_addresses_both_ways(text: str, address: Address) -> None:
    assert decode_address(octets(text)) == address
    assert encode_address(address) == octets(text)


def test_a_source_in_either_notation_is_the_same_client() -> None:
    mapped = IPv6Address("::ffff:10.77.0.2")
    assert decode_request(octets(HEAD + WISH), mapped, EPOCH).client == CLIENT


def test_an_address_with_a_zone_is_the_same_client() -> None:
    head = "0201 0000 00000e10 fe800000000000000000000000000002"
    assert decode_request(octets(head + WISH), IPv6Address("fe80::2%wg0"), EPOCH).client == IPv6Address("fe80::2")


@pytest.mark.parametrize(
    ("each", "network"),
    [
        (EVERYBODY, None),
        (Filter(0, 443, REMOTE6), None),
        (SUBNET, IPv4Network("203.0.113.0/24")),
        (Filter(96, 0, REMOTE), IPv4Network("0.0.0.0/0")),
        (Filter(128, 0, REMOTE), IPv4Network("203.0.113.9/32")),
        (Filter(120, 0, REMOTE), IPv4Network("203.0.113.0/24")),
        (Filter(1, 0, REMOTE6), IPv6Network("::/1")),
        (Filter(64, 0, REMOTE6), IPv6Network("2001:db8::/64")),
        (Filter(128, 0, REMOTE6), IPv6Network("2001:db8::9/128")),
    ],
)
def test_the_network_of_a_filter(each: Filter, network: IPv4Network | IPv6Network | None) -> None:
    assert each.network == network


def test_the_first_octet_decides() -> None:
    assert not any(is_natpmp(octets(text)) for text, _ in REQUESTS.values())


# Fuzzed: junk, junk behind a sound beginning, and sound messages with octets changed, cut or repeated


def decoded(datagram: bytes, source: Address) -> Request | Rejected:
    try:
        return decode_request(datagram, source, EPOCH)
    except Rejected as rejected:
        return rejected


def of(tables: Iterable[str]) -> st.SearchStrategy[bytes]:
    return st.sampled_from([octets(text) for text in tables])


valid = of(text for text, _ in (*REQUESTS.values(), *RESPONSES.values()))
beginnings = of(["", "02", HEAD, HEAD + WISH, HEAD_OF_PEER + FLOW, ANSWER + GIVEN])
tails = st.lists(
    st.one_of(st.binary(max_size=24), of([THIRD_PARTY, PREFER_FAILURE, FILTER, NO_FILTER, FILTER6, PORT_SET]))
).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    datagram = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        datagram[draw(st.integers(0, len(datagram) - 1))] = draw(st.integers(0, 255))
    return bytes(datagram[: draw(st.integers(0, len(datagram)))] if draw(st.booleans()) else datagram)


junk = st.one_of(st.binary(), st.builds(bytes.__add__, beginnings, tails), mutated())


@given(junk)
def test_any_octets_are_a_request_or_rejected_without_amplification(datagram: bytes) -> None:
    outcome = decoded(datagram, CLIENT)
    if isinstance(outcome, Request):
        assert decode_request(encode_request(outcome), CLIENT, EPOCH) == outcome
        answer = encode_response(Response(1, EPOCH, outcome.payload, outcome.options))
        assert len(answer) <= len(datagram)
    elif outcome.answer is not None:
        assert len(outcome.answer) <= min(LONGEST_MESSAGE, max(24, len(datagram) + 3))
        assert isinstance(decode_response(outcome.answer), ErrorResponse)


@given(junk)
def test_any_octets_are_an_answer_or_malformed(datagram: bytes) -> None:
    with contextlib.suppress(Malformed):
        response = decode_response(datagram)
        if isinstance(response, Response):
            assert decode_response(encode_response(response)) == response


ports = st.integers(0, 65535)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).map(lambda address: decode_address(address.packed)))
some_ports = st.integers(1, 65535)
nonces = st.binary(min_size=12, max_size=12)
payloads: st.SearchStrategy[Payload] = st.one_of(
    st.just(Announce()), st.builds(Map, nonces, st.integers(1, 255), some_ports, some_ports, addresses)
)


def prefix_lengths(address: Address) -> st.SearchStrategy[int]:
    return st.one_of(st.just(0), st.integers(96 if address.version == 4 else 1, 128))


filters = addresses.flatmap(lambda address: st.builds(Filter, prefix_lengths(address), ports, st.just(address)))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    payload, client = draw(payloads), draw(addresses)
    lifetime = draw(st.integers(1, 0xFFFFFFFF))
    third_party = draw(st.none() | addresses.filter(lambda address: address != client))
    match payload:
        case Announce():
            return Request(lifetime, client, payload)
        case Map(internal_port=internal_port):
            port_sets = st.builds(PortSet, some_ports, st.just(internal_port), st.booleans())
            some = draw(st.lists(filters, max_size=5).map(tuple))
            return Request(
                lifetime, client, payload, Options(third_party, draw(st.booleans()), some, draw(st.none() | port_sets))
            )


@given(requests())
def test_every_message_goes_both_ways(request: Request) -> None:
    datagram = encode_request(request)
    assert decode_request(datagram, request.client, EPOCH) == request
    response = Response(request.lifetime, EPOCH, request.payload, request.options)
    answer = encode_response(response)
    assert len(answer) == len(datagram)
    assert decode_response(answer) == response
