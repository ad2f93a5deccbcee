"""The counter: request -> peer -> policy -> table plan -> ledger -> reply, and nowhere else."""

import asyncio
import collections
import functools
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Protocol

from igd.core.mapping import Entry, PortMapping, TransportProtocol
from igd.core.peers import Address, Peer, Peers
from igd.core.planner import Planner
from igd.core.policy import Policy
from igd.core.rate_limit import RateLimit
from igd.core.request import (
    ExternalAddress,
    GetExternalAddress,
    GetLinkStatus,
    GetMapping,
    LinkStatus,
    ListMappings,
    Mapped,
    MappingList,
    MapPort,
    Refusal,
    Refused,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
    UnmapPorts,
)
from igd.firewall.backend import FirewallError
from igd.ledger import Ledger

log = logging.getLogger(__name__)

LIVE_SECONDS = 180
"""WireGuard's REJECT_AFTER_TIME: without a handshake for so long a peer has no session, and cannot be reached."""

WAITING = 4
"""How many changes one peer may have under way: each is a few milliseconds of kernel and disk that all wait for."""


Changing = MapPort | UnmapPorts | UnmapInternal


class PeerSource(Protocol):
    """Where the gateway learns who is who; each raises OSError when the machine cannot tell."""

    async def peers(self) -> Peers:
        """Give the peers as they were at most a second ago."""

    async def reaches(self, address: Address) -> bool:
        """Tell whether packets to `address` leave through the tunnel."""

    async def handshakes(self) -> Mapping[str, float]:
        """Give each peer's last handshake (public key -> moment on the clock of the leases); none, no item."""


