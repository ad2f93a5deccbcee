"""Lines of ufw, firewalld and iptables that open a port: what takes each back, and what it writes. Pure."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from igd.operator.setup.steps import Argv, Step

_UFW = tuple(map(Path, ("/etc/ufw/user.rules", "/etc/ufw/user6.rules")))
_ZONES = "/etc/firewalld/zones"


class Opened(NamedTuple):
    """The step that opens the ports (None if there is nothing to do); lines for wg-quick's file; lines left over.

    iptables forgets its rules at a reboot, so wg-quick's file gets them, too. nftables' own rules are in a file
    that only its owner can edit.
    """

    step: Step | None
    hooks: list[str]
    left: list[str]


def opening(lines: Sequence[str], interface: str, *, up: bool) -> Opened:
    """Sort the lines that let peers reach igd; without the interface, `up`, iptables has nothing to do yet."""
    do: list[Argv] = []
    undo: list[Argv] = []
    hooks: list[str] = []
    left: list[str] = []
    tracks: list[Path] = []
    for line in lines:
        commands = _commands(line)
        back = [_reverse(command) for command in commands]
        if any(command is None for command in back):
            left.append(line)
            continue
        undoing = [command for command in back if command]
        program = commands[0][0]
        if program.startswith(("iptables", "ip6tables")):
            hooks += _hooks(line, shlex.join(undoing[0]), interface)
            if not up:
                continue
        tracks += _files(commands[0])
        do += [command for command in commands if command not in do]
        undo += [command for command in undoing if command not in undo]
    step = Step(_REASON, do=tuple(do), undo=tuple(undo), tracks=tuple(dict.fromkeys(tracks))) if do else None
    return Opened(step, hooks, left)


_REASON = "the firewall drops what peers send to igd"


def _commands(line: str) -> list[Argv]:
    """Return the commands of a line; firewalld gets them at once and for good, because a reload forgets other rules."""
    commands = [tuple(shlex.split(part)) for part in line.split(" && ")]
    kept = [command for command in commands if command != ("firewall-cmd", "--reload")]
    permanent = [command for command in kept if command[:2] == ("firewall-cmd", "--permanent")]
    return [*(("firewall-cmd", *command[2:]) for command in permanent), *kept]


def _reverse(command: Argv) -> Argv | None:
    """Return the command that takes this one back; None if nothing is known to."""
    if command[0] == "ufw":
        return ("ufw", "delete", *command[1:])
    if command[0] == "firewall-cmd":
        return tuple(re.sub(r"^--add-", "--remove-", word) for word in command)
    if command[0].startswith(("iptables", "ip6tables")):
        inserted = command[1] == "-I"
        return (command[0], "-D", command[2], *command[4 if inserted else 3 :])
    return None


def _hooks(line: str, back: str, interface: str) -> list[str]:
    """Return the lines for wg-quick's file; "|| true" because a rule that cannot be added must not stop the tunnel."""
    do, undo = (re.sub(rf" -i {re.escape(interface)} ", " -i %i ", each) for each in (line, back))
    return [f"PostUp = {do} || true", f"PostDown = {undo} || true"]


def _files(command: Argv) -> list[Path]:
    """Return the files that a command changes."""
    if command[0] == "ufw":
        return list(_UFW)
    if command[0] != "firewall-cmd":
        return []
    zone = next((word.partition("=")[2] for word in command if word.startswith("--zone=")), None)
    return [Path(f"{_ZONES}/{zone}.xml"), Path(f"{_ZONES}/{zone}.xml.old")] if zone else []
