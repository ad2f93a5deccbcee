"""The nouns: protocol, endpoint, port mapping, lease, and one change of the table."""

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address


class Protocol(enum.IntEnum):
    """A transport protocol that can be mapped; the value is its IANA protocol number."""

    TCP = 6
    UDP = 17


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IPv4 address and a port (1 to 65535)."""

    address: IPv4Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


Key = tuple[Protocol, int]
"""What makes a mapping unique on this server: protocol and external port."""


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One external port (1 to 65535) that leads to one internal endpoint, asked for by one peer.

    `peer` is the WireGuard public key of the peer that asked, in base64.
    """

    protocol: Protocol
    external_port: int
    internal: Endpoint
    peer: str
    description: str = ""

    @property
    def key(self) -> Key:
        """The protocol and the external port: no two mappings share them."""
        return self.protocol, self.external_port

    def __str__(self) -> str:
        return f"{self.protocol.name} {self.external_port} -> {self.internal}"


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

    mapping: PortMapping
    lease: Lease


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the table: an entry comes (no `before`), goes (no `after`) or takes another's place.

    Both sides, where both are there, have the same key.
    """

    before: Entry | None
    after: Entry | None

    def undone(self) -> "Change":
        """Give the change that takes this one back."""
        return Change(before=self.after, after=self.before)
