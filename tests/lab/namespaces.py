"""Namespaces: move the calling thread into another and back (os.setns came only with Python 3.12); what they need."""

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from .process import until

SYSCTLS = (
    "ipv6/conf/all/accept_dad=0",  # or an IPv6 address cannot be used for a second or two
    "ipv6/conf/default/accept_dad=0",
    "ipv4/conf/all/rp_filter=0",  # a new namespace inherits the machine's IPv4 settings
    "ipv4/conf/default/rp_filter=0",
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


def await_ipv6() -> None:
    """Return once every IPv6 address of this network namespace receives packets: the kernel adds the routes later."""
    addresses = {info["local"] for link in _ip("address", "show") for info in link["addr_info"]}
    until(lambda: addresses <= {route["dst"] for route in _ip("route", "show", "table", "local")}, 0.01)


def _ip(*command: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(subprocess.run(("ip", "-6", "-json", *command), capture_output=True, check=True).stdout)
