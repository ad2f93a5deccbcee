"""HTTP on the WireGuard interface: description documents, control, and the page that presentationURL names."""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

from aiohttp import web
from aiohttp.http import HttpProcessingError

from igd.core.mapping import ControlProtocol, Endpoint
from igd.core.peers import Address, Interface, Peer
from igd.core.request import ListMappings, MappingList, Refusal, Reply
from igd.endpoints import page
from igd.endpoints.http_connection import Connection
from igd.endpoints.sockets import AddressSockets, bind, peer_address
from igd.gateway import Gateway
from igd.wire.malformed import Malformed
from igd.wire.upnp import actions, description, soap, xml
from igd.wire.upnp.devices import Service
from igd.wire.upnp.requests import Parties

log = logging.getLogger(__name__)

CONNECTION_SECONDS = 10.0
"""From connect to close: a connection serves one request, which takes known clients milliseconds. One limit covers
headers, body and response, so that a slow client cannot hold a connection open."""

CLOSE_SECONDS = 2.0
"""How long requests under way may delay the stop of the server."""

CONNECTIONS = 512
CONNECTIONS_PER_ADDRESS = 32
"""Open connections in all and from one address; further ones are aborted, so that one client cannot exclude others."""

PAGE = "/"

_admission: ContextVar[Peer | Refusal] = ContextVar("admission")
"""The sender of the current request, or its refusal; each request has its own task, and so its own context."""

