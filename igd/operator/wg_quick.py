"""The names of peers in the comments of wg-quick's file. Of its settings, only PublicKey is read. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile, takewhile
from typing import NamedTuple

_COMMENTED_OUT = re.compile(r"\[(peer|interface)\]", re.IGNORECASE)
_ANY_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
"""A key of WireGuard's, perhaps a secret one: a comment that holds one is not used."""

LONGEST_COMMENT = 256
"""Characters of a comment that may name a peer: the expressions for longer ones would take seconds."""

_TITLES = (
    re.compile(r"#*\s*BEGIN_PEER\s+(.+)"),  # Nyr's and hwdsl2's wireguard-install
    re.compile(r"##+\s*begin\s+(.+?)\s*##+"),  # PiVPN
    re.compile(r"##+\s*Client\s+(.+)"),  # angristan's wireguard-install
    re.compile(r"#*\s*Client:\s*(.+?)(?:\s+\([0-9a-f-]+\))?"),  # wg-easy; in parentheses its number of the client
    re.compile(r"#*\s*\+?(?:friendly_)?name\s*[=:]\s*(.+)", re.IGNORECASE),  # WireGuard-UI, wg-meta, exporters
    re.compile(r"#*\s*(.+?) / .* / Updated: .*"),  # wg-gen-web
)
"""The comments by which set-up programs name a peer."""

_NO_NAMES = (
    re.compile(r"#*\s*END_PEER\b.*"),
    re.compile(r"##+\s*end\s.*##+"),
    re.compile(r"#*\s*\w+\s*=.*"),  # a setting that is commented out
)
_DECORATION = "#-=*~_ \t"


class ConfiguredPeer(NamedTuple):
    """A section [Peer]: its public key as it is written, and the name that comments give it; "" without one."""

    public_key: str
    name: str


def configured_peers(text: str) -> list[ConfiguredPeer]:
    """Return the peers of wg-quick's file, in their order.

    The name is in the comments directly above [Peer], or between [Peer] and the first setting. That of a set-up program
    comes before any other comment.
    """
    lines = [_shortened(line.strip()) for line in text.split("\n")]  # as wg-quick divides it, and not at U+2028
    starts = [number for number, line in enumerate(lines) if _setting(line).casefold() == "[peer]"]
    return [ConfiguredPeer(_public_key(lines, start), _name(lines, start)) for start in starts]


def _shortened(line: str) -> str:
    """Return the line, or an empty comment in place of one that is too long to name a peer."""
    return "#" if line.startswith("#") and len(line) > LONGEST_COMMENT else line


def _setting(line: str) -> str:
    return line.partition("#")[0].strip()


def _public_key(lines: Sequence[str], start: int) -> str:
    section = takewhile(lambda line: not line.startswith("["), _after(lines, start))
    settings = (_setting(line).partition("=") for line in section)
    return next((value.strip() for key, _, value in settings if key.strip().casefold() == "publickey"), "")


def _name(lines: Sequence[str], start: int) -> str:
    above = [comment for comment in _above(lines, start) if _may_name(comment)]
    header = lines[start].partition("#")
    inside = takewhile(lambda line: not line or line.startswith("#"), _after(lines, start))
    below = [comment for comment in ("".join(header[1:]), *inside) if _may_name(comment)]
    return next(filter(None, [*map(_title, above), *map(_title, below), *map(_text, above), *map(_text, below)]), "")


def _after(lines: Sequence[str], start: int) -> Iterator[str]:
    return (lines[number] for number in range(start + 1, len(lines)))


def _above(lines: Sequence[str], start: int) -> Iterable[str]:
    """Return the comments above a line, without blank lines between them.

    Of those that follow a section that is commented out, only names by set-up programs are this one's for certain.
    """
    before = dropwhile(lambda line: not line, (lines[number] for number in range(start - 1, -1, -1)))
    block = list(takewhile(lambda line: line.startswith("#"), before))
    own = list(takewhile(lambda comment: not _COMMENTED_OUT.search(comment), block))
    return reversed(own if len(own) == len(block) else [comment for comment in own if _title(comment)])


def _may_name(comment: str) -> bool:
    return not _ANY_KEY.search(comment) and (
        bool(_title(comment)) or not any(each.fullmatch(comment) for each in _NO_NAMES)
    )


def _title(comment: str) -> str:
    return next((_text(found[1]) for each in _TITLES if (found := each.fullmatch(comment))), "")


def _text(comment: str) -> str:
    """Return the printable characters of a comment, without what surrounds or underlines them."""
    printable = "".join(letter if letter.isprintable() else " " for letter in comment)
    return " ".join(printable.split()).strip(_DECORATION).strip("\"'")
