"""miniupnpd's lines of allow and deny as rules of igd's. Pure."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import NamedTuple

from igd.core.policy import PortRule

_RULE = re.compile(
    r"(allow|deny)\s+(\d+(?:-\d+)?)\s+(\d[\d.]*)(?:/(\d[\d.]*))?\s+(\d+(?:-\d+)?)(?:\s+(\".*\")?(.*))?", re.ASCII
)
"""miniupnpd reads four words, and a fifth in double quotes if it was built with --regex; it ignores what follows."""

_CLASSES = {
    "[:alnum:]": "A-Za-z0-9",
    "[:alpha:]": "A-Za-z",
    "[:blank:]": " \\t",
    "[:digit:]": "0-9",
    "[:lower:]": "a-z",
    "[:space:]": "\\s",
    "[:upper:]": "A-Z",
    "[:xdigit:]": "0-9A-Fa-f",
}
"""Classes of POSIX, which Python's expressions do not have, inside of brackets."""

EVERYTHING = IPv4Network("0.0.0.0/0")

ALLOW_THE_REST = f"allow 0-65535 {EVERYTHING} 0-65535"
"""What miniupnpd does where no line matches."""

PINHOLES = "allow 1024-65535 ::/0 1024-65535"
"""miniupnpd's lines concern IPv4 only: it opens any pinhole."""


class Converted(NamedTuple):
    """A rule of igd's, and what there is to say about it; both may be empty."""

    rule: str
    note: str


def convert(line: str) -> Converted:
    """Return the rule that means the same; ValueError if miniupnpd or igd does not accept the line."""
    found = _RULE.fullmatch(line)
    if found is None:
        raise ValueError("miniupnpd does not start with this line")
    verdict, external, address, mask, internal, pattern, rest = found.groups()
    network = IPv4Network(f"{address}/{32 if mask is None else mask}", strict=False)
    words = [verdict, _range(external), str(network), _range(internal), _expression(pattern) if pattern else ""]
    rule = " ".join(filter(None, words))
    PortRule.parse(rule)
    return Converted(rule, f"miniupnpd ignores {rest!r}" if rest and rest.strip() else "")


def _range(ports: str) -> str:
    """Return a range without leading zeros."""
    return "-".join(str(int(port)) for port in ports.split("-"))


def _expression(pattern: str) -> str:
    for name, characters in _CLASSES.items():
        pattern = pattern.replace(name, characters)
    return pattern


def decides_everything(rules: Iterable[str]) -> bool:
    """Return whether one of these rules matches all mappings: then miniupnpd's default has no effect."""
    everything = PortRule.parse(ALLOW_THE_REST)
    return any(
        (rule.external, rule.network, rule.internal, rule.description)
        == (everything.external, everything.network, everything.internal, None)
        for rule in map(PortRule.parse, rules)
    )
