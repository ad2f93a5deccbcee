"""`igd list` and `igd status`: what a running daemon answers."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from igd.commands.command import FAILED, INTERFACE, JSON, Command, print_error, print_text
from igd.process.instance import Instance


def _query(arguments: argparse.Namespace) -> int:
    from igd.operator import admin_client, status

    name = arguments.interface
    as_text: Callable[[Any], str]
    path, as_text = admin_client.STATUS, status.listing
    if arguments.command == "list":
        path, as_text = admin_client.MAPPINGS, status.table
    try:
        response = admin_client.get(Instance(name).runtime_directory, path)
    except (FileNotFoundError, ConnectionRefusedError):
        return print_error(_why_silent(Instance(name)), FAILED)
    except PermissionError:
        return print_error(f"the igd of {name} answers root and its own user only", FAILED)
    except OSError as error:
        return print_error(f"the igd of {name} does not answer: {error}", FAILED)
    try:
        return print_text(json.dumps(response, indent=2) if arguments.json else as_text(response))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return print_error(f"the igd of {name} sent an invalid response: {error!r}", FAILED)


def _why_silent(instance: Instance) -> str:
    """Return why the daemon has no admin socket."""
    name = instance.interface
    try:
        missing = instance.waiting_for()
    except OSError:
        missing = None
    if missing is None:
        return f"igd is not running for {name}; see systemctl status igd@{name}"
    return f"igd waits for {missing}" if missing else f"igd is starting for {name}"


LIST = Command("List the mappings of all peers.", (INTERFACE, JSON), _query)
STATUS = Command("Show the daemon's state and request counters.", (INTERFACE, JSON), _query)
