"""SSDP on UDP 1900 of the WireGuard interface, and of no other: answers searches, announces start and stop."""

import asyncio
import logging
import random
import socket
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from uuid import UUID

from igd.core.request import Refused
from igd.gateway import Gateway
from igd.wire.malformed import Malformed
from igd.wire.upnp import ssdp

log = logging.getLogger(__name__)

SPREAD_SECONDS = 0.1
"""The longest delay of an answer to a multicast search. MX spreads the answers of many devices; this is the only one,
and clients wait for it."""

PENDING = 256
"""Searches that may wait for their answer at once; further ones are dropped."""

Message = Callable[[ssdp.Advert, ssdp.Advertiser], bytes]


class Discovery:
    """Two sockets bound to the interface: one receives from the group, the other has the source address of all answers.

    Multicast searches are answered after a delay, unicast ones at once, and a socket bound to the group receives
    nothing else, so the socket tells them apart.
    """

    def __init__(self, gateway: Gateway, root: UUID, advertiser: ssdp.Advertiser, rng: random.Random) -> None:
        self._gateway = gateway
        self._root = root
        self._advertiser = advertiser
        self._rng = rng
        self._transports: list[asyncio.DatagramTransport] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, interface: str, address: IPv4Address) -> None:
        """Listen; raise OSError if a port is in use or a permission is missing."""
        await self._listen(_socket(interface, str(address)), _Listener(self, spread=0.0))
        await self._listen(_group_socket(interface), _Listener(self, SPREAD_SECONDS))

    async def _listen(self, sock: socket.socket, listener: "_Listener") -> None:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: listener, sock=sock)
        self._transports.append(transport)

    async def close(self) -> None:
        """Stop listening, and drop the answers that are still to be sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in self._transports:
            transport.close()

    async def announce(self, message: Message) -> None:
        """Send `ssdp.alive` or `ssdp.byebye` to each live peer by unicast: WireGuard routes no multicast to peers."""
        addresses = [address for peer in await self._gateway.live_peers() for address in peer.addresses]
        for address in addresses:
            for advert in ssdp.adverts(self._root) if address.version == 4 else ():
                self._send(message(advert, self._advertiser), (str(address), ssdp.PORT))

    def received(self, data: bytes, source: tuple[str, int], spread: float) -> None:
        """Start the answer to a datagram; count a malformed one and do not answer it."""
        try:
            search = ssdp.parse(data)
        except Malformed as malformed:
            self._gateway.counters["ssdp", "malformed"] += 1
            log.debug("%s:%s: malformed SSDP message: %s", *source, malformed.reason)
            return
        adverts = ssdp.matches(search.target, self._root) if search else ()
        if not search or not adverts or len(self._tasks) >= PENDING:
            return
        delay = self._rng.uniform(0, min(search.mx or 0, spread))
        task = asyncio.create_task(self._answer(adverts, source, delay))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, adverts: tuple[ssdp.Advert, ...], destination: tuple[str, int], delay: float) -> None:
        if isinstance(await self._gateway.admit(IPv4Address(destination[0])), Refused):
            self._gateway.counters["ssdp", "refused"] += 1
            return
        self._gateway.counters["ssdp", "answered"] += 1
        await asyncio.sleep(delay)
        for advert in adverts:
            self._send(ssdp.respond(advert, self._advertiser, datetime.now(UTC)), destination)

    def _send(self, message: bytes, destination: tuple[str, int]) -> None:
        self._transports[0].sendto(message, destination)


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, discovery: Discovery, spread: float) -> None:
        self._discovery = discovery
        self._spread = spread

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._discovery.received(data, addr, self._spread)

    def error_received(self, exc: Exception) -> None:  # a peer that has no endpoint yet, or was just removed
        log.debug("SSDP message not sent: %s", exc)


def _socket(interface: str, address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        # Another server may use this port on other interfaces (minidlna, another igd).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.bind((address, ssdp.PORT))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"UDP {address}:{ssdp.PORT}: {error.strerror}") from error
    return sock


def _group_socket(interface: str) -> socket.socket:
    membership = struct.pack("=4s4si", socket.inet_aton(ssdp.GROUP), bytes(4), socket.if_nametoindex(interface))
    sock = _socket(interface, ssdp.GROUP)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except OSError:
        sock.close()
        raise
    return sock
