"""SSDP on UDP 1900 of the WireGuard interface, and of no other: answers searches, announces start, stop and changes."""

import asyncio
import functools
import logging
import random
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from igd.core.mapping import ControlProtocol, Endpoint
from igd.core.peers import Address, Interface, Peer
from igd.core.request import Refusal
from igd.endpoints.sockets import SocketAddress, UdpServer, bind, peer_address
from igd.gateway import Gateway
from igd.wire.malformed import Malformed
from igd.wire.upnp import ssdp

log = logging.getLogger(__name__)

SPREAD_SECONDS = 0.1
"""The longest delay of an answer to a multicast search. MX spreads the answers of many devices; this is the only one,
and clients wait for it."""

Message = Callable[[ssdp.Advert, ssdp.Advertiser, Endpoint], bytes]


class Discovery(UdpServer):
    """A socket on each address, which sends all answers, and one for each group, which only receives.

    Multicast searches are answered after a delay, unicast ones at once, and a socket bound to the group receives
    nothing else, so the socket tells them apart. `http` returns where a peer reaches the HTTP server, best at the
    given address of ours, or None: nothing is advertised where no description can be read.
    A peer whose `protocols` exclude UPnP gets no answers and no announcements.
    """

    def __init__(
        self,
        interface: str,
        gateway: Gateway,
        advertiser: ssdp.Advertiser,
        http: Callable[[Address, Address], Endpoint | None],
        rng: random.Random,
    ) -> None:
        super().__init__("ssdp", interface, ssdp.PORT, gateway)
        self._advertiser = advertiser
        self._http = http
        self._rng = rng
        self._greeted: set[Address] = set()  # to which the gateway was announced while they were live

    async def listen_on(self, addresses: Sequence[Interface]) -> list[str]:
        """Serve on these addresses, and on the groups of their IP versions; as UdpServer.listen_on."""
        return await self._sockets.follow(addresses, ssdp.GROUPS)

    def _bind(self, address: Address) -> socket.socket:
        # Another server may use this port on other interfaces (minidlna, another igd).
        sock = bind(socket.SOCK_DGRAM, self._interface, address, self._port, reuse_address=True)
        if address.is_multicast:
            try:
                _join(sock, address, socket.if_nametoindex(self._interface))
            except OSError as error:
                sock.close()
                reason = f"UDP {Endpoint(address, self._port)}: cannot join: {error.strerror}"
                raise OSError(error.errno, reason) from error
        return sock

    async def announce(self, message: Message) -> None:
        """Send `ssdp.alive` or `ssdp.byebye` to each live peer by unicast: WireGuard routes no multicast to peers."""
        live = await self._live()
        self._greeted = set(live)
        await self._announce_to(live, message)

    async def greet(self) -> None:
        """Send `ssdp.alive` to the peers that are live now and were not at the last announcement."""
        live = await self._live()
        late = [address for address in live if address not in self._greeted]
        self._greeted = set(live)
        await self._announce_to(late, ssdp.alive)

    async def announce_change(self, boot_id: int) -> None:
        """Announce that the server's addresses have changed, with this new BOOTID.UPNP.ORG (§1.2.4)."""
        try:
            await self.announce(functools.partial(ssdp.update, boot_id))
        finally:
            self._advertiser = replace(self._advertiser, boot_id=boot_id)
        await self.announce(ssdp.alive)

    async def _live(self) -> list[Address]:
        """Return the addresses of the live peers that may use UPnP."""
        live = await self._gateway.live_peers()
        return [address for peer in live if self._may_use(peer) for address in peer.addresses]

    def _may_use(self, peer: Peer) -> bool:
        return self._gateway.policies.may_use(peer.public_key, ControlProtocol.UPNP)

    async def _announce_to(self, addresses: Iterable[Address], message: Message) -> None:
        for address in addresses:
            own = self._sockets.nearest(address)
            http = self._http(address, own) if own else None
            if own and http:
                for advert in ssdp.adverts(self._advertiser.root):
                    self._send(message(advert, self._advertiser, http), (str(address), ssdp.PORT), own)
            await asyncio.sleep(0)  # requests do not wait for thousands of these

    async def _respond(self, datagram: bytes, source: SocketAddress, own: Address) -> None:
        """Answer a search of a peer; count what is not answered."""
        address = peer_address(source)
        peer = await self._gateway.identify(address)
        if isinstance(peer, Refusal):
            self._count("refused")
            return
        if not self._may_use(peer):
            self._count("forbidden")
            return
        try:
            search = ssdp.parse(datagram)
        except Malformed as malformed:
            self._count("malformed")
            log.debug("%s port %s: malformed SSDP message: %s", *source[:2], malformed.reason)
            return
        if search is None:
            return
        adverts = ssdp.matches(search.target, self._advertiser.root, version_1_only=search.version_1_only)
        if adverts:
            self._count("answered")
            await asyncio.sleep(self._rng.uniform(0, min(search.mx or 0, SPREAD_SECONDS)) if own.is_multicast else 0)
            self._answer(adverts, address, source, own)

    def _answer(self, adverts: tuple[ssdp.Advert, ...], peer: Address, source: SocketAddress, own: Address) -> None:
        sender = self._sockets.nearest(peer) if own.is_multicast else own
        http = self._http(peer, sender) if sender else None
        if sender and http:
            for advert in adverts:
                self._send(ssdp.respond(advert, self._advertiser, http, datetime.now(UTC)), source, sender)


def _join(sock: socket.socket, group: Address, index: int) -> None:
    """Join a group on the interface with this index."""
    if group.version == 4:
        membership = struct.pack("=4s4si", group.packed, bytes(4), index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, struct.pack("=16si", group.packed, index))
