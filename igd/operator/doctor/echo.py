"""Asks peers for an echo (RFC 792), from the server's address in the tunnel and from one of the internet.

A client with a split tunnel drops, silently, what comes out of the tunnel with a source outside of its AllowedIPs:
mapped ports then look open and are dead. The requests go into the tunnel only, past all rules of the firewall. A client
that answers the second one sends its answer to 192.0.2.1 (TEST-NET-1, RFC 5737), which belongs to nobody.
"""

import ctypes
import os
import select
import socket
import struct
import time
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address

OUTSIDE = IPv4Address("192.0.2.1")

_ATTEMPTS, _SECONDS = 3, 0.7
"""How often each request is sent, and how long is waited for answers after each time."""

_ETH_P_IP = 0x0800
_ETH_P_IP_BIG_ENDIAN = socket.htons(_ETH_P_IP)
_IP = struct.Struct("!BBHHHBBH4s4s")
_ECHO = struct.Struct("!BBHHH")
_REPLY, _REQUEST = 0, 8

_SO_ATTACH_FILTER = 26
_ICMP_ONLY = struct.pack("=" + "HBBI" * 4, 0x30, 0, 0, 9, 0x15, 0, 1, 1, 0x06, 0, 0, 0xFFFF, 0x06, 0, 0, 0)
"""Classic BPF: load octet 9, the protocol; accept 1, ICMP, and nothing else (linux/filter.h)."""


def answering(
    interface: str, sources: Collection[IPv4Address], peers: Collection[IPv4Address]
) -> set[tuple[IPv4Address, IPv4Address]]:
    """Return the pairs (source, peer) for which a request from that source was answered; blocks for two seconds.

    OSError, for which see packet(7): it takes CAP_NET_RAW.
    """
    wanted = {(source, peer) for source in sources for peer in peers}
    found: set[tuple[IPv4Address, IPv4Address]] = set()
    identifier = os.getpid() & 0xFFFF
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0) as tunnel:
        tunnel.bind((interface, _ETH_P_IP))
        _receive_icmp_only(tunnel)
        for _ in range(_ATTEMPTS):
            for source, peer in wanted - found:
                tunnel.sendto(request(source, peer, identifier), (interface, _ETH_P_IP))
            deadline = time.monotonic() + _SECONDS
            while found != wanted and (rest := deadline - time.monotonic()) > 0:
                if select.select([tunnel], [], [], rest)[0]:
                    found |= wanted.intersection(answers(tunnel.recv(2048), identifier))
    return found


def _receive_icmp_only(tunnel: socket.socket) -> None:
    """Let the kernel drop everything else: a tunnel in use carries thousands of packets a second."""
    buffer = ctypes.create_string_buffer(_ICMP_ONLY)
    program = struct.pack("HL", 4, ctypes.addressof(buffer))
    tunnel.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def request(source: IPv4Address, peer: IPv4Address, identifier: int) -> bytes:
    """Return an IPv4 packet with an echo request."""
    echo = _ECHO.pack(_REQUEST, 0, 0, identifier, 1)
    echo = _ECHO.pack(_REQUEST, 0, checksum(echo), identifier, 1)
    header = _IP.pack(0x45, 0, _IP.size + len(echo), 0, 0, 64, socket.IPPROTO_ICMP, 0, source.packed, peer.packed)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + echo


def answers(packet: bytes, identifier: int) -> Iterator[tuple[IPv4Address, IPv4Address]]:
    """Yield whom a received packet answers, and whose answer it is, if it is one to us."""
    if len(packet) < _IP.size + _ECHO.size or packet[9] != socket.IPPROTO_ICMP:
        return
    *_, peer, source = _IP.unpack_from(packet)
    offset = (packet[0] & 0xF) * 4
    if len(packet) >= offset + _ECHO.size:
        kind, _, _, found, _ = _ECHO.unpack_from(packet, offset)
        if kind == _REPLY and found == identifier:
            yield IPv4Address(source), IPv4Address(peer)


def checksum(data: bytes) -> int:
    """Return the checksum of the internet (RFC 1071) of an even number of octets."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
