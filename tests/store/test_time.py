"""Leases, hold-downs, the epoch and BOOTID through restarts, reboots and clocks that are set."""

import contextlib
import os
import sqlite3
import tempfile
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from igd.core.mapping import (
    Change,
    Endpoint,
    Entry,
    Lease,
    Pinhole,
    TransportProtocol,
)
from igd.core.moment import RELEASED, Moment
from igd.core.table import HOLD_DOWN, HoldDown
from igd.store.leases import LeaseStore
from tests.store.opened import KEY, OTHER_KEY, START, TODAY, YEAR, Clocks, entry, opened


def test_the_epoch_begins_with_a_new_file(path: Path) -> None:
    with opened(path) as store:
        assert store.is_new
        assert store.epoch_began() == 1000.0
    path.write_bytes(b"damaged" * 1000)
    with opened(path, Moment("first", 1060.0, TODAY)) as store:
        assert store.is_new
        assert store.epoch_began() == 1060.0


def test_the_epoch_begins_again_with_another_address(path: Path) -> None:
    home, away = IPv4Address("60.60.60.1"), IPv4Address("60.60.60.9")
    with opened(path) as store:
        assert not store.record_address(home), "a new file had no address"
    clocks = Clocks(Moment("first", 1060.0, TODAY + 60))
    with opened(path, clocks) as store:
        assert not store.is_new
        assert not store.record_address(home)
        assert store.epoch_began() == 1000.0
        assert store.record_address(away)
        assert store.epoch_began() == 1060.0
        assert not store.record_address(away)


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (Moment("first", 1000.0, TODAY), 600.0),  # at once
        (Moment("first", 1100.0, TODAY + 100), 500.0),
        (Moment("first", 1100.0, TODAY + YEAR), 500.0),  # the wall clock was set
        (Moment("first", 1100.0, TODAY - YEAR), 500.0),
        (Moment("first", 2000.0, TODAY), -400.0),  # expired
        (Moment("second", 5.0, TODAY + 100), 500.0),  # a reboot
        (Moment("second", 5.0, TODAY + 1000), -400.0),
        (Moment("second", 5.0, TODAY - 1000), 600.0),
        (Moment("second", 5.0, 0.0), 600.0),  # without a battery-backed clock
        (Moment("second", 5.0, TODAY + 70 * YEAR), 600.0),
    ],
)
def test_what_is_left_of_leases_hold_downs_and_epoch_after_a_stop(path: Path, now: Moment, left: float) -> None:
    closed = entry(8044)
    with opened(path) as store:
        store.save([Change(None, entry()), Change(None, closed)])
        store.save([Change(closed, None)])
    for _again in range(2):  # the second start is within the boot of the first
        with opened(path, now) as store:
            (loaded,) = store.load()
            assert loaded.lease.expires - now.boottime == pytest.approx(left)
            held_down = {key: until - now.boottime for key, _, until in store.hold_downs()}
            assert held_down == ({closed.mapping.key: pytest.approx(left - 480)} if left > 480 else {})
            assert now.boottime - store.epoch_began() == pytest.approx(600 - left)


@pytest.mark.parametrize("boot", ["first", "second"])
def test_what_is_left_does_not_depend_on_how_often_igd_starts(path: Path, boot: str) -> None:
    """A daemon that crashes at each start must not count the stop again and again."""
    with opened(path) as store:
        store.save([Change(None, entry())])
    for passed in (100, 200, 300):
        if (child := os.fork()) == 0:
            LeaseStore(path, Clocks(Moment(boot, 1000.0 + passed, TODAY + passed)))
            os._exit(9)
        os.waitpid(child, 0)
    with opened(path, Moment("third", 5.0, TODAY + 400)) as store:
        assert [each.lease.expires - 5.0 for each in store.load()] == [pytest.approx(200.0)]


STEPS = [YEAR, -YEAR / 10, 3600.0, -3600.0, 5.0]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("killed", [False, True])
def test_a_reboot_after_the_wall_clock_was_set_counts_the_true_time(path: Path, step: float, *, killed: bool) -> None:
    """It was set after the lease was saved, and igd was stopped, or had noticed it when it was killed."""
    clocks = Clocks()
    if (child := os.fork()) == 0:
        store = LeaseStore(path, clocks)
        store.save([Change(None, entry())])
        clocks.now = Moment("first", 1100.0, TODAY + 100 + step)
        if killed:
            store.record_time()
        else:
            store.close()
        os._exit(9)
    os.waitpid(child, 0)
    with opened(path, Moment("second", 5.0, TODAY + 200 + step)) as store:
        assert [each.lease.expires - 5.0 for each in store.load()] == [pytest.approx(400.0)]
        assert 5.0 - store.epoch_began() == pytest.approx(200.0)


