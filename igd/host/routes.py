"""Where the kernel sends packets to addresses, by rtnetlink(7): many addresses in few system calls.

Structures and numbers: linux/netlink.h, linux/rtnetlink.h.
"""

import errno
import fcntl
import itertools
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_REQUEST, NLMSG_ERROR
from pyroute2.netlink.rtnl import RTM_GETROUTE
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP

from igd.core.peers import Address

RTN_UNICAST, RTN_LOCAL = 1, 2
RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT = 6, 7, 8

_RTA_DST, _RTA_OIF = 1, 4

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, length of destination, ..., its eighth field is the type
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NUMBER = struct.Struct("=i")

_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_INTERFACE = struct.Struct("=16sH14x")  # struct ifreq of netdevice(7): name, flags

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_KIND_BY_ERROR = {errno.EINVAL: RTN_BLACKHOLE, errno.EHOSTUNREACH: RTN_UNREACHABLE, errno.EACCES: RTN_PROHIBIT}
"""For a route of these types the kernel returns an error."""

_BATCH = 64
"""Questions in one datagram: all answers must fit into the receive buffer, 212,992 bytes by default."""


class Route(NamedTuple):
    """The route to one address: its type (RTN_*), and the index of the interface, 0 for none."""

    kind: int
    interface: int


def routes(addresses: Iterable[Address]) -> dict[Address, Route | None]:
    """Return the route of a packet from this host to each address, None if there is none; OSError.

    It takes 0.01 ms for an address.
    """
    found: dict[Address, Route | None] = {}
    remaining = iter(addresses)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK  # the kernel answers before send() returns
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE) as netlink:
        while batch := list(itertools.islice(remaining, _BATCH)):
            netlink.send(b"".join(_question(number, address) for number, address in enumerate(batch)))
            answers = dict(itertools.islice(_answers(netlink), len(batch)))
            found |= {address: answers[number] for number, address in enumerate(batch)}
    return found


def is_up(interface: str) -> bool:
    """Return whether this interface is administratively up; OSError if it does not exist."""
    request = _INTERFACE.pack(os.fsencode(interface), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _, flags = _INTERFACE.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
    return bool(flags & IFF_UP)


def _question(number: int, address: Address) -> bytes:
    destination = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), _RTA_DST) + address.packed
    route = _ROUTE.pack(_FAMILY[address.version], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    length = _HEADER.size + len(route) + len(destination)
    return _HEADER.pack(length, RTM_GETROUTE, NLM_F_REQUEST, number, 0) + route + destination


def _answers(netlink: socket.socket) -> Iterator[tuple[int, Route | None]]:
    """Yield the number of each question with its answer."""
    while True:
        data = netlink.recv(1 << 16)
        offset = 0
        while offset < len(data):
            length, kind, _, number, _ = _HEADER.unpack_from(data, offset)
            payload = data[offset + _HEADER.size : offset + length]
            yield number, _refused(payload) if kind == NLMSG_ERROR else _route(payload)
            offset += length + -length % 4


def _refused(payload: bytes) -> Route | None:
    number = -_NUMBER.unpack_from(payload)[0]
    if number == errno.ENETUNREACH:
        return None
    if number not in _KIND_BY_ERROR:
        raise OSError(number, f"route: {os.strerror(number)}")
    return Route(_KIND_BY_ERROR[number], 0)


def _route(payload: bytes) -> Route:
    fields: Sequence[int] = _ROUTE.unpack_from(payload)
    interface, offset = 0, _ROUTE.size
    while offset < len(payload):
        length, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if kind == _RTA_OIF:
            (interface,) = _NUMBER.unpack_from(payload, offset + _ATTRIBUTE.size)
        offset += length + -length % 4
    return Route(fields[7], interface)
