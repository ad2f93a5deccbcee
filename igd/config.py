"""TOML -> pydantic -> the plain values that the parts are built from."""

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
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from igd.core.policy import ANY_UNPRIVILEGED, Policy, PortRule
from igd.firewall.site import MARK
from igd.host.interface_name import interface_name

DIRECTORY = Path("/etc/igd")
HTTP_PORT = 2869
"""TCP 2869 is known to firewalls and their authors as UPnP's, and lies below the ports that systems give out."""

BackendName = Literal["auto", "nftables", "iptables", "pretend"]


class ConfigError(Exception):
    """A configuration that cannot be used; the text names file, key, value and what is allowed, one a line."""


def _string(value: object) -> object:
    """Refuse the numbers that Python's own types would take for addresses."""
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


def _one_bit(value: int) -> int:
    if value.bit_count() != 1:
        raise ValueError("must be one bit, such as 0x10000000")
    return value


def _chain(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+|(ip|ip6|inet) [\w./-]+ [\w./-]+", value, re.ASCII):
        raise ValueError(
            'must be the name of a chain of iptables such as "DOCKER-USER", '
            'or family, table and chain of nftables such as "inet filter forward"'
        )
    return value


InterfaceName = Annotated[str, AfterValidator(interface_name)]
AddressText = Annotated[IPv4Address, BeforeValidator(_string)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Leases(_Section):
    """Lifetimes in seconds: the longest that is granted, and what a lease without an end is told to be."""

    max: int = Field(604800, ge=60, le=2**31, strict=True)
    default: int = Field(604800, ge=60, le=2**31, strict=True)

    @model_validator(mode="after")
    def _ordered(self) -> "Leases":
        if self.default > self.max:
            raise ValueError(f"default ({self.default}) must not be above max ({self.max})")
        return self


class Limits(_Section):
    """What one peer may use."""

    mappings_per_peer: int = Field(64, ge=1, le=65535, strict=True)
    requests_per_second: int = Field(200, ge=1, le=1_000_000, strict=True)


class Firewall(_Section):
    """Which part of the kernel carries the mappings, and how."""

    backend: BackendName = "auto"
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
    """Where leases are kept; None: leases.sqlite in the state directory."""

    path: Path | None = None


class Config(_Section):
    """All that an operator can say; every key has a default that works."""

    external_interface: Literal["auto"] | InterfaceName = "auto"
    external_address: Literal["auto"] | AddressText = "auto"
    uuid: UUID | None = None
    http_port: int = Field(HTTP_PORT, ge=1, le=65535, strict=True)
    friendly_name: str | None = Field(None, min_length=1, max_length=64)
    rules: tuple[PortRule, ...] | None = None
    allow: tuple[PortRule, ...] | None = None
    leases: Leases = Leases()
    limits: Limits = Limits()
    port_control: PortControlSettings = PortControlSettings()
    firewall: Firewall = Firewall()
    store: StoreSettings = StoreSettings()

    @field_validator("rules", "allow", mode="before")
    @classmethod
    def _parsed(cls, lines: Any, info: Any) -> tuple[PortRule, ...]:  # noqa: ANN401 - whatever the file holds
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError("must be a list of strings")
        prefix = "allow " if info.field_name == "allow" else ""
        return tuple(PortRule.parse(prefix + line) for line in lines)

    @model_validator(mode="after")
    def _one_list(self) -> "Config":
        if self.rules is not None and self.allow is not None:
            raise ValueError("rules and allow are two ways to say one thing: use one of them")
        return self

    @property
    def policy(self) -> Policy:
        """The rules and lifetimes in force."""
        rules = self.rules if self.rules is not None else self.allow
        return Policy(
            ANY_UNPRIVILEGED if rules is None else rules,
            self.leases.max,
            self.leases.default,
            self.limits.mappings_per_peer,
        )

    def describe(self) -> str:
        """What is used, the defaults included, as TOML that says the same."""
        plain = self.model_dump(mode="json", exclude={"rules", "allow"}, exclude_none=True)
        sections = {name: value for name, value in plain.items() if isinstance(value, dict)}
        top = {name: value for name, value in plain.items() if name not in sections}
        lines = [_toml(name, value) for name, value in top.items()]
        lines += ["rules = [", *(f"    {_literal(str(rule))}," for rule in self.policy.rules), "]"]
        for name, section in sections.items():
            lines += ["", f"[{name}]", *(_toml(key, value) for key, value in section.items())]
        return "\n".join(lines)


def _toml(key: str, value: object) -> str:
    return f"{key} = {_literal(value)}"


def _literal(value: object) -> str:
    """Numbers and strings look alike in TOML and JSON, but TOML knows no surrogates and wants DEL escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def default_path(interface: str) -> Path:
    """Where the configuration of this interface lies unless the command line says otherwise."""
    return DIRECTORY / f"{interface}.toml"


def load(path: Path) -> Config:
    """Read a configuration; ConfigError."""
    try:
        return Config.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        raise ConfigError("\n".join(_complaints(path, error))) from None


def _complaints(path: Path, error: ValidationError) -> list[str]:
    """One line for each mistake; what a union's branches say about one key becomes one line."""
    said: dict[tuple[str, ...], list[Any]] = {}
    for detail in error.errors():
        location = tuple(map(str, detail["loc"]))
        key = location[: 2 if location and location[0] in _SECTIONS else 1]
        said.setdefault(key, []).append(detail)
    return [f"{path}: {'.'.join(key) or 'the file'}: {_reason(key, details)}" for key, details in said.items()]


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
