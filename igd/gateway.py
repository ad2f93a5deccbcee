"""Decides on every request: peer, policy, plan of the table, ledger, reply."""

import asyncio
import collections
import functools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Protocol

from igd.core.mapping import (
    AnyMapping,
    Change,
    ControlProtocol,
    Entry,
    Lease,
    Pinhole,
    PortMapping,
    TransportProtocol,
    abridged,
)
from igd.core.peers import Address, Peer, Peers
from igd.core.planner import Planner
from igd.core.policies import Policies
from igd.core.rate_limit import RateLimit
from igd.core.request import (
    ENDLESS,
    ExternalAddress,
    GetExternalAddress,
    GetLinkStatus,
    GetMapping,
    GetMappingAt,
    GetPeerState,
    GetPinholeTimeout,
    GetPinholeTraffic,
    LinkStatus,
    ListMappings,
    Mapped,
    MappingList,
    MapPort,
    PeerState,
    PinholeTimeout,
    PinholeTraffic,
    Refusal,
    RenewPinhole,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
    UnmapPinhole,
    UnmapPorts,
)
from igd.core.unicast import is_unicast
from igd.firewall.backend import FirewallError
from igd.ledger import Ledger
from igd.log_lines import UNKNOWN_SOURCES, cause
from igd.turns import Turns, pieces

log = logging.getLogger(__name__)

LIVE_SECONDS = 180
"""WireGuard's REJECT_AFTER_TIME: a peer without a handshake for so long has no session and cannot be reached."""

REREAD_SECONDS = 0.2
"""The shortest time between two readings of the peers because of unknown sources: junk from them costs little."""

LISTED_AT_ONCE = 128
"""How many mappings are looked at before other requests get their turn: a fifth of a millisecond."""

MAX_WAITING = 4
"""How many changes one peer may have in progress: each takes milliseconds of kernel and disk that all peers share."""

SHOWN = 4
"""How many closed pinholes one log line names."""

ChangeRequest = MapPort | UnmapPorts | UnmapInternal | RenewPinhole | UnmapPinhole


class PeerSource(Protocol):
    """The peers and their state, read from the machine; each method raises OSError."""

    @property
    def last_read(self) -> Peers:
        """The peers as they were read last; none before."""

    async def peers(self, max_age: float = ...) -> Peers:
        """Return the peers as of at most `max_age` seconds before this call, by default a second.

        The same object is returned until they change.
        """

    def reaches(self, address: Address) -> bool:
        """Return whether packets to `address` leave through the tunnel."""

    def routed_elsewhere(self, addresses: Collection[Address]) -> Collection[Address]:
        """Return those of `addresses` to which packets certainly do not leave through the tunnel any more."""

    async def handshakes(self) -> Mapping[str, float]:
        """Return the last handshake of each peer that had one: public key -> time on the clock of the leases."""


