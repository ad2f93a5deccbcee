"""STUN's binding requests and responses (RFC 8489), with what RFC 5780 adds to learn how a NAT behaves."""

import struct
import zlib
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.wire.malformed import Malformed

TRANSACTION_ID_BYTES = 12

_HEADER = struct.Struct("!HHI12s")  # type, length of the attributes, magic cookie, transaction id (§5)
_ATTRIBUTE = struct.Struct("!HH")  # type, length of the value, which is padded to 4 bytes (§14)
_ADDRESS = struct.Struct("!xBHI")  # family, port, address (§14.1)
_MAGIC_COOKIE = 0x2112A442
_REQUEST, _SUCCESS, _ERROR = 0x0001, 0x0101, 0x0111  # of the method Binding
_FAMILY_IPV4 = 1
_FINGERPRINT_XOR = 0x5354554E  # §14.7

_MAPPED_ADDRESS = 0x0001
_CHANGE_REQUEST = 0x0003
_ERROR_CODE = 0x0009
_XOR_MAPPED_ADDRESS = 0x0020
_RESPONSE_PORT = 0x0027
_FINGERPRINT = 0x8028
_OTHER_ADDRESS = 0x802C

_COMPREHENSION_OPTIONAL = 0x8000  # types from here on may be ignored
_UNDERSTOOD = {
    _MAPPED_ADDRESS,
    0x0004,  # SOURCE-ADDRESS, 0x0005 CHANGED-ADDRESS and 0x000B REFLECTED-FROM: servers of RFC 3489 add them
    0x0005,
    0x0006,  # USERNAME
    0x0008,  # MESSAGE-INTEGRITY
    _ERROR_CODE,
    0x000A,  # UNKNOWN-ATTRIBUTES
    0x000B,
    0x0014,  # REALM
    0x0015,  # NONCE
    0x001C,  # MESSAGE-INTEGRITY-SHA256
    0x001D,  # PASSWORD-ALGORITHM
    0x001E,  # USERHASH
    _XOR_MAPPED_ADDRESS,
}
"""The comprehension-required attributes that a response may carry. We send no credentials, so we verify none."""

_CHANGE_ADDRESS_AND_PORT = 0x6


class IPv4Endpoint(NamedTuple):
    """An address and a UDP port (1 to 65535)."""

    address: IPv4Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Mapped:
    """A success response: the request came from `mapped`.

    `other` is the server's second address and port, with which it can respond (OTHER-ADDRESS), or None.
    """

    mapped: IPv4Endpoint
    other: IPv4Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A response that ends the transaction without a result; `reason` says why."""

    reason: str


def encode_request(transaction_id: bytes, *, change_address: bool = False, response_port: int | None = None) -> bytes:
    """Return a binding request.

    `change_address` asks for a response from the server's other address and port (CHANGE-REQUEST), `response_port` for
    a response to this port of the sender's address (RESPONSE-PORT). A server knows these only if it has an `other`.
    """
    attributes = b""
    if change_address:
        attributes += _ATTRIBUTE.pack(_CHANGE_REQUEST, 4) + struct.pack("!I", _CHANGE_ADDRESS_AND_PORT)
    if response_port is not None:
        attributes += _ATTRIBUTE.pack(_RESPONSE_PORT, 2) + struct.pack("!Hxx", response_port)
    return _HEADER.pack(_REQUEST, len(attributes), _MAGIC_COOKIE, transaction_id) + attributes


def decode_response(datagram: bytes, transaction_id: bytes) -> Mapped | Failed:
    """Decode the response to the request with this transaction id.

    Malformed: the datagram is none, and the response may still come.
    """
    if len(datagram) < _HEADER.size or len(datagram) % 4:
        raise Malformed(f"{len(datagram)} bytes are no STUN message")
    kind, length, cookie, answered = _HEADER.unpack_from(datagram)
    if cookie != _MAGIC_COOKIE or length != len(datagram) - _HEADER.size:
        raise Malformed("no STUN message: magic cookie or length is wrong")
    if kind not in {_SUCCESS, _ERROR} or answered != transaction_id:
        raise Malformed("a STUN message, but not a response to this request")
    attributes = _attributes(datagram)
    unknown = [each for each in attributes if each < _COMPREHENSION_OPTIONAL and each not in _UNDERSTOOD]
    if unknown:  # §6.3.3, §6.3.4
        return Failed(f"the response has an attribute that must be understood and is unknown: {unknown[0]:#06x}")
    if kind == _ERROR:
        return Failed(_error(attributes.get(_ERROR_CODE, b"")))
    mapped = _address(attributes.get(_XOR_MAPPED_ADDRESS), xor=True) or _address(attributes.get(_MAPPED_ADDRESS))
    if mapped is None:
        return Failed("the response contains no IPv4 address")
    return Mapped(mapped, _address(attributes.get(_OTHER_ADDRESS)))


def _attributes(datagram: bytes) -> dict[int, bytes]:
    """Return the attributes by type; of several of one type, the first (§14)."""
    found: dict[int, bytes] = {}
    offset = _HEADER.size
    while offset < len(datagram):
        kind, length = _ATTRIBUTE.unpack_from(datagram, offset)
        start, end = offset + _ATTRIBUTE.size, offset + _ATTRIBUTE.size + length
        if end > len(datagram):
            raise Malformed(f"attribute {kind:#06x} is truncated")
        if kind == _FINGERPRINT and datagram[offset:] != _fingerprint(datagram[:offset]):
            raise Malformed("the fingerprint is wrong, or not the last attribute")
        found.setdefault(kind, datagram[start:end])
        offset = end + -length % 4
    return found


def _fingerprint(before: bytes) -> bytes:
    """Return the attribute that belongs behind these bytes, whose length field already counts it."""
    return _ATTRIBUTE.pack(_FINGERPRINT, 4) + struct.pack("!I", zlib.crc32(before) ^ _FINGERPRINT_XOR)


def _address(value: bytes | None, *, xor: bool = False) -> IPv4Endpoint | None:
    """Return the IPv4 address and port, or None if there are none; Malformed."""
    if value is None:
        return None
    if value[1:2] != bytes([_FAMILY_IPV4]):
        return None
    if len(value) != _ADDRESS.size:
        raise Malformed(f"an address attribute has {len(value)} bytes")
    _, port, address = _ADDRESS.unpack(value)
    if xor:
        port, address = port ^ _MAGIC_COOKIE >> 16, address ^ _MAGIC_COOKIE
    if port == 0:
        raise Malformed("an address attribute has port 0")
    return IPv4Endpoint(IPv4Address(address), port)


def _error(value: bytes) -> str:
    """Describe an ERROR-CODE (§14.8); its text is the server's, and is escaped."""
    if len(value) < 4:
        return "an error without a code"
    text = value[4:].decode(errors="replace")
    return f"error {(value[2] & 7) * 100 + value[3]} {text!a}"
