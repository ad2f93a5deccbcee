"""Opens a lease file for `igd stop`: root reads what whoever controls the daemon's user may have written."""

import contextlib
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path

READ_SECONDS = 5.0
"""The time limit of all queries: what looks like a table may be a query without an end."""

_MAX_BYTES = 1 << 20  # of one row
_STEPS = 10_000  # of SQLite's virtual machine, between two looks at the clock


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database for one reading; sqlite3.Error if it is no file, or if the reading takes too long."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise sqlite3.OperationalError("not a file")  # to open a FIFO waits for its other end
    deadline = time.monotonic() + READ_SECONDS
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_BYTES)
        database.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        yield database
