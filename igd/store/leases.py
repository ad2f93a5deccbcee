"""The lease file: SQLite. Leases, hold-downs and epoch survive crashes and reboots; times are those of `boottime`."""

import contextlib
import functools
import logging
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from igd.core.mapping import Change, Claim, Endpoint, Entry, Lease, Pinhole, PortMapping, Remote, TransportProtocol
from igd.core.moment import Moment, was_set
from igd.core.table import HOLD_DOWN, HoldDown
from igd.store import schema
from igd.store.read_only import read_only

log = logging.getLogger(__name__)

_SAVE = """
    INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (protocol, external_port, pinhole) DO UPDATE SET
        internal_address = excluded.internal_address, internal_port = excluded.internal_port,
        peer = excluded.peer, description = excluded.description, remotes = excluded.remotes,
        nonce = excluded.nonce, expires = excluded.expires, endless = excluded.endless
"""
_DELETE = "DELETE FROM lease WHERE protocol = ? AND external_port = ? AND pinhole = ?"
_HOLD_DOWN = "INSERT OR REPLACE INTO hold_down VALUES (?, ?, ?, ?)"


class StoreError(OSError):
    """The store cannot be read or written; nothing was saved."""


class LeaseStore:
    """The leases of one interface in one SQLite file, used by one thread at a time.

    `is_new`: there was no readable file. A damaged file is renamed to `*.damaged` and a new one is created, so that the
    gateway starts in any case. Each transaction records the time, for what is left of the leases after a reboot
    (`igd.core.moment`). Methods raise StoreError.
    """

    def __init__(self, path: Path, now: Callable[[], Moment]) -> None:
        self._path = path
        self._now = now
        self._preloaded: list[Entry] | None = None
        self._swept = -math.inf  # when outdated hold-downs were last deleted
        with self._store_errors():
            try:
                self._database = self._open()
            except (sqlite3.DatabaseError, ValueError, TypeError) as error:
                if isinstance(error, sqlite3.OperationalError):  # no permission or a full disk, no damage
                    raise
                log.error("%s is damaged (%s): renamed to %s", path, error, self._rename())
                self._database = self._open()

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        # Commits survive kill -9. A power loss may lose the last ones, and the rules in the kernel as well.
        database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in range(schema.VERSION + 1):
            raise StoreError(
                f"{self._path} was written by another version (format {version}, expected {schema.VERSION}): install"
                " that version, or delete the file to begin without mappings"
            )
        self._recorded = self._now()
        self.is_new = schema.prepare(database, version, self._recorded)
        (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        self._preloaded = _read(database)  # a damaged row is found now, not during a change

    def _rename(self) -> Path:
        """Rename the file. Its journal stays, and SQLite deletes it when it creates the new file."""
        return self._path.replace(self._path.with_name(self._path.name + ".damaged"))

    def load(self) -> list[Entry]:
        """Read all leases, oldest first, including expired ones."""
        entries, self._preloaded = self._preloaded, None
        with self._store_errors():
            return _read(self._database) if entries is None else entries

    def hold_downs(self) -> list[HoldDown]:
        """Read the hold-downs that have not ended, in the order in which they end."""
        with self._store_errors():
            rows = self._database.execute(
                "SELECT protocol, external_port, peer, until FROM hold_down WHERE until > ? ORDER BY until",
                [self._now().boottime],
            )
            return [HoldDown((TransportProtocol(protocol), port), peer, until) for protocol, port, peer, until in rows]

    def record_address(self, address: IPv4Address) -> bool:
        """Record the external address announced to clients; return whether it replaces another one."""
        with self._transaction() as now:
            (before,) = self._database.execute("SELECT address FROM state").fetchone()
            self._database.execute("UPDATE state SET address = ?", [str(address)])
            replaced = before not in ("", str(address))
            if replaced:
                self._database.execute("UPDATE state SET began = ?", [now.boottime])
        return replaced

    def epoch_began(self) -> float:
        """Return the boottime at which the file was created or the external address was replaced; may be negative."""
        with self._store_errors():
            (began,) = self._database.execute("SELECT began FROM state").fetchone()
        return float(began)

    def next_bootid(self) -> int:
        """Return a value for BOOTID.UPNP.ORG, larger than any before, whatever the wall clock shows.

        If it cannot be stored, this is logged, and the value is the wall time.
        """
        seconds = int(self._now().wall) % 2**31
        try:
            with self._transaction():
                self._database.execute("UPDATE state SET bootid = max(bootid + 1, ?)", [seconds])
                (bootid,) = self._database.execute("SELECT bootid FROM state").fetchone()
        except StoreError as error:
            log.warning("BOOTID.UPNP.ORG is not stored: %s", error)
            return seconds
        return int(bootid)

    def save(self, changes: Sequence[Change]) -> None:
        """Save all of these changes, or none."""
        self._preloaded = None
        with self._transaction() as now:
            for change in changes:
                if change.after:
                    self._database.execute(_SAVE, _row(change.after))
                elif change.before:
                    self._close_lease(change.before, now.boottime)

    def _close_lease(self, entry: Entry, now: float) -> None:
        mapping = entry.mapping
        self._database.execute(_DELETE, _key(entry))
        if isinstance(mapping, PortMapping):
            if now - self._swept >= HOLD_DOWN:
                self._database.execute("DELETE FROM hold_down WHERE until <= ?", [now])
                self._swept = now
            self._database.execute(_HOLD_DOWN, [*mapping.key, mapping.peer, now + HOLD_DOWN])

    def record_time(self) -> None:
        """Record the time if the wall clock was set since it was last recorded."""
        if was_set(self._recorded, self._now()):
            with self._transaction():
                pass
            log.info("the wall clock was set: leases go on as before")

    def close(self) -> None:
        """Record the time, and close the file."""
        try:
            with self._transaction():
                pass
        except StoreError as error:
            log.warning("%s", error)
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Moment]:
        """Commit what is executed in this block, and the time, to the second; or nothing, after an exception."""
        now = self._now()
        outdated = now.boottime - self._recorded.boottime > 1.0 or was_set(self._recorded, now)
        with self._store_errors(), self._database:
            self._database.execute("BEGIN")
            yield now
            if outdated:
                schema.record(self._database, now)
        if outdated:
            self._recorded = now

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"{self._path}: {error}") from error


