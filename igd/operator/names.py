"""Sections [peers.NAME] for the peers that wg-quick's file names, and how they are added to a configuration."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from igd import config_file, toml
from igd.config import Config, parse
from igd.config_values import MAX_NAME_LENGTH
from igd.core.peers import is_public_key
from igd.operator import replaced_file
from igd.operator.wg_quick import configured_peers


class Named(NamedTuple):
    """The lines of the sections that a configuration lacks, and a sentence for each peer that gets none."""

    sections: list[str]
    notes: list[str]


def named(text: str, config: Config) -> Named:
    """Return the sections that wg-quick's file (its text) has names for and `config` lacks.

    A name that occurs again gets a number.
    """
    known, used = set(config.policies.names), {name.casefold() for name in config.peers}
    sections: list[str] = []
    notes: list[str] = []
    for peer in configured_peers(text):
        key = peer.public_key
        if key in known:
            continue
        known.add(key)
        if not is_public_key(key):
            notes.append(f"a section [Peer]{f' ({peer.name})' if peer.name else ''} has no valid PublicKey")
        elif not peer.name:
            notes.append(f"no comment above the [Peer] of {key} names it")
        else:
            name = _unique(peer.name, used)
            used.add(name.casefold())
            sections += ["", *toml.section(("peers", name), {"public_key": key})]
    return Named(sections[1:], notes)


def _unique(name: str, used: Iterable[str]) -> str:
    return next(each for each in _numbered(name) if each.casefold() not in used)


def _numbered(name: str) -> Iterator[str]:
    """Yield the name, as long as it may be, and then with a number: "laptop", "laptop-2", ..."""
    yield name[:MAX_NAME_LENGTH].strip()
    number = 2
    while True:
        suffix = f"-{number}"
        yield f"{name[: MAX_NAME_LENGTH - len(suffix)].strip()}{suffix}"
        number += 1


def add(sections: Iterable[str], path: Path) -> None:
    """Add sections at the end of a configuration file, or make it; ConfigError if the result is invalid, OSError.

    The file is replaced at once, and keeps its owner, mode and other attributes. A symbolic link stays one.
    """
    file = path.resolve()
    before = file.read_bytes() if config_file.is_present(path) else b""
    after = extended(before, sections, path)
    if not file.parent.exists():
        file.parent.mkdir(parents=True)
        file.parent.chmod(0o755)  # whatever the umask is: the service enters it
    replaced_file.replace(file, after)


def extended(before: bytes, sections: Iterable[str], path: Path) -> bytes:
    """Return the content of a configuration file with these lines at its end; ConfigError if that is invalid."""
    newline = "\r\n" if b"\r\n" in before else "\n"
    start = "" if not before else newline if before.endswith((b"\n", b"\r")) else newline * 2
    after = before + (start + "".join(line + newline for line in sections)).encode()
    parse(config_file.decoded(after, path), path)
    return after
