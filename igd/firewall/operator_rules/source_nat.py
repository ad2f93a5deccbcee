"""Warns if the operator's rules do not translate the source addresses of peers on the way out (MASQUERADE).

Mapped flows do not need it: conntrack translates their answers. Connections that peers open themselves do, if their
addresses are private.
"""

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses, ip_network

from igd.core.obstacle import Obstacle
from igd.core.peers import Peers
from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import rule_sets, xtables
from igd.firewall.operator_rules.frontends import firewalld_zone, is_firewalld, is_ufw
from igd.firewall.operator_rules.packet import Packet
from igd.firewall.operator_rules.rule_sets import Chain
from igd.firewall.operator_rules.saved_rules import Rules
from igd.firewall.operator_rules.verdict import Walk
from igd.firewall.site import OURS

_INTERNET = IPv4Network("198.41.0.4/32")
"""A destination that is neither private nor close: rules for other tunnels name such."""

_MOST = 64
"""How many segments between sources that rules name are judged: the cost of each grows with the number of rules."""


def missing(wireguard: str, way_out: str, peers: Peers) -> list[Obstacle] | None:
    """Read the operator's rules; return an obstacle if they certainly translate nothing of some peers on the way out.

    `way_out` is the interface by which connections of peers leave, "" without one. May block, and runs programs. None:
    a part of the rules cannot be read.
    """
    if way_out in ("", wireguard) or not any(_private(peers)):
        return []
    try:
        found, unread = rule_sets.chains("postrouting")
        if unread or xtables.legacy_unseen():
            return None
        networks = untranslated(wireguard, way_out, found, peers)
        return [_obstacle(way_out, found, networks)] if networks else []
    except FirewallError:  # the advice on the other chains reports it
        return None


def untranslated(wireguard: str, way_out: str, chains: Iterable[Chain], peers: Peers) -> list[IPv4Network]:
    """Return the networks of the peers whose source address no rule translates.

    A peer of whose networks one is translated is not among them: the others may be networks behind it, with a way out
    of their own. Instead of single peers, the interface's network is returned if no peer in it is translated.
    """
    judge = _Judge(wireguard, way_out, [chain for chain in chains if 4 in chain.versions])
    kept: list[IPv4Network] = []
    translated: list[IPv4Network] = []
    for networks in _private(peers):
        (translated if any(map(judge.translates, networks)) else kept).extend(networks)
    around = [network for network in peers.networks() if isinstance(network, IPv4Network)]
    wide = [network for network in around if not any(map(network.overlaps, translated))]
    return list(
        collapse_addresses(next((each for each in wide if network.subnet_of(each)), network) for network in kept)
    )


def _private(peers: Peers) -> Iterator[list[IPv4Network]]:
    """Yield the IPv4 networks of each peer that has only private ones."""
    for peer in peers.all:
        networks = [network for network in peers.owned_by(peer) if isinstance(network, IPv4Network)]
        if networks and not any(network.is_global for network in networks):
            yield networks


class _Judge:
    """Judges networks. Between two neighbouring `cuts`, rules cannot tell addresses apart by their source."""

    def __init__(self, wireguard: str, way_out: str, chains: Sequence[Chain]) -> None:
        self._way = wireguard, way_out
        self._chains = [
            (chain.rules.without(lambda rule: rule.target.startswith(OURS)), chain.name) for chain in chains
        ]
        self._cuts = sorted({cut for rules, _ in self._chains for cut in _cuts(rules)})
        self._known: dict[int, bool] = {}

    def translates(self, network: IPv4Network) -> bool:
        """Return whether rules certainly or possibly translate all packets with a source in this network."""
        first, last = int(network.network_address), int(network.broadcast_address)
        low, high = bisect(self._cuts, first), bisect(self._cuts, last)
        return all(
            self._in_segment(each, IPv4Address(first if each == low else self._cuts[each - 1]))
            for each in range(low, high + 1)
        )

    def _in_segment(self, segment: int, source: IPv4Address) -> bool:
        if segment not in self._known:
            if len(self._known) == _MOST:
                return True  # nothing is certain of so many rules
            packets = [_packet(*self._way, source, protocol) for protocol in ("tcp", "udp")]
            self._known[segment] = all(
                any(_may_be_translated(rules, name, packet) for rules, name in self._chains) for packet in packets
            )
        return self._known[segment]


