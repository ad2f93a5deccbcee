"""The configuration file: TOML, validated by pydantic."""

import json
import re
import tomllib
from ipaddress import IPv4Address
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


def _one_bit(value: int) -> int:
    if value.bit_count() != 1:
        raise ValueError("must be one bit, such as 0x10000000")
    return value


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
    external_address: Literal["auto", "stun"] | Annotated[IPv4Address, BeforeValidator(_string)] = "auto"
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
            raise ValueError("must be a list of strings")
        prefix = "allow " if info.field_name == "allow" else ""
        return tuple(PortRule.parse(prefix + line) for line in lines)

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
            raise ValueError('stun_servers without external_address = "stun" asks nobody: set both, or none of them')
        return self

    @property
    def policy(self) -> Policy:
        """The rules and limits in force."""
        rules = self.rules if self.rules is not None else self.allow
        rules = ANY_UNPRIVILEGED if rules is None else rules
        return Policy(rules, self.leases.max, self.leases.default, self.limits.mappings_per_peer)

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


def load(path: Path) -> Config:
    """Read and validate a configuration file; ConfigError."""
    try:
        return Config.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError("\n".join(_error_lines(path, error))) from None


def _error_lines(path: Path, error: ValidationError) -> list[str]:
    """Return one line per key; the errors of a union's branches are joined."""
    by_key: dict[tuple[str, ...], list[Any]] = {}
    for detail in error.errors():
        location = tuple(map(str, detail["loc"]))
        key = location[: 2 if location and location[0] in _SECTIONS else 1]
        by_key.setdefault(key, []).append(detail)
    return [f"{path}: {'.'.join(key) or 'the file'}: {_reason(key, details)}" for key, details in by_key.items()]


_SECTIONS = {
    name: type(field.default).model_fields
    for name, field in Config.model_fields.items()
    if isinstance(field.default, _Section)
}


def _reason(key: tuple[str, ...], details: list[Any]) -> str:
    value = details[0]["input"]
    reason = "; or ".join(dict.fromkeys(detail["msg"].removeprefix("Value error, ") for detail in details))
    if details[0]["type"] == "extra_forbidden":
        known = Config.model_fields if len(key) == 1 else _SECTIONS[key[0]]
        return f"unknown key; allowed are {', '.join(known)}"
    return reason if isinstance(value, dict | list) else f"{value!r}: {reason}"
