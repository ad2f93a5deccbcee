"""The configuration file: TOML, validated by pydantic."""

import json
import re
import tomllib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    StrictBool,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from igd import config_file
from igd.config_mistakes import Keys, toml_mistakes, unknown_key
from igd.core.policy import ANY_UNPRIVILEGED, Policy, PortRule
from igd.firewall.site import MARK
from igd.host.interface_name import interface_name
from igd.host.stun_server import StunServer

DIRECTORY = Path("/etc/igd")
HTTP_PORT = 2869
"""The port that firewalls know as UPnP's, below the ephemeral port range."""


_STUN_EXAMPLES = (
    'stun_servers = ["stun.example.net", "198.51.100.7:3478"]; public servers are, among others, '
    "stun.cloudflare.com and stun.l.google.com:19302"
)


class ConfigError(Exception):
    """An invalid configuration; the text has one line per error, with file, key, value and what is allowed."""


def _string(value: object) -> object:
    """Reject integers, which ipaddress would accept as addresses."""
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004 - pydantic reports ValueErrors only
    return value


def _of_a_host(value: IPv4Address) -> IPv4Address:
    """Reject addresses that no host can have; private ones are allowed, with a warning."""
    kinds = {
        "the broadcast address": value == IPv4Address("255.255.255.255"),
        "a multicast address": value.is_multicast,
        "a loopback address": value.is_loopback,
        "an unspecified address": value in _THIS_NETWORK,
        "a reserved address": value.is_reserved,
    }
    kind = next((kind for kind, found in kinds.items() if found), None)
    if kind is not None:
        raise ValueError(f"must be the server's public address, and this is {kind}")
    return value


_THIS_NETWORK = IPv4Network("0.0.0.0/8")  # RFC 1122 §3.2.1.3

HostAddress = Annotated[IPv4Address, BeforeValidator(_string), AfterValidator(_of_a_host)]


def _one_bit(value: int) -> int:
    if value.bit_count() != 1:
        raise ValueError("must be one bit, such as 0x10000000")
    return value


def _rule(line: str) -> PortRule:
    if re.match(r"\d", line):
        raise ValueError(f'{line!r} must begin with allow or deny; write "allow {line}"')
    return PortRule.parse(line)


def _allow_rule(line: str) -> PortRule:
    if re.match(r"(allow|deny)\b", line):
        raise ValueError(f"{line!r} must not begin with allow or deny here; the list `rules` has such lines")
    return PortRule.parse(f"allow {line}")


def _rules(lines: list[str], parse: Callable[[str], PortRule]) -> tuple[PortRule, ...]:
    """Parse all lines; ValueError has the errors of all of them."""
    rules, errors = [], []
    for line in lines:
        try:
            rules.append(parse(line))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("; and ".join(errors))
    return tuple(rules)


