"""The lock that iptables-legacy's programs hold while they change a table; libiptc leaves it to its caller."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from igd.firewall.backend import FirewallError

LOCK_PATIENCE = 5.0  # seconds
LOCK_FILE = "/run/xtables.lock"  # XT_LOCK_NAME; the variable XTABLES_LOCKFILE moves it for iptables' programs too


@contextmanager
def xtables_lock(patience: float) -> Iterator[None]:
    """Hold the lock; wait `patience` seconds for it, and raise FirewallError where it cannot be had."""
    path = os.environ.get("XTABLES_LOCKFILE") or LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FirewallError(f"cannot open iptables' lock {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path, time.monotonic() + patience)
        yield
    finally:
        os.close(descriptor)  # gives the lock back as well


def _lock(descriptor: int, path: str, deadline: float) -> None:
    # flock has no timeout, and the alarm by which iptables interrupts it belongs to the main thread: so ask again.
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise FirewallError(f"somebody else holds iptables' lock {path}") from None
            time.sleep(0.005)
        else:
            return
