"""What the tests of the store share."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture all lines, also after a test whose igd has bounded those of all handlers."""
    monkeypatch.setattr(caplog.handler, "filters", [])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "leases.sqlite"
