"""The epoch time starts again when mappings are lost, and not at every start (RFC 6887 §8.5)."""

import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igd.core.moment import Moment
from igd.process.epoch import Epoch
from igd.store.leases import LeaseStore

ONE, OTHER = IPv4Address("60.60.60.1"), IPv4Address("61.61.61.1")


class Clocks:
    """The clocks of a host; a test sets them."""

    def __init__(self) -> None:
        self.boot, self.boottime, self.wall = "first", 5000.0, 1_900_000_000.0

    def moment(self) -> Moment:
        """Return this moment."""
        return Moment(self.boot, self.boottime, self.wall)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.boottime += seconds
        self.wall += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@contextlib.contextmanager
def counting(directory: Path, clocks: Clocks, announced: IPv4Address | None = ONE) -> Iterator[Epoch]:
    with contextlib.closing(LeaseStore(directory / "leases.sqlite", clocks.moment)) as store:
        yield Epoch(store, announced, lambda: clocks.boottime)


def test_a_new_store_has_lost_the_mappings(tmp_path: Path, clocks: Clocks) -> None:
    with counting(tmp_path, clocks) as epoch:
        assert epoch.lost
        assert epoch.seconds() == 0


@pytest.mark.parametrize("step", [0.0, 3e7, -3e7, 3600.0, -1.8e9])
@pytest.mark.parametrize("when", ["running", "stopped", "both"])
def test_the_epoch_counts_the_seconds_of_a_boot_whatever_the_wall_clock_shows(
    tmp_path: Path, clocks: Clocks, step: float, when: str
) -> None:
    with counting(tmp_path, clocks) as epoch:
        clocks.sleep(1000)
        clocks.wall += step * (when != "stopped")
        clocks.sleep(1000)  # or a suspend
        assert epoch.seconds() == 2000
    clocks.sleep(500)
    clocks.wall += step * (when != "running")
    with counting(tmp_path, clocks) as epoch:
        assert not epoch.lost
        assert epoch.seconds() == 2500
        clocks.sleep(1.0)
        assert epoch.seconds() == 2501


@pytest.mark.parametrize(("wall", "epoch"), [(3600.0, 5600), (-3600.0, 2000), (-1.8e9, 2000), (2e9, 2000)])
def test_the_epoch_goes_on_after_a_reboot(tmp_path: Path, clocks: Clocks, wall: float, epoch: int) -> None:
    with counting(tmp_path, clocks):
        clocks.sleep(2000)
    clocks.boot, clocks.boottime = "second", 20.0
    clocks.wall += wall
    with counting(tmp_path, clocks) as resumed:
        assert not resumed.lost
        assert resumed.seconds() == epoch


def test_another_address_loses_the_mappings(tmp_path: Path, clocks: Clocks) -> None:
    with counting(tmp_path, clocks) as epoch:
        clocks.sleep(100_000)
        assert not epoch.update(None)
        assert not epoch.update(ONE)
        assert epoch.seconds() == 100_000
        assert epoch.update(OTHER)
        assert epoch.seconds() == 0
