"""`igd migrate`."""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from igd.commands.command import FAILED, MISUSED, Argument, Command, print_error, print_text
from igd.process.instance import Instance

if TYPE_CHECKING:
    from igd.core.peers import Peers
    from igd.operator.migrate.planning import Addresses, Plan

_SOURCE: Argument = (
    "source",
    {"metavar": "FILE", "type": Path, "help": "miniupnpd's configuration, such as /etc/miniupnpd/miniupnpd.conf"},
)
_INTERFACE: Argument = (
    "--interface",
    {"metavar": "INTERFACE", "help": "the WireGuard interface; default: the one on which miniupnpd listens"},
)
_WRITE: Argument = (
    "--write",
    {"action": "store_true", "help": "write the configuration, stop miniupnpd, and take over its mappings"},
)


def _migrate(arguments: argparse.Namespace) -> int:
    from igd.config import ConfigError
    from igd.firewall.backend import FirewallError

    try:
        return asyncio.run(_plan_and_do(arguments))
    except (ConfigError, ValueError) as error:
        return print_error(str(error), MISUSED)
    except PermissionError as error:
        return print_error(f"{error}; run sudo igd migrate {arguments.source}", FAILED)
    except (OSError, FirewallError) as error:
        return print_error(str(error), FAILED)


async def _plan_and_do(arguments: argparse.Namespace) -> int:
    from igd import config_file
    from igd.operator.migrate import planning, report, stopping

    try:
        text = config_file.read(arguments.source)
    except ValueError as error:
        raise ValueError(f"{arguments.source}: {error}") from None
    known = await planning.addresses()
    interface = _chosen(arguments, text, known)
    miniupnpd = planning.found(arguments.source, text, known[interface])
    plan = planning.plan(miniupnpd, interface, known)
    peers = await planning.peers_of(interface, known[interface])
    print_text(report.conversion(plan))
    print_text(report.mappings(plan, planning.taken_over(miniupnpd.mappings(), peers, plan.config)))
    if chains := stopping.endangered(unit=miniupnpd.unit):
        return print_error(report.danger(chains), FAILED)
    if not arguments.write:
        return print_text(report.next_step(plan))
    return _do(plan, peers)


def _chosen(arguments: argparse.Namespace, text: str, known: "Addresses") -> str:
    """Return the WireGuard interface; ValueError if it is not known which."""
    from igd.operator.migrate import planning
    from igd.operator.migrate.lines import read_lines

    if arguments.interface is not None:
        if arguments.interface not in known:
            raise ValueError(f"there is no interface {arguments.interface}")
        return str(arguments.interface)
    names = planning.wireguard_interfaces(read_lines(text), known)
    if len(names) != 1:
        found = f"listens on {' and '.join(names)}" if names else "listens on no WireGuard interface that exists"
        raise ValueError(f"{arguments.source}: miniupnpd {found}; --interface INTERFACE names the one to serve")
    return names[0]


def _do(plan: "Plan", peers: "Peers") -> int:
    from igd.firewall.backend import FirewallError
    from igd.operator.migrate import report, takeover

    instance = Instance(plan.interface)
    with instance.lock():
        print_text(takeover.write_config(plan))
        try:
            for done in takeover.take_over(plan, peers, instance.store_path):
                print_text(done)
        except (OSError, FirewallError) as error:
            return print_error(f"{error}\n{report.way_back(plan)}", FAILED)
    try:
        print_text(takeover.start(plan.interface))
    except (OSError, FirewallError) as error:
        return print_error(f"{error}\n{report.way_back(plan)}", FAILED)
    return print_text(report.way_back(plan))


MIGRATE = Command(
    "Convert miniupnpd's configuration, and take over its mappings and connections.",
    (_SOURCE, _INTERFACE, _WRITE),
    _migrate,
)
