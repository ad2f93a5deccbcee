"""TCP on the WireGuard interface: description, control, and the page that presentationURL names."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from ipaddress import IPv4Address
from uuid import UUID

from aiohttp import web
from aiohttp.http import HttpProcessingError

from igd.core.peers import Peer
from igd.core.request import ListMappings, MappingList, Refusal, Refused
from igd.endpoints import page
from igd.gateway import Gateway
from igd.wire.malformed import Malformed
from igd.wire.upnp import actions, description, soap, xml
from igd.wire.upnp.devices import Service

log = logging.getLogger(__name__)

CONNECTION_SECONDS = 10.0
"""From connect to close: a connection serves one request, and a real client needs milliseconds. One clock for headers,
body and answer leaves a slow sender nothing to hold open."""

CLOSE_SECONDS = 2.0
"""How long a slow sender may delay the end: who stops us waits for it."""

CONNECTIONS = 512
CONNECTIONS_PER_ADDRESS = 32
"""Open at once, in all and from one address; more are closed as they come, so that nobody shuts out the others."""

PAGE = "/"

_asking: ContextVar[Peer | Refused] = ContextVar("asking")
"""Who sent the request at hand: each has a task, and so a context, of its own."""

_REFUSALS = {
    Refusal.NOT_A_PEER: web.HTTPForbidden,
    Refusal.TOO_MANY_REQUESTS: web.HTTPTooManyRequests,
    Refusal.SYSTEM_FAILURE: web.HTTPServiceUnavailable,
}
"""What a GET hears whose sender is not admitted."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class UPnPHttp:
    """The HTTP server for one WireGuard interface; every response ends its connection."""

    def __init__(self, gateway: Gateway, root: UUID, documents: Mapping[str, bytes], server: str) -> None:
        self._gateway = gateway
        self._root = root
        self._server = server
        self._listening: asyncio.Server | None = None
        app = web.Application(client_max_size=soap.LARGEST_BODY, middlewares=[self._frame])
        app.router.add_get(PAGE, self._page)
        for path, document in documents.items():
            app.router.add_get(path, _document(document))
        for path, service in description.CONTROL_PATHS.items():
            app.router.add_post(path, self._control(service))
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_aiohttp_log,
            shutdown_timeout=CLOSE_SECONDS,
            tcp_keepalive=False,  # no connection lasts long enough
            auto_decompress=False,  # no client compresses, and a small body could become a large one
        )

    async def open(self, interface: str, address: IPv4Address, port: int) -> None:
        """Listen; OSError when the port is taken."""
        await self._runner.setup()
        sock = _socket(interface, address, port)
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: _Door(self._enter), sock=sock, backlog=CONNECTIONS
        )

    async def close(self) -> None:
        """Stop listening; requests under way are answered first."""
        if self._listening:
            self._listening.close()
        await self._runner.cleanup()

    def _enter(self, transport: asyncio.Transport) -> None:
        server = self._runner.server
        assert server is not None, "set up before it listens"
        sources = [_source(connection.transport) for connection in server.connections]
        if len(sources) >= CONNECTIONS or sources.count(_source(transport)) >= CONNECTIONS_PER_ADDRESS:
            self._gateway.counters["http", "too many connections"] += 1
            transport.abort()
            return
        connection = server()
        asyncio.get_running_loop().call_later(CONNECTION_SECONDS, _abort, connection)
        transport.set_protocol(connection)
        connection.connection_made(transport)

    @web.middleware
    async def _frame(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """What holds for every request: who may ask, under which name, and that the connection ends."""
        peer = await self._gateway.admit(_address(request))
        _asking.set(peer)
        try:
            _refuse_names(request)
            if isinstance(peer, Refused) and request.method != "POST":  # control says it in its own terms
                raise _REFUSALS[peer.reason](text=f"{peer.reason.value}\n")
            response = await handler(request)
        except web.HTTPException as error:
            self._gateway.counters["http", str(error.status)] += 1
            log.debug("%s: %s %s: %r", request.remote, request.method, request.rel_url, error.text)
            response = web.Response(status=error.status, text=error.text, headers=_kept(error))
        response.force_close()
        response.headers["Server"] = self._server
        return response

    async def _page(self, request: web.Request) -> web.Response:
        peer = _asking.get()
        assert isinstance(peer, Peer), "the others have been refused"
        reply = await self._gateway.ask(peer, _address(request), ListMappings())
        assert isinstance(reply, MappingList), "lists are never refused"
        text = page.render(self._gateway.announced, reply)
        return web.Response(text=text, content_type="text/html", headers=page.HEADERS)

    def _control(self, service: Service) -> Handler:
        async def control(request: web.Request) -> web.Response:
            try:
                status, body = 200, await self._act(service, request)
            except soap.UPnPError as error:
                log.debug("%s: %s %s", request.remote, error.code, error.description)
                status, body = 500, soap.encode_error(error)
            return web.Response(status=status, body=body, headers={"Content-Type": xml.CONTENT_TYPE, "EXT": ""})

        return control

    async def _act(self, service: Service, request: web.Request) -> bytes:
        peer = _asking.get()
        if isinstance(peer, Refused):
            raise soap.UPnPError(*actions.REFUSALS[peer.reason])
        if request.content_length is None and "Transfer-Encoding" not in request.headers:
            raise web.HTTPLengthRequired(text="Content-Length, or chunks\n")
        try:
            call = soap.decode(request.headers.get("SOAPAction", ""), await request.read())
        except Malformed as malformed:
            raise web.HTTPBadRequest(text=f"{malformed.reason}\n") from malformed
        outputs = actions.decode(service, call, actions.Parties(_address(request), self._root))
        if not isinstance(outputs, Mapping):
            outputs = actions.encode(call, await self._gateway.ask(peer, _address(request), outputs))
        return soap.encode_response(call, outputs)


class _Door(asyncio.Protocol):
    """A connection of which only now is known who it is from; `enter` hands it on or ends it."""

    def __init__(self, enter: Callable[[asyncio.Transport], None]) -> None:
        self._enter = enter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._enter(transport)


def _source(transport: asyncio.BaseTransport | None) -> str | None:
    return transport.get_extra_info("peername")[0] if transport else None


def _abort(connection: web.RequestHandler) -> None:
    """End a connection whatever is still to be sent: a client that does not read could hold a polite close open."""
    transport = connection.transport
    connection.force_close()
    if isinstance(transport, asyncio.Transport):
        transport.abort()


def _is_mistake_of_ours(record: logging.LogRecord) -> bool:
    """Tell whether a line is for the operator: aiohttp reports bytes that are no HTTP, and who hangs up, as errors."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | ConnectionError):
        log.debug("%s: %r", record.getMessage(), error)
        return False
    return True


_aiohttp_log = log.getChild("aiohttp")
_aiohttp_log.addFilter(_is_mistake_of_ours)


def _address(request: web.Request) -> IPv4Address:
    """Where a request came from; nobody's address where the connection has ended meanwhile."""
    return IPv4Address(request.remote or 0)


def _document(document: bytes) -> Handler:
    async def give(_request: web.Request) -> web.Response:
        return web.Response(body=document, headers={"Content-Type": xml.CONTENT_TYPE})

    return give


def _refuse_names(request: web.Request) -> None:
    """A name in Host means that a browser was led here by somebody else's DNS (rebinding); clients use the address."""
    host = request.headers.get("Host", "").rpartition(":")
    try:
        IPv4Address(host[0] or host[2])
    except ValueError:
        if "Host" in request.headers:
            raise web.HTTPForbidden(text="Host must be an address\n") from None


def _kept(error: web.HTTPException) -> dict[str, str]:
    return {name: error.headers[name] for name in ("Allow",) if name in error.headers}


def _socket(interface: str, address: IPv4Address, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last run may linger
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"TCP {address}:{port}: {error.strerror}") from error
    return sock
