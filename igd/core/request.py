"""Requests and replies, the same for every protocol."""

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    AnyMapping,
    Claim,
    Endpoint,
    Remote,
    TransportProtocol,
    from_remotes,
    ports_text,
)

SHOWN = 40
"""Characters of a quoted description that a log line shows."""

ENDLESS = 0
"""The lifetime that requests a lease without an end (UPnP's lease duration 0)."""


@dataclass(frozen=True, slots=True)
class MapPort:
    """Map `external_port` to `internal` for `lifetime` seconds or ENDLESS; only `remotes` are admitted (none: all).

    With `any_port` the external port is a suggestion: another may be granted, and None leaves the choice to the
    gateway. An internal IPv6 endpoint gets a pinhole at its own port, whatever port is suggested.

    If the `claim` names mappings by internal endpoint, the peer's mapping of that endpoint is renewed, whatever port is
    suggested, and its lease is never shortened. `adds_remotes` keeps the remotes of the mapping that is renewed.
    With internal port 0, the gateway chooses one port for both sides, and reserves it for the host's other protocol.
    `count` consecutive internal ports from this one on get as many consecutive external ports, or fewer; with
    `keeps_parity` the first external port is odd if the internal one is (RFC 7753).
    """

    protocol: TransportProtocol
    internal: Endpoint
    external_port: int | None
    lifetime: int
    description: str = ""
    any_port: bool = False
    remotes: tuple[Remote, ...] = ()
    claim: Claim = BY_EXTERNAL_PORT
    adds_remotes: bool = False
    count: int = 1
    keeps_parity: bool = False

    def __str__(self) -> str:
        port = f"{self.external_port or 'any'}{' or another' if self.any_port and self.external_port else ''}"
        seconds = f"{self.lifetime} s" if self.lifetime else "good"
        row = f" ({self.count} consecutive ports)" if self.count > 1 else ""
        what = f"{self.protocol.name} {port} -> {self.internal}{row}{from_remotes(self.remotes)}"
        return f"map {what} for {seconds} ({_quoted(self.description)})"


def _quoted(description: str) -> str:
    quoted = repr(description)
    return quoted if len(quoted) <= SHOWN else f"{quoted[: SHOWN - 3]}..."


@dataclass(frozen=True, slots=True)
class UnmapPorts:
    """Close the peer's port mappings with external ports in `ports`, which is not empty.

    With `remotes`, only the mappings that admit exactly these.
    """

    protocol: TransportProtocol
    ports: range
    remotes: tuple[Remote, ...] | None = None

    def __str__(self) -> str:
        return f"unmap {self.protocol.name} {ports_text(self.ports)}"


@dataclass(frozen=True, slots=True)
class UnmapInternal:
    """Close the peer's mappings to `address` that are named by internal endpoint: this protocol and port (None: all).

    `count` consecutive internal ports from `port` on are closed. The reply is Unmapped even if no mapping exists.
    """

    protocol: TransportProtocol | None
    address: IPv4Address | IPv6Address
    port: int | None
    claim: Claim
    count: int = 1

    def __str__(self) -> str:
        protocol = self.protocol.name if self.protocol else "all"
        ports = ports_text(range(self.port, self.port + self.count)) if self.port else "any"
        return f"unmap {protocol} to {self.address} port {ports}"


@dataclass(frozen=True, slots=True)
class RenewPinhole:
    """Give the peer's pinhole with this UniqueID a lease of `lifetime` seconds, unless another protocol's is longer."""

    unique_id: int
    lifetime: int

    def __str__(self) -> str:
        return f"renew pinhole {self.unique_id} for {self.lifetime} s"


@dataclass(frozen=True, slots=True)
class UnmapPinhole:
    """Close the peer's pinhole with this UniqueID."""

    unique_id: int

    def __str__(self) -> str:
        return f"close pinhole {self.unique_id}"


@dataclass(frozen=True, slots=True)
class GetMapping:
    """Read the peer's mapping of this external port that admits exactly these remotes (none: all sources)."""

    protocol: TransportProtocol
    external_port: int
    remotes: tuple[Remote, ...] = ()


@dataclass(frozen=True, slots=True)
class GetMappingAt:
    """Read the peer's port mapping at this index (from 0), oldest first."""

    index: int


