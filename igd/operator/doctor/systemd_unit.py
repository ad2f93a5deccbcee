"""What systemd knows of the unit that runs igd for an interface."""

import subprocess
from typing import NamedTuple

from igd.operator.doctor.machine import Machine, has_systemd


class Unit(NamedTuple):
    """Properties of igd@INTERFACE.service, named as in systemctl(1)."""

    load_state: str
    active_state: str
    unit_file_state: str
    result: str
    exec_main_status: str
    need_daemon_reload: bool
    wanted_by: frozenset[str]
    user: str
    capabilities: frozenset[str]


def name_of(machine: Machine) -> str:
    """Return the unit's name as a word of a shell."""
    return f"igd@{machine.name}"


def read(machine: Machine) -> Unit | None:
    """Return the unit, or None if systemd does not run this host; OSError."""
    if not has_systemd():
        return None
    shown = shows(f"igd@{machine.interface}.service", *_PROPERTIES)
    user = shown["User"] or "root"
    kept = shown["CapabilityBoundingSet"] if user == "root" else shown["AmbientCapabilities"]
    return Unit(
        shown["LoadState"],
        shown["ActiveState"],
        shown["UnitFileState"],
        shown["Result"],
        shown["ExecMainStatus"],
        shown["NeedDaemonReload"] == "yes",
        frozenset(shown["WantedBy"].split()),
        user,
        frozenset(kept.split()),
    )


_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "Result",
    "ExecMainStatus",
    "NeedDaemonReload",
    "WantedBy",
    "User",
    "CapabilityBoundingSet",
    "AmbientCapabilities",
)


def is_enabled(state: str) -> bool:
    """Return whether this UnitFileState means that something starts the unit."""
    return state in {"enabled", "enabled-runtime"}


def wg_quick_starts(machine: Machine) -> bool:
    """Return whether systemd brings the interface up at the next boot, by wg-quick; OSError."""
    return is_enabled(shows(f"wg-quick@{machine.interface}.service", "UnitFileState")["UnitFileState"])


def shows(unit: str, *properties: str) -> dict[str, str]:
    """Return these properties of a unit, empty where systemd has none; OSError."""
    command = ("systemctl", "show", unit, *(f"--property={name}" for name in properties))
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    if done.returncode:
        raise OSError(f"systemctl show {unit}: {done.stderr.strip()}")
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return {name: found.get(name, "") for name in properties}
