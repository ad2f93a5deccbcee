"""Types of values in the configuration file: how they are read from TOML, checked, and written again."""

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    StrictInt,
    ValidationInfo,
)

from igd.core.mapping import ControlProtocol
from igd.core.peers import is_public_key
from igd.core.policy import PortRule
from igd.core.reserved_ports import Reservation, StaticMapping
from igd.host.stun_server import StunServer


class Section(BaseModel):
    """A section of the file: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# Lists of strings that each have a syntax of their own


def _parsed_by(parse: Callable[[str], Any], example: str) -> BeforeValidator:
    """Return a validator that parses all lines of a list; its error has the errors of all of them."""

    def validate(lines: Any, info: ValidationInfo) -> tuple[Any, ...]:  # noqa: ANN401 - any TOML value
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            shown = json.dumps(lines if isinstance(lines, str) else example, ensure_ascii=False)
            raise ValueError(f"must be a list of strings, such as {info.field_name} = [{shown}]")
        parsed, errors = [], []
        for line in lines:
            try:
                parsed.append(parse(line))
            except ValueError as error:
                errors.append(str(error))
        if errors:
            raise ValueError("; and ".join(errors))
        return tuple(parsed)

    return BeforeValidator(validate)


def _rule(line: str) -> PortRule:
    if re.match(r"\d", line):
        raise ValueError(f'{line!r} must begin with allow or deny; write "allow {line}"')
    return PortRule.parse(line)


def _allow_rule(line: str) -> PortRule:
    if re.match(r"(allow|deny)\b", line):
        raise ValueError(f"{line!r} must not begin with allow or deny here; the list `rules` has such lines")
    return PortRule.parse(f"allow {line}")


def _protocol(word: str) -> ControlProtocol:
    if word not in set(ControlProtocol):
        raise ValueError(f"{word!r} is none of {', '.join(ControlProtocol)}")
    return ControlProtocol(word)


_AS_TEXT = PlainSerializer(lambda values: list(map(str, values)))
_RULE_EXAMPLE = "1024-65535 10.100.0.0/16 1024-65535"

Rules = Annotated[tuple[InstanceOf[PortRule], ...], _parsed_by(_rule, f"allow {_RULE_EXAMPLE}"), _AS_TEXT]
AllowRules = Annotated[tuple[InstanceOf[PortRule], ...], _parsed_by(_allow_rule, _RULE_EXAMPLE), _AS_TEXT]
StunServers = Annotated[
    tuple[InstanceOf[StunServer], ...], _parsed_by(StunServer.parse, "stun.example.net:3478"), _AS_TEXT
]
Protocols = Annotated[tuple[InstanceOf[ControlProtocol], ...], _parsed_by(_protocol, "nat-pmp"), _AS_TEXT]
Reservations = Annotated[tuple[InstanceOf[Reservation], ...], _parsed_by(Reservation.parse, "tcp 25565"), _AS_TEXT]
StaticMappings = Annotated[
    tuple[InstanceOf[StaticMapping], ...], _parsed_by(StaticMapping.parse, "tcp 25565 10.100.0.2 25565"), _AS_TEXT
]


# Single values


def _string(value: object) -> object:
    """Reject integers, which ipaddress would accept as addresses."""
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004 - pydantic reports ValueErrors only
    return value


_THIS_NETWORK = IPv4Network("0.0.0.0/8")  # RFC 1122 §3.2.1.3


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


HostAddress = Annotated[IPv4Address, BeforeValidator(_string), AfterValidator(_of_a_host)]


def _one_bit(value: int) -> int:
    if value.bit_count() != 1:
        raise ValueError("must be one bit, such as 0x10000000")
    return value


MarkBit = Annotated[StrictInt, Field(ge=1, le=2**31), AfterValidator(_one_bit)]


def _chain(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+|(ip|ip6|inet) [\w./-]+ [\w./-]+", value, re.ASCII):
        raise ValueError(
            'must be the name of an iptables chain, such as "DOCKER-USER", '
            'or the family, table and name of an nftables chain, such as "inet filter forward"'
        )
    return value


Chain = Annotated[str, AfterValidator(_chain)]

MAX_NAME_LENGTH = 64


def peer_name(value: str) -> str:
    """Return a peer's name; ValueError if it is not 1 to 64 printable characters, or begins or ends with a space."""
    if not (1 <= len(value) <= MAX_NAME_LENGTH and value.isprintable() and value == value.strip()):
        raise ValueError(
            f"a peer's name has 1 to {MAX_NAME_LENGTH} printable characters, and no space at its beginning or end"
        )
    return value


PeerName = Annotated[str, AfterValidator(peer_name)]


def public_key(value: str) -> str:
    """Return a public key of WireGuard in base64; ValueError if it is none."""
    if not is_public_key(value):
        wrong = "these are not the base64 of a key, copy it again" if len(value) == 44 else f"not {len(value)}"
        raise ValueError(
            f"must be the peer's public key as `wg show INTERFACE peers` prints it: 44 characters, {wrong}"
        )
    return value


PublicKey = Annotated[str, BeforeValidator(_string), AfterValidator(public_key)]

LeaseSeconds = Annotated[StrictInt, Field(ge=60, le=2**31)]
ShortestLease = Annotated[StrictInt, Field(ge=1, le=2**31)]

MIN_IDLE_SECONDS = 180


def _idle_after(value: int) -> int:
    if 0 < value < MIN_IDLE_SECONDS:
        raise ValueError(f"must be 0 (off) or at least {MIN_IDLE_SECONDS}: active peers renew a handshake every 120 s")
    return value


IdleSeconds = Annotated[StrictInt, Field(ge=0, le=2**31), AfterValidator(_idle_after)]
