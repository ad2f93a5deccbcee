"""The classes of packets by which an operator's rules are judged. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Literal

from igd.core.mapping import TransportProtocol
from igd.firewall.site import Site
from igd.wire.upnp import ssdp

Networks = tuple[IPv4Network | IPv6Network, ...]
Ranges = tuple[tuple[int, int], ...]
"""First and last address of each range, in ascending order."""
Version = Literal[4, 6]
ANYWHERE: dict[int, Networks] = {4: (IPv4Network("0.0.0.0/0"),), 6: (IPv6Network("::/0"),)}

SSDP = TransportProtocol.UDP, 1900
_SSDP_GROUP = IPv4Network("239.255.255.250")


@dataclass(frozen=True, eq=False)
class Packet:
    """A class of packets; `states` as conntrack's --ctstate, `destination_type` as addrtype's --dst-type have them.

    An interface without a name is unknown, but none of `other_interfaces`; or there is none. The addresses are all of
    the networks `source` and `destination`; none: of all networks. `dport` 0: all ports. `mark` is a bit that the
    connection mark has; 0: nothing is known of the mark.
    """

    name: str
    version: int
    in_interface: str
    out_interface: str
    protocol: str
    source: Networks
    destination: Networks
    states: frozenset[str]
    mark: int = 0
    dport: int = 0
    destination_type: str = "UNICAST"
    other_interfaces: frozenset[str] = frozenset()

    @cached_property
    def judged(self) -> dict[object, Any]:
        """The rules of which it is known whether they match; each is judged once."""
        return {}

    @cached_property
    def sources(self) -> Ranges:
        """The ranges of `source`."""
        return ranges_of(self.source or ANYWHERE[self.version])

    @cached_property
    def destinations(self) -> Ranges:
        """The ranges of `destination`."""
        return ranges_of(self.destination or ANYWHERE[self.version])

    def __str__(self) -> str:
        way = f"from {self.in_interface or 'anywhere'}" + (f" to {self.out_interface}" if self.out_interface else "")
        return f"{self.name} ({self.protocol} {way})"


def ranges_of(networks: Iterable[IPv4Network | IPv6Network | str]) -> Ranges:
    """Return the ranges of addresses that lie in any of the networks; ValueError."""
    merged: list[tuple[int, int]] = []
    found = (
        each if isinstance(each, IPv4Network | IPv6Network) else ip_network(each, strict=False) for each in networks
    )
    for low, high in sorted((int(each.network_address), int(each.broadcast_address)) for each in found):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return tuple(merged)


_End = tuple[str, Networks]
"""Interface and addresses of one end of a flow."""


def packets(site: Site, version: Version = 4) -> list[Packet]:
    """Return the classes of packets between the internet and peers: each must pass FORWARD for a mapping to work.

    For IPv6, mappings are pinholes, and the interface may be another than IPv4's, such as a tunnel's.
    """
    peers = site.wireguard, of_version(site.peers, version)
    rows: list[tuple[str, str, _End, _End]] = []
    for interface in dict.fromkeys([site.external, *([""] if version == 6 else [])]):
        outside = interface, _outside(site, version)
        rows += [
            ("the first packet of a mapped flow", "NEW", outside, peers),
            ("an answer in a mapped flow", "ESTABLISHED", peers, outside),
            ("a later packet of a mapped flow", "ESTABLISHED", outside, peers),
        ]
    return _classes(site, version, rows)


def between_peers(site: Site, version: Version = 4) -> list[Packet]:
    """Return the classes of packets from one peer to another's mapping."""
    peers = site.wireguard, of_version(site.peers, version)
    rows = [("a packet of a flow between peers", state, peers, peers) for state in ("NEW", "ESTABLISHED")]
    return _classes(site, version, rows)


def _classes(site: Site, version: Version, rows: Iterable[tuple[str, str, _End, _End]]) -> list[Packet]:
    """Return the classes of TCP and of UDP for these rows of name, state, source and destination."""
    dnat = {"DNAT"} if version == 4 else set()  # pinholes translate nothing
    others = frozenset({site.external, site.wireguard})
    return [
        Packet(
            *(name, version, come, go, protocol, source, destination, frozenset({state, *dnat}), site.mark),
            other_interfaces=others,
        )
        for name, state, (come, source), (go, destination) in rows
        for protocol in ("tcp", "udp")
    ]


def _outside(site: Site, version: Version) -> Networks:
    """Return all networks but the peers'."""
    outside = list(ANYWHERE[version])
    for peers in of_version(site.peers, version):
        if peers.prefixlen == 0:
            continue
        outside = [rest for network in outside for rest in _without(network, peers)]
    return tuple(outside)


def _without(
    network: IPv4Network | IPv6Network, taken: IPv4Network | IPv6Network
) -> Iterable[IPv4Network | IPv6Network]:
    if not network.overlaps(taken):
        return [network]
    # Overlapping networks: one contains the other.
    return network.address_exclude(taken) if taken.prefixlen > network.prefixlen else []  # type: ignore[arg-type]


def requests(
    site: Site, port: tuple[TransportProtocol, int], version: Version, own: Iterable[IPv4Address | IPv6Address] = ()
) -> Iterator[Packet]:
    """Yield the classes of packets from peers that must pass INPUT for this port of the server to work.

    `own` are the server's addresses inside the tunnel; none: they are unknown.
    """
    protocol, number = port
    targets = [("LOCAL", of_version(map(ip_network, own), version))]
    if port == SSDP:
        targets.append(("MULTICAST", of_version(map(ip_network, ssdp.GROUPS), version)))
    for state in ("NEW", "ESTABLISHED"):
        for kind, destination in targets:
            yield Packet(
                "a request of a peer",
                version,
                site.wireguard,
                "",
                protocol.name.lower(),
                of_version(site.peers, version),
                destination,
                frozenset({state}),
                dport=number,
                destination_type=kind,
            )


def arriving(site: Site, protocol: TransportProtocol, addresses: Iterable[IPv4Address]) -> Packet:
    """Return the first packet of a flow that comes from the internet to one of the server's `addresses`."""
    return Packet(
        "a packet from the internet",
        4,
        site.external,
        "",
        protocol.name.lower(),
        ANYWHERE[4],
        tuple(map(IPv4Network, addresses)),
        frozenset({"NEW"}),
        destination_type="LOCAL",
    )


def used_versions(site: Site, versions: Iterable[Version]) -> list[Version]:
    """Return those of the IP versions in which mappings exist: IPv6 only if peers have addresses of it."""
    return [version for version in versions if version == 4 or of_version(site.peers, 6)]


def of_version(networks: Iterable[IPv4Network | IPv6Network], version: Version) -> Networks:
    """Return those of the networks that are of this IP version."""
    return tuple(network for network in networks if network.version == version)
