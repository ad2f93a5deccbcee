"""A host: network, mount, process and name namespaces of its own, held by one process."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from .namespaces import SYSCTLS, joined
from .process import PATIENCE, CommandFailed, Process

# What the holder does before it reports. What programs write to /etc and /var stays in overlays, whose upper
# layers lie in a tmpfs that the private /run then covers; the machine's own WireGuard keys are out of sight.
# The holder ends up as cat, which ends when the other end of its input is gone, however its owner died; and
# when the first process of a pid namespace ends, the kernel kills all others. (PR_SET_PDEATHSIG would not do:
# it fires when the *thread* that made the host ends.) SIGCHLD is ignored so that orphans leave no zombies.
_HOLDER = """
set -e
hostname "$1"
shift
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
for tree in etc var; do
    mkdir /run/$tree /run/$tree.work
    mount -t overlay -o lowerdir=/$tree,upperdir=/run/$tree,workdir=/run/$tree.work overlay /$tree
done
mkdir -p /etc/wireguard /etc/igd /var/lib/igd
mount -t tmpfs -o mode=0700 tmpfs /etc/wireguard
mount -t tmpfs -o mode=0755 tmpfs /etc/igd
mount -t tmpfs -o mode=0755 tmpfs /var/lib/igd
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/lock
for setting in "$@"; do
    echo "${setting#*=}" > "/proc/sys/net/${setting%%=*}"
done
ip link set lo up
echo ready
exec env --ignore-signal=CHLD cat > /dev/null 2>&1
"""
_NAMESPACES = {"--net": "net", "--mount": "mnt", "--uts": "uts"}
"""Options of unshare and nsenter, and the files in /proc/PID/ns."""

# Paths in this machine's /run and /var; a host has its own.
_OF_THIS_MACHINE = {"XTABLES_LOCKFILE", "NOTIFY_SOCKET", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"}


class Host:
    """One computer of a lab; leaving the `with` ends every process of it. Needs root; OSError without."""

    def __init__(self, name: str) -> None:
        self.name = name
        unshare = ("unshare", *_NAMESPACES, "--pid", "--fork", "--kill-child", "--mount-proc")
        self._started: list[subprocess.Popen[str]] = []
        self._holder = subprocess.Popen(
            (*unshare, "sh", "-c", _HOLDER, "sh", name, *SYSCTLS),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a Ctrl-C at the terminal is for the test process
        )
        self._await_holder()

    @property
    def pid(self) -> int:
        """A process in the host's namespaces (all but pid), as `ip link set dev X netns PID` wants it."""
        return self._holder.pid

    @property
    def _entrance(self) -> tuple[str, ...]:
        """The options with which nsenter enters the host, and its root directory."""
        holder = f"/proc/{self.pid}"
        namespaces = (f"{option}={holder}/ns/{file}" for option, file in _NAMESPACES.items())
        return (*namespaces, f"--root={holder}/root", f"--wd={holder}/root")

    @property
    def netns_path(self) -> Path:
        """The file that stands for the host's network namespace."""
        return Path(f"/proc/{self.pid}/ns/net")

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        timeout: float = PATIENCE,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in /; CommandFailed if it takes longer, or fails while `check` is set."""
        words = [str(word) for word in argv]
        with self._spawn(words, stderr=subprocess.PIPE, stdin=subprocess.PIPE) as popen:
            try:
                out, err = popen.communicate(input, timeout)
            except subprocess.TimeoutExpired as late:
                printed = [(output or b"").decode(errors="replace") for output in (late.output, late.stderr)]
                raise CommandFailed(self.name, words, f"still running after {timeout} s", *printed) from None
            finally:
                popen.kill()  # for whatever else may interrupt the test; what has ended is not touched
        if check and popen.returncode != 0:
            raise CommandFailed(self.name, words, f"exit status {popen.returncode}", out, err)
        return subprocess.CompletedProcess(words, popen.returncode, out, err)

    def start(self, *argv: str | Path) -> Process:
        """Start a command in / and let it run."""
        words = [str(word) for word in argv]
        return Process(self.name, words, self._spawn(words, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL))

    def write(self, path: str, text: str) -> None:
        """Make a file that only root may read; in /etc, /var or /run it exists in this host alone."""
        self.run("install", "-D", "-m", "600", "/dev/stdin", path, input=text)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread into the host's network: its sockets, its /proc/thread-self/net, its children.

        Sockets and threads that are made inside stay there for good. Do not await inside: every other
        coroutine of the thread would be in the host's network too.
        """
        with joined(self.pid, "net"):
            yield

    def socket(self, family: socket.AddressFamily, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
        """Make a socket that lives in the host's network, for use from anywhere."""
        with self.entered():
            return socket.socket(family, kind, protocol)

    def close(self) -> None:
        """End every process of the host, and wait until they are gone."""
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        # the kernel lets the holder end only when all of its namespace have been reaped, and these are ours to reap
        for popen in self._started:
            popen.wait()
        self._holder.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await_holder(self) -> None:
        assert self._holder.stdout is not None
        printed = ""
        with self._holder.stdout as output:
            for line in output:
                if line == "ready\n":
                    return
                printed += line
        self.close()
        raise OSError(f"cannot make the host {self.name!r}: {printed}")

    def _spawn(self, argv: list[str], *, stdin: int, stderr: int) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name not in _OF_THIS_MACHINE}
        # The child is born in the pid namespace, so nsenter need not fork, and signals reach the program itself. It is
        # given files and not --target=PID: its newer versions look for that number in the pid namespace first, where
        # it may be their own.
        with joined(self.pid, "pid_for_children"):
            popen = subprocess.Popen(
                ("nsenter", *self._entrance, "--", *argv),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                env=environment,
            )
            self._started = [old for old in self._started if old.poll() is None] + [popen]
        return popen
