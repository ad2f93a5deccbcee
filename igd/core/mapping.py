"""Protocols, endpoints, claims, port mappings, pinholes, leases, and changes of the table."""

import enum
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network


class TransportProtocol(enum.IntEnum):
    """A transport protocol that can be mapped; the value is its IANA protocol number."""

    TCP = 6
    UDP = 17

    @property
    def companion(self) -> "TransportProtocol":
        """The other protocol, whose same port belongs to the same host (RFC 6886 §3.3)."""
        return TransportProtocol.UDP if self is TransportProtocol.TCP else TransportProtocol.TCP


class ControlProtocol(enum.StrEnum):
    """A protocol by which peers request mappings; the value is its name in the configuration."""

    UPNP = "upnp"
    NAT_PMP = "nat-pmp"
    PCP = "pcp"


def ports_text(ports: range) -> str:
    """Return "1024-65535", or "8080" for one port."""
    return f"{ports[0]}-{ports[-1]}" if len(ports) > 1 else str(ports[0])


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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port (1 to 65535)."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.address.version == 4 else f"[{self.address}]:{self.port}"


@dataclass(frozen=True, slots=True, order=True)
class Remote:
    """A source that a mapping admits: a network, and one source port (1 to 65535) or any (0).

    Those of one IP version are ordered, as all keys of mappings are.
    """

    network: IPv4Network | IPv6Network
    port: int = 0

    def __str__(self) -> str:
        return f"{self.network} port {self.port}" if self.port else str(self.network)


def abridged(texts: Sequence[str], most: int) -> str:
    """Return the texts in one line: `most` of them, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


PinholeKey = tuple[TransportProtocol, int, IPv6Address] | tuple[TransportProtocol, int, IPv6Address, Remote]

Key = tuple[TransportProtocol, int] | PinholeKey
"""What identifies a mapping on this server: protocol and external port, and for a pinhole its address.

