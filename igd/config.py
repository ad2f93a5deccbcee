"""The configuration file: TOML, validated by pydantic."""

import hashlib
import tomllib
from functools import cached_property
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, StrictBool, ValidationError, model_validator

from igd import config_file, toml
from igd.config_mistakes import Keys, section_name, toml_mistakes, unknown_key
from igd.config_peers import PeerLeases, PeerSettings, check_lifetimes, policies, rules_of
from igd.config_values import (
    AllowRules,
    Chain,
    HostAddress,
    IdleSeconds,
    LeaseSeconds,
    MarkBit,
    PeerName,
    Rules,
    Section,
    ShortestLease,
    StunServers,
)
from igd.core.policies import Policies
from igd.core.policy import ANY_UNPRIVILEGED, Policy
from igd.firewall.site import MARK
from igd.host.interface_name import interface_name

DIRECTORY = Path("/etc/igd")
HTTP_PORT = 2869
"""The port that firewalls know as UPnP's, below the ephemeral port range."""


_STUN_EXAMPLES = (
    'stun_servers = ["stun.example.net", "198.51.100.7:3478"]; public servers are, among others, '
    "stun.cloudflare.com and stun.l.google.com:19302"
)


class ConfigError(Exception):
    """An invalid configuration; the text has one line per error, with file, key, value and what is allowed."""


class LeaseSettings(Section):
    """Lifetimes in seconds: the minimum, the maximum, and the one reported for a request without an end."""

    min: ShortestLease = 1
    max: LeaseSeconds = 604800
    default: LeaseSeconds = 604800

    @model_validator(mode="after")
    def _ordered(self) -> "LeaseSettings":
        check_lifetimes(self.min, self.default, self.max)
        return self


class LimitSettings(Section):
    """What each peer may have or cause; `connections` and `subscriptions`: all peers together."""

    mappings_per_peer: int = Field(64, ge=1, le=65535, strict=True)
    requests_per_second: int = Field(200, ge=1, le=1_000_000, strict=True)
    connections: int = Field(512, ge=1, le=60_000, strict=True)
    connections_per_peer: int = Field(32, ge=1, le=60_000, strict=True)
    subscriptions: int = Field(256, ge=1, le=10_000, strict=True)
    subscriptions_per_peer: int = Field(16, ge=1, le=10_000, strict=True)
    log_lines_per_second: int = Field(20, ge=1, le=10_000, strict=True)


class FirewallSettings(Section):
    """The kernel interface that holds the mappings, and its options."""

    backend: Literal["auto", "nftables", "iptables", "pretend"] = "auto"
    mark: MarkBit = MARK
    hairpin: StrictBool = True
    preserve_source_port: StrictBool = False
    own_table: StrictBool = False
    forward_chain: Chain | None = None


class PortControlSettings(Section):
    """NAT-PMP and PCP."""

    enabled: StrictBool = True
    anycast: StrictBool = True
    third_party: StrictBool = False


class StoreSettings(Section):
    """The file of the leases; None: leases.sqlite in the state directory."""

    path: Path | None = None


class Config(Section):
    """The whole configuration; every key has a working default."""

    external_interface: Literal["auto"] | Annotated[str, AfterValidator(interface_name)] = "auto"
    external_address: Literal["auto", "stun"] | HostAddress = "auto"
    stun_servers: StunServers | None = None
    uuid: UUID | None = None
    http_port: int = Field(HTTP_PORT, ge=1, le=65535, strict=True)
    friendly_name: str | None = Field(None, min_length=1, max_length=64)
    rules: Rules | None = None
    allow: AllowRules | None = None
    routed_hosts: StrictBool = True
    idle_after: IdleSeconds = 0
    leases: LeaseSettings = LeaseSettings()
    limits: LimitSettings = LimitSettings()
    port_control: PortControlSettings = PortControlSettings()
    firewall: FirewallSettings = FirewallSettings()
    store: StoreSettings = StoreSettings()
    peers: dict[PeerName, PeerSettings] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        _ = self.policies  # which finds contradictions between lists, and between sections
        return self

    @model_validator(mode="after")
    def _stun_with_servers(self) -> "Config":
        if self.external_address == "stun" and not self.stun_servers:
            raise ValueError(f'external_address = "stun" needs stun_servers, for example {_STUN_EXAMPLES}')
        if self.stun_servers and self.external_address != "stun":
            raise ValueError('stun_servers without external_address = "stun" asks no server: set both, or none of them')
        return self

    @property
    def policy(self) -> Policy:
        """The rules and limits for peers without a section; ValueError if two lists of rules are set."""
        rules = rules_of(self.rules, self.allow)
        return Policy(
            rules=ANY_UNPRIVILEGED if rules is None else rules,
            min_lifetime=self.leases.min,
            max_lifetime=self.leases.max,
            default_lifetime=self.leases.default,
            max_mappings=self.limits.mappings_per_peer,
            routed_hosts=self.routed_hosts,
            idle_after=self.idle_after,
        )

    @cached_property
    def policies(self) -> Policies:
        """What each peer may do, and its name."""
        return policies(self.policy, self.peers)

    def reject_own_key(self, interface: str, own_key: str) -> None:
        """Raise ConfigError if a section [peers.NAME] has the public key of the interface itself."""
        if name := self.policies.name_of(own_key):
            key = toml.dotted(("peers", name, "public_key"))
            raise ConfigError(f"{key}: this is the key of {interface} itself; write the key of the peer")

    @property
    def warnings(self) -> list[str]:
        """A sentence for each value that is allowed and probably not meant."""
        if not isinstance(self.external_address, IPv4Address) or self.external_address.is_global:
            return []
        reason = "is not a public address, and clients refuse such addresses"
        remedy = "behind a 1:1 NAT, write the public address of the NAT"
        return [f"external_address {self.external_address} {reason}; {remedy}"]

    def describe(self) -> str:
        """Return the configuration, including defaults, as equivalent TOML; of peers, what their sections have."""
        plain = self.model_dump(mode="json", exclude={"rules", "allow", "peers"}, exclude_none=True)
        sections = {name: value for name, value in plain.items() if isinstance(value, dict)}
        lines = [toml.line(name, value) for name, value in plain.items() if name not in sections]
        lines += toml.lines("rules", map(str, self.policy.rules))
        for name, section in sections.items():
            lines += ["", *toml.section((name,), section)]
        for name, peer in self.peers.items():
            lines += ["", *toml.section(("peers", name), peer.as_set())]
        return "\n".join(lines)

    @property
    def digest(self) -> str:
        """Digits that are equal for equal configurations, and in all likelihood for no others."""
        return hashlib.sha256(self.describe().encode()).hexdigest()[:16]


