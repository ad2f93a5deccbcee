"""What is in a table of iptables-legacy: rules, chains, one edit; and how a shell is told the same. Pure."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from igd.core.mapping import TransportProtocol

NAT = "nat"
PREROUTING, POSTROUTING = "PREROUTING", "POSTROUTING"

Version = Literal[4, 6]

PROGRAMS: dict[Version, str] = {4: "iptables-legacy", 6: "ip6tables-legacy"}
"""By IP version."""

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or a target, with its options as iptables calls them, less the two hyphens."""

    name: str
    options: Options = ()

    def words(self, option: str) -> list[str]:
        """Give it as words of a command line, introduced by `option`."""
        return [option, self.name, *(word for name, value in self.options for word in (f"--{name}", value))]


@dataclass(frozen=True, slots=True)
class LegacyRule:
    """One rule, of which what is None or empty is no condition.

    `incoming` and `outgoing` name interfaces; after "!", all others.
    """

    target: Extension
    source: IPv4Network | IPv6Network | None = None
    destination: IPv4Network | IPv6Network | None = None
    incoming: str = ""
    outgoing: str = ""
    protocol: TransportProtocol | None = None
    matches: tuple[Extension, ...] = ()

    def words(self) -> list[str]:
        """Give it as words of a command line, in the order of `iptables-legacy -S`."""
        conditions = (
            ("-s", self.source),
            ("-d", self.destination),
            ("-i", self.incoming),
            ("-o", self.outgoing),
            ("-p", self.protocol and self.protocol.name.lower()),
        )
        simple = [word for option, value in conditions if value for word in _condition(option, str(value))]
        return simple + [word for each in self.matches for word in each.words("-m")] + self.target.words("-j")


def _condition(option: str, value: str) -> list[str]:
    return ["!", option, value[1:]] if value.startswith("!") else [option, value]


@dataclass(frozen=True, slots=True)
class OwnChain:
    """A chain of ours: where it hangs, by which jumps (before or after all others'), and its rules."""

    version: Version
    name: str
    hook: str
    jumps: tuple[LegacyRule, ...]
    jumps_first: bool
    rules: tuple[LegacyRule, ...]

    def making(self) -> list[str]:
        """Give the lines for a shell that make it, where its jumps come last."""
        jumps = (["-A", self.hook, *jump.words()] for jump in self.jumps)
        rules = (["-A", self.name, *rule.words()] for rule in self.rules)
        return [_command(self.version, words) for words in (["-N", self.name], *rules, *jumps)]

    def unmaking(self) -> list[str]:
        """Give the lines for a shell that take it out."""
        jumps = (["-D", self.hook, *jump.words()] for jump in self.jumps)
        return [_command(self.version, words) for words in (*jumps, ["-F", self.name], ["-X", self.name])]


@dataclass(frozen=True, slots=True)
class Edit:
    """One rule that comes (`position` counts from 0; None: at the end) or goes."""

    version: Version
    chain: str
    rule: LegacyRule
    comes: bool
    position: int | None = None

    def command(self) -> str:
        """Give it as a line that does the same in a shell."""
        where = ["-D", self.chain]
        if self.comes:
            where = ["-A", self.chain] if self.position is None else ["-I", self.chain, str(self.position + 1)]
        return _command(self.version, [*where, *self.rule.words()])


def _command(version: Version, words: Iterable[str]) -> str:
    return shlex.join([PROGRAMS[version], "-t", NAT, *words])
