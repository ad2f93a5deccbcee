"""The client's side of NAT-PMP (RFC 6886) and PCP (RFC 6887): encodes requests and decodes responses."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.wire.malformed import Malformed
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp, opcodes
from igd.wire.pcp.opcodes import LAYOUTS, Payload
from igd.wire.pcp.options import NO_OPTIONS, Options, decode_options, encode_address, encode_options


@dataclass(frozen=True, slots=True)
class AddressResponse:
    """NAT-PMP's external address, in a response (RFC 6886 §3.2) or in an announcement (§3.2.1).

    `result` is a natpmp.Result, or an unassigned code, which means failure (§3.5); `epoch` is in seconds (§3.6).
    """

    result: int
    epoch: int
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class MapResponse:
    """NAT-PMP's mapping as granted, for `lifetime` seconds (RFC 6886 §3.3); other fields are as in AddressResponse."""

    protocol: TransportProtocol
    result: int
    epoch: int
    internal_port: int
    external_port: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class OtherResponse:
    """NAT-PMP's response to an unknown opcode or version; its other fields are unknown (RFC 6886 §3.5)."""

    opcode: int
    result: int


NatpmpResponse = AddressResponse | MapResponse | OtherResponse


@dataclass(frozen=True, slots=True)
class Response:
    """PCP's success response, or an unsolicited one: a restart (RFC 6887 §14.1), a changed mapping (§14.2).

    `lifetime` is the mapping's, in seconds; `epoch` is the number of seconds since state was lost (§8.5).
    """

    lifetime: int
    epoch: int
    payload: Payload
    options: Options = NO_OPTIONS


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """PCP's error response, valid for `lifetime` seconds (RFC 6887 §7.4).

    `result` is a pcp.Result, or an unassigned code; `payload` is the request's, or None if it cannot be decoded.
    """

    result: int
    lifetime: int
    epoch: int
    opcode: int
    payload: Payload | None


PcpResponse = Response | ErrorResponse


def encode(request: natpmp.Request | pcp.Request) -> bytes:
    """Encode a request of either protocol as a datagram."""
    match request:
        case natpmp.AddressRequest():
            return bytes((natpmp.VERSION, natpmp.GET_ADDRESS))
        case natpmp.MapRequest(protocol, internal_port, external_port, lifetime):
            opcode = 1 if protocol is TransportProtocol.UDP else 2
            return struct.pack("!BB2xHHI", natpmp.VERSION, opcode, internal_port, external_port, lifetime)
        case pcp.Request(lifetime, client, payload, options):
            opcode, fields = opcodes.encode(payload)
            header = struct.pack("!BB2xI16s", pcp.VERSION, opcode, lifetime, encode_address(client))
            return header + fields + encode_options(options)


def decode(datagram: bytes) -> NatpmpResponse | PcpResponse:
    """Decode a response of the protocol that its first octet selects."""
    return decode_natpmp(datagram) if natpmp.is_natpmp(datagram) else decode_pcp(datagram)


def decode_natpmp(datagram: bytes) -> NatpmpResponse:
    """Decode a datagram that was sent to a NAT-PMP client; raise Malformed if it is not a response."""
    if len(datagram) < 4:
        raise Malformed("shorter than the shortest response")
    version, opcode, result = struct.unpack_from("!BBH", datagram)
    if version != natpmp.VERSION:
        raise Malformed(f"version {version}")
    # Servers that follow the figure of RFC 6886 §3.5 to the letter reject a version with opcode 0.
    if not opcode & natpmp.RESPONSE_BIT and result != natpmp.Result.UNSUPPORTED_VERSION:
        raise Malformed("a request, not a response")
    opcode &= ~natpmp.RESPONSE_BIT
    if result == natpmp.Result.UNSUPPORTED_VERSION or opcode not in {natpmp.GET_ADDRESS, *natpmp.MAP}:
        return OtherResponse(opcode, result)
    layout = struct.Struct("!4xI4s" if opcode == natpmp.GET_ADDRESS else "!4xIHHI")
    if len(datagram) < layout.size:
        raise Malformed("shorter than a response to its opcode")
    epoch, *fields = layout.unpack_from(datagram)
    if opcode == natpmp.GET_ADDRESS:
        return AddressResponse(result, epoch, IPv4Address(fields[0]))
    return MapResponse(natpmp.MAP[opcode], result, epoch, *fields)


def decode_pcp(datagram: bytes) -> PcpResponse:
    """Decode a datagram that was sent to a PCP client; raise Malformed if it is not a response (RFC 6887 §8.3).

    Unlike other clients (§7.3), this one rejects options that it does not know: the server responds with none.
    """
    if not 24 <= len(datagram) <= pcp.MAX_MESSAGE_SIZE or len(datagram) % 4:
        raise Malformed(f"a response of {len(datagram)} octets")
    version, octet, result, lifetime, epoch = struct.unpack_from("!BBxBII", datagram)
    if version != pcp.VERSION:
        raise Malformed(f"version {version}")
    if not octet & pcp.RESPONSE_BIT:
        raise Malformed("a request, not a response")
    opcode, body = octet & ~pcp.RESPONSE_BIT, datagram[24:]
    layout = LAYOUTS.get(opcode)
    payload = opcodes.decode(opcode, body) if layout and len(body) >= layout.size else None
    if result != pcp.Result.SUCCESS:
        return ErrorResponse(result, lifetime, epoch, opcode, payload)
    if layout is None or payload is None:
        raise Malformed(f"opcode {opcode} with {len(datagram)} octets")
    return Response(lifetime, epoch, payload, decode_options(body[layout.size :], layout.options))
