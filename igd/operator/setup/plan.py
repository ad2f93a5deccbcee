"""The plan for a machine: which steps it needs, and what is left to its operator. Pure, but for the drop-ins' text."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import igd
from igd.config import ConfigError
from igd.operator import names
from igd.operator.setup import firewall_lines, wg_quick_hooks
from igd.operator.setup.machine import LEGACY, USERSPACE, Machine, Manager
from igd.operator.setup.steps import Argv, Step, Write

_DROP_INS = "/etc/systemd/system/igd@{}.service.d"
_RELOAD = ("systemctl", "daemon-reload")
_APPEND = "sed -i -E '/^ *Post(Up|Down) *=.*igd/{/\\|\\|/!s/ *$/ || true/}'"


class CannotSetUpError(Exception):
    """Why nothing can be planned; the text may have a second line with what helps."""


class Plan(NamedTuple):
    """The steps, and one sentence for each thing that setup does not do itself."""

    steps: list[Step]
    notes: list[str]


def plan(machine: Machine) -> Plan:
    """Plan what the machine needs; CannotSetUpError."""
    _check(machine)
    result = Plan([], [])
    opened = firewall_lines.opening(list(machine.opens), machine.interface, up=machine.peers is not None)
    result.steps.extend(_drop_ins(machine))
    _plan_configuration(machine, result)
    if opened.step:
        result.steps.append(opened.step)
    result.notes.extend(f"the firewall drops what peers send to igd; this lets it in: {line}" for line in opened.left)
    by_service = True
    if machine.manager is Manager.WG_QUICK:
        by_service = _plan_wg_quick(machine, opened.hooks, result)
    else:
        result.steps.extend(_device(machine))
        if opened.hooks:
            result.notes.append("what setup adds to iptables lasts until the next boot: add it to your own rules")
    if not machine.running:
        result.steps.append(_start(machine, by_service=by_service))
    elif any(write.path != machine.manager_file for step in result.steps for write in step.writes):
        result.notes.append(f"igd runs, and uses what has changed after: systemctl restart igd@{machine.interface}")
    result.notes.extend(_others(machine))
    return result


def _check(machine: Machine) -> None:
    name, service = machine.interface, machine.service
    if service is None:
        if machine.manager is not Manager.WG_QUICK:
            raise CannotSetUpError(f"without systemd, wg-quick must start igd: there is no /etc/wireguard/{name}.conf")
    elif service.masked:
        raise CannotSetUpError(f"igd@{name} is masked; this permits it: systemctl unmask igd@{name} igd@")
    elif not service.unit:
        units = _unit_files()
        raise CannotSetUpError(
            f"systemd has no unit igd@.service; this installs it:\n"
            f"cp {units}/igd@.service {units}/igd-order@.target /etc/systemd/system/ && "
            f"install -D -m 644 {units}/igd.sysusers.conf /etc/sysusers.d/igd.conf && systemd-sysusers && "
            f"systemctl daemon-reload"
        )
    if machine.peers is None and machine.manager is Manager.UNKNOWN:
        raise CannotSetUpError(f"there is no interface {name}, and no /etc/wireguard/{name}.conf that makes it")


def _unit_files() -> Path:
    """Return the directory of the units: in an installed package beside the modules, in a clone beside the package."""
    package = Path(igd.__file__).parent
    installed = package / "systemd"
    return installed if installed.is_dir() else package.parent / "systemd"


def _drop_ins(machine: Machine) -> Iterator[Step]:
    present = machine.service.drop_ins if machine.service else {USERSPACE, LEGACY}
    reasons = {
        USERSPACE: "WireGuard is a program here, and only root may use its control socket",
        LEGACY: "this machine has rules of iptables-legacy, which need a raw socket",
    }
    wanted = {USERSPACE: machine.userspace, LEGACY: machine.legacy_rules}
    for name in (name for name, is_wanted in wanted.items() if is_wanted and name not in present):
        path = Path(_DROP_INS.format(machine.interface)) / name
        content = (_unit_files() / name).read_bytes()
        yield Step(reasons[name], (Write(path, None, content),), do=(_RELOAD,), undo=(_RELOAD,))


def _plan_configuration(machine: Machine, result: Plan) -> None:
    """Plan the sections that the configuration lacks: names of peers, and the chain that must accept mapped flows."""
    path, before = machine.config_path, machine.config_before
    lines, reasons = [], []
    if len(machine.forward_chains) == 1:
        lines += ["[firewall]", f'forward_chain = "{machine.forward_chains[0]}"']
        reasons.append(f"{machine.forward_chains[0]} stops mapped flows: igd adds rules with its label while it runs")
    elif machine.forward_chains:
        result.notes.append(f"several chains stop mapped flows: {', '.join(machine.forward_chains)}; see igd doctor")
    text = machine.manager_content.decode("utf-8", "replace") if machine.manager is Manager.WG_QUICK else ""
    if sections := names.named(text, machine.config).sections:
        lines += ["", *sections] if lines else sections
        reasons.append(f"comments in {machine.manager_file} name these peers: igd list and the log show the names")
    if not lines:
        return
    try:
        content = names.extended(before or b"", lines, path)
    except ConfigError:
        result.notes.append(f"add to {path}, where it fits: {'; '.join(filter(None, lines))}")
        return
    write = Write(path, before, content, tuple(filter(None, lines)) if before is not None else ())
    result.steps.append(Step("; ".join(reasons), (write,)))


def _plan_wg_quick(machine: Machine, hooks: list[str], result: Plan) -> bool:
    """Plan the lines in wg-quick's file; return whether they start systemd's service, and not igd itself."""
    assert machine.manager_file is not None
    path, content, program = machine.manager_file, machine.manager_content, machine.program
    found = wg_quick_hooks.hooks(content, machine.interface)
    by_service = found.service if found.starts or found.stops else machine.service is not None
    start, stop = wg_quick_hooks.START, wg_quick_hooks.STOP
    if not by_service:
        start, stop = (line.replace(" igd ", f" {program} ") for line in wg_quick_hooks.DETACHED)
    present = wg_quick_hooks.commands(content)
    lines = [line for line, there in ((start, found.starts), (stop, found.stops)) if not there]
    lines += [line for line in hooks if line.partition("=")[2].strip() not in present]
    if lines:
        try:
            changed = wg_quick_hooks.with_lines(content, lines)
        except wg_quick_hooks.NotWgQuicksError as error:
            raise CannotSetUpError(f"{path}: {error}") from None
        reason = "igd starts and stops with the interface, whoever runs wg-quick"
        result.steps.append(Step(reason, (Write(path, content, changed, tuple(lines), separable=True),)))
    if found.unguarded:
        result.notes.append(
            f"{path}: {found.unguarded[0]}: wg-quick fails at this line once igd is gone; "
            f"this mends it: {_APPEND} {shlex.quote(str(path))}"
        )
    if any("miniupnpd" in command for command in present):
        result.notes.append(f"{path} has wg-quick start miniupnpd, which serves the same peers: take its lines out")
    return by_service


def _device(machine: Machine) -> Iterator[Step]:
    """Have systemd start igd when the interface appears; igd itself ends when it is gone."""
    escaped = re.sub(r"[^A-Za-z0-9:_.]", lambda each: f"\\x{ord(each[0]):02x}", machine.interface)
    device, unit = f"sys-subsystem-net-devices-{escaped}.device", f"igd@{machine.interface}.service"
    link = Path(f"/etc/systemd/system/{device}.wants/{unit}")
    if machine.service and not link.is_symlink():
        yield Step(
            f"igd starts whenever {machine.interface} appears, which {machine.manager} makes, and ends with it",
            do=(("mkdir", "-p", str(link.parent)), ("ln", "-s", machine.service.unit, str(link)), _RELOAD),
            undo=(("rm", "-f", str(link)), _RELOAD),
            makes=(link.parent,),
        )


def _start(machine: Machine, *, by_service: bool) -> Step:
    """Start igd if the interface is there, and otherwise undo only what its later start leaves."""
    name = machine.interface
    start: Argv = ("systemctl", "start", f"igd@{name}")
    stop: Argv = ("systemctl", "stop", f"igd@{name}")
    if not by_service:
        start, stop = (machine.program, "run", name, "--detach"), (machine.program, "stop", name)
    directories = [Path(f"{root}/igd") for root in ("/etc", "/var/lib", "/run")]
    return Step(
        f"{name} is up" if machine.up else f"{name} is not up: igd starts with it",
        do=(start,) if machine.up else (),
        undo=(stop,),
        makes=tuple(directories),
        fills=tuple(directory / name for directory in directories[1:]),
    )


def _others(machine: Machine) -> Iterator[str]:
    if machine.miniupnpd:
        processes = ", ".join(map(str, machine.miniupnpd))
        yield (
            f"miniupnpd runs (process {processes}). If it serves {machine.interface}: igd migrate "
            f"/etc/miniupnpd/miniupnpd.conf takes its settings and mappings over"
        )
