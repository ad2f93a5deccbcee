"""All mappings and their leases, and what a request would change."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from igd.core.mapping import AnyMapping, Change, Endpoint, Entry, Key, Lease, PortMapping, TransportProtocol
from igd.core.oldest_first import OldestFirst
from igd.core.request import Refusal, RenewPinhole, UnmapInternal, UnmapPinhole, UnmapPorts
from igd.core.unique_ids import UniqueIds

HOLD_DOWN = 120.0
"""Seconds for which a closed port is offered only to the peer that held it (RFC 6887 §15): TCP's maximum segment
lifetime. Packets for that peer may still be under way, and the peer may soon ask for the port again."""

MAX_HELD_DOWN = 64
"""How many closed ports are held down for one peer, so that no peer can block all ports by opening and closing them."""

MAX_FORMER_PEERS = 4096
"""How many peers without port mappings keep their update ids: more than most servers have."""

MAX_REMOTES = 16
"""How many remotes one mapping may admit."""


class HoldDown(NamedTuple):
    """A closed port, and the peer to which alone it is offered until then, on the clock of leases."""

    key: tuple[TransportProtocol, int]
    peer: str
    until: float


class Table:
    """All mappings of one gateway, one for each key, oldest first.

    The `plan_*` methods and `expired` change nothing. A planned change is reserved while kernel and store are written,
    so that no other peer is granted the same port, and is then accepted or released; lists do not show it before it is
    accepted. A peer has at most one plan in progress.
    """

    def __init__(self) -> None:
        self.unique_ids = UniqueIds()
        self._entries: dict[Key, Entry] = {}
        self._by_peer: dict[str, dict[Key, Entry]] = {}
        self._port_mappings: dict[str, OldestFirst[Key]] = {}  # of each peer that has any
        self._update_ids: dict[str, int] = {}
        self._forgotten = 0  # the highest update id that was dropped: no peer is given one of its own a second time
        self._expiries: list[tuple[float, Key]] = []
        self._reserved: set[Key] = set()
        self._by_internal: dict[
            tuple[str, TransportProtocol, Endpoint], Key
        ] = {}  # of mappings that are named by internal endpoint
        self._remotes: Counter[str] = Counter()  # how many the mappings of a peer admit
        self._held_down: dict[Key, tuple[str, float]] = {}  # the peer that held a port, and until when it has priority
        self._held_down_by_peer: dict[str, dict[Key, None]] = {}  # the same keys, oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def holds(self, key: Key) -> bool:
        """Return whether there is, or will be after a planned change, a mapping with this key."""
        return key in self._entries or key in self._reserved

    def of_peer(self, public_key: str) -> list[Entry]:
        """Return the peer's entries, oldest first."""
        return list(self._by_peer.get(public_key, {}).values())

    def find(self, public_key: str, key: Key) -> Entry | None:
        """Return the peer's entry with this key; None if it has none, even if another peer holds the key."""
        return self._by_peer.get(public_key, {}).get(key)

    def port_mapping_at(self, public_key: str, index: int) -> Entry | None:
        """Return the peer's port mapping at this index (from 0), oldest first; None beyond the last."""
        own = self._port_mappings.get(public_key, ())
        return self._entries[own[index]] if index < len(own) else None

    def port_mappings_among(self, public_key: str, ports: range) -> list[Entry]:
        """Return the peer's port mappings with these external ports, oldest first: each port is looked up."""
        own = self._port_mappings.get(public_key)
        keys = own.among((protocol, port) for port in ports for protocol in TransportProtocol) if own else ()
        return [self._entries[key] for key in keys]

    def port_mappings(self, public_key: str) -> int:
        """Return how many port mappings the peer has."""
        return len(self._port_mappings.get(public_key, ()))

    def update_id(self, public_key: str) -> int:
        """Return how often the peer's port mappings have changed since the start; 0 follows 2**32 - 1.

        SystemUpdateID (WANIPConnection:2 §2.3.28) counts every change, that of a lease as well: a control point that
        shows leases reads them anew. What leaves an entry as it was is no change. The number of a peer that had no port
        mappings for long may also go up without a change.
        """
        return self._update_ids.get(public_key, self._forgotten) % 2**32

    def find_pinhole(self, public_key: str, unique_id: int) -> Entry | None:
        """Return the peer's pinhole with this UniqueID, or None."""
        key = self.unique_ids.key(unique_id)
        return None if key is None else self.find(public_key, key)

    def find_internal(self, public_key: str, protocol: TransportProtocol, internal: Endpoint) -> Entry | None:
        """Return the peer's entry that is claimed by this internal endpoint, or None."""
        key = self._by_internal.get((public_key, protocol, internal))
        return None if key is None else self._entries[key]

    def offers(self, protocol: TransportProtocol, port: int, public_key: str, internal: Endpoint, now: float) -> bool:
        """Return whether the gateway may choose this external port for such a mapping.

        The port must not be mapped, reserved, or held down for another peer, and another host must not have its
        companion, the same port of the other protocol (RFC 6886 §3.3).
        """
        key, companion_key = (protocol, port), (protocol.companion, port)
        former, until = self._held_down.get(key, (public_key, now))
        companion = self._entries.get(companion_key)
        return (
            key not in self._entries
            and self._reserved.isdisjoint({key, companion_key})
            and (former == public_key or until <= now)
            and (companion is None or companion.mapping.internal.address == internal.address)
        )

    def plan_map(
        self, mapping: AnyMapping, lease: Lease, quota: int, *, adds_remotes: bool = False, owned: bool = False
    ) -> Change | Refusal:
        """Plan a new entry, or the renewal of the peer's entry with the same key and internal address.

        With `adds_remotes`, a renewal also admits the remotes of the entry that it renews. A port that the operator
        reserved for this peer (`owned`) is granted whoever has its companion.
        """
        held = self._entries.get(mapping.key)
        if adds_remotes and held is not None:
            mapping = replace(mapping, remotes=tuple(dict.fromkeys((*held.mapping.remotes, *mapping.remotes))))
        if len(mapping.remotes) > MAX_REMOTES:
            return Refusal.TOO_MANY_REMOTES
        if mapping.key in self._reserved:
            return Refusal.CONFLICT
        if held is not None:
            return _plan_renewal(held, mapping, lease)
        if not owned and self._is_reserved_for_another_host(mapping):
            return Refusal.CONFLICT
        return Change(None, Entry(mapping, lease)) if self.has_room(mapping.peer, quota) else Refusal.QUOTA

    def _is_reserved_for_another_host(self, mapping: AnyMapping) -> bool:
        if not isinstance(mapping, PortMapping):
            return False
        entry = self._entries.get((mapping.protocol.companion, mapping.external_port))
        companion = entry and entry.mapping
        return (
            isinstance(companion, PortMapping)
            and companion.reserves_companion
            and companion.internal.address != mapping.internal.address
        )

    def has_room(self, public_key: str, quota: int, planned: int = 0) -> bool:
        """Return whether the peer may have one more entry besides its own and the `planned` ones."""
        return len(self._by_peer.get(public_key, {})) + planned < quota

    def has_room_for_remotes(self, public_key: str, quota: int, added: int) -> bool:
        """Return whether the peer's mappings may admit so many remotes more, or fewer.

        Together they admit as many as the peer may have entries, or MAX_REMOTES: each remote is a rule, or elements of
        a set, and all of them may be added, deleted or restored in one transaction, for which all other peers wait.
        """
        return added <= 0 or self._remotes[public_key] + added <= max(quota, MAX_REMOTES)

    def plan_unmap(self, public_key: str, request: UnmapPorts) -> list[Change] | Refusal:
        """Plan the removal of all the peer's port mappings that `request` names, but for static ones."""
        few = len(request.ports) <= self.port_mappings(public_key)
        named = [
            entry
            for entry in (self.port_mappings_among(public_key, request.ports) if few else self.of_peer(public_key))
            if isinstance(entry.mapping, PortMapping)
            and entry.mapping.protocol is request.protocol
            and entry.mapping.external_port in request.ports
            and request.remotes in (None, entry.mapping.remotes)
        ]
        removable = [Change(entry, None) for entry in named if not entry.lease.static]
        return Refusal.STATIC if named and not removable else removable

    def plan_unmap_internal(self, public_key: str, request: UnmapInternal) -> list[Change] | Refusal:
        """Plan the removal of the peer's mappings that `request` names and that admit its claim; static ones stay."""
        named = self._named_by(public_key, request)
        removable = [entry for entry in named if not entry.lease.static]
        if named and not removable and request.port is not None:
            return Refusal.STATIC
        admitting = [Change(entry, None) for entry in removable if entry.mapping.claim.admits(request.claim)]
        return Refusal.OTHER_NONCE if removable and not admitting else admitting

    def plan_renew_pinhole(self, public_key: str, request: RenewPinhole, lease: Lease) -> Change | Refusal:
        """Plan this lease for the pinhole that `request` names.

        What NAT-PMP or PCP requested as well is not shortened. A static pinhole stays as it is, as when it is mapped.
        """
        held = self.find_pinhole(public_key, request.unique_id)
        if held is None:
            return Refusal.NO_SUCH_MAPPING
        if held.lease.static:
            return Change(held, replace(held, suspended=False))
        longer = _longer(lease, held.lease) if held.mapping.claim.by_internal else lease
        return Change(held, Entry(held.mapping, longer))

    def plan_unmap_pinhole(self, public_key: str, request: UnmapPinhole) -> list[Change] | Refusal:
        """Plan the removal of the pinhole that `request` names, whatever protocol it was requested by."""
        held = self.find_pinhole(public_key, request.unique_id)
        if held is None:
            return Refusal.NO_SUCH_MAPPING
        return Refusal.STATIC if held.lease.static else [Change(held, None)]

    def _named_by(self, public_key: str, request: UnmapInternal) -> list[Entry]:
        if request.protocol is not None and request.port is not None and request.count == 1:
            held = self.find_internal(public_key, request.protocol, Endpoint(request.address, request.port))
            return [] if held is None else [held]
        return [
            entry
            for entry in self.of_peer(public_key)
            if entry.mapping.claim.by_internal
            and entry.mapping.internal.address == request.address
            and request.protocol in (None, entry.mapping.protocol)
            and (request.port is None or request.port <= entry.mapping.internal.port < request.port + request.count)
        ]

    def expired(self, now: float) -> list[Entry]:
        """Return the entries whose leases have run out at `now`, in the order in which they ran out."""
        found: dict[Key, Entry] = {}
        while (expiry := self.next_expiry()) is not None and expiry <= now:
            _, key = heapq.heappop(self._expiries)
            found[key] = self._entries[key]
        for key, entry in found.items():  # they are returned again until they are removed
            heapq.heappush(self._expiries, (entry.lease.expires, key))
        return list(found.values())

    def next_expiry(self) -> float | None:
        """Return when the next lease runs out, on the clock of the leases."""
        while self._expiries:
            expires, key = self._expiries[0]
            entry = self._entries.get(key)
            if entry is not None and entry.lease.expires == expires:
                return expires
            heapq.heappop(self._expiries)
        return None

    def reserve(self, changes: Sequence[Change]) -> None:
        """Withhold the keys of these planned changes, and their UniqueIDs, from other requests."""
        keys = {change.key for change in changes}
        assert keys.isdisjoint(self._reserved), "the key of another planned change"
        self._reserved |= keys
        for mapping in _opened(changes):
            self.unique_ids.take(mapping)

    def release(self, changes: Sequence[Change]) -> None:
        """Drop these planned changes."""
        self._reserved -= {change.key for change in changes}
        for mapping in _opened(changes):
            self.unique_ids.release(mapping)

    def accept(self, changes: Iterable[Change], now: float) -> None:
        """Apply planned changes; each `before` must equal the entry in the table."""
        for change in changes:
            key = change.key
            self._reserved.discard(key)
            assert self._entries.get(key) == change.before, "the change was planned on another state of the table"
            self._count_remotes(change)
            if len(key) == 2 and change.before != change.after:  # a port mapping
                self._update_ids[change.peer] = self._update_ids.get(change.peer, self._forgotten) + 1
            if change.before is not None and self._by_internal.get(_internal(change.before.mapping)) == key:
                del self._by_internal[_internal(change.before.mapping)]
            if change.after is None:
                self._remove(key, now)
            else:
                self._put(key, change.after)
        if len(self._update_ids) > 2 * len(self._port_mappings) + MAX_FORMER_PEERS:
            self._forget_update_ids()
        if len(self._expiries) > 2 * len(self._entries) + 64:  # renewals leave outdated expiries behind
            self._expiries = [(entry.lease.expires, key) for key, entry in self._entries.items()]
            heapq.heapify(self._expiries)

    def _forget_update_ids(self) -> None:
        """Drop the update ids of peers without port mappings; most of them were removed."""
        dropped = self._update_ids.keys() - self._port_mappings.keys()
        self._forgotten = max(self._forgotten, *(self._update_ids.pop(peer) for peer in dropped))

    def _count_remotes(self, change: Change) -> None:
        for entry, sign in ((change.before, -1), (change.after, 1)):
            if entry is not None and entry.mapping.remotes:
                self._remotes[entry.mapping.peer] += sign * len(entry.mapping.remotes)

    def _put(self, key: Key, entry: Entry) -> None:
        self._end_hold_down(key)
        self._entries[key] = entry
        self._by_peer.setdefault(entry.mapping.peer, {})[key] = entry
        self.unique_ids.take(entry.mapping)
        if isinstance(entry.mapping, PortMapping):
            self._port_mappings.setdefault(entry.mapping.peer, OldestFirst()).add(key)
        if entry.mapping.claim.by_internal:
            self._by_internal[_internal(entry.mapping)] = key
        heapq.heappush(self._expiries, (entry.lease.expires, key))

    def _remove(self, key: Key, now: float) -> None:
        mapping = self._entries.pop(key).mapping
        peer = mapping.peer
        of_peer = self._by_peer[peer]
        del of_peer[key]
        if not of_peer:
            del self._by_peer[peer]
        self.unique_ids.retire(mapping)
        if isinstance(mapping, PortMapping):
            self._port_mappings[peer].remove(key)
            if not self._port_mappings[peer]:
                del self._port_mappings[peer]
            self._hold_down(mapping.key, peer, now + HOLD_DOWN, now)

    def resume_hold_downs(self, held_down: Iterable[HoldDown], now: float) -> None:
        """Resume the hold-downs of an earlier run, in the order in which they end, before any port is closed."""
        for key, peer, until in held_down:
            if key not in self._entries:
                self._hold_down(key, peer, until, now)

    def _hold_down(self, key: Key, peer: str, until: float, now: float) -> None:
        while self._held_down and (oldest := next(iter(self._held_down))) and self._held_down[oldest][1] <= now:
            self._end_hold_down(oldest)
        self._held_down[key] = (peer, until)  # the newest is last: a mapped key is not in the dictionary
        own = self._held_down_by_peer.setdefault(peer, {})
        own[key] = None
        if len(own) > MAX_HELD_DOWN:
            self._end_hold_down(next(iter(own)))

    def _end_hold_down(self, key: Key) -> None:
        if key in self._held_down:
            peer, _ = self._held_down.pop(key)
            del self._held_down_by_peer[peer][key]
            if not self._held_down_by_peer[peer]:
                del self._held_down_by_peer[peer]


