"""The payloads of PCP's opcodes, between the header and the options: RFC 6887 §11.1, §14.1."""

import enum
import struct
from dataclasses import dataclass

from igd.wire.pcp.options import FILTER, PORT_SET, PREFER_FAILURE, THIRD_PARTY, Address, decode_address, encode_address

# nonce, protocol, internal and external port, external address (§11.1)
_MAP = struct.Struct("!12sB3xHH16s")


class Opcode(enum.IntEnum):
    """The supported opcodes (§19.2); PEER (§12) is not supported and handled like any unknown opcode."""

    ANNOUNCE = 0
    MAP = 1


@dataclass(frozen=True, slots=True)
class Announce:
    """The empty payload of ANNOUNCE: a client asks whether the server is there, or the server has restarted (§14.1)."""


@dataclass(frozen=True, slots=True)
class Map:
    """The payload of MAP: a mapping of an internal port (§11.1).

    The nonce has 12 octets. The protocol is IANA's number; protocol 0 is all protocols, internal port 0 all ports. The
    external port and address are suggested in a request (0 and all-zeroes suggest none; §5) and assigned in a response.
    """

    nonce: bytes
    protocol: int
    internal_port: int
    external_port: int
    external_address: Address


Payload = Announce | Map


@dataclass(frozen=True, slots=True)
class Layout:
    """The size of an opcode's payload in octets, and the codes of its options (§13; RFC 7753 §4)."""

    size: int
    options: frozenset[int]


LAYOUTS: dict[int, Layout] = {
    Opcode.ANNOUNCE: Layout(0, frozenset()),
    Opcode.MAP: Layout(_MAP.size, frozenset({THIRD_PARTY, PREFER_FAILURE, FILTER, PORT_SET})),
}


def decode(opcode: int, data: bytes) -> Payload:
    """Decode the payload of an opcode in LAYOUTS; `data` has at least the size that LAYOUTS has for it."""
    match Opcode(opcode):
        case Opcode.ANNOUNCE:
            return Announce()
        case Opcode.MAP:
            nonce, protocol, internal_port, external_port, address = _MAP.unpack_from(data)
            return Map(nonce, protocol, internal_port, external_port, decode_address(address))


def encode(payload: Payload) -> tuple[Opcode, bytes]:
    """Return the opcode of a payload, and the payload's octets."""
    match payload:
        case Announce():
            return Opcode.ANNOUNCE, b""
        case Map(nonce, protocol, internal_port, external_port, address):
            return Opcode.MAP, _MAP.pack(nonce, protocol, internal_port, external_port, encode_address(address))
