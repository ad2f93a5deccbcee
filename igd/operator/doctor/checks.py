"""The table of checks, in the order in which one thing depends on another, and how they are run."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from igd.firewall.backend import FirewallError
from igd.operator.doctor import (
    clock_setting,
    drop_ins,
    firewalls,
    interface,
    ipv6,
    kernel_settings,
    other_servers,
    peers,
    reachable_peers,
    service,
    way_out,
    wg_quick_lines,
)
from igd.operator.doctor.check import Check, Colour, Finding
from igd.operator.doctor.forward_path import forward_path
from igd.operator.doctor.kernel_state import kernel_state
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.peer_routes import routes_to_peers
from igd.operator.doctor.server_ports import server_ports

CHECKS: Sequence[Check] = (
    Check("configuration", interface.configuration),
    Check("interface", interface.interface),
    Check("peers", peers.allowed_ips),
    Check("routes to peers", partial(routes_to_peers, version=4)),
    Check("way out", way_out.way_out),
    Check("external address", way_out.external_address),
    Check("forwarding", kernel_settings.ipv4_forwarding),
    Check("rp_filter", kernel_settings.reverse_path),
    Check("MASQUERADE", kernel_settings.source_translation),
    Check("IPv6", ipv6.ipv6),
    Check("backend", firewalls.backend),
    Check("firewall", firewalls.firewalls),
    Check("server ports", server_ports),
    Check("FORWARD path", forward_path),
    Check("kernel", kernel_state),
    Check("split tunnels", reachable_peers.reachable_peers),
    Check("other servers", other_servers.other_servers),
    Check("wg-quick lines", wg_quick_lines.wg_quick_lines),
    Check("unit", service.unit),
    Check("drop-ins", drop_ins.drop_ins),
    Check("daemon", service.daemon),
    Check("clock", clock_setting.wall_clock),
)


class Row(NamedTuple):
    """One finding of the check of this name."""

    check: str
    finding: Finding


async def examine(machine: Machine, checks: Iterable[Check] = CHECKS) -> list[Row]:
    """Run all checks, one after another."""
    return [Row(check.name, finding) for check in checks for finding in await _findings(check, machine)]


async def _findings(check: Check, machine: Machine) -> Sequence[Finding]:
    try:
        return await check.examine(machine)
    except (OSError, FirewallError) as error:
        return [Finding(Colour.YELLOW, f"cannot be examined: {error}")]
