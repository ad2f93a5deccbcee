"""What PCP's opcodes carry between the head and the options: RFC 6887 §11.1, §14.1."""

import enum
import struct
from dataclasses import dataclass

from igd.wire.pcp.options import FILTER, PORT_SET, PREFER_FAILURE, THIRD_PARTY, Address, decode_address, encode_address

# nonce, protocol, internal and external port, external address (§11.1)
_MAP = struct.Struct("!12sB3xHH16s")


class Opcode(enum.IntEnum):
    """What can be asked (§19.2); PEER (§12) is not served, and so unknown as any other."""

    ANNOUNCE = 0
    MAP = 1


@dataclass(frozen=True, slots=True)
class Announce:
    """Are you there? and: I have lost my state (§14.1)."""


@dataclass(frozen=True, slots=True)
class Map:
    """A mapping of an internal port (§11.1).

    The nonce has 12 octets, the protocol is IANA's number, 0: all. Internal port 0 is all ports. The external port
    and address are suggested in a request (0 and all-zeroes: no wish; §5), and assigned in an answer.
    """

    nonce: bytes
    protocol: int
    internal_port: int
    external_port: int
    external_address: Address


Payload = Announce | Map


@dataclass(frozen=True, slots=True)
class Layout:
    """How many octets an opcode carries, and the codes of the options that it can have (§13; RFC 7753 §4)."""

    size: int
    options: frozenset[int]


LAYOUTS: dict[int, Layout] = {
    Opcode.ANNOUNCE: Layout(0, frozenset()),
    Opcode.MAP: Layout(_MAP.size, frozenset({THIRD_PARTY, PREFER_FAILURE, FILTER, PORT_SET})),
}


def decode(opcode: int, data: bytes) -> Payload:
    """Read what one of the LAYOUTS has; `data` is at least as long as that."""
    match Opcode(opcode):
        case Opcode.ANNOUNCE:
            return Announce()
        case Opcode.MAP:
            nonce, protocol, internal_port, external_port, address = _MAP.unpack_from(data)
            return Map(nonce, protocol, internal_port, external_port, decode_address(address))


def encode(payload: Payload) -> tuple[Opcode, bytes]:
    """Give the opcode of what is carried, and its octets."""
    match payload:
        case Announce():
            return Opcode.ANNOUNCE, b""
        case Map(nonce, protocol, internal_port, external_port, address):
            return Opcode.MAP, _MAP.pack(nonce, protocol, internal_port, external_port, encode_address(address))
