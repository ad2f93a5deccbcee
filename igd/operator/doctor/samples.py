"""One address of each network in which a peer owns addresses, which stands for all of them. Pure."""

from collections.abc import Iterable
from itertools import islice

from igd.core.peers import Address, Network, Peer, Peers

_TRIED = 4
"""The server's own address, and those of other peers, may be the first of a network."""


def addresses_of(peers: Peers, peer: Peer) -> dict[Network, Address]:
    """Return an address that this peer owns in each of its networks; without those in which none is found."""
    found = {network: _first(peers, peer, network) for network in peers.owned_by(peer)}
    return {network: address for network, address in found.items() if address is not None}


def _first(peers: Peers, peer: Peer, network: Network) -> Address | None:
    candidates: Iterable[Address] = network.hosts()
    return next((each for each in islice(candidates, _TRIED) if peers.owner(each) is peer), None)
