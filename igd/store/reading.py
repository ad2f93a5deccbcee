"""Reads a lease file, whatever is in it: of this or an older version, of this boot or an earlier one, or damaged."""

import contextlib
import itertools
import math
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from igd.core.mapping import Entry, Key, Pinhole
from igd.core.moment import Moment, passed, shift
from igd.core.table import HoldDown
from igd.core.unique_ids import UNIQUE_IDS
from igd.store import rows, schema
from igd.store.files import StoreError, connect, is_of_the_disk, sqlite_code

Row = Sequence[Any]

UNDATED_SECONDS = 3600.0
"""The longest lease in a file whose boot is unknown: what is left of its leases is then unknown, too."""

MAX_ROWS = 2**18
"""How many rows are read: twice as many as TCP and UDP have ports."""

MAX_OCTETS = 2**20
"""The longest value that is read."""

MAX_FAILURES = 50_000
"""After so many failed queries no more of a damaged table is read: half a second."""

READ_SECONDS = 60.0
"""The time limit of all queries: what looks like a table may be a query without an end."""

LOGGED_ROWS = 10
"""How many rows are logged that are no leases."""

WAYS = "mode=rw", "mode=ro&vfs=unix-none", "immutable=1"
"""How the file is opened. The first way excludes other processes. On a read-only file system only the second can read a
file with a journal, and only the third a file without."""

_LAST_ROW = (
    "SELECT max(rowid) FROM lease NOT INDEXED",
    "SELECT max(rowid) FROM lease INDEXED BY sqlite_autoindex_lease_1",
)
_IN_USE = sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED
_NOT_OPENED = sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR
_UNREADABLE = sqlite3.Error, ValueError, TypeError, OverflowError, MemoryError


@dataclass(slots=True)
class Found:
    """What was read; all times are those of the boot of the reading.

    `state` is None if there was none. `damage` says what was wrong with the file, or is empty. `recorded` is the moment
    that the file has if changes can be saved to it as it is: it has this version's format and this boot's times.
    `warnings` are for the log.
    """

    entries: dict[Key, Entry] = field(default_factory=dict)
    hold_downs: list[HoldDown] = field(default_factory=list)
    state: schema.State | None = None
    damage: str = ""
    exists: bool = True
    recorded: Moment | None = None
    warnings: list[str] = field(default_factory=list)


def read(path: Path, now: Moment) -> Found:
    """Read what can be read; StoreError if that is for the operator to mend.

    Then it is not a file, may not be read or written, is in use, or was written by a newer version or another program.
    """
    if not _has_content(path):
        empty = [f"{path} is empty: igd begins without leases"] if path.exists() else []
        return Found(exists=False, warnings=empty)
    damage = ""
    deadline = time.monotonic() + READ_SECONDS
    for way in WAYS:
        try:
            with contextlib.closing(connect(path, way)) as database:
                database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_OCTETS)
                database.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
                return _Reader(path, database, now).read()
        except _UNREADABLE as error:
            if sqlite_code(error) in _IN_USE:
                raise StoreError(f"{path} is in use by another process") from error
            damage = damage or str(error)
            if sqlite_code(error) not in _NOT_OPENED:
                break
    return Found(damage=damage)


def _has_content(path: Path) -> bool:
    """Return whether there is a file that is to be read; StoreError as by `read`."""
    try:
        found = path.stat()
        is_file = stat.S_ISREG(found.st_mode)
        with path.open("rb") if is_file else contextlib.nullcontext():
            pass
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except FileNotFoundError:
        if path.is_symlink():
            raise StoreError(f"{path} is a symbolic link to a file that does not exist") from None
        return False
    except OSError as error:
        if not is_of_the_disk(error):
            raise StoreError(f"{path}: {error.strerror}") from error
        return True
    if not is_file:
        raise StoreError(f"{path} is not a file: set `path` in [store] to where leases are to be kept")
    for each in (path, path.parent):
        if not read_only and not os.access(each, os.W_OK, effective_ids=True):
            raise StoreError(f"{each} may not be written by this user: run igd as its owner, or chown it")
    return found.st_size > 0 or path.with_name(f"{path.name}-wal").exists()


