"""Whatever is in the lease file, igd starts, with all leases that can be read; the damaged file is put aside."""

import contextlib
import logging
import math
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from igd.core.mapping import (
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
from igd.core.moment import Moment
from igd.core.table import HOLD_DOWN, MAX_REMOTES
from igd.store import files, reading
from igd.store.leases import LeaseStore
from tests.store.opened import KEY, OTHER_KEY, START, TODAY, Clocks, entry, opened, stored

COUNT = int(os.environ.get("IGD_DAMAGES", "160"))
"""How many files are damaged, by hand also many more."""

NONCE = b"twelve bytes"
PORTS = range(1, 101)


def lease(number: int) -> Entry:
    """Return one of the kinds of leases that there are."""
    protocol, peer = TransportProtocol.TCP if number % 2 else TransportProtocol.UDP, KEY if number % 3 else OTHER_KEY
    inside = Endpoint(IPv4Address("10.100.0.2") + number % 5, 1000 + number)
    until = Lease(1600.0 + number, endless=number % 7 == 0)
    match number % 4:
        case 0:
            claim = Claim(by_internal=True, nonce=NONCE)
            return Entry(PortMapping(protocol, number, inside, peer, "torrent ü 🏠", (), claim), until)
        case 1:
            remotes = Remote(IPv4Network("198.51.100.0/24"), 53), Remote(IPv4Network("203.0.113.7"))
            return Entry(PortMapping(protocol, number, inside, peer, "", remotes), until)
        case 2:
            outside = Endpoint(IPv6Address("2001:db8::2"), number)
            remotes6 = (Remote(IPv6Network("2001:db8:1::/48")),)
            return Entry(Pinhole(protocol, outside, peer, "web", remotes6, BY_INTERNAL_ENDPOINT, number), until)
        case _:
            return Entry(PortMapping(protocol, number, inside, peer, "x" * number), until)


LEASES = [lease(number) for number in PORTS]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Make a directory in memory: some file systems take milliseconds for each new file."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def originals(directory: Path) -> dict[str, dict[str, bytes]]:
    """Return the files that a stopped igd leaves and those that a killed one leaves, by suffix of their names."""
    path = directory / "original" / "leases.sqlite"
    with opened(path) as store:
        store.save([Change(None, entry(60000))])
        store.save([Change(entry(60000), None), *(Change(None, each) for each in LEASES[:50])])
    if (child := os.fork()) == 0:
        store = LeaseStore(path, Clocks())
        store.save([Change(None, each) for each in LEASES[50:]])
        os._exit(0)  # the journal stays
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    killed = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal")}
    assert stored(path) == LEASES
    return {"killed": killed, "stopped": {"": path.read_bytes()}}


Damage = Callable[[bytearray, random.Random], None]


def one_byte(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)


def two_bytes(content: bytearray, rng: random.Random) -> None:
    one_byte(content, rng)
    one_byte(content, rng)


def one_bit(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def zeroed_block(content: bytearray, rng: random.Random) -> None:
    size = rng.choice([16, 512, 4096])
    start = rng.randrange(0, len(content), size)
    content[start : start + size] = bytes(len(content[start : start + size]))


def random_block(content: bytearray, rng: random.Random) -> None:
    size = rng.choice([16, 512, 4096])
    start = rng.randrange(0, len(content), size)
    content[start : start + size] = rng.randbytes(len(content[start : start + size]))


def swapped_pages(content: bytearray, rng: random.Random) -> None:
    one, other = (4096 * rng.randrange(len(content) // 4096) for _ in range(2))
    content[one : one + 4096], content[other : other + 4096] = content[other : other + 4096], content[one : one + 4096]


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def extended(content: bytearray, rng: random.Random) -> None:
    content += rng.randbytes(rng.choice([1, 4096, 10_000]))


DAMAGES: list[Damage] = [one_byte, one_bit, two_bytes, zeroed_block, random_block, swapped_pages, cut, extended]
SMALL = one_byte, one_bit, two_bytes


def assert_valid(found: Entry) -> None:
    """Assert what the rest of igd relies on."""
    mapping, version = found.mapping, 6 if isinstance(found.mapping, Pinhole) else 4
    assert type(mapping.protocol) is TransportProtocol
    assert mapping.internal.address.version == version
    assert 1 <= mapping.external_port <= 65535
    assert 1 <= mapping.internal.port <= 65535
    assert len(mapping.peer) == 44
    assert mapping.peer.isascii()
    mapping.description.encode()
    assert len(mapping.remotes) <= MAX_REMOTES
    assert all(remote.network.version == version and 0 <= remote.port <= 65535 for remote in mapping.remotes)
    assert len(mapping.claim.nonce) in ((0, 12) if mapping.claim.by_internal else (0,))
    assert math.isfinite(found.lease.expires)


def survives(path: Path, now: Moment) -> list[Entry]:
    """Start and stop a store, assert that what it returns is valid and saved, and return its leases."""
    with opened(path, now) as store:
        loaded = store.load()
        for each in loaded:
            assert_valid(each)
        assert len({each.mapping.key for each in loaded}) == len(loaded)
        assert all(each.until <= now.boottime + HOLD_DOWN for each in store.hold_downs())
        assert 0 <= now.boottime - store.epoch_began() < 2**32
        assert 0 <= store.next_bootid() < 2**31
        store.record_address(IPv4Address("60.60.60.1"))
        new = entry(50000, now.boottime + 60)
        if new.mapping.key not in {each.mapping.key for each in loaded}:
            store.save([Change(None, new)])
            loaded = [*loaded, new]
    assert sorted(map(repr, stored(path, now))) == sorted(map(repr, loaded))
    return loaded


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("state", ["stopped", "killed"])
def test_igd_starts_with_a_file_damaged_at_random(
    directory: Path, originals: dict[str, dict[str, bytes]], state: str, damage: Damage
) -> None:
    kept = 0
    rounds = COUNT // len(DAMAGES) // 2
    for seed in range(rounds):
        rng = random.Random(seed)
        path = directory / f"{state} {damage.__name__} {seed}" / "leases.sqlite"
        path.parent.mkdir()
        contents = {suffix: bytearray(content) for suffix, content in originals[state].items()}
        damage(contents[rng.choice(sorted(contents))], rng)
        for suffix, content in contents.items():
            Path(f"{path}{suffix}").write_bytes(content)
        now = rng.choice([START, Moment("first", 1100.0, TODAY + 100), Moment("second", 5.0, TODAY + 100)])
        found = {each.mapping for each in survives(path, now)}
        kept += len(found & {each.mapping for each in LEASES})
        shutil.rmtree(path.parent)
    assert kept / rounds / len(LEASES) > (0.8 if state == "stopped" and damage in SMALL else 0.0)


BAD_ROWS = {
    "another protocol": "protocol = 1",
    "protocol 0": "protocol = 0",
    "port 0": "external_port = 0",
    "port 70000": "external_port = 70000",
    "a text as a port": "external_port = 'x'",
    "internal port 0": "internal_port = 0",
    "internal port 70000": "internal_port = 70000",
    "a fraction as a port": "internal_port = 80.5",
    "no address": "internal_address = 'nowhere'",
    "an IPv6 address without a pinhole": "internal_address = '2001:db8::1'",
    "a number as an address": "internal_address = X'0A640002'",
    "a pinhole of another address": "pinhole = '2001:db8::1'",
    "a pinhole of no address": "pinhole = 'x', internal_address = 'x'",
    "no public key": "peer = 'c1'",
    "a short public key": "peer = 'MTE='",
    "a text that is no UTF-8": "description = CAST(X'FF80' AS TEXT)",
    "a peer that is no UTF-8": "peer = CAST(X'FF' AS TEXT)",
    "octets as a text": "description = X'80'",
    "no remotes": "remotes = 'anywhere 1'",
    "remotes of host bits": "remotes = '198.51.100.7/24 0'",
    "remotes without a port": "remotes = '198.51.100.0/24'",
    "remotes with port 70000": "remotes = '198.51.100.0/24 70000'",
    "remotes of IPv6": "remotes = '2001:db8::/32 0'",
    "too many remotes": "remotes = rtrim(replace(hex(zeroblob(9)), '00', '198.51.100.0/24 1' || char(10)) ||"
    " replace(hex(zeroblob(9)), '00', '198.51.100.0/24 2' || char(10)), char(10))",
    "a nonce of 3 octets": "nonce = X'010203'",
    "a text as a nonce": "nonce = 'twelve bytes'",
    "an infinite lease": "expires = 9e999",
    "a lease that ends in the infinite past": "expires = -9e999",
    "a text as a time": "expires = 'soon'",
    "a third kind of lease": "endless = 2",
    "a UniqueID of a port mapping": "unique_id = 7",
}

BAD_PINHOLES = {
    "no UniqueID": "unique_id = 0",
    "a UniqueID out of range": "unique_id = 65536",
    "a text as a UniqueID": "unique_id = 'seven'",
    "the UniqueID of another pinhole": "unique_id = 1",
    "a remote that is not the key's": "remotes = '2001:db8::/32 443'",
    "a claim with which the remote is not in the key": "nonce = X''",
    "no remote for the key": "remotes = ''",
}


@pytest.mark.parametrize("assignment", BAD_PINHOLES.values(), ids=BAD_PINHOLES)
def test_a_row_that_is_no_pinhole_is_dropped(path: Path, assignment: str) -> None:
    inside = Endpoint(IPv6Address("2001:db8::2"), 80)
    remotes = [(Remote(IPv6Network(text)),) for text in ("2001:db8::1/128", "2001:db8::/32", "2001:db8::3/128")]
    holes = [Pinhole(TransportProtocol.TCP, inside, KEY, "", each, unique_id=n) for n, each in enumerate(remotes, 1)]
    entries = [Entry(hole, Lease(1600.0)) for hole in holes]
    with opened(path) as store:
        store.save([Change(None, each) for each in entries])
    assert stored(path) == entries
    change(path, "UPDATE lease SET ... WHERE unique_id = 2".replace("...", assignment))
    with opened(path) as store:
        assert store.load() == [entries[0], entries[2]]
        assert store.is_new, "mappings were lost"


@pytest.mark.parametrize("assignment", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_is_no_lease_is_logged_and_dropped(
    path: Path, assignment: str, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(port)) for port in (1, 2, 3)])
    change(path, "UPDATE lease SET ... WHERE external_port = 2".replace("...", assignment))
    later = Moment("first", 1060.0, TODAY + 60)
    with caplog.at_level(logging.WARNING), opened(path, later) as store:
        assert store.load() == [entry(1), entry(3)]
        assert store.is_new, "mappings were lost"
        assert store.epoch_began() == 1060.0
    assert "not a lease that was saved" in caplog.text
    (line,) = [each for each in caplog.messages if f"{path} is damaged (" in each]
    assert line.endswith(f": 2 leases could be read; it becomes {aside(path)} once there is a new file")
    assert aside(path).exists()
    assert stored(path, later) == [entry(1), entry(3)]


def change(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def aside(path: Path, number: str = "") -> Path:
    return path.with_name(f"leases.sqlite.damaged{number}")


def test_of_two_rows_for_one_port_the_first_is_kept(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(1)), Change(None, entry(2))])
    change(
        path,
        "CREATE TABLE copy AS SELECT * FROM lease",
        "INSERT INTO copy SELECT * FROM lease",
        "DROP TABLE lease",
        "ALTER TABLE copy RENAME TO lease",
    )
    with opened(path) as store:
        assert store.load() == [entry(1), entry(2)]


def test_a_dropped_row_is_in_words_which_are_short(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(8043, description="d" * 1000))])
    change(path, "UPDATE lease SET internal_port = 0", "INSERT INTO hold_down VALUES (17, 0, 'p', 1.0)")
    lease, hold_down = reading.read(path, START).warnings
    assert "(not a port): protocol 17, external port 8043, pinhole '', internal address '10.100.0.2', in" in lease
    assert len(lease) < len(str(path)) + 500
    assert hold_down.endswith("(not a port): protocol 17, external port 0, peer 'p', until 1.0")


