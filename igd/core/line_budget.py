"""How many log lines each subject may cause: one token bucket each, and a count of what was left out."""

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

Subject = TypeVar("Subject", bound=Hashable)

BURST_SECONDS = 2.0
"""A quiet subject may cause as many lines at once as in this time. Half of them are kept for important lines."""


class LineBudget(Generic[Subject]):
    """Admits `per_second` lines per second for each subject, and counts the others."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._full_at: dict[Subject, float] = {}  # as in RateLimit
        self._left_out: Counter[Subject] = Counter()

    def admit(self, subject: Subject, now: float, *, lines: float = 1, important: bool = False) -> bool:
        """Return whether so many lines of `subject` may be logged at `now` (seconds); count them as one if not."""
        full_at = max(now, self._full_at.get(subject, now)) + lines / self._per_second
        allowed = BURST_SECONDS if important else BURST_SECONDS / 2
        if full_at - now > allowed + 0.1 / self._per_second:  # tolerates rounding
            self._left_out[subject] += 1
            return False
        self._full_at[subject] = full_at
        return True

    def left_out(self, now: float) -> list[tuple[Subject, int]]:
        """Return how many lines of which subjects were left out since the last call; forget subjects that are quiet."""
        self._full_at = {subject: full_at for subject, full_at in self._full_at.items() if full_at > now}
        left_out, self._left_out = self._left_out, Counter()
        return left_out.most_common()
