"""HTTP on the WireGuard interface: description documents, control, and the page that presentationURL names."""

import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple
from uuid import UUID

from aiohttp import web

from igd.core.mapping import ControlProtocol, Endpoint
from igd.core.peers import Address, Interface, Peer
from igd.core.places import Places
from igd.core.request import ListMappings, MappingList, Refusal, Reply
from igd.endpoints import page
from igd.endpoints.http_admission import HttpAdmission
from igd.endpoints.http_connection import Responder
from igd.endpoints.long_body import LongBody
from igd.endpoints.sockets import AddressSockets, bind, is_usable
from igd.endpoints.subscriptions import Subscription, Subscriptions
from igd.endpoints.tcp_listener import TcpListener
from igd.gateway import Gateway
from igd.turns import pieces
from igd.wire.malformed import Malformed
from igd.wire.upnp import actions, description, former_paths, gena, soap, xml
from igd.wire.upnp.devices import Service
from igd.wire.upnp.requests import Parties, split_listing
from igd.wire.upnp.user_agents import knows_version_1_only

log = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
"""How long requests under way may delay the stop of the server."""

REQUEST_BYTES = 2048
"""A body counts as one more request for each of these: reading XML takes time by its size. Known clients send 1 KB."""

LISTED_ENTRIES = 64
"""A list counts as one more request for each of so many mappings."""

LISTED_AT_ONCE = 4
"""How many mappings of a list are written before other requests get their turn: an eighth of a millisecond."""

PAGE = "/"

_REFUSALS = {
    Refusal.NOT_A_PEER: web.HTTPForbidden,
    Refusal.SYSTEM_FAILURE: web.HTTPServiceUnavailable,
}
"""The response to a request other than POST whose sender is not admitted."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Listening(NamedTuple):
    """Where the server listens, how many connections it has at once, in all and of one peer, and the product's name."""

    interface: str
    port: int
    connections: int
    connections_per_peer: int
    server: str


