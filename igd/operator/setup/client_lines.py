"""What a peer's own wg-quick file should have, each line with its reason. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, ip_network
from typing import NamedTuple

from igd.core.peers import Address, Interface, Network, Peer

_TABLE = 51820
"""The routing table of a split tunnel; wg-quick itself takes the same number, for full tunnels."""

DISCOVERY_GROUP = "239.255.255.250"

ANYWHERE = "0.0.0.0/0, ::/0"


class UnknownPeerError(ValueError):
    """No peer, or more than one, is meant; the text lists those that there are."""


class Line(NamedTuple):
    """A setting of wg-quick's file, and why the client needs it."""

    text: str
    reason: str


class Variant(NamedTuple):
    """One way to configure a client: what it is for, and its lines in [Interface] and in [Peer]."""

    title: str
    interface: tuple[Line, ...]
    peer: tuple[Line, ...]


def find(peers: Iterable[Peer], wanted: str) -> Peer:
    """Return the peer with this name, public key or address, or whose key begins like that; UnknownPeerError."""
    peers = list(peers)
    for is_meant in (
        lambda peer: wanted in {peer.name, peer.public_key, *map(str, peer.addresses)},
        lambda peer: wanted.casefold() == peer.name.casefold(),
        lambda peer: len(wanted) >= _SHORTEST_KEY and peer.public_key.startswith(wanted),
    ):
        found = [peer for peer in peers if is_meant(peer)]
        if len(found) == 1:
            return found[0]
        if found:
            break
    known = "; ".join(f"{peer} ({', '.join(map(str, peer.addresses)) or 'no address of its own'})" for peer in peers)
    number = "several peers" if found else "no peer"
    raise UnknownPeerError(f"{wanted} names {number}; there are: {known or 'none'}")


_SHORTEST_KEY = 4


def variants(peer: Peer, own: Sequence[Interface], server: IPv4Address | None) -> list[Variant]:
    """Return the ways to configure this peer.

    `own` are the addresses of the server's interface; `server` is where the client's WireGuard sends to, if known.
    """
    addresses = list(peer.addresses)
    gateways = {address: gateway for address in addresses if (gateway := _nearest(own, address))}
    interface = (_address(addresses, gateways) if addresses else _any_address(own), _MULTICAST)
    all_addresses = (Line(f"AllowedIPs = {ANYWHERE}", _FROM_ANYWHERE),)
    found = [Variant("Everything goes through the tunnel", interface, all_addresses)]
    gateway = next((gateway for address, gateway in gateways.items() if address.version == 4), None)
    if gateway:
        routes = _default_route(gateway.ip, server, ipv6=any(address.version == 6 for address in gateways))
        found += [
            Variant(
                "Everything goes through the tunnel, for programs that ask the gateway of the default route",
                (*interface, *routes),
                all_addresses,
            ),
            Variant(
                "Only the tunnel's own traffic goes through the tunnel", (*interface, *_split(gateways)), all_addresses
            ),
        ]
    return found


def as_text(variants: Sequence[Variant]) -> str:
    """Write the variants as parts of wg-quick's file, with the reasons as comments."""
    return "\n\n".join("\n".join(_part(number, variant)) for number, variant in enumerate(variants, 1))


def _part(number: int, variant: Variant) -> Iterator[str]:
    yield f"# {number}. {variant.title}"
    for section, lines in (("Interface", variant.interface), ("Peer", variant.peer)):
        yield f"[{section}]"
        for line in lines:
            if line.reason:
                yield f"# {line.reason}"
            yield line.text


_MULTICAST = Line(
    "PostUp = ip link set %i multicast on",
    "Syncthing, Kubo and others search only on interfaces with the flag MULTICAST, which WireGuard's lacks.",
)
_PREFIX = (
    "With the prefix length of the tunnel's network: with /32, Kubo and go-libp2p find the gateway and map nothing."
)
_FROM_ANYWHERE = (
    "Connections to mapped ports come from any address, and answers of discovery from the server: "
    "WireGuard drops what is not in AllowedIPs."
)


def _address(addresses: Iterable[Address], gateways: dict[Address, Interface]) -> Line:
    networks = [(address, gateways[address].network if address in gateways else None) for address in addresses]
    written = [
        f"{address}/{network.prefixlen if network and address in network else address.max_prefixlen}"
        for address, network in networks
    ]
    return Line(f"Address = {', '.join(written)}", _PREFIX)


def _any_address(own: Iterable[Interface]) -> Line:
    """Return the line for a peer that owns no single address."""
    length = next((each.network.prefixlen for each in own if each.version == 4), 32)
    return Line(f"Address = ADDRESS/{length}", _PREFIX)


def _nearest(own: Iterable[Interface], peer: Address) -> Interface | None:
    """Return the server's address to use from there: in the smallest network that has the peer, else the first."""
    usable = [each for each in own if each.version == peer.version and not each.ip.is_link_local]
    return max(usable, key=lambda each: each.network.prefixlen if peer in each.network else -1, default=None)


def _default_route(gateway: Address, server: IPv4Address | None, *, ipv6: bool) -> Iterator[Line]:
    where = server or "SERVER"
    yield Line(
        "Table = off", "wg-quick's own default route has no gateway, and programs send NAT-PMP and PCP to the gateway."
    )
    yield Line(
        f"PostUp = ip route add {where} $(ip -4 route show default | head -n 1 | cut -d' ' -f 2-5)",
        "WireGuard's own packets stay outside the tunnel.",
    )
    yield Line(
        f"PostUp = ip route prepend default via {gateway} dev %i onlink",
        "The server as the gateway, before the other default route.",
    )
    if ipv6:
        yield Line("PostUp = ip -6 route add default dev %i metric 1", "IPv6 goes through the tunnel, too.")
    yield Line(f"PostDown = ip route del {where}", "")


def _split(gateways: dict[Address, Interface]) -> Iterator[Line]:
    yield Line("Table = off", "AllowedIPs shall not make routes. These do:")
    networks = [_around(gateway, address) for address, gateway in gateways.items()]
    to_server = [f"ip -{network.version} route replace {network} dev %i" for network in networks]
    yield Line(
        f"PostUp = {'; '.join([*to_server, f'ip route replace {DISCOVERY_GROUP} dev %i'])}",
        "To the server, and to its discovery group.",
    )
    for address in gateways:
        ip = f"ip -{address.version}"
        yield Line(
            f"PostUp = {ip} rule add from {address} table {_TABLE}; {ip} route add default dev %i table {_TABLE}",
            "What has the tunnel's address as its source leaves through the tunnel.",
        )
        yield Line(f"PostDown = {ip} rule del from {address} table {_TABLE}", "")


def _around(gateway: Interface, address: Address) -> Network:
    """Return the tunnel's network, or without one that contains this address, the server alone."""
    return gateway.network if address in gateway.network else ip_network(gateway.ip)
