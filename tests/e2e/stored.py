"""Edit the leases that a stopped igd has stored, for the next one to load, and read those of a running one."""

import sys

from tests.lab import Lab

_PATH = "/var/lib/igd/wg0/leases.sqlite"
_CHANGE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2], sys.argv[3:])"


_READ = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone()[0])"
_COPY = "rm -rf /run/copy && mkdir /run/copy && cp $0 $0-wal /run/copy"


def change(lab: Lab, statement: str, *values: float) -> None:
    """Execute this statement of SQL, with these values for its "?"; times are seconds of CLOCK_BOOTTIME."""
    lab.srv.run(sys.executable, "-c", _CHANGE, _PATH, statement, *map(str, values))


def read(lab: Lab, query: str) -> float:
    """Return the one number that this query selects while igd runs, which lets no other process open its file."""
    lab.srv.run("sh", "-c", _COPY, _PATH)
    return float(lab.srv.run(sys.executable, "-c", _READ, "/run/copy/leases.sqlite", query).stdout)
