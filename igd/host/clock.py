"""The clocks of this host."""

import functools
import re
import time
from pathlib import Path

from igd.core.moment import Moment

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS = Path("/proc/self/timens_offsets")


def boottime() -> float:
    """Return the clock of leases: seconds since the boot, suspend included. It cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def moment() -> Moment:
    """Return this moment."""
    return Moment(_boot(), boottime(), time.time())


@functools.cache
def _boot() -> str:
    """Name the boot; empty if it cannot be read.

    A time namespace moves the zero of `boottime`, so its offset is part of the name (time_namespaces(7)).
    """
    try:
        boot = _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
    try:
        offset = re.search(r"^boottime\s+(.*\S)", _OFFSETS.read_text("ascii"), re.MULTILINE)
    except OSError:  # a kernel without time namespaces
        offset = None
    return f"{boot} {offset[1]}" if offset else boot
