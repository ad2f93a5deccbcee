"""The lease file on disk: how it is opened, who may read it, and where a damaged one goes."""

import contextlib
import errno
import itertools
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

DAMAGED = ".damaged"
"""Appended to the name of a damaged file; the one before it gets ".damaged.1" and so on."""

KEPT = 3
"""How many damaged files are kept: the oldest is deleted when there is one more."""

_JOURNALS = "-wal", "-shm", "-journal"


class StoreError(OSError):
    """The store cannot be read or written; nothing was saved."""


_OF_THE_DISK = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO
_OF_THE_DISK_BY_SQLITE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
)


def is_of_the_disk(error: BaseException | None) -> bool:
    """Return whether the disk is full, read-only or broken, and the file and its permissions may be as they should."""
    if isinstance(error, OSError):
        return error.errno in _OF_THE_DISK
    return sqlite_code(error) in _OF_THE_DISK_BY_SQLITE


def sqlite_code(error: BaseException | None) -> int:
    """Return SQLite's primary result code, or 0 if the error is not one of SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def connect(path: Path, parameters: str = "mode=rw") -> sqlite3.Connection:
    """Open an existing file, with these parameters of SQLite's URI; sqlite3.Error.

    No other process can open it meanwhile: none delays a change, and none shares memory with this process, which would
    be killed if the file of that memory were cut.
    """
    uri = f"{path.absolute().as_uri()}?{parameters}"
    database = sqlite3.connect(uri, uri=True, timeout=1.0, check_same_thread=False, isolation_level=None)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
    except BaseException:
        database.close()
        raise
    return database


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a new file, for its owner only, which replaces the one at `path` when the block has filled it.

    The old one is put aside, with its journals. OSError, sqlite3.Error; then it is still there.
    """
    new = _new(path)
    for file in (new, *_journals(new)):
        file.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(FileNotFoundError, PermissionError):  # root may run igd where the service's user did
            owner = path.lstat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    finally:
        os.close(descriptor)
    try:
        with contextlib.closing(connect(new)) as database:
            database.execute("PRAGMA journal_mode = OFF")
            yield database
            database.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if os.path.lexists(path):
        _make_room(path)
    _install(path)


def prepare(path: Path) -> None:
    """Make the directory of the file, let nobody else read what is there, and end what a crash interrupted; OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.path.lexists(path):
        if _new(path).exists():
            _install(path)
        for journal in _journals(path):  # SQLite would apply it to the next file
            journal.unlink(missing_ok=True)
    for file in (path, *_asides(path)):
        for each in (file, *_journals(file)):
            _narrow(each)


@dataclass(frozen=True, slots=True)
class Present:
    """The file and its journal as they are on disk: what tells them from any others, and the file's octets."""

    identity: tuple[int, int, int]
    size: int

    @classmethod
    def at(cls, path: Path) -> "Present | None":
        """Look at an open file, whose path is no symbolic link; None if it or its journal is not there."""
        try:
            found, journal = path.stat(), path.with_name(f"{path.name}-wal").stat()
        except OSError:
            return None
        return cls((found.st_dev, found.st_ino, journal.st_ino), found.st_size)

    def is_still_at(self, path: Path) -> bool:
        """Return whether nobody has removed, replaced or cut them since; SQLite itself never makes the file smaller."""
        now = Present.at(path)
        return now is not None and now.identity == self.identity and now.size >= self.size


def aside(path: Path) -> Path:
    """Return the name under which a damaged file is kept."""
    return _asides(path)[0]


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _asides(path: Path) -> list[Path]:
    """Return the names of damaged files, the newest first."""
    numbers = ("", *(f".{number}" for number in range(1, KEPT)))
    return [path.with_name(f"{path.name}{DAMAGED}{number}") for number in numbers]


def _journals(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in _JOURNALS]


def _make_room(path: Path) -> None:
    """Rename the damaged files, so that the newest name is free."""
    asides = _asides(path)
    for newer, older in reversed(list(itertools.pairwise(asides))):
        _move(newer, older)


def _install(path: Path) -> None:
    """Put aside what is at `path`, and move the new file there. After a crash in between, call it again."""
    _move(path, aside(path))
    _new(path).replace(path)


def _move(source: Path, target: Path) -> None:
    """Move a file with its journals; those of a file that was at the target before are deleted."""
    exists = os.path.lexists(source)
    for old, new in zip((source, *_journals(source)), (target, *_journals(target)), strict=True):
        if os.path.lexists(old):
            old.replace(new)
        elif exists:
            new.unlink(missing_ok=True)


def _narrow(path: Path) -> None:
    """Let only its owner read a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # mostly it does not exist
        return
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    except OSError as error:
        log.warning("others may read %s: %s", path, error)
    finally:
        os.close(descriptor)