class AnyHistory(RuleBasedStateMachine):
    """One lease and the epoch through any sequence of stops, kills, reboots and settings of the wall clock."""

    GRANTED: ClassVar = 600.0

    def __init__(self) -> None:
        super().__init__()
        self.clocks = Clocks()
        self.directory = tempfile.TemporaryDirectory()
        self.start()
        self.store.save([Change(None, entry(expires=1000.0 + self.GRANTED))])
        self.observe()

    def start(self) -> None:
        """Open the store, as a start of igd does."""
        self.store = LeaseStore(Path(self.directory.name, "leases.sqlite"), self.clocks)

    def observe(self) -> None:
        """Remember what is left of the lease, and the epoch."""
        (held,) = self.store.load()
        self.left = held.lease.expires - self.clocks.now.boottime
        self.epoch = self.clocks.now.boottime - self.store.epoch_began()

    def pass_(self, boottime: float, wall: float) -> None:
        """Let time pass on both clocks."""
        now = self.clocks.now
        self.clocks.now = Moment(now.boot, now.boottime + boottime, max(0.0, now.wall + wall))
        self.left -= boottime
        self.epoch += boottime

    @rule(seconds=st.floats(0.0, 400.0), step=st.floats(-5e7, 5e7))
    def set_wall_clock(self, seconds: float, step: float) -> None:
        """Run on, or be suspended, and have the wall clock set meanwhile."""
        self.pass_(seconds, seconds + step)

    @rule()
    def notice(self) -> None:
        """Look at the wall clock, as igd does every five seconds."""
        self.store.record_time()

    @rule(seconds=st.floats(0.0, 400.0), step=st.floats(-5e7, 5e7), killed=st.booleans())
    def restart(self, *, seconds: float, step: float, killed: bool) -> None:
        """Restart within a boot."""
        if killed:
            self.store._give_up()
        else:
            self.store.close()
        self.pass_(seconds, seconds + step)
        self.start()

    @rule(off=st.floats(0.0, 400.0), boottime=st.floats(1.0, 1e5), wall=st.sampled_from([None, 0.0, 9.3e8, 4e9]))
    def reboot(self, off: float, boottime: float, wall: float | None) -> None:
        """Stop, and boot with a right or a wrong clock."""
        left, epoch, before = self.left, self.epoch, self.clocks.now.wall
        self.store.close()
        self.clocks.now = Moment(f"{self.clocks.now.boot}'", boottime, before + off if wall is None else wall)
        self.start()
        self.observe()
        assert self.left <= left + 1.1
        assert self.epoch >= epoch - 1.1  # the time is recorded to the second
        if wall is None and before > RELEASED:
            assert self.left == pytest.approx(left - off, abs=1.1)

    @invariant()
    def within_a_boot_every_second_counts_once(self) -> None:
        """Compare the store with the clock of leases."""
        left, epoch = self.left, self.epoch
        self.observe()
        assert self.left == pytest.approx(left, abs=1e-3)
        assert self.epoch == pytest.approx(epoch, abs=1e-3)
        assert self.left <= self.GRANTED + 1e-3

    def teardown(self) -> None:
        """Remove the file."""
        self.store.close()
        self.directory.cleanup()


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)


def test_leases_written_in_1999_are_kept_in_full(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(path, Moment("first", 1000.0, 930_000_000.0)) as store:
        store.save([Change(None, entry())])
    assert not caplog.records
    with opened(path, Moment("second", 5.0, TODAY)) as store:
        assert [each.lease.expires - 5.0 for each in store.load()] == [pytest.approx(600.0)]
    assert "the wall clock is or was wrong" in caplog.text


def test_the_time_is_recorded_only_if_the_wall_clock_was_set(path: Path) -> None:
    clocks = Clocks()
    store = LeaseStore(path, clocks)
    for now, recorded in (
        (Moment("first", 1100.0, TODAY + 100), START),
        (Moment("first", 1200.0, TODAY + 3800), Moment("first", 1200.0, TODAY + 3800)),
    ):
        clocks.now = now
        store.record_time()
        store._give_up()  # as a kill does
        with contextlib.closing(sqlite3.connect(path)) as database:
            row = database.execute("SELECT boot, boottime, wall FROM state").fetchone()
        assert Moment(*row) == recorded
        store = LeaseStore(path, clocks)
    store.close()


def test_a_closed_port_is_held_down_for_its_last_holder(path: Path) -> None:
    clocks = Clocks()
    other = replace(entry(1), mapping=replace(entry(1).mapping, peer=OTHER_KEY))
    with opened(path, clocks) as store:
        store.save([Change(None, entry(1)), Change(None, entry(2))])
        store.save([Change(entry(1), None)])
        clocks.now = Moment("first", 1060.0, TODAY + 60)
        store.save([Change(entry(2), None)])
        store.save([Change(None, other), Change(other, None)])
    with opened(path, clocks) as store:
        assert store.hold_downs() == [
            HoldDown((TransportProtocol.UDP, 1), OTHER_KEY, 1060.0 + HOLD_DOWN),
            HoldDown((TransportProtocol.UDP, 2), KEY, 1060.0 + HOLD_DOWN),
        ]
        clocks.now = Moment("first", 1060.0 + HOLD_DOWN, TODAY + 180)
        assert store.hold_downs() == []


def test_a_closed_pinhole_is_not_held_down(path: Path) -> None:
    pinhole = Entry(Pinhole(TransportProtocol.TCP, Endpoint(IPv6Address("2001:db8::1"), 80), KEY), Lease(1600.0))
    with opened(path) as store:
        store.save([Change(None, pinhole), Change(pinhole, None)])
    with opened(path) as store:
        assert store.hold_downs() == []


def test_outdated_hold_downs_do_not_accumulate(path: Path) -> None:
    clocks = Clocks()
    with opened(path, clocks) as store:
        for port in range(1, 1001):
            clocks.now = Moment("first", 1000.0 + 10 * port, TODAY + 10 * port)
            store.save([Change(None, entry(port)), Change(entry(port), None)])
    with contextlib.closing(sqlite3.connect(path)) as database:
        (rows,) = database.execute("SELECT count(*) FROM hold_down").fetchone()
    assert rows <= 2 * HOLD_DOWN / 10


def test_bootid_grows_whatever_the_wall_clock_shows(path: Path) -> None:
    found = []
    for wall in (TODAY, TODAY + 60, 0.0, TODAY - YEAR, TODAY + 70 * YEAR, TODAY + 120):
        with opened(path, Moment("first", 1000.0, wall)) as store:
            found += [store.next_bootid(), store.next_bootid()]
    assert found == sorted(set(found))
    assert found[0] == int(TODAY)
    assert found[-1] < 2**31
