"""One address of each network in which a peer owns addresses, which stands for all of them. Pure."""

import functools
from bisect import bisect

from igd.core.peers import Address, Network, Peer, Peers


def addresses_of(peers: Peers, peer: Peer) -> dict[Network, Address]:
    """Return an address that this peer owns in each of its networks; without those in which it owns none."""
    found = {network: _first(peers, peer, network) for network in peers.owned_by(peer)}
    return {network: address for network, address in found.items() if address is not None}


def _first(peers: Peers, peer: Peer, network: Network) -> Address | None:
    """Return the first address that is no network's or broadcast address, and that nobody else owns."""
    if network.num_addresses <= 2:
        return next((each for each in network if peers.owner(each) is peer), None)
    first, last = int(network.network_address), int(network.broadcast_address)
    starts, owners = _ranges(peers, network.version)
    for index in range(bisect(starts, first) - 1, bisect(starts, last)):
        low, high = max(starts[index], first + 1), min(starts[index + 1], last) - 1
        if owners[index] is peer and low <= high:
            return network.network_address + (low - first)
    return None


@functools.lru_cache(2)
def _ranges(peers: Peers, version: int) -> tuple[list[int], list[Peer | None]]:
    """Return where the ranges of addresses with one owner begin, and their owners, and where the last one ends."""
    found = peers.ranges(version)
    behind = 2 ** (32 if version == 4 else 128)
    return [*(int(start) for start, _ in found), behind], [*(owner for _, owner in found), None]
