"""Encodes whole IP packets of TCP and UDP without data, for probes. Bytes only."""

import enum
import struct

from igd.core.mapping import Endpoint, TransportProtocol

_HOPS = 64  # time to live, hop limit
_WINDOW = 65_535


class TcpFlags(enum.IntFlag):
    """Flags of a TCP header (RFC 9293 §3.1)."""

    SYN, RST, ACK = 0x02, 0x04, 0x10


def udp(source: Endpoint, destination: Endpoint) -> bytes:
    """Return a packet with an empty UDP datagram (RFC 768)."""
    return _packet(TransportProtocol.UDP, source, destination, struct.pack(">HH", 8, 0), checksum_at=6)


def tcp(source: Endpoint, destination: Endpoint, flags: TcpFlags, sequence: int, acknowledged: int) -> bytes:
    """Return a packet with a TCP segment without data and options (RFC 9293 §3.1)."""
    rest = struct.pack(">IIBBHHH", sequence, acknowledged, 5 << 4, flags, _WINDOW, 0, 0)
    return _packet(TransportProtocol.TCP, source, destination, rest, checksum_at=16)


def _packet(
    protocol: TransportProtocol, source: Endpoint, destination: Endpoint, rest: bytes, *, checksum_at: int
) -> bytes:
    """Return the packet whose transport header is the ports and `rest`, with a checksum at this offset."""
    segment = struct.pack(">HH", source.port, destination.port) + rest
    addresses = source.address.packed + destination.address.packed
    # The pseudo-headers of IPv4 and IPv6 differ in padding only, which a sum ignores (RFC 8200 §8.1).
    checksum = _checksum(addresses + struct.pack(">HH", len(segment), protocol) + segment)
    segment = segment[:checksum_at] + struct.pack(">H", checksum or 0xFFFF) + segment[checksum_at + 2 :]
    if source.address.version == 6:
        return struct.pack(">IHBB", 6 << 28, len(segment), protocol, _HOPS) + addresses + segment
    header = struct.pack(">BBHHHBBH", 4 << 4 | 5, 0, 20 + len(segment), 0, 0, _HOPS, protocol, 0)
    header = header[:10] + struct.pack(">H", _checksum(header + addresses))
    return header + addresses + segment


def _checksum(data: bytes) -> int:
    """Return the ones' complement of the ones' complement sum of 16 bit words (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
