"""The findings of all checks as a table for a person, and as plain values for a program."""

from collections.abc import Mapping, Sequence
from typing import Any

from igd.operator.doctor.check import Colour
from igd.operator.doctor.checks import Row
from igd.operator.status import printable

_ESCAPES = {Colour.GREEN: "\x1b[32m", Colour.YELLOW: "\x1b[33m", Colour.RED: "\x1b[31m"}
_END = "\x1b[0m"
_WIDTH = max(map(len, Colour))

Reports = Mapping[str, Sequence[Row]]
"""The findings by interface."""


def worst(reports: Reports) -> Colour:
    """Return the worst colour of all findings; green without any."""
    colours = (row.finding.colour for rows in reports.values() for row in rows)
    return max(colours, key=lambda colour: colour.severity, default=Colour.GREEN)


def as_json(reports: Reports) -> dict[str, Any]:
    """Return the reports as plain values."""
    return {
        "worst": worst(reports),
        "interfaces": {
            name: [{"check": row.check, **row.finding._asdict()} for row in rows] for name, rows in reports.items()
        },
    }


def table(reports: Reports, *, coloured: bool) -> str:
    """Return one line for each finding, and below it the lines to paste, alone on their lines and never wrapped."""
    lines: list[str] = []
    for name, rows in reports.items():
        lines += [name] if len(reports) > 1 else []
        width = max((len(row.check) for row in rows), default=0)
        for row in rows:
            lines += _lines(row, width, coloured=coloured)
    return "\n".join(lines)


def _lines(row: Row, width: int, *, coloured: bool) -> list[str]:
    colour, text, remedy = row.finding
    shown = colour.ljust(_WIDTH)
    shown = f"{_ESCAPES[colour]}{shown}{_END}" if coloured else shown
    indent = " " * (_WIDTH + 2)
    first = f"{shown}  {row.check.ljust(width)}  {printable(text)}"
    return [first, *(f"{indent}{printable(line)}" for line in remedy.splitlines())]
