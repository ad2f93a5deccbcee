"""Writes TOML, which tomllib reads."""

import json
import re
from collections.abc import Iterable, Mapping


def section(path: tuple[str, ...], values: Mapping[str, object]) -> list[str]:
    """Return the lines of a section: its header, and its keys."""
    return [f"[{dotted(path)}]", *(line(key, value) for key, value in values.items())]


def dotted(path: tuple[str, ...]) -> str:
    """Return a dotted key; parts that are not bare keys are in double quotes."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else _scalar(part) for part in path)


def line(key: str, value: object) -> str:
    """Return the line of a key with a scalar, a list of scalars, or a table of such values."""
    return f"{key} = {_value(value)}"


def lines(key: str, texts: Iterable[str]) -> list[str]:
    """Return a list of strings on one line each."""
    return [f"{key} = [", *(f"    {_scalar(text)}," for text in texts), "]"]


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(line(key, member) for key, member in value.items())} }}"
    return _scalar(value)


def _scalar(value: object) -> str:
    """Format a scalar: JSON syntax is valid TOML if non-ASCII stays as it is (no surrogates) and DEL is escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
