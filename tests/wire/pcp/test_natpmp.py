"""RFC 6886: requests, responses and errors, octet for octet."""

import contextlib
from ipaddress import IPv4Address
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import TransportProtocol
from igd.wire.malformed import InvalidRequest, Malformed
from igd.wire.pcp.natpmp import (
    AddressRequest,
    MapRequest,
    Request,
    Result,
    decode_request,
    encode_address,
    encode_mapping,
    encode_result,
    is_natpmp,
)
from tests.wire.pcp.client_codec import AddressResponse, MapResponse, OtherResponse, decode_natpmp, encode

EPOCH = 0x01020304

# The entries that name a client were captured from it.
REQUESTS: dict[str, tuple[str, Request]] = {
    "natpmpc: external address": ("0000", AddressRequest()),
    "natpmpc -a 8080 80 tcp 3600": ("0002 0000 0050 1f90 00000e10", MapRequest(TransportProtocol.TCP, 80, 8080, 3600)),
    "natpmpc -a 0 7 udp 0": ("0001 0000 0007 0000 00000000", MapRequest(TransportProtocol.UDP, 7, 0, 0)),
    "libtorrent maps": ("0002 0000 1ae1 1ae1 00000e10", MapRequest(TransportProtocol.TCP, 6881, 6881, 3600)),
    "libtorrent deletes, with an external port": (
        "0001 0000 1ae1 1ae1 00000000",
        MapRequest(TransportProtocol.UDP, 6881, 6881, 0),
    ),
    "delete all of TCP (§3.4)": ("0002 0000 0000 0000 00000000", MapRequest(TransportProtocol.TCP, 0, 0, 0)),
    "gluetun, UDP": ("0001 0000 0000 0000 0000003c", MapRequest(TransportProtocol.UDP, 0, 0, 60)),
    "gluetun, TCP": ("0002 0000 0000 0000 0000003c", MapRequest(TransportProtocol.TCP, 0, 0, 60)),
    "natpmpc -a 1 0 udp 60": ("0001 0000 0000 0001 0000003c", MapRequest(TransportProtocol.UDP, 0, 1, 60)),
    "the largest numbers": (
        "0001 0000 ffff ffff ffffffff",
        MapRequest(TransportProtocol.UDP, 65535, 65535, 0xFFFFFFFF),
    ),
}

RESPONSES: dict[str, tuple[str, AddressResponse | MapResponse]] = {
    "external address, and its announcement": (
        "0080 0000 01020304 c6336401",
        AddressResponse(Result.SUCCESS, EPOCH, IPv4Address("198.51.100.1")),
    ),
    "no external address": (
        "0080 0003 01020304 00000000",
        AddressResponse(Result.NETWORK_FAILURE, EPOCH, IPv4Address(0)),
    ),
    "mapped, UDP": (
        "0081 0000 01020304 0007 1f90 00001c20",
        MapResponse(TransportProtocol.UDP, Result.SUCCESS, EPOCH, 7, 8080, 7200),
    ),
    "mapped, TCP": (
        "0082 0000 01020304 0050 1f91 00000e10",
        MapResponse(TransportProtocol.TCP, Result.SUCCESS, EPOCH, 80, 8081, 3600),
    ),
    "deleted": (
        "0082 0000 01020304 0050 0000 00000000",
        MapResponse(TransportProtocol.TCP, Result.SUCCESS, EPOCH, 80, 0, 0),
    ),
    "refused": (
        "0082 0002 01020304 0050 0000 00000000",
        MapResponse(TransportProtocol.TCP, Result.NOT_AUTHORIZED, EPOCH, 80, 0, 0),
    ),
    "no resources": (
        "0081 0004 01020304 0007 0000 00000000",
        MapResponse(TransportProtocol.UDP, Result.OUT_OF_RESOURCES, EPOCH, 7, 0, 0),
    ),
    "an unassigned result code": (
        "0082 01ff 01020304 0050 0000 00000000",
        MapResponse(TransportProtocol.TCP, 511, EPOCH, 80, 0, 0),
    ),
}

# Datagram -> its response, if there is one
INVALID: dict[str, tuple[str, str | None]] = {
    "empty": ("", None),
    "only a version": ("00", None),
    "a mapping without its lifetime": ("0001 0000 0007 1f90", None),
    "a mapping one octet short": ("0002 0000 0007 1f90 000000", None),
    "a response": ("0080 0000 01020304 c6336401", None),
    "a response of another version": ("0181 0000", None),
    "an unknown opcode": ("0003", "0083 0005"),
    "an unknown opcode, shorter than the response": ("0003 ff", "0083 0005"),
    "an unknown opcode with content": ("007f 1234 56789abc def0", "00ff 0005 56789abc def0"),
    "an unknown opcode with as much as is repeated": ("0003 0000" + "aa" * 1096, "0083 0005" + "aa" * 1096),
    "an unknown opcode with more": ("0003 0000" + "aa" * 1097, None),
    "version 1": ("0100", "0080 0001 01020304"),
    "version 255, any opcode": ("ff7f 0000 00000000", "0080 0001 01020304"),
}


def encode_response(response: AddressResponse | MapResponse) -> bytes:
    result = cast("Result", response.result)  # or an unassigned code
    if isinstance(response, AddressResponse):
        return encode_address(result, response.epoch, response.address)
    request = MapRequest(response.protocol, response.internal_port, external_port=0, lifetime=0)
    return encode_mapping(request, result, response.epoch, response.external_port, response.lifetime)


