"""Leases, hold-downs and the epoch survive clocks that are set, restarts, reboots and suspend."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from igd.core.table import HOLD_DOWN
from tests.e2e import stored
from tests.e2e.clocks import Clocks, in_time_namespace
from tests.e2e.serving import C1, C2, GATEWAY, held, igd, mappings, natpmpc, serving, start, upnpc
from tests.lab import Lab, Process, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

DAY = 86400
YEAR = 365 * DAY
IN_1999 = 930_000_000
LEASE = 3600
ERROR = 2  # seconds: of rounding, and what a client tolerates of the epoch (RFC 6887 §8.5)
BACKENDS = ["nftables", "iptables"]


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("gcc", "nft", "upnpc", "natpmpc", "iptables-legacy-save")


class Observer:
    """Compares a mapping of UDP 8043, and the epoch, with the time that passes for a client.

    The mapping has LEASE seconds when it is made; `passed` is what passes besides the time of the test.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._begin = time.monotonic()
        _, self._epoch = natpmpc(lab.c1, "8043", "8043", "udp", str(LEASE))
        self._uncertain = time.monotonic() - self._begin + ERROR
        self._uncounted = 0.0

    def may_not_have_counted(self) -> None:
        """Allow that the time until now does not count: igd was started under a wrong clock."""
        self._uncounted = time.monotonic() - self._begin

    def check(self, *, passed: int = 0) -> None:
        """Assert that lease and epoch are as of `passed` seconds later."""
        real = time.monotonic() - self._begin
        (mapping,) = [each for each in mappings(self._lab) if each["external_port"] == 8043]
        _, epoch = natpmpc(self._lab.c2, "8044", "8044", "udp", "60")
        uncertain = self._uncertain + time.monotonic() - self._begin - real
        for counted in (LEASE - mapping["lease"], epoch - self._epoch):
            assert real + passed - self._uncounted - uncertain <= counted <= real + passed + uncertain


@contextmanager
def running(lab: Lab, clocks: Clocks, *, killed: bool = False, config: str = "") -> Iterator[Process]:
    """Run igd under these clocks, and stop or kill it."""
    with start(lab, config, clocks.command) as process:
        yield process
        process.signal(signal.SIGKILL if killed else signal.SIGTERM)
        assert process.wait() == (-signal.SIGKILL if killed else 0), process.lines


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("step", [YEAR, -YEAR])
def test_a_wall_clock_that_is_set_changes_nothing(lab: Lab, step: int, *, killed: bool, backend: str) -> None:
    clocks = Clocks(lab.srv)
    config = f'[firewall]\nbackend = "{backend}"\n'
    with running(lab, clocks, killed=killed, config=config):
        observer = Observer(lab)
        clocks.set_wall(by=step)
        observer.check()
    with running(lab, clocks, killed=killed, config=config):
        observer.check()
    clocks.set_wall(by=-2 * step)
    with running(lab, clocks, killed=killed, config=config):
        observer.check()


