"""`igd setup`."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from igd.commands.command import FAILED, INTERFACE, MISUSED, OK, Argument, Command, print_error, print_text
from igd.process.instance import Instance

if TYPE_CHECKING:
    from igd.operator.setup.machine import Machine
    from igd.operator.setup.record import Record

_YES: Argument = ("--yes", {"action": "store_true", "help": "do it without asking"})
_UNDO: Argument = ("--undo", {"action": "store_true", "help": "take back what setup did"})
_KEEP_LEASES: Argument = (
    "--keep-leases",
    {"action": "store_true", "help": "with --undo: the next igd begins with the same mappings"},
)
_PEER: Argument = (
    "--peer",
    {"metavar": "NAME", "help": "only print what this peer's own configuration wants; NAME, key or address"},
)


def _setup(arguments: argparse.Namespace) -> int:
    from igd.config import ConfigError
    from igd.firewall.backend import FirewallError
    from igd.operator.setup import record
    from igd.operator.setup.plan import CannotSetUpError

    name = arguments.interface
    if os.geteuid() != 0:
        return print_error(f"only root may set up a machine: sudo igd setup {name}", FAILED)
    try:
        if arguments.peer is not None:
            return _print_client_lines(name, arguments.peer)
        with record.opened(name) as recorded:
            if arguments.undo:
                return _undo(recorded, name, agreed=arguments.yes, keep_leases=arguments.keep_leases)
            return _set_up(recorded, name, agreed=arguments.yes)
    except ConfigError as error:
        return print_error(str(error), MISUSED)
    except (CannotSetUpError, FirewallError, OSError) as error:
        return print_error(f"{name}: {error}", FAILED)


def _set_up(recorded: "Record", name: str, *, agreed: bool) -> int:
    import asyncio

    from igd.operator.setup import machine, steps
    from igd.operator.setup.plan import plan

    looked = asyncio.run(machine.look(name))
    planned = plan(looked)
    print_text(machine.as_text(looked))
    if planned.steps:
        print_text(f"\nWhat setup does:\n{steps.as_text(planned.steps)}")
        if not agreed and not _agrees("Do this?"):
            return print_error("nothing was changed; --yes does it without asking", FAILED)
        recorded.carry_out(planned.steps)
        print_text(f"\ndone; igd setup {name} --undo takes it back{_copies(recorded)}")
    else:
        print_text("\nnothing is to be done")
    for note in planned.notes:
        print_error(note, OK)
    return _prove(looked, name)


def _copies(recorded: "Record") -> str:
    return "".join(f"\na copy of the file that was changed: {copy}" for copy in recorded.copies)


def _agrees(question: str) -> bool:
    """Return whether a person agrees; False if nobody is there."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    sys.stdout.write(f"\n{question} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().casefold() in {"y", "yes"}


def _undo(recorded: "Record", name: str, *, agreed: bool, keep_leases: bool) -> int:
    if not recorded:
        return print_text(f"{name}: there is nothing to undo: setup has changed nothing")
    if keep_leases:
        recorded.keep(Instance(name).state_directory)
    print_text(f"What undo does:\n{recorded.undo_text()}")
    if not agreed and not _agrees("Do this?"):
        return print_error("nothing was changed; --yes does it without asking", FAILED)
    failures = recorded.undo()
    for sentence in [*recorded.notes, *failures]:
        print_error(sentence, OK)
    if recorded:
        return print_error(f"{name}: not everything was undone; igd setup {name} --undo tries again", FAILED)
    return print_text("undone")


def _prove(looked: "Machine", name: str) -> int:
    """Ask igd at the tunnel's addresses; print the public address and what to run on a client."""
    from igd.operator import admin_client, admin_paths
    from igd.operator.setup import proof
    from igd.process.host_check import host_warnings

    if not looked.up:
        return print_text(f"{name} is not up, and igd starts with it; then igd setup {name} proves that it answers")
    try:
        status = admin_client.get(Instance(name).runtime_directory, admin_paths.STATUS)
        answers = proof.ask(status["urls"], port_control=looked.config.port_control.enabled)
        address, warnings = status["external_address"], host_warnings(name, looked.config)
    except (OSError, KeyError, TypeError, ValueError) as error:
        return print_error(f"{name}: igd does not answer: {error}; see journalctl -u igd@{name}", FAILED)
    for answer in answers:
        print_text(f"{answer.asked}: {answer.failure or 'answers'}")
    for warning in warnings:
        print_error(f"warning: {warning}", OK)
    print_text(proof.for_a_client(address, looked.addresses))
    return FAILED if any(answer.failure for answer in answers) or not answers or address is None else OK


def _print_client_lines(name: str, wanted: str) -> int:
    """Print the lines for a peer's own file. OSError, ConfigError."""
    import asyncio

    from igd.operator.setup import client_lines, machine

    looked = asyncio.run(machine.look(name))
    if looked.peers is None:
        return print_error(f"{name} does not exist, and its peers are read from it: wg-quick up {name}", FAILED)
    try:
        peer = client_lines.find(looked.named_peers(), wanted)
    except client_lines.UnknownPeerError as error:
        return print_error(str(error), FAILED)
    server = looked.announced if looked.announced and looked.announced.is_global else None
    found = client_lines.variants(peer, looked.addresses, server)
    heading = f"# Lines for {peer}'s own file of wg-quick; add what it lacks of one part."
    on_the_server = (
        f"# Without any change on the client, mapped ports of a split tunnel are reached if /etc/igd/{name}.toml has, "
        f"in this peer's section: masquerade_inbound = true"
    )
    return print_text(f"{heading}\n\n{client_lines.as_text(found)}\n\n{on_the_server}")


SETUP = Command(
    "Prepare this machine to serve an interface, or undo that.", (INTERFACE, _YES, _UNDO, _KEEP_LEASES, _PEER), _setup
)
