"""A lease file that somebody else wrote costs root little."""

import os
import sqlite3
from pathlib import Path

import pytest

from igd.store import read_only
from igd.store.leases import addresses_in


def _database(path: Path, statement: str) -> Path:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()
    return path


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS internal_address FROM n"
LARGE = "SELECT CAST(zeroblob(900000000) AS TEXT) AS internal_address"


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE VIEW lease AS {ENDLESS}",
        f"CREATE VIEW lease AS {LARGE}",
        "CREATE TABLE lease (internal_address TEXT)",
    ],
)
def test_what_looks_like_leases_and_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    monkeypatch.setattr(read_only, "READ_SECONDS", 0.2)
    assert addresses_in(_database(tmp_path / "leases.sqlite", statement)) == []


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "leases.sqlite")
    assert addresses_in(tmp_path / "leases.sqlite") == []
