"""A computer of the lab that systemd has booted, with igd and its units installed as an operator does it."""

import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from uuid import uuid4

from tests.lab import PATIENCE, CommandFailed, Host, Process

from .tree import CHECKOUT

UNITS = CHECKOUT / "systemd"
_ROOT = "/run/machine/root"

Units = Literal["installed", "removed", "never there"]

# All of it lies in the host's mount namespace and ends with it, but for the cgroup: a machine whose owner was killed
# leaves an empty one behind. systemd wants the unified hierarchy, which may be mounted elsewhere here, or not at all.
_PREPARE = """
set -e
upper=$1; lower=$2; cgroup=$3
mkdir -p /sys/fs/cgroup /run/machine/upper /run/machine/work /run/machine/root
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "$cgroup"
cd /run/machine
mount -t overlay -o "lowerdir=$upper:$lower,upperdir=upper,workdir=work" overlay root
"""
_INSTALL = """
set -e
cp "$2/igd@.service" "$2/igd-order@.target" "$1/etc/systemd/system/"
install -D -m 644 "$2/igd.sysusers.conf" "$1/etc/sysusers.d/igd.conf"
systemd-sysusers --root="$1"
"""
_REMOVE_UNITS = 'rm "$1/etc/systemd/system/igd@.service" "$1/etc/systemd/system/igd-order@.target"'

