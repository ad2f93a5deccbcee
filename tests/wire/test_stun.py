"""STUN's messages: the vectors of RFC 5769, a recorded response of coturn, and what is no response."""

from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.wire.malformed import Malformed
from igd.wire.stun import Failed, IPv4Endpoint, Mapped, decode_response, encode_request
from tests.wire.stun_server_codec import (
    ERROR,
    ERROR_CODE,
    FINGERPRINT,
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    SOFTWARE,
    SUCCESS,
    XOR_MAPPED_ADDRESS,
    address,
    attributes,
    error,
    message,
)

VECTOR_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
VECTOR_IPV4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
VECTOR_IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179"
    "bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c"
)
COTURN_ID = b"a" * 12
COTURN = bytes.fromhex(  # version 4.6.1, to 198.51.99.9:55541
    "010100482112a442616161616161616161616161002000080001f899e721c74b000100080001d98bc6336309802b000800010d96c6336301"
    "802c000800010d97c633630280220014436f7475726e2d342e362e312027476f72737427"
)
ID = bytes(range(12))
SEEN = address(XOR_MAPPED_ADDRESS, "60.60.60.1", 4000)
GOOD = Mapped(IPv4Endpoint(IPv4Address("60.60.60.1"), 4000))


def test_a_plain_request_is_a_header() -> None:
    assert encode_request(ID) == bytes.fromhex("000100002112a442000102030405060708090a0b")


def test_what_rfc_5780_adds_to_a_request() -> None:
    changed = encode_request(ID, change_address=True)
    assert changed == bytes.fromhex("000100082112a442000102030405060708090a0b0003000400000006")
    elsewhere = encode_request(ID, response_port=51820)  # §7.5: two bytes; Stuntman refuses four
    assert elsewhere == bytes.fromhex("000100082112a442000102030405060708090a0b00270002ca6c0000")


def test_the_vector_of_rfc_5769() -> None:
    assert decode_response(VECTOR_IPV4, VECTOR_ID) == Mapped(IPv4Endpoint(IPv4Address("192.0.2.1"), 32853))


def test_an_ipv6_address_is_no_answer() -> None:
    assert decode_response(VECTOR_IPV6, VECTOR_ID) == Failed("the response contains no IPv4 address")


def test_coturns_response_names_its_other_address() -> None:
    mapped = IPv4Endpoint(IPv4Address("198.51.99.9"), 55691)
    other = IPv4Endpoint(IPv4Address("198.51.99.2"), 3479)
    assert decode_response(COTURN, COTURN_ID) == Mapped(mapped, other)


@pytest.mark.parametrize(
    "found",
    [
        (SEEN,),
        (address(MAPPED_ADDRESS, "60.60.60.1", 4000),),  # servers of RFC 3489
        (address(MAPPED_ADDRESS, "10.0.0.1", 5), SEEN),  # a NAT may have translated the plain one (§14.2)
        (SEEN, address(XOR_MAPPED_ADDRESS, "60.60.60.9", 9)),  # §14: the first counts
        ((SOFTWARE, b"x"), SEEN),  # padded
        ((0xFFFE, b"unknown"), SEEN),  # comprehension-optional
        ((0x0004, bytes(8)), (0x0005, bytes(8)), SEEN),  # RFC 3489
        (SEEN, (OTHER_ADDRESS, bytes.fromhex("0002") + bytes(18))),  # an IPv6 address, which we cannot use
    ],
)
@pytest.mark.parametrize("fingerprint", [False, True])
def test_responses_that_name_the_address(found: tuple[tuple[int, bytes], ...], fingerprint: bool) -> None:
    assert decode_response(message(SUCCESS, ID, *found, fingerprint=fingerprint), ID) == GOOD


@pytest.mark.parametrize(
    ("kind", "found", "reason"),
    [
        (ERROR, (error(300, "Try Alternate"), (0x8023, bytes(8))), "error 300 'Try Alternate'"),
        (ERROR, (error(420, "a\nb\x1b"), (0x000A, b"\0\x27")), r"error 420 'a\nb\x1b'"),
        (ERROR, (), "an error without a code"),
        (ERROR, ((ERROR_CODE, b"\0\0"),), "an error without a code"),
        (SUCCESS, (), "the response contains no IPv4 address"),
        (SUCCESS, (SEEN, (0x7F27, b"1234")), "an attribute that must be understood and is unknown: 0x7f27"),
        (ERROR, (error(500, "x"), (0x0099, b"")), "an attribute that must be understood and is unknown: 0x0099"),
    ],
)
def test_responses_that_end_a_transaction(kind: int, found: tuple[tuple[int, bytes], ...], reason: str) -> None:
    response = decode_response(message(kind, ID, *found), ID)
    assert isinstance(response, Failed)
    assert response.reason.endswith(reason)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"hello",
        message(SUCCESS, ID, SEEN)[:-1],
        message(SUCCESS, ID, SEEN) + bytes(4),
        message(SUCCESS, ID, SEEN).replace(b"\x21\x12\xa4\x42", b"\x21\x12\xa4\x43", 1),
        message(SUCCESS, bytes(12), SEEN),  # another transaction
        message(0x0001, ID, SEEN),  # a request
        message(0x0011, ID, SEEN),  # an indication
        message(0x0103, ID, SEEN),  # of the method Allocate
        message(SUCCESS | 0xC000, ID, SEEN),  # not STUN
        message(SUCCESS, ID, (XOR_MAPPED_ADDRESS, b"\0\1\0\1")),
        message(SUCCESS, ID, address(MAPPED_ADDRESS, "60.60.60.1", 0)),
        message(SUCCESS, ID)[:2] + b"\0\4" + message(SUCCESS, ID)[4:] + b"\x80\x22\0\5",  # truncated
        message(SUCCESS, ID, SEEN, (FINGERPRINT, b"1234")),
        message(SUCCESS, ID, SEEN, (FINGERPRINT, b"123")),
        message(SUCCESS, ID, (FINGERPRINT, b"1234"), SEEN),
    ],
)
def test_what_is_no_response(datagram: bytes) -> None:
    with pytest.raises(Malformed):
        decode_response(datagram, ID)


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_malformed(datagram: bytes) -> None:
    with suppress(Malformed):
        decode_response(datagram, ID)


@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=24)), max_size=6), st.sampled_from([SUCCESS, ERROR])
)
def test_any_attributes_are_decoded_or_malformed(found: list[tuple[int, bytes]], kind: int) -> None:
    with suppress(Malformed):
        response = decode_response(message(kind, ID, *found), ID)
        assert isinstance(response, Failed) or 0 < response.mapped.port <= 0xFFFF


@given(st.integers(0, 8 * len(message(SUCCESS, ID, SEEN, fingerprint=True)) - 1))
def test_a_flipped_bit_never_yields_another_address(bit: int) -> None:
    datagram = bytearray(message(SUCCESS, ID, SEEN, fingerprint=True))
    datagram[bit // 8] ^= 1 << bit % 8
    with suppress(Malformed):
        response = decode_response(bytes(datagram), ID)
        # The fingerprint's own type can be hit: then it is an unknown attribute.
        assert response == GOOD or isinstance(response, Failed)


def test_the_tests_own_codec_reads_requests() -> None:
    assert attributes(encode_request(ID, response_port=9)) == {0x0027: b"\0\t"}
