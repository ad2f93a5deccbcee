"""Leases are read back as they were saved, or the store raises an error."""

import base64
import contextlib
import os
import sqlite3
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
from igd.core.unique_ids import UNIQUE_IDS
from igd.store.files import StoreError
from igd.store.leases import LeaseStore
from tests.store.opened import KEY, Clocks, entry, opened, stored


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
keys = st.binary(min_size=32, max_size=32).map(lambda octets: base64.b64encode(octets).decode())
claims = st.sampled_from([BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT]) | st.builds(
    Claim, st.just(value=True), st.binary(min_size=12, max_size=12)
)
mappings = st.one_of(
    st.builds(PortMapping, protocols, st.integers(1, 65535), endpoints(4), keys, texts, remotes(4), claims),
    st.builds(Pinhole, protocols, endpoints(6), keys, texts, remotes(6), claims, st.sampled_from(UNIQUE_IDS)),
)
entries = st.builds(Entry, mappings, st.builds(Lease, st.integers(0, 10**7).map(float), st.booleans()))


def identities(entry: Entry) -> tuple[object, object]:
    """Return what no other entry has: its key, and the UniqueID of a pinhole."""
    mapping = entry.mapping
    return mapping.key, mapping.unique_id if isinstance(mapping, Pinhole) else mapping.key


@given(held=st.lists(entries, max_size=8, unique_by=(lambda one: identities(one)[0], lambda one: identities(one)[1])))
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
        internal = Endpoint(IPv6Address(address), 80)
        return Entry(Pinhole(TransportProtocol.TCP, internal, KEY, unique_id=int(address[-1])), Lease(1600.0))

    first, second = pinhole("2001:db8::1"), pinhole("2001:db8::2")
    with opened(path) as store:
        store.save([Change(None, first), Change(None, second)])
        store.save([Change(first, None)])
    assert stored(path) == [second]


@pytest.mark.parametrize("description", ["", "a\0b", "torrent ü 🏠 \n\t'\";--", "\x7f\u202e"])
def test_descriptions_are_read_back_unchanged(path: Path, description: str) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(description=description))])
    assert stored(path) == [entry(description=description)]


def test_a_lease_that_cannot_be_written_is_an_error_and_nothing_is_saved(path: Path) -> None:
    """Codecs reject a lone surrogate. If one came through, only its own request would be refused."""
    with opened(path) as store:
        store.save([Change(None, entry(1))])
        with pytest.raises(StoreError):
            store.save([Change(entry(1), None), Change(None, entry(2)), Change(None, entry(3, description="\ud800"))])
        assert store.load() == [entry(1)]
        store.save([Change(None, entry(2))])
        assert store.load() == [entry(1), entry(2)]
    assert stored(path) == [entry(1), entry(2)]


def test_a_renewal_keeps_its_place_in_the_order(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(1)), Change(None, entry(2)), Change(None, entry(3))])
        store.save([Change(entry(1), entry(1, 9000.0, "new", endless=True)), Change(entry(2), None)])
        assert store.load() == [entry(1, 9000.0, "new", endless=True), entry(3)]
    assert stored(path) == [entry(1, 9000.0, "new", endless=True), entry(3)]


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