class _Reader:
    """Reads one opened file; `_damage` is the first thing that was wrong with it."""

    def __init__(self, path: Path, database: sqlite3.Connection, now: Moment) -> None:
        self._path = path
        self._database = database
        self._now = now
        self._damage = ""
        self._warnings: list[str] = []

    def read(self) -> Found:
        """Return what can be read; StoreError, or one of _UNREADABLE if that is nothing."""
        tables = self._tables()
        if not tables:
            return Found(damage=self._damage)
        if tables.isdisjoint(schema.TABLES):
            raise StoreError(f"{self._path} was written by another program: set `path` in [store] to another file")
        version, is_marked = self._version()
        self._check()
        since, state = self._state(version)
        move = self._move(version, since)
        entries = self._entries(version, move)
        hold_downs = self._hold_downs(move or 0.0) if version > 2 else []
        is_current = is_marked and since and since.boot == self._now.boot and move == 0 and not self._damage
        return Found(
            entries, hold_downs, state, self._damage, recorded=since if is_current else None, warnings=self._warnings
        )

    def _tables(self) -> set[str]:
        self._database.text_factory = _text
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        try:
            return {name for (name,) in self._database.execute(query)}
        except _UNREADABLE as error:
            self._damage = str(error)
            self._database.execute("PRAGMA writable_schema = ON")  # what is wrong with one table hides no other
            return {name for (name,) in self._database.execute(query)}

    def _version(self) -> tuple[int, bool]:
        """Return the format, and whether it is this version's and marked as such; StoreError if it is unknown."""
        ((version,),) = self._database.execute("PRAGMA user_version")
        ((application,),) = self._database.execute("PRAGMA application_id")
        if application == schema.APPLICATION:
            if version != schema.VERSION:
                self._damage = f"format {version} is not that of its application_id"
            return schema.VERSION, True
        if version not in range(1, schema.VERSION + 1):
            raise StoreError(
                f"{self._path} was written by another version (format {version}, expected {schema.VERSION}): install"
                " that version, or delete the file to begin without mappings"
            )
        return version, False

    def _check(self) -> None:
        verdict = [text for (text,) in self._fetch("PRAGMA integrity_check(1)")]
        if verdict != ["ok"]:
            self._damage = self._damage or " ".join(" ".join(map(str, verdict)).split())

    def _state(self, version: int) -> tuple[Moment | None, schema.State | None]:
        """Return the recorded moment, and the state with times of the boot of the reading."""
        now = self._now
        for row in self._fetch("SELECT * FROM state") if version > 1 else ():
            try:
                if version == 2:  # it has wall times
                    began, address = row
                    move = now.boottime - now.wall
                    return None, schema.State.read(rows.seconds(began) + move, address, 0, now.boottime)
                boot, boottime, wall, began, address, bootid = row
                since = Moment(rows.text(boot), rows.seconds(boottime), rows.seconds(wall))
                began = rows.seconds(began) + shift(since, now)
                return since, schema.State.read(began, address, bootid, now.boottime)
            except (ValueError, TypeError) as error:
                self._drop("state", row, error)
        return None, None

    def _move(self, version: int, since: Moment | None) -> float | None:
        """Return what turns the times of the leases into those of the boot of the reading; None if nothing can tell."""
        if version < 3:  # it has wall times
            return self._now.boottime - self._now.wall
        if since is None:
            return None
        if passed(since, self._now) is None:
            self._warnings.append("the wall clock is or was wrong: leases last as if no time had passed since the stop")
        return shift(since, self._now)

    def _entries(self, version: int, move: float | None) -> dict[Key, Entry]:
        entries: dict[Key, Entry] = {}
        latest = self._now.boottime + UNDATED_SECONDS if move is None else math.inf
        unique_ids: set[int] = set()
        numbers = itertools.count(UNIQUE_IDS.start)
        for row in self._leases():
            try:
                entry = rows.read_lease(_of_this_version(version, row, numbers), move or 0.0, latest)
                if entry.mapping.key in entries:
                    raise ValueError("the port of another row")  # noqa: TRY301 - one more thing that is wrong with it
                if isinstance(entry.mapping, Pinhole):
                    if entry.mapping.unique_id in unique_ids:
                        raise ValueError("the UniqueID of another row")  # noqa: TRY301 - one more
                    unique_ids.add(entry.mapping.unique_id)
                entries[entry.mapping.key] = entry
            except (ValueError, TypeError) as error:
                self._drop("lease", row, error)
        return entries

    def _hold_downs(self, move: float) -> list[HoldDown]:
        found = []
        for row in self._fetch("SELECT * FROM hold_down"):
            try:
                found.append(rows.read_hold_down(row, move, self._now.boottime))
            except (ValueError, TypeError) as error:
                self._drop("hold-down", row, error)
        return sorted(found, key=lambda each: each.until)

    def _drop(self, kind: str, row: Row, error: Exception) -> None:
        """Leave out a row that is not as it was saved."""
        self._damage = self._damage or f"{kind}: {error}"
        if len(self._warnings) < LOGGED_ROWS:
            self._warnings.append(
                f"{self._path}: not a {kind} that was saved, and dropped ({error}): {_in_words(kind, row)}"
            )

    def _fetch(self, query: str) -> Iterator[Row]:
        """Return the rows up to the first that cannot be read."""
        try:
            yield from self._database.execute(query)
        except _UNREADABLE as error:
            self._damage = self._damage or str(error)

    def _leases(self) -> Sequence[Row]:
        query = "SELECT * FROM lease NOT INDEXED ORDER BY rowid LIMIT ?"
        self._database.text_factory = str  # twice as fast as the other
        try:
            return self._database.execute(query, [MAX_ROWS]).fetchall()
        except _UNREADABLE as error:
            self._damage = self._damage or str(error)
            return self._salvaged()

    def _salvaged(self) -> Sequence[Row]:
        """Read the rows of a table of which parts cannot be read: a range that fails is halved."""
        self._database.text_factory = _text
        query = "SELECT * FROM lease NOT INDEXED WHERE rowid BETWEEN ? AND ? ORDER BY rowid LIMIT ?"
        found: list[Row] = []
        failures = 0
        ranges = [(1, self._last_row())]
        while ranges and failures < MAX_FAILURES and len(found) < MAX_ROWS:
            low, high = ranges.pop()
            try:
                found += self._database.execute(query, (low, high, MAX_ROWS)).fetchall()
            except _UNREADABLE:
                failures += 1
                if low < high:
                    middle = (low + high) // 2
                    ranges += [(middle + 1, high), (low, middle)]
        return found

    def _last_row(self) -> int:
        """Return the last rowid, as far as the table or its index can be read, or the largest that there can be."""
        for query in _LAST_ROW:
            with contextlib.suppress(*_UNREADABLE):
                ((last,),) = self._database.execute(query)
                return int(last)
        return 2**63 - 1


def _text(octets: bytes) -> str:
    return octets.decode(errors="surrogateescape")


def _in_words(kind: str, row: Row) -> str:
    """Return the start of each value of a row, with its column's name if the row has this version's columns."""
    columns = schema.columns(kind.replace("-", "_"))
    names = [f"{name.replace('_', ' ')} " for name in columns] if len(columns) == len(row) else [""] * len(row)
    return ", ".join(f"{name}{value!r:.60}" for name, value in zip(names, row, strict=True))


def _of_this_version(version: int, row: Row, numbers: Iterator[int]) -> Row:
    """Return a row with the columns of this version; a pinhole of an older one gets the next of `numbers`."""
    if version == 1:
        protocol, port, *destination, expires, endless = row
        row = (protocol, port, "", *destination, "", None, expires, endless)
    return (*row, next(numbers) if any(row[2:3]) else 0) if version < 4 else row
