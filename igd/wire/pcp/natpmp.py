"""NAT-PMP: the messages of RFC 6886, which share UDP port 5351 with PCP."""

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.wire.malformed import InvalidRequest, Malformed

VERSION = 0

SERVER_PORT = 5351
"""The port to which clients send requests (§3.1)."""

CLIENT_PORT = 5350
"""The port to which the server sends announcements (§3.2.1)."""

RESPONSE_BIT = 0x80
"""The bit of the opcode that is set in responses (§3.2, §3.3)."""

GET_ADDRESS = 0
"""The opcode that requests the external address (§3.2)."""

MAP = {1: TransportProtocol.UDP, 2: TransportProtocol.TCP}
"""The opcodes that request a mapping, one for each transport protocol (§3.3)."""

_OPCODES = {protocol: opcode for opcode, protocol in MAP.items()}

# version, opcode; then the fields of §3.2 and §3.3
_HEADER = struct.Struct("!BB")
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
    mappings of the protocol (§3.4).
    """

    protocol: TransportProtocol
    internal_port: int
    external_port: int
    lifetime: int


Request = AddressRequest | MapRequest


@dataclass(frozen=True, slots=True)
class AddressResponse:
    """The external address, in a response (§3.2) or in an announcement (§3.2.1).

    `result` is a Result, or an unassigned code, which means failure (§3.5); `epoch` is in seconds (§3.6).
    """

    result: int
    epoch: int
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class MapResponse:
    """The mapping as granted, for `lifetime` seconds (§3.3); `result` and `epoch` are as in AddressResponse."""

    protocol: TransportProtocol
    result: int
    epoch: int
    internal_port: int
    external_port: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class OtherResponse:
    """A response to an unknown opcode, or from a server of another version; its other fields are unknown (§3.5)."""

    opcode: int
    result: int


Response = AddressResponse | MapResponse


def is_natpmp(datagram: bytes) -> bool:
    """Return whether the first octet is NAT-PMP's version; a PCP server handles all other versions (RFC 6887 §9)."""
    return datagram[:1] == bytes((VERSION,))


def decode_request(datagram: bytes, epoch: int) -> Request:
    """Decode a datagram that was sent to the server's port; raise InvalidRequest with the response of §3.5."""
    if len(datagram) < _HEADER.size:
        raise InvalidRequest("shorter than the shortest request")
    version, opcode = _HEADER.unpack_from(datagram)
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


def encode_request(request: Request) -> bytes:
    """Encode a request as a datagram."""
    match request:
        case AddressRequest():
            return _HEADER.pack(VERSION, GET_ADDRESS)
        case MapRequest(protocol, internal_port, external_port, lifetime):
            return _MAP_REQUEST.pack(VERSION, _OPCODES[protocol], internal_port, external_port, lifetime)


def empty_response(request: Request, result: Result, epoch: int) -> Response:
    """Return the response to a deletion (§3.4) or a failed request (§3.5): all fields but the internal port are 0."""
    match request:
        case AddressRequest():
            return AddressResponse(result, epoch, IPv4Address(0))
        case MapRequest(protocol, internal_port):
            return MapResponse(protocol, result, epoch, internal_port, 0, 0)


def encode_response(response: Response) -> bytes:
    """Encode a response, or an announcement (§3.2.1), as a datagram."""
    match response:
        case AddressResponse(result, epoch, address):
            return _ADDRESS_RESPONSE.pack(VERSION, RESPONSE_BIT | GET_ADDRESS, result, epoch, address.packed)
        case MapResponse(protocol, result, epoch, internal_port, external_port, lifetime):
            opcode = RESPONSE_BIT | _OPCODES[protocol]
            return _MAP_RESPONSE.pack(VERSION, opcode, result, epoch, internal_port, external_port, lifetime)


def decode_response(datagram: bytes) -> Response | OtherResponse:
    """Decode a datagram that was sent to a client; raise Malformed if it is not a response."""
    if len(datagram) < 4:
        raise Malformed("shorter than the shortest response")
    version, opcode, result = struct.unpack_from("!BBH", datagram)
    if version != VERSION:
        raise Malformed(f"version {version}")
    # Servers that follow the figure of §3.5 to the letter reject a version with opcode 0.
    if not opcode & RESPONSE_BIT and result != Result.UNSUPPORTED_VERSION:
        raise Malformed("a request, not a response")
    opcode &= ~RESPONSE_BIT
    if result == Result.UNSUPPORTED_VERSION or opcode not in {GET_ADDRESS, *MAP}:
        return OtherResponse(opcode, result)
    layout = _ADDRESS_RESPONSE if opcode == GET_ADDRESS else _MAP_RESPONSE
    if len(datagram) < layout.size:
        raise Malformed("shorter than a response to its opcode")
    _, _, _, epoch, *fields = layout.unpack_from(datagram)
    if opcode == GET_ADDRESS:
        return AddressResponse(result, epoch, IPv4Address(fields[0]))
    return MapResponse(MAP[opcode], result, epoch, *fields)