def test_an_empty_file_is_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path):
        pass
    assert caplog.messages == [], "a first start"
    for journal in path.parent.glob("*-wal"):
        journal.unlink()
    path.write_bytes(b"")
    with opened(path) as store:
        assert store.is_new
    assert caplog.messages == [f"{path} is empty: igd begins without leases"]


def test_of_a_thousand_bad_rows_ten_are_logged(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(port)) for port in range(1, 1001)])
    change(path, "UPDATE lease SET peer = ''")
    assert len(reading.read(path, START).warnings) == reading.LOGGED_ROWS


@pytest.mark.parametrize(
    ("assignment", "hold_downs"),
    [
        ("protocol = 2", 0),
        ("external_port = 0", 0),
        ("peer = 'c1'", 0),
        ("until = 9e999", 0),
        ("until = 1200", 0),  # it would last longer than any
        ("until = 1100", 1),
    ],
)
def test_a_hold_down_that_is_none_is_dropped(path: Path, assignment: str, hold_downs: int) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(1)), Change(None, entry(2)), Change(entry(2), None)])
    change(path, "UPDATE hold_down SET ...".replace("...", assignment))
    with opened(path) as store:
        assert store.load() == [entry(1)]
        assert len(store.hold_downs()) == hold_downs


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM state",
        "DROP TABLE state",
        "UPDATE state SET boot = CAST(X'FF' AS TEXT)",
        "UPDATE state SET boottime = 9e999",
        "UPDATE state SET wall = 'noon'",
        "UPDATE state SET began = -9e99",
        "UPDATE state SET address = '60.60.60'",
        "UPDATE state SET bootid = -1",
        "UPDATE state SET bootid = 2147483648",
    ],
)
def test_without_a_valid_state_no_lease_lasts_longer_than_an_hour(path: Path, statement: str) -> None:
    """It is unknown whether the times are those of this boot."""
    long = entry(2, 1000.0 + 86400)
    with opened(path) as store:
        store.save([Change(None, entry(1)), Change(None, long)])
        store.record_address(IPv4Address("60.60.60.1"))
    change(path, statement)
    with opened(path) as store:
        left = [each.lease.expires - 1000 for each in store.load()]
        assert left in ([600.0, reading.UNDATED_SECONDS], [600.0, 86400.0])
        assert left[1] == reading.UNDATED_SECONDS or "boot" not in statement
        assert store.is_new
        assert store.epoch_began() == 1000.0
        assert store.next_bootid() == int(TODAY)


