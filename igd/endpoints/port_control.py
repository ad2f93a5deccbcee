"""NAT-PMP and PCP on UDP port 5351 of the WireGuard interface: requests and announcements."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from igd.core.mapping import AnyMapping, ControlProtocol, PortMapping
from igd.core.peers import Address, Peer
from igd.core.request import Refusal, Reply, Request
from igd.endpoints.sockets import SocketAddress, UdpServer, peer_address
from igd.gateway import Gateway
from igd.wire.malformed import InvalidRequest
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp, requests
from igd.wire.pcp.opcodes import Announce

log = logging.getLogger(__name__)

ANNOUNCEMENTS = 10
FIRST_INTERVAL = 0.25
"""Announcements are repeated; the interval, first this many seconds, doubles each time (RFC 6886 §3.2.1)."""


CLOSED_SECONDS = (0.0, 0.25, 1.0, 3.0)
"""Pauses before each message that a mapping was closed: datagrams get lost."""


class PortControl(UdpServer):
    """Receives requests on each address of the interface, and responds from the address that received them.

    `epoch` returns the number of seconds since state was lost (RFC 6886 §3.6, RFC 6887 §8.5); `third_party` enables the
    option THIRD_PARTY, and may be changed at any time.
    """

    def __init__(self, interface: str, gateway: Gateway, epoch: Callable[[], int], *, third_party: bool) -> None:
        super().__init__("port control", interface, pcp.SERVER_PORT, gateway)
        self._epoch = epoch
        self.third_party = third_party
        self._announcer = _Announcer(gateway, epoch, self._announce_to)
        self._telling: set[asyncio.Task[None]] = set()
        gateway.on_revoked.append(self._tell_of)

    async def close(self) -> None:
        """Stop listening and announcing; requests under way get no response."""
        await self._announcer.close()
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        await super().close()

    def announce(self, *, lost: bool) -> None:
        """Announce to live peers the external address, their mappings, and whether mappings were `lost`."""
        self._announcer.start(lost=lost)

    def _tell_of(self, revoked: Sequence[AnyMapping]) -> None:
        """Tell the PCP clients whose mappings the operator has closed; NAT-PMP has no message for that."""
        theirs = [mapping for mapping in revoked if mapping.claim.nonce]
        if theirs:
            task = asyncio.create_task(self._tell_closed(theirs))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell_closed(self, mappings: Iterable[AnyMapping]) -> None:
        """Send each client, by an unsolicited response (RFC 6887 §14.2), that its mapping has a lifetime of 0.

        A client that has mapped the port again meanwhile hears no more of the former mapping.
        """
        for pause in CLOSED_SECONDS:
            await asyncio.sleep(pause)
            for mapping in mappings:
                if not self._gateway.is_mapped(mapping):
                    datagram = requests.encode_closed(mapping, self._epoch(), self._gateway.announced)
                    self._announce_to(mapping.internal.address, datagram)
                    await asyncio.sleep(0)  # requests do not wait for thousands of these

    async def _respond(self, datagram: bytes, source: SocketAddress, own: Address) -> None:
        try:
            response = await self._response_to(datagram, peer_address(source))
        except InvalidRequest as invalid:
            self._count("malformed")
            log.debug("invalid request from %s port %s: %s", *source[:2], invalid.reason)
            response = invalid.response
        if response is not None:
            self._send(response, source, own)

    async def _response_to(self, datagram: bytes, source: Address) -> bytes | None:
        """Return the response to a datagram, None if it is dropped; raise InvalidRequest."""
        sender = await self._gateway.identify(source)
        announced = self._gateway.announced
        exchange = requests.decode(datagram, source, self._epoch(), announced, third_party=self.third_party)
        reply: Reply | None = None
        if isinstance(sender, Refusal):
            reply = sender
        elif isinstance(exchange.request, Request):
            reply = await self._gateway.ask(sender, source, exchange.request, exchange.protocol)
        return exchange.encode(reply, self._epoch(), self._gateway.announced)

    def _announce_to(self, peer: Address, datagram: bytes) -> None:
        own = self._sockets.nearest(peer)
        if own is not None:
            self._send(datagram, (str(peer), pcp.CLIENT_PORT), own)


class _Announcer:
    """Sends announcements to each peer with a live session, because a multicast reaches no peer on WireGuard.

    `epoch` is as in PortControl; `send` sends a datagram to an address of a peer.
    """

    def __init__(self, gateway: Gateway, epoch: Callable[[], int], send: Callable[[Address, bytes], None]) -> None:
        self._gateway = gateway
        self._epoch = epoch
        self._send = send
        self._task: asyncio.Task[None] | None = None
        self._lost = False  # and not yet announced ten times

    def start(self, *, lost: bool) -> None:
        """Announce ten times from now on, in place of the announcements under way.

        `lost`: mappings were lost, and PCP clients must request theirs again (RFC 6887 §14.1).
        """
        if self._task is not None:
            self._task.cancel()
        self._lost = lost or self._lost
        self._task = asyncio.create_task(self._repeat())

    async def close(self) -> None:
        """Stop announcing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _repeat(self) -> None:
        for number in range(ANNOUNCEMENTS):
            try:
                await self._announce()
            except OSError as error:
                log.warning("announcements to peers were not sent: %s", error)
            await asyncio.sleep(FIRST_INTERVAL * 2**number)
        self._lost = False

    async def _announce(self) -> None:
        external, live = self._gateway.announced, await self._gateway.live_peers()
        pcp_peers, natpmp_peers = (self._users(each, live) for each in (ControlProtocol.PCP, ControlProtocol.NAT_PMP))
        for peer in live:
            for address in peer.addresses:
                if self._lost and peer.public_key in pcp_peers:
                    self._send(address, pcp.encode_response(0, self._epoch(), Announce()))
                if external is not None and address.version == 4 and peer.public_key in natpmp_peers:
                    self._send(address, natpmp.encode_address(natpmp.Result.SUCCESS, self._epoch(), external))
        for mapped in await self._gateway.mappings():
            unreachable = external is None and isinstance(mapped.mapping, PortMapping)
            if mapped.mapping.claim.nonce and mapped.mapping.peer in pcp_peers and not unreachable:
                self._send(mapped.mapping.internal.address, requests.encode_update(mapped, self._epoch(), external))
                await asyncio.sleep(0)  # requests do not wait for thousands of these

    def _users(self, protocol: ControlProtocol, peers: Iterable[Peer]) -> set[str]:
        """Return the public keys of those of the peers that may use this protocol."""
        keys = (peer.public_key for peer in peers)
        return {key for key in keys if self._gateway.policies.may_use(key, protocol)}
