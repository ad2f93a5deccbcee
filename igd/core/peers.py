"""Which peer owns an address: longest prefix match over WireGuard's allowed-ips, as in the kernel."""

import base64
import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

WIDEST = {4: 8, 6: 16}
"""The shortest prefix length that identifies a peer, by IP version.

Wider entries (0.0.0.0/0, 128.0.0.0/1, 2000::/3) only state where a peer may send packets.
"""

_UNOWNED = tuple(
    map(ipaddress.ip_network, ("0.0.0.0/32", "127.0.0.0/8", "224.0.0.0/4", "::/128", "::1/128", "ff00::/8"))
)
"""The unspecified, loopback and multicast addresses, which nobody owns."""


_KEY_OCTETS = 32


def is_public_key(text: str) -> bool:
    """Return whether the text is a public key of WireGuard, in base64 as `wg` prints it."""
    try:
        octets = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return len(octets) == _KEY_OCTETS and base64.b64encode(octets).decode() == text


@dataclass(frozen=True, slots=True)
class Peer:
    """A WireGuard peer: its public key in base64, the source addresses that its packets may have, and its name ("")."""

    public_key: str
    allowed_ips: tuple[Network, ...]
    name: str = ""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The peer's single addresses, without the networks behind it."""
        hosts = (network for network in self.allowed_ips if network.prefixlen == network.max_prefixlen)
        return tuple(network.network_address for network in hosts)

    @property
    def identifying_networks(self) -> tuple[Network, ...]:
        """The peer's networks that are not wider than WIDEST."""
        return tuple(network for network in self.allowed_ips if _identifies_peer(network))

    def __str__(self) -> str:
        return self.name or self.public_key[:8]


class Peers:
    """The peers of one WireGuard interface, which itself has `addresses`.

    WireGuard accepts a packet only from the peer that owns its source address, so the address authenticates the peer.
    """

    def __init__(self, peers: Iterable[Peer], addresses: Iterable[Interface]) -> None:
        self.all = tuple(peers)
        addresses = tuple(addresses)
        self._own = frozenset(interface.ip for interface in addresses)
        self._networks = tuple(interface.network for interface in addresses)
        # (IP version, prefix length) -> network address as an integer -> peer; longest prefix first
        tables: defaultdict[tuple[int, int], dict[int, Peer]] = defaultdict(dict)
        for peer in self.all:
            for network in peer.allowed_ips:
                tables[network.version, network.prefixlen][int(network.network_address)] = peer
        self._tables = sorted(tables.items(), reverse=True)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The single addresses of all peers."""
        return tuple(address for peer in self.all for address in peer.addresses)

    def owner(self, address: Address) -> Peer | None:
        """Return the peer that owns `address`, or None.

        An entry wider than WIDEST owns only addresses in the interface's networks.
        """
        if address in self._own or address.is_multicast or address.is_unspecified or address.is_loopback:
            return None
        for (version, prefix_length), table in self._tables:
            if version != address.version:
                continue
            host_bits = address.max_prefixlen - prefix_length
            peer = table.get(int(address) >> host_bits << host_bits)
            if peer is not None and (prefix_length >= WIDEST[version] or self.on_link(address)):
                return peer
        return None

    def networks(self, others: Iterable[Address] = ()) -> tuple[Network, ...]:
        """Return as few networks as contain all addresses that peers own, and `others`; IPv4 first."""
        owned = [network for peer in self.all for network in peer.identifying_networks]
        return _collapsed((*self._networks, *owned, *map(ipaddress.ip_network, others)))

    def owned(self) -> tuple[Network, ...]:
        """Return as few networks as contain all addresses that peers own; IPv4 first."""
        return _collapsed(network for peer in self.all for network in self.owned_by(peer))

    def owned_by(self, peer: Peer) -> tuple[Network, ...]:
        """Return the networks in which this peer owns addresses; for an entry wider than WIDEST, the interface's."""
        wide = {network.version for network in peer.allowed_ips if not _identifies_peer(network)}
        return *peer.identifying_networks, *(network for network in self._networks if network.version in wide)

    def ranges(self, version: int) -> list[tuple[Address, Peer | None]]:
        """Return all addresses of an IP version as ranges, each by its first address and its owner, in order.

        The first range begins with address 0, and each ends before the next one.
        """
        address: Callable[[int], Address] = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        own = map(ipaddress.ip_network, self._own)
        listed = [*_UNOWNED, *own, *self._networks, *(network for peer in self.all for network in peer.allowed_ips)]
        networks = {network for network in listed if network.version == version}
        firsts = {int(network.network_address) for network in networks}
        behind = {int(network.broadcast_address) + 1 for network in networks} - {2 ** address(0).max_prefixlen}
        starts = {0, *firsts, *behind}
        found: list[tuple[Address, Peer | None]] = []
        for start in map(address, sorted(starts)):
            owner = self.owner(start)
            if not found or found[-1][1] is not owner:
                found.append((start, owner))
        return found

    def may_map(self, public_key: str, source: Address, internal: Address) -> bool:
        """Return whether this peer, now at `source`, owns `internal`; an entry wider than WIDEST owns only `source`."""
        peer = self.owner(internal)
        if peer is None or peer.public_key != public_key:
            return False
        return internal == source or any(internal in network for network in peer.identifying_networks)

    def still_owns(self, public_key: str, internal: Address) -> bool:
        """Return whether this peer owns `internal` now."""
        peer = self.owner(internal)
        return peer is not None and peer.public_key == public_key

    def is_routed_host(self, internal: Address) -> bool:
        """Return whether `internal` is a host of a network behind the peer that owns it.

        A peer's own addresses are its single ones, and those in the interface's networks.
        """
        peer = self.owner(internal)
        return peer is not None and internal not in peer.addresses and not self.on_link(internal)

    def on_link(self, address: Address) -> bool:
        """Return whether `address` is in one of the interface's own networks."""
        return any(address in network for network in self._networks)


def _identifies_peer(network: Network) -> bool:
    return network.prefixlen >= WIDEST[network.version]


def _collapsed(networks: Iterable[Network]) -> tuple[Network, ...]:
    """Return as few networks as contain the same addresses; IPv4 first."""
    networks = list(networks)
    ipv4 = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv4Network))
    ipv6 = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv6Network))
    return *ipv4, *ipv6