def test_an_epoch_that_begins_later_begins_now(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(1))])
    change(path, "UPDATE state SET began = 1e9")
    with opened(path) as store:
        assert store.epoch_began() == 1000.0


def killed(path: Path, changes: list[Change]) -> None:
    """Leave what an igd leaves that is killed after it has saved these changes."""
    if (child := os.fork()) == 0:
        LeaseStore(path, Clocks()).save(changes)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_leases_are_read_from_the_journal_of_a_damaged_file(path: Path) -> None:
    killed(path, [Change(None, each) for each in LEASES])
    path.write_bytes(b"this is not a database" * 1000)
    for _again in range(2):
        with opened(path) as store:
            assert store.load() == LEASES
    assert aside(path).exists()


def test_the_journal_of_a_damaged_file_is_not_applied_to_the_new_one(path: Path) -> None:
    killed(path, [Change(None, each) for each in LEASES])
    path.write_bytes(b"this is not a database" * 1000)
    journal = Path(f"{path}-wal")
    journal.write_bytes(b"damaged" + journal.read_bytes()[7:])
    for _again in range(2):
        with opened(path) as store:
            assert store.load() == []
    assert aside(path).read_bytes() == b"this is not a database" * 1000


def test_three_damaged_files_are_kept(path: Path) -> None:
    for number in range(5):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"damage %d" % number)
        with opened(path) as store:
            store.save([Change(None, entry(1))])
    assert [aside(path, number).read_bytes() for number in ("", ".1", ".2")] == [b"damage 4", b"damage 3", b"damage 2"]
    assert len(list(path.parent.iterdir())) == 1 + files.KEPT


@pytest.mark.parametrize("step", range(1, 12))
def test_a_crash_while_a_damaged_file_is_put_aside_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    killed(path, [Change(None, entry(port)) for port in (1, 2)])
    change(path, "UPDATE lease SET peer = '' WHERE external_port = 2")
    aside(path).write_bytes(b"an earlier one")
    if (child := os.fork()) == 0:
        steps = iter(range(step - 1))
        for name in ("replace", "unlink", "chmod"):
            call = getattr(Path, name)

            def counted(*arguments: object, call: Callable[..., object] = call, **named: object) -> object:
                if next(steps, None) is None:
                    os._exit(9)
                return call(*arguments, **named)

            setattr(Path, name, counted)
        LeaseStore(path, Clocks())
        os._exit(0)
    os.waitpid(child, 0)
    with opened(path) as store:
        assert store.load() == [entry(1)]
    kept = [each.read_bytes() for each in path.parent.glob("*.damaged*") if not each.name.endswith("-wal")]
    assert b"an earlier one" in kept
