"""Links reads real interfaces in a network namespace, and reports their changes."""

import asyncio
import socket
import subprocess
import time
import tracemalloc
from asyncio import selector_events
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address, ip_interface

import pytest

from igd.host.links import LOOK_SECONDS, Links, LinkState
from tests.lab import Host

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def host(root: None) -> Iterator[Host]:
    with Host("links") as host:
        yield host


@pytest.fixture(autouse=True)
def network(host: Host) -> Iterator[None]:
    """Run the test, and the thread of its coroutines, in the host's network namespace."""
    with host.entered():
        ip("link", "add", "wan", "type", "veth", "peer", "name", "isp")
        try:
            yield
        finally:
            ip("link", "del", "wan")


def ip(*words: str, batch: str = "") -> None:
    subprocess.run(["ip", *words], input=batch, text=True, check=True)


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    async with Links() as links:
        yield links


async def test_a_link_is_absent_down_or_up(links: Links) -> None:
    assert await links.state("none") is None
    down = await links.state("wan")
    assert down
    assert not down.up
    ip("link", "set", "wan", "up")
    assert await links.state("wan") == LinkState(down.index, up=True)


async def test_a_recreated_link_has_another_index(links: Links) -> None:
    before = await links.state("wan")
    ip("link", "del", "wan")
    ip("link", "add", "wan", "type", "veth", "peer", "name", "isp")
    after = await links.state("wan")
    assert before
    assert after
    assert before.index != after.index


async def test_addresses_come_with_their_networks_in_order(links: Links) -> None:
    for address in ("60.60.60.1/24", "60.60.60.2/24", "10.9.0.1/32", "2001:db8::1/64"):
        ip("addr", "add", address, "dev", "wan")
    ip("addr", "add", "10.0.0.1", "peer", "10.0.0.2/32", "dev", "wan")
    assert [address for address in await links.addresses("wan") if not address.ip.is_link_local] == [
        ip_interface(text)
        for text in ("60.60.60.1/24", "10.9.0.1/32", "10.0.0.1/32", "60.60.60.2/24", "2001:db8::1/64")
    ]
    assert await links.addresses("isp") == ()
    assert await links.addresses("none") == ()


async def test_every_change_is_reported(links: Links) -> None:
    async with asyncio.timeout(60):
        changes = links.changes()
        steps = iter(
            (
                ("link", "set", "wan", "up"),
                ("addr", "add", "60.60.60.1/24", "dev", "wan"),
                ("addr", "del", "60.60.60.1/24", "dev", "wan"),
                ("link", "set", "wan", "down"),
            )
        )
        wanted = None
        async for _ in changes:
            link = await links.state("wan")
            seen = (link and link.up, len([a for a in await links.addresses("wan") if not a.ip.is_link_local]))
            if wanted is None or seen == wanted:
                step = next(steps, None)
                if step is None:
                    break
                wanted = {"up": (True, 0), "add": (True, 1), "del": (True, 0), "down": (False, 0)}[
                    step[1] if step[0] == "addr" else step[-1]
                ]
                ip(*step)
        await changes.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
@pytest.mark.parametrize("address", ["10.100.0.2", "2001:470:100::2"])
async def test_an_address_that_the_operator_closed_has_no_route(links: Links, kind: str, address: str) -> None:
    ip("route", "add", kind, address)
    try:
        assert await links.route(ip_address(address)) is None
    finally:
        ip("route", "del", kind, address)


async def test_new_routes_are_reported(links: Links) -> None:
    ip("addr", "add", "60.60.60.1/24", "dev", "wan")
    ip("link", "set", "wan", "up")
    async with asyncio.timeout(60):
        changes = links.changes()
        asked = False
        async for _ in changes:
            if await links.route(ip_address("198.41.0.4")):
                break
            if not asked:
                ip("route", "add", "default", "via", "60.60.60.254")
                asked = True
        await changes.aclose()  # type: ignore[attr-defined]


async def test_a_host_that_changes_all_the_time_is_looked_at_once_a_second(links: Links) -> None:
    ip("addr", "add", "60.60.60.1/24", "dev", "wan")
    ip("link", "set", "wan", "up")
    churn = "".join(
        f"route {verb} 9.9.{number}.0/24 via 60.60.60.2\n" for number in range(100) for verb in ("add", "del")
    )
    done = asyncio.Event()

    async def change() -> None:
        begin = time.monotonic()
        while time.monotonic() < begin + 2.5 * LOOK_SECONDS:
            await asyncio.to_thread(ip, "-batch", "-", batch=churn)
        done.set()

    changes, looks, begin = links.changes(), 0, time.monotonic()
    async with asyncio.timeout(60):
        changing = asyncio.create_task(change())
        while not done.is_set():
            await anext(changes)
            looks += 1
        await changing
    assert 2 <= looks <= 1 + (time.monotonic() - begin) / LOOK_SECONDS
    await changes.aclose()  # type: ignore[attr-defined]


async def test_others_may_have_the_host_looked_at(links: Links) -> None:
    noticed = asyncio.Event()
    changes = links.changes(noticed)
    async with asyncio.timeout(60):
        await anext(changes)
        noticed.set()
        await anext(changes)
    assert not noticed.is_set()
    await changes.aclose()  # type: ignore[attr-defined]


async def test_changes_are_reported_after_the_socket_overflowed(links: Links) -> None:
    """While the test does not read, the kernel drops what exceeds the buffer, and reports that once (ENOBUFS)."""
    async with asyncio.timeout(60):
        changes = links.changes()
        await anext(changes)
        batch = "".join(f"link set wan mtu {1400 + number % 100}\n" for number in range(3000))
        ip("-batch", "-", batch=batch)
        ip("link", "set", "wan", "up")
        async for _ in changes:
            link = await links.state("wan")
            if link and link.up:
                break
        ip("link", "set", "wan", "down")
        async for _ in changes:
            link = await links.state("wan")
            if link and not link.up:
                break
        await changes.aclose()  # type: ignore[attr-defined]


async def test_the_counters_and_the_operational_state(links: Links) -> None:
    assert not (await links.status("wan", 7)).up
    for name in ("wan", "isp"):
        ip("link", "set", name, "up")
    async for _ in links.changes():  # the kernel detects the carrier with a delay
        if (await links.status("wan", 7)).up:
            break
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("wan", 0))
        sock.send(bytes(100))
    status = await links.status("wan", 7)
    assert status.up
    assert status.uptime == 7
    assert status.packets_sent > 0
    assert status.bytes_sent > status.packets_sent
    assert status.bits_per_second > 0
    ip("link", "set", "isp", "down")
    assert not (await links.status("wan", 7)).up, "a link without a carrier is not operational"


async def test_the_status_of_an_absent_link(links: Links) -> None:
    status = await links.status("none", 7)
    assert (status.up, status.bytes_sent, status.bits_per_second) == (False, 0, 10**9)


async def test_an_error_of_the_kernel_is_an_oserror(links: Links) -> None:
    with pytest.raises(OSError, match="link"):
        await links.state("a name that is too long")


async def test_no_datagram_of_the_kernel_is_kept(links: Links) -> None:
    await links.state("wan")
    received = tracemalloc.Filter(inclusive=True, filename_pattern=selector_events.__file__)
    tracemalloc.start()
    try:
        for _ in range(50):
            await links.state("wan")
            await links.route(ip_address("127.0.0.1"))
        kept = tracemalloc.take_snapshot().filter_traces([received])
    finally:
        tracemalloc.stop()
    assert len(kept.traces) < 50, "an acknowledgement for each request, which nobody reads"
