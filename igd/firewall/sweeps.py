"""Ends flows in a thread of its own, so that no change waits for a walk through the kernel's connections.

A closed mapping admits no new flow from the moment its rule is removed, and its older flows are swept afterwards. All
sweeps that wait are done in one walk (Conntrack.end). So a sweep waits at most for the walk under way and a pause, and
it cannot be delayed by the number of changes that other peers make. Between walks the thread pauses for as long as the
last one took: sweeps take half of one processor at most, whatever peers do.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor

from igd.firewall.backend import FirewallError
from igd.firewall.conntrack import Translation
from igd.firewall.recurring_warnings import RecurringWarnings

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Seconds before a sweep that failed is tried again."""

MAX_OWED = 10_000
"""How many translations may wait after a sweep has failed; further changes are refused, so that they do not grow."""


class Sweeps:
    """Ends the flows of translations by `end`, which raises FirewallError; a failure is logged and retried."""

    def __init__(self, end: Callable[[Collection[Translation]], None]) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._waiting: set[Translation] = set()
        self._next: Future[None] | None = None  # of the walk that will end the flows of `_waiting`
        self._swept: frozenset[Translation] = frozenset()
        self._current: Future[None] | None = None  # of the walk under way
        self._failed = False  # the last walk
        self._not_before = 0.0  # monotonic time at which the next walk may begin
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sweeps")
        self._warnings = RecurringWarnings(log, "flows of closed mappings are not ended, retrying: %s")

    def require_room(self) -> None:
        """Raise FirewallError if sweeps fail, and so many flows are owed that no more mappings should be closed."""
        if self._failed and len(self._waiting) > MAX_OWED:
            raise FirewallError(f"the flows of {len(self._waiting)} earlier mappings have not been ended")

    def add(self, translations: Collection[Translation]) -> None:
        """End all present flows with these translations soon."""
        if translations:
            with self._lock:
                self._waiting.update(translations)
                self._schedule()

    def of(self, translations: Collection[Translation]) -> Future[None] | None:
        """Return what is done after the next attempt to end flows with one of these translations; None: none is due."""
        with self._lock:
            if not self._waiting.isdisjoint(translations):
                return self._next
            return None if self._swept.isdisjoint(translations) else self._current

    def finish(self) -> None:
        """Wait until all sweeps have been tried."""
        with self._lock:
            last = self._next or self._current
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for the walk under way; sweeps that wait are not done."""
        self._closing.set()
        self._thread.shutdown(cancel_futures=True)

    def _schedule(self) -> None:
        if self._next is None and not self._closing.is_set():
            self._next = self._thread.submit(self._walk)

    def _walk(self) -> None:
        self._closing.wait(max(0.0, self._not_before - time.monotonic()))
        with self._lock:
            self._swept, self._waiting = frozenset(self._waiting), set()
            self._current, self._next = self._next, None
        began = time.monotonic()
        try:
            self._end(self._swept)
        except Exception as error:  # noqa: BLE001 - whatever it is, the flows must end, and it is logged
            self._failed = True
            self._warnings.log([str(error)])
            self._finish_walk(owed=self._swept, pause=RETRY_SECONDS)
        else:
            self._failed = False
            self._warnings.log([])
            self._finish_walk(owed=frozenset(), pause=time.monotonic() - began)

    def _finish_walk(self, owed: Collection[Translation], pause: float) -> None:
        self._not_before = time.monotonic() + pause
        with self._lock:
            self._swept, self._current = frozenset(), None
            self._waiting.update(owed)
            if self._waiting:
                self._schedule()
