"""Reads miniupnpd.conf as miniupnpd does (options.c): a comment is a line, and values have no quotes. Pure."""

import re
from collections.abc import Sequence
from typing import NamedTuple

RULE = "rule"
"""The key of a line that begins with allow or deny; its value is the whole line."""

LISTENING = "listening_ip"
"""The one setting of which all lines count; of others the last one counts."""

_SETTING = re.compile(r"([^=]*?)\s*=\s*(.*)")
_WORDS = ("allow", "deny")


class Line(NamedTuple):
    """A line that is no comment; `key` is "" if miniupnpd does not start with it, since it is no setting."""

    number: int
    text: str
    key: str
    value: str


def read_lines(text: str) -> list[Line]:
    """Return the lines of the file that miniupnpd reads."""
    numbered = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [_line(number, line) for number, line in numbered if line and not line.startswith("#")]


def _line(number: int, text: str) -> Line:
    if text.startswith(_WORDS) and len(text) > len("allow") + 1:
        return Line(number, text, RULE, text)
    if text.startswith("set_learn_dscp"):
        return Line(number, text, "set_learn_dscp", text)
    found = _SETTING.fullmatch(text)
    return Line(number, text, found[1], found[2]) if found else Line(number, text, "", "")


def in_force(lines: Sequence[Line]) -> dict[str, Line]:
    """Return the line of each setting that counts, by its newer name: the last one."""
    return {newer_name(line.key): line for line in lines if line.key not in {"", RULE, LISTENING}}


def newer_name(key: str) -> str:
    """Return the name that a setting has in newer versions."""
    return {"port": "http_port", "enable_natpmp": "enable_pcp_pmp"}.get(key, key)


def listening(lines: Sequence[Line]) -> list[str]:
    """Return the interfaces, addresses and networks on which miniupnpd listens."""
    return [line.value.split()[0] for line in lines if line.key == LISTENING and line.value]


def value_of(lines: Sequence[Line], key: str) -> str:
    """Return the value of a setting that counts, by its newer name; "" without one."""
    line = in_force(lines).get(key)
    return line.value if line else ""


def number(text: str) -> int | None:
    """Return the number that a value begins with (atoi); None if it begins with something else."""
    found = re.match(r"[0-9]{1,9}", text)
    return int(found[0]) if found else None


def is_yes(text: str) -> bool:
    """Return whether a value switches a setting on: "yes", and a number for NAT-PMP."""
    return text == "yes" or bool(number(text))
