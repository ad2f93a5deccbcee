"""The operator's policy: which ports may lead where, for how long, and how many per peer."""

import bisect
import itertools
import random
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from igd.core.mapping import Endpoint, Lease, ports_text
from igd.core.request import ENDLESS

CANDIDATES = 256
"""How many external ports one request may try. It limits the cost of one packet; with 5 % of the ports free, a free one
is found with a probability above 0.99999."""


@dataclass(frozen=True, slots=True)
class PortRule:
    """One rule of the operator: allow or deny that external ports lead to internal addresses and ports.

    The ranges of ports are inside 0 to 65535.
    """

    allow: bool
    external: range
    network: IPv4Network | IPv6Network
    internal: range
    description: re.Pattern[str] | None = None

    @classmethod
    def parse(cls, text: str) -> "PortRule":
        """Parse `allow|deny EXTERNAL-PORTS ADDRESS[/PREFIX] INTERNAL-PORTS ["REGEX"]`; ValueError states the error."""
        try:
            words = shlex.split(text, posix=False)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
        if not 4 <= len(words) <= 5 or words[0] not in {"allow", "deny"}:
            raise ValueError(f'{text!r} is not of the form: allow|deny 1024-65535 10.100.0.0/16 1024-65535 ["regex"]')
        verdict, external, network, internal, *pattern = words
        return cls(
            verdict == "allow",
            parse_ports(external),
            _network(network),
            parse_ports(internal),
            _pattern(pattern[0]) if pattern else None,
        )

    def applies_to(self, internal: Endpoint, description: str) -> bool:
        """Return whether this rule decides on its external ports for a mapping to `internal` with this description."""
        return (
            internal.address in self.network
            and internal.port in self.internal
            and (self.description is None or self.description.search(description) is not None)
        )

    def for_same_port(self) -> "PortRule":
        """Return the rule for mappings whose internal port is the external one and is not chosen yet (0)."""
        first, stop = max(self.external.start, self.internal.start), min(self.external.stop, self.internal.stop)
        return replace(self, external=range(first, max(first, stop)), internal=range(1))

    def __str__(self) -> str:
        verdict, pattern = (
            "allow" if self.allow else "deny",
            f' "{self.description.pattern}"' if self.description else "",
        )
        return f"{verdict} {ports_text(self.external)} {self.network} {ports_text(self.internal)}{pattern}"


def parse_ports(text: str) -> range:
    """Parse "1024-65535" or "8080"; ValueError states the format. As in miniupnpd, a range may begin with 0."""
    error = f"{text!r} is not a range of ports such as 1024-65535 or 8080"
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if not match:
        raise ValueError(error)
    first, last = int(match[1]), int(match[2] or match[1])
    if max(first, last) > 65535:
        raise ValueError(f"{error}: the highest port is 65535")
    if last == 0:
        raise ValueError(f"{error}: the lowest port is 1; write 0-65535 for all ports")
    if first > last:
        raise ValueError(f"{error}: it is backwards; write {last}-{first}")
    return range(first, last + 1)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an address or a network such as 10.100.0.0/16 or 2001:db8::/64") from None
    address = text.partition("/")[0]
    if ip_address(address) != network.network_address:
        raise ValueError(f"{text!r} is an address and a network; write {network} or {address}")
    return network


def _pattern(text: str) -> re.Pattern[str]:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ValueError(f"{text!r} is not a regular expression in double quotes")
    try:
        return re.compile(text[1:-1])
    except re.error as error:
        raise ValueError(f"{text} is not a regular expression: {error}") from None


ANY_UNPRIVILEGED = tuple(PortRule.parse(f"allow 1024-65535 {network} 1024-65535") for network in ("0.0.0.0/0", "::/0"))
"""The default rules: ports from 1024, to any address that the peer owns."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What peers may map: the first matching rule decides, no match denies. Lifetimes are in seconds."""

    rules: tuple[PortRule, ...] = ANY_UNPRIVILEGED
    max_lifetime: int = 604800
    default_lifetime: int = 604800
    mappings_per_peer: int = 64

    def allows(self, external_port: int, internal: Endpoint, description: str) -> bool:
        """Return whether the rules let this external port lead to `internal`."""
        return _first_match(self._applicable(internal, description), external_port)

    def lease(self, lifetime: int, now: float) -> Lease:
        """Return the lease, from `now`, for the lifetime in seconds that a client requested."""
        if lifetime == ENDLESS:
            return Lease(now + self.default_lifetime, endless=True)
        return Lease(now + min(lifetime, self.max_lifetime))

    def candidates(
        self, suggested: int | None, internal: Endpoint, description: str, rng: random.Random
    ) -> Iterator[int]:
        """Yield external ports that the rules allow: the suggested one first, then up to CANDIDATES at random.

        With internal port 0, the internal port is to be the external one.
        """
        rules = self._applicable(internal, description)
        if suggested is not None and _first_match(rules, suggested):
            yield suggested
        yield from _sample(_allowed(rules), rng)

    def any_candidates(self, rng: random.Random) -> Iterator[int]:
        """Yield up to CANDIDATES external ports at random that the rules allow for some IPv4 mapping."""
        yield from _sample(_allowed(tuple(rule for rule in self.rules if rule.network.version == 4)), rng)

    def _applicable(self, internal: Endpoint, description: str) -> tuple[PortRule, ...]:
        rules = self.rules if internal.port else [rule.for_same_port() for rule in self.rules]
        return tuple(rule for rule in rules if rule.applies_to(internal, description))


def _allowed(rules: tuple[PortRule, ...]) -> list[range]:
    """Return the external ports that the rules allow, each once. All ports between two edges have the same verdict."""
    edges = sorted({edge for rule in rules for edge in (max(1, rule.external.start), rule.external.stop)})
    return [range(first, end) for first, end in itertools.pairwise(edges) if _first_match(rules, first)]


def _sample(ranges: list[range], rng: random.Random) -> Iterator[int]:
    ends = list(itertools.accumulate(map(len, ranges)))
    size = ends[-1] if ends else 0
    for index in rng.sample(range(size), min(CANDIDATES, size)):
        chosen = bisect.bisect_right(ends, index)
        yield ranges[chosen][index - ends[chosen]]  # a negative index, from the end of the range


def _first_match(rules: tuple[PortRule, ...], external_port: int) -> bool:
    return next((rule.allow for rule in rules if external_port in rule.external), False)
