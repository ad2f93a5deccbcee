"""NAT-PMP: the messages of RFC 6886, which share UDP port 5351 with PCP."""

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.wire.malformed import InvalidRequest

VERSION = 0

RESPONSE_BIT = 0x80
"""The bit of the opcode that is set in responses (§3.2, §3.3)."""

MAX_MESSAGE_SIZE = 1100
"""Octets of a datagram that is answered, as in PCP (RFC 6887 §7), because some responses repeat the whole request."""

GET_ADDRESS = 0
"""The opcode that requests the external address (§3.2)."""

MAP = {1: TransportProtocol.UDP, 2: TransportProtocol.TCP}
"""The opcodes that request a mapping, one for each transport protocol (§3.3)."""

_OPCODES = {protocol: opcode for opcode, protocol in MAP.items()}

# version, opcode; then the fields of §3.2 and §3.3
_MAP_REQUEST = struct.Struct("!BB2xHHI")
_RESPONSE_HEADER = struct.Struct("!BBHI")
_ADDRESS_RESPONSE = struct.Struct("!BBHI4s")
_MAP_RESPONSE = struct.Struct("!BBHIHHI")


class Result(enum.IntEnum):
    """The result codes (§3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """A request for the external address (§3.2)."""


@dataclass(frozen=True, slots=True)
class MapRequest:
    """A request to map an external port to `internal_port` of the source address for `lifetime` seconds (§3.3).

    `external_port` is a suggestion; 0 suggests none. Lifetime 0 deletes the mapping, and with internal port 0 all
    mappings of the protocol (§3.4). With any other lifetime, internal port 0 asks for a port of the gateway's choice.
    """

    protocol: TransportProtocol
    internal_port: int
    external_port: int
    lifetime: int


Request = AddressRequest | MapRequest


def is_natpmp(datagram: bytes) -> bool:
    """Return whether the first octet is NAT-PMP's version; a PCP server handles all other versions (RFC 6887 §9)."""
    return datagram[:1] == bytes((VERSION,))


def decode_request(datagram: bytes, epoch: int) -> Request:
    """Decode a datagram that was sent to the server's port; raise InvalidRequest with the response of §3.5."""
    if len(datagram) < 2:
        raise InvalidRequest("shorter than the shortest request")
    if len(datagram) > MAX_MESSAGE_SIZE:
        raise InvalidRequest("longer than any request")
    version, opcode = datagram[:2]
    if opcode & RESPONSE_BIT:
        raise InvalidRequest("a response, not a request")
    if version != VERSION:
        raise InvalidRequest(f"version {version}", _unsupported_version(epoch))
    if opcode == GET_ADDRESS:
        return AddressRequest()
    if opcode not in MAP:
        raise InvalidRequest(f"opcode {opcode}", _unsupported_opcode(datagram))
    if len(datagram) < _MAP_REQUEST.size:
        raise InvalidRequest("shorter than a mapping request")
    _, _, internal_port, external_port, lifetime = _MAP_REQUEST.unpack_from(datagram)
    return MapRequest(MAP[opcode], internal_port, external_port, lifetime)


def _unsupported_version(epoch: int) -> bytes:
    # The figure in §3.5 has opcode 0, but another server would take such a response for a request.
    return _RESPONSE_HEADER.pack(VERSION, RESPONSE_BIT | GET_ADDRESS, Result.UNSUPPORTED_VERSION, epoch)


def _unsupported_opcode(datagram: bytes) -> bytes:
    """Return the whole request, changed only in the response bit and the result code (§3.5)."""
    header = struct.pack("!BBH", VERSION, RESPONSE_BIT | datagram[1], Result.UNSUPPORTED_OPCODE)
    return header + datagram[len(header) :]


def encode_address(result: Result, epoch: int, address: IPv4Address) -> bytes:
    """Encode the external address, in a response (§3.2) or an announcement (§3.2.1); `epoch` is in seconds (§3.6)."""
    return _ADDRESS_RESPONSE.pack(VERSION, RESPONSE_BIT | GET_ADDRESS, result, epoch, address.packed)


def encode_mapping(request: MapRequest, result: Result, epoch: int, external_port: int = 0, lifetime: int = 0) -> bytes:
    """Encode the response to a mapping request, with the external port and the lifetime that were granted (§3.3)."""
    opcode = RESPONSE_BIT | _OPCODES[request.protocol]
    return _MAP_RESPONSE.pack(VERSION, opcode, result, epoch, request.internal_port, external_port, lifetime)


def encode_result(request: Request, result: Result, epoch: int) -> bytes:
    """Encode the response to a deletion (§3.4) or a failed request (§3.5): all fields but the internal port are 0."""
    if isinstance(request, MapRequest):
        return encode_mapping(request, result, epoch)
    return encode_address(result, epoch, IPv4Address(0))
