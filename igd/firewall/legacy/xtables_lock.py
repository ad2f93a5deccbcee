"""The lock that iptables-legacy's programs hold while they change a table; libiptc does not take it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from igd.firewall.backend import FirewallError

LOCK_TIMEOUT = 5.0  # seconds
LOCK_FILE = "/run/xtables.lock"  # XT_LOCK_NAME; XTABLES_LOCKFILE names another one for iptables' programs too


def problem() -> str:
    """Return why this process cannot use the lock, or an empty string; creates the file if there is none."""
    try:
        os.close(_open())
    except FirewallError as error:
        return str(error)
    return ""


@contextmanager
def xtables_lock(timeout: float) -> Iterator[None]:
    """Hold the lock; raise FirewallError where it is not free within `timeout` seconds or cannot be opened."""
    descriptor = _open()
    try:
        _lock(descriptor, _path(), time.monotonic() + timeout)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _path() -> str:
    return os.environ.get("XTABLES_LOCKFILE") or LOCK_FILE


def _open() -> int:
    try:
        return os.open(_path(), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FirewallError(f"cannot open iptables' lock {_path()}: {error.strerror}") from error


def _lock(descriptor: int, path: str, deadline: float) -> None:
    # flock has no timeout, and only the main thread can be interrupted by a signal, as iptables does it: so poll.
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise FirewallError(f"another process holds iptables' lock {path}") from None
            time.sleep(0.005)
