"""The command line: a table of subcommands."""

import argparse
import sys

from igd import VERSION
from igd.commands import (
    asking,
    checking,
    doctoring,
    mapping,
    migrating,
    peer_names,
    reloading,
    serving,
    setting_up,
    streams,
)

COMMANDS = {
    "run": serving.RUN,
    "stop": serving.STOP,
    "check": checking.CHECK,
    "doctor": doctoring.DOCTOR,
    "names": peer_names.NAMES,
    "migrate": migrating.MIGRATE,
    "setup": setting_up.SETUP,
    "list": asking.LIST,
    "status": asking.STATUS,
    "add": mapping.ADD,
    "revoke": mapping.REVOKE,
    "reload": reloading.RELOAD,
}


def main() -> None:
    """Run the given subcommand; exit with 0 (success), 1 (failure) or 2 (wrong usage or configuration)."""
    sys.exit(streams.guarded(_run))


def _run() -> int:
    arguments = parser().parse_args()
    return COMMANDS[arguments.command].run(arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, from which manual page and completions are made."""
    whole = argparse.ArgumentParser(prog="igd", description="A port-mapping gateway for WireGuard servers.")
    whole.add_argument("--version", action="version", version=f"igd {VERSION}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.purpose, description=command.purpose)
        for argument, options in command.arguments:
            subparser.add_argument(argument, **options)
    return whole
