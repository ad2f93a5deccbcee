"""The heart: which mappings there are, until when, and what a request would change."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from igd.core.mapping import AnyMapping, Change, Endpoint, Entry, Key, Lease, PortMapping, Remote, TransportProtocol
from igd.core.request import Refusal

HOLD_DOWN = 120.0
"""Seconds for which a port that was closed is offered to its former holder alone: packets for him may be on their way,
and he may be back at once (RFC 6887 §15). TCP's maximum segment lifetime."""

HELD_DOWN = 64
"""How many closed ports are kept so for one peer: else it could keep all from the others by opening and closing."""

REMOTES = 16
"""For how many remotes one mapping may be: each is an element, and an interval set is copied with each change."""


class Table:
    """All mappings of one gateway, each key once, oldest first.

    The `plan_*` methods and `expired` only tell what would change. What is planned is reserved while kernel and store
    are asked, so that nobody else is granted the same, and then accepted or released; until then no list shows it. A
    peer has one plan under way at most.
    """

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._by_peer: dict[str, dict[Key, Entry]] = {}
        self._expiries: list[tuple[float, Key]] = []
        self._reserved: set[Key] = set()
        self._by_internal: dict[tuple[str, TransportProtocol, Endpoint], Key] = {}  # of those with a nonce
        self._former: dict[Key, tuple[str, float]] = {}  # of port mappings: who held it, and until when it is his
        self._former_of: dict[str, dict[Key, None]] = {}  # the same by peer, oldest first

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def of_peer(self, public_key: str) -> list[Entry]:
        """Give this peer's entries, oldest first."""
        return list(self._by_peer.get(public_key, {}).values())

    def find(self, public_key: str, key: Key) -> Entry | None:
        """Give this peer's entry of that key; another peer's is none of its business."""
        return self._by_peer.get(public_key, {}).get(key)

    def find_internal(self, public_key: str, protocol: TransportProtocol, internal: Endpoint) -> Entry | None:
        """Give this peer's entry that NAT-PMP or PCP asked for with this internal endpoint."""
        key = self._by_internal.get((public_key, protocol, internal))
        return None if key is None else self._entries[key]

    def offers(self, protocol: TransportProtocol, port: int, public_key: str, internal: Endpoint, now: float) -> bool:
        """Tell whether this external port may be chosen for such a mapping.

        Nobody else holds it, is about to, or held it lately; nor does another host hold its companion, the same port of
        the other protocol (RFC 6886 §3.3).
        """
        key, other = (
            (protocol, port),
            (TransportProtocol.UDP if protocol is TransportProtocol.TCP else TransportProtocol.TCP, port),
        )
        former, until = self._former.get(key, (public_key, now))
        companion = self._entries.get(other)
        return (
            key not in self._entries
            and self._reserved.isdisjoint({key, other})
            and (former == public_key or until <= now)
            and (companion is None or companion.mapping.internal.address == internal.address)
        )

    def plan_map(
        self, mapping: AnyMapping, lease: Lease, quota: int, *, adds_remotes: bool = False
    ) -> Change | Refusal:
        """Plan a new entry, or the renewal of the one that this peer has for the same internal address.

        The same key for another peer, or for another host behind the same peer, is a conflict (WANIPConnection:1
        §2.4.16: a mapping is overwritten only by its own internal client). Where several protocols have asked for a
        mapping, the longest of what they asked for is granted, and the nonce stays. A renewal that `adds_remotes` is
        for those of before too.
        """
        held = self._entries.get(mapping.key)
        if adds_remotes and held is not None:
            mapping = replace(mapping, remotes=tuple(dict.fromkeys((*held.mapping.remotes, *mapping.remotes))))
        if len(mapping.remotes) > REMOTES:
            return Refusal.TOO_MANY_REMOTES
        if mapping.key in self._reserved:
            return Refusal.CONFLICT
        if held is not None:
            return _plan_renewal(held, mapping, lease)
        return Change(None, Entry(mapping, lease)) if self.has_room(mapping.peer, quota) else Refusal.QUOTA

    def has_room(self, public_key: str, quota: int, planned: int = 0) -> bool:
        """Tell whether this peer may have one more than it has and is planned."""
        return len(self._by_peer.get(public_key, {})) + planned < quota

    def plan_unmap(
        self,
        public_key: str,
        protocol: TransportProtocol,
        first: int,
        last: int,
        remotes: tuple[Remote, ...] | None = None,
    ) -> list[Change]:
        """Plan the end of all this peer's port mappings with external ports from `first` to `last`.

        With `remotes`, of those that are for just these.
        """
        if first == last:
            found = [entry for entry in [self.find(public_key, (protocol, first))] if entry is not None]
        else:
            found = self.of_peer(public_key)
        return [
            Change(entry, None)
            for entry in found
            if isinstance(entry.mapping, PortMapping)
            and entry.mapping.protocol is protocol
            and first <= entry.mapping.external_port <= last
            and remotes in (None, entry.mapping.remotes)
        ]

    def plan_unmap_internal(
        self,
        public_key: str,
        protocol: TransportProtocol | None,
        address: IPv4Address | IPv6Address,
        port: int | None,
        count: int = 1,
    ) -> list[Change]:
        """Plan the end of what NAT-PMP or PCP asked for with this internal address, protocol and port (None: all).

        From this port on, of a `count` of ports.
        """
        if protocol is not None and port is not None and count == 1:
            held = self.find_internal(public_key, protocol, Endpoint(address, port))
            return [] if held is None else [Change(held, None)]
        return [
            Change(entry, None)
            for entry in self.of_peer(public_key)
            if entry.mapping.nonce is not None
            and entry.mapping.internal.address == address
            and protocol in (None, entry.mapping.protocol)
            and (port is None or port <= entry.mapping.internal.port < port + count)
        ]

    def expired(self, now: float) -> list[Entry]:
        """Give the entries whose leases have run out at `now`."""
        found: dict[Key, Entry] = {}
        while (expiry := self.next_expiry()) is not None and expiry <= now:
            _, key = heapq.heappop(self._expiries)
            found[key] = self._entries[key]
        for key, entry in found.items():  # still held: whoever asks before they are closed hears of them again
            heapq.heappush(self._expiries, (entry.lease.expires, key))
        return list(found.values())

    def next_expiry(self) -> float | None:
        """Tell when the next lease runs out, on the clock of the leases."""
        while self._expiries:
            expires, key = self._expiries[0]
            entry = self._entries.get(key)
            if entry is not None and entry.lease.expires == expires:
                return expires
            heapq.heappop(self._expiries)
        return None

    def reserve(self, changes: Iterable[Change]) -> None:
        """Keep everybody else from the keys of these planned changes."""
        keys = {change.key for change in changes}
        assert keys.isdisjoint(self._reserved), "a plan on top of another that is under way"
        self._reserved |= keys

    def release(self, changes: Iterable[Change]) -> None:
        """Forget these planned changes."""
        self._reserved -= {change.key for change in changes}

    def accept(self, changes: Iterable[Change], now: float) -> None:
        """Make planned changes true; each `before` must be what the table holds."""
        for change in changes:
            key = change.key
            self._reserved.discard(key)
            assert self._entries.get(key) == change.before, "a change planned on another table"
            if change.before is not None and self._by_internal.get(_internal(change.before.mapping)) == key:
                del self._by_internal[_internal(change.before.mapping)]
            if change.after is None:
                self._forget(key, now)
            else:
                self._hold(key, change.after)
        if len(self._expiries) > 2 * len(self._entries) + 64:  # renewals leave their old expiries behind
            self._expiries = [(entry.lease.expires, key) for key, entry in self._entries.items()]
            heapq.heapify(self._expiries)

    def _hold(self, key: Key, entry: Entry) -> None:
        self._release_former(key)
        self._entries[key] = entry
        self._by_peer.setdefault(entry.mapping.peer, {})[key] = entry
        if entry.mapping.nonce is not None:
            self._by_internal[_internal(entry.mapping)] = key
        heapq.heappush(self._expiries, (entry.lease.expires, key))

    def _forget(self, key: Key, now: float) -> None:
        peer = self._entries.pop(key).mapping.peer
        of_peer = self._by_peer[peer]
        del of_peer[key]
        if not of_peer:
            del self._by_peer[peer]
        if len(key) == 2:
            self._hold_down(key, peer, now)

    def _hold_down(self, key: Key, peer: str, now: float) -> None:
        while self._former and (oldest := next(iter(self._former))) and self._former[oldest][1] <= now:
            self._release_former(oldest)
        self._former[key] = (peer, now + HOLD_DOWN)  # of a key that is held there is none: the newest are the last
        own = self._former_of.setdefault(peer, {})
        own[key] = None
        if len(own) > HELD_DOWN:
            self._release_former(next(iter(own)))

    def _release_former(self, key: Key) -> None:
        if key in self._former:
            peer, _ = self._former.pop(key)
            del self._former_of[peer][key]
            if not self._former_of[peer]:
                del self._former_of[peer]


