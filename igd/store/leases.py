"""The lease file: SQLite, with wall time in the file and monotonic time in the leases."""

import contextlib
import functools
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from igd.core.mapping import Change, Claim, Endpoint, Entry, Lease, Pinhole, PortMapping, Remote, TransportProtocol

log = logging.getLogger(__name__)

VERSION = 2
_TABLE = """
    CREATE TABLE IF NOT EXISTS lease (
        protocol INTEGER NOT NULL,
        external_port INTEGER NOT NULL,
        pinhole TEXT NOT NULL,  -- the IPv6 address, or empty: a port mapping
        internal_address TEXT NOT NULL,
        internal_port INTEGER NOT NULL,
        peer TEXT NOT NULL,
        description TEXT NOT NULL,
        remotes TEXT NOT NULL,  -- "NETWORK PORT" lines; empty: all sources
        nonce BLOB,  -- the claim: the nonce, empty without one; NULL: by external port only
        expires REAL NOT NULL,  -- seconds since 1970: monotonic time ends with the boot
        endless INTEGER NOT NULL,
        UNIQUE (protocol, external_port, pinhole)
    );
    CREATE TABLE IF NOT EXISTS state (
        began REAL NOT NULL,  -- seconds since 1970
        address TEXT NOT NULL  -- the external address announced to clients; empty: none yet
    )
"""
_FROM_VERSION_1 = """
    INSERT INTO lease SELECT protocol, external_port, '', internal_address, internal_port, peer, description, '',
        NULL, expires, endless FROM lease_1 ORDER BY rowid;
    DROP TABLE lease_1;
"""
_SAVE = """
    INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (protocol, external_port, pinhole) DO UPDATE SET
        internal_address = excluded.internal_address, internal_port = excluded.internal_port,
        peer = excluded.peer, description = excluded.description, remotes = excluded.remotes,
        nonce = excluded.nonce, expires = excluded.expires, endless = excluded.endless
"""
_DELETE = "DELETE FROM lease WHERE protocol = ? AND external_port = ? AND pinhole = ?"


class StoreError(OSError):
    """The store cannot be read or written; nothing was saved."""


class LeaseStore:
    """The leases of one interface in one SQLite file, used by one thread at a time.

    `is_new`: there was no readable file. A damaged file is renamed to `*.damaged` and a new one is created, so that the
    gateway starts in any case. Methods raise StoreError.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._wall_clock = wall_clock
        self._preloaded: list[Entry] | None = None
        with self._store_errors():
            try:
                self._database = self._open()
            except (sqlite3.DatabaseError, ValueError) as error:
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
        if version not in (0, 1, VERSION):
            raise StoreError(
                f"{self._path} was written by another version (format {version}, expected {VERSION}): install that"
                " version, or delete the file to begin without mappings"
            )
        before, after = ("ALTER TABLE lease RENAME TO lease_1;", _FROM_VERSION_1) if version == 1 else ("", "")
        database.executescript(f"BEGIN; {before} {_TABLE}; {after} PRAGMA user_version = {VERSION}; COMMIT;")
        begin = "INSERT INTO state SELECT ?, '' WHERE NOT EXISTS (SELECT * FROM state)"
        self.is_new = database.execute(begin, [self._wall_clock()]).rowcount == 1
        (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        self._preloaded = self._read(database)  # a damaged row is found now, not during a change

    def _read(self, database: sqlite3.Connection) -> list[Entry]:
        shift = self._clock() - self._wall_clock()
        return [_entry(row, shift) for row in database.execute("SELECT * FROM lease ORDER BY rowid")]

    def _rename(self) -> Path:
        """Rename the file. Its journal stays, and SQLite deletes it when it creates the new file."""
        return self._path.replace(self._path.with_name(self._path.name + ".damaged"))

    def load(self) -> list[Entry]:
        """Read all leases, oldest first, including expired ones."""
        entries, self._preloaded = self._preloaded, None
        with self._store_errors():
            return self._read(self._database) if entries is None else entries

    def record_address(self, address: IPv4Address) -> bool:
        """Record the external address announced to clients; return whether it replaces another one."""
        with self._store_errors(), self._database:  # commits, or rolls back after an exception
            self._database.execute("BEGIN")
            (before,) = self._database.execute("SELECT address FROM state").fetchone()
            self._database.execute("UPDATE state SET address = ?", [str(address)])
            replaced = before not in ("", str(address))
            if replaced:
                self._database.execute("UPDATE state SET began = ?", [self._wall_clock()])
        return replaced

    def age(self) -> float:
        """Return the seconds since the file was created or the external address was replaced."""
        with self._store_errors():
            (began,) = self._database.execute("SELECT began FROM state").fetchone()
        return max(0.0, self._wall_clock() - float(began))

    def save(self, changes: Sequence[Change]) -> None:
        """Save all of these changes, or none."""
        shift = self._wall_clock() - self._clock()
        self._preloaded = None
        with self._store_errors(), self._database:
            self._database.execute("BEGIN")
            for change in changes:
                if change.after:
                    self._database.execute(_SAVE, _row(change.after, shift))
                elif change.before:
                    self._database.execute(_DELETE, _key(change.before))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"{self._path}: {error}") from error


def addresses_in(path: Path) -> list[IPv4Address | IPv6Address]:
    """Return the internal addresses in a store, or none if there is no readable store."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return [ip_address(text) for (text,) in database.execute("SELECT DISTINCT internal_address FROM lease")]
    except (sqlite3.Error, ValueError) as error:
        log.debug("cannot read %s: %s", path, error)
        return []


def _key(entry: Entry) -> tuple[int, int, str]:
    mapping = entry.mapping
    pinhole = str(mapping.internal.address) if isinstance(mapping, Pinhole) else ""
    return mapping.protocol, mapping.external_port, pinhole


def _row(entry: Entry, shift: float) -> tuple[int | str | float | bytes | None, ...]:
    mapping = entry.mapping
    return (
        *_key(entry),
        str(mapping.internal.address),
        mapping.internal.port,
        mapping.peer,
        mapping.description,
        "\n".join(f"{remote.network} {remote.port}" for remote in mapping.remotes),
        mapping.claim.nonce if mapping.claim.by_internal else None,
        entry.lease.expires + shift,
        entry.lease.endless,
    )


def _entry(row: tuple[int, int, str, str, int, str, str, str, bytes | None, float, int], shift: float) -> Entry:
    protocol, external_port, pinhole, address, port, peer, description, remotes, nonce, expires, endless = row
    lease = Lease(expires + shift, bool(endless))
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
