"""Edit the leases that a stopped igd has stored, for the next one to load."""

import sys

from tests.lab import Lab

_PATH = "/var/lib/igd/wg0/leases.sqlite"
_CHANGE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2], sys.argv[3:])"


_READ = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])"


def change(lab: Lab, statement: str, *values: float) -> None:
    """Execute this statement of SQL, with these values for its "?"; times are seconds of CLOCK_BOOTTIME."""
    lab.srv.run(sys.executable, "-c", _CHANGE, _PATH, statement, *map(str, values))


def read(lab: Lab, query: str) -> float:
    """Return the one number that this query selects."""
    return float(lab.srv.run(sys.executable, "-c", _READ, _PATH, query).stdout)
