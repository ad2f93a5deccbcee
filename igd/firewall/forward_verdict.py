"""Would a mapped flow pass the operator's FORWARD? Pure: judged from the text that iptables-save prints.

What is not understood "may match". Only a flow that passes whatever those rules do is said to pass: when in doubt we
add one jump too many, which lets in our flows alone, rather than leave a mapping without traffic.
"""

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import NamedTuple

from igd.firewall.saved_rules import Condition, Rule, Rules

ANYWHERE = (IPv4Network("0.0.0.0/0"),)


class Truth(enum.IntEnum):
    """Whether a rule matches; the least certain of its conditions decides, so that the order matters."""

    NO = 0
    MAYBE = 1
    YES = 2

    def negated(self) -> "Truth":
        """Turn yes into no; what may match may also not match."""
        return Truth(2 - self)


@dataclass(frozen=True, slots=True)
class Packet:
    """What is known of one packet in FORWARD; `states` as conntrack's --ctstate sees them.

    `source` and `destination` are the networks out of which its addresses may come.
    """

    name: str
    in_interface: str
    out_interface: str
    protocol: str
    source: tuple[IPv4Network, ...]
    destination: tuple[IPv4Network, ...]
    states: frozenset[str]
    mark: int

    def __str__(self) -> str:
        return f"{self.name} ({self.protocol} from {self.in_interface} to {self.out_interface})"


@dataclass(frozen=True, slots=True)
class Passage:
    """Between which interfaces mapped flows go, to which peers' addresses, and with which conntrack mark bit."""

    external: str
    wireguard: str
    peers: tuple[IPv4Network, ...]
    mark: int

    def packets(self) -> list[Packet]:
        """Give every kind of packet that must get through for a mapping to work."""
        rows = [
            ("the first packet of a mapped flow", "NEW", True),
            ("an answer in a mapped flow", "ESTABLISHED", False),
            ("a later packet of a mapped flow", "ESTABLISHED", True),
        ]
        return [
            self._packet(name, protocol, state, inbound=inbound)
            for name, state, inbound in rows
            for protocol in ("tcp", "udp")
        ]

    def _packet(self, name: str, protocol: str, state: str, *, inbound: bool) -> Packet:
        ends = [(self.external, ANYWHERE), (self.wireguard, self.peers)]
        (come, source), (go, destination) = ends if inbound else reversed(ends)
        return Packet(name, come, go, protocol, source, destination, frozenset({state, "DNAT"}), self.mark)


def _interface(actual: str, wanted: str) -> Truth:
    matches = actual.startswith(wanted[:-1]) if wanted.endswith("+") else actual == wanted
    return Truth.YES if matches else Truth.NO


_PROTOCOLS = {"tcp": {"tcp", "6", "all", "0", "ip"}, "udp": {"udp", "17", "all", "0", "ip"}}


def _protocol(packet: Packet, value: str) -> Truth:
    return Truth.YES if value.lower() in _PROTOCOLS[packet.protocol] else Truth.NO


def _address(possible: Sequence[IPv4Network], value: str) -> Truth:
    wanted = IPv4Network(value, strict=False)
    if possible and all(network.subnet_of(wanted) for network in possible):
        return Truth.YES
    return Truth.MAYBE if any(network.overlaps(wanted) for network in possible) or not possible else Truth.NO


def _ctstate(packet: Packet, value: str) -> Truth:
    listed = set(value.split(","))
    if listed & packet.states:
        return Truth.YES
    return Truth.MAYBE if "SNAT" in listed else Truth.NO  # the operator may translate the source as well


def _state(packet: Packet, value: str) -> Truth:
    return Truth.YES if set(value.split(",")) & (packet.states - {"DNAT"}) else Truth.NO


def _connmark(packet: Packet, value: str) -> Truth:
    wanted, _slash, mask = value.partition("/")
    if int(mask or "0xffffffff", 0) != packet.mark:
        return Truth.MAYBE  # it asks for bits of the operator's
    return Truth.YES if int(wanted, 0) == packet.mark else Truth.NO


# "-m tcp" alone asks nothing that -p has not asked, and the others here ask nothing without their options.
_MODULES = {"tcp", "udp", "conntrack", "state", "connmark", "comment"}

