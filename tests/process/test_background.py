"""Detaching returns once the daemon serves, or reports why it does not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

# The test reads `report`, a pipe, until the daemon closes it, and so waits for the daemon to finish.
_PROGRAM = """
import logging, os, pathlib, sys
from igd.process import background
background.SYSLOG = pathlib.Path("/nowhere")
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
log = logging.getLogger()
def serve(on_ready):
    log.info("getting ready")
{body}
    return 0
status = background.detach(serve, pathlib.Path("igd.log"), {timeout})
print("returned", status, flush=True)
sys.exit(status)
"""


HANG_SECONDS = 60.0
"""A time limit that only a hang exceeds."""


class Result(NamedTuple):
    """The exit status of the foreground process, and what had been written by then."""

    status: int
    out: str
    err: str


def run(directory: Path, *body: str, timeout: float = HANG_SECONDS) -> Result:
    """Run a program that detaches, with this body of `serve`."""
    program = _PROGRAM.format(body="\n".join(f"    {line}" for line in body), timeout=timeout)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (directory / "out").open("w") as out, (directory / "err").open("w") as err:
        result = subprocess.run(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            timeout=HANG_SECONDS,
            cwd=directory,
            env=environment,
            check=False,
        )
    return Result(result.returncode, text(directory / "out"), text(directory / "err"))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("report", "go"):
        os.mkfifo(tmp_path / name)
    return tmp_path


REPORT = 'pathlib.Path("report").write_text(f"{os.getpid()} {os.getsid(0)} {sys.stdin.read()!r}")'


def test_a_ready_daemon_runs_on_without_the_terminal(directory: Path) -> None:
    result = run(directory, "on_ready()", 'print("not shown", flush=True)', 'log.warning("serving")', REPORT)
    assert result == (0, "returned 0\n", "getting ready\n")
    process, session, read = text(directory / "report").split()
    assert process == session
    assert read == "''"
    assert text(directory / "igd.log").endswith("WARNING serving\n")
    assert text(directory / "out") == "returned 0\n"


@pytest.mark.parametrize("status", [1, 2, 0])
def test_the_exit_status_before_readiness_is_returned(directory: Path, status: int) -> None:
    result = run(directory, 'log.error("no such interface")', f"return {status}")
    assert result == (status, f"returned {status}\n", "getting ready\nno such interface\n")


def test_an_exception_before_readiness_is_shown(directory: Path) -> None:
    result = run(directory, "1 / 0")
    assert (result.status, result.out) == (1, "returned 1\n")
    assert "ZeroDivisionError" in result.err


def test_an_exception_after_readiness_is_logged(directory: Path) -> None:
    assert run(directory, "on_ready()", 'held = open("report", "w")', "1 / 0").status == 0
    assert text(directory / "report") == ""
    assert "ZeroDivisionError" in text(directory / "igd.log")


def test_a_daemon_that_is_not_ready_in_time_continues_in_the_background(directory: Path) -> None:
    result = run(directory, 'pathlib.Path("go").read_text()', "on_ready()", REPORT, timeout=0.01)
    assert (result.status, result.out) == (0, "returned 0\n")
    assert "not ready yet: continuing in the background" in result.err
    (directory / "go").write_text("now", encoding="utf-8")
    assert text(directory / "report").endswith("''")
