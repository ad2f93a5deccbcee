"""Connections are admitted by the peer that owns their source, and nothing is answered before."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address, ip_interface

import pytest

from igd.core.peers import Peers
from igd.core.request import Refusal
from igd.endpoints.upnp_http import UPnPHttp
from tests.endpoints.conftest import STRANGER
from tests.endpoints.http_client import (
    CONTROL,
    HANG,
    PORT,
    PRODUCT,
    connected,
    connections_are,
    exchange,
    get,
    head,
    http_for,
)
from tests.gateway_harness import C1, C1_HOST, C2, PEERS, SERVER, GatewayHarness, peer
from tests.lab import Host

RATE = 3
HOSTILE = [IPv4Address(f"10.101.{number}.1") for number in range(16)]

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def routed(loopback: Host) -> None:
    """Let every address of the peers' networks be a source."""
    for network in ("192.168.7.0/24", "10.101.0.0/16"):
        loopback.run("ip", "route", "replace", "local", network, "dev", "lo")


@contextlib.asynccontextmanager
async def serving(harness: GatewayHarness, connections: int = 512, per_peer: int = 32) -> AsyncIterator[UPnPHttp]:
    await harness.start()
    server = http_for(harness, connections=connections, per_peer=per_peer)
    await server.listen_on([ip_interface(SERVER)])
    try:
        yield server
    finally:
        await server.close()
        await harness.ledger.close()


async def is_answered(request: bytes, source: IPv4Address) -> bool:
    """Return whether the server answers, and assert that it names itself; else it resets the connection."""
    try:
        answer = await exchange(request, source=source)
    except ConnectionResetError:
        return False
    assert answer.headers["Server"] == PRODUCT
    return True


