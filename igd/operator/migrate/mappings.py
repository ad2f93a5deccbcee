"""The mappings of a miniupnpd, and what they are in igd. Pure."""

import html
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    Claim,
    Endpoint,
    Entry,
    Key,
    Lease,
    PortMapping,
    Remote,
    TransportProtocol,
)
from igd.core.peers import Peers
from igd.core.policies import Policies
from igd.core.policy import Policy
from igd.core.request import ENDLESS

_NAT_PMP = re.compile(r"NAT-PMP \d+ (tcp|udp)")
_PCP = re.compile(r"PCP MAP ([0-9a-f]{8})([0-9a-f]{8})([0-9a-f]{8})")
"""How miniupnpd describes a mapping that it made for PCP: the nonce as three numbers of the machine."""


@dataclass(frozen=True, slots=True)
class Former:
    """A mapping of miniupnpd's; `seconds` are left of its lease, None: it is without end."""

    protocol: TransportProtocol
    external_port: int
    internal: Endpoint
    description: str
    seconds: int | None = None
    remote: IPv4Address | None = None

    @property
    def key(self) -> Key:
        """What identifies the mapping."""
        return self.protocol, self.external_port

    @property
    def claim(self) -> Claim:
        """How its client refers to it: a client of PCP must renew it with the nonce with which it was made."""
        if found := _PCP.fullmatch(self.description):
            words = (int(word, 16).to_bytes(4, sys.byteorder) for word in found.groups())
            return Claim(by_internal=True, nonce=b"".join(words))
        return BY_INTERNAL_ENDPOINT if _NAT_PMP.fullmatch(self.description) else BY_EXTERNAL_PORT

    def __str__(self) -> str:
        return f"{self.protocol.name} {self.external_port} -> {self.internal}"


def protocol(text: str) -> TransportProtocol:
    """Return the protocol as miniupnpd writes it; ValueError."""
    if text not in TransportProtocol.__members__:
        raise ValueError(f"{text!r} is no protocol")
    return TransportProtocol[text]


def endpoint(address: str, port_text: str) -> Endpoint:
    """Return an IPv4 endpoint as miniupnpd writes it; ValueError."""
    return Endpoint(IPv4Address(address), port(port_text))


def port(text: str) -> int:
    """Return a port as miniupnpd writes it; ValueError."""
    value = int(text)
    if not 1 <= value <= 65535:
        raise ValueError(f"{text} is no port")
    return value


class LeaseFile(NamedTuple):
    """The mappings in miniupnpd's lease file whose leases have not ended, and the lines that are none."""

    mappings: list[Former]
    ignored: list[str]


def read_lease_file(text: str, now: float) -> LeaseFile:
    """Read lines `TCP:8043:10.100.0.2:8043:1700000000:description`; the fifth word is when the lease ends, 0: never.

    `now` is wall time. Descriptions are written as they are in XML. The last line of a port counts.
    """
    found: dict[Key, Former] = {}
    ignored = []
    for line in filter(str.strip, text.split("\n")):
        try:
            name, external, address, internal, ends, description = line.split(":", 5)
            seconds = round(int(ends) - now) if int(ends) else None
            inside, described = endpoint(address, internal), html.unescape(description.strip())
            mapping = Former(protocol(name), port(external), inside, described, seconds)
        except ValueError:
            ignored.append(line)
            continue
        found.pop(mapping.key, None)
        if seconds is None or seconds > 0:
            found[mapping.key] = mapping
    return LeaseFile(list(found.values()), ignored)


class Entries(NamedTuple):
    """What igd takes over, and a sentence for each mapping that it does not, or not as it was."""

    taken: list[Entry]
    notes: list[str]


def entries(mappings: Iterable[Former], peers: Peers, policies: Policies, held: Sequence[Entry], now: float) -> Entries:
    """Return igd's entries for these mappings; `now` is a boottime, `held` are those that igd has already."""
    by_key = {entry.mapping.key: entry for entry in held}
    taken: list[Entry] = []
    notes: list[str] = []
    for one in mappings:
        peer = peers.owner(one.internal.address)
        policy = policies.of(peer.public_key) if peer else policies.default
        reason = "no peer owns the address" if peer is None else _objection(one, policy, by_key.get(one.key))
        if reason or peer is None:
            notes.append(f"{one}: not taken over: {reason}")
            continue
        taken.append(_entry(one, peer.public_key, policy, now))
        if one.seconds is not None and one.seconds > policy.max_lifetime:
            notes.append(f"{one}: its lease of {one.seconds} s becomes {policy.max_lifetime} s, max in [leases]")
    return Entries(taken, notes + _beyond_quota(taken, policies))


def _beyond_quota(taken: Iterable[Entry], policies: Policies) -> list[str]:
    """Return a sentence for each peer with as many mappings as igd grants, or more: miniupnpd has no limit."""
    counts = Counter(entry.mapping.peer for entry in taken)
    return [
        f"peer {policies.label(peer)} has {count} mappings, and gets new ones up to {quota} (mappings_per_peer)"
        for peer, count in counts.items()
        if count >= (quota := policies.of(peer).max_mappings)
    ]


def _objection(one: Former, policy: Policy, held: Entry | None) -> str | None:
    """Return why igd would not resume this mapping when it starts."""
    if held is not None and held.mapping.internal != one.internal:
        return f"igd has {held.mapping}"
    if not policy.allows(one.protocol, one.external_port, one.internal, one.description):
        return "the rules do not allow it"
    if one.claim.protocol not in policy.protocols:
        return f"its peer may not use {one.claim.protocol}"
    return None


def _entry(one: Former, peer: str, policy: Policy, now: float) -> Entry:
    remotes = (Remote(IPv4Network(one.remote)),) if one.remote else ()
    mapping = PortMapping(
        one.protocol, one.external_port, one.internal, peer, one.description, remotes=remotes, claim=one.claim
    )
    if one.seconds is None:
        return Entry(mapping, policy.lease(ENDLESS, now))
    return Entry(mapping, Lease(now + one.seconds))
