"""What the checks want to know of wg-quick's file. Private and preshared keys are never kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DIRECTORY = Path("/etc/wireguard")

_SECRET = {"privatekey", "presharedkey"}


class Section(NamedTuple):
    """One section, such as "interface": its settings in their order, with keys in lower case."""

    name: str
    settings: list[tuple[str, str]]

    def values(self, key: str) -> list[str]:
        """Return the values of all lines with this key, in lower case."""
        return [value for each, value in self.settings if each == key]

    def items(self, key: str) -> list[str]:
        """Return the items of all lines with this key, which are lists separated by commas."""
        return [item.strip() for value in self.values(key) for item in value.split(",") if item.strip()]


class WgQuickFile(NamedTuple):
    """The file of an interface: [Interface] and the sections [Peer]."""

    path: Path
    interface: Section
    peers: list[Section]


def path_of(interface: str) -> Path:
    """Return where wg-quick looks for the file of this interface."""
    return DIRECTORY / f"{interface}.conf"


def read(interface: str) -> WgQuickFile | None:
    """Return the file of this interface, or None if there is none; OSError if it cannot be read."""
    path = path_of(interface)
    try:
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    sections = list(_sections(text))
    merged = Section(
        "interface", [each for section in sections if section.name == "interface" for each in section.settings]
    )
    return WgQuickFile(path, merged, [section for section in sections if section.name == "peer"])


def _sections(text: str) -> Iterator[Section]:
    section = Section("", [])
    for line in text.split("\n"):
        setting = line.partition("#")[0].strip()
        if setting.startswith("["):
            yield section
            section = Section(setting.strip("[]").strip().casefold(), [])
        key, equals, value = setting.partition("=")
        if equals and key.strip().casefold() not in _SECRET:
            section.settings.append((key.strip().casefold(), value.strip()))
    yield section
