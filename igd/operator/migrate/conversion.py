"""Converts miniupnpd's configuration for one WireGuard interface: what becomes of each line, and igd's file. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from igd import toml
from igd.config_miniupnpd import SETTINGS, Outcome
from igd.config_peers import PeerSettings
from igd.operator.migrate import rules
from igd.operator.migrate.lines import LISTENING, RULE, Line, in_force, newer_name, read_lines
from igd.operator.migrate.values import CONVERTERS, TOP, Draft, Situation, Verdict


class Row(NamedTuple):
    """What becomes of a line, or of what the file does not say (`line` is None)."""

    line: Line | None
    outcome: Outcome
    text: str


def _verdict(draft: Draft, line: Line) -> Verdict:
    if line.key == RULE:
        return _rule(draft, line)
    if line.key == LISTENING:
        return _listening(draft, line)
    setting = SETTINGS.get(line.key)
    if setting is None:
        return Outcome.LOST, "miniupnpd 2.3 has no such setting, and does not start with this line"
    last = in_force(draft.lines)[newer_name(line.key)]
    if last.number != line.number:
        return Outcome.NEEDLESS, f"line {last.number} counts"
    converter = CONVERTERS.get(newer_name(line.key))
    if converter is not None:
        return converter(draft, line.value)
    return (Outcome.NEEDLESS if line.value in {"", "0", "no"} else setting.outcome), setting.text


def _rule(draft: Draft, line: Line) -> Verdict:
    try:
        rule, note = rules.convert(line.value)
    except ValueError as error:
        return Outcome.LOST, str(error)
    draft.rules.append(rule)
    return Outcome.CONVERTED, f'in rules: "{rule}"' + (f" ({note})" if note else "")


def _listening(draft: Draft, line: Line) -> Verdict:
    word, *others = line.value.split() or [""]
    name = draft.situation.listening.get(word, "")
    if name != draft.situation.interface:
        return Outcome.LOST, f"igd@{draft.situation.interface} serves the peers of its own interface only"
    ignored = f"; {' '.join(others)} is ignored" if others else ""
    return Outcome.NEEDLESS, f"igd@{name} listens on all addresses of {name}{ignored}"


# What the file does not say


def _unsaid(draft: Draft) -> Iterable[Row]:
    """Yield a row for each thing in which igd would do otherwise than miniupnpd without a line."""
    said = in_force(draft.lines)
    if not rules.decides_everything(draft.rules):
        draft.rules.append(rules.ALLOW_THE_REST)
        text = f'in rules: "{rules.ALLOW_THE_REST}": miniupnpd allows what no line of the file matches, igd would not'
        yield Row(None, Outcome.CONVERTED, text)
    if draft.value_of("ipv6_disable") != "yes":
        draft.rules.append(rules.PINHOLES)
        yield Row(None, Outcome.CONVERTED, f'in rules: "{rules.PINHOLES}": miniupnpd\'s lines concern IPv4 only')
    situation = draft.situation
    if "http_port" not in said and situation.http_port:
        yield Row(None, *CONVERTERS["http_port"](draft, ""))
    if "uuid" not in said and situation.uuid:
        yield Row(None, *CONVERTERS["uuid"](draft, ""))
    if "upnp_forward_chain" not in said and situation.forward_chain:
        yield Row(None, *CONVERTERS["upnp_forward_chain"](draft, ""))
    if "enable_pcp_pmp" not in said:
        text = "NAT-PMP and PCP are on; to have them off as in miniupnpd: enabled = false in [port_control]"
        yield Row(None, Outcome.DEFAULT, text)


class Conversion(NamedTuple):
    """What becomes of each line, and the keys of igd's configuration by section, TOP first."""

    rows: Sequence[Row]
    sections: Mapping[str, Mapping[str, object]]
    rules: Sequence[str]

    def toml(self, source: str, peers: Mapping[str, PeerSettings]) -> str:
        """Return the text of igd's file, with the sections of `peers` from the file that was there before."""
        lines = [f"# From {source}, by igd migrate."]
        lines += [toml.line(key, value) for key, value in self.sections[TOP].items()]
        lines += toml.lines("rules", self.rules) if self.rules else []
        for name, values in self.sections.items():
            if name != TOP and values:
                lines += ["", *toml.section((name,), values)]
        for name, peer in peers.items():
            lines += ["", *toml.section(("peers", name), peer.as_set())]
        return "".join(f"{line}\n" for line in lines)


def convert(text: str, situation: Situation) -> Conversion:
    """Convert the text of miniupnpd.conf."""
    draft = Draft(read_lines(text), situation)
    rows = [Row(line, *_verdict(draft, line)) for line in draft.lines]
    rows += _unsaid(draft)
    return Conversion(rows, draft.sections, draft.rules)