@pytest.mark.parametrize(("octets", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_requests_are_encoded_and_decoded(octets: str, request_: Request) -> None:
    assert decode_request(bytes.fromhex(octets), EPOCH) == request_
    assert encode(request_) == bytes.fromhex(octets)


@pytest.mark.parametrize(("octets", "response"), RESPONSES.values(), ids=RESPONSES)
def test_responses_are_encoded_and_decoded(octets: str, response: AddressResponse | MapResponse) -> None:
    assert decode_natpmp(bytes.fromhex(octets)) == response
    assert encode_response(response) == bytes.fromhex(octets)


@pytest.mark.parametrize(("octets", "response"), INVALID.values(), ids=INVALID)
def test_an_invalid_request_has_the_response_of_section_3_5(octets: str, response: str | None) -> None:
    with pytest.raises(InvalidRequest) as invalid:
        decode_request(bytes.fromhex(octets), EPOCH)
    assert invalid.value.response == (None if response is None else bytes.fromhex(response))


def test_octets_after_a_request_are_ignored() -> None:
    for octets, request in REQUESTS.values():
        assert decode_request(bytes.fromhex(octets) + b"more", EPOCH) == request


def test_reserved_bits_are_ignored() -> None:
    assert decode_request(bytes.fromhex("0001 ffff 0007 1f90 00000e10"), EPOCH) == MapRequest(
        TransportProtocol.UDP, 7, 8080, 3600
    )


@pytest.mark.parametrize(("octets", "_"), REQUESTS.values(), ids=REQUESTS)
def test_a_truncated_request_has_no_response(octets: str, _: Request) -> None:
    datagram = bytes.fromhex(octets)
    for length in range(len(datagram)):
        with pytest.raises(InvalidRequest) as invalid:
            decode_request(datagram[:length], EPOCH)
        assert invalid.value.response is None


@pytest.mark.parametrize(("octets", "_"), RESPONSES.values(), ids=RESPONSES)
def test_a_truncated_response_is_malformed(octets: str, _: AddressResponse | MapResponse) -> None:
    datagram = bytes.fromhex(octets)
    for length in range(len(datagram)):
        with pytest.raises(Malformed):
            decode_natpmp(datagram[:length])


def test_an_empty_response_has_the_internal_port_and_zeroes() -> None:
    mapping = MapRequest(TransportProtocol.TCP, 80, 8080, 3600)
    refused = encode_result(mapping, Result.NOT_AUTHORIZED, EPOCH)
    assert decode_natpmp(refused) == RESPONSES["refused"][1]
    no_address = encode_result(AddressRequest(), Result.NETWORK_FAILURE, EPOCH)
    assert decode_natpmp(no_address) == RESPONSES["no external address"][1]


@pytest.mark.parametrize(
    ("octets", "response"),
    [
        ("0083 0005", OtherResponse(3, Result.UNSUPPORTED_OPCODE)),
        ("0080 0001 01020304", OtherResponse(0, Result.UNSUPPORTED_VERSION)),
        ("0000 0001 01020304", OtherResponse(0, Result.UNSUPPORTED_VERSION)),
    ],
    ids=["unsupported opcode", "unsupported version", "unsupported version, as in the figure of §3.5"],
)
def test_an_unsupported_version_or_opcode_is_decoded(octets: str, response: OtherResponse) -> None:
    assert decode_natpmp(bytes.fromhex(octets)) == response


@pytest.mark.parametrize("octets", ["0280 0001 00000708", *(octets for octets, _ in REQUESTS.values())])
def test_a_datagram_that_is_not_a_response_is_malformed(octets: str) -> None:
    with pytest.raises(Malformed):
        decode_natpmp(bytes.fromhex(octets))


def test_the_first_octet_selects_the_protocol() -> None:
    assert is_natpmp(b"\x00\x00")
    assert not is_natpmp(b"")
    assert not any(is_natpmp(bytes((version, 0))) for version in range(1, 256))


# Fuzzing: random octets, random octets after a valid beginning, and valid messages with octets changed

prefixes = st.sampled_from([b"", b"\x00", b"\x00\x01", b"\x00\x02\x00\x00", b"\x00\x03"])
valid = st.sampled_from([bytes.fromhex(octets) for octets, _ in (*REQUESTS.values(), *RESPONSES.values())])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    datagram = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        datagram[draw(st.integers(0, len(datagram) - 1))] = draw(st.integers(0, 255))
    return bytes(datagram)


datagrams = st.one_of(st.binary(), st.builds(bytes.__add__, prefixes, st.binary()), mutated())


def decoded(datagram: bytes) -> Request | InvalidRequest:
    try:
        return decode_request(datagram, EPOCH)
    except InvalidRequest as invalid:
        return invalid


@given(datagrams)
def test_any_octets_are_a_request_or_invalid_without_amplification(datagram: bytes) -> None:
    outcome = decoded(datagram)
    if isinstance(outcome, InvalidRequest):
        assert outcome.response is None or len(outcome.response) <= max(8, len(datagram))
    else:
        assert decode_request(encode(outcome), EPOCH) == outcome


@given(datagrams)
def test_any_octets_are_a_response_or_malformed(datagram: bytes) -> None:
    with contextlib.suppress(Malformed):
        response = decode_natpmp(datagram)
        if not isinstance(response, OtherResponse):
            assert decode_natpmp(encode_response(response)) == response


@given(st.sampled_from(TransportProtocol), st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 0xFFFFFFFF))
def test_every_mapping_is_encoded_and_decoded(
    protocol: TransportProtocol, internal: int, external: int, seconds: int
) -> None:
    request = MapRequest(protocol, internal, external, seconds)
    assert decode_request(encode(request), EPOCH) == request
    response = MapResponse(protocol, Result.SUCCESS, seconds, internal, external, seconds)
    assert decode_natpmp(encode_response(response)) == response
