"""An igd in the foreground of a terminal ends with it; SIGHUP means nothing else there."""

from pathlib import Path

from igd.commands.command import OK
from tests.commands.pretend_daemon import on_terminal


def test_a_closed_window_ends_what_ran_in_it(tmp_path: Path) -> None:
    variables = {"RUNTIME_DIRECTORY": str(tmp_path / "run"), "STATE_DIRECTORY": str(tmp_path / "state")}
    with on_terminal(tmp_path, "run", "nowg9", variables=variables) as terminal:
        terminal.wait_for("waiting for nowg9 to exist")
        assert terminal.hang_up() == OK
