"""What a client can ask, and what it can be told: the words that every protocol is turned into."""

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from igd.core.mapping import AnyMapping, Endpoint, Remote, TransportProtocol

ENDLESS = 0
"""The lifetime of a request that names no end (UPnP's lease duration 0)."""


@dataclass(frozen=True, slots=True)
class MapPort:
    """Open `external_port` and lead it to `internal`, for `lifetime` seconds or ENDLESS, for `remotes` (none: for all).

    With `any_port` the external port is a wish: another may be granted, and None leaves the choice to the gateway.
    An internal IPv6 endpoint gets a pinhole, and its own port, whatever is wished.

    With a `nonce` (as of PortMapping) it is asked by a protocol that names mappings by their internal endpoint: the one
    that the asker has already is renewed, whatever is wished, and never shortened; with `adds_remotes` it is for these
    remotes besides its own. A `count` of ports from this internal one on gets as many external ones in a row, or fewer;
    with `keeps_parity` the first external one is odd where the internal one is (RFC 7753).
    """

    protocol: TransportProtocol
    internal: Endpoint
    external_port: int | None
    lifetime: int
    description: str = ""
    any_port: bool = False
    remotes: tuple[Remote, ...] = ()
    nonce: bytes | None = None
    adds_remotes: bool = False
    count: int = 1
    keeps_parity: bool = False

    def __str__(self) -> str:
        port = f"{self.external_port or 'any'}{' or another' if self.any_port and self.external_port else ''}"
        seconds = f"{self.lifetime} s" if self.lifetime else "good"
        remotes = f" from {', '.join(map(str, self.remotes))}" if self.remotes else ""
        row = f" ({self.count} ports in a row)" if self.count > 1 else ""
        return f"map {self.protocol.name} {port} -> {self.internal}{row}{remotes} for {seconds} ({self.description!r})"


@dataclass(frozen=True, slots=True)
class UnmapPorts:
    """Close all of the asking peer's port mappings with external ports from `first_port` to `last_port`, both included.

    With `remotes`, those alone that are for just these.
    """

    protocol: TransportProtocol
    first_port: int
    last_port: int
    remotes: tuple[Remote, ...] | None = None

    def __str__(self) -> str:
        ports = f"{self.first_port}-{self.last_port}" if self.first_port != self.last_port else str(self.first_port)
        return f"unmap {self.protocol.name} {ports}"


@dataclass(frozen=True, slots=True)
class UnmapInternal:
    """Close what NAT-PMP or PCP opened to the asking peer's `address`: this protocol and internal port (None: all).

    A `count` of ports is closed from this one on. With nothing there, nothing is closed and the reply is Unmapped all
    the same. `nonce` is as of PortMapping.
    """

    protocol: TransportProtocol | None
    address: IPv4Address | IPv6Address
    port: int | None
    nonce: bytes
    count: int = 1

    def __str__(self) -> str:
        protocol = self.protocol.name if self.protocol else "all"
        ports = f"{self.port}-{self.port + self.count - 1}" if self.port and self.count > 1 else str(self.port or "any")
        return f"unmap {protocol} to {self.address} port {ports}"


@dataclass(frozen=True, slots=True)
class GetMapping:
    """Read the asking peer's mapping of this external port for just these remotes (none: for everybody)."""

    protocol: TransportProtocol
    external_port: int
    remotes: tuple[Remote, ...] = ()


@dataclass(frozen=True, slots=True)
class ListMappings:
    """Read all port mappings of the asking peer, oldest first."""


@dataclass(frozen=True, slots=True)
class GetExternalAddress:
    """Read the address under which the internet reaches this server."""


@dataclass(frozen=True, slots=True)
class GetLinkStatus:
    """Read the state and the counters of the external interface."""


Request = MapPort | UnmapPorts | UnmapInternal | GetMapping | ListMappings | GetExternalAddress | GetLinkStatus


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping that stands, the seconds left of its lease, and how many stand in the row of which it is the first."""

    mapping: AnyMapping
    lifetime: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Unmapped:
    """The mappings that were closed."""

    mappings: tuple[AnyMapping, ...]


@dataclass(frozen=True, slots=True)
class MappingList:
    """The asking peer's mappings, oldest first."""

    mappings: tuple[Mapped, ...]


@dataclass(frozen=True, slots=True)
class ExternalAddress:
    """The address under which the internet reaches this server."""

    address: IPv4Address


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The external interface: its state, speed (bits per second) and counters, and the seconds we have known it."""

    up: bool
    bits_per_second: int
    bytes_sent: int
    bytes_received: int
    packets_sent: int
    packets_received: int
    uptime: int


class Refusal(enum.Enum):
    """Every reason to say no; each codec has one dictionary from these to its own codes."""

    NOT_A_PEER = "no peer of this interface owns the source address"
    NOT_YOUR_ADDRESS = "the internal address does not belong to the asking peer"
    FORBIDDEN = "the operator's rules do not allow this mapping"
    CONFLICT = "the external port is taken"
    OTHER_NONCE = "the mapping was asked for with another nonce"
    TOO_MANY_REMOTES = "the mapping is for as many remotes as it may be"
    QUOTA = "the peer holds as many mappings as it may"
    NO_FREE_PORT = "no external port is free"
    TOO_MANY_REQUESTS = "the peer asks too often"
    NO_SUCH_MAPPING = "the peer has no such mapping"
    NO_EXTERNAL_ADDRESS = "the server has no external address"
    SYSTEM_FAILURE = "the server could not carry out the request"


@dataclass(frozen=True, slots=True)
class Refused:
    """No, and why."""

    reason: Refusal


Reply = Mapped | Unmapped | MappingList | ExternalAddress | LinkStatus | Refused
