"""The sections [peers.NAME] of the configuration file: what one peer may do in place of the top-level settings."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, StrictBool, StrictInt, model_validator

from igd import toml
from igd.config_values import (
    AllowRules,
    IdleSeconds,
    LeaseSeconds,
    Protocols,
    PublicKey,
    Reservations,
    Rules,
    Section,
    ShortestLease,
    StaticMappings,
)
from igd.core.mapping import TransportProtocol
from igd.core.peers import Peers
from igd.core.policies import Policies
from igd.core.policy import Policy, PortRule
from igd.core.reserved_ports import Reservation, reservations


class PeerLeases(Section):
    """Lifetimes in seconds, in place of those of [leases]."""

    min: ShortestLease | None = None
    max: LeaseSeconds | None = None
    default: LeaseSeconds | None = None


class PeerSettings(Section):
    """A peer's key, and its settings; what is not set is as for peers without a section."""

    public_key: PublicKey
    rules: Rules | None = None
    allow: AllowRules | None = None
    max_mappings: Annotated[StrictInt, Field(ge=1, le=65535)] | None = None
    leases: PeerLeases = PeerLeases()
    protocols: Protocols | None = None
    routed_hosts: StrictBool | None = None
    reserve: Reservations = ()
    static: StaticMappings = ()
    masquerade_inbound: StrictBool = False
    idle_after: IdleSeconds | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "PeerSettings":
        rules_of(self.rules, self.allow)
        counts = Counter((each.protocol, each.external_port, each.pinhole_address) for each in self.static)
        twice = [f"{protocol.name.lower()} {port}" for (protocol, port, _), count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"static has two mappings of {', '.join(twice)}")
        return self

    def as_set(self) -> dict[str, object]:
        """Return what is set, as plain values; `allow` as the equivalent `rules`."""
        plain = self.model_dump(mode="json", exclude_unset=True)
        return {"rules" if key == "allow" else key: value for key, value in plain.items()}

    def policy(self, default: Policy) -> Policy:
        """Return the peer's policy; ValueError if its leases contradict each other or those of `default`."""
        rules = rules_of(self.rules, self.allow)
        shortest, longest, usual = self._lifetimes(default)
        return Policy(
            rules=default.rules if rules is None else rules,
            min_lifetime=shortest,
            max_lifetime=longest,
            default_lifetime=usual,
            max_mappings=self.max_mappings or default.max_mappings,
            protocols=default.protocols if self.protocols is None else frozenset(self.protocols),
            routed_hosts=default.routed_hosts if self.routed_hosts is None else self.routed_hosts,
            reserved=self.reserve,
            static=self.static,
            masquerade_inbound=self.masquerade_inbound,
            idle_after=default.idle_after if self.idle_after is None else self.idle_after,
        )

    def _lifetimes(self, default: Policy) -> tuple[int, int, int]:
        """Return the shortest, the longest and the usual lifetime; one that is not set gives way to those that are."""
        leases = self.leases
        longest = leases.max or max(default.max_lifetime, leases.min or 0, leases.default or 0)
        shortest = leases.min or min(default.min_lifetime, longest)
        usual = leases.default or min(max(default.default_lifetime, shortest), longest)
        check_lifetimes(shortest, usual, longest)
        return shortest, longest, usual


def check_lifetimes(shortest: int, usual: int, longest: int) -> None:
    """Raise ValueError if `leases.min`, `default` and `max` contradict each other."""
    if usual > longest:
        raise ValueError(f"default ({usual}) must not be above max ({longest})")
    if shortest > usual:
        raise ValueError(f"min ({shortest}) must not be above default ({usual})")


def rules_of(rules: tuple[PortRule, ...] | None, allow: tuple[PortRule, ...] | None) -> tuple[PortRule, ...] | None:
    """Return the list that is set, None if none is; ValueError if both are."""
    if rules is not None and allow is not None:
        raise ValueError("rules and allow exclude each other: use one of them")
    return allow if rules is None else rules


def policies(default: Policy, peers: Mapping[str, PeerSettings]) -> Policies:
    """Return the policies of all peers; ValueError has the contradictions between and inside their sections."""
    errors = [*_same_keys(peers), *_same_ports(peers)]
    by_peer = {}
    for name, peer in peers.items():
        try:
            by_peer[peer.public_key] = peer.policy(default)
        except ValueError as error:
            errors.append(f"{_section(name)}.leases: {error}")
    if errors:
        raise ValueError("; and ".join(errors))
    return Policies(default, by_peer, {peer.public_key: name for name, peer in peers.items()})


_IF_PRIVATE = "if it is the peer's private key, replace it, and delete it here"


def without_peer(named: Policies, interface: str, peers: Peers) -> list[str]:
    """Return a sentence for each section whose key no peer of the interface has."""
    present = {peer.public_key for peer in peers.all}
    return [
        f"{_section(name)}: no peer of {interface} has this public_key; the section has no effect; {_IF_PRIVATE}"
        for key, name in named.names.items()
        if key not in present
    ]


def _section(name: str) -> str:
    return toml.dotted(("peers", name))


def _same_keys(peers: Mapping[str, PeerSettings]) -> list[str]:
    """Return a sentence for each peer whose key an earlier one has."""
    first: dict[str, str] = {}
    return [
        f"{_section(first[peer.public_key])} and {_section(name)} have the same public_key"
        for name, peer in peers.items()
        if first.setdefault(peer.public_key, name) != name
    ]


def _same_ports(peers: Mapping[str, PeerSettings]) -> list[str]:
    """Return a sentence for overlapping ports that two peers reserve or map statically; none only if there are none."""
    rows = [(each, name) for name, peer in peers.items() for each in reservations(peer.reserve, peer.static)]
    widest: dict[TransportProtocol, tuple[Reservation, str]] = {}  # the one that ends last, of those before
    found = []
    for each, name in sorted(rows, key=lambda row: row[0].ports.start):
        earlier, other = widest.setdefault(each.protocol, (each, name))
        overlap = each.overlap(earlier)
        if overlap is not None and name != other:
            found.append(f"{_section(other)} and {_section(name)} both reserve {overlap}")
        if each.ports.stop > earlier.ports.stop:
            widest[each.protocol] = (each, name)
    return found
