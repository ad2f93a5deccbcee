"""The contents of a table of iptables-legacy: rules, chains, one edit; and the commands for them. Pure."""

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
    """A match or a target, with its options by iptables' names, without the two hyphens."""

    name: str
    options: Options = ()

    def words(self, option: str) -> list[str]:
        """Return the words of a command line, beginning with `option`."""
        return [option, self.name, *(word for name, value in self.options for word in (f"--{name}", value))]


@dataclass(frozen=True, slots=True)
class LegacyRule:
    """One rule; a field that is None or empty is no condition.

    `incoming` and `outgoing` name interfaces; with "!" before the name they match all other interfaces.
    """

    target: Extension
    source: IPv4Network | IPv6Network | None = None
    destination: IPv4Network | IPv6Network | None = None
    incoming: str = ""
    outgoing: str = ""
    protocol: TransportProtocol | None = None
    matches: tuple[Extension, ...] = ()

    def words(self) -> list[str]:
        """Return the words of a command line, in the order of `iptables-legacy -S`."""
        conditions = (
            ("-s", self.source),
            ("-d", self.destination),
            ("-i", self.incoming),
            ("-o", self.outgoing),
            ("-p", self.protocol and self.protocol.name.lower()),
        )
        simple = [word for option, value in conditions if value for word in _condition(option, str(value))]
        return simple + [word for match in self.matches for word in match.words("-m")] + self.target.words("-j")


def _condition(option: str, value: str) -> list[str]:
    return ["!", option, value[1:]] if value.startswith("!") else [option, value]


@dataclass(frozen=True, slots=True)
class OwnChain:
    """A chain of ours, its rules, and the jumps to it from `hook`, which come before or after all other rules there."""

    version: Version
    name: str
    hook: str
    jumps: tuple[LegacyRule, ...]
    jumps_first: bool
    rules: tuple[LegacyRule, ...]

    def creation(self) -> list[str]:
        """Return the commands that create it, with its jumps at the end of the hook."""
        jumps = (["-A", self.hook, *jump.words()] for jump in self.jumps)
        rules = (["-A", self.name, *rule.words()] for rule in self.rules)
        return [_command(self.version, words) for words in (["-N", self.name], *rules, *jumps)]

    def removal(self) -> list[str]:
        """Return the commands that remove it."""
        jumps = (["-D", self.hook, *jump.words()] for jump in self.jumps)
        return [_command(self.version, words) for words in (*jumps, ["-F", self.name], ["-X", self.name])]


@dataclass(frozen=True, slots=True)
class Edit:
    """The addition of one rule (`position` counts from 0; None: at the end), or its deletion."""

    version: Version
    chain: str
    rule: LegacyRule
    adds: bool
    position: int | None = None

    def command(self) -> str:
        """Return the command that does the same."""
        where = ["-D", self.chain]
        if self.adds:
            where = ["-A", self.chain] if self.position is None else ["-I", self.chain, str(self.position + 1)]
        return _command(self.version, [*where, *self.rule.words()])


def _command(version: Version, words: Iterable[str]) -> str:
    return shlex.join([PROGRAMS[version], "-t", NAT, *words])
