"""The daemon's state and mappings as text for a terminal. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from igd.core.mapping import Endpoint, Pinhole
from igd.core.request import ENDLESS, Mapped


def mapping_as_json(mapped: Mapped, name: str) -> dict[str, Any]:
    """Return a mapping as plain values, for `igd list --json`; `lease` is in seconds, 0 if static.

    `name` is the peer's, or "". `unique_id` is UPnP's UniqueID of a pinhole.
    """
    mapping = mapped.mapping
    return {
        "protocol": mapping.protocol.name,
        "external_port": mapping.external_port,
        "internal_address": str(mapping.internal.address),
        "internal_port": mapping.internal.port,
        "unique_id": mapping.unique_id if isinstance(mapping, Pinhole) else None,
        "remotes": [str(remote) for remote in mapping.remotes],
        "lease": mapped.lifetime,
        "static": mapped.lifetime == ENDLESS,
        "suspended": mapped.suspended,
        "peer": mapping.peer,
        "name": name or None,
        "description": mapping.description,
    }


WIDEST = 100
"""The widest column: behind a longer cell, a row is not aligned."""

COLUMNS = ("PROTOCOL", "EXTERNAL", "FROM", "INTERNAL", "LEASE", "PEER", "DESCRIPTION")

Row = Sequence[str]


def table(mappings: Iterable[dict[str, Any]], *, with_interface: bool = False) -> str:
    """Format mappings from `mapping_as_json` as lines of plain text."""
    return aligned(rows(mappings, with_interface=with_interface))


def rows(mappings: Iterable[dict[str, Any]], *, with_interface: bool = False) -> list[Row]:
    """Return the titles of the columns and a row for each mapping, all printable; first its interface, if asked for."""
    if with_interface:
        found = [("INTERFACE", *COLUMNS), *((each["interface"], *_row(each)) for each in mappings)]
        return _printable(found)
    return _printable([COLUMNS, *map(_row, mappings)])


def _row(mapping: dict[str, Any]) -> Sequence[str]:
    return (
        mapping["protocol"],
        str(mapping["external_port"]),
        ", ".join(mapping["remotes"]) or "anywhere",
        str(Endpoint(ip_address(mapping["internal_address"]), mapping["internal_port"])),
        _lease(mapping),
        mapping.get("name") or mapping["peer"],
        mapping["description"],
    )


def _lease(mapping: dict[str, Any]) -> str:
    lease = "static" if mapping.get("static") else f"{mapping['lease']}s"
    return f"{lease}, suspended" if mapping.get("suspended") else lease


def listing(status: dict[str, Any]) -> str:
    """Format the daemon's status as lines of plain text."""
    found: list[Row] = []
    for title, section in sections(status):
        found += [(title, ""), *((f"  {what}", count) for what, count in section)] if title else section
    return aligned(found)


def sections(status: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return the daemon's status as titles and pairs of printable texts; the first section has no title."""
    elsewhere = {"configuration", "decisions", "peers", "warnings"}
    plain = {key: value for key, value in status.items() if key not in elsewhere}
    plain["uptime"] = f"{status['uptime']}s"
    for several in ("matched_addresses", "urls"):
        plain[several] = ", ".join(status[several]) or None
    values = [(key.replace("_", " "), "-" if value is None else str(value)) for key, value in plain.items()]
    return [
        ("", _printable([*values, *((WARNING, warning) for warning in status["warnings"])])),
        ("mappings of", _counts(status.get("peers", {}))),
        ("requests", _counts(status["decisions"])),
    ]


WARNING = "warning"


def _counts(counts: Mapping[str, int]) -> list[Row]:
    return _printable([(what, str(count)) for what, count in sorted(counts.items())])


def printable(text: str) -> str:
    """Escape all unprintable characters, which a terminal might interpret.

    Peers choose the descriptions, and whoever controls the daemon's user chooses everything.
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _printable(found: Iterable[Row]) -> list[Row]:
    return [[printable(cell) for cell in row] for row in found]


def aligned(found: Sequence[Row]) -> str:
    """Return rows of printable texts as lines, with columns as wide as their widest cell, and WIDEST at most."""
    widths = [min(max(map(len, column)), WIDEST) for column in zip(*found, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in found
    )
