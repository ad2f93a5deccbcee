"""What the kernel backends share: the site, names, the mark, and the kernel's own timeout of an entry."""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from igd.core.mapping import Lease, TransportProtocol
from igd.core.peers import Peers

MARK = 0x1000_0000
"""The default conntrack mark bit of mapped flows."""

GRACE = 30
"""Seconds by which the kernel's timeout of an entry exceeds its lease.

The daemon ends leases; the kernel's timeout closes ports only if the daemon died. The grace period keeps the two from
racing, and is short compared to the leases that clients request.
"""

PCP_SERVER_PORT = 5351

PCP_ANYCAST: dict[int, IPv4Address | IPv6Address] = {4: IPv4Address("192.0.0.9"), 6: IPv6Address("2001:1::1")}
"""The addresses that PCP clients use if they do not know the server's, by IP version (RFC 7723 §4)."""

OURS = "igd_"
"""The prefix of the tables and chains of every instance."""

RATE_TABLE, TRAFFIC_TABLE, PROBE_TABLE = "/rate", "/traffic", "/probe"
"""What the names of each instance's other tables add to its label. None begins with a number, so no label ends so."""

WITHOUT_MAPPINGS = (RATE_TABLE, TRAFFIC_TABLE, PROBE_TABLE)


@dataclass(frozen=True, slots=True, eq=False)
class RequestRate:
    """How many packets each of `peers` may send to `ports` of the tunnel's own addresses; of TCP, connections."""

    per_second: int
    ports: tuple[tuple[TransportProtocol, int], ...]
    peers: Peers


@dataclass(slots=True, eq=False)
class Site:
    """The interfaces, networks and firewall settings of one gateway.

    `external` and `wireguard` are the interfaces between which mapped flows pass, `peers` the networks of the peers'
    addresses. `masqueraded` are networks of peers to which mapped flows go with the server's tunnel address as their
    source. These three follow the host while igd runs: read them at each use; `external` is "" while there is no way
    out. `mark` is the conntrack mark bit of mapped flows. `hairpin`: peers reach each other, and themselves, through
    the public address. `preserve_source_port`: UDP packets that a peer sends from a mapped internal port leave from the
    mapped external port. `own_table`: only igd may edit its nftables table, which stays when igd dies. `forward_chain`:
    the chain that accepts mapped flows, by iptables' name ("DOCKER-USER") or nft's ("inet filter forward"); None:
    iptables' FORWARD, if that stops them. `anycast`: the server receives what peers send to PCP's anycast addresses
    (RFC 7723). `request_rate` follows the peers; None: any number. The other attributes never change.
    """

    external: str
    wireguard: str
    peers: tuple[IPv4Network | IPv6Network, ...]
    mark: int = MARK
    hairpin: bool = True
    preserve_source_port: bool = False
    own_table: bool = False
    masqueraded: tuple[IPv4Network, ...] = ()
    forward_chain: str | None = None
    anycast: bool = False
    request_rate: RequestRate | None = None


def kernel_timeout(lease: Lease, now: float) -> int | None:
    """Return the milliseconds after which the kernel ends an entry by itself, at least 1; None: never."""
    return None if lease.static else int((max(0.0, lease.expires - now) + GRACE) * 1000)


def label(interface: str) -> str:
    """Return the name of our table and chains for this interface: unique, and valid in nft's syntax.

    nft accepts letters, digits and `_ . - /` in a name. An interface name consists of any bytes except white space and
    `/`, so `/` and two hexadecimal digits replace each byte that nft does not accept.
    """
    return OURS + re.sub(rb"[^A-Za-z0-9_.-]", lambda byte: b"/%02x" % byte[0][0], os.fsencode(interface)).decode()
