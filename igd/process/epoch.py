"""The epoch time that NAT-PMP and PCP clients compare (RFC 6886 §3.6, RFC 6887 §8.5)."""

import time
from ipaddress import IPv4Address

from igd.store.leases import LeaseStore


class Epoch:
    """Counts the seconds since mappings were lost, together with the store or with the announced address.

    `lost`: whether this run has lost them at its start. OSError.
    """

    def __init__(self, store: LeaseStore, announced: IPv4Address | None) -> None:
        self._store = store
        self._began = 0.0
        self.lost = self.update(announced) or store.is_new

    def update(self, announced: IPv4Address | None) -> bool:
        """Record the announced address; return whether it replaces another, which loses the mappings. OSError."""
        lost = announced is not None and self._store.record_address(announced)
        self._began = time.monotonic() - self._store.age()
        return lost

    def seconds(self) -> int:
        """Return the epoch time."""
        return int(time.monotonic() - self._began)
