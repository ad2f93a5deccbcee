"""What igd has for the value of each of miniupnpd's settings: a key that is set, or a reason. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from igd import toml
from igd.config import Config, ConfigError, parse
from igd.config_miniupnpd import SETTINGS, Outcome
from igd.operator.migrate import rules
from igd.operator.migrate.lines import Line, is_yes, number, value_of

TOP = ""
"""The section of keys outside sections."""

LONGEST_PCP_LEASE = 86400
"""miniupnpd takes no larger max_lifetime."""


class Situation(NamedTuple):
    """What the conversion must know of the machine.

    `listening` has the interface that each listening_ip means, by its first word. `http_port` and `uuid` are those of
    the miniupnpd that runs. `forward_chain` is the nftables chain in which it accepts mapped flows, if that stays.
    """

    interface: str
    listening: Mapping[str, str]
    http_port: int | None = None
    uuid: UUID | None = None
    forward_chain: str | None = None


Verdict = tuple[Outcome, str]

_NOWHERE = Path("migrated")


def _objection(section: str, key: str, value: object) -> str | None:
    """Return why igd accepts no such value for this key, whatever the others are."""
    header = [f"[{section}]"] if section else []
    try:
        parse("\n".join([*header, toml.line(key, value)]), _NOWHERE)
    except ConfigError as error:
        start = f"{_NOWHERE}: {toml.dotted((section, key) if section else (key,))}: "
        return next((line.removeprefix(start) for line in str(error).splitlines() if line.startswith(start)), None)
    return None


@dataclass(slots=True)
class Draft:
    """The configuration as far as it is converted: keys and values by section."""

    lines: Sequence[Line]
    situation: Situation
    sections: dict[str, dict[str, object]] = field(default_factory=lambda: {TOP: {}})
    rules: list[str] = field(default_factory=list)

    def value_of(self, key: str) -> str:
        """Return the value that the file has for a setting; "" without one."""
        return value_of(self.lines, key)

    def set(self, section: str, key: str, value: object, note: str = "") -> Verdict:
        """Set a key, and say so; a value that is igd's default is left out, and so is one that igd does not accept."""
        if value is not None and (objection := _objection(section, key, value)):
            return Outcome.LOST, objection
        default = getattr(Config() if section == TOP else getattr(Config(), section), key)
        written = toml.line(key, value) + (f" in [{section}]" if section else "")
        if value == default:
            self.sections.get(section, {}).pop(key, None)
            return Outcome.DEFAULT, f"no {key}" if value is None else written
        self.sections.setdefault(section, {})[key] = value
        return Outcome.CONVERTED, written + (f": {note}" if note else "")


# What depends on the value, by the setting's newer name


def _external_interface(draft: Draft, value: str) -> Verdict:
    if value == draft.situation.interface:
        return Outcome.LOST, "this is the WireGuard interface itself; igd takes the way to the internet"
    return draft.set(TOP, "external_interface", value or "auto")


def _external_address(draft: Draft, value: str) -> Verdict:
    if draft.value_of("ext_perform_stun") not in {"", "no"}:
        return Outcome.NEEDLESS, "ext_perform_stun asks for the address"
    return draft.set(TOP, "external_address", value or "auto")


def _stun(draft: Draft, value: str) -> Verdict:
    if value in {"", "no"}:
        return Outcome.DEFAULT, 'external_address = "auto" asks no server'
    if not draft.value_of("ext_stun_host"):
        return Outcome.LOST, "there is no ext_stun_host, and miniupnpd does not start"
    if objection := _objection(TOP, "stun_servers", _stun_servers(draft)):
        return Outcome.LOST, objection
    return draft.set(TOP, "external_address", "stun")


def _stun_server(draft: Draft, _value: str) -> Verdict:
    if draft.value_of("ext_perform_stun") in {"", "no"} or not draft.value_of("ext_stun_host"):
        return Outcome.NEEDLESS, "ext_perform_stun is off"
    return draft.set(TOP, "stun_servers", _stun_servers(draft))