def _chain(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+|(ip|ip6|inet) [\w./-]+ [\w./-]+", value, re.ASCII):
        raise ValueError(
            'must be the name of an iptables chain, such as "DOCKER-USER", '
            'or the family, table and name of an nftables chain, such as "inet filter forward"'
        )
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LeaseSettings(_Section):
    """Lifetimes in seconds: the maximum, and the one reported for a request without an end."""

    max: int = Field(604800, ge=60, le=2**31, strict=True)
    default: int = Field(604800, ge=60, le=2**31, strict=True)

    @model_validator(mode="after")
    def _ordered(self) -> "LeaseSettings":
        if self.default > self.max:
            raise ValueError(f"default ({self.default}) must not be above max ({self.max})")
        return self


class LimitSettings(_Section):
    """Limits per peer."""

    mappings_per_peer: int = Field(64, ge=1, le=65535, strict=True)
    requests_per_second: int = Field(200, ge=1, le=1_000_000, strict=True)


class FirewallSettings(_Section):
    """The kernel interface that holds the mappings, and its options."""

    backend: Literal["auto", "nftables", "iptables", "pretend"] = "auto"
    mark: Annotated[int, AfterValidator(_one_bit)] = Field(MARK, ge=1, le=2**31, strict=True)
    hairpin: StrictBool = True
    preserve_source_port: StrictBool = False
    own_table: StrictBool = False
    forward_chain: Annotated[str, AfterValidator(_chain)] | None = None


class PortControlSettings(_Section):
    """NAT-PMP and PCP."""

    enabled: StrictBool = True
    anycast: StrictBool = True
    third_party: StrictBool = False


class StoreSettings(_Section):
    """The file of the leases; None: leases.sqlite in the state directory."""

    path: Path | None = None


class Config(_Section):
    """The whole configuration; every key has a working default."""

    external_interface: Literal["auto"] | Annotated[str, AfterValidator(interface_name)] = "auto"
    external_address: Literal["auto", "stun"] | HostAddress = "auto"
    stun_servers: tuple[InstanceOf[StunServer], ...] | None = None
    uuid: UUID | None = None
    http_port: int = Field(HTTP_PORT, ge=1, le=65535, strict=True)
    friendly_name: str | None = Field(None, min_length=1, max_length=64)
    rules: tuple[InstanceOf[PortRule], ...] | None = None
    allow: tuple[InstanceOf[PortRule], ...] | None = None
    leases: LeaseSettings = LeaseSettings()
    limits: LimitSettings = LimitSettings()
    port_control: PortControlSettings = PortControlSettings()
    firewall: FirewallSettings = FirewallSettings()
    store: StoreSettings = StoreSettings()

    @field_validator("rules", "allow", mode="before")
    @classmethod
    def _parsed(cls, lines: Any, info: Any) -> tuple[PortRule, ...]:  # noqa: ANN401 - any TOML value
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            example = json.dumps(lines) if isinstance(lines, str) else '"1024-65535 10.100.0.0/16 1024-65535"'
            raise ValueError(f"must be a list of strings, such as {info.field_name} = [{example}]")
        return _rules(lines, _allow_rule if info.field_name == "allow" else _rule)

    @field_validator("stun_servers", mode="before")
    @classmethod
    def _parsed_servers(cls, servers: Any) -> tuple[StunServer, ...]:  # noqa: ANN401 - any TOML value
        if not isinstance(servers, list) or not all(isinstance(server, str) for server in servers):
            raise ValueError("must be a list of strings")
        return tuple(map(StunServer.parse, servers))

    @field_serializer("stun_servers")
    def _servers_as_text(self, servers: tuple[StunServer, ...] | None) -> list[str] | None:
        return None if servers is None else list(map(str, servers))

    @model_validator(mode="after")
    def _one_list(self) -> "Config":
        if self.rules is not None and self.allow is not None:
            raise ValueError("rules and allow exclude each other: use one of them")
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
        """The rules and limits in force."""
        rules = self.rules if self.rules is not None else self.allow
        rules = ANY_UNPRIVILEGED if rules is None else rules
        return Policy(rules, self.leases.max, self.leases.default, self.limits.mappings_per_peer)

    @property
    def warnings(self) -> list[str]:
        """A sentence for each value that is allowed and probably not meant."""
        if not isinstance(self.external_address, IPv4Address) or self.external_address.is_global:
            return []
        reason = "is not a public address, and clients refuse such addresses"
        remedy = "behind a 1:1 NAT, write the public address of the NAT"
        return [f"external_address {self.external_address} {reason}; {remedy}"]

    def describe(self) -> str:
        """Return the configuration, including defaults, as equivalent TOML."""
        plain = self.model_dump(mode="json", exclude={"rules", "allow"}, exclude_none=True)
        sections = {name: value for name, value in plain.items() if isinstance(value, dict)}
        lines = [_toml(name, value) for name, value in plain.items() if name not in sections]
        lines += ["rules = [", *(f"    {_literal(str(rule))}," for rule in self.policy.rules), "]"]
        for name, section in sections.items():
            lines += ["", f"[{name}]", *(_toml(key, value) for key, value in section.items())]
        return "\n".join(lines)


def _toml(key: str, value: object) -> str:
    return f"{key} = {_literal(value)}"


def _literal(value: object) -> str:
    """Format a scalar: JSON syntax is valid TOML if non-ASCII stays as it is (no surrogates) and DEL is escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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
        location = tuple(map(str, detail["loc"]))
        key = location[: 2 if location and location[0] in _KEYS.sections else 1]
        by_key.setdefault(key, []).append(detail)
    return [
        f"{path}: {f'{name}: ' if (name := '.'.join(key)) else ''}{_reason(key, details)}"
        for key, details in by_key.items()
    ]


_KEYS = Keys(
    tuple(Config.model_fields),
    {
        name: tuple(type(field.default).model_fields)
        for name, field in Config.model_fields.items()
        if isinstance(field.default, _Section)
    },
)


def _reason(key: tuple[str, ...], details: list[Any]) -> str:
    value = details[0]["input"]
    reason = "; or ".join(dict.fromkeys(map(_message, details)))
    if details[0]["type"] == "extra_forbidden":
        return unknown_key(key, value, _KEYS)
    return reason if isinstance(value, dict | list) else f"{value!r}: {reason}"


_MESSAGES = {
    "model_type": "must be a section, such as [leases]",
    "int_type": "must be a whole number, without quotes",
    "bool_type": "must be true or false, without quotes",
    "ip_v4_address": 'must be an IPv4 address without a prefix length, such as "203.0.113.7"',
    "uuid_parsing": "must be a UUID, such as uuidgen prints",
}
"""What pydantic's kinds of errors mean in a configuration file."""


def _message(detail: Any) -> str:  # noqa: ANN401 - pydantic's dictionary
    message = _MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return str(message).replace("Input should be", "must be")
