"""igd starts with a full or read-only disk, keeps the leases that it can read, and saves all when there is room."""

import contextlib
import logging
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igd.core.mapping import Change
from igd.core.moment import Moment
from igd.store.files import StoreError
from igd.store.leases import REOPEN_SECONDS, LeaseStore
from tests.store.opened import START, TODAY, Clocks, entry, opened, stored

pytestmark = pytest.mark.root

HELD = [entry(port, description="x" * 100) for port in range(1, 101)]
REBOOTED = Moment("second", 5.0, TODAY + 100)
AGED = [entry(port, 505.0, description="x" * 100) for port in range(1, 101)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 256 KiB in memory."""
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", directory), check=True)
    yield directory
    subprocess.run(("umount", "--lazy", directory), check=True)


@pytest.fixture
def path(disk: Path) -> Path:
    return disk / "leases.sqlite"


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """Leave no room on this disk in the block."""
    junk = disk / "junk"
    with junk.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    junk.unlink()


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(("mount", "-o", "remount,ro", disk), check=True)
    yield
    subprocess.run(("mount", "-o", "remount,rw", disk), check=True)


@contextlib.contextmanager
def broken(_disk: Path) -> Iterator[None]:
    """Let each write fail in the block, as one does on a broken disk: SQLite reports both as an I/O error."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


TROUBLES = pytest.mark.parametrize("trouble", [full, read_only, broken], ids=lambda each: each.__name__)


def killed(path: Path, changes: list[Change]) -> None:
    """Leave what an igd leaves that is killed after it has saved these changes."""
    if (child := os.fork()) == 0:
        LeaseStore(path, Clocks()).save(changes)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("trouble", [full, broken], ids=lambda each: each.__name__)
def test_what_could_not_be_saved_can_be_saved_when_there_is_room(disk: Path, path: Path, trouble: object) -> None:
    clocks = Clocks()
    with opened(path, clocks) as store:
        store.save([Change(None, each) for each in HELD])
        with trouble(disk):  # type: ignore[operator]
            for _ in range(3):
                with pytest.raises(StoreError):
                    store.save([Change(None, entry(port, description="x" * 250)) for port in range(200, 900)])
                assert store.load() == HELD
            assert store.next_bootid() == int(TODAY)
        clocks.now = Moment("first", 1000.0 + REOPEN_SECONDS, TODAY + REOPEN_SECONDS)
        store.save([Change(HELD[0], None)])
    assert stored(path, clocks.now) == HELD[1:]


@TROUBLES
@pytest.mark.parametrize("state", ["stopped", "killed", "rebooted", "damaged"])
def test_igd_starts_with_what_it_can_read_and_writes_it_when_there_is_room(
    disk: Path, path: Path, trouble: object, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    killed(path, [Change(None, each) for each in HELD])
    if state != "killed":
        with opened(path):
            pass
    if state == "damaged":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 4096)
    clocks = Clocks(REBOOTED if state == "rebooted" else START)
    expected = AGED if state == "rebooted" else HELD[: None if state != "damaged" else -40]
    with trouble(disk):  # type: ignore[operator]
        before = path.read_bytes()
        for _again in range(2):
            with opened(path, clocks) as store, caplog.at_level(logging.ERROR):
                assert store.load()[: len(expected)] == expected
                with pytest.raises(StoreError):
                    store.save([Change(None, entry(port, description="x" * 250)) for port in range(200, 900)])
                assert store.next_bootid() >= int(TODAY)
        if state == "damaged":
            assert path.read_bytes() == before, "it stays until there is a new one"
        store = LeaseStore(path, clocks)
        loaded = store.load()
    clocks.now = Moment(clocks.now.boot, clocks.now.boottime + REOPEN_SECONDS, clocks.now.wall + REOPEN_SECONDS)
    if state in ("stopped", "killed"):
        store.save([Change(None, entry(1000))])
        loaded.append(entry(1000))
    else:
        store.record_time()
    store.close()
    assert stored(path, clocks.now) == loaded
    assert (disk / "leases.sqlite.damaged").exists() == (state == "damaged")
    assert len(caplog.records) <= 7


@TROUBLES
def test_igd_starts_without_a_file(disk: Path, path: Path, trouble: object, caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    with trouble(disk):  # type: ignore[operator]
        store = LeaseStore(path, clocks)
        assert store.load() == []
        assert store.is_new
        for _ in range(3):
            with pytest.raises(StoreError):
                store.save([Change(None, entry(1))])
    (record,) = caplog.records
    assert "leases are not saved" in record.getMessage()
    clocks.now = Moment("first", 1000.0 + REOPEN_SECONDS, TODAY + REOPEN_SECONDS)
    store.save([Change(None, entry(1))])
    store.close()
    assert stored(path, clocks.now) == [entry(1)]


def test_a_disk_that_becomes_read_only_is_written_when_it_is_writable_again(disk: Path, path: Path) -> None:
    """A disk with a file that is open for writing cannot be made read-only; the kernel does so after an error."""
    with opened(path) as store:
        store.save([Change(None, each) for each in HELD])
        store._database.execute("PRAGMA query_only = ON")  # type: ignore[union-attr]
        store.save([Change(HELD[0], None)])
    assert stored(path) == HELD[1:]


def test_address_and_bootid_are_saved_when_there_is_room(disk: Path, path: Path) -> None:
    clocks = Clocks()
    with opened(path, clocks) as store:
        store.record_address(IPv4Address("60.60.60.1"))
    clocks.now = Moment("first", 1100.0, TODAY + 100)
    store = LeaseStore(path, clocks)
    store.save([Change(None, each) for each in HELD])
    with full(disk):
        assert store.record_address(IPv4Address("60.60.60.2"))
        assert store.epoch_began() == 1100.0
        bootid = store.next_bootid()
    store.record_time()
    store._give_up()
    with opened(path, clocks) as store:
        assert store.epoch_began() == 1100.0
        assert not store.record_address(IPv4Address("60.60.60.2"))
        assert store.next_bootid() > bootid