Where UPnP requested a pinhole for one remote only, the remote is part of the key.
"""


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """How clients refer to a mapping, and which of them may renew or close it.

    Requests name the mapping by its internal endpoint (`by_internal`), or only by its external port. `nonce` (12
    octets, only with `by_internal`) guards it against requests with another nonce (RFC 6887 §11.3); empty: no guard.
    """

    by_internal: bool
    nonce: bytes = b""

    def admits(self, other: "Claim") -> bool:
        """Return whether a request with the claim `other` may renew or close a mapping with this claim."""
        return not self.nonce or not other.nonce or self.nonce == other.nonce

    @property
    def protocol(self) -> ControlProtocol:
        """The protocol of the requests with this claim; of a joined claim, the one whose requests name it best."""
        if not self.by_internal:
            return ControlProtocol.UPNP
        return ControlProtocol.PCP if self.nonce else ControlProtocol.NAT_PMP

    def joined(self, other: "Claim") -> "Claim":
        """Return the claim of a mapping that was requested with this claim and with `other`, which it admits."""
        return max(self, other)


BY_EXTERNAL_PORT = Claim(by_internal=False)
BY_INTERNAL_ENDPOINT = Claim(by_internal=True)

SAME_PORT = "NAT-PMP, internal port 0"
"""The description of a mapping whose port the gateway chose, for a client that named no internal port."""


@dataclass(frozen=True, slots=True)
class PortMapping:
    """An external port (1 to 65535) that leads to an internal IPv4 endpoint, held by one peer.

    `peer` is the peer's WireGuard public key in base64. Only `remotes` (IPv4) are admitted; none: all sources.
    """

    protocol: TransportProtocol
    external_port: int
    internal: Endpoint
    peer: str
    description: str = ""
    remotes: tuple[Remote, ...] = ()
    claim: Claim = BY_EXTERNAL_PORT

    @property
    def key(self) -> tuple[TransportProtocol, int]:
        """The protocol and the external port; no two port mappings share them."""
        return self.protocol, self.external_port

    @property
    def reserves_companion(self) -> bool:
        """Whether the same port of the other protocol is reserved for this host, because the gateway chose both."""
        return self.claim.by_internal and self.internal.port == self.external_port and self.description == SAME_PORT

    def __str__(self) -> str:
        return f"{self.protocol.name} {self.external_port} -> {self.internal}{from_remotes(self.remotes)}"


@dataclass(frozen=True, slots=True)
class Pinhole:
    """An internal IPv6 endpoint that the internet may reach through the server's firewall; fields as of PortMapping.

    Nothing is translated: the endpoint has the same address and port outside as inside. `unique_id` (1 to 65535) is
    UPnP's UniqueID, which no two pinholes share; 0 before it is chosen.
    """

    protocol: TransportProtocol
    internal: Endpoint
    peer: str
    description: str = ""
    remotes: tuple[Remote, ...] = ()
    claim: Claim = BY_EXTERNAL_PORT
    unique_id: int = 0

    @property
    def external_port(self) -> int:
        """The port at which the internet reaches the endpoint."""
        return self.internal.port

    @property
    def key(self) -> PinholeKey:
        """The protocol and the endpoint, and the remote of a request by UPnP; no two pinholes share them.

        Requests of PCP name a pinhole by its endpoint, whatever they filter. To UPnP, pinholes for different remotes
        are different ones (WANIPv6FirewallControl:1 §2.5.3).
        """
        assert isinstance(self.internal.address, IPv6Address), "a pinhole is for IPv6"
        endpoint = self.protocol, self.internal.port, self.internal.address
        if self.claim.by_internal or not self.remotes:
            return endpoint
        return *endpoint, self.remotes[0]

    def __str__(self) -> str:
        return f"{self.protocol.name} {self.internal}{from_remotes(self.remotes)}"


def from_remotes(remotes: Sequence[Remote]) -> str:
    """Return " from " and the first remotes; "" without any."""
    return f" from {abridged(list(map(str, remotes)), 2)}" if remotes else ""


AnyMapping = PortMapping | Pinhole


@dataclass(frozen=True, slots=True)
class Lease:
    """How long a mapping lives.

    `expires` is in seconds of `boottime`, the clock of leases; infinity for a static mapping of the operator's.
    `endless` marks a lease that was requested without an end: the gateway renews it as long as the peer keeps
    completing WireGuard handshakes.
    """

    expires: float
    endless: bool = False

    @property
    def static(self) -> bool:
        """Whether the operator made the mapping, which no protocol closes or changes."""
        return self.expires == math.inf

    def remaining(self, now: float) -> int:
        """Return the seconds left at `now`, rounded to the nearest whole second, never negative; static: 0."""
        return 0 if self.static else max(0, round(self.expires - now))


STATIC = Lease(math.inf)


@dataclass(frozen=True, slots=True)
class Entry:
    """A mapping and its lease. While it is `suspended`, because its peer is silent, the kernel does not hold it."""

    mapping: AnyMapping
    lease: Lease
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the table: an entry is added (no `before`), removed (no `after`) or replaced (same key)."""

    before: Entry | None
    after: Entry | None

    @property
    def key(self) -> Key:
        """The key of the changed entry."""
        return self._either.mapping.key

    @property
    def peer(self) -> str:
        """The public key of the peer that holds the changed mapping."""
        return self._either.mapping.peer

    @property
    def _either(self) -> Entry:
        either = self.after or self.before
        assert either is not None, "a change needs an entry"
        return either

    @property
    def added_remotes(self) -> int:
        """How many remotes more the mapping admits after the change; negative if it admits fewer."""
        before, after = (len(entry.mapping.remotes) if entry else 0 for entry in (self.before, self.after))
        return after - before

    def undone(self) -> "Change":
        """Return the change that reverts this one."""
        return Change(before=self.after, after=self.before)


def changes_of(changes: Iterable[Change], held: Callable[[Entry], bool]) -> list[Change]:
    """Return the changes as the kernel or the store sees them, which has only entries for which `held` is true."""
    seen = (
        Change(*(entry if entry is not None and held(entry) else None for entry in (change.before, change.after)))
        for change in changes
    )
    return [change for change in seen if change.before or change.after]
