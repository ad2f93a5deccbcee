"""What the kernel backends agree on: the site, names, the mark, and how long an entry lasts without us."""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from igd.core.mapping import Lease

MARK = 0x1000_0000
"""The conntrack mark bit of flows that a mapping made."""

GRACE = 30
"""Seconds that the kernel holds an entry past the end of its lease.

We end leases ourselves; the kernel's own timeout is only the switch that closes ports after we died. The grace keeps it
from racing with us, and is short beside any lease that a client would ask for.
"""

PCP_SERVER_PORT = 5351

PCP_ANYCAST: dict[int, IPv4Address | IPv6Address] = {4: IPv4Address("192.0.0.9"), 6: IPv6Address("2001:1::1")}
"""Where clients of PCP ask that do not know the server's address, by IP version (RFC 7723 §4)."""

OURS = "igd_"
"""How the tables and chains of every instance begin."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one gateway stands, and how its operator wants the kernel to look.

    `external` and `wireguard` are the interfaces between which mapped flows go, `peers` the networks of the peers'
    addresses, `mark` the one conntrack mark bit of our flows. `hairpin`: peers reach each other, and themselves,
    through the public address. `preserve_source_port`: what a peer sends by UDP from a mapped internal port leaves from
    the mapped external port. `own_table`: nobody but us may edit our nftables table, and it outlives us.
    `forward_chain`: where to let mapped flows in, by iptables' name of a chain ("DOCKER-USER") or nft's ("inet filter
    forward"); None: first in iptables' FORWARD, if that drops them. `anycast`: what peers send to PCP's anycast
    addresses (RFC 7723) reaches the server.
    """

    external: str
    wireguard: str
    peers: tuple[IPv4Network | IPv6Network, ...]
    mark: int = MARK
    hairpin: bool = True
    preserve_source_port: bool = False
    own_table: bool = False
    forward_chain: str | None = None
    anycast: bool = False


def kernel_timeout(lease: Lease, now: float) -> int:
    """Milliseconds after `now` at which the kernel ends an entry by itself; never 0, which would mean never."""
    return int((max(0.0, lease.expires - now) + GRACE) * 1000)


def label(interface: str) -> str:
    """Name what is ours for this interface: nft can read it back, and no two interfaces share it.

    nft takes letters, digits and `_ . - /` in a name; an interface name is any bytes but white space and `/`, so `/`
    and two hexadecimal digits stand for each byte that nft would not take.
    """
    return OURS + re.sub(rb"[^A-Za-z0-9_.-]", lambda byte: b"/%02x" % byte[0][0], os.fsencode(interface)).decode()
