"""A rate limit: one token bucket for each key."""

from collections.abc import Hashable


class RateLimit:
    """Admits `per_second` events per second for each key, and bursts of as many unless `admit` is told otherwise."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        # A bucket is stored only as the time at which it is full again; full ones are dropped.
        self._full_at: dict[Hashable, float] = {}
        self._swept_at = 0.0

    def admit(self, key: Hashable, now: float, cost: int = 1, burst: float = 1.0) -> bool:
        """Count one event at `now` (seconds), or `cost` events but at most one second's worth.

        Return False, and count nothing, if that is more than the bucket has; it holds the events of `burst` seconds.
        """
        if now - self._swept_at > 60:
            self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
            self._swept_at = now
        full_at = max(now, self._full_at.get(key, now)) + min(cost / self.per_second, 1)
        if full_at - now > burst + 0.1 / self.per_second:  # tolerates rounding, so that a full burst is admitted
            return False
        self._full_at[key] = full_at
        return True
