"""Changes table, kernel and store together, in the order that keeps them equal."""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol, TypeVar, TypeVarTuple

from igd.core.mapping import AnyMapping, Change, Entry, Key, abridged, changes_of
from igd.core.table import HoldDown, Table
from igd.firewall.backend import Backend, FirewallError, Traffic
from igd.log_lines import ONCE

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

RETRY_SECONDS = 1.0
"""Seconds before a failed change of the kernel is tried again."""

READ_AT_ONCE = 100
"""How many mappings' traffic is read in one turn of the worker thread, which takes a millisecond or two."""

SHOWN = 8
"""How many mappings the line names that could not be saved as closed."""


class Store(Protocol):
    """Where leases survive a crash."""

    def save(self, changes: Sequence[Change]) -> None:
        """Save all of these changes, or save none and raise OSError. A port mapping that is closed is held down."""

    def hold_downs(self) -> list[HoldDown]:
        """Return the hold-downs of earlier runs that have not ended, in the order in which they end."""

    def record_time(self) -> None:
        """Record the time if the wall clock was set, and whatever else is not yet on disk; OSError."""


@dataclass(slots=True, eq=False)
class _Pending:
    """Changes that wait for a transaction, and its outcome; `imposed`: no client requested them."""

    changes: Sequence[Change]
    imposed: bool
    done: bool = False
    error: Exception | None = None


