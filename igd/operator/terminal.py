"""Tables for a person at a terminal, by rich."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from igd.operator.status import WARNING, Row, rows, sections

NARROWEST = 80
"""The narrowest terminal that gets tables: in a narrower one, the titles of all columns do not fit."""

MOST_ROWS = 2000
"""The longest list that gets such a table: laying out more takes seconds, and nobody looks at them."""


def console_for(rows: int) -> Console | None:
    """Return the terminal that standard output is, if a table of so many rows suits it; None if plain text does."""
    found = Console(highlight=False)
    is_simple = not found.is_terminal or found.is_dumb_terminal or not os.environ.get("TERM")
    return None if is_simple or found.width < NARROWEST or rows > MOST_ROWS else found


def mappings_table(mappings: Sequence[dict[str, Any]], *, with_interface: bool, most: int) -> RenderableType:
    """Return a table of the first `most` mappings from `mapping_as_json`, and how many more there are."""
    titles, *found = rows(mappings[:most], with_interface=with_interface)
    table = _table(titles)
    for mapping, row in zip(mappings, found, strict=False):
        table.add_row(*map(Text, row), style="dim" if mapping.get("suspended") else "")
    left_out = len(mappings) - len(found)
    return Group(table, Text(f"and {left_out} more", "dim")) if left_out > 0 else table


def _table(titles: Row) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold", min_width=len(title))  # nothing is cut off: it may be wanted elsewhere
    return table


def status_table(statuses: Iterable[dict[str, Any]]) -> RenderableType:
    """Return the status of each daemon, one below the other."""
    return Group(*(part for status in statuses for part in _status_parts(status)))


def _status_parts(status: dict[str, Any]) -> Iterator[RenderableType]:
    for title, section in sections(status):
        if title:
            yield Text(f"\n{title}", "bold")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in section:
            grid.add_row(Text(f"  {name}" if title else name), Text(value), style="yellow" if name == WARNING else "")
        yield grid
    yield Text("")
