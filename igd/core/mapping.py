"""The nouns: protocol, endpoint, port mapping, pinhole, lease, and one change of the table."""

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network


class TransportProtocol(enum.IntEnum):
    """A transport protocol that can be mapped; the value is its IANA protocol number."""

    TCP = 6
    UDP = 17


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port (1 to 65535)."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.address.version == 4 else f"[{self.address}]:{self.port}"


@dataclass(frozen=True, slots=True)
class Remote:
    """Where packets may come from: a network, and there one port (1 to 65535) or any (0)."""

    network: IPv4Network | IPv6Network
    port: int = 0

    def __str__(self) -> str:
        return f"{self.network} port {self.port}" if self.port else str(self.network)


Key = tuple[TransportProtocol, int] | tuple[TransportProtocol, int, IPv6Address]
"""What makes a mapping unique on this server: protocol and external port, of a pinhole with the address."""


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One external port (1 to 65535) that leads to one internal IPv4 endpoint, asked for by one peer.

    `peer` is the WireGuard public key of the peer that asked, in base64. Only `remotes` (IPv4) get in; none: everybody.
    `nonce` is what PCP guards it by (12 octets); none at all: NAT-PMP has asked for it, None: neither has.
    """

    protocol: TransportProtocol
    external_port: int
    internal: Endpoint
    peer: str
    description: str = ""
    remotes: tuple[Remote, ...] = ()
    nonce: bytes | None = None

    @property
    def key(self) -> tuple[TransportProtocol, int]:
        """The protocol and the external port: no two port mappings share them."""
        return self.protocol, self.external_port

    def __str__(self) -> str:
        return f"{self.protocol.name} {self.external_port} -> {self.internal}{_from(self.remotes)}"


@dataclass(frozen=True, slots=True)
class Pinhole:
    """One internal IPv6 endpoint that the internet may reach although the server's firewall drops; else as PortMapping.

    Nothing is translated: outside, the endpoint has the address and the port that it has inside.
    """

    protocol: TransportProtocol
    internal: Endpoint
    peer: str
    description: str = ""
    remotes: tuple[Remote, ...] = ()
    nonce: bytes | None = None

    @property
    def external_port(self) -> int:
        """The port under which the internet reaches the endpoint."""
        return self.internal.port

    @property
    def key(self) -> tuple[TransportProtocol, int, IPv6Address]:
        """The protocol and the endpoint: no two pinholes share them."""
        assert isinstance(self.internal.address, IPv6Address), "a pinhole is IPv6's"
        return self.protocol, self.internal.port, self.internal.address

    def __str__(self) -> str:
        return f"{self.protocol.name} {self.internal}{_from(self.remotes)}"


def _from(remotes: tuple[Remote, ...]) -> str:
    return f" from {', '.join(map(str, remotes))}" if remotes else ""


AnyMapping = PortMapping | Pinhole


@dataclass(frozen=True, slots=True)
class Lease:
    """How long a mapping lives.

    `expires` is in seconds on the monotonic clock. `endless` marks a lease that was asked for without an end: the
    gateway renews it by itself for as long as its peer shakes hands.
    """

    expires: float
    endless: bool = False

    def remaining(self, now: float) -> int:
        """Whole seconds left at `now`, rounded to the nearest, never negative."""
        return max(0, round(self.expires - now))


@dataclass(frozen=True, slots=True)
class Entry:
    """A mapping and its lease, as the table holds them."""

    mapping: AnyMapping
    lease: Lease


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the table: an entry comes (no `before`), goes (no `after`) or takes another's place.

    Both sides, where both are there, have the same key.
    """

    before: Entry | None
    after: Entry | None

    @property
    def key(self) -> Key:
        """The key of the entry that changes."""
        either = self.after or self.before
        assert either is not None, "a change without sides"
        return either.mapping.key

    def undone(self) -> "Change":
        """Give the change that takes this one back."""
        return Change(before=self.after, after=self.before)
