"""Logs what repeated checks find: when it begins and when it ends."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from igd.log_lines import ONCE


class RecurringWarnings:
    """Logs each warning when a check first finds it, and again when a check no longer finds it."""

    def __init__(self, logger: logging.Logger, text: str = "%s") -> None:
        self._logger = logger
        self._text = text
        self._ended = f"no longer: {text}"
        self._logged: list[str] = []

    def log(self, current: Iterable[str]) -> None:
        """Log how the current warnings differ from those of the previous call; `text` has a %s for each."""
        current = list(dict.fromkeys(current))
        for warning in self._logged:
            if warning not in current:
                without_remedy = warning.partition("; ")[0]
                self._logger.info(self._ended, without_remedy, extra=ONCE)
        for warning in current:
            if warning not in self._logged:
                self._logger.warning(self._text, warning, extra=ONCE)
        self._logged = current

    @contextmanager
    def catching(self, error: type[Exception]) -> Iterator[None]:
        """Catch and log an error of this type that ends the block; a block without one ends the last error."""
        try:
            yield
        except error as caught:
            self.log([str(caught)])
        else:
            self.log([])
