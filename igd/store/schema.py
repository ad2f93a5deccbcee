"""The tables of the lease file, and how a file of an older format or of an earlier boot becomes one of this boot."""

import logging
import sqlite3

from igd.core.moment import Moment, passed, shift

log = logging.getLogger(__name__)

VERSION = 3
_TABLES = (
    """
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
        expires REAL NOT NULL,  -- boottime
        endless INTEGER NOT NULL,
        UNIQUE (protocol, external_port, pinhole)
    )
    """,
    """
    CREATE TABLE IF NOT EXISTS hold_down (
        protocol INTEGER NOT NULL,
        external_port INTEGER NOT NULL,
        peer TEXT NOT NULL,  -- that held the port
        until REAL NOT NULL,  -- boottime
        PRIMARY KEY (protocol, external_port)
    ) WITHOUT ROWID
    """,
    # All times in the file are boottime of `boot`: seconds on CLOCK_BOOTTIME. The wall time of one moment, the last one
    # recorded, is what converts them after a reboot.
    """
    CREATE TABLE IF NOT EXISTS state (
        boot TEXT NOT NULL,
        boottime REAL NOT NULL,  -- of the recorded moment
        wall REAL NOT NULL,  -- of the recorded moment: seconds since 1970
        began REAL NOT NULL,  -- boottime at which the epoch was 0
        address TEXT NOT NULL,  -- the external address announced to clients; empty: none yet
        bootid INTEGER NOT NULL  -- the last BOOTID.UPNP.ORG
    )
    """,
)
_FROM_VERSION_1 = (
    """
    INSERT INTO lease SELECT protocol, external_port, '', internal_address, internal_port, peer, description, '',
        NULL, expires, endless FROM lease_1 ORDER BY rowid
    """,
    "DROP TABLE lease_1",
)
_STATE_FROM_VERSION_2 = (
    """
    INSERT INTO state SELECT :boot, :boottime, :wall, min(began - :wall + :boottime, :boottime), address, 0 FROM state_2
    """,
    "DROP TABLE state_2",
)
_NEW_STATE = """
    INSERT INTO state SELECT :boot, :boottime, :wall, :boottime, '', 0 WHERE NOT EXISTS (SELECT * FROM state)
"""


def prepare(database: sqlite3.Connection, version: int, now: Moment) -> bool:
    """Create or convert the tables of a file of this format, 0 to VERSION; return whether it had no state.

    All times are those of the boot of `now` afterwards. sqlite3.Error; then nothing has changed.
    """
    with database:  # commits, or rolls back after an exception
        database.execute("BEGIN")
        is_new = _convert(database, version, now)
        _move_to_boot(database, now)
        database.execute(f"PRAGMA user_version = {VERSION}")
    return is_new


def _convert(database: sqlite3.Connection, version: int, now: Moment) -> bool:
    clocks = {"boot": now.boot, "boottime": now.boottime, "wall": now.wall}
    if version == 1:
        database.execute("ALTER TABLE lease RENAME TO lease_1")
    if version == 2:
        database.execute("ALTER TABLE state RENAME TO state_2")
    for table in _TABLES:
        database.execute(table)
    for statement in _FROM_VERSION_1 if version == 1 else ():
        database.execute(statement)
    if version in (1, 2):  # its leases end at wall time
        database.execute("UPDATE lease SET expires = expires - :wall + :boottime", clocks)
    for statement in _STATE_FROM_VERSION_2 if version == 2 else ():
        database.execute(statement, clocks)
    return database.execute(_NEW_STATE, clocks).rowcount == 1


def _move_to_boot(database: sqlite3.Connection, now: Moment) -> None:
    """Turn all times into those of the boot of `now`."""
    boot, boottime, wall = database.execute("SELECT boot, boottime, wall FROM state").fetchone()
    since = Moment(str(boot), float(boottime), float(wall))
    if passed(since, now) is None:
        log.warning("the wall clock is or was wrong: leases last as if no time had passed since the stop")
    if move := shift(since, now):
        database.execute("UPDATE lease SET expires = expires + ?", [move])
        database.execute("UPDATE hold_down SET until = until + ?", [move])
        database.execute("UPDATE state SET began = began + ?", [move])
    record(database, now)


def record(database: sqlite3.Connection, now: Moment) -> None:
    """Record this moment, in the current transaction."""
    database.execute("UPDATE state SET boot = ?, boottime = ?, wall = ?", [now.boot, now.boottime, now.wall])