@dataclass(kw_only=True, eq=False)
class Gateway:
    """Answers the requests of all protocols; changes of one peer are made one after another.

    `clock` is `boottime`, in seconds. `taken` returns whether another rule translates an external port already, or the
    server itself listens on it; such ports are not mapped. `idle_seconds` returns how long connection tracking keeps a
    flow without packets (OSError, ValueError). If the kernel or the store fails, the request is refused.
    `announced` is the external address as clients see it, `counters` counts by request and outcome, `dropped` counts
    what was sent above a limit, by `subject` and as a text. `on_new_peers` are awaited one after another when the peers
    have changed, before any change is decided, and `on_revoked` called with mappings that the operator has closed.
    `policies` may be replaced while the gateway runs. All long lists are read and written in `turns`.
    """

    policies: Policies
    rate_limit: RateLimit
    ledger: Ledger
    peers: PeerSource
    link: Callable[[], Awaitable[LinkStatus]]
    clock: Callable[[], float]
    rng: random.Random
    taken: Callable[[TransportProtocol, int], bool]
    idle_seconds: Callable[[TransportProtocol], int]
    announced: IPv4Address | None = field(default=None, init=False)
    counters: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter, init=False)
    dropped: collections.Counter[tuple[str | None, str]] = field(default_factory=collections.Counter, init=False)
    on_new_peers: list[Callable[[Peers], Awaitable[None]]] = field(default_factory=list, init=False)
    on_revoked: list[Callable[[Sequence[AnyMapping]], None]] = field(default_factory=list, init=False)
    turns: Turns = field(default_factory=Turns, init=False)
    _followed: Peers | None = field(default=None, init=False)
    _following: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _reread_at: float = field(default=-math.inf, init=False)
    _rereading: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _waiting: collections.Counter[str] = field(default_factory=collections.Counter, init=False)

    # For the endpoints

    def subject(self, source: Address) -> str | None:
        """Return whose limits `source` falls under, at once, by the peers as they were last read.

        That is the public key of the owning peer; all unknown sources share the limits of None.
        """
        owner = self.peers.last_read.owner(source)
        return owner.public_key if owner else None

    def count(self, subject: str | None, cost: int = 1) -> bool:
        """Count a packet, or what costs as much as `cost` of them; return whether the rate of `subject` admits it."""
        within = self.rate_limit.admit(subject, self.clock(), cost)
        if not within:
            self.counters["admission", Refusal.TOO_MANY_REQUESTS.name] += 1
            self.dropped[subject, f"requests above requests_per_second = {self.rate_limit.per_second:g}"] += 1
        return within

    async def identify(self, source: Address) -> Peer | Refusal:
        """Return the peer that owns `source`, whose packet was counted; peers are read again for an unknown source."""
        since = self.clock()
        found = await self._identify(source, self.peers.peers())
        cause.set(UNKNOWN_SOURCES)
        if found is Refusal.NOT_A_PEER:
            found = await self._identify(source, self._reread(since))
        if isinstance(found, Peer):
            cause.set(found.public_key)
        if isinstance(found, Refusal):
            self.counters["admission", found.name] += 1
            log.debug("request from %s refused: %s", source, found.value)
        return found

    async def _identify(self, source: Address, reading: Awaitable[Peers]) -> Peer | Refusal:
        try:
            return (await reading).owner(source) or Refusal.NOT_A_PEER
        except OSError as error:
            log.error("cannot read the peers, request from %s refused: %s", source, error)
            return Refusal.SYSTEM_FAILURE

    async def _reread(self, since: float) -> Peers:
        """Return the peers as of `since` or later, after a pause if they were reread less than REREAD_SECONDS ago."""
        async with self._rereading:
            if self._reread_at < since:
                await asyncio.sleep(self._reread_at + REREAD_SECONDS - self.clock())
                self._reread_at = self.clock()
            return await self.peers.peers(self.clock() - since)

    async def ask(
        self,
        peer: Peer,
        source: Address,
        request: Request,
        protocol: ControlProtocol | None = None,
        *,
        by_operator: bool = False,
    ) -> Reply:
        """Decide on one request that an admitted peer sent from `source`; no request of a client makes it raise.

        A change is decided after new peers were followed, for the peer that owns `source` then. `protocol` is that of
        the request; None if it came in another way. `by_operator`: the operator makes the request for the peer.
        """
        cause.set(peer.public_key)
        found: Peer | Refusal = peer
        if isinstance(request, ChangeRequest):
            found = await self._identify(source, self._read_and_follow())
        if isinstance(found, Peer) and protocol and not self.policies.may_use(found.public_key, protocol):
            reply: Reply = Refusal.PROTOCOL_FORBIDDEN
        else:
            reply = found if isinstance(found, Refusal) else await self._decide(found, source, request)
        outcome = reply.name if isinstance(reply, Refusal) else "GRANTED"
        self.counters[type(request).__name__, outcome] += 1
        level = logging.INFO if isinstance(request, ChangeRequest) else logging.DEBUG
        log.log(
            level,
            "%s%s (%s) requests %s: %s",
            "the operator for " if by_operator else "",
            source,
            found if isinstance(found, Peer) else peer,
            request,
            _for_log(reply),
            extra={"important": not isinstance(reply, Refusal)},
        )
        return reply

    async def _read_and_follow(self) -> Peers:
        peers = await self.peers.peers()
        await self.follow(peers)
        return peers

    async def _decide(self, peer: Peer, source: Address, request: Request) -> Reply:
        match request:
            case MapPort() | UnmapPorts() | UnmapInternal() | RenewPinhole() | UnmapPinhole():
                # a client that disconnects must not leave table, kernel and store inconsistent
                return await asyncio.shield(self._change(peer, source, request))
            case GetExternalAddress():
                address = self.announced if self.ledger.addresses else None  # without them nothing can be mapped
                return ExternalAddress(address) if address else Refusal.NO_EXTERNAL_ADDRESS
            case GetLinkStatus() | GetPinholeTraffic() | GetPinholeTimeout():
                return await self._read_host(peer, request)
            case ListMappings():
                return await self._read_list(peer.public_key, request)
            case _:
                return self._read_table(peer.public_key, request)

    async def _read_list(self, peer: str, request: ListMappings) -> MappingList:
        table, few = self.ledger.table, len(request.ports) <= LISTED_AT_ONCE
        entries = table.port_mappings_among(peer, request.ports) if few else table.of_peer(peer)
        most, found = request.most or len(entries), list[Mapped]()
        for piece in pieces(entries, LISTED_AT_ONCE):
            async with self.turns:
                found += [self._mapped(entry) for entry in piece if _is_asked_for(entry, request)]
            if len(found) >= most:
                break
        return MappingList(tuple(found[:most]))

    def _read_table(self, peer: str, request: GetMapping | GetMappingAt | GetPeerState) -> Reply:
        table = self.ledger.table
        match request:
            case GetMapping(protocol, port, remotes):
                entry = table.find(peer, (protocol, port))
                return self._mapped(entry) if entry and entry.mapping.remotes == remotes else Refusal.NO_SUCH_MAPPING
            case GetMappingAt(index):
                entry = table.port_mapping_at(peer, index)
                return self._mapped(entry) if entry else Refusal.NO_SUCH_MAPPING
            case GetPeerState():
                policy = self.policies.of(peer)
                allowed = ControlProtocol.UPNP in policy.protocols and policy.allows_pinholes()
                return PeerState(table.port_mappings(peer), table.update_id(peer), allowed)

    async def _read_host(self, peer: Peer, request: GetLinkStatus | GetPinholeTraffic | GetPinholeTimeout) -> Reply:
        try:
            match request:
                case GetLinkStatus():
                    return await self.link()
                case GetPinholeTimeout(protocol):
                    return PinholeTimeout(self.idle_seconds(protocol))
                case GetPinholeTraffic(unique_id):
                    entry = self.ledger.table.find_pinhole(peer.public_key, unique_id)
                    if entry is None:
                        return Refusal.NO_SUCH_MAPPING
                    if entry.suspended:
                        return PinholeTraffic(0)
                    (traffic,) = await self.ledger.traffic([entry.mapping])
                    return PinholeTraffic(traffic.packets) if traffic else Refusal.NO_SUCH_MAPPING  # closed meanwhile
        except (FirewallError, OSError, ValueError) as error:
            log.error("%s cannot be answered: %s", type(request).__name__, error)
            return Refusal.SYSTEM_FAILURE

    async def _change(self, peer: Peer, source: Address, request: ChangeRequest) -> Reply:
        """Make a change in the peer's turn. The queue is limited, so that no peer delays the others for long."""
        if self._waiting[peer.public_key] >= MAX_WAITING:
            return Refusal.TOO_MANY_REQUESTS
        self._waiting[peer.public_key] += 1
        try:
            async with self.ledger.peer_lock(peer.public_key):
                match request:
                    case MapPort():
                        return await self._map(peer, source, request)
                    case UnmapPorts():
                        return await self._unmap(peer, request)
                    case UnmapInternal():
                        return await self._unmap_internal(peer, source, request)
                    case RenewPinhole() | UnmapPinhole():
                        return await self._change_pinhole(peer, request)
        except (FirewallError, OSError) as error:
            log.error("%s refused: %s", request, error)
            return Refusal.SYSTEM_FAILURE
        finally:
            self._waiting[peer.public_key] -= 1
            if not self._waiting[peer.public_key]:
                del self._waiting[peer.public_key]

    async def _map(self, peer: Peer, source: Address, request: MapPort) -> Reply:
        refusal = await self._objection(peer, source, request.internal.address)
        if refusal is not None:
            return refusal
        if request.count > 1 and not self.rate_limit.admit(peer.public_key, self.clock(), request.count):
            return Refusal.TOO_MANY_REQUESTS
        taken, policy = functools.partial(self._is_taken_for, peer.public_key), self.policies.of(peer.public_key)
        plan = Planner(
            policy, self.ledger.table, taken, self.rng, peer.public_key, request, self.clock()
        ).plan_port_set()
        if isinstance(plan, Refusal):
            return plan
        remotes = sum(len(change.after.mapping.remotes) for change in plan if change.after)
        if remotes and not self.rate_limit.admit(peer.public_key, self.clock(), remotes):
            return Refusal.TOO_MANY_REQUESTS
        await self.ledger.commit(plan)
        lease = policy.lease(request.lifetime, self.clock())
        granted = [self._granted(change.after, lease) for change in plan if change.after is not None]
        # a port set has one lifetime: the shortest of its ports (RFC 7753 §4.4)
        return replace(granted[0], lifetime=min(each.lifetime for each in granted), count=len(granted))

    def _is_taken_for(self, public_key: str, protocol: TransportProtocol, port: int) -> bool:
        return self.policies.withholds(public_key, protocol, port) or self.taken(protocol, port)

    async def _objection(self, peer: Peer, source: Address, internal: Address) -> Refusal | None:
        """Return why the peer may not map any port to this address, or None.

        The address must be one host's and the peer's own, and packets to it must leave through the tunnel.
        """
        peers, key = await self.peers.peers(), peer.public_key
        if not (peers.may_map(key, source, internal) and is_unicast(internal) and self.peers.reaches(internal)):
            return Refusal.NOT_YOUR_ADDRESS
        if internal.version == 6 and not self.policies.of(key).allows_pinholes():
            return Refusal.NO_PINHOLES
        if not self.policies.of(key).routed_hosts and peers.is_routed_host(internal):
            return Refusal.FORBIDDEN
        if internal.version == 4 and not self.ledger.addresses:
            return Refusal.NO_EXTERNAL_ADDRESS
        return None

    async def _unmap(self, peer: Peer, request: UnmapPorts) -> Reply:
        changes = self.ledger.table.plan_unmap(peer.public_key, request)
        if isinstance(changes, Refusal):
            return changes
        return await self._close(changes) if changes else Refusal.NO_SUCH_MAPPING

    async def _unmap_internal(self, peer: Peer, source: Address, request: UnmapInternal) -> Reply:
        if not (await self.peers.peers()).may_map(peer.public_key, source, request.address):
            return Refusal.NOT_YOUR_ADDRESS
        changes = self.ledger.table.plan_unmap_internal(peer.public_key, request)
        return changes if isinstance(changes, Refusal) else await self._close(changes)

    async def _change_pinhole(self, peer: Peer, request: RenewPinhole | UnmapPinhole) -> Reply:
        table, key = self.ledger.table, peer.public_key
        if isinstance(request, UnmapPinhole):
            changes = table.plan_unmap_pinhole(key, request)
            return changes if isinstance(changes, Refusal) else await self._close(changes)
        lease = self.policies.of(key).lease(request.lifetime, self.clock())
        plan = table.plan_renew_pinhole(key, request, lease)
        if isinstance(plan, Refusal):
            return plan
        await self.ledger.commit([plan])
        assert plan.after is not None, "a renewal"
        return self._granted(plan.after, lease)

    async def _close(self, changes: Sequence[Change]) -> Unmapped:
        await self.ledger.commit(changes)
        return Unmapped(tuple(change.before.mapping for change in changes if change.before))

    # For maintenance, announcements and the operator

    async def follow(self, peers: Peers) -> None:
        """Await `on_new_peers`, unless they were called with these peers last."""
        async with self._following:
            if peers is not self._followed:
                requester = cause.set(None)  # what is logged here about others does not come out of its budget
                try:
                    for follow in self.on_new_peers:
                        await follow(peers)
                finally:
                    cause.reset(requester)
                self._followed = peers

    @property
    def is_changing(self) -> bool:
        """Whether a change is in progress; it may have been decided on earlier peers and routes."""
        return bool(self._waiting)

    async def changes_so_far(self) -> None:
        """Wait until the changes that are in progress now have been made or refused."""
        for peer in list(self._waiting):
            async with self.ledger.peer_lock(peer):
                pass

    def is_mapped(self, mapping: AnyMapping) -> bool:
        """Return whether the peer has a mapping that is named by the same internal endpoint, perhaps a new one."""
        return self.ledger.table.find_internal(mapping.peer, mapping.protocol, mapping.internal) is not None

    def report_revoked(self, mappings: Sequence[AnyMapping]) -> None:
        """Call `on_revoked`: the operator has closed these mappings, and no client has requested that."""
        if mappings:
            for listener in self.on_revoked:
                listener(mappings)

    async def live_peers(self) -> list[Peer]:
        """Return the peers with a recent handshake, which can be reached; OSError."""
        handshakes = await self.peers.handshakes()
        oldest = self.clock() - LIVE_SECONDS
        peers = (await self.peers.peers()).all
        return [peer for peer in peers if handshakes.get(peer.public_key, oldest) > oldest]

    async def mappings(self) -> list[Mapped]:
        """Return all mappings of all peers as they are now, oldest first."""
        found: list[Mapped] = []
        for piece in pieces(list(self.ledger.table), LISTED_AT_ONCE):
            async with self.turns:
                found += map(self._mapped, piece)
        return found

    def _granted(self, entry: Entry, lease: Lease) -> Mapped:
        """Return what a client is granted that requested this lease: of a static mapping just that."""
        return self._mapped(replace(entry, lease=lease) if entry.lease.static else entry)

    def _mapped(self, entry: Entry) -> Mapped:
        """Return the mapping with a lifetime of at least one second, because 0 is ENDLESS; static ones have that."""
        lifetime = ENDLESS if entry.lease.static else max(1, entry.lease.remaining(self.clock()))
        return Mapped(entry.mapping, lifetime, suspended=entry.suspended)


def _is_asked_for(entry: Entry, request: ListMappings) -> bool:
    mapping = entry.mapping
    return (
        isinstance(mapping, PortMapping)
        and request.protocol in (None, mapping.protocol)
        and mapping.external_port in request.ports
    )


def _for_log(reply: Reply) -> str:
    if isinstance(reply, Refusal):
        return f"{reply.name}, {reply.value}"
    if isinstance(reply, Unmapped):  # UPnP names a pinhole by number only
        closed = [str(each) for each in reply.mappings if isinstance(each, Pinhole)]
        return f"GRANTED, {abridged(closed, SHOWN)}" if closed else "GRANTED"
    if not isinstance(reply, Mapped):
        return "GRANTED"
    return f"GRANTED, {reply.mapping}{f' and the next {reply.count - 1} ports' if reply.count > 1 else ''}"
