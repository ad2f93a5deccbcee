"""The leases on disk. Leases, hold-downs and epoch survive crashes and reboots; times are those of `boottime`."""

import contextlib
import logging
import math
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from igd.core.mapping import Change, Entry, PortMapping
from igd.core.moment import Moment, was_set
from igd.core.table import HOLD_DOWN, HoldDown
from igd.store import files, reading, rows, schema
from igd.store.files import Present, StoreError, is_of_the_disk, sqlite_code
from igd.store.read_only import read_only
from igd.store.reading import Found

log = logging.getLogger(__name__)

_SAVE = """
    INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (protocol, external_port, pinhole) DO UPDATE SET
        internal_address = excluded.internal_address, internal_port = excluded.internal_port,
        peer = excluded.peer, description = excluded.description, remotes = excluded.remotes,
        nonce = excluded.nonce, expires = excluded.expires, endless = excluded.endless,
        unique_id = excluded.unique_id
"""
_DELETE = "DELETE FROM lease WHERE protocol = ? AND external_port = ? AND pinhole = ?"

_KEEPS_FILE = sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_TOOBIG
"""Errors after which the file is as it was before the transaction, and can be used as soon as there is room."""

_DAMAGED = sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB

REOPEN_SECONDS = 5.0
"""The pause after a failed attempt to write the whole file: with many leases one takes half a second."""

Work = Callable[[sqlite3.Connection, Moment], None]


