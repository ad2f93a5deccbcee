"""The server's side of STUN, which igd does not have: for tests."""

import struct
import zlib
from ipaddress import IPv4Address

COOKIE = 0x2112A442
SUCCESS, ERROR = 0x0101, 0x0111
MAPPED_ADDRESS, XOR_MAPPED_ADDRESS, OTHER_ADDRESS = 0x0001, 0x0020, 0x802C
CHANGE_REQUEST, RESPONSE_PORT, ERROR_CODE, SOFTWARE, FINGERPRINT = 0x0003, 0x0027, 0x0009, 0x8022, 0x8028

Attribute = tuple[int, bytes]


def message(kind: int, transaction_id: bytes, *attributes: Attribute, fingerprint: bool = False) -> bytes:
    """Return a message with these attributes, and its fingerprint behind them."""
    encoded = b"".join(map(_encoded, attributes))
    length = len(encoded) + (8 if fingerprint else 0)
    found = struct.pack("!HHI", kind, length, COOKIE) + transaction_id + encoded
    crc = struct.pack("!I", zlib.crc32(found) ^ 0x5354554E)
    return found + (_encoded((FINGERPRINT, crc)) if fingerprint else b"")


def _encoded(attribute: Attribute) -> bytes:
    kind, value = attribute
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def address(kind: int, text: str, port: int) -> Attribute:
    """Return an address attribute, which is obfuscated if its type says so."""
    number = int(IPv4Address(text))
    if kind == XOR_MAPPED_ADDRESS:
        port, number = port ^ COOKIE >> 16, number ^ COOKIE
    return kind, struct.pack("!xBHI", 1, port, number)


def error(code: int, reason: str) -> Attribute:
    """Return an ERROR-CODE."""
    return ERROR_CODE, struct.pack("!xxBB", code // 100, code % 100) + reason.encode()


def attributes(request: bytes) -> dict[int, bytes]:
    """Return the attributes of a well-formed message."""
    found, offset = {}, 20
    while offset < len(request):
        kind, length = struct.unpack_from("!HH", request, offset)
        found[kind] = request[offset + 4 : offset + 4 + length]
        offset += 4 + length + -length % 4
    return found
