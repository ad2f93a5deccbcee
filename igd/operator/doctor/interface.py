"""Checks of the configuration file, and of the WireGuard interface itself."""

import os
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_interface

from igd import config_file
from igd.config import default_path
from igd.config_peers import without_peer
from igd.operator.doctor import wg_quick_file
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine, has_systemd


async def configuration(machine: Machine) -> Sequence[Finding]:
    """Examine the file: it must be valid, where igd reads it, and readable for the service."""
    path = default_path(machine.interface)
    found = [Finding(Colour.RED, line) for line in machine.config_error.splitlines()]
    if config_file.is_present(path) and (denial := config_file.service_denial(path)):
        found.append(Finding.of(Colour.RED, denial))
    found += [Finding(Colour.YELLOW, text) for text in config_file.unread(path)]
    if machine.peers is not None:
        found += [Finding(Colour.YELLOW, text) for text in _without_peer(machine)]
    used = str(path) if config_file.is_present(path) else f"there is no {path}: the defaults are in force"
    return found or green(used)


def _without_peer(machine: Machine) -> list[str]:
    assert machine.peers is not None, "the caller checks it"
    return without_peer(machine.config.policies, machine.interface, machine.peers)


async def interface(machine: Machine) -> Sequence[Finding]:
    """Examine whether the interface is there, is WireGuard's, is up, and has the addresses that its file names."""
    found = list(_not_root(machine))
    link = await machine.links.state(machine.interface)
    if link is None:
        return [*found, _absent(machine)]
    if machine.peers is None and found:
        return found
    if machine.peers is None:
        missing = "wireguard-tools" in machine.unread
        return [*found, Finding(Colour.RED, machine.unread, "apt install wireguard-tools" if missing else "")]
    if not link.up:
        text = f"{machine.interface} is down: igd waits until it is up"
        return [*found, Finding(Colour.RED, text, _bring_up(machine, f"ip link set dev {machine.name} up"))]
    if all(address.ip.is_link_local for address in machine.addresses):
        return [*found, _without_address(machine)]
    found += _lost_addresses(machine)
    return found or green(f"{machine.interface} is up with {', '.join(map(str, machine.addresses))}")


def _not_root(machine: Machine) -> Iterator[Finding]:
    if os.geteuid() != 0:
        text = "igd doctor does not run as root, and cannot see everything"
        yield Finding(Colour.YELLOW, text, f"sudo igd doctor {machine.name}")


def _absent(machine: Machine) -> Finding:
    file = wg_quick_file.read(machine.interface)
    if file:
        return Finding(Colour.RED, f"{machine.interface} does not exist, {file.path} does", _bring_up(machine, ""))
    others = ", ".join(name for _, name in socket.if_nameindex())
    where = wg_quick_file.path_of(machine.interface)
    return Finding(Colour.RED, f"{machine.interface} does not exist, and neither does {where} (there are: {others})")


def _bring_up(machine: Machine, otherwise: str) -> str:
    """Return the line with which wg-quick brings the interface up, with all that its file says; else `otherwise`."""
    if wg_quick_file.read(machine.interface) is None:
        return otherwise
    if has_systemd():
        return f"systemctl restart wg-quick@{machine.name}"
    exists = machine.interface in {name for _, name in socket.if_nameindex()}
    down = f"wg-quick down {machine.name}; " if exists else ""
    return f"{down}wg-quick up {machine.name}"


def _without_address(machine: Machine) -> Finding:
    file = wg_quick_file.read(machine.interface)
    text = f"{machine.interface} has no address: igd waits until it has one"
    if file and file.interface.items("address"):
        return Finding(Colour.RED, text, _bring_up(machine, ""))
    return Finding(Colour.RED, f"{text}; write Address = 10.100.0.1/24, or what you use, into [Interface]")


def _lost_addresses(machine: Machine) -> Iterator[Finding]:
    """Yield each address of wg-quick's file that the interface does not have.

    A link that goes down and up loses its IPv6 addresses.
    """
    file = wg_quick_file.read(machine.interface)
    for text in file.interface.items("address") if file else ():
        try:
            address = ip_interface(text)
        except ValueError:
            continue  # wg-quick would have failed
        if address not in machine.addresses:
            line = f"ip address add {address} dev {machine.name}"
            yield Finding(Colour.RED, f"{machine.interface} lacks the address {address} of wg-quick's file", line)
