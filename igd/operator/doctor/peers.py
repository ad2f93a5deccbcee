"""Checks of AllowedIPs: which peers can send, whose addresses igd can tell apart, and what wg-quick's file says."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from ipaddress import ip_network

from igd.core.peers import Network, Peers
from igd.operator.doctor import wg_quick_file
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.samples import addresses_of
from igd.operator.doctor.wg_quick_file import Section, WgQuickFile


async def allowed_ips(machine: Machine) -> Sequence[Finding]:
    """Examine whether WireGuard accepts packets of each peer, and whether igd can tell whose they are."""
    peers = machine.peers
    if peers is None:
        return []
    file = wg_quick_file.read(machine.interface)
    found = [*_unidentified(machine.interface, peers), *(_differences(machine, peers, file) if file else ())]
    if not peers.all and not found:
        return [Finding(Colour.YELLOW, f"{machine.interface} has no peers: nobody can map ports")]
    return found or green(f"peers of {machine.interface}: {len(peers.all)}, and each has addresses of its own")


def _unidentified(interface: str, peers: Peers) -> Iterator[Finding]:
    """Yield each peer that owns no address, so that nothing of it is accepted."""
    for peer in peers.all:
        if not peer.allowed_ips:
            text = (
                "has no AllowedIPs: WireGuard drops all that it sends; an address is that of the peer that got it last"
            )
            yield Finding(Colour.RED, f"peer {peer} {text}")
        elif not addresses_of(peers, peer):
            networks = ", ".join(map(str, peer.allowed_ips))
            text = f"which does not tell its own addresses, and {interface} has no network: igd refuses its requests"
            yield Finding(Colour.RED, f"peer {peer} has AllowedIPs {networks}, {text}; add its address to AllowedIPs")


def _differences(machine: Machine, peers: Peers, file: WgQuickFile) -> Iterator[Finding]:
    """Yield what the file has and WireGuard has not: addresses of two peers, and peers that were added to it."""
    owners: defaultdict[Network, list[str]] = defaultdict(list)
    for section in file.peers:
        for network in _networks(section):
            owners[network] += [key for key in section.values("publickey") if key not in owners[network]]
    labels = {peer.public_key: str(peer) for peer in peers.all}
    present = {(network, peer.public_key) for peer in peers.all for network in peer.allowed_ips}
    unloaded: list[str] = []
    for network, keys in owners.items():
        named = " and ".join(labels.get(key, key[:8]) for key in keys)
        if len(keys) > 1:
            text = f"{file.path} has {network} in the AllowedIPs of {named}: only the last of them can use it"
            yield Finding(Colour.RED, f"{text}; give each peer an address of its own there")
        elif (network, *keys) not in present:
            unloaded.append(f"{network} for peer {named}")
    if unloaded:
        line = f"wg-quick strip {machine.name} | wg addconf {machine.name} /dev/stdin"
        text = (
            f"{file.path} allows {unloaded[0]}, and {machine.interface} does not: the file was changed and not loaded"
        )
        yield Finding(Colour.YELLOW, text + (f" ({len(unloaded) - 1} more)" if unloaded[1:] else ""), line)


def _networks(section: Section) -> Iterator[Network]:
    for item in section.items("allowedips"):
        try:
            yield ip_network(item, strict=False)
        except ValueError:
            continue  # wg-quick would have failed
