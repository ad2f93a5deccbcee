"""Files of older versions are converted."""

import contextlib
import sqlite3
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from igd.core.mapping import BY_INTERNAL_ENDPOINT, Change, Endpoint, Pinhole, Remote, TransportProtocol
from igd.core.moment import Moment
from igd.store.files import StoreError
from igd.store.leases import LeaseStore
from igd.store.schema import APPLICATION, VERSION
from tests.store.opened import KEY, TODAY, YEAR, Clocks, entry, opened

# Up to version 2, times in the file were wall time.

_VERSION_1 = """
    CREATE TABLE lease (
        protocol INTEGER NOT NULL, external_port INTEGER NOT NULL, internal_address TEXT NOT NULL,
        internal_port INTEGER NOT NULL, peer TEXT NOT NULL, description TEXT NOT NULL,
        expires REAL NOT NULL, endless INTEGER NOT NULL, UNIQUE (protocol, external_port)
    );
    INSERT INTO lease VALUES (17, 8044, '10.100.0.2', 80, 'KEY', 'newer', 1900000600.0, 0);
    INSERT INTO lease VALUES (17, 8043, '10.100.0.2', 80, 'KEY', 'old', 1900000600.0, 1);
    PRAGMA user_version = 1;
"""
_VERSION_2 = """
    CREATE TABLE lease (
        protocol INTEGER NOT NULL, external_port INTEGER NOT NULL, pinhole TEXT NOT NULL,
        internal_address TEXT NOT NULL, internal_port INTEGER NOT NULL,
        peer TEXT NOT NULL, description TEXT NOT NULL, remotes TEXT NOT NULL, nonce BLOB,
        expires REAL NOT NULL, endless INTEGER NOT NULL, UNIQUE (protocol, external_port, pinhole)
    );
    CREATE TABLE state (began REAL NOT NULL, address TEXT NOT NULL);
    INSERT INTO state VALUES (1899996400.0, '60.60.60.1');
    INSERT INTO lease VALUES (17, 8044, '', '10.100.0.2', 80, 'KEY', 'newer', '', NULL, 1900000600.0, 0);
    INSERT INTO lease VALUES (17, 8043, '', '10.100.0.2', 80, 'KEY', 'old', '', NULL, 1900000600.0, 1);
    PRAGMA user_version = 2;
"""
_VERSION_3 = """
    CREATE TABLE lease (
        protocol INTEGER NOT NULL, external_port INTEGER NOT NULL, pinhole TEXT NOT NULL,
        internal_address TEXT NOT NULL, internal_port INTEGER NOT NULL,
        peer TEXT NOT NULL, description TEXT NOT NULL, remotes TEXT NOT NULL, nonce BLOB,
        expires REAL NOT NULL, endless INTEGER NOT NULL, UNIQUE (protocol, external_port, pinhole)
    );
    CREATE TABLE hold_down (
        protocol INTEGER NOT NULL, external_port INTEGER NOT NULL, peer TEXT NOT NULL, until REAL NOT NULL,
        PRIMARY KEY (protocol, external_port)
    ) WITHOUT ROWID;
    CREATE TABLE state (
        boot TEXT NOT NULL, boottime REAL NOT NULL, wall REAL NOT NULL, began REAL NOT NULL, address TEXT NOT NULL,
        bootid INTEGER NOT NULL
    );
    INSERT INTO state VALUES ('first', 940.0, 1899999940.0, 900.0, '60.60.60.1', 1900000000);
    INSERT INTO hold_down VALUES (6, 9000, 'KEY', 1050.0);
    INSERT INTO lease VALUES (17, 8044, '', '10.100.0.2', 80, 'KEY', 'newer', '', NULL, 1600.0, 0);
    INSERT INTO lease VALUES (17, 8043, '', '10.100.0.2', 80, 'KEY', 'old', '', NULL, 1600.0, 1);
    PRAGMA user_version = 3;
    PRAGMA application_id = 1768383491;
"""
_PINHOLES_3 = """
    INSERT INTO lease VALUES (6, 80, '2001:db8::2', '2001:db8::2', 80, 'KEY', '', '2001:db8::/32 0', X'', 1600.0, 0);
    INSERT INTO lease VALUES (6, 443, '2001:db8::2', '2001:db8::2', 443, 'KEY', '', '', X'', 1600.0, 0);
"""


def written(path: Path, statements: str) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(statements.replace("'KEY'", f"'{KEY}'"))


@pytest.mark.parametrize("statements", [_VERSION_1, _VERSION_2, _VERSION_3], ids=["1", "2", "3"])
def test_a_store_of_an_older_version_is_converted(path: Path, statements: str) -> None:
    written(path, statements)
    expected = [entry(8044, description="newer"), entry(8043, description="old", endless=True)]
    for _again in range(2):
        with opened(path) as store:
            assert store.load() == expected
            store.save([Change(expected[0], expected[0])])


def test_all_of_the_third_version_goes_on_and_pinholes_get_unique_ids_that_stay(path: Path) -> None:
    written(path, _VERSION_3 + _PINHOLES_3)
    seen = []
    for _again in range(2):
        with opened(path) as store:
            assert not store.is_new
            assert store.epoch_began() == 900.0
            assert store.hold_downs() == [((TransportProtocol.TCP, 9000), KEY, 1050.0)]
            assert not store.record_address(IPv4Address("60.60.60.1"))
            seen.append([each.mapping for each in store.load()])
    assert seen[0] == seen[1]
    internal = [Endpoint(IPv6Address("2001:db8::2"), port) for port in (80, 443)]
    about = TransportProtocol.TCP, KEY, ""
    remotes = (Remote(IPv6Network("2001:db8::/32")),)
    assert seen[0][2:] == [
        Pinhole(about[0], internal[0], *about[1:], remotes, BY_INTERNAL_ENDPOINT, unique_id=1),
        Pinhole(about[0], internal[1], *about[1:], (), BY_INTERNAL_ENDPOINT, unique_id=2),
    ]
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)


def test_the_epoch_and_the_address_of_the_second_version_go_on(path: Path) -> None:
    written(path, _VERSION_2)
    with opened(path) as store:
        assert not store.is_new
        assert store.epoch_began() == 1000.0 - 3600
        assert store.record_address(IPv4Address("60.60.60.2")), "it was another"


def test_an_epoch_of_the_second_version_that_begins_in_the_future_begins_now(path: Path) -> None:
    written(path, _VERSION_2)
    with opened(path, Moment("first", 1000.0, TODAY - YEAR)) as store:
        assert store.epoch_began() == 1000.0


def test_a_file_of_a_newer_version_is_not_changed(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry())])
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
        database.execute(f"PRAGMA application_id = {APPLICATION + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"another version .*{VERSION + 1}.* install that version, or delete"):
        LeaseStore(path, Clocks())
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("pragma", ["user_version", "application_id"])
@pytest.mark.parametrize("number", [0, 1, 2, VERSION + 1, APPLICATION + 1, 2**31 - 1])
def test_one_damaged_number_is_no_other_version(path: Path, pragma: str, number: int) -> None:
    with opened(path) as store:
        store.save([Change(None, entry())])
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA {pragma} = {number}")
    with opened(path) as store:
        assert store.load() == [entry()]
