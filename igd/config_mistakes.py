"""What to write instead of what is wrong in a configuration file: settings of other programs, and slips.

A line that may contain a key of WireGuard's never becomes part of a message.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from igd.config_miniupnpd import SETTINGS, Outcome

_WG_QUICK = re.compile(r"\s*\[(interface|peer)\]", re.IGNORECASE)
_RULE = re.compile(r"\s*((?:allow|deny)\s+\d.*?)[\s,]*")
_SETTING = re.compile(r"\s*([A-Za-z0-9_-]+)\s*([=:])\s*(.*?)\s*")
_PEER = re.compile(r"\[\s*peers\s*\.\s*([^#]+?)(\.leases)?\s*\]?\s*(?:#.*)?")
_QUOTES = "\"' "
_YES = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
_CURLY = str.maketrans({"\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2018": "'", "\u2019": "'", "\u00a0": " "})

_SECRET = re.compile(r"\s*(private|preshared)key\b", re.IGNORECASE)


class Keys(NamedTuple):
    """The keys of the configuration: those outside sections, and those of each section by its `section_name`."""

    top: tuple[str, ...]
    sections: Mapping[str, Iterable[str]]


def section_name(location: tuple[str, ...]) -> str:
    """Return the name of the section at a location: "leases", or "peers.NAME" for that of any peer."""
    return ".".join("NAME" if index == 1 and location[0] == "peers" else part for index, part in enumerate(location))


def toml_mistakes(text: str, error: tomllib.TOMLDecodeError, keys: Keys) -> list[str]:
    """Return a sentence for each mistake in `text`, which is not TOML: what is wrong, where, and what to write."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if _WG_QUICK.match(line):
            return [f"line {number}: {line.strip()} {_OF_WG_QUICK}"]
    place = re.search(r"\(at line (\d+), column \d+\)", str(error))
    last = int(place[1]) if place else len(text.rstrip().split("\n"))
    known = sorted([*_rules(lines), *_settings(lines, keys)])
    if known and known[0][0] <= last:
        return [f"line {number}: {sentence}" for number, sentence in known]
    line = lines[last - 1].strip()
    if _SECRET.match(line):
        return [f"{error}: this line {_OF_WG_QUICK}"]
    written = _written(line)
    return [f"{error}: {line}" + (f"; write {written}" if written else "")]


_OF_WG_QUICK = "belongs in wg-quick's file, /etc/wireguard/INTERFACE.conf; docs/configuration.md has igd's keys"


def _rules(lines: list[str]) -> list[tuple[int, str]]:
    """Return number and sentence of the first line that is a rule and no TOML; the sentence has all of them."""
    rules = [(number, found[1]) for number, line in enumerate(lines, 1) if (found := _RULE.fullmatch(line))]
    together = ", ".join(_string(rule) for _, rule in rules)
    return [
        (number, f"{rule}: rules are strings in one list; write rules = [{together}]") for number, rule in rules[:1]
    ]


def _settings(lines: list[str], keys: Keys) -> list[tuple[int, str]]:
    """Return number and sentence of each line that is a setting of miniupnpd, or has a key of ours and is no TOML."""
    ours = {*keys.top, *(key for section in keys.sections.values() for key in section)}
    sentences = []
    for number, line in enumerate(lines, 1):
        found = _SETTING.fullmatch(line.partition("#")[0])
        if found is None:
            continue
        if remedy := _of_miniupnpd(found[1], found[3], keys):
            sentences.append((number, f"{found[1]} is a setting of miniupnpd: {remedy}"))
        elif found[1] in ours and (written := _written(line.strip())):
            sentences.append((number, f"{line.strip()}: this is not TOML; write {written}"))
    return sentences


def _of_miniupnpd(key: str, value: str, keys: Keys) -> str | None:
    """Return what to do with a setting of miniupnpd; None if it is none, or is one of igd's own."""
    setting = SETTINGS.get(key)
    if key in keys.top or setting is None:
        return None
    is_off = value in {"", "0"} or (key == "ext_perform_stun" and _YES.get(value) == "false")
    if setting.outcome is Outcome.CONVERTED and is_off:
        return "delete it: that is igd's default"
    return setting.remedy.format(_YES.get(value, value.strip("\"'")))


