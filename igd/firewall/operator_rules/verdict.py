"""The road of a class of packets through a chain: where it certainly ends, and which rules it passes. Pure.

A rule ends the road if it matches all packets of the class. Other rules may take some packets away; they are recorded
as passed, and the road goes on.
"""

import enum
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from igd.firewall.operator_rules.conditions import Truth, is_for_single_hosts, matches
from igd.firewall.operator_rules.packet import Packet
from igd.firewall.operator_rules.saved_rules import Rule, Rules

# In capitals iptables' targets, in small letters nft's verdicts, which are no names of chains.
_ACCEPTS = {"ACCEPT", "accept"}
_STOPS = {"DROP", "REJECT", "drop", "reject"}
_RETURNS = {"RETURN", "return"}
_GOES_ON = {
    *("", "continue", "AUDIT", "CHECKSUM", "CLASSIFY", "CONNSECMARK", "DSCP", "HL", "LED", "LOG", "MARK", "NFLOG"),
    *("RATEEST", "SECMARK", "SET", "TCPMSS", "TEE", "TOS", "TRACE", "TTL", "ULOG"),
}
"""Targets after which a packet reaches the next rule.

Not NFQUEUE, not what is unknown, and not CONNMARK, which might clear the mark by which a later rule accepts.
"""


class End(enum.Enum):
    """How a road ends."""

    PASSES = enum.auto()
    STOPS = enum.auto()
    LEAVES = enum.auto()  # a chain without a policy, for the chain that led there


class Step(NamedTuple):
    """The rule at which the road leaves a chain; None: behind the chain's last rule."""

    chain: str
    rule: Rule | None


Passed = dict[Rule, Truth]
"""Rules that may take packets away, themselves or by the chain to which they lead: NARROW or UNKNOWN."""


@dataclass(frozen=True, slots=True)
class Road:
    """The steps from the first chain to the rule at which the road ends, and for each step what it passed before it."""

    end: End
    steps: tuple[Step, ...]
    passed: tuple[Passed, ...]

    @property
    def ahead(self) -> Passed:
        """All rules that the road passes."""
        return {rule: truth for each in self.passed for rule, truth in each.items()}

    def places(self, blanket: AbstractSet[Rule]) -> Sequence[Step]:
        """Return the steps, outermost first, at which an accept overtakes none of the rules passed but `blanket`."""
        narrow = [level for level, passed in enumerate(self.passed) if passed.keys() - blanket]
        return self.steps[max(narrow, default=0) :]


class Walk:
    """The road of one class of packets through the chains; `visits` has a road for each chain that it entered.

    `unjudged` are the texts of rules that count as UNKNOWN where they match.
    """

    def __init__(self, rules: Rules, packet: Packet, unjudged: AbstractSet[str] = frozenset()) -> None:
        self._rules = rules
        self._packet = packet
        self._unjudged = unjudged
        self.visits: dict[str, Road] = {}  # a chain to which many rules lead is walked once
        self._inside: dict[str, Truth] = {}

    def through(self, chain: str) -> Road:
        """Return the road from the first rule of the chain; its policy, if it has one, is the last step."""
        road = self._through(chain)
        policy = self._rules.policies.get(chain, "ACCEPT")
        if road.end is not End.LEAVES or policy == "-":
            return road
        return Road(End.PASSES if policy == "ACCEPT" else End.STOPS, road.steps, road.passed)

    def where(self, road: Road) -> str:
        """Return the text of the rule or policy at which the road ends."""
        rule = road.steps[-1].rule
        chain = road.steps[0].chain
        if rule is None or rule.target in _RETURNS:
            return f"policy {self._rules.policies.get(chain)} of {chain}"
        return rule.text

    def _through(self, name: str) -> Road:
        if name not in self.visits:
            self.visits[name] = self._walk(name)
        return self.visits[name]

    def _walk(self, name: str) -> Road:
        passed: Passed = {}
        for rule in self._rules.chains.get(name, ()):
            truth = self._truth(rule)
            if truth is Truth.NO:
                continue
            rest = self._follow(rule) if truth is Truth.YES else None
            if rest is None:
                _add(passed, rule, self._taken_away(rule, truth))
            elif rest.end is End.LEAVES and not rule.goto and rule.target not in _RETURNS:
                for each, kind in rest.ahead.items():
                    _add(passed, each, kind)
            else:
                return Road(rest.end, (Step(name, rule), *rest.steps), (passed, *rest.passed))
        return Road(End.LEAVES, (Step(name, None),), (passed,))

    def _truth(self, rule: Rule) -> Truth:
        truth = self._packet.judged.get(rule)
        if truth is None:
            truth = self._packet.judged[rule] = self._judge(rule)
        return min(truth, Truth.UNKNOWN) if rule.text in self._unjudged else truth

    def _judge(self, rule: Rule) -> Truth:
        """Return whether the rule matches; one that stops single peers is narrow, even if there are no others now."""
        truth = matches(rule.conditions, self._packet)
        quarantine = self._packet.out_interface and rule.target not in _ACCEPTS and is_for_single_hosts(rule.conditions)
        return Truth.NARROW if truth is Truth.YES and quarantine else truth

    def _follow(self, rule: Rule) -> Road | None:
        """Return the rest of the road behind a rule that matches all packets; None: it goes on with the next rule."""
        if rule.target in self._rules.chains:
            return self._through(rule.target)
        return _ENDS.get(rule.target)

    def _taken_away(self, rule: Rule, truth: Truth) -> Truth:
        """Return whether this rule, or the chain to which it leads, takes packets away; NO: none."""
        if rule.target in self._rules.chains:
            inside = min(truth, self._taken_inside(rule.target))
            return max(inside, Truth.NARROW) if rule.goto else inside
        if rule.target in _ACCEPTS | _GOES_ON:
            return Truth.NO
        if rule.target in _RETURNS:
            return Truth.NARROW
        return truth if rule.target in _STOPS else min(truth, Truth.UNKNOWN)

    def _taken_inside(self, name: str) -> Truth:
        """Return whether rules of this chain take packets away that come there."""
        if name not in self._inside:
            found = Truth.NO
            for rule in self._rules.chains[name]:
                truth = self._truth(rule)
                if truth is not Truth.NO:
                    found = max(found, self._taken_away(rule, truth))
                if truth is Truth.YES and rule.target in _ENDS:
                    break
            self._inside[name] = found
        return self._inside[name]


def _add(passed: Passed, rule: Rule, truth: Truth) -> None:
    if truth is not Truth.NO:
        passed[rule] = max(truth, passed.get(rule, truth))


_ENDS = {
    **{target: Road(End.PASSES, (), ()) for target in _ACCEPTS},
    **{target: Road(End.STOPS, (), ()) for target in _STOPS},
    **{target: Road(End.LEAVES, (), ()) for target in _RETURNS},
}
