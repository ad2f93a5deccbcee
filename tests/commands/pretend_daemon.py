"""A daemon with a pretended kernel, in this process, and the program `igd` that asks it."""

import codecs
import fcntl
import http.server
import io
import json
import os
import pty
import select
import socketserver
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from igd import cli
from igd.operator.admin_client import NAME
from igd.process.instance import Instance

SOURCES = Path(__file__).parents[2]

PATIENCE = 60.0

RUN = (
    "import pathlib, sys; from igd.process import instance;"
    " instance.DIRECTORY = pathlib.Path({directory!r}); from igd import cli; cli.main()"
)
"""The command line, with another directory in place of /run/igd."""

MAPPING: dict[str, Any] = {
    "protocol": "TCP",
    "external_port": 8043,
    "internal_address": "10.100.0.2",
    "internal_port": 80,
    "remotes": [],
    "lease": 300,
    "static": False,
    "suspended": False,
    "peer": "key=",
    "name": "laptop",
    "description": "web",
}

STATUS: dict[str, Any] = {
    "interface": "wg0",
    "warnings": [],
    "external_address": "60.60.60.1",
    "matched_addresses": ["10.0.0.5"],
    "urls": [],
    "uptime": 12,
    "peers": {"laptop": 2},
    "decisions": {"MapPort GRANTED": 4},
}


def command(directory: Path, *words: str) -> list[str]:
    """Return the command line of `igd WORDS`, whose daemons have their runtime directories in `directory`."""
    return [sys.executable, "-c", RUN.format(directory=str(directory)), *words]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a command: English, with a terminal that can do everything, and these variables."""
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCES), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    return {**kept, **variables}


def run(directory: Path, *words: str, user: int = 0, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `igd WORDS` to its end, with its output in pipes.

    As the user with this number or with these variables it is a process; otherwise a call, which takes less time.
    """
    if not user and not variables:
        return _called(directory, words)
    return subprocess.run(
        command(directory, *words),
        capture_output=True,
        text=True,
        check=False,
        env=environment(**variables),
        timeout=PATIENCE,
        user=user or None,
    )


def _called(directory: Path, words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(out), redirect_stderr(err):
        monkeypatch.setattr("igd.process.instance.DIRECTORY", directory)
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        monkeypatch.setattr(sys, "argv", ["igd", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(words, ended.value.code, out.getvalue(), err.getvalue())


@contextmanager
def started(directory: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """Start `igd WORDS` with its output in pipes; kill it at the end."""
    process = subprocess.Popen(
        command(directory, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    with process:
        yield process
        process.kill()


class Terminal:
    """A command on a terminal of its own; `text` is what it has printed so far."""

    def __init__(self, words: Sequence[str], variables: Mapping[str, str], size: tuple[int, int]) -> None:
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._terminal, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *words], stdin=other, stdout=other, stderr=other, env=dict(variables)
        )
        os.close(other)

    def wait_for(self, text: str) -> None:
        """Wait until the command has printed this."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.text:
            assert self._read(deadline), f"no {text!r} in {self.text!r}"

    def press(self, key: bytes) -> None:
        """Type a key."""
        os.write(self._terminal, key)

    def end(self) -> int:
        """Wait until the command has ended; return its exit status, negative if a signal has ended it."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        os.close(self._terminal)
        return self._process.wait(PATIENCE)

    def hang_up(self) -> int:
        """Close the terminal, as a person who closes its window; return the command's exit status."""
        os.close(self._terminal)
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """End a command that a failed test has left."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        """Read what was printed; return False if the command has closed the terminal."""
        assert select.select([self._terminal], [], [], deadline - time.monotonic())[0], self.text
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: no process has it open any more
            return False
        self.text += self._decoder.decode(data)
        return bool(data)


@contextmanager
def on_terminal(
    directory: Path, *words: str, size: tuple[int, int] = (40, 120), variables: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Run `igd WORDS` on a terminal of its own, with so many rows and columns."""
    terminal = Terminal(command(directory, *words), environment(**(variables or {})), size)
    try:
        yield terminal
    finally:
        terminal.kill()


class Daemon:
    """Answers what `answers` has for each path, as the daemon of one interface does; it holds the lock meanwhile.

    `asked` has what was posted, in order.
    """

    def __init__(self, directory: Path) -> None:
        self.answers: dict[str, Any] = {"/mappings": [MAPPING], "/status": STATUS}
        self.asked: list[tuple[str, Any]] = []
        self.directory = directory


@contextmanager
def daemon(directory: Path, interface: str = "wg0") -> Iterator[Daemon]:
    """Have a daemon for this interface run, whose runtime directory is in `directory`."""
    pretended = Daemon(directory / interface)
    pretended.directory.mkdir(parents=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = pretended.answers.get(self.path)
            body = json.dumps(answer).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            pretended.asked.append((self.path, json.loads(self.rfile.read(size))))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with _locked(pretended.directory, interface):
        server = socketserver.ThreadingUnixStreamServer(str(pretended.directory / NAME), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield pretended
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@contextmanager
def _locked(directory: Path, interface: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("igd.process.instance.DIRECTORY", directory.parent)
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        lock = Instance(interface).lock()
        lock.__enter__()
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
