"""Network interfaces, their addresses and routes, and changes to them, by rtnetlink."""

import asyncio
import errno
import ipaddress
import os
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self

from pyroute2 import AsyncIPRoute, NetlinkError
from pyroute2.netlink import NETLINK_ROUTE, NLM_F_REQUEST
from pyroute2.netlink.rtnl import (
    RTM_GETLINK,
    RTM_GETROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
)

from igd.core.peers import Address, Interface
from igd.core.request import LinkStatus
from igd.host.readable import wait_until_readable

RT_TABLE_MAIN = 254

_RULES = 1 << 7 | 1 << 18  # RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE
_NETCONF = 1 << 23 | 1 << 24  # RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF: forwarding, rp_filter
_ADDRESSES = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
_GROUPS = RTMGRP_LINK | _ADDRESSES | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE | _RULES | _NETCONF
_UP = 0x1  # IFF_UP: administratively up
_RUNNING = 0x40  # IFF_RUNNING: operational, with a carrier
_UNUSABLE = 0x20 | 0x40 | 0x08  # IFA_F_DEPRECATED, IFA_F_TENTATIVE, IFA_F_DADFAILED
_LAST = {socket.AF_INET: 0x20, socket.AF_INET6: 0x20 | 0x01}  # IFA_F_DEPRECATED, IFA_F_TEMPORARY

_GET_LINK = (RTM_GETLINK, NLM_F_REQUEST)
_GET_ROUTE = (RTM_GETROUTE, NLM_F_REQUEST)
"""Requests for one object. pyroute2's own command "get" asks for an acknowledgement after the answer, which pyroute2
then keeps for ever: 100 octets for each request, in the place of a receive buffer of 256 KB."""

NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
"""What the kernel says without a route, and for routes of the types unreachable, prohibit and blackhole."""

SETTLE_SECONDS = 0.1
"""The host changes in bursts; this long after the first change the burst is usually over."""

LOOK_SECONDS = 1.0
"""The shortest time between two reports of changes, however often the host changes."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """An interface's `index`, which is never reused, and whether it is administratively `up`."""

    index: int
    up: bool


@dataclass(frozen=True, slots=True)
class BorneAddress:
    """An address, the index of the interface that has it, and whether packets may be sent from it."""

    index: int
    ip: IPv4Address
    usable: bool


@dataclass(frozen=True, slots=True)
class Route:
    """The index of the interface through which a packet leaves, and the host's source address there, if it is known.

    `table` is the number of the routing table that has the route, if RTM_F_LOOKUP_TABLE asks for it.
    """

    index: int
    source: IPv4Address | None
    table: int = field(default=RT_TABLE_MAIN, compare=False)


