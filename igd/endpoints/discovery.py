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

from igd.core.request import Refusal
from igd.endpoints.sockets import SocketAddress, UdpServer
from igd.gateway import Gateway
from igd.wire.malformed import Malformed
from igd.wire.upnp import ssdp

log = logging.getLogger(__name__)

SPREAD_SECONDS = 0.1
"""The longest delay of an answer to a multicast search. MX spreads the answers of many devices; this is the only one,
and clients wait for it."""

Message = Callable[[ssdp.Advert, ssdp.Advertiser], bytes]


class Discovery(UdpServer):
    """Two sockets bound to the interface: one receives from the group, the other has the source address of all answers.

    Multicast searches are answered after a delay, unicast ones at once, and a socket bound to the group receives
    nothing else, so the socket tells them apart.
    """

    def __init__(self, gateway: Gateway, root: UUID, advertiser: ssdp.Advertiser, rng: random.Random) -> None:
        super().__init__()
        self._gateway = gateway
        self._root = root
        self._advertiser = advertiser
        self._rng = rng

    async def open(self, interface: str, address: IPv4Address) -> None:
        """Listen; raise OSError if a port is in use or a permission is missing."""
        # Another server may use this port on other interfaces (minidlna, another igd).
        await self._listen(interface, address, ssdp.PORT, reuse_address=True)
        group = await self._listen(interface, IPv4Address(ssdp.GROUP), ssdp.PORT, reuse_address=True)
        membership = struct.pack("=4s4si", socket.inet_aton(ssdp.GROUP), bytes(4), socket.if_nametoindex(interface))
        group.get_extra_info("socket").setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

    async def announce(self, message: Message) -> None:
        """Send `ssdp.alive` or `ssdp.byebye` to each live peer by unicast: WireGuard routes no multicast to peers."""
        addresses = [address for peer in await self._gateway.live_peers() for address in peer.addresses]
        for address in addresses:
            for advert in ssdp.adverts(self._root) if address.version == 4 else ():
                self._send(message(advert, self._advertiser), (str(address), ssdp.PORT))

    def received(self, datagram: bytes, source: SocketAddress, transport: asyncio.DatagramTransport) -> None:
        """Start the answer to a datagram; count a malformed one and do not answer it."""
        try:
            search = ssdp.parse(datagram)
        except Malformed as malformed:
            self._gateway.counters["ssdp", "malformed"] += 1
            log.debug("%s:%s: malformed SSDP message: %s", *source, malformed.reason)
            return
        adverts = ssdp.matches(search.target, self._root) if search else ()
        if not search or not adverts or self._is_busy():
            return
        multicast = transport.get_extra_info("sockname")[0] == ssdp.GROUP
        delay = self._rng.uniform(0, min(search.mx or 0, SPREAD_SECONDS)) if multicast else 0
        self._start(self._answer(adverts, source, delay))

    async def _answer(self, adverts: tuple[ssdp.Advert, ...], destination: SocketAddress, delay: float) -> None:
        if isinstance(await self._gateway.admit(IPv4Address(destination[0])), Refusal):
            self._gateway.counters["ssdp", "refused"] += 1
            return
        self._gateway.counters["ssdp", "answered"] += 1
        await asyncio.sleep(delay)
        for advert in adverts:
            self._send(ssdp.respond(advert, self._advertiser, datetime.now(UTC)), destination)

    def _send(self, message: bytes, destination: SocketAddress) -> None:
        self._transports[0].sendto(message, destination)
