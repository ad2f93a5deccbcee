"""The one daemon of one interface: its directories, its lock, and how another process stops it."""

import fcntl
import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from igd.host.interface_name import interface_name
from igd.process import lock_holder

LOCK = "lock"
DIRECTORY = Path("/run/igd")
"""Where each interface has its runtime directory."""

_READ = 4096
"""How much of a lock file is read: whoever controls the service's user may have written anything into it."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The daemon of one interface, running or not."""

    interface: str

    @property
    def state_directory(self) -> Path:
        """The directory of the leases: systemd's STATE_DIRECTORY, or the default."""
        return Path(os.environ.get("STATE_DIRECTORY") or f"/var/lib/igd/{self.interface}")

    @property
    def store_path(self) -> Path:
        """The default file of the leases."""
        return self.state_directory / "leases.sqlite"

    @property
    def runtime_directory(self) -> Path:
        """The directory of the lock and the admin socket: systemd's RUNTIME_DIRECTORY, or the default."""
        return Path(os.environ.get("RUNTIME_DIRECTORY") or DIRECTORY / self.interface)

    @property
    def _lock_path(self) -> Path:
        """The lock file: the id of the process that holds it, and in a second line what that process waits for."""
        return self.runtime_directory / LOCK

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this interface in the block; OSError if another process holds it."""
        self.runtime_directory.mkdir(parents=True, exist_ok=True)
        with os.fdopen(lock_holder.opened(self._lock_path, os.O_CREAT), "r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"another igd (process {_named(file)}) serves it already") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def process(self) -> int | None:
        """Return the process that the lock file names, or None if no process holds the lock. OSError."""
        with self._held() as file:
            return _named(file) if file else None

    def report_waiting(self, missing: str) -> None:
        """Record what the daemon, which holds the lock, waits for; empty: it waits no more. OSError."""
        descriptor = lock_holder.opened(self._lock_path)
        with os.fdopen(descriptor, "r+", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{os.getpid()}\n{missing}")
            file.truncate()

    def waiting_for(self) -> str | None:
        """Return what the daemon waits for, or an empty string; None if no daemon runs. OSError."""
        with self._held() as file:
            return os.pread(file.fileno(), _READ, 0).decode(errors="replace").partition("\n")[2] if file else None

    @contextmanager
    def _held(self) -> Iterator[BinaryIO | None]:
        """Open the lock file, if another process holds the lock. OSError."""
        try:
            file = os.fdopen(lock_holder.opened(self._lock_path), "rb", buffering=0)
        except FileNotFoundError:
            yield None
            return
        with file:
            yield file if _is_held(file) else None

    def stop(self, timeout: float, first: signal.Signals = signal.SIGTERM) -> Literal["", "stopped", "killed"]:
        """Send the daemon `first`, kill it after `timeout` seconds, and return how it ended; "" if it was not running.

        Raise OSError, and signal nothing, if the process that the lock file names is not proven to be the daemon.
        """
        with self._held() as file:
            if file is None:
                return ""
            process = _named(file)
            try:
                pidfd = os.pidfd_open(process)
            except OSError as error:
                self._require_released(file, process, str(error))
                return "stopped"
            with os.fdopen(pidfd, "rb", buffering=0), suppress(ProcessLookupError):
                # the process that was opened before it was examined is the one that is signalled
                self._require_holder(file, process)
                for number, seconds in ((first, timeout), (signal.SIGKILL, None)):
                    signal.pidfd_send_signal(pidfd, number)
                    if select.select([pidfd], [], [], seconds)[0]:
                        return "killed" if number == signal.SIGKILL else "stopped"
            return "stopped"

    def _require_holder(self, file: BinaryIO, process: int) -> None:
        """Raise OSError if this process is not the daemon, and the lock is still held."""
        try:
            reason = lock_holder.objection(os.fstat(file.fileno()), process, self.interface)
        except OSError as error:
            reason = f"it cannot be examined: {error}"
        if reason:
            self._require_released(file, process, reason)

    def _require_released(self, file: BinaryIO, process: int, reason: str) -> None:
        """Raise OSError if the lock is still held; otherwise the daemon has just ended by itself."""
        if _is_held(file):
            raise OSError(
                f"nothing was stopped: {self._lock_path} is locked, and names process {process}, which is not the igd"
                f" that locked it: {reason}. `lslocks` shows who did"
            )


def running() -> list[Instance]:
    """Return the instances whose daemons run, or may run if this process may not look. OSError."""
    names = sorted(each.name for each in DIRECTORY.iterdir()) if DIRECTORY.exists() else []
    return [Instance(name) for name in names if _is_name(name) and _may_run(Instance(name))]


def _is_name(text: str) -> bool:
    try:
        interface_name(text)
    except ValueError:
        return False
    return True


def _may_run(instance: Instance) -> bool:
    try:
        return instance.waiting_for() is not None
    except NotADirectoryError:
        return False
    except OSError:
        return True


def _is_held(file: BinaryIO) -> bool:
    """Return whether another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _named(file: IO[Any]) -> int:
    """Return the process that a lock file names; OSError if it names none."""
    line = os.pread(file.fileno(), _READ, 0).partition(b"\n")[0]
    if not re.fullmatch(rb"[1-9][0-9]{0,6}", line):
        raise OSError("the lock is held, and its file names no process. `lslocks` shows who holds it")
    return int(line)
