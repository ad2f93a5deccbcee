"""`igd list` and `igd status`: what the running daemons answer."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from igd.commands.command import FAILED, JSON, OK, Argument, Command, print_error, print_text
from igd.commands.daemons import SOME_INTERFACE, Answers, ask_all
from igd.operator import admin_paths

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WATCH: Argument = ("--watch", {"action": "store_true", "help": "show it again every second, until Ctrl-C"})

AROUND_ROWS = 6
"""Lines of a screen that show no mapping: titles, the lines around them, how many are left out, an error."""


class View(NamedTuple):
    """What a command asks for, and how the answers are shown: to programs as `plain` values or `text`, else in a table.

    `rendered` gets the number of rows that there is room for.
    """

    path: str
    plain: Callable[[Answers], Any]
    text: Callable[[Answers], str]
    rendered: Callable[[Answers, int], "RenderableType"]

    def render(self, terminal: "Console", answers: Answers) -> "RenderableType":
        """Return what fits the terminal's screen, with the errors below it."""
        from rich.console import Group
        from rich.text import Text

        from igd.operator.status import printable

        errors = [Text(printable(error), "red") for error in answers.errors]
        room = max(1, terminal.height - AROUND_ROWS - len(errors))
        return Group(*([self.rendered(answers, room)] if answers.found else []), *errors)


def _mappings(answers: Answers) -> list[dict[str, Any]]:
    return [{"interface": name, **each} for name, answer in answers.found.items() for each in answer]


def _mappings_text(answers: Answers) -> str:
    from igd.operator import status

    return status.table(_mappings(answers), with_interface=not answers.named)


def _mappings_rendered(answers: Answers, room: int) -> "RenderableType":
    from igd.operator import terminal

    return terminal.mappings_table(_mappings(answers), with_interface=not answers.named, most=room)


def _statuses(answers: Answers) -> Any:  # noqa: ANN401 - any JSON value
    every = list(answers.found.values())
    return every[0] if answers.named else every


def _statuses_text(answers: Answers) -> str:
    from igd.operator import status

    return "\n\n".join(map(status.listing, answers.found.values()))


def _statuses_rendered(answers: Answers, _room: int) -> "RenderableType":
    from igd.operator import terminal

    return terminal.status_table(answers.found.values())


def _shown(view: View) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        if arguments.watch:
            from igd.commands import watching

            return watching.watch(view, arguments.interface, as_json=arguments.json)
        answers = ask_all(arguments.interface, view.path)
        try:
            if answers.found:
                _print(view, answers, as_json=arguments.json)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            names = ", ".join(answers.found)
            answers.errors.append(f"the igd of {names} sent an invalid response: {error!r}")
        for sentence in answers.errors:
            print_error(sentence, FAILED)
        return FAILED if answers.errors else OK

    return run


def _print(view: View, answers: Answers, *, as_json: bool) -> None:
    screen = None if as_json else terminal_for(sum(map(len, answers.found.values())))
    if screen is None:
        print_text(json.dumps(view.plain(answers), indent=2) if as_json else view.text(answers))
    else:
        screen.print(view.rendered(answers, sys.maxsize))


def terminal_for(rows: int) -> "Console | None":
    """Return the terminal that shows a table of so many rows, or None if plain text suits standard output better."""
    if not sys.stdout.isatty():
        return None  # at once: the library for tables takes a tenth of a second
    from igd.operator import terminal

    return terminal.console_for(rows)


_MAPPINGS = View(admin_paths.MAPPINGS, _mappings, _mappings_text, _mappings_rendered)
_STATUS = View(admin_paths.STATUS, _statuses, _statuses_text, _statuses_rendered)

LIST = Command("List the mappings of all peers.", (SOME_INTERFACE, JSON, _WATCH), _shown(_MAPPINGS))
STATUS = Command("Show the daemon's state and request counters.", (SOME_INTERFACE, JSON, _WATCH), _shown(_STATUS))
