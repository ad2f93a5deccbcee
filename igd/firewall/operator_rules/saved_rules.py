"""Decodes what iptables-save prints. Pure."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Options that take one value, which may look like an option itself. The values of others end before the next option.
_ONE_VALUE = {"-i", "-o", "-p", "-s", "-d", "-m", "--comment", "--ctstate", "--state", "--mark"}


class Condition(NamedTuple):
    """One condition of a rule: an option and the match module that it belongs to ("" for iptables' own)."""

    module: str
    option: str
    value: str
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One line "-A chain ..." of iptables-save; `target` is "" if the rule only counts.

    `handle` is nft's number of the rule, 0 for iptables' rules. Two lines with one text are two rules.
    """

    text: str
    chain: str
    conditions: tuple[Condition, ...]
    target: str
    goto: bool = False
    handle: int = 0

    @property
    def comments(self) -> list[str]:
        """Its comments, without quotes."""
        return [condition.value for condition in self.conditions if condition.option == "--comment"]


@dataclass(frozen=True, slots=True)
class Rules:
    """One table: the policies of its base chains ("-" for other chains), and each chain's rules in order."""

    policies: dict[str, str] = field(default_factory=dict)
    chains: dict[str, list[Rule]] = field(default_factory=dict)

    def without(self, ignored: Callable[[Rule], bool]) -> "Rules":
        """Return the same table without these rules."""
        chains = {name: [rule for rule in rules if not ignored(rule)] for name, rules in self.chains.items()}
        return Rules(self.policies, chains)

    def inserted(self, chain: str, before: Rule | None, new: Iterable[Rule]) -> "Rules":
        """Return the same table with `new` rules before this rule of the chain (None: behind its last)."""
        rules = self.chains.get(chain, [])
        position = position_of(before, rules)
        return Rules(self.policies, {**self.chains, chain: [*rules[:position], *new, *rules[position:]]})


def position_of(rule: Rule | None, rules: Sequence[Rule]) -> int:
    """Return the index of this very rule, for None that behind the last one.

    A rule of nft's with several verdicts is several Rules with one handle; the index is the first one's.
    """
    if rule is None:
        return len(rules)
    return next(
        index for index, each in enumerate(rules) if each is rule or (rule.handle and each.handle == rule.handle)
    )


# A quoted value keeps its quotes until the options are known, so that it is never taken for an option.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


def parse(saved: str, table: str = "filter") -> Rules:
    """Decode one table of iptables-save's output; skip everything else."""
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
