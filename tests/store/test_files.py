"""The lease file is for its owner only, and what is no lease file is an error that says what to do."""

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from igd.core.mapping import Change
from igd.store.files import StoreError
from igd.store.leases import LeaseStore, addresses_in
from tests.store.opened import Clocks, entry, opened, stored


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Have the umask of a root shell, in which wg-quick may run igd."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {each.name: stat.S_IMODE(each.stat().st_mode) for each in directory.iterdir()}


def test_only_the_owner_may_read_what_igd_makes(path: Path) -> None:
    with opened(path) as store:
        store.save([Change(None, entry())])
        assert modes(path.parent) == {"leases.sqlite": 0o600, "leases.sqlite-wal": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.write_bytes(b"damaged")
    with opened(path):
        assert set(modes(path.parent).values()) == {0o600}
        assert len(modes(path.parent)) == 3


def test_wider_modes_are_narrowed(path: Path) -> None:
    path.parent.mkdir()
    names = ["leases.sqlite", *(f"leases.sqlite{suffix}" for suffix in ("-wal", "-shm", ".damaged", ".damaged.1-wal"))]
    for name in names:
        (path.parent / name).touch(0o666)
        (path.parent / name).chmod(0o666)
    of_another_program = path.parent / "leases.sqlite.backup"
    of_another_program.touch()
    with opened(path):
        found = modes(path.parent)
        assert found.pop(of_another_program.name) == 0o644
        assert set(found.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755, "the directory is somebody else's"


def test_no_mode_is_changed_through_a_symbolic_link(path: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "elsewhere" / "leases.sqlite") as store:
        store.save([Change(None, entry())])
    target = tmp_path / "elsewhere" / "leases.sqlite"
    target.chmod(0o644)
    path.parent.mkdir()
    path.symlink_to(target)
    with opened(path) as store:
        assert store.load() == [entry()]
        store.save([Change(None, entry(2))])
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert stored(target) == [entry(), entry(2)]


@pytest.mark.root
def test_a_file_that_root_writes_anew_stays_its_owners(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    os.chown(path, 65534, 65534)
    with opened(path):
        assert {(each.stat().st_uid, each.stat().st_gid) for each in path.parent.iterdir()} == {(65534, 65534)}


def of_another_program(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE notes (text); INSERT INTO notes VALUES ('mine'); PRAGMA user_version = 2;")


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (lambda path: path.mkdir(), r"not a file: set `path` in \[store\]"),
    "a pipe": (os.mkfifo, r"not a file: set `path` in \[store\]"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), r"not a file: set `path` in \[store\]"),
    "a link to nowhere": (lambda path: path.symlink_to("/nowhere/leases"), "a symbolic link to a file that does not"),
    "a link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "another program's": (of_another_program, r"by another program: set `path` in \[store\]"),
}


@pytest.mark.parametrize(("make", "why"), NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_lease_file_is_an_error_and_is_not_changed(
    path: Path, make: Callable[[Path], object], why: str
) -> None:
    path.parent.mkdir()
    make(path)
    before = path.lstat(), path.read_bytes() if path.is_file() else b""
    with pytest.raises(StoreError, match=why):
        LeaseStore(path, Clocks())
    after = path.lstat(), path.read_bytes() if path.is_file() else b""
    assert (after[0].st_ino, after[0].st_mtime, after[1]) == (before[0].st_ino, before[0].st_mtime, before[1])
    assert list(path.parent.iterdir()) == [path]
    assert addresses_in(path) == []


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        LeaseStore(tmp_path / "file" / "leases.sqlite", Clocks())


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "directory_mode", "why"),
    [
        (0o600, 0o755, r"leases.sqlite: Permission denied"),
        (0o644, 0o777, "leases.sqlite may not be written by this user: run igd as its owner"),
        (0o666, 0o755, "may not be written by this user: run igd as its owner"),
        (None, 0o755, "Permission denied"),
        (0o666, 0o700, "Permission denied"),
    ],
)
def test_a_file_of_another_user_is_an_error_and_is_not_changed(mode: int | None, directory_mode: int, why: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory, "leases.sqlite")
        if mode is not None:
            with opened(path) as store:
                store.save([Change(None, entry())])
            path.chmod(mode)
        path.parent.chmod(directory_mode)
        before = modes(path.parent)
        os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match=why):
                LeaseStore(path, Clocks())
        finally:
            os.seteuid(0)
        assert modes(path.parent) == before


HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(sys.argv[2])
database.execute("SELECT * FROM lease").fetchone()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("statement", ["BEGIN EXCLUSIVE", "BEGIN"])
def test_a_file_that_another_process_uses_is_an_error(path: Path, statement: str) -> None:
    with opened(path) as store:
        store.save([Change(None, entry())])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path, statement], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match="in use by another process"):
            LeaseStore(path, Clocks())
        holder.communicate()
    assert stored(path) == [entry()]


def test_two_igds_do_not_share_a_file(path: Path) -> None:
    if (child := os.fork()) == 0:
        store = LeaseStore(path, Clocks())
        store.save([Change(None, entry(1))])
        if os.fork() == 0:
            try:
                LeaseStore(path, Clocks())
            except StoreError:
                os._exit(7)
            os._exit(1)
        status = os.waitstatus_to_exitcode(os.wait()[1])
        store.save([Change(None, entry(2))])
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert stored(path) == [entry(1), entry(2)]


def test_a_file_without_octets_begins_without_leases(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with opened(path) as store:
        assert store.is_new
        store.save([Change(None, entry())])
    assert stored(path) == [entry()]


def test_a_huge_file_of_nothing_is_put_aside_at_once(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    os.truncate(path, 2**40)
    with opened(path) as store:
        assert store.load() == []
    assert path.with_name("leases.sqlite.damaged").stat().st_size == 2**40
