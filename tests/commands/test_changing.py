"""`igd reload`, `add` and `revoke`: what they post, and what they make of the answers, hostile ones included."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from igd import cli
from igd.commands.command import FAILED, OK
from tests.commands.pretend_daemon import Daemon, daemon

Captured = pytest.CaptureFixture[str]

RELOADED: dict[str, list[str]] = {"changed": [], "at_restart": [], "closed": [], "warnings": []}


@pytest.fixture
def wg0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setattr("igd.process.instance.DIRECTORY", tmp_path)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    with daemon(tmp_path) as pretended:
        yield pretended


def run(monkeypatch: pytest.MonkeyPatch, words: str) -> int:
    monkeypatch.setattr("sys.argv", ["igd", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_what_is_posted(monkeypatch: pytest.MonkeyPatch, wg0: Daemon) -> None:
    wg0.answers = {"/add": "x", "/revoke": {"closed": [], "refused": []}, "/reload": RELOADED}
    for words in (
        "add wg0 tcp any 10.100.0.2 80 --seconds 60 --description web",
        "add wg0 udp 53 2001:DB8::2",
        "revoke wg0 tcp 80-90 --to 10.100.0.2",
        "revoke wg0 --peer laptop",
        "reload",
        "reload wg0",
    ):
        assert run(monkeypatch, words) == OK
    nothing = {"protocol": None, "ports": None, "to": None, "peer": None}
    web = {"protocol": "tcp", "port": None, "address": "10.100.0.2", "internal_port": 80, "seconds": 60}
    name = {"protocol": "udp", "port": 53, "address": "2001:db8::2", "internal_port": 53, "seconds": 0}
    assert wg0.asked == [
        ("/add", {**web, "description": "web"}),
        ("/add", {**name, "description": "added by the operator"}),
        ("/revoke", {**nothing, "protocol": "tcp", "ports": "80-90", "to": "10.100.0.2"}),
        ("/revoke", {**nothing, "peer": "laptop"}),
        ("/reload", {}),
        ("/reload", {}),
    ]


def test_what_a_reload_has_done_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: Captured, wg0: Daemon) -> None:
    wg0.answers["/reload"] = {
        "changed": ["rules", "peers.laptop"],
        "at_restart": ["http_port"],
        "closed": ["TCP 1 -> 10.100.0.2:1"],
        "warnings": ["mind this"],
    }
    assert run(monkeypatch, "reload") == OK
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        "wg0: changed: rules, peers.laptop",
        "wg0: closed, because the configuration no longer allows it: TCP 1 -> 10.100.0.2:1",
    ]
    assert output.err.splitlines() == [
        "igd: warning: mind this",
        "igd: warning: wg0: only a restart changes http_port: systemctl restart igd@wg0",
    ]


@pytest.mark.parametrize("words", ["reload wg0", "add wg0 tcp 1 10.100.0.2", "revoke wg0 tcp 1"])
@pytest.mark.parametrize(
    "answer", [None, 7, [], [[]], {}, {"changed": 7}, {"closed": 7, "refused": None}, {"closed": [7], "refused": [[]]}]
)
def test_an_answer_of_another_form_makes_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, wg0: Daemon, words: str, answer: object
) -> None:
    wg0.answers = {f"/{words.split(maxsplit=1)[0]}": answer}
    status = run(monkeypatch, words)
    assert status == (OK if words.startswith("add") and answer is not None else FAILED)
    assert capsys.readouterr().err or status == OK


def test_nothing_of_an_answer_controls_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, wg0: Daemon
) -> None:
    hostile = ["\x1b[2J", "\u202ea"]
    wg0.answers = {
        "/add": hostile[0],
        "/revoke": {"closed": hostile, "refused": hostile},
        "/reload": dict.fromkeys(RELOADED, hostile),
    }
    for words in ("add wg0 tcp 1 10.100.0.2", "revoke wg0 tcp 1", "reload wg0"):
        run(monkeypatch, words)
        output = capsys.readouterr()
        assert not {"\x1b", "\u202e"} & set(output.out + output.err)
        assert "\\x1b[2J" in output.out