class UPnPHttp:
    """The HTTP server for one WireGuard interface; every response closes its connection.

    `documents` are served by their paths, to clients that know version 1 only with one device description for all.
    """

    def __init__(
        self,
        listening: Listening,
        gateway: Gateway,
        root: UUID,
        documents: Mapping[str, bytes],
        subscriptions: Subscriptions,
    ) -> None:
        self._interface, self._port, connections, per_peer, self._server = listening
        self._sockets = AddressSockets(self._open)
        self._gateway = gateway
        self._root = root
        self._subscriptions = subscriptions
        app = web.Application(client_max_size=soap.LARGEST_BODY, middlewares=[_check])
        app.router.add_get(PAGE, self._page)
        device_paths = (*description.DEVICE_PATHS.values(), former_paths.DEVICE_PATH)
        version_1_only = dict.fromkeys(device_paths, description.WITHOUT_FIREWALL_PATH)
        for path, document in documents.items():
            app.router.add_get(path, _document(document, documents[version_1_only.get(path, path)]))
        for path, service in {**description.CONTROL_PATHS, **former_paths.CONTROL_PATHS}.items():
            app.router.add_post(path, self._control(service))
        for path, service in {**description.EVENT_PATHS, **former_paths.EVENT_PATHS}.items():
            app.router.add_route("SUBSCRIBE", path, self._events(service, self._subscribe))
            app.router.add_route("UNSUBSCRIBE", path, self._events(service, self._unsubscribe))
        self._runner = web.AppRunner(app, shutdown_timeout=CLOSE_SECONDS)
        self._admission = HttpAdmission(gateway, Places(connections, per_peer), self._respond)

    def limit(self, connections: int, per_peer: int) -> None:
        """Have so many connections at once from now on, in all and of one peer; those that are open stay."""
        self._admission.limit(connections, per_peer)

    async def listen_on(self, addresses: Sequence[Interface]) -> list[str]:
        """Serve on these addresses of the interface, and no others; return and OSError as AddressSockets.follow."""
        if self._runner.server is None:
            await self._runner.setup()
        return await self._sockets.follow(addresses)

    async def _open(self, address: Address) -> TcpListener:
        # Connections of the last run may be in TIME_WAIT.
        sock = bind(socket.SOCK_STREAM, self._interface, address, self._port, reuse_address=True)
        try:
            return TcpListener(sock, self._admission.accepted, self._admission.lacking)
        except OSError:
            sock.close()
            raise

    def endpoints(self) -> list[Endpoint]:
        """Return where the server listens."""
        return [Endpoint(address, self._port) for address in self._sockets.addresses()]

    def endpoint_for(self, peer: Address, own: Address) -> Endpoint | None:
        """Return where `peer` reaches the server: at the address `own` if it listens there, else at the nearest."""
        address = own if self._sockets.at(own) and is_usable(own, peer) else self._sockets.nearest(peer)
        return Endpoint(address, self._port) if address else None

    async def close(self) -> None:
        """Stop listening, and wait for responses under way."""
        self._sockets.close()
        await self._admission.close()
        await self._runner.cleanup()

    def _respond(self, source: Address, admission: Peer | Refusal) -> Responder:
        assert self._runner.server is not None, "listen_on() sets it up before it listens"
        return Responder(self._runner.server, source, admission, self._finish)

    def _finish(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Name the product in a response, which closes the connection, and count the errors of HTTP."""
        response.headers["Server"] = self._server
        response.force_close()
        if response.status >= 400 and response.status != 500:  # UPnP errors are counted by their code
            self._gateway.counters["http", str(response.status)] += 1
            log.debug("%s: %s %s: %s", request.remote, request.method, request.rel_url, response.status)

    async def _page(self, request: web.Request) -> web.Response:
        responder = _responder(request)
        assert isinstance(responder.admission, Peer), "_check has refused others"
        reply = await self._gateway.ask(responder.admission, responder.source, ListMappings())
        assert isinstance(reply, MappingList), "the gateway refuses no list"
        if not self._counts(responder.admission, reply):
            raise web.HTTPTooManyRequests(text=f"{Refusal.TOO_MANY_REQUESTS.value}\n")
        written = [page.head(self._gateway.announced, responder.admission.name)]
        for piece in pieces(reply.mappings, LISTED_AT_ONCE):
            async with self._gateway.turns:
                written.append(page.rows(piece))
        body = LongBody([*written, page.END], "text/html; charset=utf-8")
        return web.Response(body=body, headers=page.HEADERS)

    def _counts(self, peer: Peer, listed: MappingList) -> bool:
        """Count a list by its length; return whether the peer's rate admits it."""
        return self._gateway.count(peer.public_key, len(listed.mappings) // LISTED_ENTRIES)

    def _control(self, service: Service) -> Handler:
        async def control(request: web.Request) -> web.Response:
            body: bytes | LongBody
            try:
                status, body = 200, await self._invoke(service, request)
            except soap.UPnPError as error:
                self._gateway.counters["upnp error", str(error.code)] += 1
                log.debug("%s: UPnP error %s: %s", request.remote, error.code, error.description)
                status, body = 500, soap.encode_error(error)
            return web.Response(status=status, body=body, headers={"Content-Type": xml.CONTENT_TYPE, "EXT": ""})

        return control

    def _events(self, service: Service, answer: Callable[[Service, Peer, web.Request], web.StreamResponse]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            peer = _responder(request).admission
            assert isinstance(peer, Peer), "_check has refused others"
            try:
                return answer(service, peer, request)
            except gena.GenaError as error:
                return web.Response(status=error.status, text=f"{error.reason}\n")

        return handle

    def _subscribe(self, service: Service, peer: Peer, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None, "the request has just arrived"
        own, source = ip_address(request.transport.get_extra_info("sockname")[0]), _responder(request).source
        subscription = self._subscriptions.subscribe(service, peer, source, own, request.headers)
        timeout = gena.timeout(self._subscriptions.seconds_left(subscription))
        return _Subscribed(subscription, headers={"SID": subscription.sid, "TIMEOUT": timeout})

    def _unsubscribe(self, service: Service, peer: Peer, request: web.Request) -> web.StreamResponse:
        self._subscriptions.unsubscribe(service, peer, request.headers)
        return web.Response()

    async def _invoke(self, service: Service, request: web.Request) -> bytes | LongBody:
        peer, source = _responder(request).admission, _responder(request).source
        if isinstance(peer, Refusal):
            raise soap.UPnPError(*actions.REFUSALS[peer])
        if request.content_length is None:
            raise web.HTTPLengthRequired(text="Content-Length or chunked encoding is required\n")
        body = await request.read()
        if not self._gateway.count(peer.public_key, len(body) // REQUEST_BYTES):
            raise soap.UPnPError(*actions.REFUSALS[Refusal.TOO_MANY_REQUESTS])
        try:
            call = soap.decode(soap.named_action(request.headers), body)
        except Malformed as malformed:
            log.debug("%s: malformed control request: %s", request.remote, malformed.reason)
            raise web.HTTPBadRequest(text=f"{malformed.reason}\n") from malformed
        invocation = actions.decode(service, call, Parties(source, self._root, peer.addresses))
        reply: Reply | None = None
        if invocation.request:
            reply = await self._gateway.ask(peer, source, invocation.request, ControlProtocol.UPNP)
        # by its right name, whatever the client's case: libxml2 keeps every name that it has written
        call = replace(call, action=invocation.name)
        if not isinstance(reply, MappingList) or not reply.mappings:
            return soap.encode_response(call, invocation.answer(reply))
        if not self._counts(peer, reply):
            raise soap.UPnPError(*actions.REFUSALS[Refusal.TOO_MANY_REQUESTS])
        written = []
        for piece in pieces(reply.mappings, LISTED_AT_ONCE):
            async with self._gateway.turns:
                ((name, listing),) = invocation.answer(MappingList(tuple(piece))).items()
                begin, entries, end = split_listing(listing)
                written.append(entries.encode())
        return LongBody(soap.encode_listing(call, name, [begin.encode(), *written, end.encode()]), xml.CONTENT_TYPE)


class _Subscribed(web.Response):
    """The response to SUBSCRIBE: the initial event follows it."""

    def __init__(self, subscription: Subscription, headers: Mapping[str, str]) -> None:
        super().__init__(headers=headers)
        self._subscription = subscription

    async def write_eof(self, data: bytes = b"") -> None:
        """End the response, and begin the events."""
        await super().write_eof(data)
        self._subscription.begin()


@web.middleware
async def _check(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Handle a request of a peer that is addressed to an IP address."""
    admission, refusal = _responder(request).admission, _responder(request).refusal
    if refusal is not None:
        return web.Response(status=refusal.status, text=f"{refusal.reason}\n")
    _check_host(request)
    if isinstance(admission, Refusal) and request.method != "POST":  # control responds with a UPnP error
        raise _REFUSALS[admission](text=f"{admission.value}\n")
    return await handler(request)


def _responder(request: web.Request) -> Responder:
    """Return aiohttp's side of the connection, which has the source and the admission of the request."""
    assert isinstance(request.protocol, Responder), "UPnPHttp makes no other"
    return request.protocol


def _document(document: bytes, version_1_only: bytes) -> Handler:
    async def serve(request: web.Request) -> web.Response:
        body = version_1_only if knows_version_1_only(request.headers.get("User-Agent", "")) else document
        return web.Response(body=body, headers={"Content-Type": xml.CONTENT_TYPE})

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
