"""Deliveries to subscribers that answer as they like."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address, IPv6Address

import pytest

from igd.core.mapping import Endpoint
from igd.core.peers import Address
from igd.endpoints import notifier
from igd.endpoints.notifier import Delivery, Notifier
from igd.wire.upnp.gena import Callback
from tests.gateway_harness import C1, SERVER
from tests.lab import Host

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
MESSAGE = b"NOTIFY / HTTP/1.1\r\n\r\n"


@contextlib.asynccontextmanager
async def subscriber(first: bytes, endless: bytes = b"", address: Address = C1) -> AsyncIterator[Callback]:
    """Answer with `first`, then with `endless` again and again until the gateway closes the connection."""
    answering: set[asyncio.Task[None] | None] = set()

    async def received(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(first)
            while endless:
                writer.write(endless)
                await writer.drain()
            await reader.read()
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(received, str(address), 0) as server:
        yield Callback(Endpoint(address, server.sockets[0].getsockname()[1]), "/")
    await asyncio.gather(*filter(None, answering))


@pytest.mark.parametrize(
    ("first", "endless", "outcome"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, Delivery.UNANSWERED),
        (b"", b"\r\n" * 10_000, Delivery.UNANSWERED),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 10_000, Delivery.UNANSWERED),
        (b"HTTP/1.1 200 OK\r\n", b"Set-Cookie: a=b\r\n" * 10_000, Delivery.UNANSWERED),
        (b"HTTP/1.1 200 OK\r\nA: ", b"x" * 65536, Delivery.UNANSWERED),
        (b"HTTP/1.1 500 No\r\n\r\n", b"x" * 65536, Delivery.UNANSWERED),
        (b"HTTP/1.1 307 No\r\nLocation: http://10.100.0.3/\r\n\r\n", b"x" * 65536, Delivery.UNANSWERED),
        (OK, b"x" * 65536, Delivery.DONE),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"", Delivery.DONE),
    ],
    ids=["interim", "empty-lines", "headers", "cookies", "header", "fails", "redirects", "body", "after-interim"],
)
async def test_no_more_is_read_than_the_head_of_an_answer(first: bytes, endless: bytes, outcome: Delivery) -> None:
    """An answer without end is given up at once, and not when the time is."""
    async with subscriber(first, endless) as callback, asyncio.timeout(notifier.ANSWER_SECONDS / 2):
        assert await Notifier("lo").notify(SERVER, callback, MESSAGE) is outcome


async def test_a_subscriber_with_an_ipv6_address() -> None:
    localhost = IPv6Address("::1")
    async with subscriber(OK, address=localhost) as callback:
        assert await Notifier("lo").notify(localhost, callback, MESSAGE) is Delivery.DONE


async def test_a_subscriber_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "ANSWER_SECONDS", 0.1)
    async with subscriber(b"") as callback:
        assert await Notifier("lo").notify(SERVER, callback, MESSAGE) is Delivery.UNANSWERED


async def test_nothing_is_sent_from_an_address_that_has_gone() -> None:
    async with subscriber(OK) as callback:
        assert await Notifier("lo").notify(IPv4Address("10.100.0.99"), callback, MESSAGE) is Delivery.NOT_SENT


async def test_nothing_is_sent_through_another_interface(loopback: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "CONNECT_SECONDS", 0.2)
    loopback.run(*"ip link add away type veth peer name beyond".split())
    loopback.run(*"ip link set away up".split())
    async with subscriber(OK) as callback:
        assert await Notifier("away").notify(SERVER, callback, MESSAGE) is Delivery.NOT_SENT
    loopback.run(*"ip link delete away".split())


async def test_ports_of_earlier_deliveries_are_used_again(loopback: Host) -> None:
    """The kernel keeps each for a minute (TIME_WAIT), during which any number of events may be sent to others."""
    setting = "net.ipv4.ip_local_port_range"
    before = loopback.run("sysctl", "-n", setting).stdout.strip()
    async with AsyncExitStack() as stack:
        callbacks = [await stack.enter_async_context(subscriber(OK)) for _ in range(30)]
        loopback.run("sysctl", "-qw", f"{setting}=40000 40009")
        stack.callback(loopback.run, "sysctl", "-qw", f"{setting}={before}")
        assert {await Notifier("lo").notify(SERVER, each, MESSAGE) for each in callbacks} == {Delivery.DONE}
