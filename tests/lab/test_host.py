"""A host runs commands, shows all output of those that fail, and leaves nothing behind."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import process
from .fixtures import requires_root
from .host import Host
from .process import CommandFailed

pytestmark = requires_root

# Makes a lab with a program in it, prints its network namespaces, and runs until it is killed.
_DOOMED = """
import os, sys
from tests.lab import Lab
with Lab() as lab:
    lab.c1.start("sh", "-c", "sleep 1000 & sleep 1000")
    print(*(os.stat(host.netns_path).st_ino for host in (lab.net, lab.srv, lab.c1, lab.c2)), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("here") as host:
        yield host


def test_runs_a_command_in_its_own_namespaces(host: Host) -> None:
    assert host.run("hostname").stdout == "here\n"
    assert host.run("ls", "/sys/class/net").stdout == "lo\n"
    assert host.run("cat", input="given").stdout == "given"
    assert host.run("false", check=False).returncode == 1


def test_a_command_whose_number_is_that_of_the_holder_elsewhere_is_in_the_host(host: Host) -> None:
    """The pid namespaces of machine and host number their processes separately."""
    host.run("sh", "-c", f"echo {host.pid - 4} >/proc/sys/kernel/ns_last_pid")
    ran = [host.run("sh", "-c", "echo $$; hostname; ls /sys/class/net").stdout.split() for _ in range(8)]
    assert str(host.pid) in {number for number, *_ in ran}, "none had the number"
    assert [rest for _, *rest in ran] == [["here", "lo"]] * 8


def test_a_failure_shows_host_command_and_both_outputs(host: Host) -> None:
    with pytest.raises(CommandFailed) as failed:
        host.run("sh", "-c", "echo out; echo err >&2; exit 3")
    for part in ("here$ sh -c", "exit status 3", "out", "err"):
        assert part in str(failed.value)


def test_a_command_that_takes_too_long_is_ended(host: Host) -> None:
    with pytest.raises(CommandFailed, match=r"(?s)still running after 2 s.*begun"):
        host.run("sh", "-c", "echo begun; exec sleep 1000", timeout=2)


def test_wait_for_finds_each_line_once_and_in_order(host: Host) -> None:
    with host.start("sh", "-c", "echo one; echo two >&2; echo one more; exec sleep 1000") as talker:
        assert talker.wait_for("one")[0] == "one"
        assert talker.wait_for(r"one (\w+)")[1] == "more"
        with pytest.raises(CommandFailed, match=r"(?s)no line like 'two'.*\ntwo"):
            talker.wait_for("two", timeout=0.1)
    assert talker.lines == ["one", "two", "one more"]


def test_wait_for_does_not_wait_for_the_dead(host: Host) -> None:
    with host.start("echo", "gone") as brief, pytest.raises(CommandFailed, match=r"ended without.*\ngone"):
        brief.wait_for("never", timeout=60)


def test_stop_ends_even_the_stubborn(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    polite = host.start("sleep", "1000")
    assert polite.stop() == -signal.SIGTERM
    monkeypatch.setattr(process, "GRACE", 0.1)
    stubborn = host.start("env", "--ignore-signal=TERM", "sh", "-c", "echo deaf; exec sleep 1000")
    stubborn.wait_for("deaf")
    assert stubborn.stop() == -signal.SIGKILL


def test_orphans_leave_no_zombies(host: Host) -> None:
    host.run("sh", "-c", "sleep 0.05 &")  # run() waits until the output is closed: until the orphan has ended
    assert "Z" not in host.run("ps", "-eo", "stat=").stdout


def test_closing_ends_what_was_started() -> None:
    with Host("here") as host:
        left = host.start("sleep", "1000")
    assert left.wait() == -signal.SIGKILL


def test_nothing_outlives_a_killed_owner() -> None:
    with subprocess.Popen(
        (sys.executable, "-c", _DOOMED),
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        networks = {int(word) for word in owner.stdout.readline().split()}
        inhabitants = _inhabitants(networks)
        # Held open, or a namespace that somebody else makes meanwhile may get the number of one that has ended.
        kept = [os.open(f"/proc/{pid}/ns/net", os.O_RDONLY) for pid in inhabitants]
        watched = [os.pidfd_open(pid) for pid in inhabitants]
        assert len(watched) > 4 * 2  # unshare and cat of every host, and what runs in them
        owner.kill()
    for descriptor in watched:
        assert _ended(descriptor, process.PATIENCE)
        os.close(descriptor)
    assert _inhabitants(networks) == []
    for namespace in kept:
        os.close(namespace)


def _inhabitants(networks: set[int]) -> list[int]:
    """Find the processes that live in one of these network namespaces."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _network(entry) in networks]


def _network(entry: Path) -> int | None:
    try:
        return (entry / "ns/net").stat().st_ino
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has just ended, or is a sandbox's own
        return None


def _ended(descriptor: int, timeout: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))
