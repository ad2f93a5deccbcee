"""The epoch time that NAT-PMP and PCP clients compare (RFC 6886 §3.6, RFC 6887 §8.5)."""

from collections.abc import Callable
from ipaddress import IPv4Address

from igd.store.leases import LeaseStore


class Epoch:
    """Counts the seconds since mappings were lost, together with the store or with the announced address.

    `clock` is `boottime`, the store's clock. `lost`: whether this run has lost them at its start. Where nothing can be
    saved, a crash may end the epoch early, and BOOTID.UPNP.ORG follows the wall clock.
    """

    def __init__(self, store: LeaseStore, announced: IPv4Address | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._began = 0.0
        self.lost = self.update(announced) or store.is_new

    def update(self, announced: IPv4Address | None) -> bool:
        """Record the announced address; return whether it replaces another, which loses the mappings."""
        lost = announced is not None and self._store.record_address(announced)
        self._began = self._store.epoch_began()
        return lost

    def seconds(self) -> int:
        """Return the epoch time."""
        return int(self._clock() - self._began)

    def next_bootid(self) -> int:
        """Return a value for UPnP's counterpart, BOOTID.UPNP.ORG, larger than at any start before."""
        return self._store.next_bootid()
