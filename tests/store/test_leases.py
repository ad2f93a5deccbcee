"""Leases are read back as they were saved, or the store raises an error."""

import contextlib
import logging
import os
import sqlite3
import tempfile
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
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
from tests.store.opened import Clocks, entry, opened


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


def test_saved_leases_survive_kill(path: Path) -> None:
    if (child := os.fork()) == 0:
        LeaseStore(path, Clocks()).save([Change(None, entry())])
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
        LeaseStore(path, Clocks()).save([Change(None, entry(5000))])
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
        LeaseStore(path, Clocks())
    assert path.read_bytes() == before
    assert not path.with_name("leases.sqlite.damaged").exists()


def test_a_path_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "leases.sqlite").mkdir()
    with pytest.raises(StoreError, match="unable to open"):
        LeaseStore(tmp_path / "leases.sqlite", Clocks())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        LeaseStore(tmp_path / "file" / "leases.sqlite", Clocks())


@pytest.mark.root
def test_a_read_only_directory_is_an_error() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory, "leases.sqlite")
        filled(path)
        path.parent.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match=r"readonly|unable to open"):
                LeaseStore(path, Clocks())
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
