"""Root asks a daemon whose user somebody else may control: no answer hangs, fills the memory, or moves the cursor."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

import pytest

from igd import cli
from igd.commands.command import FAILED, OK
from igd.operator import admin_client
from igd.operator.admin_client import NAME, get
from igd.operator.admin_paths import STATUS

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ENDLESS = b"Transfer-Encoding: chunked\r\n\r\n"


@contextmanager
def answering(path: Path, parts: Iterable[bytes]) -> Iterator[None]:
    """Accept one connection, and send these parts until the other end closes it."""

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:  # the client has had enough
                return

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
    thread.join()


ENDLESSLY: dict[str, Callable[[], Iterable[bytes]]] = {
    "a body": lambda: _then(HEAD + ENDLESS, b"1000\r\n" + b" " * 4096 + b"\r\n"),
    "interim answers": lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a slow body": lambda: _then(HEAD + b"\r\n", b""),
}


def _then(first: bytes, rest: bytes) -> Iterator[bytes]:
    yield first
    if rest:
        yield from repeat(rest)
    threading.Event().wait(3)


@pytest.mark.parametrize("parts", ENDLESSLY.values(), ids=ENDLESSLY)
def test_an_answer_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Callable[[], Iterable[bytes]]
) -> None:
    monkeypatch.setattr(admin_client, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(admin_client, "TIMEOUT_SECONDS", 1.0)
    with answering(tmp_path / NAME, parts()), pytest.raises(OSError, match=r"timed out|more than 1 MB"):
        get(tmp_path, STATUS)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_an_answer_that_is_not_json(tmp_path: Path, body: bytes) -> None:
    with answering(tmp_path / NAME, [HEAD + b"\r\n" + body]), pytest.raises(OSError, match="invalid response"):
        get(tmp_path, STATUS)


def test_a_link_to_another_socket_is_not_followed(tmp_path: Path) -> None:
    """A daemon of root's may do something that its user may not."""
    other = tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(other))
        listening.listen()
        (tmp_path / NAME).symlink_to(other)
        with pytest.raises(OSError, match="is not a socket"):
            get(tmp_path, STATUS)


@pytest.mark.root
def test_a_socket_on_which_another_user_listens_is_asked_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / NAME))
        listening.listen()
        os.chown(tmp_path / NAME, 64000, 64000)
        with pytest.raises(OSError, match="another user's socket"):
            get(tmp_path, STATUS)
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(64) == b""


@pytest.fixture
def igd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs a command line of igd for wg0, and returns its status."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))

    def run(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["igd", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


STATUS_WITH_ESCAPES = {
    "uptime": "\x1b[2J",
    "\x1b]0;title\x07": "\x9b31m",
    "matched_addresses": ["\x1b"],
    "urls": ["\u202e"],
    "warnings": ["\x1b"],
    "decisions": {"\x1b[1A": "\x1b"},
    "peers": {"\x1b": "\x1b"},
}
MAPPINGS_WITH_ESCAPES = [
    {
        "protocol": "\x1b",
        "external_port": "\x1b",
        "remotes": ["\x1b"],
        "internal_address": "10.100.0.2",
        "internal_port": "\x1b",
        "lease": "\x1b",
        "static": False,
        "suspended": False,
        "peer": "\x1b",
        "name": "\x1b",
        "description": "\x1b" + "x" * 10_000,
    }
]


@pytest.mark.parametrize(("command", "answer"), [("status", STATUS_WITH_ESCAPES), ("list", MAPPINGS_WITH_ESCAPES)])
@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "json"])
def test_nothing_of_an_answer_controls_the_terminal(
    tmp_path: Path,
    igd: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    command: str,
    answer: object,
    more: tuple[str, ...],
) -> None:
    with answering(tmp_path / NAME, [HEAD + b"\r\n" + json.dumps(answer).encode()]):
        assert igd(command, "wg0", *more) == OK
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert len(printed) < 20_000


@pytest.mark.parametrize("answer", ["1", "null", "[1]", "{}", '[{"protocol": 1}]', '"text"'])
@pytest.mark.parametrize("command", ["status", "list"])
def test_an_answer_of_another_form_is_an_error(
    tmp_path: Path, igd: Callable[..., int], capsys: pytest.CaptureFixture[str], command: str, answer: str
) -> None:
    with answering(tmp_path / NAME, [HEAD + b"\r\n" + answer.encode()]):
        status = igd(command, "wg0")
    assert status == FAILED or (command, answer) == ("list", "{}")
    assert "Traceback" not in capsys.readouterr().err


def test_a_reason_that_the_daemon_gives_does_not_control_the_terminal(
    tmp_path: Path, igd: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(tmp_path / NAME, [b"HTTP/1.1 500 \x1b[2J\r\n\r\n"]):
        assert igd("list", "wg0") == FAILED
    assert capsys.readouterr().err == "igd: the igd of wg0 does not answer: response 500 \\x1b[2J\n"
