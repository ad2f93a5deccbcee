"""RFC 6887 and RFC 7753: requests, responses, options and errors, octet for octet."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.wire.malformed import InvalidRequest, Malformed
from igd.wire.pcp.messages import (
    LONG_LIFETIME,
    MAX_MESSAGE_SIZE,
    SHORT_LIFETIME,
    Request,
    Result,
    decode_request,
    encode_error,
    encode_response,
)
from igd.wire.pcp.natpmp import is_natpmp
from igd.wire.pcp.opcodes import Announce, Map, Payload
from igd.wire.pcp.options import Address, Filter, Options, PortSet, UnsupportedOption, decode_address, encode_address
from tests.wire.pcp.client_codec import ErrorResponse, Response, decode_pcp, encode

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
HEADER = "0201 0000 00000e10" + MAPPED + "0a4d0002"
DELETE = "0201 0000 00000000" + MAPPED + "0a4d0002"
HEADER_OF_PEER = "0202 0000 00000e10" + MAPPED + "0a4d0002"
RESPONSE_HEADER = "0281 0000 00000e10 01020304 00000000 00000000 00000000"
TCP_6881 = "babf6b11ac0c50a9153d76b0 06 000000 1ae1 1ae1"
SUGGESTED = TCP_6881 + MAPPED + "00000000"
GRANTED = TCP_6881 + MAPPED + "c6336401"
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
ALL = Filter(0, 0, ANY4)

ALL_OPTIONS = Options(
    IPv4Address("10.77.0.3"), prefer_failure=True, filters=(SUBNET,), port_set=PortSet(256, 6881, parity=True)
)

# The entries that name a client were captured from it.
REQUESTS: dict[str, tuple[str, Request]] = {
    "libtorrent maps": (HEADER + SUGGESTED, Request(3600, CLIENT, MAP)),
    "libtorrent deletes, with the external address": (DELETE + GRANTED, Request(0, CLIENT, ASSIGNED)),
    "announce (§14.1)": ("0200 0000 00000000" + MAPPED + "0a4d0002", Request(0, CLIENT, Announce())),
    "map over IPv6, no suggestion (§5)": (
        "0201 0000 00000078 fd770000000000000000000000000002" + TCP_6881 + "00000000000000000000000000000000",
        Request(120, CLIENT6, replace(MAP, external_address=ANY6)),
    ),
    "delete all (§15.1)": (
        DELETE + "babf6b11ac0c50a9153d76b0 00 000000 0000 0000" + MAPPED + "00000000",
        Request(0, CLIENT, Map(NONCE, 0, 0, 0, ANY4)),
    ),
    "the largest numbers": (
        "0201 0000 ffffffff" + MAPPED + "0a4d0002 ffffffffffffffffffffffff ff 000000 ffff ffff" + "ff" * 16,
        Request(0xFFFFFFFF, CLIENT, Map(b"\xff" * 12, 255, 65535, 65535, IPv6Address(2**128 - 1))),
    ),
    "third party (§13.1)": (
        HEADER + SUGGESTED + THIRD_PARTY,
        Request(3600, CLIENT, MAP, Options(third_party=IPv4Address("10.77.0.3"))),
    ),
    "prefer failure (§13.2)": (
        HEADER + SUGGESTED + PREFER_FAILURE,
        Request(3600, CLIENT, MAP, Options(prefer_failure=True)),
    ),
    "filter (§13.3)": (HEADER + SUGGESTED + FILTER, Request(3600, CLIENT, MAP, Options(filters=(SUBNET,)))),
    "remove filters, then filter": (
        HEADER + SUGGESTED + NO_FILTER + FILTER + FILTER,
        Request(3600, CLIENT, MAP, Options(filters=(ALL, SUBNET, SUBNET))),
    ),
    "IPv6 filter": (
        HEADER + SUGGESTED + FILTER6,
        Request(3600, CLIENT, MAP, Options(filters=(Filter(32, 0, REMOTE6),))),
    ),
    "port set (RFC 7753)": (
        HEADER + SUGGESTED + PORT_SET,
        Request(3600, CLIENT, MAP, Options(port_set=PortSet(256, 6881, parity=True))),
    ),
    "all options": (
        HEADER + SUGGESTED + THIRD_PARTY + PREFER_FAILURE + FILTER + PORT_SET,
        Request(
            3600,
            CLIENT,
            MAP,
            ALL_OPTIONS,
        ),
    ),
}

RESPONSES: dict[str, tuple[str, Response]] = {
    "mapped, or updated (§14.2)": (RESPONSE_HEADER + GRANTED, Response(3600, EPOCH, ASSIGNED)),
    "restarted (§14.1)": (
        "0280 0000 00000000 01020304 00000000 00000000 00000000",
        Response(0, EPOCH, Announce()),
    ),
    "mapped with all options": (
        RESPONSE_HEADER + GRANTED + THIRD_PARTY + PREFER_FAILURE + FILTER + PORT_SET,
        Response(
            3600,
            EPOCH,
            ASSIGNED,
            ALL_OPTIONS,
        ),
    ),
    "pinhole": (
        RESPONSE_HEADER + TCP_6881 + "fd770000000000000000000000000002",
        Response(3600, EPOCH, replace(MAP, external_address=CLIENT6)),
    ),
}

# Invalid requests from 10.77.0.2, and the result of each (§8.2, and the sections in the names)
INVALID: dict[str, tuple[str, Result]] = {
    "version 1": ("0101", Result.UNSUPP_VERSION),
    "version 3, any content (§9)": ("0301 0000 00000e10 00", Result.UNSUPP_VERSION),
    "version 0": ("0000", Result.UNSUPP_VERSION),
    "an opcode of another version": ("017f", Result.UNSUPP_VERSION),
    "a map without its address": (HEADER + TCP_6881, Result.MALFORMED_REQUEST),
    "a map of only a header": (HEADER, Result.MALFORMED_REQUEST),
    "an octet too many": (HEADER + SUGGESTED + "00", Result.MALFORMED_REQUEST),
    "an octet too few": ((HEADER + SUGGESTED)[:-2], Result.MALFORMED_REQUEST),
    "1104 octets": (HEADER + SUGGESTED + "ff000000" * 261, Result.MALFORMED_REQUEST),
    "the size precedes all other errors": ("0263 0000 00000000" + "00" * 1096, Result.MALFORMED_REQUEST),
    "another address": (HEADER.replace("0a4d0002", "0a4d0003") + SUGGESTED, Result.ADDRESS_MISMATCH),
    "an IPv4 address that is not IPv4-mapped": (HEADER.replace("ffff", "0000") + SUGGESTED, Result.ADDRESS_MISMATCH),
    "the address precedes the opcode": ("0263 0000 00000000" + "00" * 16, Result.ADDRESS_MISMATCH),
    "the address precedes the options": (
        HEADER.replace("0a4d0002", "0a4d0003") + SUGGESTED + "7f000000",
        Result.ADDRESS_MISMATCH,
    ),
    "opcode 3, authentication": (HEADER.replace("0201", "0203"), Result.UNSUPP_OPCODE),
    "opcode 127": (HEADER.replace("0201", "027f"), Result.UNSUPP_OPCODE),
    "opcode 2, PEER (§12)": (HEADER_OF_PEER + FLOW, Result.UNSUPP_OPCODE),
    "PEER of only a header": (HEADER_OF_PEER, Result.UNSUPP_OPCODE),
    "PEER of the size of MAP": (HEADER_OF_PEER + SUGGESTED, Result.UNSUPP_OPCODE),
    "PEER with a filter": (HEADER_OF_PEER + FLOW + FILTER, Result.UNSUPP_OPCODE),
    "PEER with an option longer than the message": (HEADER_OF_PEER + FLOW + "ff000001", Result.UNSUPP_OPCODE),
    "PEER of all protocols, one port": (
        HEADER_OF_PEER + FLOW.replace("06 000000", "00 000000"),
        Result.UNSUPP_OPCODE,
    ),
    "PEER with an octet too many": (HEADER_OF_PEER + FLOW + "00", Result.MALFORMED_REQUEST),
    "an unknown option, mandatory to process (§7.3)": (HEADER + SUGGESTED + "7f000000", Result.UNSUPP_OPTION),
    "option 0": (HEADER + SUGGESTED + "00000000", Result.UNSUPP_OPTION),
    "third party for announce": (REQUESTS["announce (§14.1)"][0] + THIRD_PARTY, Result.UNSUPP_OPTION),
    "an option longer than the message": (HEADER + SUGGESTED + "ff000001", Result.MALFORMED_OPTION),
    "an option length beyond the message": (HEADER + SUGGESTED + "03 00 ffff", Result.MALFORMED_OPTION),
    "the structure precedes unknown options": (HEADER + SUGGESTED + "7f000000 03000014", Result.MALFORMED_OPTION),
    "third party of 4 octets": (HEADER + SUGGESTED + "01000004 0a4d0003", Result.MALFORMED_OPTION),
    "third party twice": (HEADER + SUGGESTED + THIRD_PARTY + THIRD_PARTY, Result.MALFORMED_OPTION),
    "third party is the client (§13.1)": (
        HEADER + SUGGESTED + "01000010" + MAPPED + "0a4d0002",
        Result.MALFORMED_REQUEST,
    ),
    "prefer failure with content": (HEADER + SUGGESTED + "02000004 00000000", Result.MALFORMED_OPTION),
    "prefer failure twice": (HEADER + SUGGESTED + PREFER_FAILURE * 2, Result.MALFORMED_OPTION),
    "prefer failure without a port (§13.2)": (
        HEADER + SUGGESTED.replace("1ae1 1ae1", "1ae1 0000") + PREFER_FAILURE,
        Result.MALFORMED_OPTION,
    ),
    "filter of 16 octets": (HEADER + SUGGESTED + "03000010" + "00" * 16, Result.MALFORMED_OPTION),
    "filter, /95 of IPv4 (§13.3)": (HEADER + SUGGESTED + FILTER.replace("78", "5f"), Result.MALFORMED_OPTION),
    "filter, /1 of IPv4": (HEADER + SUGGESTED + FILTER.replace("78", "01"), Result.MALFORMED_OPTION),
    "filter, /129 of IPv4": (HEADER + SUGGESTED + FILTER.replace("78", "81"), Result.MALFORMED_OPTION),
    "filter, /129 of IPv6": (HEADER + SUGGESTED + FILTER6.replace("00 20", "00 81"), Result.MALFORMED_OPTION),
    "one invalid filter of two": (HEADER + SUGGESTED + FILTER + FILTER.replace("78", "01"), Result.MALFORMED_OPTION),
    "filter in a deletion": (DELETE + SUGGESTED + FILTER, Result.MALFORMED_OPTION),
    "remove filters in a deletion": (DELETE + SUGGESTED + NO_FILTER, Result.MALFORMED_OPTION),
    "port set of 4 octets (RFC 7753)": (HEADER + SUGGESTED + "82000004 01001ae1", Result.MALFORMED_OPTION),
    "port set of size 0": (HEADER + SUGGESTED + PORT_SET.replace("0100", "0000"), Result.MALFORMED_OPTION),
    "port set from another port": (HEADER + SUGGESTED + PORT_SET.replace("1ae1", "1ae0"), Result.MALFORMED_OPTION),
    "port set twice": (HEADER + SUGGESTED + PORT_SET + PORT_SET, Result.MALFORMED_OPTION),
    "all protocols, one port (§11.3)": (HEADER + SUGGESTED.replace("06 000000", "00 000000"), Result.MALFORMED_REQUEST),
}

DROPPED = {
    "empty": "",
    "only a version": "02",
    "only another version": "01",
    "a version and an opcode": "0201",
    "a header one octet short": (HEADER.replace(" ", ""))[:-2],
    "a response": RESPONSE_HEADER + GRANTED,
    "a response of another version": "0181",
}


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def encoded(response: Response) -> bytes:
    return encode_response(response.lifetime, response.epoch, response.payload, response.options)


def rejection(datagram: bytes, source: Address = CLIENT) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as invalid:
        decode_request(datagram, source, EPOCH)
    return invalid.value


@pytest.mark.parametrize(("text", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_requests_are_encoded_and_decoded(text: str, request_: Request) -> None:
    assert decode_request(octets(text), request_.client, EPOCH) == request_
    assert encode(request_) == octets(text)


@pytest.mark.parametrize(("text", "response"), RESPONSES.values(), ids=RESPONSES)
def test_responses_are_encoded_and_decoded(text: str, response: Response) -> None:
    assert decode_pcp(octets(text)) == response
    assert encoded(response) == octets(text)


# Errors


@pytest.mark.parametrize(("text", "result"), INVALID.values(), ids=INVALID)
def test_an_invalid_request_has_an_error_response_that_copies_it(text: str, result: Result) -> None:
    """§8.2: a copy of 1100 octets at most and of a header at least, padded to a multiple of 4 octets."""
    datagram = octets(text)
    response = rejection(datagram).response
    assert response is not None
    header = bytes((2, 0x80 | datagram[1], 0, result)) + LONG_LIFETIME.to_bytes(4, "big") + EPOCH.to_bytes(4, "big")
    copy = datagram[12:MAX_MESSAGE_SIZE].ljust(12, b"\0")
    assert response == header + copy + bytes(-len(copy) % 4)


@pytest.mark.parametrize("text", DROPPED.values(), ids=DROPPED)
def test_a_datagram_that_is_not_a_request_is_dropped(text: str) -> None:
    assert rejection(octets(text)).response is None


@pytest.mark.parametrize(("text", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_a_truncated_request_is_invalid_or_lacks_options(text: str, request_: Request) -> None:
    datagram = octets(text)
    for length in range(len(datagram)):
        outcome = decoded(datagram[:length], request_.client)
        if isinstance(outcome, Request):
            assert replace(outcome, options=request_.options) == request_
            assert outcome.options != request_.options
        elif length < 24:
            assert outcome.response is None
        else:
            response = decode_pcp(outcome.response or b"")
            assert isinstance(response, ErrorResponse)
            assert response.result in {Result.MALFORMED_REQUEST, Result.MALFORMED_OPTION}


@pytest.mark.parametrize(("text", "_"), RESPONSES.values(), ids=RESPONSES)
def test_a_truncated_response_is_malformed_or_lacks_options(text: str, _: Response) -> None:
    datagram = octets(text)
    whole = decode_pcp(datagram)
    for length in range(len(datagram)):
        with contextlib.suppress(Malformed):
            assert decode_pcp(datagram[:length]) != whole


SHORT_LIFETIME_ERRORS = {
    Result.NETWORK_FAILURE,
    Result.NO_RESOURCES,
    Result.USER_EX_QUOTA,
    Result.CANNOT_PROVIDE_EXTERNAL,
}


@pytest.mark.parametrize("result", [result for result in Result if result is not Result.SUCCESS])
def test_an_error_response_to_a_parsed_request_lacks_the_client_address(result: Result) -> None:
    """§7.2: the reserved bits are 0; all options are copied (§7.3)."""
    datagram = octets(REQUESTS["all options"][0])
    response = encode_error(datagram, result, EPOCH)
    seconds = SHORT_LIFETIME if result in SHORT_LIFETIME_ERRORS else LONG_LIFETIME
    assert response[:12] == bytes((2, 0x81, 0, result)) + seconds.to_bytes(4, "big") + EPOCH.to_bytes(4, "big")
    assert response[12:24] == bytes(12)
    assert response[24:] == datagram[24:]
    assert decode_pcp(response) == ErrorResponse(result, seconds, EPOCH, 1, MAP)


# What is ignored


def test_unknown_optional_options_are_ignored() -> None:
    unknown = "80000000 ff000003 ffffff00 c0000000"
    assert decode_request(octets(HEADER + SUGGESTED + unknown), CLIENT, EPOCH) == Request(3600, CLIENT, MAP)
    announce, request = REQUESTS["announce (§14.1)"]
    assert decode_request(octets(announce + PORT_SET), CLIENT, EPOCH) == request


def test_options_come_in_any_order_and_filters_keep_theirs() -> None:
    shuffled = PORT_SET + FILTER + PREFER_FAILURE + NO_FILTER + THIRD_PARTY
    assert decode_request(octets(HEADER + SUGGESTED + shuffled), CLIENT, EPOCH).options == Options(
        third_party=IPv4Address("10.77.0.3"),
        prefer_failure=True,
        filters=(SUBNET, ALL),
        port_set=PortSet(256, 6881, parity=True),
    )


def test_reserved_bits_and_padding_are_ignored() -> None:
    request = HEADER.replace("0201 0000", "0201 ffff") + SUGGESTED.replace("06 000000", "06 ffffff")
    options = "02 ff 0000" + FILTER.replace("00 78", "ff 78") + "82 ff 0005 0100 1ae1 fe ffffff"
    assert decode_request(octets(request + options), CLIENT, EPOCH).options == Options(
        prefer_failure=True, filters=(SUBNET,), port_set=PortSet(256, 6881, parity=False)
    )


def test_a_message_of_1100_octets_is_accepted() -> None:
    datagram = octets(HEADER + SUGGESTED + "ff000000" * 260)
    assert len(datagram) == MAX_MESSAGE_SIZE
    assert decode_request(datagram, CLIENT, EPOCH) == Request(3600, CLIENT, MAP)


def test_the_client_of_the_tests_rejects_a_response_with_an_unknown_option() -> None:
    """§7.3: the server includes only options that it processed."""
    with pytest.raises(UnsupportedOption):
        decode_pcp(octets(RESPONSE_HEADER + GRANTED + "7f000000"))


@pytest.mark.parametrize(
    "text",
    [
        HEADER + SUGGESTED,
        "0081 0000" + RESPONSE_HEADER[9:] + GRANTED,
        RESPONSE_HEADER,
        RESPONSE_HEADER + GRANTED + "00",
        RESPONSE_HEADER + GRANTED + "ff000000" * 261,
        RESPONSE_HEADER.replace("0281", "02ff"),
    ],
    ids=["a request", "another version", "too short", "not a multiple of 4", "too long", "an unknown opcode"],
)
def test_a_datagram_that_is_not_a_response_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        decode_pcp(octets(text))


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("0281 0001 00000708", ErrorResponse(Result.UNSUPP_VERSION, LONG_LIFETIME, EPOCH, 1, None)),
        ("02e3 0004 00000708", ErrorResponse(Result.UNSUPP_OPCODE, LONG_LIFETIME, EPOCH, 0x63, None)),
        ("0282 0004 00000708", ErrorResponse(Result.UNSUPP_OPCODE, LONG_LIFETIME, EPOCH, 2, None)),
        ("0281 00ff 0000001e", ErrorResponse(255, SHORT_LIFETIME, EPOCH, 1, None)),
    ],
    ids=["unsupported version", "unsupported opcode", "PEER", "an unassigned result code"],
)
def test_errors_without_a_payload_are_decoded(text: str, response: ErrorResponse) -> None:
    assert decode_pcp(octets(text + "01020304 00000000 00000000 00000000")) == response


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
def test_addresses_are_encoded_and_decoded(text: str, address: Address) -> None:
    assert decode_address(octets(text)) == address
    assert encode_address(address) == octets(text)


def test_an_ipv4_mapped_source_is_the_same_client() -> None:
    mapped = IPv6Address("::ffff:10.77.0.2")
    assert decode_request(octets(HEADER + SUGGESTED), mapped, EPOCH).client == CLIENT


def test_an_address_with_a_zone_is_the_same_client() -> None:
    head = "0201 0000 00000e10 fe800000000000000000000000000002"
    assert decode_request(octets(head + SUGGESTED), IPv6Address("fe80::2%wg0"), EPOCH).client == IPv6Address("fe80::2")


@pytest.mark.parametrize(
    ("each", "network"),
    [
        (ALL, None),
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


def test_the_first_octet_selects_the_protocol() -> None:
    assert not any(is_natpmp(octets(text)) for text, _ in REQUESTS.values())


# Fuzzing: random octets, random octets after a valid beginning, and valid messages changed or truncated


def decoded(datagram: bytes, source: Address) -> Request | InvalidRequest:
    try:
        return decode_request(datagram, source, EPOCH)
    except InvalidRequest as invalid:
        return invalid


def of(texts: Iterable[str]) -> st.SearchStrategy[bytes]:
    return st.sampled_from([octets(text) for text in texts])


valid = of(text for text, _ in (*REQUESTS.values(), *RESPONSES.values()))
prefixes = of(["", "02", HEADER, HEADER + SUGGESTED, HEADER_OF_PEER + FLOW, RESPONSE_HEADER + GRANTED])
suffixes = st.lists(
    st.one_of(st.binary(max_size=24), of([THIRD_PARTY, PREFER_FAILURE, FILTER, NO_FILTER, FILTER6, PORT_SET]))
).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    datagram = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        datagram[draw(st.integers(0, len(datagram) - 1))] = draw(st.integers(0, 255))
    return bytes(datagram[: draw(st.integers(0, len(datagram)))] if draw(st.booleans()) else datagram)


datagrams = st.one_of(st.binary(), st.builds(bytes.__add__, prefixes, suffixes), mutated())


@given(datagrams)
def test_any_octets_are_a_request_or_invalid_without_amplification(datagram: bytes) -> None:
    outcome = decoded(datagram, CLIENT)
    if isinstance(outcome, Request):
        assert decode_request(encode(outcome), CLIENT, EPOCH) == outcome
        response = encode_response(1, EPOCH, outcome.payload, outcome.options)
        assert len(response) <= len(datagram)
    elif outcome.response is not None:
        assert len(outcome.response) <= min(MAX_MESSAGE_SIZE, max(24, len(datagram) + 3))
        assert isinstance(decode_pcp(outcome.response), ErrorResponse)


@given(datagrams)
def test_any_octets_are_a_response_or_malformed(datagram: bytes) -> None:
    with contextlib.suppress(Malformed):
        response = decode_pcp(datagram)
        if isinstance(response, Response):
            assert decode_pcp(encoded(response)) == response


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
def test_every_message_is_encoded_and_decoded(request: Request) -> None:
    datagram = encode(request)
    assert decode_request(datagram, request.client, EPOCH) == request
    response = Response(request.lifetime, EPOCH, request.payload, request.options)
    assert len(encoded(response)) == len(datagram)
    assert decode_pcp(encoded(response)) == response