class Gateway:
    """Answers requests, a peer's changes one after another; has never heard of a protocol.

    `clock` is monotonic, in seconds. `taken` tells the ports that are led elsewhere already, or to the server itself:
    nobody gets them. A failure of the kernel or the store refuses the request at hand.
    """

    def __init__(  # noqa: PLR0913 - the counter is where all parts meet
        self,
        *,
        policy: Policy,
        rate_limit: RateLimit,
        ledger: Ledger,
        peers: PeerSource,
        link: Callable[[], Awaitable[LinkStatus]],
        clock: Callable[[], float],
        rng: random.Random,
        taken: Callable[[TransportProtocol, int], bool],
    ) -> None:
        self._planner = functools.partial(Planner, policy, ledger.table, taken, rng)
        self._rate_limit = rate_limit
        self._ledger = ledger
        self._peers = peers
        self._link = link
        self._clock = clock
        self._waiting: collections.Counter[str] = collections.Counter()
        self.announced: IPv4Address | None = None
        self.counters: collections.Counter[tuple[str, str]] = collections.Counter()

    # What endpoints call

    async def admit(self, source: Address) -> Peer | Refused:
        """Tell which peer sends from `source`, and count this packet against its rate."""
        found = await self._identify(source)
        # whoever is no peer shares one bucket with all who are none
        admitted = self._rate_limit.admit(found.public_key if isinstance(found, Peer) else None, self._clock())
        if admitted and isinstance(found, Peer):
            return found
        reason = found if admitted and isinstance(found, Refusal) else Refusal.TOO_MANY_REQUESTS
        self.counters["admission", reason.name] += 1
        log.debug("%s is not admitted: %s", source, reason.value)
        return Refused(reason)

    async def _identify(self, source: Address) -> Peer | Refusal:
        try:
            return (await self._peers.peers()).owner(source) or Refusal.NOT_A_PEER
        except OSError as error:
            log.error("the peers cannot be read: %s", error)  # noqa: TRY400 - it says all
            return Refusal.SYSTEM_FAILURE

    async def ask(self, peer: Peer, source: Address, request: Request) -> Reply:
        """Decide on one request that an admitted peer sent from `source`; never raises for what a client can send."""
        reply = await self._decide(peer, source, request)
        outcome = reply.reason.name if isinstance(reply, Refused) else "GRANTED"
        self.counters[type(request).__name__, outcome] += 1
        log.log(
            logging.INFO if isinstance(request, Changing) else logging.DEBUG,
            "%s (%s) asks %s: %s",
            source,
            peer,
            request,
            _told_in_log(reply),
        )
        return reply

    async def _decide(self, peer: Peer, source: Address, request: Request) -> Reply:
        match request:
            case MapPort() | UnmapPorts() | UnmapInternal():
                # A client that hangs up must not leave table, kernel and store apart.
                return await asyncio.shield(self._change_in_turn(peer, source, request))
            case GetMapping(protocol, port, remotes):
                entry = self._ledger.table.find(peer.public_key, (protocol, port))
                if entry is None or entry.mapping.remotes != remotes:
                    return Refused(Refusal.NO_SUCH_MAPPING)
                return self._told(entry)
            case ListMappings():
                held = self._ledger.table.of_peer(peer.public_key)
                return MappingList(tuple(self._told(entry) for entry in held if isinstance(entry.mapping, PortMapping)))
            case GetExternalAddress():
                known = self.announced if self._ledger.addresses else None  # else nothing can be mapped
                return ExternalAddress(known) if known else Refused(Refusal.NO_EXTERNAL_ADDRESS)
            case GetLinkStatus():
                return await self._link_status()

    async def _link_status(self) -> LinkStatus | Refused:
        try:
            return await self._link()
        except OSError as error:
            log.error("the external interface cannot be read: %s", error)  # noqa: TRY400 - it says all
            return Refused(Refusal.SYSTEM_FAILURE)

    async def _change_in_turn(self, peer: Peer, source: Address, request: Changing) -> Reply:
        """Keep the queue short, so that nobody waits long behind a peer that asks for much."""
        if self._waiting[peer.public_key] >= WAITING:
            return Refused(Refusal.TOO_MANY_REQUESTS)
        self._waiting[peer.public_key] += 1
        try:
            return await self._change(peer, source, request)
        finally:
            self._waiting[peer.public_key] -= 1
            if not self._waiting[peer.public_key]:
                del self._waiting[peer.public_key]

    async def _change(self, peer: Peer, source: Address, request: Changing) -> Reply:
        try:
            async with self._ledger.turn(peer.public_key):
                if isinstance(request, MapPort):
                    return await self._map(peer, source, request)
                if isinstance(request, UnmapInternal):
                    return await self._unmap_internal(peer, source, request)
                return await self._unmap(peer, request)
        except (FirewallError, OSError) as error:
            log.error("%s could not be carried out: %s", request, error)  # noqa: TRY400 - it says all
            return Refused(Refusal.SYSTEM_FAILURE)

    async def _map(self, peer: Peer, source: Address, request: MapPort) -> Reply:
        if not await self._may_map(peer, source, request.internal.address):
            return Refused(Refusal.NOT_YOUR_ADDRESS)
        if request.internal.address.version == 4 and not self._ledger.addresses:
            return Refused(Refusal.NO_EXTERNAL_ADDRESS)
        if request.count > 1 and not self._rate_limit.admit(peer.public_key, self._clock(), request.count):
            return Refused(Refusal.TOO_MANY_REQUESTS)
        plan = self._planner(peer.public_key, request, self._clock()).plan_port_set()
        if isinstance(plan, Refusal):
            return Refused(plan)
        await self._ledger.commit(plan)
        granted = [self._told(change.after) for change in plan if change.after is not None]
        # a row has one lifetime, and so the shortest (RFC 7753 §4.4)
        return replace(granted[0], lifetime=min(each.lifetime for each in granted), count=len(granted))

    async def _may_map(self, peer: Peer, source: Address, internal: Address) -> bool:
        """AllowedIPs say whose an address is; where its packets go, beyond the tunnel's own networks, routes say."""
        peers = await self._peers.peers()
        if not peers.may_map(peer.public_key, source, internal):
            return False
        return peers.on_link(internal) or await self._peers.reaches(internal)

    async def _unmap(self, peer: Peer, request: UnmapPorts) -> Reply:
        changes = self._ledger.table.plan_unmap(peer.public_key, request)
        if not changes:
            return Refused(Refusal.NO_SUCH_MAPPING)
        await self._ledger.commit(changes)
        return Unmapped(tuple(change.before.mapping for change in changes if change.before))

    async def _unmap_internal(self, peer: Peer, source: Address, request: UnmapInternal) -> Reply:
        if not (await self._peers.peers()).may_map(peer.public_key, source, request.address):
            return Refused(Refusal.NOT_YOUR_ADDRESS)
        changes = self._ledger.table.plan_unmap_internal(peer.public_key, request)
        if isinstance(changes, Refusal):
            return Refused(changes)
        if changes:
            await self._ledger.commit(changes)
        return Unmapped(tuple(change.before.mapping for change in changes if change.before))

    # What the operator and the announcements ask

    async def live_peers(self) -> list[Peer]:
        """The peers that shook hands lately, and so can be sent something; OSError."""
        handshakes = await self._peers.handshakes()
        oldest = self._clock() - LIVE_SECONDS
        peers = (await self._peers.peers()).all
        return [peer for peer in peers if handshakes.get(peer.public_key, oldest) > oldest]

    def mappings(self) -> list[Mapped]:
        """Give all mappings of all peers, oldest first, for the operator."""
        return [self._told(entry) for entry in self._ledger.table]

    def _told(self, entry: Entry) -> Mapped:
        """Tell at least one second: what stands has not run out, and 0 would be ENDLESS."""
        return Mapped(entry.mapping, max(1, entry.lease.remaining(self._clock())))


def _told_in_log(reply: Reply) -> str:
    if isinstance(reply, Refused):
        return f"{reply.reason.name}, {reply.reason.value}"
    if not isinstance(reply, Mapped):
        return "GRANTED"
    return f"GRANTED, {reply.mapping}{f' and {reply.count - 1} more in a row' if reply.count > 1 else ''}"
