"""Checks of the daemon, and of of the unit that starts it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from igd import VERSION
from igd.config import default_path
from igd.operator.doctor import kernel_settings, systemd_unit, wg_quick_file, wg_quick_lines
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import NOT_RUNNING, Machine
from igd.operator.doctor.remedies import restart
from igd.operator.doctor.systemd_unit import Unit
from igd.operator.doctor.wg_quick_file import WgQuickFile

_LINES = (
    r"/^\[Interface\]/a PostUp = systemctl start --no-block igd@%i || true"
    r"\nPostDown = systemctl stop igd@%i || true"
)
"""sed's command that adds the lines of the README to wg-quick's file."""


async def daemon(machine: Machine) -> Sequence[Finding]:
    """Examine whether igd runs, in this version, and what it warns of itself."""
    if machine.status is None:
        return [await _not_serving(machine)]
    version, count = machine.status.get("version"), machine.status.get("mappings")
    if version != VERSION:
        text = f"igd {version} runs, and {VERSION} is installed"
        return [Finding(Colour.YELLOW, text, "\n".join(restart(machine)))]
    if _is_outdated(machine):
        text = f"{default_path(machine.interface)} was changed since igd read it"
        hint = f"`igd reload {machine.name}` is enough, but for a few keys"
        return [Finding(Colour.YELLOW, f"{text}; {hint}", "\n".join(restart(machine)))]
    return await _own_warnings(machine) or green(f"igd {version} serves {machine.interface}: {count} mappings")


def _is_outdated(machine: Machine) -> bool:
    """Return whether the daemon has another configuration than the one in the file, which is valid."""
    status = machine.status or {}
    in_force = status.get("configuration")
    if machine.config_error or in_force in (None, machine.config.digest):
        return False
    try:
        words = Path(f"/proc/{int(status['pid'])}/cmdline").read_bytes().split(b"\0")
    except (KeyError, OSError, TypeError, ValueError):
        return True
    return not any(word.startswith(b"--config") for word in words)  # it reads another file


async def _own_warnings(machine: Machine) -> list[Finding]:
    """Return what the daemon warns of, without that which has rows of its own here."""
    settings = await kernel_settings.settings(machine)
    known = {*machine.external.warnings, *map(str, (*settings.ipv4, *settings.ipv6, *settings.reverse_path))}
    warnings = (machine.status or {}).get("warnings")
    found = warnings if isinstance(warnings, list) else []
    return [Finding(Colour.YELLOW, str(warning)) for warning in found if warning not in known]


async def _not_serving(machine: Machine) -> Finding:
    if machine.silent != NOT_RUNNING:
        return Finding(Colour.RED, machine.silent)
    unit, file = systemd_unit.read(machine), wg_quick_file.read(machine.interface)
    starts = _started_by(machine, unit, file)
    loaded = unit is not None and unit.load_state in {"loaded", "masked"}
    line = f"systemctl start {systemd_unit.name_of(machine)}" if loaded else f"igd run {machine.name} --detach"
    if unit and unit.active_state == "failed":
        text = f"{NOT_RUNNING}: its unit has failed ({unit.result}, exit status {unit.exec_main_status})"
        return Finding(Colour.RED, f"{text}; journalctl -u {systemd_unit.name_of(machine)} has the reason", line)
    if starts:
        return Finding(Colour.RED, f"{NOT_RUNNING}, though {starts} starts it", line)
    return Finding(Colour.YELLOW, f"{NOT_RUNNING}, and nothing starts it", line)


def _started_by(machine: Machine, unit: Unit | None, file: WgQuickFile | None) -> str:
    """Return what starts igd with the interface; "" if nothing does."""
    if file and wg_quick_lines.start_igd(file):
        return str(file.path)
    if unit is None or not systemd_unit.is_enabled(unit.unit_file_state):
        return ""
    with_wg_quick = unit.wanted_by == {f"wg-quick@{machine.interface}.service"}
    return "systemd" if not with_wg_quick or systemd_unit.wg_quick_starts(machine) else ""


async def unit(machine: Machine) -> Sequence[Finding]:
    """Examine igd@.service: installed, not masked, as its file has it, and started at the next boot."""
    found = systemd_unit.read(machine)
    if found is None:
        return []
    name, file = systemd_unit.name_of(machine), wg_quick_file.read(machine.interface)
    starts = _started_by(machine, found, file)
    if found.load_state == "masked":
        return [Finding(Colour.RED, f"{name} is masked: nothing can start it", f"systemctl unmask {name}")]
    if found.load_state != "loaded":
        return [Finding(Colour.YELLOW, f"{name} is {found.load_state}; `igd setup {machine.name}` installs it")]
    if found.need_daemon_reload:
        text = f"the file of {name} or a drop-in has changed since systemd read it"
        return [Finding(Colour.YELLOW, text, f"systemctl daemon-reload\nsystemctl try-restart {name}")]
    if not starts:
        text = f"nothing starts {name} with {machine.interface}"
        return [Finding(Colour.YELLOW, text, _starting(machine, file))]
    return green(f"{name} is {found.active_state}; {starts} starts it")


def _starting(machine: Machine, file: WgQuickFile | None) -> str:
    """Return the line after which igd starts with the interface, whatever brings that up."""
    if systemd_unit.wg_quick_starts(machine):
        return f"systemctl enable {systemd_unit.name_of(machine)}"
    if file is None:  # it waits for the interface
        return f"systemctl add-wants multi-user.target {systemd_unit.name_of(machine)}.service"
    return f"sed -i {shlex.quote(_LINES)} {shlex.quote(str(file.path))}"
