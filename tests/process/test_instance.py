"""One interface has one daemon, and another process can stop it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from igd.process.instance import Instance

_HOLDER = """
import os, signal, sys, time
from igd.process.instance import Instance
{prelude}
with Instance("wg0").lock():
    {inside}
    print("locked", flush=True)
    time.sleep(1000)
"""
RUN = ("igd", "run", "wg0")
IGNORE_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"

HANG_SECONDS = 60.0
"""A time limit that only a hang exceeds."""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run" / "wg0"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return Instance("wg0")


@contextlib.contextmanager
def holder(prelude: str = "", inside: str = "", words: Sequence[str] = RUN) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock, with these words at the end of its command line.

    It executes `prelude` before it takes the lock, and `inside` after that.
    """
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER.format(prelude=prelude, inside=inside), *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
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
        assert instance.stop(timeout) == ("killed" if ended_by == signal.SIGKILL else "stopped")
        assert instance.process() is None
        assert process.wait() == -ended_by


# What root finds in the directory of the service's user, who may be somebody else by now


SOMEBODY = 64000
"""A user without an account."""

needs_root = pytest.mark.root


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of root's that does not hold the lock; it must be alive afterwards."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", *RUN]) as process:
        yield process
        assert process.poll() is None
        process.kill()


def _claim(instance: Instance, text: str | bytes) -> None:
    """Write into the lock file."""
    (instance.runtime_directory / "lock").write_bytes(text.encode() if isinstance(text, str) else text)


def test_a_process_that_does_not_hold_the_lock_is_not_stopped(
    instance: Instance, victim: "subprocess.Popen[bytes]"
) -> None:
    with holder() as process:
        _claim(instance, str(victim.pid))
        with pytest.raises(OSError, match=rf"names process {victim.pid}.*it does not hold the lock"):
            instance.stop(HANG_SECONDS)
        assert process.poll() is None
        _claim(instance, str(process.pid))
        assert instance.stop(HANG_SECONDS)


@needs_root
def test_a_lock_of_the_services_user_does_not_have_roots_processes_stopped(
    instance: Instance, victim: "subprocess.Popen[bytes]"
) -> None:
    with holder(inside=f"os.setuid({SOMEBODY})") as process:
        os.chown(instance.runtime_directory / "lock", SOMEBODY, SOMEBODY)
        for claimed in (victim.pid, 1):
            _claim(instance, str(claimed))
            with pytest.raises(OSError, match=f"names process {claimed}, which is not the igd that locked it"):
                instance.stop(HANG_SECONDS)
        _claim(instance, str(process.pid))
        assert instance.stop(HANG_SECONDS)


@needs_root
def test_a_process_of_a_third_user_is_not_stopped_though_it_holds_the_lock(instance: Instance) -> None:
    with holder(inside=f"os.setuid({SOMEBODY + 1})") as process:
        os.chown(instance.runtime_directory / "lock", SOMEBODY, SOMEBODY)
        with pytest.raises(OSError, match=f"it runs as user {SOMEBODY + 1}, and the lock belongs to user {SOMEBODY}"):
            instance.stop(HANG_SECONDS)
        assert process.poll() is None


@pytest.mark.parametrize("words", [(), ("igd", "run", "wg1"), ("igd", "list", "wg0"), ("crond", "run", "wg0")])
def test_a_process_that_is_not_this_igd_is_not_stopped(instance: Instance, words: Sequence[str]) -> None:
    with holder(words=words) as process:
        with pytest.raises(OSError, match='its command is not "igd run wg0"'):
            instance.stop(HANG_SECONDS)
        assert process.poll() is None


@pytest.mark.parametrize("text", ["", "\n", "0", "-1", "1x", "99999999999999999999", b"\xff" * 100_000, " 1"])
def test_a_lock_file_that_names_no_process(instance: Instance, text: str | bytes) -> None:
    with holder() as process:
        _claim(instance, text)
        for attempt in (lambda: instance.stop(HANG_SECONDS), instance.process, instance.lock().__enter__):
            with pytest.raises(OSError, match="names no process"):
                attempt()
        assert process.poll() is None


def test_a_process_that_does_not_exist(instance: Instance) -> None:
    with holder() as process:
        _claim(instance, "4194304")  # above the largest process id
        with pytest.raises(OSError, match="names process 4194304"):
            instance.stop(HANG_SECONDS)
        assert process.poll() is None


PLANTED = {
    "a symlink": lambda path: path.symlink_to("/etc/passwd"),
    "a FIFO": os.mkfifo,
    "a directory": Path.mkdir,
    "a hard link": lambda path: (path.with_name("other").touch(), path.hardlink_to(path.with_name("other"))),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_what_is_not_a_lock_file_is_neither_read_nor_changed(instance: Instance, plant: Callable[[Path], None]) -> None:
    """It would wait for the other end of a FIFO, and truncate the file behind a link."""
    instance.runtime_directory.mkdir(parents=True)
    path = instance.runtime_directory / "lock"
    plant(path)
    before = path.lstat()
    attempts = (lambda: instance.stop(0), instance.process, instance.waiting_for, instance.lock().__enter__)
    for attempt in attempts:
        with pytest.raises(OSError, match="lock"):
            attempt()
    assert path.lstat() == before
