"""Advises the operator which commands let through what their firewall may drop; igd itself does not run them."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from igd.core.mapping import TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import rule_sets
from igd.firewall.operator_rules.conditions import Truth, matches
from igd.firewall.operator_rules.packet import Packet, Version, packets, requests
from igd.firewall.operator_rules.rule_sets import Chain
from igd.firewall.operator_rules.verdict import find_obstacle
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.site import Site

_log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address
Port = tuple[TransportProtocol, int]


class Advisor:
    """Warns the operator of what the firewall may drop, once for as long as it lasts.

    `ports` are those of the server that peers use, `own` returns its addresses inside the tunnel.
    """

    def __init__(self, site: Site, ports: Iterable[Port], own: Callable[[], Iterable[Address]]) -> None:
        self._site = site
        self._ports = tuple(ports)
        self._own = own
        self._warnings = RecurringWarnings(_log)

    def advise(self) -> None:
        """Read the operator's rules and log what they may drop; may block, and runs programs."""
        self._warnings.log(advice(self._site, self._ports, self._own()))


def advice(site: Site, ports: Iterable[Port], own: Iterable[Address] = ()) -> list[str]:
    """Read this machine's firewalls and return one sentence for each thing that they may keep from working.

    `ports` are those of an Advisor, `own` the server's addresses inside the tunnel. A rule set that
    cannot be read adds a sentence.
    """
    try:
        incoming, forwarded = rule_sets.chains("input"), rule_sets.chains("forward")
    except FirewallError as error:
        return [f"what the firewall lets through is not known: {error}"]
    unread = dict.fromkeys(incoming.unread + forwarded.unread)
    return [
        *(f"a part of the firewall cannot be looked at, and may drop what peers need: {reason}" for reason in unread),
        *input_advice(site, incoming.found, ports, own),
        *forward_advice(site, forwarded.found),
    ]


def input_advice(site: Site, chains: Iterable[Chain], ports: Iterable[Port], own: Iterable[Address] = ()) -> list[str]:
    """Return one sentence for each port of the server that the chains may block, with the lines that would open it."""
    chains, own = list(chains), list(own)
    return [sentence for port in ports for sentence in _port_advice(site, chains, port, own)]


def _port_advice(site: Site, chains: list[Chain], port: Port, own: list[Address]) -> Iterator[str]:
    found = {
        _remedy(site, chain, version, port): obstacle.where
        for chain in chains
        for version in _versions(site, chain)
        if (obstacle := find_obstacle(chain.rules, requests(site, port, version, own), chain.name))
    }
    if found:
        name, where = f"{port[0].name} {port[1]}", "; ".join(dict.fromkeys(found.values()))
        lines = " and ".join(found)
        yield f"peers may not reach {name} of this server, because of ({where}); this lets them in: {lines}"


def forward_advice(site: Site, chains: Iterable[Chain]) -> list[str]:
    """Return one sentence for each nft chain that may drop mapped flows; igd itself edits iptables' chains."""
    return [
        sentence
        for chain in chains
        if chain.program == "nft" and site.forward_chain != _path(chain)
        for sentence in _chain_advice(site, chain)
    ]


def _chain_advice(site: Site, chain: Chain) -> Iterator[str]:
    for version in _versions(site, chain):
        obstacle = find_obstacle(chain.rules, packets(site, version), chain.name)
        if obstacle is not None:
            line = f"nft insert rule {_path(chain)} ct mark and {site.mark:#x} == {site.mark:#x} accept"
            setting = f'forward_chain = "{_path(chain)}" under [firewall]'
            yield f"mapped flows may be dropped: {obstacle}; what helps is {setting}, or by hand: {line}"
            return


def _versions(site: Site, chain: Chain) -> list[Version]:
    """Return the IP versions of the chain that peers use."""
    return [each for each in chain.versions if each == 4 or any(network.version == 6 for network in site.peers)]


def _path(chain: Chain) -> str:
    return f"{chain.table} {chain.name}"


def _remedy(site: Site, chain: Chain, version: Version, port: Port) -> str:
    """Return the command with which the manager of this chain opens the port to peers."""
    return next(line for manages, line in _MANAGERS if manages(chain))(site, chain, version, port)


def _ufw(site: Site, _chain: Chain, _version: Version, port: Port) -> str:
    return f"ufw allow in on {site.wireguard} to any port {port[1]} proto {port[0].name.lower()}"


def _firewalld(site: Site, chain: Chain, version: Version, port: Port) -> str:
    protocol, number = port[0].name.lower(), port[1]
    zone, outside = (_zone(chain, interface, site, version, port) for interface in (site.wireguard, site.external))
    command = "firewall-cmd --permanent" + (f" --zone={zone}" if zone else "")
    networks = [network for network in site.peers if network.version == version]
    if zone == outside and 0 < len(networks) <= _FEW:
        # The external interface is in the same zone: open the port to peers only.
        lines = [f"{command} --add-rich-rule='{_rich(network, protocol, number)}'" for network in networks]
    else:
        lines = [f"{command} --add-port={number}/{protocol}"]
    return " && ".join([*lines, "firewall-cmd --reload"])


_FEW = 4
"""How many networks of peers may get a rule each."""


def _rich(network: IPv4Network | IPv6Network, protocol: str, port: int) -> str:
    source = f'family="ipv{network.version}" source address="{network}"'
    return f'rule {source} port port="{port}" protocol="{protocol}" accept'


def _zone(chain: Chain, interface: str, site: Site, version: Version, port: Port) -> str | None:
    """Return the zone to which firewalld's rules assign an interface."""
    packet = Packet("", version, interface, "", port[0].name.lower(), site.peers, (), frozenset(), dport=port[1])
    for name in _SORTING & chain.rules.chains.keys():
        for rule in chain.rules.chains[name]:
            zone = re.fullmatch(r"(?:filter_)?IN_(.+)", rule.target)
            if zone and matches(rule.conditions, packet) is Truth.YES:
                return zone[1]
    return None


_SORTING = {"filter_INPUT_ZONES", "INPUT_ZONES"}


def _iptables(site: Site, chain: Chain, _version: Version, port: Port) -> str:
    asked = f"-i {site.wireguard} -p {port[0].name.lower()} --dport {port[1]}"
    return f"{chain.program} -I {chain.name} {asked} -j ACCEPT"


def _nft(site: Site, chain: Chain, _version: Version, port: Port) -> str:
    asked = f'iifname "{site.wireguard}" {port[0].name.lower()} dport {port[1]}'
    return f"nft insert rule {_path(chain)} {asked} accept"


_MANAGERS: tuple[tuple[Callable[[Chain], bool], Callable[[Site, Chain, Version, Port], str]], ...] = (
    (lambda chain: not {"ufw-user-input", "ufw6-user-input"}.isdisjoint(chain.rules.chains), _ufw),
    (lambda chain: not _SORTING.isdisjoint(chain.rules.chains), _firewalld),
    (lambda chain: chain.program != "nft", _iptables),
    (lambda _chain: True, _nft),
)