def test_an_hour_is_an_hour_when_the_clock_was_set_before_a_reboot(lab: Lab) -> None:
    """NTP sets the clock after the lease was stored, and the power fails."""
    clocks = Clocks(lab.srv)
    clocks.set_wall(by=-YEAR // 2)
    with running(lab, clocks, killed=True) as process:
        observer = Observer(lab)
        clocks.set_wall(by=YEAR // 2)
        process.wait_for("the wall clock was set")
    clocks.reboot(600)
    with running(lab, clocks):
        observer.check(passed=600)


@pytest.mark.parametrize("killed", [False, True])
def test_a_reboot_counts_the_time_in_between(lab: Lab, *, killed: bool) -> None:
    clocks = Clocks(lab.srv)
    with running(lab, clocks, killed=killed):
        observer = Observer(lab)
        upnpc(lab.c2, "-a", C2, "8050", "8050", "tcp", "500")
    clocks.reboot(600)
    with running(lab, clocks):
        observer.check(passed=600)
        assert ("TCP", 8050) not in held(lab)


@pytest.mark.parametrize("killed", [False, True])
def test_a_reboot_in_1999_takes_nothing_from_the_leases(lab: Lab, *, killed: bool) -> None:
    clocks = Clocks(lab.srv)
    with running(lab, clocks, killed=killed):
        observer = Observer(lab)
    clocks.reboot(600)
    clocks.set_wall(to=IN_1999)
    with start(lab, command=clocks.command) as process:
        assert any("the wall clock is or was wrong" in line for line in process.lines)
        observer.may_not_have_counted()
        observer.check()
        clocks.set_wall(to=int(time.time()) + 700)
        process.wait_for("the wall clock was set")
        observer.check()
        process.signal(signal.SIGKILL)
        process.wait()
    with running(lab, clocks, killed=killed):
        observer.check()
    clocks.reboot(300)
    with running(lab, clocks):
        observer.check(passed=300)


def test_what_was_stored_in_1999_is_kept(lab: Lab) -> None:
    clocks = Clocks(lab.srv)
    clocks.set_wall(to=IN_1999)
    with running(lab, clocks):
        observer = Observer(lab)
    clocks.reboot(600)
    clocks.set_wall(to=int(time.time()) + 600)
    with running(lab, clocks):
        observer.may_not_have_counted()
        observer.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_leases_that_ran_out_during_a_suspend_end_soon_after_it(lab: Lab, backend: str) -> None:
    clocks = Clocks(lab.srv)
    with running(lab, clocks, config=f'[firewall]\nbackend = "{backend}"\n'):
        upnpc(lab.c1, "-a", C1, "8042", "8042", "tcp", "3600")
        upnpc(lab.c2, "-a", C2, "8050", "8050", "tcp", str(2 * DAY))
        resumed = time.monotonic()
        clocks.suspend(DAY)
        until(lambda: [each["external_port"] for each in mappings(lab)] == [8050])
        assert time.monotonic() - resumed < 30  # five seconds, on a machine that is not busy
        (mapping,) = mappings(lab)
        assert mapping["lease"] == pytest.approx(DAY, abs=60)


def test_a_suspend_counts_for_lease_and_epoch(lab: Lab) -> None:
    clocks = Clocks(lab.srv)
    with running(lab, clocks):
        observer = Observer(lab)
        clocks.suspend(1200)
        observer.check(passed=1200)
    clocks.suspend(600)
    with running(lab, clocks):
        observer.check(passed=1800)


ENDLESS = "[leases]\ndefault = 60\nmax = 3600\n"


@pytest.mark.parametrize("step", [YEAR, -YEAR])
def test_an_endless_lease_depends_on_the_peer_and_not_on_the_wall_clock(lab: Lab, step: int) -> None:
    """It is renewed from the last handshake, which `wg` shows in wall time, for 180 seconds."""
    clocks = Clocks(lab.srv)
    with running(lab, clocks, config=ENDLESS):
        upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "0")
        clocks.set_wall(by=step)
        clocks.suspend(70)
        until(lambda: [each["lease"] > 60 for each in mappings(lab)] == [True])

        def ended() -> bool:
            """The tunnel is alive: a handshake comes every two minutes, and may come now."""
            clocks.suspend(200)
            return not mappings(lab)

        until(ended)


def test_a_time_namespace_is_a_boot_of_its_own(lab: Lab) -> None:
    """A container may have another CLOCK_BOOTTIME each time, under one boot id."""
    with serving(lab):
        observer = Observer(lab)
    for boottime in (5_000_000, 1_000_000):
        with start(lab, command=in_time_namespace(boottime)):
            observer.check()
            igd(lab, "stop", "wg0")
    with serving(lab):
        observer.check()


@pytest.mark.parametrize("killed", [False, True])
def test_a_closed_port_is_held_down_across_a_restart(lab: Lab, *, killed: bool) -> None:
    clocks = Clocks(lab.srv)
    with running(lab, clocks, killed=killed):
        assert natpmpc(lab.c1, "8043", "7000", "udp", "300")[0] == 8043
        lab.c1.run("natpmpc", "-g", GATEWAY, "-a", "8043", "7000", "udp", "0")
    clocks.set_wall(by=YEAR)
    with running(lab, clocks, killed=killed):
        assert natpmpc(lab.c2, "8043", "7001", "udp", "300")[0] != 8043
        clocks.suspend(70)
    clocks.reboot(5)
    with running(lab, clocks):
        assert natpmpc(lab.c2, "8043", "7002", "udp", "300")[0] != 8043
        clocks.suspend(int(HOLD_DOWN) - 70 - 5)
        assert natpmpc(lab.c2, "8043", "7003", "udp", "300")[0] == 8043


_TO_VERSION_2 = (
    "ALTER TABLE state RENAME TO state_3",
    "CREATE TABLE state (began REAL NOT NULL, address TEXT NOT NULL)",
    "INSERT INTO state SELECT began - boottime + wall, address FROM state_3",
    "UPDATE lease SET expires = expires - (SELECT boottime FROM state_3) + (SELECT wall FROM state_3)",
    "DROP TABLE state_3",
    "ALTER TABLE lease DROP COLUMN unique_id",
    "DROP TABLE hold_down",
    "PRAGMA user_version = 2",
    "PRAGMA application_id = 0",
)


def test_a_file_of_the_second_version_goes_on(lab: Lab) -> None:
    with serving(lab):
        observer = Observer(lab)
    for statement in _TO_VERSION_2:
        stored.change(lab, statement)
    for _again in range(2):
        with serving(lab):
            observer.check()


def test_bootid_grows_although_the_clock_goes_back(lab: Lab) -> None:
    clocks = Clocks(lab.srv)
    found = []
    for step in (0, -YEAR, -YEAR, 3 * YEAR):
        clocks.set_wall(by=step)
        with running(lab, clocks):
            found.append(stored.read(lab, "SELECT bootid FROM state"))
    assert found == sorted(set(found))