@dataclass(frozen=True, slots=True)
class ListMappings:
    """Read the peer's port mappings, oldest first: all, or those of one protocol with external ports in a range.

    `most` limits their number; 0: no limit.
    """

    protocol: TransportProtocol | None = None
    ports: range = range(2**16)
    most: int = 0


@dataclass(frozen=True, slots=True)
class GetExternalAddress:
    """Read the address at which the internet reaches this server."""


@dataclass(frozen=True, slots=True)
class GetLinkStatus:
    """Read the state and the counters of the external interface."""


@dataclass(frozen=True, slots=True)
class GetPinholeTraffic:
    """Read what the internet has sent through the peer's pinhole with this UniqueID."""

    unique_id: int


@dataclass(frozen=True, slots=True)
class GetPinholeTimeout:
    """Read for how long a flow that the peer opened may be silent before the server's firewall forgets it."""

    protocol: TransportProtocol


@dataclass(frozen=True, slots=True)
class GetPeerState:
    """Read the state of the peer's mappings as a whole."""


Request = (
    MapPort
    | UnmapPorts
    | UnmapInternal
    | RenewPinhole
    | UnmapPinhole
    | GetMapping
    | GetMappingAt
    | ListMappings
    | GetExternalAddress
    | GetLinkStatus
    | GetPinholeTraffic
    | GetPinholeTimeout
    | GetPeerState
)


@dataclass(frozen=True, slots=True)
class Mapped:
    """An open mapping, the seconds left of its lease, and the number of consecutive ports that start with it.

    The lifetime of a static mapping is ENDLESS. `suspended`: it is not in the kernel, because its peer is silent.
    """

    mapping: AnyMapping
    lifetime: int
    count: int = 1
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class Unmapped:
    """The mappings that were closed."""

    mappings: tuple[AnyMapping, ...]


@dataclass(frozen=True, slots=True)
class MappingList:
    """The peer's port mappings, oldest first."""

    mappings: tuple[Mapped, ...]


@dataclass(frozen=True, slots=True)
class ExternalAddress:
    """The address at which the internet reaches this server."""

    address: IPv4Address


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The external interface: its state, speed in bits per second, counters, and seconds since it was first seen."""

    up: bool
    bits_per_second: int
    bytes_sent: int
    bytes_received: int
    packets_sent: int
    packets_received: int
    uptime: int


@dataclass(frozen=True, slots=True)
class PinholeTraffic:
    """Packets from the internet that have passed through a pinhole since it was opened."""

    packets: int


@dataclass(frozen=True, slots=True)
class PinholeTimeout:
    """Seconds."""

    seconds: int


@dataclass(frozen=True, slots=True)
class PeerState:
    """How many port mappings the peer has, how often they have changed, and whether it may open any pinhole.

    `update_id` counts since the start, from 0 to 2**32 - 1 and again from 0.
    """

    port_mappings: int
    update_id: int
    pinholes_allowed: bool


class Refusal(enum.Enum):
    """The reply that refuses a request, by reason; each codec maps the reasons to its own result codes."""

    NOT_A_PEER = "no peer of this interface owns the source address"
    NOT_YOUR_ADDRESS = "the internal address does not belong to the peer, or is routed outside the tunnel"
    PROTOCOL_FORBIDDEN = "the operator's configuration does not allow the peer this protocol"
    FORBIDDEN = "the operator's rules, or routed_hosts, do not allow this mapping"
    NO_PINHOLES = "the operator's rules allow the peer no pinhole"
    CONFLICT = "the external port is taken"
    STATIC = "the operator made this mapping"
    OTHER_NONCE = "the mapping was requested with another nonce"
    TOO_MANY_REMOTES = "the mapping, or all of the peer together, would admit too many remotes"
    QUOTA = "the peer holds the maximum number of mappings"
    NO_FREE_PORT = "no external port, or no UniqueID of a pinhole, is free"
    TOO_MANY_REQUESTS = "the peer sends too many requests"
    NO_SUCH_MAPPING = "the peer has no such mapping"
    NO_EXTERNAL_ADDRESS = "the server has no external address"
    SYSTEM_FAILURE = "the server could not carry out the request"


Reply = (
    Mapped
    | Unmapped
    | MappingList
    | ExternalAddress
    | LinkStatus
    | PinholeTraffic
    | PinholeTimeout
    | PeerState
    | Refusal
)