def _written(line: str) -> str | None:
    """Return what was probably meant by a line that is not TOML; None if that is unknown, or if the line is TOML."""
    if line.startswith((";", "//")):
        return f"# {line.lstrip(';/ ')}"
    if header := _PEER.fullmatch(line.translate(_CURLY)):
        return None if _is_toml(line) else f"[peers.{_string(header[1].strip(_QUOTES))}{header[2] or ''}]"
    found = _SETTING.fullmatch(line.translate(_CURLY))
    if found is None or not found[3] or found[3][0] in "[{" or _is_toml(line):
        return None
    key, _, value = found.groups()
    if not _is_toml(f"x = {value}"):
        text = value.partition("#")[0].strip()
        value = _YES.get(text.casefold()) or _string(text.strip("\"'"))
    return f"{key} = [{value}]" if key in {"rules", "allow"} else f"{key} = {value}"


def _is_toml(line: str) -> bool:
    try:
        tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _string(text: str) -> str:
    """Format a string of TOML; one with double quotes, such as a rule with a regular expression, in single quotes."""
    return f"'{text}'" if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


_ELSEWHERE = {
    ("peers.NAME", "mappings_per_peer"): "; write max_mappings",
    ("peers.NAME", "limits"): "; write max_mappings",
    ("peers.NAME", "reserved"): "; write reserve",
    ("peers.NAME", "third_party"): "; write routed_hosts",
    ("limits", "max_mappings"): "; write mappings_per_peer",
}
"""What to write for a key that has another name in this section."""


def unknown_key(location: tuple[str, ...], value: object, keys: Keys) -> str:
    """Return why the key at `location`, (..., SECTION, KEY), is an error, and what to write instead."""
    key, here = location[-1], section_name(location[:-1])
    known = tuple(keys.sections[here]) if here else keys.top
    near = difflib.get_close_matches(key.casefold().replace("-", "_"), known, n=1)
    is_setting = bool(near) or key in keys.top
    if isinstance(value, dict) and (path := _meant_path(location, value, is_setting=is_setting)):
        return f"unknown key; write [{path}]"
    if _of_wg_quick(here, key):
        return f"this {'key' if here else 'section'} {_OF_WG_QUICK}"
    if remedy := _ELSEWHERE.get((here, key)) or _in_another_section(key, keys):
        return f"unknown key{remedy}"
    if remedy := _of_miniupnpd(key, _YES.get(str(value).casefold(), str(value)), keys):
        return f"a setting of miniupnpd: {remedy}"
    return f"unknown key; {f'did you mean {near[0]}? Allowed' if near else 'allowed'} are {', '.join(known)}"


def _meant_path(location: tuple[str, ...], value: dict[str, object], *, is_setting: bool) -> str | None:
    """Return the section that was meant by [peer.NAME], or by a name with a dot: [peers.my.laptop].

    `is_setting`: the last part may also be the name of a setting.
    """
    if section_name(location[:-1]) == "peers.NAME":
        if is_setting and "public_key" not in value:
            return None
        return f'peers."{location[1]}.{location[2]}"'
    names = [name for name, member in value.items() if isinstance(member, dict)]
    return f"peers.{names[0]}" if location == ("peer",) and names else None


def _in_another_section(key: str, keys: Keys) -> str | None:
    prefix, _, member = key.partition(".")
    if member in keys.sections.get(prefix, ()):
        return f"; write {member} in a section [{prefix}]"
    if key in keys.sections:
        return f" in a section; write it outside, as [{key}]"
    if key in keys.top:
        return f" in a section; write {key} above the first [section]"
    section = next((name for name, members in keys.sections.items() if key in members), None)
    return f" here; write {key} in a section [{section}]" if section else None


def _of_wg_quick(section: str, key: str) -> bool:
    if not section:
        return _WG_QUICK.match(f"[{key}]") is not None
    word = key.casefold().replace("_", "")
    return section == "peers.NAME" and word in {
        "allowedips",
        "endpoint",
        "persistentkeepalive",
        "presharedkey",
        "privatekey",
    }
