"""HTTP requests octet by octet, as a test wants them, to a server in its own process."""

import asyncio
import contextlib
import html
from collections.abc import AsyncIterator, Mapping
from ipaddress import IPv4Address, ip_interface
from typing import NamedTuple
from uuid import UUID

from igd.core.places import Places
from igd.endpoints.notifier import Notifier
from igd.endpoints.subscriptions import Subscriptions
from igd.endpoints.upnp_http import Listening, UPnPHttp
from igd.wire.upnp import description, soap
from tests.gateway_harness import C1, SERVER, GatewayHarness

ROOT = UUID("0d5f4e7c-5b2e-4c35-9b0d-2f6f2f1c0001")
WIC = "urn:schemas-upnp-org:service:WANIPConnection:1"
CONTROL = "/control/WANIPConn1"
PORT = 2869
PRODUCT = "Linux UPnP/1.1 igd/0.1"
HUGE = bytes(64 * 1024 * 1024)
HANG = 60
"""Seconds that only a hang exceeds, on any machine."""


class Answer(NamedTuple):
    """What the server sent before it closed the connection."""

    status: int
    headers: dict[str, str]
    body: str


def subscriptions_for(harness: GatewayHarness) -> Subscriptions:
    return Subscriptions(harness.gateway, ROOT, Notifier("lo"), Places(256, 16))


def http_for(
    harness: GatewayHarness,
    documents: Mapping[str, bytes] | None = None,
    *,
    connections: int = 512,
    per_peer: int = 32,
) -> UPnPHttp:
    listening = Listening("lo", PORT, connections, per_peer, PRODUCT)
    return UPnPHttp(listening, harness.gateway, ROOT, documents or {}, subscriptions_for(harness))


@contextlib.asynccontextmanager
async def serving(harness: GatewayHarness) -> AsyncIterator[UPnPHttp]:
    """Serve the documents, and HUGE at /huge, on the server's address."""
    documents = description.documents(description.Identity(ROOT, "here", "0.1", "/"))
    server = http_for(harness, documents | {"/huge": HUGE})
    await server.listen_on([ip_interface(SERVER)])
    yield server
    await server.close()
    await harness.ledger.close()


@contextlib.asynccontextmanager
async def connected(source: IPv4Address = C1) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection(str(SERVER), PORT, local_addr=(str(source), 0))
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def exchange(*pieces: bytes, source: IPv4Address = C1) -> Answer:
    """Send the pieces one after another, and read until the server closes the connection."""
    async with connected(source) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return parsed(await reader.read())


def parsed(answer: bytes) -> Answer:
    head, _, body = answer.partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(start.split()[1]), headers, body.decode())


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {SERVER}:{PORT}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def envelope(action: str, arguments: Mapping[str, str], service: str = WIC) -> bytes:
    inner = "".join(f"<{name}>{html.escape(value)}</{name}>" for name, value in arguments.items())
    body = f'<s:Body><u:{action} xmlns:u="{service}">{inner}</u:{action}></s:Body>'
    return f'<s:Envelope xmlns:s="{soap.ENVELOPE}">{body}</s:Envelope>'.encode()


def head(action: str, *headers: str, path: str = CONTROL, service: str = WIC) -> bytes:
    return get(path, f'SOAPAction: "{service}#{action}"', *headers, method="POST")


def call(
    action: str,
    arguments: Mapping[str, str] | None = None,
    *headers: str,
    path: str = CONTROL,
    service: str = WIC,
) -> bytes:
    body = envelope(action, arguments or {}, service)
    return head(action, f"Content-Length: {len(body)}", *headers, path=path, service=service) + body


def error_code(answer: Answer) -> int:
    assert answer.status == 500
    return int(answer.body.partition("<errorCode>")[2].partition("<")[0])


async def connections_are(server: UPnPHttp, count: int) -> None:
    """Wait until the server has `count` connections."""
    async with asyncio.timeout(HANG):
        http = server._runner.server
        assert http is not None
        while len(http.connections) != count:  # noqa: ASYNC110 - aiohttp has no event for it
            await asyncio.sleep(0.001)
