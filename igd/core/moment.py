"""Moments of a host, and the time between two of them, which its wall clock may misstate."""

from dataclasses import dataclass
from datetime import UTC, datetime

RELEASED = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
"""This version is not older: a wall clock that shows an earlier date is wrong. A host without a battery-backed clock
boots in 1970, in 1999 or on the date of its system's release, until NTP sets the clock."""

LONGEST_STOP = 10 * 365 * 86400.0
"""Seconds that a host may plausibly have been off: if the wall clock shows more, it is or was wrong."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment on both clocks of a host, in seconds.

    `boottime` is the clock of leases: it cannot be set and counts suspend, but it begins anew with each boot. `boot`
    names the boot; empty: unknown, and equal to no other. `wall` counts from 1970, and may be set at any time.
    """

    boot: str
    boottime: float
    wall: float


def passed(since: Moment, now: Moment) -> float | None:
    """Return the seconds from `since` to `now`, never negative; None if nothing can tell."""
    if since.boot and since.boot == now.boot and since.boottime <= now.boottime:
        return now.boottime - since.boottime
    if min(since.wall, now.wall) < RELEASED or now.wall - since.wall > LONGEST_STOP:
        return None
    return max(0.0, now.wall - since.wall)  # set back: the true time is unknown, but short


def shift(since: Moment, now: Moment) -> float:
    """Return what turns a boottime of the boot of `since` into one of this boot: an addend in seconds.

    0 within a boot. What was left of a lease at `since` is shorter by the time that has passed; if that is unknown,
    all of it is left.
    """
    return now.boottime - since.boottime - (passed(since, now) or 0.0)


def was_set(since: Moment, now: Moment) -> bool:
    """Return whether the wall clock was set by more than a second between two moments of one boot."""
    return abs((now.wall - since.wall) - (now.boottime - since.boottime)) > 1.0
