"""The operator's policy for one peer: which ports may lead where, for how long, and how many."""

import bisect
import itertools
import random
import re
import shlex
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from igd.core.mapping import ControlProtocol, Endpoint, Lease, TransportProtocol, parse_ports, ports_text
from igd.core.request import ENDLESS
from igd.core.reserved_ports import Reservation, StaticMapping, reservations

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

    def covers(self, other: "PortRule") -> bool:
        """Return whether this rule applies to all addresses and descriptions to which `other` applies."""
        return (
            self.description is None
            and self.network.version == other.network.version
            and other.network.network_address in self.network
            and other.network.prefixlen >= self.network.prefixlen
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
    """What one peer may map: the first matching rule decides, no match denies. Lifetimes are in seconds.

    Ports in `reserved` and of `static` mappings are the peer's: the rules do not concern them. `protocols` are those by
    which it may make requests. Without `routed_hosts` its mappings lead to no host of a network behind it. With
    `masquerade_inbound`, packets that reach it through a mapping bear the server's address as their source. Its
    mappings are suspended after `idle_after` seconds without a handshake (0: never).
    """

    rules: tuple[PortRule, ...] = ANY_UNPRIVILEGED
    _: KW_ONLY
    min_lifetime: int = 1
    max_lifetime: int = 604800
    default_lifetime: int = 604800
    max_mappings: int = 64
    protocols: frozenset[ControlProtocol] = frozenset(ControlProtocol)
    routed_hosts: bool = True
    reserved: tuple[Reservation, ...] = ()
    static: tuple[StaticMapping, ...] = ()
    masquerade_inbound: bool = False
    idle_after: int = 0

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """The external ports that no other peer gets: those in `reserved`, and those of static port mappings."""
        return reservations(self.reserved, self.static)

    def reserves(self, protocol: TransportProtocol, port: int) -> bool:
        """Return whether this external port is reserved for the peer."""
        return any(protocol is each.protocol and port in each.ports for each in self.reservations)

    def allows(self, protocol: TransportProtocol, external_port: int, internal: Endpoint, description: str) -> bool:
        """Return whether this external port may lead to `internal`. Only ports of IPv4 are reserved."""
        reserved = internal.address.version == 4 and self.reserves(protocol, external_port)
        return reserved or _first_match(self._applicable(internal, description), external_port)

    def allows_pinholes(self) -> bool:
        """Return whether the rules allow some pinhole, whose external port is the internal one."""
        rules = [rule.for_same_port() for rule in self.rules if rule.network.version == 6]
        return any(
            _allowed((*(each for each in rules[:index] if each.covers(rule)), rule))
            for index, rule in enumerate(rules)
            if rule.allow
        )

    def lease(self, lifetime: int, now: float) -> Lease:
        """Return the lease, from `now`, for the lifetime in seconds that a client requested."""
        if lifetime == ENDLESS:
            return Lease(now + self.default_lifetime, endless=True)
        return Lease(now + min(max(lifetime, self.min_lifetime), self.max_lifetime))

    def candidates(
        self, protocol: TransportProtocol, internal: Endpoint, description: str, rng: random.Random
    ) -> Iterator[int]:
        """Yield external ports for a mapping whose port the gateway chooses: up to CANDIDATES at random by the rules.

        Ports that are reserved for the peer come last: it has a use for them, perhaps later. With internal port 0, the
        internal port is to be the external one.
        """
        for port in _sample(_allowed(self._applicable(internal, description)), rng):
            if not self.reserves(protocol, port):
                yield port
        own = (each.ports for each in self.reservations if each.protocol is protocol)
        yield from itertools.islice(itertools.chain.from_iterable(own), CANDIDATES)

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
