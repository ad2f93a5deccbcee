"""How often may one peer ask? A token bucket a peer."""

from collections.abc import Hashable


class RateLimit:
    """Admits `per_second` events a second and key, and bursts of as many; keys that rest are forgotten."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        # The moment at which the bucket will be full again says all: no count and no second number are needed.
        self._full_at: dict[Hashable, float] = {}
        self._swept_at = 0.0

    def admit(self, key: Hashable, now: float, cost: int = 1) -> bool:
        """Count one event at `now` (seconds), or as many as `cost` says, a second's at most; False: it is too much.

        What is too much is not counted.
        """
        if now - self._swept_at > 60:
            self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
            self._swept_at = now
        full_at = max(now, self._full_at.get(key, now)) + min(cost / self._per_second, 1)
        if full_at - now > 1 + 0.1 / self._per_second:  # shares of a second add up to almost one: no event is lost
            return False
        self._full_at[key] = full_at
        return True
