"""Would packets pass a chain of the operator's? Pure: judged from rules that were read.

What is not understood "may match". Only a packet that passes whatever those rules do is said to pass: when in doubt we
add one jump too many, which lets in our flows alone, rather than leave a mapping without traffic.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from igd.firewall.operator_rules.conditions import Truth, matches
from igd.firewall.operator_rules.packet import Packet, packets
from igd.firewall.operator_rules.saved_rules import Rule, Rules

__all__ = ["Obstacle", "find_obstacle", "packets"]

# Targets after which a packet goes on to the next rule. Not here, hence "may drop": DROP, REJECT, NFQUEUE, what we have
# never heard of, and CONNMARK, which might take away the mark that a later rule accepts by.
_GOES_ON = {
    "",
    "continue",
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


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What may keep a packet from getting through: a rule's line, or "policy DROP of FORWARD"."""

    packet: Packet
    where: str

    def __str__(self) -> str:
        return f"{self.packet} may end at: {self.where}"


def find_obstacle(rules: Rules, packets: Iterable[Packet], chain: str = "FORWARD") -> Obstacle | None:
    """Give the first obstacle in this chain, or None where all `packets` definitely pass."""
    for packet in packets:
        where = _VerdictWalk(rules, packet).through(chain)
        if where is not None:
            return Obstacle(packet, where)
    return None


class _End(NamedTuple):
    """Where a packet may be after a rule or a chain; nowhere at all: it was accepted."""

    obstacle: str | None = None
    next: bool = False  # at the next rule
    caller: bool = False  # behind the jump that led here


class _VerdictWalk:
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
            truth = matches(rule.conditions, self._packet)
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


# In capitals iptables' targets, in small letters nft's verdicts, which no chain can be named after.
_ENDS = {
    **dict.fromkeys(("ACCEPT", "accept"), _End()),
    **dict.fromkeys(("RETURN", "return"), _End(caller=True)),
    **dict.fromkeys(_GOES_ON, _End(next=True)),
}
