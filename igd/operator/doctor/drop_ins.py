"""Checks whether the service may do what this host asks of it; the drop-ins of igd@.service allow more."""

import asyncio
import pwd
from collections.abc import Sequence
from pathlib import Path

from igd.firewall import detect
from igd.operator.doctor import systemd_unit
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine

_DROP_INS = "/etc/systemd/system/igd@.service.d"

NEEDED = {
    "userspace-wireguard.conf": ("cap_dac_override", "WireGuard is a program here, whose socket belongs to root"),
    "iptables-legacy.conf": ("cap_net_raw", "the rules of this host are iptables-legacy's"),
}
"""Each drop-in, by the capability that it gives, and why the service needs that."""


async def drop_ins(machine: Machine) -> Sequence[Finding]:
    """Examine whether the service may do what this host asks of it."""
    found = systemd_unit.read(machine)
    if found is None or found.load_state != "loaded":
        return []
    facts = await asyncio.to_thread(detect.probe)
    needed = {
        "userspace-wireguard.conf": _is_denied(machine.interface, found.user),
        "iptables-legacy.conf": bool(facts.legacy_rule_sets),
    }
    names = [name for name, is_needed in needed.items() if is_needed]
    missing = [name for name in names if NEEDED[name][0] not in found.capabilities]
    rows = [_missing(machine, name) for name in missing]
    return rows or green(f"{', '.join(names)} in force" if names else "none is needed")


def _missing(machine: Machine, name: str) -> Finding:
    capability, reason = NEEDED[name]
    lines = [
        f"mkdir -p {_DROP_INS}",
        f"printf '%s\\n' '[Service]' {' '.join(settings(name))} >{_DROP_INS}/{name}",
        "systemctl daemon-reload",
        f"systemctl restart {systemd_unit.name_of(machine)}",
    ]
    text = f"{reason}, and the service has no {capability.upper()}: it lacks {name}"
    return Finding(Colour.RED, text, "\n".join(lines))


def settings(name: str) -> list[str]:
    """Return the settings of a drop-in that give rights."""
    rights = [f"{key}={NEEDED[name][0].upper()}" for key in ("AmbientCapabilities", "CapabilityBoundingSet")]
    return [*rights, "SupplementaryGroups=root"] if name == "iptables-legacy.conf" else rights


def _is_denied(interface: str, user: str) -> bool:
    """Return whether the interface is a program's, whose socket (by which wg(8) finds it) is another user's."""
    control = Path(f"/run/wireguard/{interface}.sock")
    return control.is_socket() and control.stat().st_uid != _number_of(user)


def _number_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None