def _packet(wireguard: str, way_out: str, source: IPv4Address, protocol: str) -> Packet:
    states, sources = frozenset({"NEW"}), (IPv4Network(source),)
    return Packet("a peer's packet", 4, wireguard, way_out, protocol, sources, (_INTERNET,), states)


def _cuts(rules: Rules) -> Iterator[int]:
    """Yield each address at which a network of a rule's source begins, or behind which it ends."""
    for rule in (rule for chain in rules.chains.values() for rule in chain):
        for condition in rule.conditions:
            if (condition.module, condition.option) == ("", "-s"):
                for network in condition.value.split(" "):
                    try:
                        asked = ip_network(network, strict=False)
                    except ValueError:  # a mask with holes
                        continue
                    if isinstance(asked, IPv4Network):
                        yield from (int(asked.network_address), int(asked.broadcast_address) + 1)


def _may_be_translated(rules: Rules, chain: str, packet: Packet) -> bool:
    """Return whether a rule certainly or possibly translates the packet.

    A jump that only some packets take counts as one that may lead to such a rule.
    """
    return any(rule.target not in _LEAVES_AS_IT_IS for rule in Walk(rules, packet).through(chain).ahead)


_LEAVES_AS_IT_IS = {"DROP", "REJECT", "RETURN", "CONNMARK", "drop", "reject", "return", "ct mark set"}
"""Targets of rules that a Walk passes without knowing whether they end it; others may translate."""


_FEW = 4
"""How many networks a suggested rule names."""


def _obstacle(way_out: str, found: Sequence[Chain], networks: Sequence[IPv4Network]) -> Obstacle:
    named = ", ".join(map(str, networks[:_FEW])) + (", ..." if len(networks) > _FEW else "")
    return Obstacle(
        f"no rule translates the source addresses of peers in {named} on {way_out} (MASQUERADE): mapped ports "
        "work, but connections that these peers open get no answers, and most programs that map ports need such",
        _line(way_out, found, networks if len(networks) <= _FEW else []),
        "if no router in front of this server has a route back to the peers, this helps",
    )


def _line(way_out: str, found: Sequence[Chain], networks: Sequence[IPv4Network]) -> str:
    """Return the command that translates the source of packets from these networks (none: of all) on the way out.

    It is in the words of the firewall that the host has.
    """
    found = [chain for chain in found if 4 in chain.versions]
    others = [chain for hook in ("prerouting", "forward", "input") for chain in rule_sets.chains(hook).found]
    sources = ",".join(map(str, networks))
    rule = f"POSTROUTING{f' -s {sources}' if sources else ''} -o {way_out} -j MASQUERADE"
    if firewalld := next((chain.rules for chain in found if is_firewalld(chain.rules)), None):
        zone = firewalld_zone(firewalld, "POSTROUTING", _packet("", way_out, _INTERNET.network_address, "tcp"))
        command = "firewall-cmd --permanent" + (f" --zone={zone}" if zone else "")
        return f"{command} --add-masquerade && firewall-cmd --reload"
    if any(is_ufw(chain.rules) for chain in others):
        table = f"*nat\\n:POSTROUTING ACCEPT [0:0]\\n-A {rule}\\nCOMMIT"
        return f"sed -i '1i {table}' /etc/ufw/before.rules && ufw reload"
    program = next((chain.program for chain in (*found, *others) if 4 in chain.versions), None)
    if program is None:
        program = "iptables" if xtables.program("iptables") else "nft"
    return _nft_line(way_out, found, networks) if program == "nft" else f"{program} -t nat -A {rule}"


def _nft_line(way_out: str, found: Iterable[Chain], networks: Sequence[IPv4Network]) -> str:
    sources = f"ip saddr {{ {', '.join(map(str, networks))} }} " if networks else ""
    rule = f'{sources}oifname "{way_out}" masquerade'
    chain = next((f"{chain.table} {chain.name}" for chain in found if chain.program == "nft"), None)
    if chain is None:
        chain = "ip nat postrouting"
        base = f"add table ip nat; add chain {chain} {{ type nat hook postrouting priority srcnat; }}; "
        return f"nft '{base}add rule {chain} {rule}'"
    return f"nft 'add rule {chain} {rule}'"