class Links:
    """Reads the host's links; an asynchronous context manager. Its methods raise OSError."""

    def __init__(self) -> None:
        self._netlink = AsyncIPRoute()

    async def __aenter__(self) -> Self:
        await self._netlink.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._netlink.__aexit__(None, None, None)

    async def state(self, name: str) -> LinkState | None:
        """Return the state of this interface, or None if it does not exist."""
        link = await self._link(name)
        return LinkState(link["index"], bool(link["flags"] & _UP)) if link else None

    async def addresses(self, name: str) -> tuple[Interface, ...]:
        """Return the addresses and networks of this interface; none if it does not exist.

        They are in the kernel's order, but deprecated ones come last, and before them temporary ones: a peer that
        is told another will not lose it soon.
        """
        link = await self._link(name)
        if link is None:
            return ()
        messages = await self._dump("addr", index=link["index"])
        return tuple(map(_address, sorted(messages, key=lambda each: each["flags"] & _LAST[each["family"]])))

    async def ipv4_addresses(self) -> list[BorneAddress]:
        """Return the IPv4 addresses of all interfaces, in the kernel's order."""
        messages = await self._dump("addr", family=socket.AF_INET)
        return [
            BorneAddress(each["index"], IPv4Address(_address(each).ip), not each["flags"] & _UNUSABLE)
            for each in messages
        ]

    async def route(self, address: Address) -> str | None:
        """Return the interface through which packets to `address` leave, or None if there is no route."""
        try:
            route = await self.look_up(address)
        except OSError as error:
            if error.errno in NO_ROUTE:
                return None
            raise
        return socket.if_indextoname(route.index)

    async def bearer(self, address: IPv4Address) -> str | None:
        """Return the interface to whose network this address of the host belongs; None also if it is the host's alone.

        Packets to an address with the prefix length 32 are routed to the host, and may arrive on any interface.
        """
        for message in await self._dump("addr", family=socket.AF_INET, local=str(address)):
            if message["prefixlen"] < address.max_prefixlen or message.get("address") != str(address):
                return socket.if_indextoname(message["index"])
        return None

    async def accepts(self, source: Address, own: Address, name: str) -> bool:
        """Return whether the kernel accepts packets from `source` to its address `own` that arrive on this interface.

        A strict rp_filter drops them where the route to `source` leaves by another interface.
        """
        try:
            await self.look_up(own, src=str(source), iif=socket.if_nametoindex(name))
        except OSError as error:
            if error.errno in {errno.EXDEV, errno.EINVAL}:  # the latter from newer kernels
                return False
            raise
        return True

    async def look_up(self, destination: Address, **packet: int | str) -> Route:
        """Return the kernel's route for a packet to `destination`; nothing is sent.

        Without more it is a packet of the host itself. `iif` (index) and `src`: a packet that arrives there from this
        address and is forwarded. `oif` (index): a packet that the host sends through this interface. `flags`: of
        rtmsg(7). OSError has the kernel's error number, for example ENETUNREACH.
        """
        (route, *_) = await self._dump("route", _GET_ROUTE, dst=str(destination), **packet)
        source = route.get("prefsrc")
        own = IPv4Address(source) if source and destination.version == 4 else None
        return Route(route.get("oif") or 0, own, route.get("table") or RT_TABLE_MAIN)

    async def changes(self, noticed: asyncio.Event | None = None) -> AsyncIterator[None]:
        """Yield immediately, and whenever links, addresses, routes, policy rules or netconf may have changed.

        Yield also after others have set `noticed`.
        A host with a full routing table changes routes all the time: the messages are discarded unread.
        """
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_NETLINK, kind, NETLINK_ROUTE) as events:
            events.bind((0, _GROUPS))
            noticed = noticed or asyncio.Event()
            while True:
                earliest = time.monotonic() + LOOK_SECONDS
                yield
                await wait_until_readable(events.fileno(), noticed)
                await asyncio.sleep(max(SETTLE_SECONDS, earliest - time.monotonic()))
                noticed.clear()
                _discard(events)

    async def status(self, name: str, uptime: int) -> LinkStatus:
        """Return the state and the counters of this interface; `uptime` in seconds is passed through."""
        link = await self._link(name)
        counters = (link and link.get("stats64")) or dict.fromkeys(_COUNTERS, 0)
        return LinkStatus(
            up=bool(link and link["flags"] & _RUNNING),
            bits_per_second=_speed(name),
            bytes_sent=counters["tx_bytes"],
            bytes_received=counters["rx_bytes"],
            packets_sent=counters["tx_packets"],
            packets_received=counters["rx_packets"],
            uptime=uptime,
        )

    async def _link(self, name: str) -> Any:  # noqa: ANN401 - pyroute2 has no types
        if not name:
            return None
        try:
            return (await self._dump("link", _GET_LINK, ifname=name))[0]
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    async def _dump(self, what: str, command: str | tuple[int, int] = "dump", **filters: int | str) -> list[Any]:
        try:
            answers = await getattr(self._netlink, what)(command, **filters)
            return [message async for message in answers] if command == "dump" else list(answers)
        except NetlinkError as error:  # not a subclass of OSError
            raise OSError(error.code, f"{what}: {os.strerror(error.code)}") from error


def _discard(events: socket.socket) -> None:
    """Discard the messages that a netlink socket has received."""
    while True:
        try:
            events.recv(1)
        except BlockingIOError:
            return
        except OSError as error:  # ENOBUFS: some were lost; they would have been discarded
            if error.errno != errno.ENOBUFS:
                raise


def _address(message: Any) -> Interface:  # noqa: ANN401 - pyroute2 has no types
    # On a point-to-point link IFA_ADDRESS is the remote end and IFA_LOCAL the local one.
    return ipaddress.ip_interface(f"{message.get('local') or message.get('address')}/{message['prefixlen']}")


_COUNTERS = ("tx_bytes", "rx_bytes", "tx_packets", "rx_packets")
_SPEED_UNKNOWN = 1_000_000_000
"""Bits per second of a virtual interface, which has no speed; not 0, because clients divide by it."""


def _speed(name: str) -> int:
    try:
        megabits = int(Path(f"/sys/class/net/{name}/speed").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return _SPEED_UNKNOWN
    return megabits * 1_000_000 if megabits > 0 else _SPEED_UNKNOWN
