"""What all subcommands share: how they are described, their common arguments, output and exit statuses."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from igd.host.interface_name import interface_name

OK, FAILED, MISUSED = 0, 1, 2
"""Exit statuses: success; failure; wrong usage or configuration."""

Argument = tuple[str, dict[str, Any]]
"""A name or flag and the keywords of `ArgumentParser.add_argument`."""


class Command(NamedTuple):
    """One subcommand: its help text, its arguments, and the function that runs it and returns the exit status."""

    purpose: str
    arguments: tuple[Argument, ...]
    run: Callable[[argparse.Namespace], int]


def print_text(text: str) -> int:
    """Print to standard output; return OK."""
    sys.stdout.write(f"{text}\n")
    return OK


def print_line(text: str) -> int:
    """Print one line that others have written a part of, without what controls a terminal; return OK."""
    from igd.operator.status import printable

    return print_text(printable(text))


def print_error(text: str, status: int) -> int:
    """Print each line to standard error, after the program's name; return `status`, also if nobody can read them."""
    from igd.operator.status import printable

    with contextlib.suppress(OSError):
        sys.stderr.write("".join(f"igd: {printable(line)}\n" for line in text.splitlines()))
    return status


def _interface(text: str) -> str:
    try:
        return interface_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


INTERFACE: Argument = (
    "interface",
    {"metavar": "INTERFACE", "type": _interface, "help": "the WireGuard interface"},
)
JSON: Argument = ("--json", {"action": "store_true", "help": "as JSON"})
CONFIG: Argument = (
    "--config",
    {"metavar": "FILE", "type": Path, "help": "default: /etc/igd/INTERFACE.toml, if it exists"},
)
