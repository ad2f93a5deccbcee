"""What peers cause in the log: bounded for each peer, in short lines, without control characters.

A line belongs to the peer whose request is decided, which `cause` holds in the request's task and its children, or to
the one that `of_peer` names. Other lines of igd, and those of libraries, belong to the statement that logs them:
whatever a peer finds to repeat is bounded too. Not counted are debug lines, because --verbose requests them all, and
lines about lasting problems (ONCE), none of which is logged twice.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from igd.core.line_budget import LineBudget

log = logging.getLogger(__name__)

UNKNOWN_SOURCES = "unknown sources"

LONGEST = 300
"""Bytes of a line that a peer causes, and of a debug line. Other lines have commands to paste, which must be whole."""

cause: ContextVar[str | None] = ContextVar("cause", default=None)
"""The public key of the peer whose request is decided, UNKNOWN_SOURCES, or None."""


ONCE: dict[str, Any] = {"once": True}
"""The `extra` of a line that is not repeated, and so must not be left out: it is nobody's, and not counted."""


def of_peer(public_key: str, *, important: bool = True) -> dict[str, Any]:
    """Return the `extra` of a line that this peer causes; `important` lines are left out last."""
    return {"cause": public_key, "important": important}


def limit(lines_per_second: int, label: Callable[[str], str]) -> None:
    """Bound the lines of all handlers that there are; `label` returns what lines call a peer (Policies.label)."""
    bounded = LineFilter(lines_per_second, label, time.monotonic)
    for handler in logging.getLogger().handlers:
        handler.addFilter(bounded)


def change_limit(lines_per_second: int, label: Callable[[str], str]) -> None:
    """Bound the lines of all handlers by these values from now on, in place of those of `limit`."""
    for each in _filters():
        each.change(lines_per_second, label)


def report_left_out() -> None:
    """Log how many lines were left out since the last call, one line for each subject."""
    for each in _filters():
        each.report()


def _filters() -> list["LineFilter"]:
    found = [each for handler in logging.getLogger().handlers for each in handler.filters]
    return [each for each in found if isinstance(each, LineFilter)]


class LineFilter(logging.Filter):
    """Shortens and escapes lines, and leaves out those above `per_second` of one peer or statement.

    A traceback counts as the lines of one second. `label` returns what lines call a peer, by its public key.
    """

    def __init__(self, per_second: int, label: Callable[[str], str], clock: Callable[[], float]) -> None:
        super().__init__()
        self._per_second = per_second
        self._label = label
        self._budget: LineBudget[tuple[str | None, str]] = LineBudget(per_second)
        self._clock = clock
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record; make its text one line."""
        peer = _peer(record)
        if record.levelno > logging.DEBUG and not _is_logged_once(record):
            lines = self._per_second if record.exc_info else 1
            counted = (peer, "" if peer else f"{record.name}, line {record.lineno}")
            with self._lock:
                if not self._budget.admit(counted, self._clock(), lines=lines, important=_is_important(record)):
                    return False
        text = escaped(record.getMessage())
        record.msg, record.args = text if peer is None and record.levelno > logging.DEBUG else _cut(text), None
        if record.exc_info:
            record.exc_text = _indented(logging.Formatter().formatException(record.exc_info))
        return True

    def change(self, per_second: int, label: Callable[[str], str]) -> None:
        """Use these values from now on; report before what was left out."""
        self.report()
        with self._lock:
            self._per_second, self._label = per_second, label
            self._budget = LineBudget(per_second)

    def report(self) -> None:
        """Log how many lines were left out."""
        with self._lock:
            left_out = self._budget.left_out()
        for (peer, statement), count in left_out:
            source = statement if peer is None else peer if peer == UNKNOWN_SOURCES else f"peer {self._label(peer)}"
            text = "left out %d log lines of %s: there were more than log_lines_per_second = %d"
            log.warning(text, count, source, self._per_second, extra=ONCE)


def _is_logged_once(record: logging.LogRecord) -> bool:
    return getattr(record, "once", False)


def _peer(record: logging.LogRecord) -> str | None:
    """Return the peer that caused a line; libraries log in any task."""
    if _is_logged_once(record):
        return None
    named: str | None = getattr(record, "cause", None)
    return named or (cause.get() if record.name.startswith("igd") else None)


def _is_important(record: logging.LogRecord) -> bool:
    return getattr(record, "important", False)


def escaped(text: str) -> str:
    """Return the text with escapes in place of line breaks and all other characters that do not print."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _indented(traceback: str) -> str:
    """Return a traceback of which no line can be taken for one of the log."""
    return "\n".join(f"    {escaped(line)}" for line in traceback.split("\n"))


def _cut(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= LONGEST else encoded[: LONGEST - 3].decode(errors="ignore") + "..."
