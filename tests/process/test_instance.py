"""One interface has one daemon, and another process can stop it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from igd.process.instance import Instance

_HOLDER = """
import signal, sys, time
from igd.process.instance import Instance
{prelude}
with Instance("wg0").lock():
    print("locked", flush=True)
    time.sleep(1000)
"""
IGNORE_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"

HANG_SECONDS = 60.0
"""A time limit that only a hang exceeds."""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run" / "wg0"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return Instance("wg0")


@contextlib.contextmanager
def holder(prelude: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER.format(prelude=prelude)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_directories_are_systemds_or_the_defaults(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert instance.runtime_directory == tmp_path / "run" / "wg0"
    assert instance.state_directory == tmp_path / "state"
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.setenv("STATE_DIRECTORY", "")
    assert instance.runtime_directory == Path("/run/igd/wg0")
    assert instance.state_directory == Path("/var/lib/igd/wg0")


def test_no_process_serves_at_first(instance: Instance) -> None:
    assert instance.process() is None
    assert not instance.stop(HANG_SECONDS)


def test_the_lock_names_its_holder_until_it_is_released(instance: Instance) -> None:
    with instance.lock():
        assert instance.process() == os.getpid()
        with pytest.raises(OSError, match=rf"another igd \(process {os.getpid()}\)"), instance.lock():
            pass
        assert instance.process() == os.getpid()
    assert instance.process() is None
    with instance.lock():
        assert instance.process() == os.getpid()


def test_the_process_id_of_a_killed_daemon_is_ignored(instance: Instance) -> None:
    with holder() as process:
        assert instance.process() == process.pid
        process.kill()
        process.wait()
        assert (instance.runtime_directory / "lock").read_text(encoding="ascii") == str(process.pid)
        assert instance.process() is None
        with instance.lock():
            assert instance.process() == os.getpid()


def test_a_shorter_process_id_replaces_a_longer_one(instance: Instance) -> None:
    instance.runtime_directory.mkdir(parents=True)
    (instance.runtime_directory / "lock").write_text("99999999999", encoding="ascii")
    with instance.lock():
        assert instance.process() == os.getpid()


@pytest.mark.parametrize(
    ("prelude", "timeout", "ended_by"), [("", HANG_SECONDS, signal.SIGTERM), (IGNORE_SIGTERM, 0.05, signal.SIGKILL)]
)
def test_stop_waits_for_the_end_and_kills_after_the_timeout(
    instance: Instance, prelude: str, timeout: float, ended_by: signal.Signals
) -> None:
    with holder(prelude) as process:
        assert instance.stop(timeout)
        assert instance.process() is None
        assert process.wait() == -ended_by