def addresses_in(path: Path) -> list[IPv4Address | IPv6Address]:
    """Return the internal addresses in a store, or none if there is no readable store."""
    try:
        with read_only(path) as database:
            return [ip_address(text) for (text,) in database.execute("SELECT DISTINCT internal_address FROM lease")]
    except (sqlite3.Error, ValueError, OSError) as error:
        log.debug("cannot read %s: %s", path, error)
        return []


def _key(entry: Entry) -> tuple[int, int, str]:
    mapping = entry.mapping
    pinhole = str(mapping.internal.address) if isinstance(mapping, Pinhole) else ""
    return mapping.protocol, mapping.external_port, pinhole


def _read(database: sqlite3.Connection) -> list[Entry]:
    return [_entry(row) for row in database.execute("SELECT * FROM lease ORDER BY rowid")]


def _row(entry: Entry) -> tuple[int | str | float | bytes | None, ...]:
    mapping = entry.mapping
    return (
        *_key(entry),
        str(mapping.internal.address),
        mapping.internal.port,
        mapping.peer,
        mapping.description,
        "\n".join(f"{remote.network} {remote.port}" for remote in mapping.remotes),
        mapping.claim.nonce if mapping.claim.by_internal else None,
        entry.lease.expires,
        entry.lease.endless,
    )


def _entry(row: tuple[int, int, str, str, int, str, str, str, bytes | None, float, int]) -> Entry:
    protocol, external_port, pinhole, address, port, peer, description, remotes, nonce, expires, endless = row
    lease = Lease(float(expires), bool(endless))
    about = peer, description, tuple(map(_remote, remotes.splitlines())), _claim(nonce)
    if pinhole:
        return Entry(Pinhole(TransportProtocol(protocol), Endpoint(_ipv6(pinhole), port), *about), lease)
    return Entry(PortMapping(TransportProtocol(protocol), external_port, Endpoint(_ipv4(address), port), *about), lease)


# Parsing an address takes as long as the rest of an entry, and a host with many mappings has one address.
_ipv4, _ipv6 = functools.lru_cache(1024)(IPv4Address), functools.lru_cache(1024)(IPv6Address)


@functools.lru_cache(1024)
def _claim(nonce: bytes | None) -> Claim:
    return Claim(by_internal=nonce is not None, nonce=nonce or b"")


def _remote(line: str) -> Remote:
    network, port = line.split(" ")
    return Remote(ip_network(network), int(port))
