"""The tables of the lease file, and the state that is in it beside leases and hold-downs."""

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd.core.mapping import Entry
from igd.core.moment import Moment
from igd.core.table import HoldDown
from igd.store import rows

VERSION = 4
APPLICATION = 0x69676400 + VERSION
"""The file's application_id: "igd" and the version again, so that a damaged version is not one of a newer igd."""

BOOTIDS = 2**31
"""One more than the largest BOOTID.UPNP.ORG."""

_EPOCHS = 2**32

TABLES = {
    "lease": """
    CREATE TABLE lease (
        protocol INTEGER NOT NULL,
        external_port INTEGER NOT NULL,
        pinhole TEXT NOT NULL,  -- the IPv6 address, and UPnP's remote; empty: a port mapping
        internal_address TEXT NOT NULL,
        internal_port INTEGER NOT NULL,
        peer TEXT NOT NULL,
        description TEXT NOT NULL,
        remotes TEXT NOT NULL,  -- "NETWORK PORT" lines; empty: all sources
        nonce BLOB,  -- the claim: the nonce, empty without one; NULL: by external port only
        expires REAL NOT NULL,  -- boottime
        endless INTEGER NOT NULL,
        unique_id INTEGER NOT NULL,  -- of a pinhole; 0: a port mapping
        UNIQUE (protocol, external_port, pinhole)
    )
    """,
    "hold_down": """
    CREATE TABLE hold_down (
        protocol INTEGER NOT NULL,
        external_port INTEGER NOT NULL,
        peer TEXT NOT NULL,  -- that held the port
        until REAL NOT NULL,  -- boottime
        PRIMARY KEY (protocol, external_port)
    ) WITHOUT ROWID
    """,
    # All times in the file are boottime of `boot`: seconds on CLOCK_BOOTTIME. The wall time of one moment, the last one
    # recorded, is what converts them after a reboot.
    "state": """
    CREATE TABLE state (
        boot TEXT NOT NULL,
        boottime REAL NOT NULL,  -- of the recorded moment
        wall REAL NOT NULL,  -- of the recorded moment: seconds since 1970
        began REAL NOT NULL,  -- boottime at which the epoch was 0
        address TEXT NOT NULL,  -- the external address announced to clients; empty: none yet
        bootid INTEGER NOT NULL  -- the last BOOTID.UPNP.ORG
    )
    """,
}
SAVE_HOLD_DOWN = "INSERT OR REPLACE INTO hold_down VALUES (?, ?, ?, ?)"


def columns(table: str) -> list[str]:
    """Return the names of the columns of a table."""
    return re.findall(r"(?m)^        ([a-z_]+) [A-Z]+ ?", TABLES[table])


@dataclass(slots=True)
class State:
    """The epoch's begin (a boottime; may be negative), the announced external address, and the last BOOTID.UPNP.ORG."""

    began: float
    address: IPv4Address | None = None
    bootid: int = 0

    @classmethod
    def read(cls, began: float, address: object, bootid: object, now: float) -> "State":
        """Return the state of columns that may contain anything, at boottime `now`; ValueError or TypeError."""
        if not (type(bootid) is int and bootid in range(BOOTIDS) and now - began < _EPOCHS):
            raise ValueError("out of range")
        return cls(min(began, now), IPv4Address(rows.text(address)) if address else None, bootid)


def fill(
    database: sqlite3.Connection, entries: Iterable[Entry], hold_downs: Iterable[HoldDown], state: State, now: Moment
) -> None:
    """Give the file these contents instead of those of any version that it has, in one transaction; sqlite3.Error."""
    with database:  # commits, or rolls back after an exception
        database.execute("BEGIN IMMEDIATE")
        for name, create in TABLES.items():
            database.execute(f"DROP TABLE IF EXISTS {name}")
            database.execute(create)
        leases = map(rows.lease_row, entries)
        database.executemany("INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", leases)
        database.executemany(SAVE_HOLD_DOWN, ((*key, peer, until) for key, peer, until in hold_downs))
        record(database, state, now)
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute(f"PRAGMA application_id = {APPLICATION}")


def record(database: sqlite3.Connection, state: State, now: Moment) -> None:
    """Record the state and this moment, in the current transaction."""
    database.execute("DELETE FROM state")
    row = now.boot, now.boottime, now.wall, state.began, str(state.address or ""), state.bootid
    database.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", row)
