"""Checks of the kernel's settings (sysctl) and of the operator's source NAT, by the functions that igd warns with."""

import asyncio
from collections.abc import Iterable, Sequence

from igd.core.obstacle import Obstacle
from igd.core.peers import Peers
from igd.firewall.operator_rules import source_nat
from igd.host import forwarding
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine


async def ipv4_forwarding(machine: Machine) -> Sequence[Finding]:
    """Examine net.ipv4.ip_forward, and the setting of each interface on which packets arrive."""
    if not _with_ipv4(machine):
        return []
    return _red((await settings(machine)).ipv4) or green("the kernel forwards IPv4 packets")


async def reverse_path(machine: Machine) -> Sequence[Finding]:
    """Examine rp_filter."""
    if not _with_ipv4(machine):
        return []
    return _red((await settings(machine)).reverse_path) or green("no packet of peers or of mapped flows is dropped")


async def source_translation(machine: Machine) -> Sequence[Finding]:
    """Examine whether connections that peers open are translated on the way out (MASQUERADE)."""
    way_out, peers = machine.external.default_interface, machine.peers
    if peers is None or not way_out:
        return []
    found = await asyncio.to_thread(source_nat.missing, machine.interface, way_out, peers)
    if found is None:
        return [Finding(Colour.YELLOW, "a part of the firewall's rules cannot be read")]
    return _red(found) or green(f"peers' own connections may leave by {way_out}")


async def settings(machine: Machine) -> forwarding.Settings:
    """Return what the kernel's settings keep from passing."""
    peers = (machine.peers or Peers([], [])).owned()
    external = machine.external
    return await forwarding.examine(
        machine.links, machine.interface, external.interface, peers, external.addresses.matched
    )


def _with_ipv4(machine: Machine) -> bool:
    return machine.peers is not None and any(network.version == 4 for network in machine.peers.owned())


def _red(obstacles: Iterable[Obstacle]) -> list[Finding]:
    return [Finding.of(Colour.RED, obstacle) for obstacle in obstacles]
