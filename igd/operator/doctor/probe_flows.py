"""The flows that doctor probes with: from an unused address of the internet to peers, and from peers to igd."""

import random
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice

from igd.core.mapping import Endpoint, TransportProtocol
from igd.core.peers import Address, Peer, Peers
from igd.firewall.probing.flow import ProbeFlow
from igd.operator.doctor.machine import Machine

STRANGERS: dict[int, Address] = {4: IPv4Address("192.31.196.254"), 6: IPv6Address("2001:4:112::fffe")}
"""Hosts of the networks of AS112 (RFC 7535), which are routed as all of the internet is, in no list of networks that
cannot be on the internet, and no host: an operator's rule that bans the sender of a probe bans nobody.
"""

PEERS = 8
"""How many peers are probed: each takes two flows for each IP version."""

_PORTS = range(40_000, 60_000)
_PEERS_PORTS = range(600, 1_000)
"""Source ports of peers: clients choose theirs above 1,023, so that no packet of theirs is taken for the probe's."""


def probed_peers(peers: Peers, version: int) -> list[tuple[Peer, Address]]:
    """Return the first PEERS peers that have an address of this IP version, each with one."""
    return list(islice(_with_addresses(peers, version), PEERS))


def _with_addresses(peers: Peers, version: int) -> Iterator[tuple[Peer, Address]]:
    for peer in peers.all:
        address = next((each for each in _candidates(peers, peer) if each.version == version), None)
        if address is not None and peers.owner(address) is peer:
            yield peer, address


def _candidates(peers: Peers, peer: Peer) -> Iterator[Address]:
    yield from peer.addresses
    for network in peers.owned_by(peer):
        yield from islice(network.hosts(), 2)  # the first may be the server's own


def mapped_flows(machine: Machine, version: int, internal: Iterable[Address]) -> list[ProbeFlow]:
    """Return a TCP and a UDP flow from the internet to each of these addresses of peers, through the external address.

    None if there is no external address.
    """
    external = next(iter(machine.external.addresses.matched), None)
    flows = []
    for address in internal:
        to = external if version == 4 else address
        if to is None:
            continue
        for protocol in TransportProtocol:
            port, source = random.sample(_PORTS, 2)
            sender = Endpoint(STRANGERS[version], source)
            flows.append(ProbeFlow(protocol, sender, Endpoint(to, port), Endpoint(address, port)))
    return flows


def requests(machine: Machine, peer: Address) -> list[ProbeFlow]:
    """Return a flow from this address of a peer to each port of igd, at the tunnel's address of the same IP version."""
    own = next((each.ip for each in machine.addresses if each.version == peer.version and not each.is_link_local), None)
    if own is None:
        return []
    ports = machine.ports
    sources = random.sample(_PEERS_PORTS, len(ports))
    return [
        ProbeFlow(protocol, Endpoint(peer, source), Endpoint(own, port))
        for (protocol, port), source in zip(ports, sources, strict=True)
    ]
