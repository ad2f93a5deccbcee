"""A kernel and a lease file that fail at random."""

import random
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

from igd.core.mapping import Change, Entry, Key
from igd.core.moment import Moment
from igd.firewall.backend import FirewallError
from igd.firewall.pretend import Pretend
from igd.store.files import StoreError
from igd.store.leases import LeaseStore
from tests.gateway_harness import Clock


class Trouble:
    """Decides which operations of kernel and store fail; they happen in the ledger's thread, one after another."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.probability = 0.0

    def comes(self) -> bool:
        """Return whether the operation fails."""
        return self._rng.random() < self.probability


class FailingKernel(Pretend):
    """Fails before a change, after it, or in the middle of replacing everything."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        self._trouble = trouble

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out all changes or none; a failure does not say which."""
        self._perhaps_fail()
        super().apply(changes, now)
        self._perhaps_fail()

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries`, or after a failure some of them."""
        self._perhaps_fail()
        held = list(entries)
        if self._trouble.comes():
            super().replace_all(addresses, held[::2], now)
            raise FirewallError("half of it")
        super().replace_all(addresses, held, now)

    def _perhaps_fail(self) -> None:
        if self._trouble.comes():
            raise FirewallError("the kernel fails")


class FailingStore(LeaseStore):
    """A lease file whose saves fail, with the entries as it has them."""

    def __init__(self, path: Path, clock: Clock, trouble: Trouble) -> None:
        super().__init__(path, lambda: Moment("boot", clock(), 1_900_000_000.0 + clock()))
        self._trouble = trouble

    def save(self, changes: Sequence[Change]) -> None:
        """Save all of these changes, or none."""
        if self._trouble.comes():
            raise StoreError("the store fails")
        super().save(changes)

    @property
    def entries(self) -> dict[Key, Entry]:
        """The entries of the file by key."""
        return {entry.mapping.key: entry for entry in self.load()}
