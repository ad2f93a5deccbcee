"""Table, kernel and store, kept equal: the one place that changes them, and in which order."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import Protocol

from igd.core.mapping import Change, Entry
from igd.core.table import Table
from igd.firewall.backend import Backend, FirewallError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""How long to wait before trying again what the kernel or the store did not take."""


class Store(Protocol):
    """Where leases survive a crash; raises OSError, and then has saved nothing."""

    def save(self, changes: Sequence[Change]) -> None:
        """Make these changes durable, all or none."""


class Ledger:
    """All mappings of one gateway, in its memory, in the kernel and on disk.

    A change is made in all three or in none: after a failure the kernel is replaced as a whole by what the table
    holds, at once or, should that fail too, before the next change. Kernel and disk are used from one worker thread,
    because either may block. `clock` is monotonic, in seconds.
    """

    def __init__(self, backend: Backend, store: Store, clock: Callable[[], float]) -> None:
        self.table = Table()
        self.addresses: tuple[IPv4Address, ...] = ()
        self.on_change: list[Callable[[], None]] = []
        self._backend = backend
        self._store = store
        self._clock = clock
        self._lock = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="firewall")
        self._unsaved: list[Change] = []  # made, but not yet in the store: the next save begins with them
        self._broken = False  # the kernel may hold something else than the table
        self._retry_at: float | None = None

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Keep everybody else out while a change is planned and made; FirewallError while the kernel is broken."""
        async with self._lock:
            if self._broken:
                await self._repair()
            self._retry_at = None
            yield

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make planned changes true, during one's turn; on FirewallError or OSError nothing has changed."""
        await self._carry_out(self._close if all(change.after is None for change in changes) else self._open, changes)

    async def impose(self, changes: Sequence[Change]) -> None:
        """Make true what no client asked for, during one's turn, whether or not it can be saved now.

        On FirewallError nothing has changed.
        """
        if changes:
            await self._carry_out(self._impose, changes)

    async def take_over(self, keep: Iterable[Entry], drop: Iterable[Entry], addresses: Iterable[IPv4Address]) -> None:
        """Begin with the store's entries, divided into those to keep and those to drop, whatever the kernel holds."""
        self.table.accept(Change(None, entry) for entry in keep)
        self.addresses = tuple(addresses)
        await self._in_worker(functools.partial(self._save_or_owe, [Change(entry, None) for entry in drop]))
        await self._repair()

    async def readdress(self, addresses: Iterable[IPv4Address]) -> None:
        """Lead packets to these addresses from now on."""
        async with self._lock:
            self.addresses = tuple(addresses)
            await self._repair_or_retry()

    async def repair(self) -> None:
        """Make the kernel equal to the table, whoever has changed it; what fails is tried again."""
        async with self._lock:
            await self._repair_or_retry()

    async def close(self) -> None:
        """Take all that is ours out of the kernel; the store keeps the leases. FirewallError when that fails."""
        async with self._lock:
            try:
                await self._in_worker(self._backend.remove_all)
            finally:
                await self._in_worker(self._backend.close)
                self._worker.shutdown()

    def next_wake(self) -> float | None:
        """Tell when a lease runs out or something is to be tried again; the latter goes first, lest it spin."""
        return self.table.next_expiry() if self._retry_at is None else self._retry_at

    def retry_later(self) -> None:
        """Have `next_wake` name a moment soon, unless somebody has a turn before."""
        self._retry_at = self._clock() + RETRY_SECONDS
        self._tell()

    async def _carry_out(self, deed: Callable[[Sequence[Change]], None], changes: Sequence[Change]) -> None:
        try:
            await self._in_worker(functools.partial(deed, changes))
        except Exception:
            await self._repair_or_retry()
            raise
        self.table.accept(changes)
        self._tell()

    # The three orders. In the worker thread.

    def _open(self, changes: Sequence[Change]) -> None:
        """The kernel first: nobody hears "yes" before packets pass."""
        self._backend.apply(changes, self._clock())
        self._save(changes)

    def _close(self, changes: Sequence[Change]) -> None:
        """The store first: no crash reopens a port that its owner closed."""
        self._save(changes)
        try:
            self._backend.apply(changes, self._clock())
        except Exception:
            self._save_or_owe([change.undone() for change in changes])
            raise

    def _impose(self, changes: Sequence[Change]) -> None:
        """The kernel alone counts: a full disk must not keep a port open, and each start judges the store anew."""
        self._backend.apply(changes, self._clock())
        self._save_or_owe(changes)

    def _save(self, changes: Sequence[Change]) -> None:
        self._store.save([*self._unsaved, *changes])
        self._unsaved.clear()

    def _save_or_owe(self, changes: Sequence[Change]) -> None:
        try:
            self._save(changes)
        except OSError as error:
            log.warning("the store is behind until it can be written again: %s", error)
            self._unsaved += changes

    # The kernel as a whole

    async def _repair_or_retry(self) -> None:
        try:
            await self._repair()
        except FirewallError as error:
            log.error("the kernel is not what it should be, trying again: %s", error)  # noqa: TRY400 - it says all
            self.retry_later()

    async def _repair(self) -> None:
        """Make the kernel hold what the table holds; FirewallError."""
        self._broken = True
        await self._in_worker(
            functools.partial(self._backend.replace_all, self.addresses, list(self.table), self._clock())
        )
        self._broken = False
        self._tell()

    async def _in_worker(self, deed: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, deed)

    def _tell(self) -> None:
        for listener in self.on_change:
            listener()
