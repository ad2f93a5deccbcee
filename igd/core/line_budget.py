"""How many log lines each subject may cause: a rate limit, and a count of what was left out."""

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

from igd.core.rate_limit import RateLimit

Subject = TypeVar("Subject", bound=Hashable)

BURST_SECONDS = 2.0
"""A quiet subject may cause as many lines at once as in this time. Half of them are kept for important lines."""


class LineBudget(Generic[Subject]):
    """Admits `per_second` lines per second for each subject, and counts the others."""

    def __init__(self, per_second: int) -> None:
        self._limit = RateLimit(per_second)
        self._left_out: Counter[Subject] = Counter()

    def admit(self, subject: Subject, now: float, *, lines: int = 1, important: bool = False) -> bool:
        """Return whether so many lines of `subject` may be logged at `now` (seconds); count them as one if not."""
        admitted = self._limit.admit(subject, now, lines, BURST_SECONDS if important else BURST_SECONDS / 2)
        if not admitted:
            self._left_out[subject] += 1
        return admitted

    def left_out(self) -> list[tuple[Subject, int]]:
        """Return how many lines of which subjects were left out since the last call."""
        left_out, self._left_out = self._left_out, Counter()
        return left_out.most_common()
