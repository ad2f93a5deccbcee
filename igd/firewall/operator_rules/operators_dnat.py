"""Which external ports the operator's own rules translate already; those rules have precedence."""

import logging
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.firewall.operator_rules import rule_sets
from igd.firewall.operator_rules.conditions import Truth, matches, port_ranges
from igd.firewall.operator_rules.packet import Packet, arriving
from igd.firewall.operator_rules.saved_rules import Condition, Rule, Rules
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.site import Site, label

_log = logging.getLogger(__name__)

_LEADS = {"DNAT", "REDIRECT", "NETMAP", "dnat", "redirect"}
_RETURNS = {"RETURN", "return"}
_ENDS = {"ACCEPT", "DROP", "QUEUE", "NFQUEUE", "REJECT", "accept", "drop", "queue", "reject"}

# A set of ports is a number with their bits: rules are walked with all ports at once.
_Bits = int
_ALL: _Bits = (1 << 65536) - 2


class OperatorsDnat:
    """The external ports that the operator's rules translate, as of the last refresh."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._taken: dict[TransportProtocol, _Bits] = dict.fromkeys(TransportProtocol, 0)
        self._unread = RecurringWarnings(_log, "redirections of the operator's own may be overlooked: %s")

    def refresh(self, addresses: Iterable[IPv4Address]) -> None:
        """Read the rules for packets to these external addresses; FirewallError, and nothing changes.

        A rule set that cannot be read (native nftables tables without nft) counts as empty, with a warning.
        """
        addresses = tuple(addresses)
        found, unread = rule_sets.chains("prerouting")
        self._unread.log(unread)
        chains = [(chain.rules, chain.name) for chain in found if 4 in chain.versions]
        together = dict.fromkeys(TransportProtocol, 0)
        for rules, name in chains:
            for protocol, ports in _taken(rules, name, self._site, addresses).items():
                together[protocol] |= ports
        if together != self._taken:
            _log.info("taken by the operator's own redirections: %s", _described(together))
        self._taken = together

    def holds(self, protocol: TransportProtocol, port: int) -> bool:
        """Return whether the operator's rules translate this external port."""
        return bool(self._taken[protocol] >> port & 1)


def taken(
    rules: Rules, chain: str, site: Site, addresses: Iterable[IPv4Address]
) -> dict[TransportProtocol, tuple[range, ...]]:
    """Return the ports of which this nat chain translates packets from the internet to one of `addresses`.

    A rule that may or may not match takes the ports that it names, and none if it names none. Our own chain is ignored,
    those of other instances are not.
    """
    found = _taken(rules, chain, site, tuple(addresses))
    return {protocol: tuple(_ranges(ports)) for protocol, ports in found.items()}


def _taken(rules: Rules, chain: str, site: Site, addresses: tuple[IPv4Address, ...]) -> dict[TransportProtocol, _Bits]:
    others = rules.without(lambda rule: rule.target == label(site.wireguard))
    return {
        protocol: _PortWalk(others, arriving(site, protocol, addresses)).taken(chain) for protocol in TransportProtocol
    }


class _PortWalk:
    """Walks through the chains with packets to all ports at once."""

    def __init__(self, rules: Rules, packet: Packet) -> None:
        self._rules = rules
        self._packet = packet
        self._known: dict[tuple[str, _Bits, bool, bool], tuple[_Bits, _Bits]] = {}

    def taken(self, chain: str) -> _Bits:
        return self._chain(chain, _ALL, certain=True, named=False)[0]

    def _chain(self, name: str, reaching: _Bits, *, certain: bool, named: bool) -> tuple[_Bits, _Bits]:
        """Return the ports that this chain takes, and those whose packets may return from it.

        `certain`: packets to the ports `reaching` certainly come here; `named`: rules on their way named those ports.
        """
        key = name, reaching, certain, named
        if key not in self._known:
            self._known[key] = self._walk(self._rules.chains.get(name, []), reaching, certain=certain, named=named)
        return self._known[key]

    def _walk(self, rules: Iterable[Rule], here: _Bits, *, certain: bool, named: bool) -> tuple[_Bits, _Bits]:
        taken = back = 0
        for rule in rules:
            ports, others = _ports_apart(rule)
            truth = matches(others, self._packet)
            hit = here if ports is None else here & ports
            if truth is Truth.NO or not hit:
                continue
            certainly = certain and truth is Truth.YES
            here_named = named or _names_ports(rule)
            leads, on, out = self._target(rule, hit, certain=certainly, named=here_named)
            taken, back = taken | leads, back | out
            if truth is Truth.YES:
                here = here & ~hit | on
        return taken, back | here

    def _target(self, rule: Rule, hit: _Bits, *, certain: bool, named: bool) -> tuple[_Bits, _Bits, _Bits]:
        """Return the ports that the target takes, those that go on to the next rule, and those that leave the chain."""
        if rule.target in self._rules.chains:
            taken, back = self._chain(rule.target, hit, certain=certain, named=named)
            return (taken, 0, back) if rule.goto else (taken, back, 0)
        if rule.target in _LEADS:
            return (hit if certain or named else 0), 0, 0
        if rule.target in _RETURNS:
            return 0, 0, hit
        return 0, (0 if rule.target in _ENDS else hit), 0


def _ports_apart(rule: Rule) -> tuple[_Bits | None, list[Condition]]:
    """Return the ports that the rule matches (None: it has no such condition), and its other conditions."""
    ports, others = None, []
    for condition in rule.conditions:
        asked = _ports(condition)
        if asked is None:
            others.append(condition)
        else:
            ports = asked if ports is None else ports & asked
    return ports, others


def _ports(condition: Condition) -> _Bits | None:
    if condition.option not in _PORT_OPTIONS:
        return None
    try:
        ranges = port_ranges(condition.value)
    except ValueError:
        return None
    bits = 0
    for ports in ranges:
        bits |= (1 << ports.stop) - (1 << ports.start)
    return _ALL & ~bits if condition.negated else bits


_PORT_OPTIONS = {"--dport", "--dports"}


def _names_ports(rule: Rule) -> bool:
    """Return whether the rule names ports; a negated port match does not name a port."""
    return any(_ports(condition) is not None and not condition.negated for condition in rule.conditions)


def _ranges(ports: _Bits) -> Iterator[range]:
    """Yield the ranges of a set of ports in ascending order."""
    while ports:
        low = (ports & -ports).bit_length() - 1
        run = ports >> low
        length = (~run & (run + 1)).bit_length() - 1
        yield range(low, low + length)
        ports = run >> length << (low + length)


_LOGGED_RANGES = 20
"""How many ranges of ports one log line names."""


def _described(taken: dict[TransportProtocol, _Bits]) -> str:
    ranges = [
        f"{protocol.name} {ports.start}" + (f"-{ports.stop - 1}" if len(ports) > 1 else "")
        for protocol, bits in taken.items()
        for ports in _ranges(bits)
    ]
    more = [f"and {len(ranges) - _LOGGED_RANGES} more"] if len(ranges) > _LOGGED_RANGES else []
    return ", ".join(ranges[:_LOGGED_RANGES] + more) or "no ports"
