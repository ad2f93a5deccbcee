"""Advises the operator which commands let through what their firewall stops; igd itself does not run them."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from igd.core.mapping import TransportProtocol
from igd.core.obstacle import Obstacle
from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import rule_sets
from igd.firewall.operator_rules.accepts import accepts, as_nft, mapped_flows
from igd.firewall.operator_rules.conditions import Truth, matches
from igd.firewall.operator_rules.frontends import OWNED_BY_FIREWALLD, firewalld_zone, is_firewalld, is_ufw
from igd.firewall.operator_rules.openings import Classes, Opening, find_openings
from igd.firewall.operator_rules.packet import Packet, Version, packets, requests, used_versions
from igd.firewall.operator_rules.rule_sets import Chain
from igd.firewall.operator_rules.saved_rules import Condition, position_of
from igd.firewall.operator_rules.verdict import End, Walk
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.site import Site

_log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address
Port = tuple[TransportProtocol, int]


class Advisor:
    """Warns the operator of what the firewall stops, once for as long as it lasts.

    `ports` are those of the server that peers use, `own` returns its addresses inside the tunnel, `source_nat` what
    `source_nat.missing` does, as sentences.
    """

    def __init__(
        self,
        site: Site,
        ports: Iterable[Port],
        own: Callable[[], Iterable[Address]],
        source_nat: Callable[[], list[str] | None],
    ) -> None:
        self._site = site
        self._ports = tuple(ports)
        self._own = own
        self._source_nat = source_nat
        self._missing: list[str] = []  # of source NAT: as logged
        self._suspected: list[str] | None = None  # and as last read
        self._warnings = RecurringWarnings(_log)

    def advise(self) -> bool:
        """Read the operator's rules and log what they stop or lack; may block, and runs programs.

        Return whether to read them again soon. A firewall that reloads has no rules for a moment, so that missing
        ones are logged when they are missing twice; at the first call, which is igd's start, at once.
        """
        found = advice(self._site, self._ports, self._own())
        missing = self._source_nat()
        if missing is None:
            missing = self._missing
        again = missing not in ([], self._missing, self._suspected) and self._suspected is not None
        self._suspected = missing
        if not again:
            self._missing = missing
        self._warnings.log([*found, *self._missing])
        return again


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
        *map(str, input_advice(site, incoming.found, ports, own)),
        *map(str, forward_advice(site, forwarded.found)),
    ]


def input_advice(
    site: Site, chains: Iterable[Chain], ports: Iterable[Port], own: Iterable[Address] = ()
) -> list[Obstacle]:
    """Return one obstacle for each port of the server that the chains stop, with the lines that would open it.

    Also one for each rule that may stop packets to it, and cannot be judged.
    """
    chains, own = list(chains), list(own)
    return [obstacle for port in ports for obstacle in _port_advice(site, chains, port, own)]


def opening_lines(
    site: Site, chains: Iterable[Chain], ports: Iterable[Port], own: Iterable[Address] = ()
) -> dict[str, str]:
    """Return the lines that open the ports of the server that the chains stop, each with the rule that stops them."""
    chains, own = list(chains), list(own)
    return {line: where for port in ports for line, where in _stopped(site, chains, port, own).remedies.items()}


class _Stopped(NamedTuple):
    """The lines that open a port, each with the rules that stop packets to it, and rules that cannot be judged."""

    remedies: dict[str, str]
    unjudged: list[str]


def _stopped(site: Site, chains: list[Chain], port: Port, own: list[Address]) -> _Stopped:
    result = _Stopped({}, [])
    for chain in chains:
        for version in used_versions(site, chain.versions):
            found = find_openings(chain.rules, chain.name, _requests(site, version, port, own))
            for opening in found.needed:
                result.remedies[_remedy(site, chain, version, port, opening)] = "; ".join(found.stopped)
            result.unjudged.extend(found.unjudged)
    return result


def _port_advice(site: Site, chains: list[Chain], port: Port, own: list[Address]) -> Iterator[Obstacle]:
    name = f"{port[0].name} {port[1]}"
    remedies, unjudged = _stopped(site, chains, port, own)
    for text in unjudged:
        yield Obstacle(f"a rule that igd cannot judge may keep peers from {name} of this server: {text}")
    if remedies:
        where, lines = "; ".join(dict.fromkeys(remedies.values())), "\n".join(remedies)
        yield Obstacle(f"peers cannot reach {name} of this server, because of ({where})", lines, "this lets them in")


def _requests(site: Site, version: Version, port: Port, own: list[Address]) -> Classes:
    """Return the packets of peers to this port, and the rule that accepts them."""
    protocol = port[0].name.lower()
    conditions = (
        Condition("", "-i", site.wireguard, negated=False),
        Condition("", "-p", protocol, negated=False),
        Condition(protocol, "--dport", str(port[1]), negated=False),
    )
    return Classes(list(requests(site, port, version, own)), lambda _only, _hairpin: [conditions])


def forward_advice(site: Site, chains: Iterable[Chain]) -> list[Obstacle]:
    """Return one obstacle for each nft chain that stops mapped flows; igd itself edits iptables' chains."""
    return [
        obstacle
        for chain in chains
        if chain.program == "nft" and site.forward_chain != path(chain)
        for obstacle in (*chain_advice(site, chain), *firewalld_zones(site, chain))
    ]


