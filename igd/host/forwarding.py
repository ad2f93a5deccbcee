"""Which of the kernel's own settings (sysctl) keep mapped flows from passing, and the lines that change them.

The kernel forwards an IPv4 packet if the interface on which it arrives has `forwarding`. It forwards an IPv6 packet if
`all` has it, or since Linux 6.17 if the interface on which it arrives has `force_forwarding`. With a strict `rp_filter`
(RFC 3704 §2.2) it drops an IPv4 packet that arrives on another interface than the one that leads back to its source.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

from igd.core.obstacle import Obstacle
from igd.core.peers import Network
from igd.host.links import Links

_HALVES = IPv4Address("12.0.0.1"), IPv4Address("198.41.0.4")
"""An address in each half of the internet: VPN clients replace a default route by 0.0.0.0/1 and 128.0.0.0/1."""

INTERNET_6 = IPv6Address("2001:503:ba3e::2:30")

_STRICT = 1
_WHILE_NOT_FORWARDING = 1  # of accept_ra; 2: always
_ROUTES = 8
"""For how many networks of peers the route back is looked up."""


class Settings(NamedTuple):
    """What the kernel's settings keep from passing, by kind."""

    ipv4: list[Obstacle]
    ipv6: list[Obstacle]
    reverse_path: list[Obstacle]


async def warnings(
    links: Links, wireguard: str, external: str, peers: Iterable[Network], matched: Iterable[IPv4Address]
) -> list[str]:
    """Return one sentence for each obstacle that `examine` finds; OSError."""
    found = await examine(links, wireguard, external, peers, matched)
    return [str(obstacle) for obstacle in (*found.ipv4, *found.reverse_path, *found.ipv6)]


async def examine(
    links: Links, wireguard: str, external: str, peers: Iterable[Network], matched: Iterable[IPv4Address]
) -> Settings:
    """Find each setting that keeps mapped flows of these peers from passing; OSError.

    `external` is the interface of the way out ("" without one), `peers` are the networks in which peers own addresses,
    and `matched` the external addresses.
    """
    peers = list(peers)
    versions = {network.version for network in peers}
    found = Settings([], [], [])
    if 4 in versions:
        arrivals = [(address, await links.bearer(address) or external) for address in matched]
        outside = dict.fromkeys([external, *(name for _, name in arrivals)])
        found.ipv4.extend(_ipv4_off([wireguard, *filter(None, outside)]))
        found.reverse_path.extend(await _dropped_from_internet(links, arrivals))
        found.reverse_path.extend(await _dropped_from_peers(links, wireguard, peers))
    if 6 in versions:
        found.ipv6.extend(_ipv6_off(wireguard, await links.route(INTERNET_6) or external))
    return found


def _ipv4_off(interfaces: Iterable[str]) -> list[Obstacle]:
    values = _values(4, interfaces, "forwarding")
    off = [name for name, value in values.items() if value == 0]
    if off == list(values) and sysctl(4, "all", "forwarding") == 0:
        what = "IPv4 forwarding is off: no packet passes between peers and the internet"
        return [_obstacle(what, ["net.ipv4.ip_forward=1"])]
    what = "IPv4 forwarding is off on {}: packets of mapped flows that arrive there are dropped"
    return [_obstacle(what.format(name), [f"{_key(4, name, 'forwarding')}=1"]) for name in off]


def _ipv6_off(wireguard: str, outside: str) -> list[Obstacle]:
    values = _values(6, filter(None, (wireguard, outside)), "force_forwarding")
    off = [name for name, value in values.items() if value == 0]
    if sysctl(6, "all", "forwarding") != 0 or (values and not off):
        return []
    if off != list(values):
        what = "IPv6 forwarding is off on {}: packets that arrive there from or for peers are dropped"
        return [_obstacle(what.format(name), [f"{_key(6, name, 'force_forwarding')}=1"]) for name in off]
    what = "IPv6 forwarding is off: no packet passes between peers and the internet"
    line = ["net.ipv6.conf.all.forwarding=1"]
    if sysctl(6, outside, "accept_ra") == _WHILE_NOT_FORWARDING:  # the default route may come from advertisements
        line.insert(0, f"{_key(6, outside, 'accept_ra')}=2")
    return [_obstacle(what, line)]


async def _dropped_from_internet(links: Links, arrivals: Iterable[tuple[IPv4Address, str]]) -> list[Obstacle]:
    return [
        _obstacle(
            f"packets from the internet to {address} that arrive on {name} are dropped: rp_filter is strict there, and "
            "the route back to their senders leaves by another interface",
            [f"{_key(4, name, 'rp_filter')}=2"],
        )
        for address, name in arrivals
        if name and _is_strict(name)
        if not all([await links.accepts(source, address, name) for source in _HALVES])
    ]


async def _dropped_from_peers(links: Links, wireguard: str, peers: Iterable[Network]) -> list[Obstacle]:
    if not _is_strict(wireguard):
        return []
    own = [address for address in await links.addresses(wireguard) if address.version == 4]
    elsewhere = [
        network
        for network in peers
        if network.version == 4 and not any(network.network_address in each.network for each in own)
    ]
    return [
        Obstacle(
            f"packets from peers in {network} are dropped: rp_filter is strict on {wireguard}, and these addresses are "
            "not routed to it",
            f"ip route add {network} dev {wireguard}",
            "this lets them in",
        )
        for address, network in product(own[:1], elsewhere[:_ROUTES])
        if not await links.accepts(network.network_address, address.ip, wireguard)
    ]


def _is_strict(name: str) -> bool:
    """Return whether the larger of the two values, which is in force, is 1 (ip-sysctl.rst, rp_filter)."""
    own, everywhere = (sysctl(4, each, "rp_filter") for each in (name, "all"))
    return own is not None and max(own, everywhere or 0) == _STRICT


def _obstacle(what: str, settings: Sequence[str]) -> Obstacle:
    lasting = "until the next boot (for good: the same settings in a file in /etc/sysctl.d/)"
    return Obstacle(what, f"sysctl -w {' '.join(settings)}", f"this changes it {lasting}")


def _key(version: Literal[4, 6], interface: str, setting: str) -> str:
    """Return sysctl's name of a setting, in which a slash stands for a dot in the interface's name."""
    return f"net.ipv{version}.conf.{interface.replace('.', '/')}.{setting}"


def _values(version: Literal[4, 6], interfaces: Iterable[str], setting: str) -> dict[str, int]:
    """Return the value of a setting for each of these interfaces that has it."""
    values = ((name, sysctl(version, name, setting)) for name in interfaces)
    return {name: value for name, value in values if value is not None}


def sysctl(version: Literal[4, 6], interface: str, setting: str) -> int | None:
    """Return the value of a setting; None without this interface, this IP version or, in this kernel, this setting."""
    try:
        return int(Path(f"/proc/sys/net/ipv{version}/conf/{interface}/{setting}").read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