def _internal(mapping: AnyMapping) -> tuple[str, TransportProtocol, Endpoint]:
    return mapping.peer, mapping.protocol, mapping.internal


def _plan_renewal(held: Entry, mapping: AnyMapping, lease: Lease) -> Change | Refusal:
    before, nonce = held.mapping, mapping.nonce
    if (before.peer, before.internal.address) != (mapping.peer, mapping.internal.address):
        return Refusal.CONFLICT
    if nonce is None and (before.nonce is None or before.internal != mapping.internal):
        return Change(held, Entry(mapping, lease))
    if before.internal != mapping.internal:  # whoever has a nonce names mappings by what they lead to
        return Refusal.CONFLICT
    if nonce and before.nonce and nonce != before.nonce:
        return Refusal.OTHER_NONCE
    if before.nonce is None and mapping.remotes != before.remotes:  # whoever asked before would be cut off
        return Refusal.CONFLICT
    remotes = mapping.remotes if nonce is not None else before.remotes or mapping.remotes  # a filter stays
    longer = max(lease, held.lease, key=lambda each: (each.endless, each.expires))
    description = before.description or mapping.description if nonce is not None else mapping.description
    shared = replace(mapping, nonce=nonce or before.nonce or b"", description=description, remotes=remotes)
    return Change(held, Entry(shared, longer))
