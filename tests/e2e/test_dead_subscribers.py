"""Ten peers with 200 subscribers, half of them dead in five ways: what the living ones and another peer notice."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igd.endpoints.notifier import Delivery
from tests.e2e.control import ask
from tests.e2e.serving import decisions, serving
from tests.endpoints.http_client import call, exchange
from tests.endpoints.test_dead_subscribers import EACH, PEERS, WAYS, subscribe
from tests.endpoints.test_subscriptions import Event, Subscriber
from tests.lab import PATIENCE, Lab, Process
from tests.lab.fixtures import requires_root
from tests.lab.wireguard import client_conf, make_keys

pytestmark = requires_root

SOURCES = [IPv4Address("10.100.0.20") + number for number in range(PEERS)]
OLD, NEW = "61.61.61.1", "61.61.61.2"
CONFIG = f'external_interface = "wan"\n[limits]\nsubscriptions_per_peer = {EACH}\n'

LATE = 10.0
"""Seconds. The living hear of mappings within 0.7 s, and of another address within 1.1 s, on a busy machine."""

SLOW = 5.0
"""Seconds. The other peer's answers take up to 0.5 s on a busy machine, where this test itself delays them."""

GROWTH = 20_000
"""KB that deliveries may add to the memory of igd; they add 1,500."""


@pytest.fixture
def ten_peers(lab: Lab) -> Lab:
    """Return the lab; c2 is ten more peers, with an interface and an address each, and the server has another way out.

    The address of that can change without an end of the tunnels.
    """
    server = lab.srv.run("wg", "show", "wg0", "public-key").stdout.strip()
    for number, source in enumerate(SOURCES):
        keys = make_keys()
        lab.srv.run("wg", "set", "wg0", "peer", keys.public, "allowed-ips", f"{source}/32")
        commands = f"rule add from {source} lookup 1{number}", f"route add 10.100.0.1 dev %i table 1{number}"
        lines = ["Table = off", *(f"PostUp = ip {command}" for command in commands)]
        conf = client_conf(keys, f"{source}/32", server, keepalive=25, extra=lines)
        lab.c2.write(f"/etc/wireguard/peer{number}.conf", conf)
        lab.c2.run("wg-quick", "up", f"peer{number}")
        lab.c2.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", "-I", str(source), "10.100.0.1")
    lab.srv.run(*"ip link add wan type veth peer name beyond".split())
    for end in ("wan", "beyond"):
        lab.srv.run("ip", "link", "set", end, "up")
    lab.srv.run("ip", "address", "add", f"{OLD}/24", "dev", "wan")
    return lab


@contextlib.contextmanager
def another_peer_asking(lab: Lab) -> Iterator[list[float]]:
    """Have c1 ask again and again, and append how many seconds each answer took."""
    ends, seconds = threading.Event(), list[float]()

    def repeat() -> None:
        while not ends.wait(0.01):
            begin = time.monotonic()
            assert ask(lab.c1, "GetNATRSIPStatus") == 200
            seconds.append(time.monotonic() - begin)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield seconds
    finally:
        ends.set()
        thread.join()


def memory(process: Process) -> int:
    """Return the resident memory of a process in KB."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


async def subscribers(stack: AsyncExitStack) -> list[Subscriber]:
    """Subscribe the living and the dead ones of each peer in turn, and return the living ones."""
    living = []
    for source in SOURCES:
        for _ in range(EACH // 2 // len(WAYS)):
            for way in WAYS:
                await subscribe(source, way(stack, source))
        for _ in range(EACH // 2):
            living.append(await stack.enter_async_context(Subscriber(source).listening()))
            assert (await living[-1].subscribe()).status == 200
    return living


async def next_of(living: Sequence[Subscriber]) -> list[Event]:
    """Return the next event of each."""
    async with asyncio.timeout(LATE):
        return await asyncio.gather(*(each.event() for each in living))


async def map_a_port(number: int) -> None:
    """Have one of the ten peers map a port."""
    port, client = str(9000 + number), str(SOURCES[number])
    arguments = {"RemoteHost": "", "ExternalPort": port, "Protocol": "TCP", "InternalPort": port}
    arguments |= {"InternalClient": client, "Enabled": "1", "PortMappingDescription": "", "LeaseDuration": "0"}
    request = call("AddPortMapping", {f"New{name}": value for name, value in arguments.items()})
    assert (await exchange(request, source=SOURCES[number])).status == 200


async def changes_reach_the_living(lab: Lab, igd: Process) -> None:
    async with AsyncExitStack() as stack:
        living = await subscribers(stack)
        assert {each.values["ExternalIPAddress"] for each in await next_of(living)} == {OLD}
        before = memory(igd)
        with another_peer_asking(lab) as seconds:
            await asyncio.gather(*map(map_a_port, range(PEERS)))
            assert {each.values["PortMappingNumberOfEntries"] for each in await next_of(living)} == {"1"}
            lab.srv.run("ip", "address", "add", f"{NEW}/32", "dev", "wan")
            lab.srv.run("ip", "address", "delete", f"{OLD}/24", "dev", "wan")
            assert {each.values["ExternalIPAddress"] for each in await next_of(living)} == {NEW}
        assert max(seconds) < SLOW
        assert memory(igd) - before < GROWTH
    counted = decisions(lab)
    assert counted["events delivered"] == 3 * len(living)
    assert all(counted[f"events {each.value}"] for each in (Delivery.NOT_SENT, Delivery.UNANSWERED))


def test_half_of_200_subscribers_are_dead(ten_peers: Lab) -> None:
    """And igd stops at once, while deliveries to dead ones are under way."""
    with serving(ten_peers, CONFIG) as igd, ten_peers.c2.entered():
        asyncio.run(changes_reach_the_living(ten_peers, igd))
