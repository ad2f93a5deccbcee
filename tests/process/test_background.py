"""Whoever starts a daemon in the background gets the terminal back when it serves, or hears why it does not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

# What is written to `report`, a pipe, is read by the test, which so waits for its end as well.
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
status = background.detach(serve, pathlib.Path("igd.log"), {patience})
print("returned", status, flush=True)
sys.exit(status)
"""


class Ended(NamedTuple):
    """The exit status of what was run in the foreground, and what it had written by then."""

    status: int
    out: str
    err: str


def run(directory: Path, *body: str, patience: float = 10.0) -> Ended:
    """Run a program that detaches, with this body of `serve`."""
    program = _PROGRAM.format(body="\n".join(f"    {line}" for line in body), patience=patience)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (directory / "out").open("w") as out, (directory / "err").open("w") as err:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            timeout=10,
            cwd=directory,
            env=environment,
            check=False,
        )
    return Ended(ended.returncode, text(directory / "out"), text(directory / "err"))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("report", "go"):
        os.mkfifo(tmp_path / name)
    return tmp_path


REPORT = 'pathlib.Path("report").write_text(f"{os.getpid()} {os.getsid(0)} {sys.stdin.read()!r}")'


def test_once_ready_it_serves_on_without_the_terminal(directory: Path) -> None:
    ended = run(directory, "on_ready()", 'print("unheard", flush=True)', 'log.warning("serving")', REPORT)
    assert ended == (0, "returned 0\n", "getting ready\n")
    process, session, read = text(directory / "report").split()
    assert process == session
    assert read == "''"
    assert text(directory / "igd.log").endswith("WARNING serving\n")
    assert text(directory / "out") == "returned 0\n"


@pytest.mark.parametrize("status", [1, 2, 0])
def test_an_end_before_it_is_ready_is_told(directory: Path, status: int) -> None:
    ended = run(directory, 'log.error("no such interface")', f"return {status}")
    assert ended == (status, f"returned {status}\n", "getting ready\nno such interface\n")


def test_a_mistake_before_it_is_ready_is_shown(directory: Path) -> None:
    ended = run(directory, "1 / 0")
    assert (ended.status, ended.out) == (1, "returned 1\n")
    assert "ZeroDivisionError" in ended.err


def test_a_mistake_later_is_logged(directory: Path) -> None:
    assert run(directory, "on_ready()", 'held = open("report", "w")', "1 / 0").status == 0
    assert text(directory / "report") == ""
    assert "ZeroDivisionError" in text(directory / "igd.log")


def test_what_takes_long_is_left_to_wait_alone(directory: Path) -> None:
    ended = run(directory, 'pathlib.Path("go").read_text()', "on_ready()", REPORT, patience=0.01)
    assert (ended.status, ended.out) == (0, "returned 0\n")
    assert "still waiting, in the background" in ended.err
    (directory / "go").write_text("now", encoding="utf-8")
    assert text(directory / "report").endswith("''")