def _stun_servers(draft: Draft) -> list[str]:
    port = number(draft.value_of("ext_stun_port"))
    return [draft.value_of("ext_stun_host") + (f":{port}" if port else "")]


def _http_port(draft: Draft, value: str) -> Verdict:
    running = draft.situation.http_port
    note = "where miniupnpd listens now" if running and number(value) != running else ""
    return draft.set(TOP, "http_port", running or number(value) or Config().http_port, note)


def _uuid(draft: Draft, value: str) -> Verdict:
    running = draft.situation.uuid
    if running:
        return draft.set(TOP, "uuid", str(running), "" if value == str(running) else "that of the miniupnpd that runs")
    try:
        return draft.set(TOP, "uuid", str(UUID(value)) if value else None)
    except ValueError:
        return Outcome.LOST, "it is not a UUID; igd's is derived from the interface's public key"


def _friendly_name(draft: Draft, value: str) -> Verdict:
    return draft.set(TOP, "friendly_name", value[:64] or None)


def _port_control(draft: Draft, value: str) -> Verdict:
    return draft.set("port_control", "enabled", is_yes(value))


def _third_party(draft: Draft, value: str) -> Verdict:
    return draft.set("port_control", "third_party", is_yes(value))


def _min_lifetime(draft: Draft, value: str) -> Verdict:
    return draft.set("leases", "min", max(1, min(number(value) or 1, 120)), "for UPnP as well")


def _max_lifetime(draft: Draft, value: str) -> Verdict:
    longest = max(60, min(number(value) or LONGEST_PCP_LEASE, LONGEST_PCP_LEASE))
    draft.set("leases", "default", longest)
    return draft.set("leases", "max", longest, f"for UPnP as well, and default = {longest}")


def _upnp(_draft: Draft, value: str) -> Verdict:
    return (Outcome.DEFAULT, "UPnP is on") if value == "yes" else (Outcome.LOST, SETTINGS["enable_upnp"].text)


def _secure_mode(_draft: Draft, value: str) -> Verdict:
    outcome = Outcome.NEEDLESS if value == "yes" else Outcome.LOST
    return outcome, f"{SETTINGS['secure_mode'].text}, or to hosts of networks behind them"


def _ipv6(_draft: Draft, value: str) -> Verdict:
    if value == "yes":
        return Outcome.CONVERTED, SETTINGS["ipv6_disable"].text
    return Outcome.DEFAULT, f'rules has "{rules.PINHOLES}"'


def _forward_chain(draft: Draft, _value: str) -> Verdict:
    chain = draft.situation.forward_chain
    if chain is None:
        return Outcome.NEEDLESS, SETTINGS["upnp_forward_chain"].text
    return draft.set("firewall", "forward_chain", chain, "miniupnpd accepts mapped flows there")


def _system_uptime(_draft: Draft, value: str) -> Verdict:
    return (Outcome.LOST if value == "yes" else Outcome.DEFAULT), SETTINGS["system_uptime"].text


CONVERTERS: Mapping[str, Callable[[Draft, str], Verdict]] = {
    "ext_ifname": _external_interface,
    "ext_ip": _external_address,
    "ext_perform_stun": _stun,
    "ext_stun_host": _stun_server,
    "ext_stun_port": _stun_server,
    "http_port": _http_port,
    "uuid": _uuid,
    "friendly_name": _friendly_name,
    "enable_pcp_pmp": _port_control,
    "pcp_allow_thirdparty": _third_party,
    "min_lifetime": _min_lifetime,
    "max_lifetime": _max_lifetime,
    "enable_upnp": _upnp,
    "secure_mode": _secure_mode,
    "ipv6_disable": _ipv6,
    "upnp_forward_chain": _forward_chain,
    "system_uptime": _system_uptime,
}
