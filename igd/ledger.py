"""Table, kernel and store, kept equal: the one place that changes them, and in which order."""

import asyncio
import functools
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol, TypeVar

from igd.core.mapping import Change, Entry
from igd.core.table import Table
from igd.firewall.backend import Backend, FirewallError

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 1.0
"""How long to wait before trying again what the kernel or the store did not take."""


class Store(Protocol):
    """Where leases survive a crash; raises OSError, and then has saved nothing."""

    def save(self, changes: Sequence[Change]) -> None:
        """Make these changes durable, all or none."""


@dataclass(slots=True, eq=False)
class _Order:
    """Changes that wait to be made, and what has become of them; `imposed`: by no client."""

    changes: tuple[Change, ...]
    imposed: bool
    done: bool = False
    error: Exception | None = None


class Ledger:
    """All mappings of one gateway, in its memory, in the kernel and on disk.

    A change is made in all three or in none: after a failure the kernel is replaced as a whole by what the table
    holds, at once or, should that fail too, before the next change. Kernel and disk are used from one worker thread,
    because either may block; what queues up meanwhile is carried out together, in one transaction, and one by one
    should that fail: nobody is refused for his neighbour's sake. `clock` is monotonic, in seconds.
    """

    def __init__(self, backend: Backend, store: Store, clock: Callable[[], float]) -> None:
        self.table = Table()
        self.addresses: tuple[IPv4Address, ...] = ()
        self.on_change: list[Callable[[], None]] = []
        self._backend = backend
        self._store = store
        self._clock = clock
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._queue: list[_Order] = []
        self._writing = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="firewall")
        self._unsaved: list[Change] = []  # made, but not yet in the store: the next save begins with them
        self._broken = False  # the kernel may hold something else than the table
        self._retry_at: float | None = None

    def turn(self, peer: str) -> asyncio.Lock:
        """Give the lock under which this peer's changes are planned and made, one after another."""
        return self._turns.setdefault(peer, asyncio.Lock())

    async def commit(self, changes: Sequence[Change]) -> None:
        """Make changes true that were planned, in their peer's turn, on the table as it is at this moment.

        On FirewallError or OSError nothing has changed.
        """
        await self._carry_out(_Order(tuple(changes), imposed=False))

    async def impose(self, changes: Sequence[Change]) -> None:
        """Make true what no client asked for, in the peer's turn, whether or not it can be saved now.

        On FirewallError nothing has changed.
        """
        if changes:
            await self._carry_out(_Order(tuple(changes), imposed=True))

    async def take_over(self, keep: Iterable[Entry], drop: Iterable[Entry], addresses: Iterable[IPv4Address]) -> None:
        """Begin with the store's entries, divided into those to keep and those to drop, whatever the kernel holds."""
        self.table.accept((Change(None, entry) for entry in keep), self._clock())
        self.addresses = tuple(addresses)
        await self._in_worker(functools.partial(self._save_or_owe, [Change(entry, None) for entry in drop]))
        await self._repair()

    async def readdress(self, addresses: Iterable[IPv4Address]) -> None:
        """Lead packets to these addresses from now on."""
        async with self._writing:
            self.addresses = tuple(addresses)
            await self._repair_or_retry()

    async def repair(self) -> None:
        """Make the kernel equal to the table, whoever has changed it; what fails is tried again."""
        async with self._writing:
            await self._repair_or_retry()

    async def let_pass(self) -> None:
        """See that what is held gets through the operator's forward chains; what fails is tried again."""
        async with self._writing:
            try:
                await self._in_worker(self._backend.let_pass)
            except FirewallError as error:
                self._broken = True
                log.error("mapped flows may not get through, trying again: %s", error)  # noqa: TRY400 - it says all
                self.retry_later()

    async def mend(self) -> None:
        """Repair what is known to be broken."""
        async with self._writing:
            self._retry_at = None
            if self._broken:
                await self._repair_or_retry()

    async def between_changes(self, look: Callable[[], T]) -> T:
        """Look at the kernel from the thread that changes it, and so not in the midst of a change."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, look)

    async def close(self) -> None:
        """Take all that is ours out of the kernel; the store keeps the leases. FirewallError when that fails."""
        async with self._writing:
            try:
                await self._in_worker(self._backend.remove_all)
            finally:
                await self._in_worker(self._backend.close)
                self._worker.shutdown()

    def next_wake(self) -> float | None:
        """Tell when a lease runs out or something is to be tried again; the latter goes first, lest it spin."""
        return self.table.next_expiry() if self._retry_at is None else self._retry_at

    def retry_later(self) -> None:
        """Have `next_wake` name a moment soon, unless something is changed before."""
        self._retry_at = self._clock() + RETRY_SECONDS
        self._tell()

    # One change, or all that wait

    async def _carry_out(self, order: _Order) -> None:
        self.table.reserve(order.changes)
        self._queue.append(order)
        async with self._writing:
            if order in self._queue:  # else it went along with those before
                orders, self._queue = self._queue, []
                await self._write(orders)
        assert order.done, "whoever takes an order off the queue carries it out"
        if order.error is not None:
            raise order.error

    async def _write(self, orders: Sequence[_Order]) -> None:
        try:
            self._retry_at = None
            if self._broken:
                await self._repair()
            await self._in_worker(functools.partial(self._make_true, orders))
        except Exception as error:  # noqa: BLE001 - whose order it is will raise it
            await self._after_failure(orders, error)
        else:
            for order in orders:
                self.table.accept(order.changes, self._clock())
                order.done = True
            self._tell()

    async def _after_failure(self, orders: Sequence[_Order], error: Exception) -> None:
        try:
            if self._broken:
                await self._repair_or_retry()
        finally:
            if len(orders) == 1:
                self.table.release(orders[0].changes)
                orders[0].done, orders[0].error = True, error
            else:
                for order in orders:
                    await self._write([order])

    # Close in the store first: no crash reopens a port that its owner closed. Open in the kernel first: nobody hears
    # "yes" before packets pass. What no client asked for counts in the kernel alone: a full disk must not keep a port
    # open, and each start judges the store anew.
    def _make_true(self, orders: Iterable[_Order]) -> None:
        wanted = [change for order in orders if not order.imposed for change in order.changes]
        imposed = [change for order in orders if order.imposed for change in order.changes]
        closing = [change for change in wanted if change.after is None]
        self._save(closing)
        try:
            self._apply([*wanted, *imposed])
            self._save_or_undo([change for change in wanted if change.after is not None], [*wanted, *imposed])
        except Exception:
            self._save_or_owe([change.undone() for change in closing])
            raise
        self._save_or_owe(imposed)

    def _apply(self, changes: Sequence[Change]) -> None:
        self._broken = True
        self._backend.apply(changes, self._clock())
        self._broken = False

    def _save_or_undo(self, changes: Sequence[Change], applied: Sequence[Change]) -> None:
        try:
            self._save(changes)
        except Exception:
            self._apply([change.undone() for change in reversed(applied)])
            raise

    def _save(self, changes: Sequence[Change]) -> None:
        if changes:
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
