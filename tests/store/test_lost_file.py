"""The lease file is damaged, removed or replaced while igd runs: it is written again, and no lease is lost."""

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from igd.core.mapping import Change
from igd.core.moment import Moment
from igd.store.files import StoreError
from igd.store.leases import REOPEN_SECONDS, LeaseStore
from tests.store.opened import KEY, TODAY, Clocks, entry, opened, stored

HELD = [entry(port, description="x" * 100) for port in range(1, 301)]


def overwrite(path: Path, content: bytes, offset: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


LOSSES: dict[str, Callable[[Path], None]] = {
    "removed": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, 5000),
    "emptied": lambda path: os.truncate(path, 0),
    "the journal removed": lambda path: journal(path).unlink(),
    "the directory removed": lambda path: shutil.rmtree(path.parent),
    "replaced by junk": lambda path: replace(path, b"junk" * 1000),
    "replaced by an older copy": lambda path: replace(path, path.read_bytes()),
    "replaced by nothing": lambda path: replace(path, b""),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("noticed", ["change", "timer"])
def test_what_is_lost_is_written_again(path: Path, lose: Callable[[Path], None], noticed: str) -> None:
    with opened(path) as store:
        store.save([Change(None, each) for each in HELD])
    expected = HELD
    if (child := os.fork()) == 0:
        store = LeaseStore(path, Clocks())
        store.save([Change(None, entry(1000))])
        lose(path)
        if noticed == "change":
            store.save([Change(entry(1), None)])
        else:
            store.record_time()
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    expected = [*HELD, entry(1000)][noticed == "change" :]
    assert stored(path) == expected
    with opened(path) as store:
        assert store.load() == expected


def test_what_another_program_put_there_is_put_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path) as store:
        path.unlink()
        path.write_bytes(b"junk")
        store.save([Change(None, entry(1))])
    aside = path.with_name("leases.sqlite.damaged")
    assert aside.read_bytes() == b"junk"
    assert caplog.messages[-1].endswith(f"; what was there is now {aside}")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "the file": lambda path: overwrite(path, os.urandom(100_000)),
    "the first page": lambda path: overwrite(path, bytes(4096)),
    "the last pages": lambda path: overwrite(path, os.urandom(20_000), 8192),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_is_damaged_when_it_is_read_again_is_written_again(
    path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(path) as store:
        store.save([Change(None, each) for each in HELD])
    with opened(path) as store:
        store.save([Change(HELD[0], None)])
        store._give_up()  # saves all to the file itself
        damage(path)
        store._database = sqlite3.connect(path, isolation_level=None)
        with caplog.at_level(logging.ERROR):
            store.save([Change(HELD[-1], None)])
        assert store.load() == HELD[1:-1]
    assert "was written again" in caplog.text
    assert stored(path) == HELD[1:-1]


def test_hold_downs_are_written_again(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry(1)), Change(entry(1), None)])
    with opened(path) as store:
        store._database.execute("DROP TABLE lease")  # type: ignore[union-attr]
        store.save([Change(None, entry(2))])
    with opened(path) as store:
        assert [(each.key[1], each.peer) for each in store.hold_downs()] == [(1, KEY)]
        assert store.load() == [entry(2)]


def test_a_removed_directory_does_not_come_back_at_the_stop(path: Path) -> None:
    """It is how an operator uninstalls."""
    with opened(path) as store:
        store.save([Change(None, entry(1))])
        shutil.rmtree(path.parent)
    assert not path.parent.exists()


def test_a_file_that_cannot_be_written_again_is_tried_every_five_seconds(path: Path) -> None:
    clocks = Clocks()
    with opened(path, clocks) as store:
        path.unlink()
        path.mkdir()
        for _ in range(3):
            with pytest.raises(StoreError, match="not a file"):
                store.save([Change(None, entry(1))])
        path.rmdir()
        with pytest.raises(StoreError, match="not a file"):
            store.save([Change(None, entry(1))])
        clocks.now = Moment("first", 1000.0 + REOPEN_SECONDS, TODAY + REOPEN_SECONDS)
        store.save([Change(None, entry(1))])
    assert stored(path, clocks.now) == [entry(1)]
