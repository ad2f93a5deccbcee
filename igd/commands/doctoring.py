"""`igd doctor`."""

import argparse
import json
import logging
import os
import sys
from typing import TYPE_CHECKING

from igd.commands.command import FAILED, INTERFACE, JSON, OK, Argument, Command, print_error, print_text
from igd.process.instance import Instance

if TYPE_CHECKING:
    from igd.operator.doctor.checks import Row

DOUBTFUL = 3
"""The exit status if something may be wrong, and nothing certainly is."""

_ANY_INTERFACE: Argument = (
    INTERFACE[0],
    {**INTERFACE[1], "nargs": "?", "help": "the WireGuard interface; default: all of this host"},
)


def _doctor(arguments: argparse.Namespace) -> int:
    import asyncio

    from igd.operator.doctor import report
    from igd.operator.doctor.check import Colour
    from igd.operator.doctor.machine import interfaces

    logging.getLogger("igd").addHandler(logging.NullHandler())  # what is warned of is a row
    names = [arguments.interface] if arguments.interface else interfaces()
    if not names:
        return print_error("there is no WireGuard interface; name the one that should be there: igd doctor wg0", FAILED)
    try:
        reports = {name: asyncio.run(_examine(name)) for name in names}
    except OSError as error:
        return print_error(f"this host cannot be examined: {error}", FAILED)
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    shown = (
        json.dumps(report.as_json(reports), indent=2) if arguments.json else report.table(reports, coloured=coloured)
    )
    statuses = {Colour.GREEN: OK, Colour.YELLOW: DOUBTFUL, Colour.RED: FAILED}
    return print_text(shown) or statuses[report.worst(reports)]


async def _examine(interface: str) -> "list[Row]":
    from igd.config import Config, ConfigError, load_for
    from igd.operator.doctor import checks, machine

    config, error = Config(), ""
    try:
        config = load_for(interface)
    except ConfigError as invalid:
        error = str(invalid)
    instance = Instance(interface)
    paths = machine.Paths(config.store.path or instance.store_path, instance.runtime_directory)
    async with machine.examined(interface, paths, config, error, _waiting(instance)) as examined:
        return await checks.examine(examined)


def _waiting(instance: Instance) -> str | None:
    """Return what a daemon that does not serve yet waits for, or an empty string; None if there is no daemon."""
    try:
        return instance.waiting_for()
    except OSError:
        return None


DOCTOR = Command(
    "Examine the host: why ports are not mapped or not reached, and the lines that help. Exit status: 0 all is green,"
    " 3 the worst is yellow, 1 red.",
    (_ANY_INTERFACE, JSON),
    _doctor,
)
