"""The one daemon of one interface: its directories, its lock, and how another process stops it."""

import fcntl
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

LOCK = "lock"


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
        return Path(os.environ.get("RUNTIME_DIRECTORY") or f"/run/igd/{self.interface}")

    @property
    def _lock_path(self) -> Path:
        """The lock file: the id of the process that holds it, and in a second line what that process waits for."""
        return self.runtime_directory / LOCK

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this interface in the block; OSError if another process holds it."""
        self.runtime_directory.mkdir(parents=True, exist_ok=True)
        with os.fdopen(self._open_lock(os.O_CREAT), "r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"another igd (process {self.process()}) serves it already") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def process(self) -> int | None:
        """Return the id of the process that holds the lock, or None if none does, whatever the file contains."""
        with suppress(FileNotFoundError), os.fdopen(self._open_lock(), encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.readline() or 0)
        return None

    def report_waiting(self, missing: str) -> None:
        """Record what the daemon, which holds the lock, waits for; empty: it waits no more. OSError."""
        with os.fdopen(self._open_lock(), "r+", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{os.getpid()}\n{missing}")
            file.truncate()

    def waiting_for(self) -> str | None:
        """Return what the daemon waits for, or an empty string; None if no daemon runs. OSError."""
        if self.process() is None:
            return None
        with os.fdopen(self._open_lock(), encoding="utf-8", errors="surrogateescape") as file:
            return "".join(file.read().splitlines()[1:])

    def _open_lock(self, flags: int = 0) -> int:
        """Open the lock file for its owner only; no symlink, since root opens it in the service user's directory."""
        return os.open(self._lock_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)

    def stop(self, timeout: float) -> bool:
        """Terminate the daemon, kill it after `timeout` seconds, wait for its end. Return whether it was running."""
        process = self.process()
        if not process:
            return False
        with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(process), "rb", buffering=0) as pidfd:
            for number, seconds in ((signal.SIGTERM, timeout), (signal.SIGKILL, None)):
                signal.pidfd_send_signal(pidfd.fileno(), number)
                if select.select([pidfd], [], [], seconds)[0]:
                    break
        return True
