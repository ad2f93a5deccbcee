"""No command prints a traceback, whatever its standard streams are like and whoever interrupts it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from igd.commands.command import FAILED, MISUSED, OK
from tests.commands.pretend_daemon import MAPPING, PATIENCE, Daemon, command, daemon, environment, run, started

QUERIES = [("list",), ("check",), ("doctor", "none"), ("--help",)]
"""Commands that print something and change nothing."""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(scope="module")
def one(directory: Path) -> Iterator[Daemon]:
    """A daemon with so many mappings that no pipe takes them all."""
    with daemon(directory) as pretended:
        pretended.answers["/mappings"] = [MAPPING | {"external_port": port} for port in range(1, 5000)]
        yield pretended


def shell(directory: Path, words: tuple[str, ...], redirection: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a command with the shell's redirection of its streams."""
    line = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(directory, *words)]
    return subprocess.run(line, capture_output=True, check=False, env=environment(), timeout=PATIENCE)


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize("words", QUERIES, ids=" ".join)
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", b"Bad file descriptor"), (">/dev/full", b"No space left on device")],
    ids=["closed", "full"],
)
def test_output_that_cannot_be_written(
    directory: Path, words: tuple[str, ...], redirection: str, reason: bytes
) -> None:
    result = shell(directory, words, redirection)
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr
    assert result.returncode == FAILED
    assert result.stderr.endswith(b"igd: the output was not written: " + reason + b"\n")


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", [("list", "none"), ("list", "a b")], ids=" ".join)
def test_errors_that_cannot_be_written_are_in_the_status(
    directory: Path, words: tuple[str, ...], redirection: str
) -> None:
    result = shell(directory, words, redirection)
    assert result.returncode in {FAILED, MISUSED}
    assert (result.stdout, result.stderr) == (b"", b"")


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize("words", [("list",), ("list", "--json")], ids=" ".join)
def test_a_reader_that_goes_is_no_error(directory: Path, words: tuple[str, ...]) -> None:
    with started(directory, *words) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""


def test_a_letter_that_the_terminal_has_not_is_escaped(directory: Path, one: Daemon) -> None:
    before = one.answers["/mappings"]
    one.answers["/mappings"] = [MAPPING | {"description": "漢", "name": "漢"}]
    try:
        listed = run(directory, "list", PYTHONIOENCODING="latin-1")
        assert run(directory, "list", "漢", PYTHONIOENCODING="ascii").returncode == FAILED
    finally:
        one.answers["/mappings"] = before
    assert (listed.returncode, listed.stderr) == (OK, "")
    assert "\\u6f22" in listed.stdout


# A daemon that hangs, and Ctrl-C


@pytest.fixture
def hanging(directory: Path) -> Iterator[socket.socket]:
    """A daemon that accepts connections and never answers."""
    (directory / "wg5").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "wg5" / "admin.sock"))
        listening.listen()
        yield listening
    (directory / "wg5" / "admin.sock").unlink()
    (directory / "wg5").rmdir()


ASKING = ["list wg5", "reload wg5", "add wg5 tcp 1 10.100.0.2", "revoke wg5 tcp 1"]


@pytest.mark.parametrize("words", ASKING)
def test_ctrl_c_while_a_daemon_hangs(directory: Path, hanging: socket.socket, words: str) -> None:
    """The signal ends the program, as a shell must see it, and nothing is printed."""
    with started(directory, *words.split()) as process:
        connection, _ = hanging.accept()
        with connection:
            connection.recv(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == -signal.SIGINT
        assert process.communicate() == ("", "")


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "igd.commands.asking":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from igd.__main__ import main
main()
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_modules_are_loaded(*, ignored: bool) -> None:
    """It takes a fifth of a second. A shell has commands in the background ignore the signal."""
    trap = "trap '' INT; " if ignored else ""
    line = ["sh", "-c", f'{trap}exec "$@"', "sh", sys.executable, "-c", INTERRUPTED]
    ended = subprocess.run([*line, "--version"], capture_output=True, check=False, env=environment(), timeout=PATIENCE)
    assert ended.returncode == (OK if ignored else -signal.SIGINT)
    assert ended.stderr == b""


def test_a_daemon_that_accepts_no_connection(directory: Path) -> None:
    """Its backlog is full: that is an error at once."""
    (directory / "wg6").mkdir()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(str(directory / "wg6" / "admin.sock"))
        listening.listen(0)
        first.connect(str(directory / "wg6" / "admin.sock"))
        asked = run(directory, "list", "wg6")
    assert asked.returncode == FAILED
    assert asked.stderr.startswith("igd: the igd of wg6 does not answer: ")


def test_what_is_no_socket(directory: Path) -> None:
    (directory / "wg7").mkdir()
    (directory / "wg7" / "admin.sock").mkdir()
    asked = run(directory, "status", "wg7")
    assert asked.returncode == FAILED
    assert "is not a socket" in asked.stderr
    assert os.listdir(directory / "wg7") == ["admin.sock"]  # noqa: PTH208 - the names alone
