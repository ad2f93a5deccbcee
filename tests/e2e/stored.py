"""Edit the leases that a stopped igd has stored, for the next one to load."""

import sys

from tests.lab import Lab

_PATH = "/var/lib/igd/wg0/leases.sqlite"
_CHANGE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])"


def change(lab: Lab, statement: str) -> None:
    """Execute this statement of SQL; times in the store are seconds since 1970."""
    lab.srv.run(sys.executable, "-c", _CHANGE, _PATH, statement)