_REFUSALS = {
    Refusal.NOT_A_PEER: web.HTTPForbidden,
    Refusal.TOO_MANY_REQUESTS: web.HTTPTooManyRequests,
    Refusal.SYSTEM_FAILURE: web.HTTPServiceUnavailable,
}
"""The response to a request other than POST whose sender is not admitted."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class UPnPHttp:
    """The HTTP server for one WireGuard interface; every response closes its connection.

    `listening` is the name of the interface and the TCP port, `documents` are served by their paths, and `server` names
    the product.
    """

    def __init__(
        self, listening: tuple[str, int], gateway: Gateway, root: UUID, documents: Mapping[str, bytes], server: str
    ) -> None:
        self._interface, self._port = listening
        self._sockets = AddressSockets(self._open)
        self._gateway = gateway
        self._root = root
        self._server = server
        app = web.Application(client_max_size=soap.LARGEST_BODY, middlewares=[self._admit])
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
            tcp_keepalive=False,  # CONNECTION_SECONDS is shorter
            auto_decompress=False,  # no known client compresses, and a small body could become a large one
        )

    async def listen_on(self, addresses: Sequence[Interface]) -> list[str]:
        """Serve on these addresses of the interface, and no others; return and OSError as AddressSockets.follow."""
        if self._runner.server is None:
            await self._runner.setup()
        return await self._sockets.follow(addresses)

    async def _open(self, address: Address) -> asyncio.Server:
        # Connections of the last run may be in TIME_WAIT.
        sock = bind(socket.SOCK_STREAM, self._interface, address, self._port, reuse_address=True)
        return await asyncio.get_running_loop().create_server(
            lambda: Connection(self._accept), sock=sock, backlog=CONNECTIONS
        )

    def endpoints(self) -> list[Endpoint]:
        """Return where the server listens."""
        return [Endpoint(address, self._port) for address in self._sockets.addresses()]

    def endpoint_for(self, peer: Address, own: Address) -> Endpoint | None:
        """Return where `peer` reaches the server: at the address `own` if it listens there, else at the nearest."""
        address = own if self._sockets.at(own) else self._sockets.nearest(peer)
        return Endpoint(address, self._port) if address else None

    async def close(self) -> None:
        """Stop listening, and wait for responses under way."""
        self._sockets.close()
        await self._runner.cleanup()

    def _accept(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """Return aiohttp's side of a connection, with its time limit; abort the connection if too many are open."""
        server = self._runner.server
        assert server is not None, "listen_on() sets it up before it listens"
        sources = [_source(connection.transport) for connection in server.connections]
        if len(sources) >= CONNECTIONS or sources.count(_source(transport)) >= CONNECTIONS_PER_ADDRESS:
            self._gateway.counters["http", "too many connections"] += 1
            transport.abort()
            return None
        connection = server()
        asyncio.get_running_loop().call_later(CONNECTION_SECONDS, _abort, connection)
        connection.connection_made(transport)
        return connection

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle a request of an admitted peer that is addressed to an IP address, and close the connection."""
        admission = await self._gateway.admit(_address(request))
        _admission.set(admission)
        try:
            _check_host(request)
            if isinstance(admission, Refusal) and request.method != "POST":  # control responds with a UPnP error
                raise _REFUSALS[admission](text=f"{admission.value}\n")
            response = await handler(request)
        except web.HTTPException as error:
            self._gateway.counters["http", str(error.status)] += 1
            log.debug("%s: %s %s: %r", request.remote, request.method, request.rel_url, error.text)
            response = web.Response(status=error.status, text=error.text, headers=_allowed_methods(error))
        response.force_close()
        response.headers["Server"] = self._server
        return response

    async def _page(self, request: web.Request) -> web.Response:
        peer = _admission.get()
        assert isinstance(peer, Peer), "_admit has refused others"
        reply = await self._gateway.ask(peer, _address(request), ListMappings())
        assert isinstance(reply, MappingList), "the gateway refuses no list"
        text = page.render(self._gateway.announced, reply)
        return web.Response(text=text, content_type="text/html", headers=page.HEADERS)

    def _control(self, service: Service) -> Handler:
        async def control(request: web.Request) -> web.Response:
            try:
                status, body = 200, await self._invoke(service, request)
            except soap.UPnPError as error:
                log.debug("%s: UPnP error %s: %s", request.remote, error.code, error.description)
                status, body = 500, soap.encode_error(error)
            return web.Response(status=status, body=body, headers={"Content-Type": xml.CONTENT_TYPE, "EXT": ""})

        return control

    async def _invoke(self, service: Service, request: web.Request) -> bytes:
        peer, source = _admission.get(), _address(request)
        if isinstance(peer, Refusal):
            raise soap.UPnPError(*actions.REFUSALS[peer])
        if request.content_length is None and "Transfer-Encoding" not in request.headers:
            raise web.HTTPLengthRequired(text="Content-Length or chunked encoding is required\n")
        try:
            call = soap.decode(request.headers.get("SOAPAction", ""), await request.read())
        except Malformed as malformed:
            raise web.HTTPBadRequest(text=f"{malformed.reason}\n") from malformed
        invocation = actions.decode(service, call, Parties(source, self._root))
        reply: Reply | None = None
        if invocation.request:
            reply = await self._gateway.ask(peer, source, invocation.request, ControlProtocol.UPNP)
        return soap.encode_response(call, invocation.answer(reply))


def _source(transport: asyncio.BaseTransport | None) -> str | None:
    return transport.get_extra_info("peername")[0] if transport else None


def _abort(connection: web.RequestHandler) -> None:
    """Close a connection and drop unsent data: a client that does not read would delay an orderly close."""
    transport = connection.transport
    connection.force_close()
    if isinstance(transport, asyncio.Transport):
        transport.abort()


def _is_server_error(record: logging.LogRecord) -> bool:
    """Return whether a line is a fault of ours: aiohttp logs malformed HTTP and closed connections as errors, too."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | ConnectionError):
        log.debug("%s: %r", record.getMessage(), error)
        return False
    return True


_aiohttp_log = log.getChild("aiohttp")
_aiohttp_log.addFilter(_is_server_error)


def _address(request: web.Request) -> Address:
    """Return the source of a request; accept() has stored it, so that it is known after the connection is closed."""
    assert request.remote is not None, "accept() returns it"
    return peer_address((request.remote,))


def _document(document: bytes) -> Handler:
    async def serve(_request: web.Request) -> web.Response:
        return web.Response(body=document, headers={"Content-Type": xml.CONTENT_TYPE})

    return serve


_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<ipv4>[^:]*))(?::[0-9]*)?")
"""An address as in a URL, and perhaps a port (RFC 3986 §3.2.2)."""


def _check_host(request: web.Request) -> None:
    """Refuse a name in Host: UPnP clients use the address, and a browser may be the victim of DNS rebinding.

    A browser's Host is never empty.
    """
    if request.headers.get("Host") and not _is_address(request.headers["Host"]):
        raise web.HTTPForbidden(text="Host must be an address\n")


def _is_address(host: str) -> bool:
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    try:
        IPv4Address(found["ipv4"]) if found["ipv6"] is None else IPv6Address(found["ipv6"])
    except ValueError:
        return False
    return True


def _allowed_methods(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
