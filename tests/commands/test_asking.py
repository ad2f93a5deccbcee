"""`igd list` and `igd status`: for one interface and for all, for programs and for people, once and again."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from igd.commands.command import FAILED, OK
from tests.commands.pretend_daemon import MAPPING, STATUS, Daemon, daemon, on_terminal, run, started

COLOUR = "\x1b["


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """The directory of all runtime directories, which everybody may enter, as /run/igd."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def two(directory: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons, and what looks like others: a directory without a lock, one that is no name, and a file."""
    (directory / "wg9").mkdir(exist_ok=True)
    (directory / "no name").mkdir(exist_ok=True)
    (directory / "file").touch()
    with daemon(directory, "wg0") as first, daemon(directory, "wg1") as second:
        second.answers["/status"] = STATUS | {"interface": "wg1"}
        yield first, second
    for each in (first, second):
        (each.directory / "lock").unlink()
        (each.directory / "admin.sock").unlink()
        each.directory.rmdir()


@pytest.mark.usefixtures("two")
def test_without_an_interface_all_mappings_are_listed(directory: Path) -> None:
    listed = run(directory, "list")
    assert (listed.returncode, listed.stderr) == (OK, "")
    title, *lines = listed.stdout.splitlines()
    assert title.split()[:2] == ["INTERFACE", "PROTOCOL"]
    assert [line.split()[:3] for line in lines] == [["wg0", "TCP", "8043"], ["wg1", "TCP", "8043"]]
    as_json = run(directory, "list", "--json")
    assert json.loads(as_json.stdout) == [{"interface": name, **MAPPING} for name in ("wg0", "wg1")]


@pytest.mark.usefixtures("two")
def test_with_an_interface_only_its_own(directory: Path) -> None:
    assert run(directory, "list", "wg1").stdout.split()[0] == "PROTOCOL"
    assert [each["interface"] for each in json.loads(run(directory, "list", "wg1", "--json").stdout)] == ["wg1"]
    assert json.loads(run(directory, "status", "wg1", "--json").stdout)["interface"] == "wg1"


@pytest.mark.usefixtures("two")
def test_without_an_interface_every_status_is_shown(directory: Path) -> None:
    assert [each["interface"] for each in json.loads(run(directory, "status", "--json").stdout)] == ["wg0", "wg1"]
    shown = run(directory, "status").stdout
    assert re.findall(r"(?m)^interface +(\w+)$", shown) == ["wg0", "wg1"]


def test_no_daemon_at_all(directory: Path) -> None:
    for command in ("list", "status"):
        asked = run(directory / "none", command)
        assert (asked.returncode, asked.stdout) == (FAILED, "")
        assert asked.stderr.startswith("igd: igd is not running for any interface")


def test_one_that_does_not_answer_hides_no_other(directory: Path, two: tuple[Daemon, Daemon]) -> None:
    two[0].answers.clear()
    listed = run(directory, "list")
    assert listed.returncode == FAILED
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["INTERFACE", "wg1"]
    assert listed.stderr == "igd: the igd of wg0 does not answer: response 404 Not Found\n"


@pytest.mark.parametrize("answer", ["text", 7, [7], [[]], {"a": "b"}])
@pytest.mark.parametrize("words", [("list", "wg0"), ("list", "wg0", "--json"), ("status", "wg0")])
def test_an_answer_of_another_form_is_an_error(
    directory: Path, two: tuple[Daemon, Daemon], answer: object, words: tuple[str, ...]
) -> None:
    two[0].answers = {"/mappings": answer, "/status": answer}
    shown = run(directory, *words)
    assert "Traceback" not in shown.stderr
    if words[-1] != "--json" or answer != {"a": "b"}:
        assert (shown.returncode, shown.stdout) == (FAILED, "")
        assert "sent an invalid response" in shown.stderr


@pytest.mark.root
def test_a_user_hears_which_daemons_do_not_answer_users(directory: Path, two: tuple[Daemon, Daemon]) -> None:
    for each in two:
        each.directory.chmod(0o700)
    asked = run(directory, "list", user=64000)
    assert asked.returncode == FAILED
    assert asked.stderr.splitlines() == [
        f"igd: the igd of {name} answers root and its own user only" for name in ("wg0", "wg1")
    ]


# On a terminal


