"""Checks whether another program serves the ports of the WireGuard interface that igd serves, such as miniupnpd."""

import asyncio
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine
from igd.wire.upnp import ssdp

_GATEWAYS = re.compile(r"upnpd|natpmpd|pcpd|igd")
"""Names of programs that are gateways: others may listen for searches of their own kind of devices."""

_SOCKET = re.compile(r"(?P<address>\S+?)(?:%(?P<device>[^\s:]+))?:(?P<port>\d+)")
_PROCESS = re.compile(r'\(\("(?P<name>[^"]*)",pid=(?P<pid>\d+)')


class Listener(NamedTuple):
    """A socket of the server that receives from anywhere: its address, device ("" for any) and program."""

    protocol: str
    address: str
    device: str
    port: int
    program: str
    pid: int


async def other_servers(machine: Machine) -> Sequence[Finding]:
    """Examine who else listens on the ports of UPnP, NAT-PMP and PCP where peers send to."""
    listeners = await asyncio.to_thread(_listeners)
    asked = {(protocol.name.lower(), port) for protocol, port in machine.ports}
    own = (machine.status or {}).get("pid")
    found = [each for each in listeners if (each.protocol, each.port) in asked and each.pid != own]
    rows = [_finding(each) for each in found if _meets_peers(machine, each)]
    return rows or green(f"none on the ports that igd serves on {machine.interface}")


def _meets_peers(machine: Machine, listener: Listener) -> bool:
    """Return whether this program receives what peers send to igd, or keeps igd from listening."""
    if listener.device not in {"", machine.interface} or _is_igd(listener.pid):
        return False
    own = {str(address.ip) for address in machine.addresses}
    if listener.port == ssdp.PORT and listener.address not in own:
        return bool(_GATEWAYS.search(listener.program))
    return listener.address in {*own, "0.0.0.0", "*", "::"}  # noqa: S104 - others' sockets


def _is_igd(pid: int) -> bool:
    """Return whether the process runs `igd run`: one that waits or does not answer."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"run" in words and any(word.rpartition(b"/")[2] == b"igd" for word in words)


def _finding(listener: Listener) -> Finding:
    where = f"{listener.protocol.upper()} {listener.port} of {listener.address}"
    text = f"{listener.program} (process {listener.pid}) listens on {where}: peers get its answers, or igd cannot start"
    unit = _unit_of(listener.pid)
    return Finding(Colour.RED, text, f"systemctl disable --now {unit}" if unit else f"kill {listener.pid}")


def _unit_of(pid: int) -> str:
    """Return the service that the process belongs to; "" if it is none's."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""
    found = re.search(r"/([^/\n]+\.service)$", groups, re.MULTILINE)
    return found[1] if found and not found[1].startswith("user@") else ""


def _listeners() -> list[Listener]:
    command = ("ss", "-Hlntup")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    if done.returncode:
        raise OSError(f"ss: {done.stderr.strip()}")
    return list(parse(done.stdout))


def parse(listing: str) -> Iterator[Listener]:
    """Yield the sockets in what `ss -Hlntup` prints; those without a process are the kernel's."""
    for line in listing.splitlines():
        words = line.split()
        socket, process = _SOCKET.fullmatch(words[4]), _PROCESS.search(line)
        if socket and process:
            address = socket["address"].strip("[]")
            yield Listener(
                words[0], address, socket["device"] or "", int(socket["port"]), process["name"], int(process["pid"])
            )