# The kernel's WireGuard answers whoever has CAP_NET_ADMIN; wireguard-go answers the owner of its socket. So where the
# kernel's is to be tested and there is none, wireguard-go runs as igd. (Its socket cannot be given away: it ends.)
_LIKE_THE_KERNELS = """#!/bin/sh
capabilities=+net_admin,+dac_override
exec setpriv --reuid=igd --regid=igd --clear-groups --inh-caps=$capabilities --ambient-caps=$capabilities \\
    wireguard-go.real "$@"
"""
_BOOT = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
_READY_SOCKET = "igd-machine-ready"
_NSPAWN = (
    "systemd-nspawn",
    "--boot",
    f"--directory={_ROOT}",
    "--register=no",
    "--keep-unit",
    "--network-namespace-path=/proc/self/ns/net",
    "--capability=CAP_NET_ADMIN",
    "--bind=/dev/net/tun",
    "--bind=/etc/wireguard",
    "--resolv-conf=off",
    "--timezone=off",
    "--link-journal=no",
    "--console=pipe",
    "--notify-ready=yes",
)
_NSPAWN_ENVIRONMENT = (
    f"NOTIFY_SOCKET=@{_READY_SOCKET}",
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network",
)
_INIT = ("systemd.unit=multi-user.target", "systemd.mask=systemd-logind.service")
_CLEAN = ("env", "--ignore-environment", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")


class Machine:
    """A machine in `host`, with its network and its /etc/wireguard; the `with` boots it and ends it.

    `layers`: its files, uppermost first. `userspace`: WireGuard is a program of root's, and not like the kernel's.
    `drop_ins`: files of systemd/ for igd@.service.d. `enabled`: units. `files`: path -> text, for what else must be
    there before it boots. `units`: whether igd's units and its user are installed; "removed": after they were enabled.
    """

    def __init__(
        self,
        host: Host,
        layers: tuple[Path, Path],
        *,
        userspace: bool = False,
        drop_ins: Sequence[str] = (),
        enabled: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        units: Units = "installed",
    ) -> None:
        self._host, self._layers = host, layers
        self._userspace = userspace
        self._drop_ins, self._enabled, self._files = drop_ins, enabled, files or {}
        self._units = units
        self._life = ExitStack()
        self._leader = ""
        self._cgroup = f"/sys/fs/cgroup/igd-test-{uuid4().hex}"

    def __enter__(self) -> Self:
        with ExitStack() as building:
            self._prepare()
            building.callback(self._remove_cgroup)
            # Closed once it has booted: systemd goes on to report, and would wait for a reader for ever.
            with self._host.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
                ready.bind(f"\0{_READY_SOCKET}")
                ready.settimeout(PATIENCE)
                boot = ("env", *_NSPAWN_ENVIRONMENT, "sh", "-c", _BOOT, "sh", self._cgroup, *_NSPAWN, *_INIT)
                nspawn = building.enter_context(self._host.start(*boot))
                self._await_boot(ready, nspawn)
            building.callback(self._host.run, "kill", "-KILL", self._leader)  # quicker than any shutdown
            self._life = building.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.close()

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout: float = PATIENCE,
        input: str | None = None,  # noqa: A002 - as subprocess.run names it
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as root; CommandFailed as Host.run does."""
        return self._host.run(*self._inside(), *argv, check=check, timeout=timeout, input=input)

    def start(self, *argv: str) -> Process:
        """Start a command as root and let it run."""
        return self._host.start(*self._inside(), *argv)

    def shows(self, unit: str, *properties: str) -> tuple[str, ...]:
        """Return what `systemctl show` has for these properties, in their order."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).stdout.splitlines()
        found = dict(line.split("=", 1) for line in lines)
        return tuple(found[name] for name in properties)

    def await_state(self, unit: str, state: str) -> None:
        """Return when the unit is in this ActiveState and nothing more is to be done about it; CommandFailed."""
        settled = f'[ "$(systemctl show --property=ActiveState,Job --value {unit} | xargs)" = {state} ]'
        try:
            self.run("sh", "-c", f"until {settled}; do sleep 0.05; done")
        except CommandFailed as late:
            raise AssertionError(f"{unit} is not {state}:\n{self.log(unit)}") from late

    def log(self, unit: str | None = None) -> str:
        """Return the lines that a unit has written, or all lines.

        journald may not know the unit of a program that has ended when its lines are read.
        """
        self.run("journalctl", "--sync")
        units = () if unit is None else (f"--unit={unit}",)
        return self.run("journalctl", "--no-pager", "--output=cat", *units).stdout

    def _inside(self) -> tuple[str, ...]:
        return ("nsenter", f"--target={self._leader}", "--all", "--", *_CLEAN)

    def _prepare(self) -> None:
        self._host.run("sh", "-c", _PREPARE, "sh", *self._layers, self._cgroup)
        if self._units != "never there":
            self._host.run("sh", "-c", _INSTALL, "sh", _ROOT, UNITS)
        if not self._userspace:
            self._host.run("mv", f"{_ROOT}/usr/bin/wireguard-go", f"{_ROOT}/usr/bin/wireguard-go.real")
            self._write("/usr/bin/wireguard-go", _LIKE_THE_KERNELS, "755")
        for name in self._drop_ins:
            self._write(f"/etc/systemd/system/igd@.service.d/{name}", (UNITS / name).read_text())
        for path, text in self._files.items():
            self._write(path, text)
        if self._enabled:
            self._host.run("systemctl", f"--root={_ROOT}", "enable", *self._enabled)
        if self._units == "removed":
            self._host.run("sh", "-c", _REMOVE_UNITS, "sh", _ROOT)

    def _write(self, path: str, text: str, mode: str = "644") -> None:
        self._host.run("install", "-D", "-m", mode, "/dev/stdin", f"{_ROOT}{path}", input=text)

    def _await_boot(self, ready: socket.socket, nspawn: Process) -> None:
        while True:
            try:
                states = ready.recv(4096).decode().splitlines()
            except TimeoutError:
                raise OSError("\n".join(["the machine does not boot:", *nspawn.lines])) from None
            for state in states:
                if state.startswith("X_NSPAWN_LEADER_PID="):
                    self._leader = state.partition("=")[2]
            if "READY=1" in states:
                return

    def _remove_cgroup(self) -> None:
        self._host.run("find", self._cgroup, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+")
