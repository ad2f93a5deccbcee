"""Places for what peers hold open, such as connections: a limit in all and for each peer, and a fair share for all."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Places(Generic[Holder]):
    """`total` places, of which one peer may have `per_peer`.

    While all places are taken, the oldest holder of the peer that has the most makes room for a peer that has at least
    two fewer. So a peer that has less than its share, which is `total` divided by the number of peers that have a
    place, always gets one. Peers are named by any hashable; all unknown sources are one peer, None.
    """

    def __init__(self, total: int, per_peer: int) -> None:
        self._total = total
        self._free = total  # negative while holders have more places than there are
        self._per_peer = per_peer
        self._held: dict[Hashable, dict[Holder, None]] = {}  # oldest first

    def resize(self, total: int, per_peer: int) -> None:
        """Have so many places from now on. Holders above them keep theirs, and places that they leave stay empty."""
        self._free += total - self._total
        self._total, self._per_peer = total, per_peer

    def is_open_to(self, peer: Hashable) -> bool:
        """Return whether `peer` would get a place now."""
        own = len(self._held.get(peer, ()))
        return own < self._per_peer and (self._free > 0 or len(self._largest()) >= own + 2)

    def take(self, peer: Hashable, holder: Holder) -> Holder | None:
        """Give a place to `holder` of `peer`, to which a place is open; return the holder that lost its place, or None.

        `release` of the one that lost its place does nothing.
        """
        displaced: Holder | None = None
        if self._free > 0:
            self._free -= 1
        else:
            largest = self._largest()
            displaced = next(iter(largest))
            del largest[displaced]
        self._held.setdefault(peer, {})[holder] = None
        return displaced

    def release(self, peer: Hashable, holder: Holder) -> None:
        """Take the place back; a holder without a place has none taken."""
        held = self._held.get(peer, {})
        if holder in held:
            del held[holder]
            self._free += 1
            if not held:
                del self._held[peer]

    def _largest(self) -> dict[Holder, None]:
        """Return the holders of a peer that has the most."""
        return max(self._held.values(), key=len)
