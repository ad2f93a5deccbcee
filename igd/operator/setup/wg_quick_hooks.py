"""The lines in wg-quick's file that run commands: which of them are igd's, and the file with lines more or less. Pure.

The file is bytes: what is not ours keeps its encoding, its line ends and its spaces.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

START = "PostUp = systemctl start --no-block igd@%i || true"
STOP = "PostDown = systemctl stop igd@%i || true"
DETACHED = "PostUp = igd run %i --detach || true", "PostDown = igd stop %i || true"
"""The lines that have wg-quick start and stop igd, with systemd and without it."""

_SYSTEMCTL = r"\bsystemctl\b[^;&|]*\b{}\b[^;&|]*\bigd@([^\s;&|'\"]+?)(?:\.service)?(?=[\s;&|'\"]|$)"
_STARTS, _STOPS = (re.compile(_SYSTEMCTL.format(verb)) for verb in ("start", "stop"))
_RUNS = re.compile(r"\bigd\s+run\s+(?:-\S+\s+)*([^\s;&|]+)")
_ENDS = re.compile(r"\bigd\s+stop\s+([^\s;&|]+)")
_UNREADABLE = (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")
"""Byte order marks: wg-quick takes them for a part of the first line, and finds no section there."""


class NotWgQuicksError(ValueError):
    """The file has no section [Interface] that wg-quick reads."""


class Hooks(NamedTuple):
    """What the file has of igd's for one interface: lines of ours, as they are written there.

    `service`: it is systemd's that they start or stop. `unguarded`: those that make wg-quick fail when igd is gone.
    """

    starts: tuple[str, ...]
    stops: tuple[str, ...]
    service: bool
    unguarded: tuple[str, ...]


def hooks(content: bytes, interface: str) -> Hooks:
    """Return igd's lines for this interface."""
    starts: list[str] = []
    stops: list[str] = []
    service = False
    for line in _interface_lines(content):
        key, value = _setting(line)
        for keys, found, expressions in (
            ({"preup", "postup"}, starts, (_STARTS, _RUNS)),
            ({"predown", "postdown"}, stops, (_STOPS, _ENDS)),
        ):
            if key in keys and (match := _match(expressions, value, interface)):
                found.append(line)
                service |= match.re in {_STARTS, _STOPS}
    return Hooks(tuple(starts), tuple(stops), service, tuple(line for line in [*starts, *stops] if "||" not in line))


def commands(content: bytes) -> list[str]:
    """Return the commands of all hooks, in the order of the file."""
    settings = map(_setting, _interface_lines(content))
    return [value for key, value in settings if key in {"preup", "postup", "predown", "postdown"}]


def saves(content: bytes) -> bool:
    """Return whether wg-quick writes the file anew when it takes the interface down."""
    return ("saveconfig", "true") in [
        (key, value.casefold()) for key, value in map(_setting, _interface_lines(content))
    ]


def with_lines(content: bytes, lines: Sequence[str]) -> bytes:
    """Return the file with these lines behind the last setting of its first section [Interface]; NotWgQuicksError."""
    rows = _rows(content)
    start = next((number for number, row in enumerate(rows) if _is_interface(row)), None)
    if start is None or content.startswith(_UNREADABLE):
        raise NotWgQuicksError("it has no section [Interface]")
    last = start
    for number in range(start + 1, len(rows)):
        text = _without_comment(_text(rows[number]))
        if text.startswith("["):
            break
        if text:
            last = number
    end = b"\r\n" if rows[last].endswith(b"\r\n") or (not rows[last].endswith(b"\n") and b"\r\n" in content) else b"\n"
    if not rows[last].endswith(b"\n"):
        rows[last] += end
    rows[last + 1 : last + 1] = [line.encode() + end for line in lines]
    return b"".join(rows)


def without_lines(content: bytes, lines: Iterable[str]) -> bytes:
    """Return the file without these lines, each as often as it is given; spaces around "=" and comments do not count.

    This is how `wg-quick save`, or an operator who tidies up, may have written what `with_lines` added.
    """
    wanted = Counter(map(_setting, lines))
    kept = []
    for row in reversed(_rows(content)):  # ours were behind all others
        setting = _setting(_text(row))
        if wanted[setting] > 0:
            wanted[setting] -= 1
        else:
            kept.append(row)
    return b"".join(reversed(kept))


def _rows(content: bytes) -> list[bytes]:
    """Return the lines with their ends, divided where wg-quick divides them."""
    return re.findall(rb"[^\n]*\n|[^\n]+\Z", content)


def _text(row: bytes) -> str:
    return row.decode("utf-8", "surrogateescape").strip()


def _without_comment(text: str) -> str:
    return text.partition("#")[0].strip()


def _setting(text: str) -> tuple[str, str]:
    """Return key and value as wg-quick reads them, the key in lower case."""
    key, _, value = _without_comment(text).partition("=")
    return key.strip().casefold(), value.strip()


def _is_interface(row: bytes) -> bool:
    return _setting(_text(row))[0] == "[interface]"


def _interface_lines(content: bytes) -> Iterator[str]:
    inside = False
    for row in _rows(content):
        text = _text(row)
        if text.startswith("["):
            inside = _is_interface(row)
        elif inside:
            yield text


def _match(expressions: Iterable[re.Pattern[str]], value: str, interface: str) -> re.Match[str] | None:
    for expression in expressions:
        for match in expression.finditer(value):
            if match[1].strip("\"'") in {"%i", interface}:
                return match
    return None