def default_path(interface: str) -> Path:
    """Return the default path of this interface's configuration."""
    return DIRECTORY / f"{interface}.toml"


def load_for(interface: str, path: Path | None = None) -> Config:
    """Return the configuration of an interface: of `path`, or of its default file if there is one; ConfigError."""
    used = path or default_path(interface)
    config = load(used) if path or config_file.is_present(used) else Config()
    if config.external_interface == interface:
        raise ConfigError(
            f"{used}: external_interface: {interface!r}: this is the WireGuard interface itself;"
            ' write the interface towards the internet, or "auto" for that of the default route'
        )
    return config


def load(path: Path) -> Config:
    """Read and validate a configuration file; ConfigError."""
    try:
        text = config_file.read(path)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """Validate the text of a configuration file, which is named in errors; ConfigError."""
    try:
        return Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in toml_mistakes(text, error, _KEYS))) from None
    except ValidationError as error:
        raise ConfigError("\n".join(_error_lines(path, error))) from None


def _error_lines(path: Path, error: ValidationError) -> list[str]:
    """Return one line per key; the errors of a union's branches are joined."""
    by_key: dict[tuple[str, ...], list[Any]] = {}
    for detail in error.errors():
        location = tuple(str(part) for part in detail["loc"] if part != "[key]")
        by_key.setdefault(_key(location), []).append(detail)
    return [
        f"{path}: {f'{toml.dotted(key)}: ' if key else ''}{_reason(key, details)}" for key, details in by_key.items()
    ]


def _key(location: tuple[str, ...]) -> tuple[str, ...]:
    """Return the key at a location of pydantic's, which goes on with positions in lists and branches of unions."""
    depth = max(size for size in range(len(location) + 1) if section_name(location[:size]) in {"", *_KEYS.sections})
    return location[: depth + 1]


_KEYS = Keys(
    tuple(Config.model_fields),
    {
        **{
            name: tuple(type(field.default).model_fields)
            for name, field in Config.model_fields.items()
            if isinstance(field.default, Section)
        },
        "peers": (),
        "peers.NAME": tuple(PeerSettings.model_fields),
        "peers.NAME.leases": tuple(PeerLeases.model_fields),
    },
)


def _reason(key: tuple[str, ...], details: list[Any]) -> str:
    value = details[0]["input"]
    reason = "; or ".join(dict.fromkeys(map(_message, details)))
    if details[0]["type"] == "extra_forbidden":
        return unknown_key(key, value, _KEYS)
    # somebody may have pasted a private key as the public one
    hidden = isinstance(value, dict | list) or key[-1:] == ("public_key",)
    return reason if hidden else f"{value!r}: {reason}"


_MESSAGES = {
    "missing": "is missing; it is required",
    "model_type": "must be a section, such as [leases]",
    "dict_type": "must be sections, such as [peers.laptop]",
    "tuple_type": "must be a list",
    "int_type": "must be a whole number, without quotes",
    "bool_type": "must be true or false, without quotes",
    "ip_v4_address": 'must be an IPv4 address without a prefix length, such as "203.0.113.7"',
    "uuid_parsing": "must be a UUID, such as uuidgen prints",
}
"""What pydantic's kinds of errors mean in a configuration file."""


def _message(detail: Any) -> str:  # noqa: ANN401 - pydantic's dictionary
    message = _MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return str(message).replace("Input should be", "must be")
