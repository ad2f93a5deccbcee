"""Where a chain needs rules that let packets pass, so that they overtake none of the operator's narrow rules. Pure.

The place is before the rule that certainly stops the packets, or behind the last rule if the policy does. A rule that
stops only some of them (a source, a port), or an unknown part of them, keeps its effect: it stays ahead.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from igd.firewall.operator_rules.conditions import Truth
from igd.firewall.operator_rules.packet import Packet
from igd.firewall.operator_rules.saved_rules import Condition, Rule, Rules
from igd.firewall.operator_rules.verdict import End, Road, Step, Walk

Conditions = tuple[Condition, ...]

Outcome = list[tuple[End, list[str]]]
"""How the road of each class ends, and the rules that it passes."""


class Opening(NamedTuple):
    """A place for rules that accept; None: `before` the end of the chain, `only` for packets of all classes."""

    chain: str
    before: Rule | None
    only: Packet | None = None


@dataclass(frozen=True, slots=True)
class Classes:
    """The packets that must pass, and the conditions of the rules that accept them.

    `accepts` returns those of one opening: for one class only, or for all (None), `between` ones included or not.
    Packets `between` peers pass where the rule that stops them stops the others too; nothing is opened for them alone.
    """

    needed: Sequence[Packet]
    accepts: Callable[[Packet | None, bool], Iterable[Conditions]]
    between: Sequence[Packet] = ()


@dataclass(slots=True)
class Openings:
    """The openings that a chain needs; `hairpin`: their rules accept packets between peers, too.

    `stopped` has the texts of the rules and policies that stop packets, and which; `still_stopped` of those that do so
    beside the openings. `one_protocol`: only one of the protocols is stopped, so nothing is opened. `unjudged` are the
    texts of rules that stay ahead and may stop any number of packets. `outcome` is that of the chain with its openings.
    """

    needed: list[Opening] = field(default_factory=list)
    hairpin: bool = False
    stopped: dict[str, Packet] = field(default_factory=dict)
    still_stopped: dict[str, Packet] = field(default_factory=dict)
    unjudged: list[str] = field(default_factory=list)
    outcome: Outcome = field(default_factory=list)
    one_protocol: bool = False

    def warnings(self) -> list[str]:
        """Return one sentence for each rule that may stop mapped flows and for which nothing is opened."""
        return [
            *(f"a rule that igd cannot judge stays ahead, and may stop mapped flows: {text}" for text in self.unjudged),
            *(
                f"{packet} ends at: {where}; igd opens nothing, because this rule is for one protocol alone"
                for where, packet in (self.still_stopped.items() if self.one_protocol else ())
            ),
        ]


def find_openings(rules: Rules, chain: str, classes: Classes, within: str = "") -> Openings:
    """Return the openings that this chain needs, in the chains through which its packets pass.

    If rules for one of the protocols stop its flows, and the other's pass, they do not concern every flow: nothing is
    opened. With `within`, all openings are in that chain or in those that it leads to; only rules that are passed from
    there on stay ahead.

    A chain without a policy (only called by others) is opened whether it stops packets or not.
    """
    return _Search(rules, chain, classes, within).result()


def outcome(rules: Rules, chain: str, classes: Classes, unjudged: Collection[str]) -> Outcome:
    """Return what the chain does with each class: how its road ends, and which rules it passes."""
    packets = (*classes.needed, *classes.between)
    roads = (Walk(rules, packet, frozenset(unjudged)).through(chain) for packet in packets)
    return [(road.end, sorted(rule.text for rule in road.ahead)) for road in roads]


_Walks = dict[Packet, tuple[Walk, Road]]


class _Search:
    def __init__(self, rules: Rules, chain: str, classes: Classes, within: str) -> None:
        self._rules = rules
        self._chain = chain
        self._classes = classes
        self._within = within
        self._base = rules.policies.get(chain, "ACCEPT") != "-"
        self._unjudged: frozenset[str] = frozenset()
        self._natural = self._walks(rules, classes.needed)
        # A rule that cannot be judged for some packets is not certain for others either: "! -s" stops all answers.
        while not self._unjudged.issuperset(unknown := _unknown(self._natural)):
            self._unjudged |= set(unknown)
            self._natural = self._walks(rules, classes.needed)
        self._blanket: set[Rule] = set()
        self._ahead: dict[Packet, set[Rule]] = {}

    def result(self) -> Openings:
        stopped = _stopped(self._natural)
        found = Openings(stopped=_described(stopped), unjudged=_unknown(self._natural))
        found.one_protocol = self._base and self._is_for_one_protocol(stopped)
        if found.one_protocol:
            found.still_stopped = found.stopped
        elif stopped or not self._base:
            self._fill(found, stopped)
        return found

    def _fill(self, found: Openings, stopped: _Walks) -> None:
        self._natural |= self._walks(self._rules, self._classes.between)
        self._blanket = {step.rule for _, road in stopped.values() for step in road.steps if step.rule}
        # What must stay ahead of the openings, for each class.
        starts = {packet: self._start(*natural) for packet, natural in self._natural.items()}
        self._ahead = {
            packet: start.ahead.keys() - self._blanket if start else set() for packet, start in starts.items()
        }
        for packet in self._classes.needed:
            self._open(found, packet)
        if not (self._base or found.needed):
            self._open(found, self._classes.needed[0], always=True)
        found.hairpin = bool(found.needed) and self._is_open_between(found)
        model = self._model(found.needed, hairpin=found.hairpin)
        walks = self._walks(model, self._classes.needed)
        found.still_stopped = _described(_stopped(walks))
        found.unjudged = _unknown(walks)
        found.outcome = outcome(model, self._chain, self._classes, found.unjudged)

    def _is_for_one_protocol(self, stopped: _Walks) -> bool:
        """Return whether rules for one of the protocols stop its flows, while flows of the other pass."""
        rules = (step.rule for _, road in stopped.values() for step in road.steps)
        named = any(condition.option == "-p" for rule in rules if rule for condition in rule.conditions)
        return named and _protocols(stopped) != _protocols(self._classes.needed)

    def _walks(self, rules: Rules, packets: Iterable[Packet]) -> _Walks:
        walks = {packet: Walk(rules, packet, self._unjudged) for packet in packets}
        return {packet: (walk, walk.through(self._chain)) for packet, walk in walks.items()}

    def _start(self, walk: Walk, road: Road) -> Road | None:
        return walk.visits.get(self._within) if self._within else road

    def _open(self, found: Openings, packet: Packet, *, always: bool = False) -> None:
        """Add the opening that this class needs, if it needs one: for all classes, if that overtakes nothing."""
        ((walk, road),) = self._walks(self._model(found.needed), [packet]).values()
        start = self._start(walk, road)
        if start is None or (road.end is End.PASSES and not always):
            return
        places = start.places(self._blanket)
        choices = [Opening(*step) for step in places] + [Opening(*places[0], packet)]
        found.needed.append(next(filter(partial(self._overtakes_nothing, found), choices), choices[-1]))

    def _overtakes_nothing(self, found: Openings, more: Opening) -> bool:
        return self._keeps_ahead(self._model([*found.needed, more]), self._classes.needed)

    def _keeps_ahead(self, model: Rules, packets: Sequence[Packet]) -> bool:
        walks = self._walks(model, packets)
        return all(self._ahead[packet] <= road.ahead.keys() for packet, (_walk, road) in walks.items())

    def _is_open_between(self, found: Openings) -> bool:
        """Return whether the same rules stop packets between peers that stop the others."""
        ends, between = self._ends(self._classes.needed), self._ends(self._classes.between)
        model = self._model(found.needed, hairpin=True)
        return bool(between) and between <= ends and self._keeps_ahead(model, self._classes.between)

    def _ends(self, packets: Iterable[Packet]) -> set[Step]:
        """Return the steps at which these packets do not pass."""
        roads = [self._natural[packet][1] for packet in packets]
        return {road.steps[-1] for road in roads if road.end is not End.PASSES}

    def _model(self, openings: Iterable[Opening], *, hairpin: bool = False) -> Rules:
        rules = self._rules
        for chain, before, only in openings:
            made = [Rule("", chain, conditions, "ACCEPT") for conditions in self._classes.accepts(only, hairpin)]
            rules = rules.inserted(chain, before, made)
        return rules


def _stopped(walks: _Walks) -> _Walks:
    return {packet: (walk, road) for packet, (walk, road) in walks.items() if road.end is End.STOPS}


def _unknown(walks: _Walks) -> list[str]:
    ahead = (item for _, road in walks.values() for item in road.ahead.items())
    return list(dict.fromkeys(rule.text for rule, truth in ahead if truth is Truth.UNKNOWN))


def _protocols(packets: Iterable[Packet]) -> set[str]:
    return {packet.protocol for packet in packets}


def _described(walks: _Walks) -> dict[str, Packet]:
    found: dict[str, Packet] = {}
    for packet, (walk, road) in walks.items():
        found.setdefault(walk.where(road), packet)
    return found
