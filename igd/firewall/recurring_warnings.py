"""Logs what repeated checks find, without repetition."""

import logging
from collections.abc import Iterable


class RecurringWarnings:
    """Logs each warning when it appears, and again only after a check that did not find it."""

    def __init__(self, logger: logging.Logger, text: str = "%s") -> None:
        self._logger = logger
        self._text = text
        self._logged: list[str] = []

    def log(self, current: Iterable[str]) -> None:
        """Log those of the current warnings that the previous call did not have; `text` has a %s for each."""
        current = list(dict.fromkeys(current))
        for warning in current:
            if warning not in self._logged:
                self._logger.warning(self._text, warning)
        self._logged = current
