"""What the kernel backends agree on: names, the mark, and how long an entry lasts without us."""

import os
import re

from igd.core.mapping import Lease

MARK = 0x1000_0000
"""The conntrack mark bit of flows that a mapping made."""

GRACE = 30
"""Seconds that the kernel holds an entry past the end of its lease.

We end leases ourselves; the kernel's own timeout is only the switch that closes ports after we died. The grace keeps it
from racing with us, and is short beside any lease that a client would ask for.
"""


OURS = "igd_"
"""How the tables and chains of every instance begin."""


def kernel_timeout(lease: Lease, now: float) -> int:
    """Milliseconds after `now` at which the kernel ends an entry by itself; never 0, which would mean never."""
    return int((max(0.0, lease.expires - now) + GRACE) * 1000)


def label(interface: str) -> str:
    """Name what is ours for this interface: nft can read it back, and no two interfaces share it.

    nft takes letters, digits and `_ . - /` in a name; an interface name is any bytes but white space and `/`, so `/`
    and two hexadecimal digits stand for each byte that nft would not take.
    """
    return OURS + re.sub(rb"[^A-Za-z0-9_.-]", lambda byte: b"/%02x" % byte[0][0], os.fsencode(interface)).decode()
