"""`igd doctor` on the lab's server: its rows, and what happens when its lines are pasted."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from tests.e2e.serving import igd
from tests.lab import Lab

STATUSES = {"green": 0, "yellow": 3, "red": 1}


class Row(NamedTuple):
    """A row of the table."""

    check: str
    colour: str
    text: str
    remedy: str


def doctor(lab: Lab) -> list[Row]:
    """Return all rows, and assert that the exit status says the worst colour."""
    done = igd(lab, "doctor", "wg0", "--json", check=False)
    report = json.loads(done.stdout)
    assert done.returncode == STATUSES[report["worst"]]
    return [Row(**row) for row in report["interfaces"]["wg0"]]


def wrong(lab: Lab) -> list[Row]:
    """Return the rows that are not green."""
    return [row for row in doctor(lab) if row.colour != "green"]


def paste(lab: Lab, rows: Sequence[Row]) -> None:
    """Run the lines of these rows, as an operator does."""
    for row in rows:
        assert row.remedy, row
        lab.srv.run("sh", "-ec", row.remedy)


def assert_mended(lab: Lab, check: str, text: str, colour: str = "red", count: int = 1) -> list[Row]:
    """Assert that so many rows, all of this check and colour, are not green; paste their lines, and all is green."""
    found = wrong(lab)
    assert [(row.check, row.colour) for row in found] == [(check, colour)] * count, found
    assert all(text in row.text for row in found), found
    paste(lab, found)
    assert wrong(lab) == []
    return found
