"""`--watch`: asks again every second, until Ctrl-C."""

import json
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from igd.commands.asking import View, terminal_for
from igd.commands.command import FAILED, OK, print_error, print_text
from igd.commands.daemons import Answers, ask_all

PAUSE_SECONDS = 1.0
"""The pause between two questions. It is longer if an answer takes longer, so that the daemon is busy half of the time
at most."""


def watch(view: View, interface: str | None, *, as_json: bool) -> int:
    """Show the answers again and again until Ctrl-C; a daemon that does not answer is shown as such.

    A terminal shows them in place of one another, and then again what it showed before. Other output gets one after
    another: as JSON one a line, as text with an empty line behind each.
    """
    screen = None if as_json else terminal_for(0)
    try:
        if screen is None:
            _repeat(lambda: _print(view, ask_all(interface, view.path), as_json=as_json))
        from rich.live import Live

        with Live(console=screen, screen=True, auto_refresh=False) as live:
            _repeat(lambda: live.update(view.render(screen, ask_all(interface, view.path)), refresh=True))
    except KeyboardInterrupt:
        return OK
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return print_error(f"a daemon sent an invalid response: {error!r}", FAILED)


def _repeat(show: Callable[[], None]) -> NoReturn:
    while True:
        begin = time.monotonic()
        show()
        time.sleep(max(PAUSE_SECONDS, time.monotonic() - begin))


def _print(view: View, answers: Answers, *, as_json: bool) -> None:
    for error in answers.errors:
        print_error(error, FAILED)
    if answers.found:
        print_text(json.dumps(view.plain(answers)) if as_json else f"{view.text(answers)}\n")
        sys.stdout.flush()