def _opened(changes: Iterable[Change]) -> Iterator[AnyMapping]:
    """Yield the mappings that these changes open."""
    return (change.after.mapping for change in changes if change.after and not change.before)


def _internal(mapping: AnyMapping) -> tuple[str, TransportProtocol, Endpoint]:
    return mapping.peer, mapping.protocol, mapping.internal


_REPLACED: tuple[str, ...] = ()
_KEPT: tuple[str, ...] = ("internal", "peer", "description", "remotes", "claim")


def _plan_renewal(held: Entry, mapping: AnyMapping, lease: Lease) -> Change | Refusal:
    """Plan to renew `held`: replace it, let both claims share one mapping, or keep it as it is if it is static.

    A shared mapping has the longer lease and the joined claim. It keeps its own value of each field that the row names,
    if it has one.
    """
    before, claim = held.mapping, mapping.claim
    moved = before.internal != mapping.internal
    rows: tuple[tuple[bool, Refusal | tuple[str, ...]], ...] = (
        # only its own internal client overwrites a mapping (WANIPConnection:1 §2.4.16)
        (before.peer != mapping.peer or before.internal.address != mapping.internal.address, Refusal.CONFLICT),
        (held.lease.static and (moved or before.remotes != mapping.remotes), Refusal.STATIC),
        (held.lease.static, _KEPT),
        (not claim.by_internal and not before.claim.by_internal, _REPLACED),
        (not claim.by_internal and moved, _REPLACED),
        # a request by internal endpoint never redirects another mapping
        (moved, Refusal.CONFLICT),
        (not before.claim.admits(claim), Refusal.OTHER_NONCE),
        # a filter would cut off sources that the mapping admits
        (not before.claim.by_internal and before.remotes != mapping.remotes, Refusal.CONFLICT),
        (isinstance(before, PortMapping) and before.reserves_companion, ("description", "remotes")),
        (claim.by_internal, ("description",)),
        (True, ("remotes",)),
    )
    outcome = next(outcome for applies, outcome in rows if applies)
    if isinstance(outcome, Refusal):
        return outcome
    if outcome == _KEPT:
        return Change(held, replace(held, suspended=False))
    if outcome == _REPLACED:
        return Change(held, Entry(mapping, lease))
    kept = {field: getattr(before, field) or getattr(mapping, field) for field in outcome}
    joined = replace(mapping, claim=before.claim.joined(claim), **kept)
    return Change(held, Entry(joined, _longer(lease, held.lease)))


def _longer(one: Lease, other: Lease) -> Lease:
    return max(one, other, key=lambda each: (each.endless, each.expires))