@pytest.mark.usefixtures("two")
def test_a_person_gets_a_table_and_a_program_plain_text(directory: Path) -> None:
    with on_terminal(directory, "list") as terminal:
        assert terminal.end() == OK
    assert COLOUR in terminal.text
    assert "laptop" in terminal.text
    assert COLOUR not in run(directory, "list").stdout
    with on_terminal(directory, "status") as terminal:
        assert terminal.end() == OK
    assert "MapPort GRANTED" in terminal.text


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("variable", "escapes"), [("NO_COLOR=1", {"1", "0"}), ("TERM=dumb", set()), ("TERM=", set()), ("A=b", {"33"})]
)
def test_what_a_terminal_can_do(directory: Path, two: tuple[Daemon, Daemon], variable: str, escapes: set[str]) -> None:
    for each in two:
        each.answers["/status"] = STATUS | {"warnings": ["a warning is yellow"]}
    name, _, value = variable.partition("=")
    with on_terminal(directory, "status", variables={name: value}) as terminal:
        assert terminal.end() == OK
    assert escapes <= set(re.findall(r"\x1b\[([\d;]*)m", terminal.text))
    assert (COLOUR in terminal.text) == bool(escapes)
    assert ("\x1b[33m" in terminal.text) == ("33" in escapes)


def test_hostile_text_does_not_control_the_terminal(directory: Path, two: tuple[Daemon, Daemon]) -> None:
    """Nor does rich take it for markup of its own or for an emoji."""
    hostile = "\x1b[2J[bold red]x[/]:smile:\n\u202e[/nothing]"
    for each in two:
        each.answers["/mappings"] = [MAPPING | {"description": hostile, "name": hostile}]
        each.answers["/status"] = STATUS | {"warnings": [hostile]}
    for command in ("list", "status"):
        with on_terminal(directory, command, size=(40, 300)) as terminal:
            assert terminal.end() == OK
        assert "\\x1b[2J[bold red]x[/]:smile:\\n\\u202e[/nothing]" in terminal.text
        assert "\x1b[2J" not in terminal.text


@pytest.mark.parametrize("columns", [1, 79, 80])
def test_a_narrow_terminal_loses_nothing(directory: Path, two: tuple[Daemon, Daemon], columns: int) -> None:
    description = "".join(chr(0x4E00 + number) for number in range(100))  # each is two columns wide
    two[0].answers["/mappings"] = [MAPPING | {"description": description}]
    with on_terminal(directory, "list", size=(40, columns)) as terminal:
        assert terminal.end() == OK
    assert set(description) <= set(terminal.text)
    with on_terminal(directory, "status", size=(40, columns)) as terminal:
        assert terminal.end() == OK
    assert "GRANTED" in terminal.text


def test_a_list_that_is_too_long_for_a_table_is_plain(directory: Path, two: tuple[Daemon, Daemon]) -> None:
    two[0].answers["/mappings"] = [MAPPING | {"external_port": port} for port in range(1, 3000)]
    with on_terminal(directory, "list", "wg0") as terminal:
        assert terminal.end() == OK
    assert COLOUR not in terminal.text
    assert len(terminal.text.splitlines()) == 3000


# --watch


def test_a_terminal_is_updated_until_ctrl_c(directory: Path, two: tuple[Daemon, Daemon]) -> None:
    """It shows as many rows as it has, and a daemon that does not answer any more, and at the end what it had."""
    with on_terminal(directory, "list", "wg0", "--watch", size=(20, 120)) as terminal:
        terminal.wait_for("8043")
        two[0].answers["/mappings"] = [MAPPING | {"external_port": port} for port in range(20000, 20400)]
        terminal.wait_for("and 386 more")
        two[0].answers.clear()
        terminal.wait_for("404 Not Found")
        two[0].answers["/mappings"] = [MAPPING | {"external_port": 4711}]
        terminal.wait_for("4711")
        terminal.press(b"\x03")
        assert terminal.end() == OK
    assert "Traceback" not in terminal.text
    assert terminal.text.endswith("\x1b[?25h\x1b[?1049l"), "the cursor and the former screen are back"


def test_a_program_that_watches_gets_a_line_for_each_answer(directory: Path, two: tuple[Daemon, Daemon]) -> None:
    with started(directory, "list", "--json", "--watch") as process:
        assert process.stdout
        assert len(json.loads(process.stdout.readline())) == 2
        two[0].answers["/mappings"] = []
        while len(json.loads(process.stdout.readline())) != 1:
            pass
        process.stdout.close()
        assert process.wait(60) == 128 + 13
        assert process.stderr
        assert process.stderr.read() == ""


def test_watching_without_a_daemon_goes_on(directory: Path) -> None:
    with on_terminal(directory / "none", "status", "--watch") as terminal:
        terminal.wait_for("igd is not running for any interface")
        terminal.press(b"\x03")
        assert terminal.end() == OK
