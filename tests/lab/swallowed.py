"""What becomes of a packet in a host: proof that its firewall drops it, without waiting for an answer to stay away."""

import itertools
import socket
import struct
import time
from typing import NamedTuple

from .process import PATIENCE

ALL_PACKETS = socket.htons(3)  # ETH_P_ALL, as socket() wants it
_PORTS_FIRST = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)  # both headers begin with source and destination port
_ERRORS = {socket.IPPROTO_ICMP: range(3, 13), socket.IPPROTO_ICMPV6: range(1, 128)}
_IPV6 = 0x86DD
_own_ports = itertools.count(20_000)  # below those that the kernel chooses, so that no other packet has them


class _Seen(NamedTuple):
    """A packet that came to or left one of the host's interfaces."""

    outgoing: bool
    ports: frozenset[int]


def swallowed(watching: socket.socket, calling: socket.socket, to: tuple[str, int], source: str = "") -> bool:
    """Send the first packet of `calling`, and return whether the host of `watching` sends nothing because of it.

    False if it forwards, answers or rejects the packet. `watching` is a packet socket in that host for ALL_PACKETS,
    `calling` a TCP or UDP socket that is bound to nothing. TimeoutError if the packet does not come to the host.
    """
    port = next(_own_ports)
    calling.bind((source, port))
    calling.setblocking(False)  # noqa: FBT003 - the parameter has no name
    calling.connect_ex(to)
    if calling.type == socket.SOCK_DGRAM:
        calling.send(b"\n")
    return sends_nothing(watching, port)


def sends_nothing(watching: socket.socket, port: int) -> bool:
    """Return whether the host sends nothing because of the next packet with this port that it receives.

    TimeoutError if none comes.
    """
    await_arrival(watching, port)
    watching.setblocking(False)  # noqa: FBT003 - the parameter has no name
    try:
        while True:
            if (seen := _next(watching)).outgoing and port in seen.ports:
                return False
    except BlockingIOError:
        return True


def await_arrival(watching: socket.socket, port: int) -> None:
    """Return when the host has received a packet with this port and is done with it; TimeoutError after PATIENCE.

    The kernel handles a packet, from the interface to what it sends because of it, in one RCU read-side critical
    section, and closing a packet socket waits until all of these have ended (synchronize_net in packet_release).
    """
    watching.settimeout(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while (seen := _next(watching)).outgoing or port not in seen.ports:
        if time.monotonic() > deadline:
            raise TimeoutError("the packet did not arrive")
    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).close()


def _next(watching: socket.socket) -> _Seen:
    packet, (_interface, protocol, kind, *_) = watching.recvfrom(2048)
    return _Seen(kind == socket.PACKET_OUTGOING, frozenset(_ports(packet, ipv6=protocol == _IPV6)))


def _ports(packet: bytes, *, ipv6: bool) -> tuple[int, ...]:
    """Return the ports of a packet, or of the one that it quotes if it reports an error; none of other packets."""
    if len(packet) < 28:
        return ()
    protocol, payload = (packet[6], packet[40:]) if ipv6 else (packet[9], packet[(packet[0] & 15) * 4 :])
    if protocol in _PORTS_FIRST:
        return struct.unpack_from("!HH", payload)
    if protocol in _ERRORS and payload[0] in _ERRORS[protocol]:
        return _ports(payload[8:], ipv6=ipv6)
    return ()
