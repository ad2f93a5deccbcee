"""What is known of the packets that an operator's rules are asked about. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Literal

from igd.core.mapping import TransportProtocol
from igd.firewall.site import Site

Networks = tuple[IPv4Network | IPv6Network, ...]
Version = Literal[4, 6]
ANYWHERE: dict[int, Networks] = {4: (IPv4Network("0.0.0.0/0"),), 6: (IPv6Network("::/0"),)}

SSDP = TransportProtocol.UDP, 1900
_SSDP_GROUP = IPv4Network("239.255.255.250")


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet on its way; `states` as conntrack's --ctstate sees them, `destination_type` as addrtype's --dst-type.

    Interfaces without a name are not known, or there is none. `source` and `destination` are the networks out of which
    its addresses may come; none: any. `dport` 0: any port.
    `mark` is a bit of the connection mark that is set; 0: nothing is known of the mark.
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

    def __str__(self) -> str:
        way = f"from {self.in_interface or 'anywhere'}" + (f" to {self.out_interface}" if self.out_interface else "")
        return f"{self.name} ({self.protocol} {way})"


def packets(site: Site, version: Version = 4) -> list[Packet]:
    """Give every kind of packet that must pass FORWARD for a mapping (by IPv6: a pinhole) to work."""
    # By which interface IPv6 comes is not asked for: it may be a tunnel, or none yet.
    outside = (site.external if version == 4 else "", ANYWHERE[version])
    peers = (site.wireguard, of_version(site.peers, version))
    rows = [
        ("the first packet of a mapped flow", "NEW", outside, peers),
        ("an answer in a mapped flow", "ESTABLISHED", peers, outside),
        ("a later packet of a mapped flow", "ESTABLISHED", outside, peers),
    ]
    if site.hairpin and version == 4:
        rows += [("a packet of a flow between peers", state, peers, peers) for state in ("NEW", "ESTABLISHED")]
    dnat = {"DNAT"} if version == 4 else set()
    return [
        Packet(name, version, come, go, protocol, source, destination, frozenset({state, *dnat}), site.mark)
        for name, state, (come, source), (go, destination) in rows
        for protocol in ("tcp", "udp")
    ]


def requests(
    site: Site, port: tuple[TransportProtocol, int], version: Version, own: Iterable[IPv4Address | IPv6Address] = ()
) -> Iterator[Packet]:
    """Give every kind of packet from peers that must pass INPUT for this port of the server to work.

    `own` are the server's addresses inside the tunnel; where none is given, any.
    """
    protocol, number = port
    targets = [("LOCAL", of_version(map(ip_network, own), version))]
    if port == SSDP and version == 4:
        targets.append(("MULTICAST", (_SSDP_GROUP,)))
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
    """Give the first packet of a flow that comes from the internet to one of the server's `addresses`."""
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


def of_version(networks: Iterable[IPv4Network | IPv6Network], version: Version) -> Networks:
    """Give those of the networks that are of this IP version."""
    return tuple(network for network in networks if network.version == version)
