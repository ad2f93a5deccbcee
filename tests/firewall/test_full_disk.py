"""The store's disk is full: who asked is told so, the kernel gives up what it had done, and what has to end does."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from igd.core.request import Refusal
from tests.firewall.small_disk import SmallDisk, mounted
from tests.firewall.test_kernel_properties import HELD, Running
from tests.firewall.three_hosts import new_namespace
from tests.firewall.whole_gateway import (
    CLOSE,
    CLOSE_6,
    CROWD,
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


@pytest.fixture
async def on_a_small_disk(tmp_path: Path) -> AsyncIterator[tuple[SmallDisk, Running]]:
    """Return a gateway as of `on_nftables`, and the disk on which its store is."""
    with new_namespace(), mounted(tmp_path, 1 << 20) as disk:
        gateway = Running("nftables", tmp_path / "leases.sqlite")
        async with serving(gateway):
            yield disk, gateway


async def _fill(disk: SmallDisk, gateway: Running) -> None:
    """Leave no room on the disk, nor in the files that the store has there."""
    disk.leave(0)
    invite(gateway)
    for port in range(3000, 3064):
        if await ask(gateway, replace(opening(port, C2), description="." * 4000)) == REFUSED:
            return
    pytest.fail("the disk is not full")


async def test_a_full_disk_refuses_what_is_new_and_takes_back_what_the_kernel_had_done(
    on_a_small_disk: tuple[SmallDisk, Running],
) -> None:
    disk, gateway = on_a_small_disk
    await _fill(disk, gateway)
    before = gateway.harness.table
    for request in (OPEN, OPEN_6):
        assert await ask(gateway, request) == REFUSED
        assert gateway.harness.table == before
        gateway.check()
    disk.leave(1 << 18)
    for request in (OPEN, OPEN_6):
        assert not isinstance(await ask(gateway, request), Refusal)
        gateway.check()


async def test_a_full_disk_renews_and_closes_and_saves_that_later(on_a_small_disk: tuple[SmallDisk, Running]) -> None:
    disk, gateway = on_a_small_disk
    await _fill(disk, gateway)
    for request in (RENEW, CLOSE, CLOSE_6):
        assert not isinstance(await ask(gateway, request), Refusal)
    assert ("udp", 1024) not in {(protocol, port) for protocol, port, _ in HELD["nftables"]()}
    disk.leave(1 << 18)
    await gateway.harness.ledger.settle_store()
    gateway.check()


async def test_what_does_not_fit_on_the_disk_refuses_none_of_its_neighbours(
    on_a_small_disk: tuple[SmallDisk, Running],
) -> None:
    disk, gateway = on_a_small_disk
    invite(gateway)
    large = replace(opening(3000, C2), description="." * 500_000)
    disk.leave(200_000)
    small: list[Changing] = [CLOSE, *(opening(2000 + n, each) for n, each in enumerate(CROWD[:6]))]
    replies = await asyncio.gather(*(ask(gateway, request) for request in (*small[:4], large, *small[4:])))
    assert [reply == REFUSED for reply in replies] == [False] * 4 + [True] + [False] * 3
    gateway.check()
    assert len(gateway.harness.table) == 7


async def test_a_full_disk_keeps_no_port_open(on_a_small_disk: tuple[SmallDisk, Running]) -> None:
    """What runs out does so all the same; the store hears of it when there is room."""
    disk, gateway = on_a_small_disk
    harness = gateway.harness
    await _fill(disk, gateway)
    harness.clock.now = gateway.clock.now = harness.clock.now + 301
    await harness.maintenance.wake()
    assert HELD["nftables"]() == set()
    assert not harness.table
    disk.leave(1 << 18)
    await harness.ledger.settle_store()
    assert not gateway.store.load()
    gateway.check()
