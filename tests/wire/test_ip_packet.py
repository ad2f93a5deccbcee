"""Whole IP packets; the kernel drops those with a wrong checksum, and tests/e2e/test_doctor_probes.py sends them."""

import struct
from ipaddress import ip_address

import pytest

from igd.core.mapping import Endpoint
from igd.wire.ip_packet import TcpFlags, tcp, udp

ENDS = [
    (Endpoint(ip_address("192.31.196.254"), 50000), Endpoint(ip_address("60.60.60.1"), 40000)),
    (Endpoint(ip_address("2001:4:112::fffe"), 50000), Endpoint(ip_address("2001:470:100::2"), 40000)),
]


def total(data: bytes) -> int:
    """Return the ones' complement sum of 16 bit words, 0xffff where the checksum in them is right (RFC 1071)."""
    result: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while result >> 16:
        result = (result & 0xFFFF) + (result >> 16)
    return result


@pytest.mark.parametrize(("source", "destination"), ENDS, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("protocol", [6, 17])
def test_lengths_and_checksums_are_right(source: Endpoint, destination: Endpoint, protocol: int) -> None:
    flags = TcpFlags.SYN | TcpFlags.ACK
    packet = udp(source, destination) if protocol == 17 else tcp(source, destination, flags, 1 << 31, 7)
    addresses = source.address.packed + destination.address.packed
    header = 20 if source.address.version == 4 else 40
    segment = packet[header:]
    if header == 20:
        assert packet[0] == 0x45
        assert packet[9] == protocol
        assert struct.unpack_from(">H", packet, 2) == (len(packet),)
        assert total(packet[:20]) == 0xFFFF
    else:
        assert packet[0] >> 4 == 6
        assert packet[6] == protocol
        assert struct.unpack_from(">H", packet, 4) == (len(segment),)
    assert packet[header - len(addresses) : header] == addresses
    assert struct.unpack_from(">HH", segment) == (50000, 40000)
    assert total(addresses + struct.pack(">HH", len(segment), protocol) + segment) == 0xFFFF
    if protocol == 6:
        assert struct.unpack_from(">IIBB", segment, 4) == (1 << 31, 7, 5 << 4, 0x12)
