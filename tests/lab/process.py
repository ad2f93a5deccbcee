"""A program that runs in a host while the test goes on."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

PATIENCE = 60.0  # seconds: only a hang takes longer, also on a slow and busy machine
GRACE = PATIENCE  # between SIGTERM and SIGKILL


def until(condition: Callable[[], object], interval: float = 0.05) -> None:
    """Return once the condition holds, which is evaluated every `interval` seconds; AssertionError after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s"
        time.sleep(interval)


class CommandFailed(Exception):  # noqa: N818 - commands fail, and this is no error of a program
    """A command in a host ended badly, too late or not as expected; the text shows all that it printed."""

    def __init__(self, host: str, argv: Sequence[str], why: str, *outputs: str) -> None:
        shown = "".join(f"\n{output.rstrip()}" for output in outputs if output)
        super().__init__(f"{host}$ {' '.join(argv)}: {why}{shown}")


class Process:
    """A started command of a host; leaving the `with` stops it."""

    def __init__(self, host: str, argv: Sequence[str], popen: subprocess.Popen[str]) -> None:
        self._host, self._argv, self._popen = host, argv, popen
        self.lines: list[str] = []  # stdout and stderr, as they came
        self._seen = 0  # lines that wait_for has gone past
        self._ended = False  # no line will follow
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name=f"{host}: {argv[0]}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id as the test process sees it."""
        return self._popen.pid

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Find the next line that matches, after the one found before; CommandFailed if none comes in time."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not (found := self._next_match(pattern)):
                if self._ended:
                    raise self._failure(f"ended without a line like {pattern!r}")
                if not self._news.wait(deadline - time.monotonic()):
                    raise self._failure(f"no line like {pattern!r} within {timeout} s")
        return found

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end and return its exit status (-N: ended by signal N); CommandFailed if it goes on."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._failure(f"still running after {timeout} s") from None
        self._reader.join(1)  # a child of it may hold the pipe for longer
        return status

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens if it has ended."""
        self._popen.send_signal(number)

    def stop(self) -> int:
        """End it with SIGTERM, or SIGKILL after GRACE seconds; return its exit status."""
        self._popen.terminate()
        try:
            self._popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._popen.kill()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:
            for line in output:
                self._tell(line.rstrip("\n"))
        self._tell(None)

    def _tell(self, line: str | None) -> None:
        with self._news:
            if line is None:
                self._ended = True
            else:
                self.lines.append(line)
            self._news.notify_all()

    def _next_match(self, pattern: str) -> re.Match[str] | None:
        while self._seen < len(self.lines):
            found = re.search(pattern, self.lines[self._seen])
            self._seen += 1
            if found:
                return found
        return None

    def _failure(self, why: str) -> CommandFailed:
        return CommandFailed(self._host, self._argv, why, "\n".join(self.lines))
