"""Requests with ever new names leave nothing behind, wherever in a request the names are."""

import itertools
import os
from collections.abc import AsyncIterator
from ipaddress import ip_interface
from pathlib import Path

import pytest

from igd.endpoints.upnp_http import UPnPHttp
from tests.endpoints.http_client import CONTROL, PORT, WIC, connected, get, http_for
from tests.gateway_harness import SERVER, GatewayHarness
from tests.wire.upnp.hostile_bodies import KINDS

FLOOD = 50
"""Requests of each kind: libxml2 would keep 47 KiB of each with new elements."""

KEPT = 1024
"""KiB."""

_numbers = itertools.count(10**9)


def _new() -> str:
    return f"n{next(_numbers):x}"


def _news(piece: str) -> str:
    return "".join(piece.format(_new()) for _ in range(80))


def _post(body: str, *headers: str) -> bytes:
    lines = [f'SOAPAction: "{WIC}#{_new()}"', f"Content-Length: {len(body)}", *headers]
    return get(CONTROL, *lines, method="POST") + body.encode()


def _requests() -> dict[str, bytes]:
    """Return a request of each kind, with names that were not used before."""
    return {
        "paths": get(f"/{_news('{}/')}"),
        "queries": get(f"/?{_news('{0}={0}&')}"),
        "header names": get("/", *(f"{_new()}: x" for _ in range(80))),
        "cookies": get("/", f"Cookie: {_news('{}=1; ')}"),
        "methods": get("/", method=_new().upper()),
        "hosts": f"GET / HTTP/1.1\r\nHost: {_new()}:{PORT}\r\n\r\n".encode(),
        "absolute targets": get(f"http://{_new()}:1/"),
        "versions": f"GET / HTTP/{_new()}\r\nHost: {SERVER}\r\n\r\n".encode(),
        "actions and content types": _post("", f"Content-Type: text/{_new()}; charset={_new()}"),
        **{kind: _post(KINDS[kind].document()) for kind in ("elements", "attributes", "encodings")},
    }


pytestmark = pytest.mark.root


@pytest.fixture
async def server() -> AsyncIterator[UPnPHttp]:
    harness = await GatewayHarness(rate=10**6).start()
    server = http_for(harness)
    await server.listen_on([ip_interface(SERVER)])
    yield server
    await server.close()
    await harness.ledger.close()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


async def _send(request: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(request)
        assert (await reader.read()).startswith(b"HTTP/1.")


async def test_a_second_flood_costs_no_memory(server: UPnPHttp) -> None:
    """After the first, aiohttp's and yarl's caches are full, and the allocator has what it needs."""
    before = 0
    for _ in range(2):
        before = _resident()
        for _ in range(FLOOD):
            for request in _requests().values():
                await _send(request)
    assert _resident() - before < KEPT