REQUESTS = {
    "served": get("/"),
    "an expectation": get("/", "Expect: x"),
    "no such path": get("/none"),
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\nHost: 10.100.0.1\r\n\r\n",
    "M-POST": get(CONTROL, "Content-Length: 0", method="M-POST"),
    "another method": get("/", method="OPTIONS"),
    "CONNECT": get("/", "Content-Length: 0", method="CONNECT"),
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: 10.100.0.1\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\nX: a\r\n b\r\n\r\n",
    "garbage": bytes(range(1, 256)) + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "no number": b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\nContent-Length: many\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "bad chunks": head("AddPortMapping", "Transfer-Encoding: chunked") + b"many\r\n",
    "a giant line": b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: 10.100.0.1\r\n\r\n",
    "a giant head": b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\n" + b"X: a\r\n" * 2_000 + b"\r\n",
    "a target that yarl fails on": b"GET http://[fd77::1]:2869@/ HTTP/1.1\r\nHost: 10.100.0.1\r\n\r\n",
    "a name": b"GET / HTTP/1.1\r\nHost: rebound.example\r\n\r\n",
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
async def test_every_connection_counts_once_against_the_rate_of_its_peer(
    request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Aiohttp itself answers many of these before any code of ours sees a request."""
    caplog.set_level(logging.INFO)
    harness = GatewayHarness(rate=RATE)
    async with serving(harness):
        assert [await is_answered(request_, C1) for _ in range(RATE + 2)] == [True] * RATE + [False] * 2
        assert [await is_answered(request_, C2) for _ in range(RATE)] == [True] * RATE
    assert harness.gateway.counters["http", "too many requests"] == 2
    assert caplog.records == []


async def test_all_addresses_of_a_peer_share_its_rate() -> None:
    harness = GatewayHarness(rate=RATE)
    async with serving(harness):
        sources = [C1, C1_HOST, C1_HOST + 1, C1_HOST + 2]
        assert [await is_answered(get("/"), source) for source in sources] == [True] * RATE + [False]
        assert await is_answered(get("/"), C2)


async def test_all_unknown_sources_share_a_rate() -> None:
    harness = GatewayHarness(rate=RATE)
    async with serving(harness):
        sources = [STRANGER, *HOSTILE[:3]]
        assert [await is_answered(get("/"), source) for source in sources] == [True] * RATE + [False]
        assert await is_answered(get("/"), C1)


async def test_nothing_is_read_before_the_source_is_identified(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peers are read again for a source that is unknown; a malformed request is not answered meanwhile."""
    harness, read, asked = GatewayHarness(), asyncio.Event(), asyncio.Event()
    peers = harness.peers.peers

    async def slow_peers(max_age: float = 1.0) -> Peers:
        asked.set()
        await read.wait()
        return await peers(max_age)

    async with serving(harness) as server:
        monkeypatch.setattr(harness.peers, "peers", slow_peers)
        async with connected(STRANGER) as (reader, writer):
            writer.write(b"malformed\r\n\r\n")
            await asked.wait()
            await connections_are(server, 0)
            assert not reader._buffer  # type: ignore[attr-defined]
            harness.peers.all = (*PEERS, peer("c3", f"{STRANGER}/32"))
            read.set()
            assert (await reader.read()).startswith(b"HTTP/1.0 400 ")


async def test_a_peer_that_was_added_is_served_at_its_first_connection() -> None:
    harness = GatewayHarness()
    async with serving(harness):
        harness.peers.remember(PEERS[1])
        assert (await exchange(get("/"))).status == 200


async def test_a_source_is_answered_503_while_the_peers_cannot_be_read() -> None:
    harness = GatewayHarness()
    async with serving(harness):
        harness.peers.trouble = OSError("no such device")
        assert (await exchange(get("/"))).status == 503


async def is_reset(source: IPv4Address) -> bool:
    with contextlib.suppress(ConnectionResetError):
        async with connected(source) as (reader, _):
            assert await reader.read() == b""
    return True


@pytest.mark.parametrize(
    ("sources", "other"), [([C1, C1_HOST, C1_HOST + 1], C2), ([STRANGER, HOSTILE[0], HOSTILE[1]], C1)]
)
async def test_a_peer_has_its_places_whatever_addresses_it_uses(sources: list[IPv4Address], other: IPv4Address) -> None:
    harness = GatewayHarness()
    async with serving(harness, per_peer=2) as server, AsyncExitStack() as held:
        for source in sources[:2]:
            await held.enter_async_context(connected(source))
        await connections_are(server, 2)
        assert await is_reset(sources[2])
        assert (await exchange(get("/"), source=other)).status == 200
        assert harness.gateway.counters["http", "too many connections"] == 1
        assert list(harness.gateway.dropped.values()) == [1]
        await held.aclose()
        await connections_are(server, 0)
        assert await is_answered(get("/"), sources[2])


async def test_hostile_peers_that_fill_all_places_keep_nobody_out() -> None:
    harness = GatewayHarness()
    harness.peers.all = (*PEERS, *(peer(f"h{address}", f"{address}/32") for address in HOSTILE))
    async with serving(harness, connections=4 * len(HOSTILE), per_peer=4) as server, AsyncExitStack() as held:
        for source in HOSTILE * 4:
            await held.enter_async_context(connected(source))
        await connections_are(server, 4 * len(HOSTILE))
        for _ in range(20):
            assert (await exchange(get("/"), source=C2)).status == 200
            with contextlib.suppress(ConnectionResetError):
                await held.enter_async_context(connected(HOSTILE[0]))
        assert harness.gateway.counters["http", "displaced connections"] >= 1
        assert len(server._runner.server.connections) <= 4 * len(HOSTILE)  # type: ignore[union-attr]


async def test_a_connection_that_makes_room_is_reset() -> None:
    harness = GatewayHarness()
    async with (
        serving(harness, connections=2) as server,
        connected(C1) as (first, _),
        connected(C1) as (second, writer),
    ):
        await connections_are(server, 2)
        assert (await exchange(get("/"), source=C2)).status == 200
        async with asyncio.timeout(HANG):
            with pytest.raises(ConnectionResetError):
                await first.read()
            assert harness.gateway.counters["http", "displaced connections"] == 1
            writer.write(get("/"))
            assert (await second.read()).startswith(b"HTTP/1.1 200 ")


async def test_closing_resets_a_connection_that_is_not_identified_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, asked = GatewayHarness(), asyncio.Event()

    async def never_read(max_age: float = 1.0) -> Peers:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with AsyncExitStack() as stack:
        await harness.start()
        server = http_for(harness)
        stack.push_async_callback(harness.ledger.close)
        await server.listen_on([ip_interface(SERVER)])
        monkeypatch.setattr(harness.peers, "peers", never_read)
        reader, writer = await asyncio.open_connection(str(SERVER), PORT, local_addr=(str(C1), 0))
        async with asyncio.timeout(HANG):
            await asked.wait()
            await server.close()
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()


async def test_udp_requests_and_connections_share_the_rate() -> None:
    harness = GatewayHarness(rate=RATE)
    async with serving(harness):
        assert await harness.admit(C1) == PEERS[0]
        assert [await is_answered(get("/"), C1) for _ in range(RATE)] == [True, True, False]
        assert await harness.admit(C1) == Refusal.TOO_MANY_REQUESTS