def forward_chains(site: Site, chains: Iterable[Chain]) -> list[str]:
    """Return the nft chains of the operator's own, not of firewalld, that stop mapped flows: for `forward_chain`."""
    return [
        path(chain)
        for chain in chains
        if chain.program == "nft" and site.forward_chain != path(chain) and not is_firewalld(chain.rules)
        if find_openings(chain.rules, chain.name, mapped_flows(site, used_versions(site, chain.versions))).needed
    ]


def chain_advice(site: Site, chain: Chain) -> Iterator[Obstacle]:
    """Yield one obstacle for each rule of an nft chain that may stop mapped flows, and one if they are stopped."""
    found = find_openings(chain.rules, chain.name, mapped_flows(site, used_versions(site, chain.versions)))
    yield from (Obstacle(f"{path(chain)}: {warning}") for warning in found.warnings())
    if found.needed:
        causes = "; ".join(f"{packet} ends at: {where}" for where, packet in found.stopped.items())
        rules = [
            f"{_nft_place(chain, opening)} {as_nft(conditions)} accept"
            for opening in found.needed
            for conditions in accepts(site, opening.only, hairpin=found.hairpin)
        ]
        text = f'mapped flows are stopped: {causes}; what helps is forward_chain = "{path(chain)}" under [firewall]'
        if is_firewalld(chain.rules):  # it deletes other rules when it reloads
            yield Obstacle(f"{text}; {OWNED_BY_FIREWALLD}")
        else:
            yield Obstacle(text, _shell(rules), "or by hand")


def firewalld_zones(site: Site, chain: Chain) -> Iterator[Obstacle]:
    """Yield an obstacle if zones of firewalld drop their sources, but not the mapped flows from them.

    For such a source firewalld redirects nothing, so that it may accept every redirected flow before it sorts by zone.
    """
    packet = packets(site)[0]
    walk = Walk(chain.rules, packet)
    if walk.through(chain.name).end is not End.PASSES:
        return
    sorting = [rule for name in _FORWARD_SORTING - walk.visits.keys() for rule in chain.rules.chains.get(name, ())]
    narrow = [rule for rule in sorting if matches(rule.conditions, packet) is Truth.NARROW]
    dropping = [rule.text for rule in narrow if rule.target == "drop" or _ends_in_drop(chain, rule.target, packet)]
    if dropping:
        yield Obstacle(
            f"sources that a zone of firewalld drops ({dropping[0]}) reach mapped ports, because firewalld accepts "
            "redirected flows before it looks at zones; this keeps one out: "
            "firewall-cmd --direct --add-rule ipv4 filter FORWARD 0 -s ADDRESS -j DROP"
        )


def _ends_in_drop(chain: Chain, name: str, packet: Packet) -> bool:
    last = Walk(chain.rules, packet).through(name).steps[-1].rule if name in chain.rules.chains else None
    return last is not None and last.target == "drop"


_FORWARD_SORTING = {"filter_FORWARD_ZONES", "filter_FORWARD_IN_ZONES", "filter_FORWARD_POLICIES"}


def _shell(rules: Iterable[str]) -> str:
    """Write nft commands for a shell, which would take the "&" for its own."""
    return " && ".join(f"nft '{rule}'" for rule in rules)


def _nft_place(chain: Chain, opening: Opening) -> str:
    """Return the command for nft that adds a rule at this place, up to the rule itself."""
    path = f"{chain.table} {opening.chain}"
    return f"insert rule {path} position {opening.before.handle}" if opening.before else f"add rule {path}"


def path(chain: Chain) -> str:
    """Return the name of an nft chain with its table's, as `forward_chain` has it."""
    return f"{chain.table} {chain.name}"


def _remedy(site: Site, chain: Chain, version: Version, port: Port, opening: Opening) -> str:
    """Return the command with which the manager of this chain opens the port to peers."""
    return next(line for manages, line in _MANAGERS if manages(chain))(site, chain, version, port, opening)


def _ufw(site: Site, _chain: Chain, _version: Version, port: Port, _opening: Opening) -> str:
    return f"ufw allow in on {site.wireguard} to any port {port[1]} proto {port[0].name.lower()}"


def _firewalld(site: Site, chain: Chain, version: Version, port: Port, _opening: Opening) -> str:
    protocol, number = port[0].name.lower(), port[1]
    first = next(requests(site, port, version))
    arriving = (replace(first, in_interface=interface) for interface in (site.wireguard, site.external))
    zone, outside = (firewalld_zone(chain.rules, "INPUT", packet) for packet in arriving)
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


def _iptables(site: Site, chain: Chain, _version: Version, port: Port, opening: Opening) -> str:
    asked = f"-i {site.wireguard} -p {port[0].name.lower()} --dport {port[1]}"
    position = position_of(opening.before, chain.rules.chains[opening.chain]) + 1
    place = f"-I {opening.chain} {position}" if opening.before else f"-A {opening.chain}"
    return f"{chain.program} {place} {asked} -j ACCEPT"


def _nft(site: Site, chain: Chain, _version: Version, port: Port, opening: Opening) -> str:
    asked = f'iifname "{site.wireguard}" {port[0].name.lower()} dport {port[1]}'
    return f"nft {_nft_place(chain, opening)} {asked} accept"


_MANAGERS: tuple[tuple[Callable[[Chain], bool], Callable[[Site, Chain, Version, Port, Opening], str]], ...] = (
    (lambda chain: is_ufw(chain.rules), _ufw),
    (lambda chain: is_firewalld(chain.rules), _firewalld),
    (lambda chain: chain.program != "nft", _iptables),
    (lambda _chain: True, _nft),
)
