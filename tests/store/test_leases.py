"""Leases are read back as they were saved, or the store raises an error."""

import contextlib
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from igd.store.leases import LeaseStore, StoreError
from tests.gateway_harness import Clock


def entry(port: int = 8043, expires: float = 1600.0, description: str = "", *, endless: bool = False) -> Entry:
    mapping = PortMapping(TransportProtocol.UDP, port, Endpoint(IPv4Address("10.100.0.2"), 80), "key=", description)
    return Entry(mapping, Lease(expires, endless))


@contextlib.contextmanager
def opened(path: Path, now: float = 1000.0, wall: float = 1.7e9) -> Iterator[LeaseStore]:
    store = LeaseStore(path, clock=Clock(now), wall_clock=Clock(wall))
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "leases.sqlite"


def test_a_new_store_is_empty_and_creates_its_directory(path: Path) -> None:
    with opened(path) as store:
        assert store.load() == []


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


def endpoints(version: Literal[4, 6]) -> st.SearchStrategy[Endpoint]:
    return st.builds(Endpoint, st.ip_addresses(v=version), st.integers(1, 65535))


def remotes(version: Literal[4, 6]) -> st.SearchStrategy[tuple[Remote, ...]]:
    bits = 32 if version == 4 else 128
    networks = st.builds(
        lambda address, prefix: ip_network((address, prefix), strict=False),
        st.ip_addresses(v=version),
        st.integers(0, bits),
    )
    return st.lists(st.builds(Remote, networks, st.integers(0, 65535)), max_size=3).map(tuple)


protocols = st.sampled_from(TransportProtocol)
claims = st.sampled_from([BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT]) | st.builds(
    Claim, st.just(value=True), st.binary(min_size=12, max_size=12)
)
mappings = st.one_of(
    st.builds(PortMapping, protocols, st.integers(1, 65535), endpoints(4), texts, texts, remotes(4), claims),
    st.builds(Pinhole, protocols, endpoints(6), texts, texts, remotes(6), claims),
)
entries = st.builds(Entry, mappings, st.builds(Lease, st.integers(0, 10**7).map(float), st.booleans()))


@given(held=st.lists(entries, max_size=8, unique_by=lambda each: each.mapping.key))
def test_saved_leases_are_read_back_in_order(tmp_path_factory: pytest.TempPathFactory, held: list[Entry]) -> None:
    path = tmp_path_factory.mktemp("store") / "leases.sqlite"
    with opened(path) as store:
        store.save([Change(None, each) for each in held])
    with opened(path) as store:
        assert store.load() == held


@pytest.mark.parametrize(
    ("claim", "column"),
    [(BY_EXTERNAL_PORT, None), (BY_INTERNAL_ENDPOINT, b""), (Claim(by_internal=True, nonce=b"n" * 12), b"n" * 12)],
)
def test_the_nonce_column_tells_the_claims_apart(path: Path, claim: Claim, column: bytes | None) -> None:
    with opened(path) as store:
        store.save([Change(None, replace(entry(), mapping=replace(entry().mapping, claim=claim)))])
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT nonce FROM lease").fetchall() == [(column,)]


def test_pinholes_to_one_port_of_several_addresses_coexist(path: Path) -> None:
    def pinhole(address: str) -> Entry:
        return Entry(Pinhole(TransportProtocol.TCP, Endpoint(IPv6Address(address), 80), "key="), Lease(1600.0))

    first, second = pinhole("2001:db8::1"), pinhole("2001:db8::2")
    with opened(path) as store:
        store.save([Change(None, first), Change(None, second)])
        store.save([Change(first, None)])
        assert store.load() == [second]


def test_the_age_continues_over_restarts_and_starts_again_with_a_new_file(path: Path) -> None:
    with opened(path, wall=1000.0) as store:
        assert store.age() == 0.0
    with opened(path, wall=1060.0) as store:
        assert store.age() == 60.0
    with opened(path, wall=900.0) as store:
        assert store.age() == 0.0, "the wall clock was set back"
    path.write_bytes(b"damaged" * 1000)
    with opened(path, wall=2000.0) as store:
        assert store.age() == 0.0


def test_the_age_starts_again_with_another_address(path: Path) -> None:
    home, away = IPv4Address("60.60.60.1"), IPv4Address("60.60.60.9")
    with opened(path, wall=1000.0) as store:
        assert store.is_new
        assert not store.record_address(home), "a new file had no address"
    with opened(path, wall=1060.0) as store:
        assert not store.is_new
        assert not store.record_address(home)
        assert store.age() == 60.0
        assert store.record_address(away)
        assert store.age() == 0.0
        assert not store.record_address(away)


_VERSION_1 = """
    CREATE TABLE lease (
        protocol INTEGER NOT NULL, external_port INTEGER NOT NULL, internal_address TEXT NOT NULL,
        internal_port INTEGER NOT NULL, peer TEXT NOT NULL, description TEXT NOT NULL,
        expires REAL NOT NULL, endless INTEGER NOT NULL, UNIQUE (protocol, external_port)
    );
    INSERT INTO lease VALUES (17, 8044, '10.100.0.2', 80, 'key=', 'newer', 1700000600.0, 0);
    INSERT INTO lease VALUES (17, 8043, '10.100.0.2', 80, 'key=', 'old', 1700000600.0, 1);
    PRAGMA user_version = 1;
"""


