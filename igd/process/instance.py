"""One daemon for one interface: its directories, its lock, and how it is stopped from outside."""

import fcntl
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Instance:
    """The daemon of one interface, whether it runs or not."""

    interface: str

    @property
    def state_directory(self) -> Path:
        """Where leases are kept: what systemd gives, or the usual place."""
        return Path(os.environ.get("STATE_DIRECTORY") or f"/var/lib/igd/{self.interface}")

    @property
    def store_path(self) -> Path:
        """The file of leases, unless the configuration names another."""
        return self.state_directory / "leases.sqlite"

    @property
    def runtime_directory(self) -> Path:
        """Where lock and socket lie: what systemd gives, or the usual place."""
        return Path(os.environ.get("RUNTIME_DIRECTORY") or f"/run/igd/{self.interface}")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the daemon of this interface; OSError where another process is."""
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
        """The number of the process that serves this interface; None where none does. The lock tells, not the file."""
        try:
            with os.fdopen(self._open_lock(), encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0)
        except FileNotFoundError:
            pass
        return None

    def _open_lock(self, flags: int = 0) -> int:
        """Open the lock for its owner alone, and no link: root opens it in a directory that is the service's."""
        return os.open(self.runtime_directory / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)

    def stop(self, patience: float) -> bool:
        """End the daemon and wait for its end; after `patience` seconds it is killed. False: there was none."""
        process = self.process()
        if not process:
            return False
        try:
            descriptor = os.pidfd_open(process)
        except ProcessLookupError:
            return False
        try:
            for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, None)):
                signal.pidfd_send_signal(descriptor, number)
                if select.select([descriptor], [], [], seconds)[0]:
                    break
        except ProcessLookupError:  # it ended by itself
            pass
        finally:
            os.close(descriptor)
        return True
