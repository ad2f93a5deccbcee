"""A rate limit: one token bucket for each key."""

from collections.abc import Hashable


class RateLimit:
    """Admits `per_second` events per second for each key, and bursts of as many; full buckets are dropped."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        # A bucket is stored only as the time at which it is full again.
        self._full_at: dict[Hashable, float] = {}
        self._swept_at = 0.0

    def admit(self, key: Hashable, now: float, cost: int = 1) -> bool:
        """Count one event at `now` (seconds), or `cost` events but at most one second's worth.

        Return False, and count nothing, if the limit is exceeded.
        """
        if now - self._swept_at > 60:
            self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
            self._swept_at = now
        full_at = self._full_after(key, now, cost)
        if self._is_exceeded(full_at, now):
            return False
        self._full_at[key] = full_at
        return True

    def is_exceeded(self, key: Hashable, now: float) -> bool:
        """Return whether `admit` would return False for one event now."""
        return self._is_exceeded(self._full_after(key, now, 1), now)

    def _full_after(self, key: Hashable, now: float, cost: int) -> float:
        """Return when the bucket is full again if it pays for these events."""
        return max(now, self._full_at.get(key, now)) + min(cost / self._per_second, 1)

    def _is_exceeded(self, full_at: float, now: float) -> bool:
        return full_at - now > 1 + 0.1 / self._per_second  # tolerates rounding, so that a full burst is admitted