class LeaseStore:
    """The leases of one interface in one SQLite file, used by one thread at a time.

    What is in the file is also in memory. If the file turns out to be damaged, has been removed or cannot be written,
    the next change or `record_time` writes it anew. A damaged file is put aside (`igd.store.files`) once there is a
    new one with all that could be read. `is_new`: leases may have been lost, since there was no file or a damaged one.
    Each transaction records the time, for what is left of the leases after a reboot (`igd.core.moment`).

    The constructor raises StoreError if the operator must do something (`igd.store.reading.read`), and not if the disk
    is full or read-only. `save` and `record_time` raise StoreError if nothing can be saved; then nothing has changed.
    """

    def __init__(self, path: Path, now: Callable[[], Moment]) -> None:
        self._path = path
        self._now = now
        self._database: sqlite3.Connection | None = None
        self._real_path = path
        self._present: Present | None = None  # the open file, at the real path
        self._swept = -math.inf  # when outdated hold-downs were last deleted
        found = self._read()
        moment = now()
        self._entries = found.entries
        self._hold_downs = found.hold_downs
        self._state = found.state or schema.State(moment.boottime)
        self.is_new = found.state is None or bool(found.damage)
        for warning in found.warnings:
            log.warning("%s", warning)
        if found.damage:
            text = "%s is damaged (%s): %d leases could be read; it becomes %s once there is a new file"
            log.error(text, path, found.damage, len(found.entries), files.aside(path))
            self._state.began = moment.boottime
        self._recorded = moment
        self._owes_state = False  # the state in the file is an older one
        self._failure: StoreError | None = None  # of the last attempt to write the whole file
        self._reopen_at = -math.inf
        try:
            self._open(found)
        except StoreError as error:
            if not is_of_the_disk(error.__cause__):
                raise
            log.error("leases are not saved, igd goes on with those in memory and grants no new ones: %s", error)

    def load(self) -> list[Entry]:
        """Return all leases, oldest first, including expired ones."""
        return list(self._entries.values())

    def hold_downs(self) -> list[HoldDown]:
        """Return the hold-downs of earlier runs that have not ended, in the order in which they end."""
        now = self._now().boottime
        return [each for each in self._hold_downs if each.until > now]

    def record_address(self, address: IPv4Address) -> bool:
        """Record the external address announced to clients; return whether it replaces another one.

        If it cannot be saved, it is saved with the next change.
        """
        before = self._state.address
        if before == address:
            return False
        self._state.address = address
        if before is not None:
            self._state.began = self._now().boottime
        self._save_state()
        return before is not None

    def epoch_began(self) -> float:
        """Return the boottime at which the file was created or the external address was replaced; may be negative."""
        return self._state.began

    def record_epoch(self, began: float) -> None:
        """Record that the epoch began at this boottime, with another program; saved as by `record_address`."""
        self._state.began = began
        self._save_state()

    def next_bootid(self) -> int:
        """Return a value for BOOTID.UPNP.ORG, larger than any before, whatever the wall clock shows.

        If it cannot be saved, the next run relies on the wall clock.
        """
        self._state.bootid = max(self._state.bootid + 1, int(self._now().wall) % schema.BOOTIDS) % schema.BOOTIDS
        self._save_state()
        return self._state.bootid

    def save(self, changes: Sequence[Change]) -> None:
        """Save all of these changes, or none."""

        def write(database: sqlite3.Connection, now: Moment) -> None:
            for change in changes:
                if change.after:
                    database.execute(_SAVE, rows.lease_row(change.after))
                elif change.before:
                    self._close_lease(database, change.before, now.boottime)

        self._transact(write)
        for change in changes:
            if change.after:
                self._entries[change.key] = change.after
            else:
                self._entries.pop(change.key, None)

    def _close_lease(self, database: sqlite3.Connection, entry: Entry, now: float) -> None:
        mapping = entry.mapping
        database.execute(_DELETE, rows.key_columns(entry))
        if isinstance(mapping, PortMapping):
            if now - self._swept >= HOLD_DOWN:
                database.execute("DELETE FROM hold_down WHERE until <= ?", [now])
                self._swept = now
            database.execute(schema.SAVE_HOLD_DOWN, [*mapping.key, mapping.peer, now + HOLD_DOWN])

    def record_time(self) -> None:
        """Record the time if the wall clock was set since it was last recorded, and see to it that there is a file."""
        set_ = was_set(self._recorded, self._now())
        if set_ or self._owes_state or not self._is_in_place():
            self._transact(_nothing)
        if set_:
            log.info("the wall clock was set: leases go on as before")

    def close(self) -> None:
        """Record the time, and close the file."""
        if self._is_in_place():  # else a directory that was removed before igd was stopped would come back
            with contextlib.suppress(StoreError):
                self._transact(_nothing)
        if self._database is not None:
            self._database.close()

    def _save_state(self) -> None:
        self._owes_state = True
        with contextlib.suppress(StoreError):  # logged where changes fail
            self._transact(_nothing)

    # One transaction

    def _transact(self, work: Work) -> None:
        """Commit what `work` executes, the state and the time; or nothing, and raise StoreError."""
        if not self._is_in_place():
            self._reopen()
        try:
            self._execute(work)
        except StoreError:
            if self._database is not None:
                raise
            self._reopen()  # the file was damaged
            self._execute(work)

    def _execute(self, work: Work) -> None:
        database, now = self._database, self._now()
        assert database is not None, "it was opened"
        outdated = now.boottime - self._recorded.boottime > 1.0 or was_set(self._recorded, now) or self._owes_state
        try:
            with database:  # commits, or rolls back after an exception
                database.execute("BEGIN")
                work(database, now)
                if outdated:
                    schema.record(database, self._state, now)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            if isinstance(error, sqlite3.Error) and sqlite_code(error) not in _KEEPS_FILE:
                self._give_up()
            raise StoreError(f"{self._path}: {error}") from error
        if outdated:
            self._recorded = now
            self._owes_state = False

    # The file

    def _is_in_place(self) -> bool:
        return self._present is not None and self._present.is_still_at(self._real_path)

    def _read(self) -> Found:
        try:
            files.prepare(self._path)
        except OSError as error:
            if not is_of_the_disk(error):
                raise StoreError(f"{self._path}: {error.strerror}") from error
        return reading.read(self._path, self._now())

    def _reopen(self) -> None:
        """Write the file anew, with what is in memory; of hold-downs with what is in the old one."""
        if self._failure is not None and self._now().boottime < self._reopen_at:
            raise StoreError(*self._failure.args)
        replaced = self._database is not None
        self._give_up()
        try:
            found = self._read()
            if replaced and found.exists:
                found.damage = "it or its journal was removed, replaced or cut"
            self._hold_downs = found.hold_downs
            found.recorded = None  # what is in memory is newer
            self._open(found)
            if replaced or found.damage:
                old = f"; what was there is now {files.aside(self._path)}" if found.exists else ""
                log.error("%s was written again: %s%s", self._path, found.damage or "it was removed", old)
        except StoreError as error:
            self._failure, self._reopen_at = error, self._now().boottime + REOPEN_SECONDS
            raise

    def _open(self, found: Found) -> None:
        """Open the file for changes, and have it hold what is in memory."""
        now = self._now()
        try:
            if found.damage or not found.exists:
                with files.new_file(self._path) as database:
                    schema.fill(database, *self._contents(now))
            self._database = files.connect(self._path)
            # Commits survive kill -9. A power loss may lose the last ones, and the rules in the kernel as well.
            self._database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
            if found.exists and not found.damage and found.recorded is None:
                schema.fill(self._database, *self._contents(now))
            else:
                self._database.executescript("BEGIN IMMEDIATE; COMMIT")  # creates the journal
        except (sqlite3.Error, OSError) as error:
            self._give_up()
            if found.exists and not found.damage and sqlite_code(error) in _DAMAGED:
                found.damage = str(error)
                self._open(found)
                return
            raise StoreError(f"{self._path}: {error}") from error
        self._real_path = self._path.resolve()
        self._present = Present.at(self._real_path)
        self._recorded, self._owes_state = found.recorded or now, False

    def _contents(self, now: Moment) -> tuple[Iterable[Entry], Iterable[HoldDown], schema.State, Moment]:
        return self._entries.values(), self._hold_downs, self._state, now

    def _give_up(self) -> None:
        if self._database is not None:
            self._database.close()
        self._database = self._present = None


def addresses_in(path: Path) -> list[IPv4Address | IPv6Address]:
    """Return the internal addresses in a store, or none if there is no readable store."""
    try:
        with read_only(path) as database:
            return [ip_address(text) for (text,) in database.execute("SELECT DISTINCT internal_address FROM lease")]
    except (sqlite3.Error, ValueError, OSError) as error:
        log.debug("cannot read %s: %s", path, error)
        return []


def _nothing(_database: sqlite3.Connection, _now: Moment) -> None:
    pass