_CONDITIONS: dict[tuple[str, str], Callable[[Packet, str], Truth]] = {
    ("", "-i"): lambda packet, value: _interface(packet.in_interface, value),
    ("", "-o"): lambda packet, value: _interface(packet.out_interface, value),
    ("", "-p"): _protocol,
    ("", "-s"): lambda packet, value: _address(packet.source, value),
    ("", "-d"): lambda packet, value: _address(packet.destination, value),
    ("", "-m"): lambda _packet, value: Truth.YES if value in _MODULES else Truth.MAYBE,
    ("comment", "--comment"): lambda _packet, _value: Truth.YES,
    ("conntrack", "--ctstate"): _ctstate,
    ("state", "--state"): _state,
    ("connmark", "--mark"): _connmark,
}

# Targets after which a packet goes on to the next rule. Not here, hence "may drop": DROP, REJECT, NFQUEUE, what we have
# never heard of, and CONNMARK, which might take away the mark that a later rule accepts by.
_GOES_ON = {
    "",
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNSECMARK",
    "DSCP",
    "HL",
    "LOG",
    "MARK",
    "NFLOG",
    "SECMARK",
    "TCPMSS",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
}


def _holds(condition: Condition, packet: Packet) -> Truth:
    judge = _CONDITIONS.get((condition.module, condition.option))
    if judge is None:
        return Truth.MAYBE
    try:
        truth = judge(packet, condition.value)
    except ValueError:  # an address mask with holes, a number in a form of its own
        return Truth.MAYBE
    return truth.negated() if condition.negated else truth


def matches(rule: Rule, packet: Packet) -> Truth:
    """Say whether the rule's target gets the packet; no conditions always hold."""
    return min((_holds(condition, packet) for condition in rule.conditions), default=Truth.YES)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What may keep a packet from getting through: a rule's line, or "policy DROP of FORWARD"."""

    packet: Packet
    where: str

    def __str__(self) -> str:
        return f"{self.packet} may end at: {self.where}"


def find_obstacle(rules: Rules, packets: Iterable[Packet]) -> Obstacle | None:
    """Give the first obstacle in FORWARD, or None where all `packets` definitely pass."""
    for packet in packets:
        where = _Walk(rules, packet).through("FORWARD")
        if where is not None:
            return Obstacle(packet, where)
    return None


class _End(NamedTuple):
    """Where a packet may be after a rule or a chain; nowhere at all: it was accepted."""

    obstacle: str | None = None
    next: bool = False  # at the next rule
    caller: bool = False  # behind the jump that led here


class _Walk:
    """The ways that one packet may take through the chains."""

    def __init__(self, rules: Rules, packet: Packet) -> None:
        self._rules = rules
        self._packet = packet
        self._ends: dict[str, _End] = {}  # a chain that many rules jump to is walked once

    def through(self, chain: str) -> str | None:
        """Give what may stop the packet on its way through a built-in chain, or None."""
        end = self._chain(chain)
        policy = self._rules.policies.get(chain, "ACCEPT")
        if end.obstacle is None and end.caller and policy != "ACCEPT":
            return f"policy {policy} of {chain}"
        return end.obstacle

    def _chain(self, name: str) -> _End:
        if name not in self._ends:
            self._ends[name] = self._walk(self._rules.chains.get(name, []))
        return self._ends[name]

    def _walk(self, rules: Iterable[Rule]) -> _End:
        back = False
        for rule in rules:
            truth = matches(rule, self._packet)
            if truth is Truth.NO:
                continue
            end = self._target(rule)
            if end.obstacle is not None:
                return end
            back = back or end.caller
            if truth is Truth.YES and not end.next:
                return _End(caller=back)
        return _End(caller=True)

    def _target(self, rule: Rule) -> _End:
        if rule.target in self._rules.chains:
            end = self._chain(rule.target)
            return end if rule.goto else _End(end.obstacle, next=end.caller)
        return _ENDS.get(rule.target, _End(obstacle=rule.text))


_ENDS = {
    "ACCEPT": _End(),
    "RETURN": _End(caller=True),
    **dict.fromkeys(_GOES_ON, _End(next=True)),
}
