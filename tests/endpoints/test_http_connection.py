"""One connection is one request, however slowly or strangely it is sent, and however little is read of the answer."""

import asyncio
import contextlib
import gc

import pytest
from aiohttp import web

from igd.endpoints import http_connection
from igd.endpoints.http_connection import LONGEST_REQUEST
from igd.endpoints.upnp_http import UPnPHttp
from igd.wire.upnp.http_head import LONGEST_TARGET, Head
from igd.wire.upnp.http_request import RequestOctets
from tests.endpoints.http_client import (
    HANG,
    call,
    connected,
    connections_are,
    exchange,
    get,
    head,
    parsed,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("server")]


async def test_a_response_closes_a_keep_alive_connection() -> None:
    answer = await exchange(get("/1/device.xml", "Connection: keep-alive") * 2)
    assert answer.status == 200
    assert "HTTP/1.1" not in answer.body


async def test_a_head_that_never_ends_is_refused() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 2_800)
        assert parsed(await reader.read()).status == 400


async def test_a_client_that_ends_before_a_request_is_not_answered(server: UPnPHttp) -> None:
    async with connected() as (reader, writer):
        writer.write(b"\r\n")
        writer.write_eof()
        assert await reader.read() == b""
    await connections_are(server, 0)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", head("AddPortMapping", "Content-Length: 900") + b"<s:"])
async def test_a_slow_sender_is_cut_off(monkeypatch: pytest.MonkeyPatch, server: UPnPHttp, sent: bytes) -> None:
    monkeypatch.setattr(http_connection, "CONNECTION_SECONDS", 0.05)
    async with connected() as (reader, writer):
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await connections_are(server, 0)


async def test_octet_by_octet_is_no_reason_to_wait_longer(monkeypatch: pytest.MonkeyPatch, server: UPnPHttp) -> None:
    monkeypatch.setattr(http_connection, "CONNECTION_SECONDS", 0.2)
    async with connected() as (reader, writer):
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b"G")
            await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionResetError):
            assert await reading == b""
        await connections_are(server, 0)


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch, server: UPnPHttp) -> None:
    monkeypatch.setattr(http_connection, "CONNECTION_SECONDS", 0.2)
    async with connected() as (_, writer):
        writer.write(get("/huge"))
        await connections_are(server, 1)
        await connections_are(server, 0)


async def test_a_client_that_has_sent_everything_and_closes_its_side_is_answered() -> None:
    async with connected() as (reader, writer):
        writer.write(call("GetExternalIPAddress"))
        writer.write_eof()
        assert parsed(await reader.read()).status == 200


async def test_malformed_chunks_are_refused_whenever_they_come() -> None:
    async with connected() as (reader, writer):
        writer.write(head("GetExternalIPAddress", "Transfer-Encoding: chunked", "Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"many\r\n")
        assert parsed(await reader.read()).status == 400


async def test_aiohttp_parses_one_request_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would parse all that it gets, hundreds in a millisecond, before it answers the first."""
    parse, octets = web.RequestHandler.data_received, []

    def record(handler: web.RequestHandler, data: bytes) -> None:
        octets.append(data)
        parse(handler, data)

    monkeypatch.setattr(web.RequestHandler, "data_received", record)
    for request in (get("/1/device.xml"), call("GetExternalIPAddress")):
        octets.clear()
        assert (await exchange(request * 100)).status == 200
        found, body = b"".join(octets), request.partition(b"\r\n\r\n")[2]
        assert found.count(b"HTTP/1.1") == 1
        assert found.partition(b"\r\n\r\n")[2] == body


async def test_a_long_target_is_refused_before_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the resource of 8,000 slashes takes 10 ms."""
    searched: list[str] = []

    async def record(router: web.UrlDispatcher, request: web.Request) -> web.UrlMappingMatchInfo:
        searched.append(request.rel_url.raw_path)
        return await resolve(router, request)

    resolve = web.UrlDispatcher.resolve
    monkeypatch.setattr(web.UrlDispatcher, "resolve", record)
    assert (await exchange(get("/" * 8000))).status == 400
    assert (await exchange(get("http://10.100.0.1" + "/." * 1000))).status == 400
    assert set(searched) == {"/"}, "what aiohttp gets instead"
    assert (await exchange(get("/?" + "a" * (LONGEST_TARGET - 2)))).status == 200


async def test_more_than_any_request_has_is_not_read(server: UPnPHttp) -> None:
    async with connected() as (_, writer):
        writer.write(get("/huge"))
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(LONGEST_REQUEST))
                await writer.drain()
    await connections_are(server, 0)


def with_body(body: bytes, length: int) -> bytes:
    return head("AddPortMapping", f"Content-Length: {length}") + body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (with_body(b"<a><b></a>", 10), 400),
        (with_body(b"<" * 20_000, 20_000), 413),
        (with_body(b"<" * 20_000, 2**20), 413),
        (head("AddPortMapping", "Content-Encoding: gzip", "Content-Length: 10000") + b"<" * 10_000, 415),
        (b"GET / HTTP/1.1\r\n" + b"x" * 20_000, 400),
    ],
    ids=["malformed", "large", "larger than what is sent", "compressed", "long head"],
)
async def test_a_refused_request_does_not_wait_for_the_garbage_collector(
    server: UPnPHttp, request_: bytes, status: int
) -> None:
    gc.collect()
    gc.disable()
    try:
        assert (await exchange(request_)).status == status
        await connections_are(server, 0)
        kept = web.Request, RequestOctets, Head
        async with asyncio.timeout(HANG):  # the task that has handled it ends a turn of the event loop later
            while [each for each in gc.get_objects() if isinstance(each, kept)]:  # noqa: ASYNC110 - memory has no event
                await asyncio.sleep(0)
    finally:
        gc.enable()
