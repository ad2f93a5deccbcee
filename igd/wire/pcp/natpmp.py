"""NAT-PMP: the messages of RFC 6886, which share UDP port 5351 with PCP."""

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.wire.malformed import Malformed, Rejected

VERSION = 0

SERVER_PORT = 5351
"""Where requests go (§3.1)."""

CLIENT_PORT = 5350
"""Where announcements go (§3.2.1)."""

ANSWER = 0x80
"""The bit that an opcode has in an answer (§3.2, §3.3)."""

GET_ADDRESS = 0
"""§3.2."""

MAP = {1: TransportProtocol.UDP, 2: TransportProtocol.TCP}
"""The opcode of a mapping says its protocol (§3.3)."""

_OPCODES = {protocol: opcode for opcode, protocol in MAP.items()}

# version, opcode; then what §3.2 and §3.3 draw
_HEAD = struct.Struct("!BB")
_MAP_REQUEST = struct.Struct("!BB2xHHI")
_ANSWER_HEAD = struct.Struct("!BBHI")
_ADDRESS_RESPONSE = struct.Struct("!BBHI4s")
_MAP_RESPONSE = struct.Struct("!BBHIHHI")


class Result(enum.IntEnum):
    """How a request ended (§3.5)."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """Which address has the server on the internet? (§3.2)."""


@dataclass(frozen=True, slots=True)
class MapRequest:
    """Lead an external port to `internal_port` of the asking address for `lifetime` seconds (§3.3).

    `external_port` is a wish, 0: none. Lifetime 0 deletes the mapping, and with internal port 0 all mappings of the
    protocol (§3.4).
    """

    protocol: TransportProtocol
    internal_port: int
    external_port: int
    lifetime: int


Request = AddressRequest | MapRequest


@dataclass(frozen=True, slots=True)
class AddressResponse:
    """The external address (§3.2); also the announcement of it (§3.2.1).

    `result` is a Result, or a number that is none yet and means failure (§3.5); `epoch` is in seconds (§3.6).
    """

    result: int
    epoch: int
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class MapResponse:
    """The mapping that now stands, for `lifetime` seconds (§3.3); `result` and `epoch` as in AddressResponse."""

    protocol: TransportProtocol
    result: int
    epoch: int
    internal_port: int
    external_port: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class OtherResponse:
    """An answer of which no more can be read: to another opcode, or from a server of another version (§3.5)."""

    opcode: int
    result: int


Response = AddressResponse | MapResponse


def is_natpmp(datagram: bytes) -> bool:
    """Tell NAT-PMP's datagrams, by their first octet; everything else is PCP's to answer (RFC 6887 §9)."""
    return datagram[:1] == bytes((VERSION,))


def decode_request(datagram: bytes, epoch: int) -> Request:
    """Read what came to the server's port; raise Rejected, with the answer that §3.5 has for it."""
    if len(datagram) < _HEAD.size:
        raise Rejected("shorter than the shortest request")
    version, opcode = _HEAD.unpack_from(datagram)
    if opcode & ANSWER:
        raise Rejected("an answer, not a request")
    if version != VERSION:
        raise Rejected(f"version {version}", _unsupported_version(epoch))
    if opcode == GET_ADDRESS:
        return AddressRequest()
    if opcode not in MAP:
        raise Rejected(f"opcode {opcode}", _unsupported_opcode(datagram))
    if len(datagram) < _MAP_REQUEST.size:
        raise Rejected("shorter than a request for a mapping")
    _, _, internal_port, external_port, lifetime = _MAP_REQUEST.unpack_from(datagram)
    return MapRequest(MAP[opcode], internal_port, external_port, lifetime)


def _unsupported_version(epoch: int) -> bytes:
    # The figure in §3.5 has opcode 0; with that, another server would take our answer for a request.
    return _ANSWER_HEAD.pack(VERSION, ANSWER | GET_ADDRESS, Result.UNSUPPORTED_VERSION, epoch)


def _unsupported_opcode(datagram: bytes) -> bytes:
    """Give the whole request back with the answer bit and the code (§3.5); nothing else of it is ours to change."""
    head = struct.pack("!BBH", VERSION, ANSWER | datagram[1], Result.UNSUPPORTED_OPCODE)
    return head + datagram[len(head) :]


def encode_request(request: Request) -> bytes:
    """Give the datagram that asks for `request`."""
    match request:
        case AddressRequest():
            return _HEAD.pack(VERSION, GET_ADDRESS)
        case MapRequest(protocol, internal_port, external_port, lifetime):
            return _MAP_REQUEST.pack(VERSION, _OPCODES[protocol], internal_port, external_port, lifetime)


def refuse(request: Request, result: Result, epoch: int) -> Response:
    """Give the answer to a request that failed: the internal port says which one it was, the rest is 0 (§3.5)."""
    match request:
        case AddressRequest():
            return AddressResponse(result, epoch, IPv4Address(0))
        case MapRequest(protocol, internal_port):
            return MapResponse(protocol, result, epoch, internal_port, 0, 0)


def encode_response(response: Response) -> bytes:
    """Give the datagram of an answer, or of an announcement (§3.2.1)."""
    match response:
        case AddressResponse(result, epoch, address):
            return _ADDRESS_RESPONSE.pack(VERSION, ANSWER | GET_ADDRESS, result, epoch, address.packed)
        case MapResponse(protocol, result, epoch, internal_port, external_port, lifetime):
            opcode = ANSWER | _OPCODES[protocol]
            return _MAP_RESPONSE.pack(VERSION, opcode, result, epoch, internal_port, external_port, lifetime)


def decode_response(datagram: bytes) -> Response | OtherResponse:
    """Read what came to a client; raise Malformed where it is no answer."""
    if len(datagram) < 4:
        raise Malformed("shorter than the shortest answer")
    version, opcode, result = struct.unpack_from("!BBH", datagram)
    if version != VERSION:
        raise Malformed(f"version {version}")
    # Servers that follow the figure of §3.5 to the letter refuse a version with opcode 0.
    if not opcode & ANSWER and result != Result.UNSUPPORTED_VERSION:
        raise Malformed("a request, not an answer")
    opcode &= ~ANSWER
    if result == Result.UNSUPPORTED_VERSION or opcode not in {GET_ADDRESS, *MAP}:
        return OtherResponse(opcode, result)
    layout = _ADDRESS_RESPONSE if opcode == GET_ADDRESS else _MAP_RESPONSE
    if len(datagram) < layout.size:
        raise Malformed("shorter than an answer to its opcode")
    _, _, _, epoch, *fields = layout.unpack_from(datagram)
    if opcode == GET_ADDRESS:
        return AddressResponse(result, epoch, IPv4Address(fields[0]))
    return MapResponse(MAP[opcode], result, epoch, *fields)
