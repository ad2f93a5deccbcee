"""The store's disk is full: who asked is told so, the kernel gives up what it had done, and what has to end does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from igd.core.request import Mapped, Refusal
from tests.firewall.small_disk import SmallDisk
from tests.firewall.test_kernel_properties import HELD, Running
from tests.firewall.three_hosts import new_namespace
from tests.firewall.whole_gateway import (
    CLOSE,
    CLOSE_6,
    CROWD,
    INSIDE,
    OPEN,
    OPEN_6,
    REFUSED,
    RENEW,
    Changing,
    ask,
    invite,
    opening,
    serving,
)
from tests.gateway_harness import C2

pytestmark = pytest.mark.root


def _begin_on(directory: Path) -> tuple[SmallDisk, Running]:
    return SmallDisk(directory, 1 << 20), Running("nftables", directory / "leases.sqlite")


@pytest.fixture
async def on_a_small_disk(tmp_path: Path) -> AsyncIterator[tuple[SmallDisk, Running]]:
    """Return a gateway as of `on_nftables`, and the disk on which its store is."""
    with new_namespace(), ThreadPoolExecutor(1) as doomed:
        disk, gateway = doomed.submit(_begin_on, tmp_path).result()
        with contextlib.closing(disk):
            async with serving(gateway):
                yield disk, gateway


async def test_a_full_disk_refuses_and_takes_back_what_the_kernel_had_done(
    on_a_small_disk: tuple[SmallDisk, Running],
) -> None:
    disk, gateway = on_a_small_disk
    before = gateway.harness.table
    disk.leave(0)
    for request in (OPEN, RENEW, CLOSE, OPEN_6, CLOSE_6):
        assert await ask(gateway, request) == REFUSED
        assert gateway.harness.table == before
        gateway.check()
    disk.leave(1 << 18)
    for request in (OPEN, RENEW, CLOSE, OPEN_6, CLOSE_6):
        assert not isinstance(await ask(gateway, request), Refusal)
        gateway.check()


async def test_what_does_not_fit_on_the_disk_refuses_none_of_its_neighbours(
    on_a_small_disk: tuple[SmallDisk, Running],
) -> None:
    disk, gateway = on_a_small_disk
    invite(gateway)
    large = replace(opening(3000, C2), description="." * 200_000)
    disk.leave(200_000)
    small: list[Changing] = [CLOSE, *(opening(2000 + n, each) for n, each in enumerate(CROWD[:6]))]
    replies = await asyncio.gather(*(ask(gateway, request) for request in (*small[:4], large, *small[4:])))
    assert [reply == REFUSED for reply in replies] == [False] * 4 + [True] + [False] * 3
    gateway.check()
    assert len(gateway.harness.table) == 7


async def test_a_full_disk_keeps_no_port_open(on_a_small_disk: tuple[SmallDisk, Running]) -> None:
    """What runs out does so all the same; the store hears of it with the next thing that it can take."""
    disk, gateway = on_a_small_disk
    harness = gateway.harness
    assert isinstance(await ask(gateway, opening(2000, C2, 4000)), Mapped)
    disk.leave(0)
    harness.clock.now = gateway.clock.now = harness.clock.now + 301
    await harness.maintenance.wake()
    assert HELD["nftables"]() == {("udp", 2000, f"{C2}:{INSIDE}")}
    assert len(harness.table) == 1
    assert len(gateway.store.load()) == 3
    disk.leave(1 << 18)
    assert isinstance(await ask(gateway, opening(2001)), Mapped)
    gateway.check()
