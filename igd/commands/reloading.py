"""`igd reload`."""

import argparse
from typing import Any

from igd.commands.command import FAILED, MISUSED, OK, Command, print_error, print_line
from igd.commands.daemons import SOME_INTERFACE, SilentDaemonError, ask, running
from igd.operator import admin_paths
from igd.operator.admin_paths import RefusedError


def _reload(arguments: argparse.Namespace) -> int:
    errors: list[str] = []
    names = [arguments.interface] if arguments.interface else running(errors)
    statuses = [_reload_one(name) for name in names]
    for error in errors:
        print_error(error, FAILED)
    return max([FAILED] if errors else statuses)


def _reload_one(name: str) -> int:
    try:
        answer = ask(name, admin_paths.RELOAD, {})
        return _print_reloaded(name, answer)
    except RefusedError as refused:
        lines = str(refused).splitlines()
        return print_error("\n".join([*lines, f"{name}: the former configuration stays in force"]), MISUSED)
    except SilentDaemonError as silence:
        return print_error(str(silence), FAILED)
    except (KeyError, TypeError) as error:
        return print_error(f"the igd of {name} sent an invalid response: {error!r}", FAILED)


def _print_reloaded(name: str, answer: Any) -> int:  # noqa: ANN401 - any JSON value
    changed, at_restart, closed, warnings = (
        list(map(str, answer[key])) for key in ("changed", "at_restart", "closed", "warnings")
    )
    print_line(f"{name}: changed: {', '.join(changed)}" if changed else f"{name}: nothing has changed")
    for mapping in closed:
        print_line(f"{name}: closed, because the configuration no longer allows it: {mapping}")
    for warning in warnings:
        print_error(f"warning: {warning}", OK)
    if at_restart:
        keys = ", ".join(at_restart)
        print_error(f"warning: {name}: only a restart changes {keys}: systemctl restart igd@{name}", OK)
    return OK


RELOAD = Command(
    "Read the configuration again, without a restart; a bad file changes nothing.", (SOME_INTERFACE,), _reload
)
