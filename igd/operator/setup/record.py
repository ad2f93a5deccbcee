"""What setup did to this machine for one interface, on disk, so that it can be undone however it ended.

Each step is recorded before it begins, with copies of the files that it changes. The directory belongs to root alone:
wg-quick's file has a private key.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from igd.operator import replaced_file
from igd.operator.setup.steps import Argv, Step, Write
from igd.operator.setup.wg_quick_hooks import without_lines

DIRECTORY = Path("/var/lib/igd-setup")
SECONDS = 90.0
"""The time limit of one command."""


class _File(BaseModel):
    """A file that was changed: where its copy is (None: there was no file), and the sum of its new content.

    Without a sum, the commands that change it did not end.
    """

    model_config = ConfigDict(extra="forbid")

    path: Path
    copy_name: str | None
    changed_to: str | None
    lines: tuple[str, ...] = ()


class _Done(BaseModel):
    """A step that has begun; `made` and `filled` did not exist before it."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    written: list[_File] = Field(default_factory=list)
    undo: tuple[Argv, ...] = ()
    tracked: list[_File] = Field(default_factory=list)
    made: list[Path] = Field(default_factory=list)
    filled: list[Path] = Field(default_factory=list)


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: list[_Done] = Field(default_factory=list)


class Record:
    """The record of one interface; an object of `opened`. Its methods raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "record.json"
        self._steps: list[_Done] = []
        self.copies: list[Path] = []  # of files that carry_out changed
        self.notes: list[str] = []  # what undo left because it was changed since
        if self._path.exists():
            try:
                self._steps = _Content.model_validate_json(self._path.read_bytes()).steps
            except ValidationError:
                raise OSError(
                    f"{self._path} is damaged; copies of the files that setup changed are beside it"
                ) from None

    def __bool__(self) -> bool:
        return bool(self._steps)

    def carry_out(self, steps: Iterable[Step]) -> None:
        """Carry out the steps in this order; if one fails, undo those that began, and raise its OSError."""
        before = len(self._steps)
        try:
            for step in steps:
                self._carry_out(step)
        except BaseException as error:
            failures = self._undo_behind(before)
            if failures and isinstance(error, OSError):
                raise OSError("\n".join([str(error), *failures])) from error
            raise

    def keep(self, directory: Path) -> None:
        """Have `undo` leave a directory that came into being."""
        for step in self._steps:
            step.filled = [path for path in step.filled if path != directory]

    def undo(self) -> list[str]:
        """Undo everything, the last step first; return a sentence for each thing that could not be undone."""
        return self._undo_behind(0)

    def undo_text(self) -> str:
        """Describe what `undo` would do, in its order."""
        return "\n".join(line for step in reversed(self._steps) for line in _undo_lines(step))

    def _carry_out(self, step: Step) -> None:
        for write in step.writes:
            if _content(write.path) != write.before:
                raise OSError(f"{write.path} was changed meanwhile; nothing was written to it")
        done = _Done(
            reason=step.reason,
            undo=step.undo,
            made=_missing([*step.makes, *(write.path.parent for write in step.writes)]),
            filled=[path for path in step.fills if not path.exists()],
        )
        number = len(self._steps) + 1
        done.written = [self._keep(write.path, number, write) for write in step.writes]
        done.tracked = [self._keep(path, number) for path in step.tracks]
        self._steps.append(done)
        self._save()
        for write in step.writes:
            _make_directory(write.path.parent)
            replaced_file.replace(write.path, write.content)
        for argv in step.do:
            run(argv)
        for file in done.tracked:
            file.changed_to = _sum(_content(file.path))
        self._save()

    def _keep(self, path: Path, number: int, write: Write | None = None) -> _File:
        """Copy a file before it changes."""
        content = _content(path)
        name = None
        if content is not None:
            name = f"{number}-{path.name}"
            _write_private(self._directory / name, content)
            self.copies.append(self._directory / name)
        return _File(
            path=path,
            copy_name=name,
            changed_to=_sum(write.content) if write else None,
            lines=write.lines if write and write.separable else (),
        )

    def _save(self) -> None:
        _write_private(self._path, _Content(steps=self._steps).model_dump_json(indent=2).encode())

    def _undo_behind(self, count: int) -> list[str]:
        """Undo the steps behind the first `count`; those whose files cannot be restored stay in the record."""
        sentences: list[str] = []
        for step in reversed(self._steps[count:]):
            untouched = [file for file in step.tracked if _is_as_we_left_it(file)]
            failures = _each(self._restore, step.written)
            sentences += _each(run, step.undo)
            failures += _each(self._put_back, untouched)
            failures += _each(shutil.rmtree, filter(os.path.lexists, step.filled))
            for directory in sorted(step.made, reverse=True):
                _remove_if_empty(directory)
            sentences += failures
            if not failures:
                self._steps.remove(step)
            self._save()
        return sentences

    def _restore(self, file: _File) -> None:
        """Give a file its old content, or if it was changed since, take only our lines out."""
        content = _content(file.path)
        if content is None or content == self._old(file):
            return
        if _is_as_we_left_it(file):
            self._put_back(file)
        elif file.lines:
            replaced_file.replace(file.path, without_lines(content, file.lines))
        else:
            self.notes.append(f"{file.path} was changed since setup wrote it, and stays as it is")

    def _put_back(self, file: _File) -> None:
        old = self._old(file)
        if old is None:
            file.path.unlink(missing_ok=True)
        elif old != _content(file.path):
            replaced_file.replace(file.path, old)

    def _old(self, file: _File) -> bytes | None:
        return (self._directory / file.copy_name).read_bytes() if file.copy_name else None


def run(argv: Argv) -> str:
    """Run a command, and return what it prints; OSError if it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)  # noqa: S603 - the commands of a step are made by plan.py
    except subprocess.TimeoutExpired:
        raise OSError(f"{shlex.join(argv)}: still running after {SECONDS:g} s") from None
    except FileNotFoundError:
        raise OSError(f"{shlex.join(argv)}: there is no such program") from None
    if done.returncode:
        raise OSError(f"{shlex.join(argv)}: {(done.stderr or done.stdout).strip() or f'status {done.returncode}'}")
    return done.stdout


