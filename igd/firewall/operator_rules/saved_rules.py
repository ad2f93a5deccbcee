"""What iptables-save prints, taken apart. Pure."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Options known to take one value, which may then look like an option itself; of the others, values are what follows.
_ONE_VALUE = {"-i", "-o", "-p", "-s", "-d", "-m", "--comment", "--ctstate", "--state", "--mark"}


class Condition(NamedTuple):
    """One thing that a rule asks: an option and the match module that it belongs to ("" for iptables' own)."""

    module: str
    option: str
    value: str
    negated: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """One line "-A chain ..." of iptables-save; `target` is "" where a rule only counts."""

    text: str
    chain: str
    conditions: tuple[Condition, ...]
    target: str
    goto: bool

    @property
    def comments(self) -> list[str]:
        """The texts of its comments, without quotes."""
        return [condition.value for condition in self.conditions if condition.option == "--comment"]


@dataclass(frozen=True, slots=True)
class Rules:
    """One table: the policies of its built-in chains ("-" for chains of users) and each chain's rules in order."""

    policies: dict[str, str] = field(default_factory=dict)
    chains: dict[str, list[Rule]] = field(default_factory=dict)

    def without(self, ignored: Callable[[str], bool]) -> "Rules":
        """Give the same table without the chains whose name is `ignored`, and without the jumps to them."""
        return Rules(
            {name: policy for name, policy in self.policies.items() if not ignored(name)},
            {
                name: [rule for rule in rules if not ignored(rule.target)]
                for name, rules in self.chains.items()
                if not ignored(name)
            },
        )


# A quoted value keeps its quotes while it is looked at, so that it is never taken for an option.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


def parse(saved: str, table: str = "filter") -> Rules:
    """Read one table out of iptables-save's output; what comes before, after and between is passed over."""
    rules = Rules()
    inside = False
    for line in saved.splitlines():
        if line.startswith("*"):
            inside = line == f"*{table}"
        elif inside and line.startswith(":"):
            name, policy, *_counters = line[1:].split()
            rules.policies[name] = policy
            rules.chains[name] = []
        elif inside and line.startswith("-A "):
            rule = _parse_rule(line)
            rules.chains.setdefault(rule.chain, []).append(rule)
    return rules


def _parse_rule(line: str) -> Rule:
    tokens = _TOKEN.findall(line)
    conditions = []
    module, negated, target, goto = "", False, "", False
    position = 2
    while position < len(tokens):
        option = tokens[position]
        position += 1
        if option == "!":
            negated = True
            continue
        if option in ("-j", "-g"):
            target, goto = tokens[position], option == "-g"
            break  # the rest are the target's own options
        end = position + 1 if option in _ONE_VALUE else _next_option(tokens, position)
        value = " ".join(map(_unquoted, tokens[position:end]))
        conditions.append(Condition("" if not option.startswith("--") else module, option, value, negated))
        module = value if option == "-m" else module
        position, negated = end, False
    return Rule(line, tokens[1], tuple(conditions), target, goto)


def _next_option(tokens: Sequence[str], position: int) -> int:
    while position < len(tokens) and not tokens[position].startswith(("-", "!")):
        position += 1
    return position


def _unquoted(token: str) -> str:
    return re.sub(r"\\(.)", r"\1", token[1:-1]) if token.startswith('"') else token
