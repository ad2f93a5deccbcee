"""`igd migrate`."""

import argparse
import asyncio
import os
import signal
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
    except (OSError, FirewallError) as error:
        hint = f"\nrun it as root: sudo igd migrate {arguments.source}" if os.geteuid() else ""
        return print_error(f"{error}{hint}", FAILED)


async def _plan_and_do(arguments: argparse.Namespace) -> int:
    from igd import config_file
    from igd.operator.migrate import planning, report, stopping

    try:
        text = config_file.read(arguments.source)
    except ValueError as error:
        raise ValueError(f"{arguments.source}: {error}") from None
    known = await planning.addresses()
    interface = _chosen(arguments, text, known)
    miniupnpd = planning.found(arguments.source, text, Instance(interface).store_path, known[interface])
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
    """Do it to the end: a closed terminal, or Ctrl-C, does not leave the clients without a gateway half-way."""
    from igd.firewall.backend import FirewallError
    from igd.operator.migrate import report, takeover
    from igd.operator.status import printable

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the daemon would inherit
    instance = Instance(plan.interface)
    done, failure = list[str](), ""
    with instance.lock():
        done.append(takeover.write_config(plan))
        try:
            done.extend(takeover.take_over(plan, peers, instance.store_path))
        except (OSError, FirewallError) as error:
            failure = str(error)
    try:
        done += [] if failure else [takeover.start(plan.interface)]
    except (OSError, FirewallError) as error:
        failure = str(error)
    print_text("\n".join(map(printable, done)))
    back = report.way_back(plan)
    return print_error(f"{failure}\n{back}", FAILED) if failure else print_text(back)


MIGRATE = Command(
    "Convert miniupnpd's configuration, and take over its mappings and connections.",
    (_SOURCE, _INTERFACE, _WRITE),
    _migrate,
)
