"""Leases that survive: SQLite, and the only place where wall time and monotonic time meet."""

import contextlib
import functools
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    Change,
    Claim,
    Endpoint,
    Entry,
    Lease,
    Pinhole,
    PortMapping,
    Remote,
    TransportProtocol,
)

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
        remotes TEXT NOT NULL,  -- "NETWORK PORT", one a line; empty: everybody
        nonce BLOB,  -- what PCP guards it by; empty: NAT-PMP asked for it, NULL: neither has
        expires REAL NOT NULL,  -- seconds since 1970: monotonic time does not outlive a boot
        endless INTEGER NOT NULL,
        UNIQUE (protocol, external_port, pinhole)
    );
    CREATE TABLE IF NOT EXISTS state (
        began REAL NOT NULL,  -- seconds since 1970
        address TEXT NOT NULL  -- the external one that clients were told; empty: none yet
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
        nonce = excluded.nonce,
        expires = excluded.expires, endless = excluded.endless
"""
_DELETE = "DELETE FROM lease WHERE protocol = ? AND external_port = ? AND pinhole = ?"
_LOAD = "SELECT * FROM lease ORDER BY rowid"


class StoreError(OSError):
    """The store cannot be read or written; what was to be saved is not."""


class LeaseStore:
    """The leases of one interface in one SQLite file, used by one thread at a time.

    `begun_anew`: there was no file, or none that could be read. A damaged file is put aside as `*.damaged` and another
    begun: a gateway that does not start helps nobody. Raises StoreError.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._wall_clock = wall_clock
        self._read_already: list[Entry] | None = None
        with self._trouble():
            try:
                self._database = self._open()
            except (sqlite3.DatabaseError, ValueError) as error:
                if isinstance(error, sqlite3.OperationalError):  # no permission, disk full: not the file's fault
                    raise
                log.error("%s is damaged (%s): put aside as %s", path, error, self._put_aside())  # noqa: TRY400
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
        # Survives kill -9; a power loss may lose the last moments, and the kernel's rules with them.
        database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, 1, VERSION):
            raise StoreError(f"{self._path} was written by another version (its format is {version}, ours {VERSION})")
        before, after = ("ALTER TABLE lease RENAME TO lease_1;", _FROM_VERSION_1) if version == 1 else ("", "")
        database.executescript(f"BEGIN; {before} {_TABLE}; {after} PRAGMA user_version = {VERSION}; COMMIT;")
        begin = "INSERT INTO state SELECT ?, '' WHERE NOT EXISTS (SELECT * FROM state)"
        self.begun_anew = database.execute(begin, [self._wall_clock()]).rowcount == 1
        (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        self._read_already = self._read(database)  # now rather than in the midst of a change

    def _read(self, database: sqlite3.Connection) -> list[Entry]:
        shift = self._clock() - self._wall_clock()
        return [_entry(row, shift) for row in database.execute(_LOAD)]

    def _put_aside(self) -> Path:
        """Move the file out of the way; its journal stays, and SQLite deletes it when it finds a new file beside it."""
        return self._path.replace(self._path.with_name(self._path.name + ".damaged"))

    def load(self) -> list[Entry]:
        """Read all leases, oldest first, what has run out in the meantime included."""
        entries, self._read_already = self._read_already, None
        with self._trouble():
            return self._read(self._database) if entries is None else entries

    def tell(self, address: IPv4Address) -> bool:
        """Remember that clients are told this external address; say whether that loses what they were told before.

        It does where there was another, and in a new file there is nothing to lose.
        """
        with self._trouble(), self._transaction():
            (before,) = self._database.execute("SELECT address FROM state").fetchone()
            self._database.execute("UPDATE state SET address = ?", [str(address)])
            if before not in ("", str(address)):
                self._database.execute("UPDATE state SET began = ?", [self._wall_clock()])
        return before not in ("", str(address))

    def age(self) -> float:
        """Tell for how many seconds nothing has been lost: since the file was begun, or the address was another."""
        with self._trouble():
            (began,) = self._database.execute("SELECT began FROM state").fetchone()
        return max(0.0, self._wall_clock() - float(began))

    def save(self, changes: Sequence[Change]) -> None:
        """Make these changes durable, all or none."""
        shift = self._wall_clock() - self._clock()
        self._read_already = None
        with self._trouble(), self._transaction():
            for change in changes:
                if change.after:
                    self._database.execute(_SAVE, _row(change.after, shift))
                elif change.before:
                    self._database.execute(_DELETE, _key(change.before))

    def close(self) -> None:
        """Release the file."""
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # a full disk may have rolled it back already
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"{self._path}: {error}") from error


def addresses_in(path: Path) -> list[IPv4Address | IPv6Address]:
    """Give the internal addresses in a store, for who clears up; none where there is no store that can be read."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return [ip_address(text) for (text,) in database.execute("SELECT DISTINCT internal_address FROM lease")]
    except (sqlite3.Error, ValueError) as error:
        log.debug("%s: %s", path, error)
        return []


def _key(entry: Entry) -> tuple[int, int, str]:
    mapping = entry.mapping
    return (
        mapping.protocol,
        mapping.external_port,
        str(mapping.internal.address) if isinstance(mapping, Pinhole) else "",
    )


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
    if not nonce:
        return BY_EXTERNAL_PORT if nonce is None else BY_INTERNAL_ENDPOINT
    return Claim(by_internal=True, nonce=nonce)


def _remote(line: str) -> Remote:
    network, port = line.split(" ")
    return Remote(ip_network(network), int(port))
