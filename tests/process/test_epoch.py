"""The epoch time starts again when mappings are lost, and not at every start (RFC 6887 §8.5)."""

import contextlib
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igd.process.epoch import Epoch
from igd.store.leases import LeaseStore
from tests.gateway_harness import Clock

ONE, OTHER = IPv4Address("60.60.60.1"), IPv4Address("61.61.61.1")


@pytest.fixture
def wall_clock() -> Clock:
    return Clock(1_700_000_000.0)


@pytest.fixture
def store(tmp_path: Path, wall_clock: Clock) -> Iterator[LeaseStore]:
    with opened(tmp_path, wall_clock) as store:
        yield store


def opened(directory: Path, wall_clock: Clock) -> contextlib.closing[LeaseStore]:
    return contextlib.closing(LeaseStore(directory / "leases.sqlite", clock=time.monotonic, wall_clock=wall_clock))


def test_a_new_store_has_lost_the_mappings(store: LeaseStore) -> None:
    assert Epoch(store, ONE).lost


def test_the_epoch_survives_a_restart(tmp_path: Path, store: LeaseStore, wall_clock: Clock) -> None:
    Epoch(store, ONE)
    store.close()
    wall_clock.now += 1000
    with opened(tmp_path, wall_clock) as reopened:
        epoch = Epoch(reopened, ONE)
    assert not epoch.lost
    assert epoch.seconds() >= 1000


def test_another_address_loses_the_mappings(store: LeaseStore, wall_clock: Clock) -> None:
    epoch = Epoch(store, ONE)
    wall_clock.now += 100_000
    assert not epoch.update(None)
    assert not epoch.update(ONE)
    assert epoch.seconds() >= 100_000
    assert epoch.update(OTHER)
    assert epoch.seconds() < 100_000
