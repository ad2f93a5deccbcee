"""What each peer may do and what it is called: the default policy, and those of named peers."""

import bisect
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, collapse_addresses

from igd.core.mapping import ControlProtocol, TransportProtocol
from igd.core.peers import Peer, Peers
from igd.core.policy import Policy
from igd.core.reserved_ports import Reservation


@dataclass(frozen=True, eq=False)
class Policies:
    """The policies and names of peers, by public key. A peer without them has the `default` policy and no name.

    No port is reserved for two peers.
    """

    default: Policy = field(default_factory=Policy)
    by_peer: Mapping[str, Policy] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    _reserved: Mapping[TransportProtocol, "_Owners"] = field(init=False)

    def __post_init__(self) -> None:
        """Index the reservations of all peers."""
        rows = [(each, key) for key, policy in self.by_peer.items() for each in policy.reservations]
        owners = {
            protocol: _Owners((each, key) for each, key in rows if each.protocol is protocol)
            for protocol in TransportProtocol
        }
        object.__setattr__(self, "_reserved", owners)

    def of(self, public_key: str) -> Policy:
        """Return the policy of a peer."""
        return self.by_peer.get(public_key, self.default)

    def may_use(self, public_key: str, protocol: ControlProtocol) -> bool:
        """Return whether a peer may make requests by this protocol."""
        return protocol in self.of(public_key).protocols

    def name_of(self, public_key: str) -> str:
        """Return the name of a peer; "" if it has none."""
        return self.names.get(public_key, "")

    def label(self, public_key: str) -> str:
        """Return what a line of the log calls a peer: its name, or the start of its key."""
        return str(Peer(public_key, (), self.name_of(public_key)))

    def masqueraded(self, peers: Peers) -> tuple[IPv4Network, ...]:
        """Return the IPv4 networks of the peers to which mapped flows are masqueraded.

        An entry of AllowedIPs that does not identify a peer, such as 0.0.0.0/0, counts only if there is one peer.
        """
        found = [
            network
            for peer in peers.all
            if self.of(peer.public_key).masquerade_inbound
            for network in (peers.owned_by(peer) if len(peers.all) == 1 else peer.identifying_networks)
        ]
        return tuple(collapse_addresses(network for network in found if isinstance(network, IPv4Network)))

    def reserved_for(self, protocol: TransportProtocol, port: int) -> str | None:
        """Return the public key of the peer for which this external port is reserved, or None."""
        return self._reserved[protocol].at(port)

    def any_candidates(self, rng: random.Random) -> Iterator[int]:
        """Yield external ports at random that the rules allow to some peer and that are reserved for none."""
        for policy in (self.default, *self.by_peer.values()):
            for port in policy.any_candidates(rng):
                if all(self.reserved_for(protocol, port) is None for protocol in TransportProtocol):
                    yield port

    def withholds(self, public_key: str, protocol: TransportProtocol, port: int) -> bool:
        """Return whether this external port is reserved for another peer."""
        return self.reserved_for(protocol, port) not in {None, public_key}


class _Owners:
    """The owner of each reserved port of one protocol."""

    def __init__(self, rows: Iterable[tuple[Reservation, str]]) -> None:
        self._ranges: list[range] = []
        self._owners: list[str] = []
        for reservation, key in sorted(rows, key=lambda row: row[0].ports.start):
            ports = reservation.ports
            if self._ranges and ports.start < self._ranges[-1].stop:  # a peer may reserve a port twice
                self._ranges[-1] = range(self._ranges[-1].start, max(self._ranges[-1].stop, ports.stop))
            else:
                self._ranges.append(ports)
                self._owners.append(key)
        self._starts = [ports.start for ports in self._ranges]

    def at(self, port: int) -> str | None:
        index = bisect.bisect_right(self._starts, port) - 1
        return self._owners[index] if index >= 0 and port in self._ranges[index] else None
