"""No command prints a traceback, whatever its standard streams are like and whoever interrupts it."""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from igd import cli
from igd.commands.command import FAILED, MISUSED, OK
from tests.commands.pretend_daemon import MAPPING, PATIENCE, Daemon, command, daemon, environment, run, started

QUERIES = [("list",), ("check",), ("--help",)]
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
    [(">&-", b"standard output is closed"), (">/dev/full", b"No space left on device")],
    ids=["closed", "full"],
)
def test_output_that_cannot_be_written(
    directory: Path, words: tuple[str, ...], redirection: str, reason: bytes
) -> None:
    result = shell(directory, words, redirection)
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr
    if words[0].startswith("--") and redirection == ">&-":
        assert result.returncode == OK, "argparse prints them elsewhere then"
    else:
        assert result.returncode == FAILED
        assert b"igd: the output was not written: " + reason in result.stderr


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


def test_no_command_takes_a_descriptor_that_is_closed(directory: Path) -> None:
    """Else it would write its text into a file or socket that got the number of standard output."""
    result = shell(directory, ("list", "wg0"), "<&- >&-")
    assert b"Bad file descriptor" not in result.stderr


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


ASKING = [name for name in ("list", "status", "reload") if name in cli.COMMANDS]


@pytest.mark.parametrize("name", ASKING)
def test_ctrl_c_while_a_daemon_hangs(directory: Path, hanging: socket.socket, name: str) -> None:
    """The signal ends the program, as a shell must see it, and nothing is printed."""
    with started(directory, name, "wg5") as process:
        connection, _ = hanging.accept()
        with connection:
            connection.recv(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == -signal.SIGINT
        assert process.communicate() == ("", "")


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
