"""How much time has passed, by clocks that may be wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.moment import LONGEST_STOP, RELEASED, Moment, passed, shift, was_set

TODAY = 1_900_000_000.0  # in 2030
IN_1999, IN_2099 = 930_000_000.0, 4_070_908_800.0
YEAR = 365 * 86400.0

STOP = Moment("first", 5000.0, TODAY)


@pytest.mark.parametrize(
    ("since", "now", "seconds"),
    [
        # within a boot: the wall clock does not matter
        (STOP, Moment("first", 5060.0, TODAY + 60), 60.0),
        (STOP, Moment("first", 5060.0, TODAY + YEAR), 60.0),
        (STOP, Moment("first", 5060.0, TODAY - YEAR), 60.0),
        (STOP, Moment("first", 5060.0, IN_1999), 60.0),
        (Moment("first", 5000.0, IN_2099), Moment("first", 5060.0, 0.0), 60.0),
        (STOP, Moment("first", 5000.0, TODAY + YEAR), 0.0),
        # after a reboot: the wall clock, if it can be right
        (STOP, Moment("second", 20.0, TODAY + 60), 60.0),
        (STOP, Moment("second", 9000.0, TODAY + 60), 60.0),
        (STOP, Moment("second", 20.0, TODAY - YEAR / 10), 0.0),  # set back, or restored from a file at boot
        (STOP, Moment("second", 20.0, IN_1999), None),
        (STOP, Moment("second", 20.0, 0.0), None),
        (Moment("first", 5000.0, IN_1999), Moment("second", 20.0, TODAY), None),
        (Moment("first", 5000.0, IN_1999), Moment("second", 20.0, IN_1999 + 60), None),
        (Moment("first", 5000.0, RELEASED - 1), Moment("second", 20.0, TODAY), None),
        (Moment("first", 5000.0, IN_2099), Moment("second", 20.0, TODAY), 0.0),
        (STOP, Moment("second", 20.0, IN_2099), None),
        (STOP, Moment("second", 20.0, TODAY + LONGEST_STOP), LONGEST_STOP),
        # the same name, but the clock has gone back: another time namespace, or a copied file
        (STOP, Moment("first", 20.0, TODAY + 60), 60.0),
        (STOP, Moment("first", 20.0, IN_1999), None),
        # boots without a name
        (Moment("", 5000.0, TODAY), Moment("", 5010.0, TODAY + 60), 60.0),
        (STOP, Moment("", 5010.0, TODAY + 60), 60.0),
    ],
)
def test_the_time_between_two_moments(since: Moment, now: Moment, seconds: float | None) -> None:
    assert passed(since, now) == seconds


walls = st.floats(0.0, 5e9) | st.floats(RELEASED, TODAY + LONGEST_STOP)
boottimes = st.floats(0.0, 1e8)
moments = st.builds(Moment, st.sampled_from(["", "first", "second"]), boottimes, walls)


@given(since=moments, now=moments, left=st.floats(-1e6, 1e6))
def test_no_lease_has_more_left_than_before(since: Moment, now: Moment, left: float) -> None:
    expires = since.boottime + left + shift(since, now)
    assert expires - now.boottime <= left + 1e-6


@given(since=moments, seconds=st.floats(0.0, 1e8), wall=walls, expires=st.floats(-1e6, 1e6))
def test_within_a_boot_nothing_moves_whatever_the_wall_clock_shows(
    since: Moment, seconds: float, wall: float, expires: float
) -> None:
    since = Moment("first", since.boottime, since.wall)
    now = Moment("first", since.boottime + seconds, wall)
    assert expires + shift(since, now) == expires


@given(since=moments, now=moments, epoch=st.floats(0.0, 1e6))
def test_the_epoch_never_goes_back(since: Moment, now: Moment, epoch: float) -> None:
    began = since.boottime - epoch + shift(since, now)
    assert now.boottime - began >= epoch - 1e-6


@given(since=moments, boottime=boottimes, stop=st.floats(0.0, LONGEST_STOP / 2))
def test_a_right_wall_clock_counts_the_stop(since: Moment, boottime: float, stop: float) -> None:
    since = Moment("first", since.boottime, TODAY)
    now = Moment("second", boottime, TODAY + stop)
    began = since.boottime - 1000.0 + shift(since, now)
    assert now.boottime - began == pytest.approx(1000.0 + stop, abs=1e-3)


@pytest.mark.parametrize(
    ("boottime", "wall", "was"), [(60.0, 60.0, False), (60.0, 61.0, False), (60.0, 61.5, True), (60.0, -5.0, True)]
)
def test_whether_the_wall_clock_was_set(boottime: float, wall: float, *, was: bool) -> None:
    assert was_set(STOP, Moment("first", 5000.0 + boottime, TODAY + wall)) is was
