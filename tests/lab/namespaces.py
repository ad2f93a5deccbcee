"""Move the calling thread into another namespace and back (os.setns came only with Python 3.12)."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

SYSCTLS = (
    "ipv6/conf/all/accept_dad=0",  # or an IPv6 address cannot be used for a second or two
    "ipv6/conf/default/accept_dad=0",
    "ipv4/icmp_ratemask=0",  # or the kernel owes most of the errors that tell "rejected" from "swallowed"
    "ipv6/icmp/ratemask=255",  # likewise; it must name a type, and this one is no error
)
"""What a network namespace of the tests needs, as FILE=VALUE in /proc/sys/net."""

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def joined(pid: int, kind: Literal["net", "pid_for_children"]) -> Iterator[None]:
    """Move only the calling thread into process `pid`'s namespace of that kind; raise OSError if it cannot."""
    # thread-self: /proc/self shows the main thread's namespaces, whichever thread asks
    with (
        Path(f"/proc/thread-self/ns/{kind}").open("rb") as own,
        Path(f"/proc/{pid}/ns/{kind}").open("rb") as other,
    ):
        _setns(own.fileno())  # changes nothing, but finds out that there is no way back (user namespaces) in time
        _setns(other.fileno())
        try:
            yield
        finally:
            _setns(own.fileno())


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "setns")
