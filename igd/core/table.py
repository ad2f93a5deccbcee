"""The heart: which mappings there are, until when, and what a request would change."""

import heapq
from collections.abc import Iterable, Iterator

from igd.core.mapping import Change, Entry, Key, Lease, Mapping, PortMapping, Protocol, Remote
from igd.core.request import Refusal


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

    def free(self, key: Key) -> bool:
        """Tell whether nobody holds this key, or is about to."""
        return key not in self._entries and key not in self._reserved

    def plan_map(self, mapping: Mapping, lease: Lease, quota: int) -> Change | Refusal:
        """Plan a new entry, or the renewal of the one that this peer has for the same internal address.

        The same key for another peer, or for another host behind the same peer, is a conflict (WANIPConnection:1
        §2.4.16: a mapping is overwritten only by its own internal client).
        """
        entry = Entry(mapping, lease)
        held = self._entries.get(mapping.key)
        if mapping.key in self._reserved:
            return Refusal.CONFLICT
        if held is None:
            if len(self._by_peer.get(mapping.peer, {})) >= quota:
                return Refusal.QUOTA
            return Change(None, entry)
        if held.mapping.peer != mapping.peer or held.mapping.internal.address != mapping.internal.address:
            return Refusal.CONFLICT
        return Change(held, entry)

    def plan_unmap(
        self, public_key: str, protocol: Protocol, first: int, last: int, remotes: tuple[Remote, ...] | None = None
    ) -> list[Change]:
        """Plan the end of all this peer's port mappings with external ports from `first` to `last`.

        With `remotes`, of those that are for just these.
        """
        return [
            Change(entry, None)
            for entry in self.of_peer(public_key)
            if isinstance(entry.mapping, PortMapping)
            and entry.mapping.protocol is protocol
            and first <= entry.mapping.external_port <= last
            and remotes in (None, entry.mapping.remotes)
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

    def accept(self, changes: Iterable[Change]) -> None:
        """Make planned changes true; each `before` must be what the table holds."""
        for change in changes:
            key = change.key
            self._reserved.discard(key)
            assert self._entries.get(key) == change.before, "a change planned on another table"
            if change.after is None:
                self._forget(key)
            else:
                self._entries[key] = change.after
                self._by_peer.setdefault(change.after.mapping.peer, {})[key] = change.after
                heapq.heappush(self._expiries, (change.after.lease.expires, key))
        if len(self._expiries) > 2 * len(self._entries) + 64:  # renewals leave their old expiries behind
            self._expiries = [(entry.lease.expires, key) for key, entry in self._entries.items()]
            heapq.heapify(self._expiries)

    def _forget(self, key: Key) -> None:
        peer = self._entries.pop(key).mapping.peer
        of_peer = self._by_peer[peer]
        del of_peer[key]
        if not of_peer:
            del self._by_peer[peer]