class Ledger:
    """All mappings of one gateway, in memory, in the kernel and on disk.

    A change is made in all three or in none. After a failure the kernel's state is replaced by the table's, at once or,
    if that fails too, before the next change. Kernel and disk may block and are used from one worker thread. Changes
    that arrive meanwhile go into one transaction; if it fails, each is tried alone, so that no peer is refused because
    of another's change. `clock` is `boottime`, the clock of leases, in seconds. `on_accepted` is called with what the
    table has accepted.

    If only the store fails, what closes or renews a mapping is done nevertheless, and owed to the store: it is saved
    after the next change that can be saved, or by `settle_store`. Of each mapping only the last state is owed.
    """

    def __init__(self, backend: Backend, store: Store, clock: Callable[[], float]) -> None:
        self.table = Table()
        self.addresses: tuple[IPv4Address, ...] = ()
        self.on_change: list[Callable[[], None]] = []
        self.on_accepted: list[Callable[[Sequence[Change]], None]] = []
        self._backend = backend
        self._store = store
        self._clock = clock
        self._peer_locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._queue: list[_Pending] = []
        self._writing = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="firewall")
        self._owed: dict[Key, Change] = {}  # made, but not yet in the store
        self._not_saved: OSError | None = None  # why nothing can be saved, which was logged
        self._dirty = False  # the kernel may differ from the table
        self._retry_at: float | None = None

    def peer_lock(self, peer: str) -> asyncio.Lock:
        """Return the lock that serialises this peer's changes."""
        return self._peer_locks.setdefault(peer, asyncio.Lock())

    async def commit(self, changes: Sequence[Change], *, imposed: bool = False) -> None:
        """Carry out changes that were planned on the current table; the caller holds the peer's lock.

        On FirewallError or OSError nothing has changed. `imposed` changes were requested by no client.
        """
        if not changes:
            return
        pending = _Pending(changes, imposed)
        self.table.reserve(changes)
        sweep = self._backend.sweep_of(changes_of(changes, _is_in_kernel))
        if sweep is not None:
            await asyncio.shield(asyncio.wrap_future(sweep))
        self._queue.append(pending)
        async with self._writing:
            if pending in self._queue:  # else the transaction before has included it
                batch, self._queue = self._queue, []
                await self._write(batch)
        assert pending.done, "a change taken from the queue has been written"
        if pending.error is not None:
            raise pending.error

    async def take_over(self, keep: Iterable[Entry], drop: Iterable[Entry], addresses: Iterable[IPv4Address]) -> None:
        """Start with the entries to `keep`, delete those to `drop` from the store, and replace the kernel's state."""
        self._accept([Change(None, entry) for entry in keep])
        self.addresses = tuple(addresses)
        await self.in_worker(self._save_or_owe, [Change(entry, None) for entry in drop])
        self.table.resume_hold_downs(await self.in_worker(self._store.hold_downs), self._clock())
        await self._repair()

    async def set_addresses(
        self, addresses: Iterable[IPv4Address], update_site: Callable[[], None] = lambda: None
    ) -> None:
        """Match packets to these external addresses from now on; see `repair`."""
        async with self._writing:
            self.addresses = tuple(addresses)
            update_site()
            await self._repair_or_retry()

    async def repair(self, update_site: Callable[[], None] = lambda: None) -> None:
        """Make the kernel equal to the table after a foreign change; a failure is retried.

        First, while no change is under way, call `update_site`, which changes what else the kernel is to hold.
        """
        async with self._writing:
            update_site()
            await self._repair_or_retry()

    async def follow_peers(self, update_site: Callable[[], None]) -> None:
        """Have the kernel limit the rates of other peers; first, as by `repair`, call `update_site`."""
        async with self._writing:
            update_site()
            await self.in_worker(self._backend.follow_peers)

    async def ensure_forward(self) -> bool:
        """Let mapped flows through the operator's forward chains; a failure is retried.

        Return whether rules of igd's were edited.
        """
        async with self._writing:
            try:
                return await self.in_worker(self._backend.ensure_forward)
            except FirewallError as error:
                self._dirty = True
                log.error("mapped flows may be dropped, retrying: %s", error)
                self.retry_later()
                return False

    async def traffic(self, mappings: Sequence[AnyMapping]) -> list[Traffic | None]:
        """Return what the internet has sent through each of these mappings since it was opened; FirewallError.

        None of a mapping that the kernel does not hold. Changes go on between the readings of `READ_AT_ONCE` mappings.
        """
        read = []
        for first in range(0, len(mappings), READ_AT_ONCE):
            read += await self.in_worker(self._backend.traffic, mappings[first : first + READ_AT_ONCE])
        return read

    async def repair_if_dirty(self) -> None:
        """Make the kernel equal to the table if an earlier failure left it different."""
        async with self._writing:
            self._retry_at = None
            if self._dirty:
                await self._repair_or_retry()

    async def settle_store(self) -> None:
        """Save what is owed to the store, and the time if the wall clock was set; a failure is logged once."""
        await self.in_worker(self._settle)

    async def in_worker(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Call a function in the worker thread, and so never in the middle of a change."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call, *arguments)

    @property
    def warnings(self) -> list[str]:
        """A sentence while leases cannot be saved."""
        sentence = (
            "leases cannot be saved: new mappings are refused until they can, and a crash or a stop before that may"
            " reopen ports that are closed now"
        )
        return [] if self._not_saved is None else [f"{sentence}: {self._not_saved}"]

    async def close(self, *, leave: bool = False) -> None:
        """Remove everything of ours from the kernel, or `leave` it as it is; the store keeps the leases. FirewallError.

        What is owed to the store is saved, or logged: the next start opens what the store has.
        """
        async with self._writing:
            try:
                if not leave:
                    await self.in_worker(self._backend.remove_all)
            finally:
                await self.in_worker(self._settle)
                self._report_owed()
                await self.in_worker(self._backend.close)
                self._worker.shutdown()

    def next_wake(self) -> float | None:
        """Return when to retry or, if nothing is to be retried, when the next lease runs out.

        A pending retry comes first: an expired lease that cannot be ended would wake the timer in a tight loop.
        """
        return self.table.next_expiry() if self._retry_at is None else self._retry_at

    def retry_later(self) -> None:
        """Schedule a retry in RETRY_SECONDS, unless a change succeeds first."""
        self._retry_at = self._clock() + RETRY_SECONDS
        self._notify()

    # The changes that are pending

    async def _write(self, batch: Sequence[_Pending]) -> None:
        try:
            self._retry_at = None
            if self._dirty:
                await self._repair()
            await self.in_worker(self._change_kernel_and_store, batch)
        except Exception as error:  # noqa: BLE001 - commit raises it in the task that requested the change
            await self._after_failure(batch, error)
        else:
            for pending in batch:
                self._accept(pending.changes)
                pending.done = True
            self._notify()

    async def _after_failure(self, batch: Sequence[_Pending], error: Exception) -> None:
        try:
            if self._dirty:
                await self._repair_or_retry()
        finally:
            if len(batch) == 1:
                self.table.release(batch[0].changes)
                batch[0].done, batch[0].error = True, error
            else:
                for pending in batch:
                    await self._write([pending])

    # A closing change is saved first, so that no crash reopens the port. An opening change is applied to the kernel
    # first, so that no request is granted before packets pass. If the store fails, a closing, renewing or imposed
    # change succeeds with the kernel alone: a full disk must neither keep a port open nor end a mapping that is in use.
    def _change_kernel_and_store(self, batch: Iterable[_Pending]) -> None:
        requested = [change for pending in batch if not pending.imposed for change in pending.changes]
        imposed = [change for pending in batch if pending.imposed for change in pending.changes]
        closing = [change for change in requested if change.after is None]
        others = [change for change in requested if change.after is not None]
        self._save_or_owe(closing)
        try:
            self._apply([*requested, *imposed])
            if not all(map(_renews, others)):
                self._save_or_undo(others, [*requested, *imposed])
                others = []
        except Exception:
            self._save_or_owe([change.undone() for change in closing])
            raise
        self._save_or_owe([*others, *imposed])

    def _apply(self, changes: Sequence[Change]) -> None:
        self._dirty = True
        self._backend.apply(changes_of(changes, _is_in_kernel), self._clock())
        self._dirty = False

    def _save_or_undo(self, changes: Sequence[Change], applied: Sequence[Change]) -> None:
        try:
            self._save(changes)
        except Exception:
            self._apply([change.undone() for change in reversed(applied)])
            raise

    def _save_or_owe(self, changes: Sequence[Change]) -> None:
        try:
            self._save(changes)
        except OSError:
            self._owed |= {change.key: change for change in changes_of(changes, _is_stored)}

    def _settle(self) -> None:
        try:
            self._save(list(self._owed.values()))
            self._store.record_time()
        except OSError as error:
            self._log_failure(error)
        else:
            self._log_success()

    def _save(self, changes: Sequence[Change]) -> None:
        """Save these changes, and then what is owed; OSError if they are not saved."""
        changes = changes_of(changes, _is_stored)
        if not changes:
            return
        try:
            self._store.save(changes)
        except OSError as error:
            self._log_failure(error)
            raise
        for change in changes:
            self._owed.pop(change.key, None)
        with contextlib.suppress(OSError):
            self._save(list(self._owed.values()))
        self._log_success()

    def _log_failure(self, error: OSError) -> None:
        is_new = self._not_saved is None
        self._not_saved = error
        if is_new:
            log.error("%s", *self.warnings)

    def _log_success(self) -> None:
        if self._not_saved is not None and not self._owed:
            self._not_saved = None
            log.info("leases can be saved again, and all are saved")

    def _report_owed(self) -> None:
        """Log which mappings are closed, but not in the store.

        One that has expired is not opened again; but an endless one is, for a while.
        """
        now = self._clock()
        closed = [change.before for change in self._owed.values() if change.before and change.after is None]
        reopening = [str(entry.mapping) for entry in closed if entry.lease.endless or entry.lease.expires > now]
        if reopening:
            text = "the next start opens again what was closed, because that could not be saved: %s; %s"
            log.error(text, abridged(reopening, SHOWN), self._not_saved, extra=ONCE)

    # The whole state of the kernel

    async def _repair_or_retry(self) -> None:
        try:
            await self._repair()
        except FirewallError as error:
            log.error("the kernel differs from the table, retrying: %s", error)
            self.retry_later()

    async def _repair(self) -> None:
        """Make the kernel equal to the table; FirewallError."""
        self._dirty = True
        await self.in_worker(
            self._backend.replace_all, self.addresses, list(filter(_is_in_kernel, self.table)), self._clock()
        )
        self._dirty = False
        self._notify()

    def _accept(self, changes: Sequence[Change]) -> None:
        self.table.accept(changes, self._clock())
        for listener in self.on_accepted:
            listener(changes)

    def _notify(self) -> None:
        for listener in self.on_change:
            listener()


def _is_in_kernel(entry: Entry) -> bool:
    return not entry.suspended


def _is_stored(entry: Entry) -> bool:
    """Return whether the store has the entry; static ones come from the configuration at each start."""
    return not entry.lease.static


def _renews(change: Change) -> bool:
    """Return whether all packets go where they went before; lease, description and claim may be new."""
    before, after = change.before, change.after
    return (
        before is not None
        and after is not None
        and (before.mapping.internal, before.mapping.remotes) == (after.mapping.internal, after.mapping.remotes)
    )
