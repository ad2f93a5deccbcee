"""Changes that no client requests: leases run out, peers are removed, addresses change, stored leases are resumed."""

import asyncio
import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from igd.core.mapping import AnyMapping, Change, Entry, Lease, PortMapping, abridged
from igd.core.peers import Address, Peers
from igd.core.policies import Policies
from igd.core.unicast import is_unicast
from igd.firewall.backend import FirewallError
from igd.gateway import LIVE_SECONDS, Gateway
from igd.log_lines import of_peer
from igd.policy_changes import PolicyChanges, objections
from igd.silent_peers import SilentPeers
from igd.static_mappings import StaticMappings

log = logging.getLogger(__name__)

FLAP_SECONDS = 0.4
"""How long an address must be routed elsewhere before its mappings end: routes are replaced by removing and adding."""

_REPLACED = "a static mapping takes its place"

SHOWN = 4
"""How many closed mappings one log line names."""

Holder = tuple[str, Address]
"""Whose packets a mapping admits: a peer's public key, and the internal address."""


class Maintenance:
    """Ends or renews the mappings of a gateway as time, peers and addresses change.

    If the kernel or the source of the peers fails, the failure is logged and the change is made later.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._ledger = gateway.ledger
        self._peers = gateway.peers
        self._clock = gateway.clock
        self._checked: Peers | None = None  # the peers against which all mappings were checked, and their routes
        self._moved_since: dict[Holder, float] = {}  # when an address was first seen routed elsewhere
        self._static = StaticMappings(gateway)
        self._silent = SilentPeers(gateway, self._impose)
        self._policy_changes = PolicyChanges(gateway, self._static, self._impose)
        gateway.on_new_peers.append(self._end_lost)

    @property
    def _policies(self) -> Policies:
        return self._gateway.policies

    @property
    def warnings(self) -> list[str]:
        """A sentence for each static mapping that does not stand, and one while leases cannot be saved."""
        return [*self._static.problems, *self._ledger.warnings]

    async def start(
        self, stored: Iterable[Entry], announced: IPv4Address | None, matched: Iterable[IPv4Address]
    ) -> None:
        """Resume the stored mappings that are still allowed, and open the static ones; FirewallError or OSError."""
        self._gateway.announced = announced
        peers = await self._peers.peers()
        stored = list(stored)
        static = self._static.at_start(peers, stored)
        replaced = {entry.mapping.key for entry in static}
        keep: list[Entry] = []
        drop: dict[str, list[Entry]] = {}  # by reason
        for entry in stored:
            reason = _REPLACED if entry.mapping.key in replaced else next(self._objections(entry, peers), None)
            (keep if reason is None else drop.setdefault(reason, [])).append(entry)
        keep = [*static, *(replace(entry, lease=self._resumed(entry)) for entry in keep)]
        for reason, entries in drop.items():
            log.info("not resumed, %s: %s", reason, abridged(list(map(self._text, entries)), SHOWN))
        await self._ledger.take_over(keep, itertools.chain.from_iterable(drop.values()), matched)

    def _resumed(self, entry: Entry) -> Lease:
        """Return a stored lease within limits: the operator may have lowered the longest lifetime.

        After a reboot no peer has a handshake yet, so that an endless lease leaves time for one.
        """
        now, lease = self._clock(), entry.lease
        least = now + LIVE_SECONDS if lease.endless else lease.expires
        return replace(
            lease, expires=min(max(lease.expires, least), now + self._policies.of(entry.mapping.peer).max_lifetime)
        )

    def _objections(self, entry: Entry, peers: Peers) -> Iterator[str]:
        """Yield the reasons for which a stored mapping is not resumed."""
        mapping = entry.mapping
        if not entry.lease.endless and entry.lease.expires <= self._clock():  # `wake` decides on endless ones
            yield "the lease has expired"
        if not peers.still_owns(*_holder(entry)):
            yield "the peer no longer owns the address"
        if not is_unicast(mapping.internal.address):
            yield "the address is not one host's"
        if isinstance(mapping, PortMapping) and self._gateway.taken(*mapping.key):
            yield "the port is taken"
        yield from objections(entry, peers, self._policies)

    def _text(self, entry: Entry) -> str:
        return f"{entry.mapping} ({self._policies.label(entry.mapping.peer)})"

    async def set_addresses(
        self,
        announced: IPv4Address | None,
        matched: Iterable[IPv4Address],
        update_site: Callable[[], None] = lambda: None,
    ) -> None:
        """Set the external addresses: the one `announced` to clients, and those `matched` in packets.

        `update_site` (Ledger.repair) sets the interface of the way out.
        """
        if announced != self._gateway.announced:
            self._gateway.announced = None  # clients learn of an address only while its packets pass
        await asyncio.shield(self._ledger.set_addresses(matched, update_site))
        self._gateway.announced = announced

    async def wake(self) -> None:
        """End or renew the leases that have run out, and retry what failed before."""
        await asyncio.shield(self._wake())

    async def _wake(self) -> None:
        await self._ledger.repair_if_dirty()
        expired = self._ledger.table.expired(self._clock())
        handshakes: Mapping[str, float] | None = {}
        failure: OSError | None = None
        if any(entry.lease.endless for entry in expired):
            try:
                handshakes = await self._peers.handshakes()
            except OSError as error:
                handshakes, failure = None, error
        await self._impose(expired, lambda entry: self._when_expired(entry, handshakes), "closed, lease expired")
        if failure is not None:
            self._retry_later(failure)

    def _when_expired(self, entry: Entry, handshakes: Mapping[str, float] | None) -> Change | None:
        """Return the end or the renewal of an expired lease, or None.

        An endless lease is renewed from the peer's last handshake, and left alone if the handshakes are unknown.
        """
        now = self._clock()
        if entry.lease.expires > now or (entry.lease.endless and handshakes is None):
            return None
        if not entry.lease.endless or handshakes is None or entry.mapping.peer not in handshakes:
            return Change(entry, None)
        # an active peer repeats its handshake only every two minutes, hence LIVE_SECONDS
        handshake = min(handshakes[entry.mapping.peer], now)
        lease = Lease(
            handshake + max(self._policies.of(entry.mapping.peer).default_lifetime, LIVE_SECONDS), endless=True
        )
        return Change(entry, replace(entry, lease=lease) if lease.expires > now else None)

    async def follow_policies(self) -> list[AnyMapping]:
        """Make the mappings fit the gateway's policies, which were replaced; return those that were closed. OSError.

        What fails is done by the next `recheck_peers`.
        """
        self._policy_changes.begin()
        await self.recheck_peers()
        return self._policy_changes.closed

    async def recheck_peers(self) -> None:
        """Close the mappings whose peers were removed or no longer own the internal address; OSError.

        After `recheck_routes`, or a failure, also those whose internal address is routed elsewhere. Open the static
        mappings that can stand, and suspend or resume those of silent peers.
        """
        peers = await self._peers.peers(0)
        await self._gateway.follow(peers)
        if peers is not self._checked:
            await self._end_lost(peers)
        try:
            await asyncio.shield(self._policy_changes.make_fit(peers))
            await asyncio.shield(self._static.open(peers))
            await asyncio.shield(self._silent.recheck())
        except FirewallError as error:
            self._retry_later(error)

    async def _end_lost(self, peers: Peers) -> None:
        holders = set(map(_holder, self._ledger.table))
        elsewhere = self._peers.routed_elsewhere({address for _, address in holders})
        # a change in progress may have been decided on earlier peers and routes, and is not yet in the table
        self._checked = None if self._gateway.is_changing else peers
        lost = {holder for holder in holders if not peers.still_owns(*holder)}
        moved = {holder for holder in holders - lost if holder[1] in elsewhere}
        now = self._clock()
        self._moved_since = {holder: self._moved_since.get(holder, now) for holder in moved}
        settled = {holder for holder, since in self._moved_since.items() if now - since >= FLAP_SECONDS}
        closed = await self._close(lost, "closed, the peer no longer owns the address")
        settled_closed = await self._close(settled, "closed, the tunnel is no longer the way to the address")
        if not (closed and settled_closed and settled == moved):
            self._checked = None

    async def recheck_routes(self) -> None:
        """Do the same after a change of the host's addresses or routes; after a failure `recheck_peers` repeats it."""
        with contextlib.suppress(OSError):
            self._checked = None
            await self.recheck_peers()
            remaining = max(self._moved_since.values(), default=-math.inf) + FLAP_SECONDS - self._clock()
            if remaining > 0:
                await asyncio.sleep(remaining)
                self._checked = None
                await self.recheck_peers()

    async def _close(self, holders: Collection[Holder], why: str) -> bool:
        """Close all mappings of these holders; return False if a change failed."""
        found = [entry for entry in self._ledger.table if _holder(entry) in holders] if holders else ()
        closing = self._impose(found, lambda entry: Change(entry, None) if _holder(entry) in holders else None, why)
        return await asyncio.shield(closing)

    async def _impose(self, entries: Iterable[Entry], decide: Callable[[Entry], Change | None], why: str) -> bool:
        """Apply `decide` to all entries of the peers that have one of `entries`, each peer in its turn.

        The peers' changes share transactions. Return False if a change failed.
        """
        peers = {entry.mapping.peer for entry in entries}
        outcomes = await asyncio.gather(*(self._impose_on(peer, decide, why) for peer in peers))
        errors = [error for error in outcomes if error is not None]
        for error in errors:
            self._retry_later(error)
        return not errors

    async def _impose_on(
        self, peer: str, decide: Callable[[Entry], Change | None], why: str
    ) -> FirewallError | OSError | None:
        try:
            async with self._ledger.peer_lock(peer):
                decided = map(decide, self._ledger.table.of_peer(peer))
                changes = [change for change in decided if change is not None]
                await self._ledger.commit(changes, imposed=True)
        except (FirewallError, OSError) as error:
            return error
        ended = [str(change.before.mapping) for change in changes if change.before and not _is_renewal(change)]
        if ended:
            log.info("%s: %s (%s)", why, abridged(ended, SHOWN), self._policies.label(peer), extra=of_peer(peer))
        return None

    def _retry_later(self, error: Exception) -> None:
        log.error("mappings not opened, closed or renewed, retrying: %s", error)
        self._ledger.retry_later()


def _holder(entry: Entry) -> Holder:
    return entry.mapping.peer, entry.mapping.internal.address


def _is_renewal(change: Change) -> bool:
    return bool(change.before and change.after and change.before.suspended == change.after.suspended)