@contextmanager
def opened(interface: str) -> Iterator[Record]:
    """Open the record of an interface; OSError, also if another process has it open. An empty one leaves no file."""
    directory = DIRECTORY / interface
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another igd setup {interface} is running") from None
        record = Record(directory)
        try:
            yield record
        finally:
            if not record:
                shutil.rmtree(directory)
                _remove_if_empty(DIRECTORY)
    finally:
        os.close(descriptor)


def _each(deed: Callable[[Any], object], subjects: Iterable[Any]) -> list[str]:
    """Do this to each; return the errors."""
    errors = []
    for subject in subjects:
        try:
            deed(subject)
        except OSError as error:
            errors.append(str(error))
    return errors


def _undo_lines(step: _Done) -> Iterator[str]:
    for file in [*step.written, *step.tracked]:
        yield f"restore {file.path}" if file.copy_name else f"delete {file.path}"
    yield from map(shlex.join, step.undo)
    yield from (f"delete {directory}" for directory in step.filled)


def _is_as_we_left_it(file: _File) -> bool:
    return file.changed_to is not None and file.changed_to == _sum(_content(file.path))


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _sum(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only root may read, and that survives a loss of power."""
    replaced_file.replace(path, content, 0o600)


def _missing(directories: Iterable[Path]) -> list[Path]:
    """Return those directories, and those above them, that do not exist."""
    return list(dict.fromkeys(each for one in directories for each in (one, *one.parents) if not each.exists()))


def _make_directory(path: Path) -> None:
    """Make a directory that services may enter, whatever the umask is."""
    for directory in reversed(_missing([path])):
        directory.mkdir()
        directory.chmod(0o755)


def _remove_if_empty(directory: Path) -> None:
    with suppress(OSError):  # somebody else has put something there, or it never came into being
        directory.rmdir()
