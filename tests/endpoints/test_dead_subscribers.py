"""Subscribers that are dead in every way delay neither the living ones nor the gateway's answers."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address, ip_interface

import pytest

from igd.core.mapping import Endpoint, TransportProtocol
from igd.core.places import Places
from igd.core.request import GetExternalAddress, MapPort, Refusal
from igd.endpoints.notifier import Delivery, Notifier
from igd.endpoints.subscriptions import Subscriptions
from tests.endpoints.http_client import HANG, ROOT, exchange, get, http_for
from tests.endpoints.test_subscriptions import PATH, Subscriber
from tests.gateway_harness import SERVER, GatewayHarness, peer
from tests.lab import Host

PEERS, EACH = 10, 20
"""Peers, and the subscriptions of each: half of them are dead, as many in each way."""

Listen = Callable[[AsyncExitStack, IPv4Address], int]
Behave = Callable[[asyncio.StreamReader], AsyncIterator[bytes]]


def address(number: int) -> IPv4Address:
    return IPv4Address("10.100.1.1") + number


@pytest.fixture(scope="module")
def loopback(root: None) -> Iterator[Host]:
    """Return a namespace whose loopback has the addresses of the server and of all peers."""
    with Host("events") as host:
        for own in (SERVER, *map(address, range(PEERS))):
            host.run("ip", "addr", "add", f"{own}/32", "dev", "lo")
        yield host


# The ways to be dead: each returns the port of the callback


def refusing(stack: AsyncExitStack, source: IPv4Address) -> int:
    """Nobody listens, and nobody else gets the port."""
    closed = stack.enter_context(socket.socket())
    closed.bind((str(source), 0))
    return int(closed.getsockname()[1])


def black_hole(stack: AsyncExitStack, source: IPv4Address) -> int:
    """The queue of connections is full, so that the kernel drops SYNs."""
    full = stack.enter_context(socket.create_server((str(source), 0), backlog=0))
    for _ in range(2):
        filling = stack.enter_context(socket.socket())
        filling.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            filling.connect(full.getsockname())
    return int(full.getsockname()[1])


def accepting(behave: Behave) -> Listen:
    def listen(stack: AsyncExitStack, source: IPv4Address) -> int:
        tasks: set[asyncio.Task[None]] = set()

        async def received(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                async for octets in behave(reader):
                    writer.write(octets)
                    await writer.drain()
            except OSError:
                pass  # the gateway has given up
            finally:
                writer.transport.abort()

        async def serve() -> None:
            async with await asyncio.start_server(received, sock=listening) as server:
                await server.serve_forever()

        async def end() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        listening = socket.create_server((str(source), 0))
        stack.push_async_callback(end)
        tasks.add(asyncio.create_task(serve()))
        return int(listening.getsockname()[1])

    return listen


async def silent(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    await reader.read()
    yield b""


async def trickling(_reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    for octet in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000:
        yield bytes([octet])
        await asyncio.sleep(0.05)


async def redirecting(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    await reader.readuntil(b"\r\n\r\n")
    yield f"HTTP/1.1 307 Elsewhere\r\nLocation: http://{SERVER}:2869/\r\nContent-Length: 0\r\n\r\n".encode()


WAYS: tuple[Listen, ...] = (refusing, black_hole, *map(accepting, (silent, trickling, redirecting)))


async def subscribe(source: IPv4Address, port: int) -> None:
    headers = f"CALLBACK: <http://{source}:{port}/>", "NT: upnp:event"
    assert (await exchange(get(PATH, *headers, method="SUBSCRIBE"), source=source)).status == 200


async def test_half_of_200_subscribers_are_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = GatewayHarness()
    harness.peers.all = tuple(peer(f"c{number}", f"{address(number)}/32") for number in range(PEERS))
    await harness.start()
    events = Subscriptions(harness.gateway, ROOT, Notifier("lo"), Places(PEERS * EACH, EACH))
    monkeypatch.setattr("tests.endpoints.http_client.subscriptions_for", lambda _harness: events)
    server = http_for(harness)
    await server.listen_on([ip_interface(SERVER)])
    living: list[Subscriber] = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(harness.ledger.close)
        stack.push_async_callback(events.close)
        stack.push_async_callback(server.close)
        for number in range(PEERS):
            for _ in range(EACH // 2 // len(WAYS)):
                for way in WAYS:
                    await subscribe(address(number), way(stack, address(number)))
            for _ in range(EACH // 2):
                subscriber = await stack.enter_async_context(Subscriber(address(number)).listening())
                await subscriber.subscribe()
                living.append(subscriber)
        assert len(events) == PEERS * EACH
        assert {(await each.event()).seq for each in living} == {0}
        for number in range(PEERS):
            request = MapPort(TransportProtocol.TCP, Endpoint(address(number), 8080), 9000 + number, 300)
            assert not isinstance(await harness.ask(request, address(number)), Refusal)
        async with asyncio.timeout(HANG):
            received = await asyncio.gather(*(each.event() for each in living))
        assert {(event.seq, event.values["PortMappingNumberOfEntries"]) for event in received} == {(1, "1")}
        # nobody has waited for those that do not answer: their deliveries are still under way
        assert harness.gateway.counters["events", Delivery.DONE.value] == 2 * len(living)
        assert len(events) == PEERS * EACH
        assert not isinstance(await harness.ask(GetExternalAddress(), address(0)), Refusal)