def test_a_store_of_the_first_version_is_converted(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(_VERSION_1)
    expected = [entry(8044, description="newer"), entry(8043, description="old", endless=True)]
    for _again in range(2):
        with opened(path) as store:
            assert store.load() == expected
            store.save([Change(expected[0], expected[0])])


@pytest.mark.parametrize("description", ["", "a\0b", "torrent ü 🏠 \n\t'\";--", "\x7f\u202e"])
def test_descriptions_are_read_back_unchanged(path: Path, description: str) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(description=description))])
        assert store.load() == [entry(description=description)]


def test_a_lease_that_cannot_be_written_is_an_error_and_nothing_is_saved(path: Path) -> None:
    """Codecs reject a lone surrogate. If one came through, only its own request would be refused."""
    with opened(path) as store:
        store.save([Change(None, entry(1))])
        with pytest.raises(StoreError):
            store.save([Change(entry(1), None), Change(None, entry(2)), Change(None, entry(3, description="\ud800"))])
        assert store.load() == [entry(1)]
        store.save([Change(None, entry(2))])
        assert store.load() == [entry(1), entry(2)]


def test_a_renewal_keeps_its_place_in_the_order(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(1)), Change(None, entry(2)), Change(None, entry(3))])
        store.save([Change(entry(1), entry(1, 9000.0, "new", endless=True)), Change(entry(2), None)])
        assert store.load() == [entry(1, 9000.0, "new", endless=True), entry(3)]


def test_deleting_a_missing_lease_is_no_error(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(entry(1), None)])
        assert store.load() == []


@pytest.mark.parametrize(
    ("now", "wall", "left"),
    [
        (1000.0, 1.7e9, 600.0),  # at once
        (5.0, 1.7e9 + 100, 500.0),  # after a reboot
        (2000.0, 1.7e9 + 1000, -400.0),  # expired
        (1000.0, 1.7e9 + 1e8, 600.0 - 1e8),  # the wall clock jumped ahead
        (1000.0, 0.0, 600.0 + 1.7e9),  # no battery-backed clock; the gateway shortens leases that are too long
    ],
)
def test_leases_run_on_wall_time_while_the_daemon_is_stopped(path: Path, now: float, wall: float, left: float) -> None:
    with opened(path) as store:
        store.save([Change(None, entry())])
    with opened(path, now, wall) as store:
        (loaded,) = store.load()
    assert loaded.lease.expires - now == pytest.approx(left)


def test_saved_leases_survive_kill(path: Path) -> None:
    if (child := os.fork()) == 0:
        LeaseStore(path, clock=Clock(), wall_clock=Clock(1.7e9)).save([Change(None, entry())])
        os._exit(9)  # nothing is closed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with opened(path) as store:
        assert store.load() == [entry()]


def filled(path: Path, rows: int = 300) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(port, description="x" * 100)) for port in range(1, rows)])


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def damage_row(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE lease SET internal_address = 'nowhere'")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"this is not a database" * 100),
        lambda path: overwrite(
            path, 4096 * 3, os.urandom(4096)
        ),  # a page of rows, which opening the file does not read
        lambda path: overwrite(path, 4096 * 2, bytes(4096)),
        lambda path: os.truncate(path, 4096 * 4),
        damage_row,
    ],
    ids=["junk", "page", "index", "cut", "row"],
)
def test_a_damaged_file_is_renamed(path: Path, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    filled(path)
    damage(path)  # type: ignore[operator]
    with caplog.at_level(logging.ERROR), opened(path) as store:
        assert store.load() == []
        store.save([Change(None, entry(7))])
    assert "is damaged" in caplog.text
    assert path.with_name("leases.sqlite.damaged").exists()
    with opened(path) as store:
        assert store.load() == [entry(7)]


def test_the_journal_of_a_damaged_file_is_not_applied_to_the_new_one(path: Path) -> None:
    if (child := os.fork()) == 0:
        filled(path, 2000)
        LeaseStore(path, clock=Clock(), wall_clock=Clock()).save([Change(None, entry(5000))])
        os._exit(0)  # the journal stays
    os.waitpid(child, 0)
    assert path.with_name("leases.sqlite-wal").stat().st_size
    path.write_bytes(b"this is not a database" * 1000)
    for _ in range(2):
        with opened(path) as store:
            assert store.load() == []


def test_a_file_of_an_unknown_version_is_not_changed(path: Path) -> None:
    filled(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 7")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"another version .*7"):
        LeaseStore(path, clock=Clock(), wall_clock=Clock())
    assert path.read_bytes() == before
    assert not path.with_name("leases.sqlite.damaged").exists()


def test_a_path_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "leases.sqlite").mkdir()
    with pytest.raises(StoreError, match="unable to open"):
        LeaseStore(tmp_path / "leases.sqlite", clock=Clock(), wall_clock=Clock())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        LeaseStore(tmp_path / "file" / "leases.sqlite", clock=Clock(), wall_clock=Clock())


@pytest.mark.root
def test_a_read_only_directory_is_an_error() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory, "leases.sqlite")
        filled(path)
        path.parent.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match=r"readonly|unable to open"):
                LeaseStore(path, clock=Clock(), wall_clock=Clock())
        finally:
            os.seteuid(0)
        assert not path.with_name("leases.sqlite.damaged").exists()


def test_a_full_disk_saves_nothing_and_later_saves_succeed(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(1))])
        limit = store._database.execute("PRAGMA max_page_count = 1").fetchone()
        assert limit
        with pytest.raises(StoreError, match="full"):
            store.save([Change(None, entry(port, description="x" * 250)) for port in range(2, 200)])
        assert store.load() == [entry(1)]
        store._database.execute("PRAGMA max_page_count = 100000")
        store.save([Change(entry(1), None)])
        assert store.load() == []
