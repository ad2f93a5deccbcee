"""`igd doctor` on the lab's server: its rows, and what happens when its lines are pasted."""

import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from tests.e2e.serving import IGD
from tests.lab import Lab

STATUSES = {"green": 0, "yellow": 3, "red": 1}

_PROGRAMS = "/run/programs"


class Row(NamedTuple):
    """A row of the table."""

    check: str
    colour: str
    text: str
    remedy: str


def doctor(lab: Lab, command: Sequence[str] = IGD) -> list[Row]:
    """Return all rows, and assert that the exit status says the worst colour."""
    done = lab.srv.run(*command, "doctor", "wg0", "--json", check=False)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert done.returncode == STATUSES[report["worst"]]
    return [Row(**row) for row in report["interfaces"]["wg0"]]


def wrong(lab: Lab, command: Sequence[str] = IGD) -> list[Row]:
    """Return the rows that are not green, but for that of a daemon that nobody wants to run."""
    rows = doctor(lab, command)
    return [row for row in rows if row.colour != "green" and "nothing starts it" not in row.text]


def paste(lab: Lab, rows: Sequence[Row]) -> None:
    """Run the lines of these rows, as an operator does who has `igd` in PATH."""
    wrapper = f'#!/bin/sh\nexec {shlex.join(IGD)} "$@"\n'
    lab.srv.run("install", "-D", "-m", "755", "/dev/stdin", f"{_PROGRAMS}/igd", input=wrapper)
    for row in rows:
        assert row.remedy, row
        lab.srv.run("sh", "-c", f"PATH={_PROGRAMS}:$PATH\n{row.remedy}")


def assert_mended(lab: Lab, check: str, text: str, colour: str = "red", count: int = 1) -> list[Row]:
    """Assert that so many rows, all of this check and colour, are not green; paste their lines, and all is green."""
    found = wrong(lab)
    assert [(row.check, row.colour) for row in found] == [(check, colour)] * count, found
    assert all(text in row.text for row in found), found
    paste(lab, found)
    assert wrong(lab) == []
    return found
