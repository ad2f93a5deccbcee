"""A TCP connection of the HTTP server: its time limit, its one request, and what aiohttp gets to read of it."""

import asyncio
import logging
import socket
from collections.abc import Callable

from aiohttp import web
from aiohttp.http import HttpProcessingError

from igd.core.peers import Address, Peer
from igd.core.request import Refusal
from igd.endpoints.tcp_listener import reset
from igd.wire.upnp import soap
from igd.wire.upnp.http_head import HttpError
from igd.wire.upnp.http_request import CONTINUE, RequestOctets

log = logging.getLogger(__name__)

CONNECTION_SECONDS = 10.0
"""From accept to close: a connection serves one request, which takes known clients milliseconds. One limit covers
headers, body and response, so that a slow client cannot hold a connection open."""

LONGEST_REQUEST = 128 * 1024
"""Octets that are read from one connection: a head, and the largest body in chunks of one octet each."""

LINGER_SECONDS = 1.0
"""How long a connection stays open after a response if its client has not sent the whole request: an earlier close
could reset it before the client has read."""

_REFUSED = b"GET / HTTP/1.0\r\n\r\n"
"""What aiohttp gets instead of a request that is refused."""

_REFUSED_WHILE_SENT = b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\n"
"""The same for a client that is still sending: aiohttp waits LINGER_SECONDS for the rest."""

Finish = Callable[[web.BaseRequest, web.StreamResponse], None]


_RECEIVED = memoryview(bytearray(64 * 1024))
"""What all connections receive into. asyncio would allocate 256 KB for each piece that it receives, and leave the heap
in fragments."""


class Connection(asyncio.BufferedProtocol):
    """An accepted connection; nothing is read from it before `open`. `ended` is called when its socket is closed.

    aiohttp gets one whole request in one piece. A client that sends slowly costs no more than the octets it has sent.
    """

    def __init__(self, sock: socket.socket, ended: Callable[["Connection"], None]) -> None:
        self._sock: socket.socket | None = sock
        self._transport: asyncio.Transport | None = None
        self._responder: Responder | None = None
        self._ended = ended
        self._is_aborted = False
        self._octets = 0
        self._request: RequestOctets | None = None  # until it is complete
        self._time_limit = asyncio.get_running_loop().call_later(CONNECTION_SECONDS, self.abort)

    async def open(self, responder: "Responder") -> None:
        """Read the request, and have `responder`, aiohttp's side of the connection, answer it."""
        if self._sock is not None:
            self._responder = responder
            sock, self._sock = self._sock, None
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self, sock)

    def abort(self) -> None:
        """Reset the connection, and drop unsent data: a client that does not read would delay an orderly close."""
        self._is_aborted = True
        if self._transport is not None:
            reset(self._transport.get_extra_info("socket"))
            self._transport.abort()
        elif self._sock is not None:
            reset(self._sock)
            self._sock.close()
            self._sock = None
            self._end()
        # else asyncio is about to call connection_made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read, unless the connection was aborted in the meantime."""
        assert isinstance(transport, asyncio.Transport)
        assert self._responder is not None
        self._transport = transport
        self._request = RequestOctets(soap.LARGEST_BODY, transport.get_extra_info("sockname"))
        self._responder.connection_made(transport)
        if self._is_aborted:
            self.abort()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return where to receive; `buffer_updated` follows at once."""
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on the request when it is complete; drop what follows it."""
        assert self._transport is not None
        assert self._responder is not None
        self._octets += nbytes
        if self._octets > LONGEST_REQUEST:
            self.abort()
        elif self._request is not None:
            try:
                request = self._request.receive(bytes(_RECEIVED[:nbytes]))
            except HttpError as error:
                self._refuse(error)
                return
            if request is not None:
                self._request = None
                self._responder.data_received(request)
            elif self._request.continues():
                self._transport.write(CONTINUE)

    def eof_received(self) -> bool:
        """Return whether to keep the connection open: for a response, also to a request that is cut off."""
        error = self._request.cut_off() if self._request else None
        if error is not None:
            self._refuse(error)
        return self._request is None

    def _refuse(self, error: HttpError) -> None:
        """Have aiohttp answer with this error."""
        assert self._responder is not None
        self._request = None
        # its frames refer to this connection: without this, the body stays until garbage is collected
        self._responder.refusal = error.with_traceback(None)
        self._responder.data_received(_REFUSED if error.is_sent else _REFUSED_WHILE_SENT)

    def pause_writing(self) -> None:
        """Have aiohttp wait until the client has read."""
        assert self._responder is not None
        self._responder.pause_writing()

    def resume_writing(self) -> None:
        """Have aiohttp go on."""
        assert self._responder is not None
        self._responder.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the connection to aiohttp."""
        assert self._responder is not None
        self._transport = None
        self._responder.connection_lost(exc)
        self._end()

    def _end(self) -> None:
        self._time_limit.cancel()
        self._ended(self)


class Responder(web.RequestHandler):
    """aiohttp's side of a connection from `source`, whose owner is `admission`.

    `refusal` is the error for a request that could not be read. `finish` is called with each response before it is
    sent, also with those that aiohttp makes itself.
    """

    def __init__(self, server: web.Server, source: Address, admission: Peer | Refusal, finish: Finish) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type] # what turns it off in aiohttp's documentation, too
            logger=_aiohttp_log,
            lingering_time=LINGER_SECONDS,
            tcp_keepalive=False,  # CONNECTION_SECONDS is shorter
            auto_decompress=False,  # no known client compresses, and a small body could become a large one
        )
        self.source = source
        self.admission = admission
        self.refusal: HttpError | None = None
        self._finish = finish

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response."""
        if isinstance(resp, web.HTTPException):
            # its frames and its cause's refer to it: without this, the request's body stays until garbage is collected
            resp.__traceback__ = resp.__cause__ = resp.__context__ = None
        self._finish(request, resp)
        return await super().finish_response(request, resp, start_time)


def _is_server_error(record: logging.LogRecord) -> bool:
    """Return whether a line is a fault of ours: aiohttp logs malformed HTTP and closed connections as errors, too."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | ConnectionError):
        log.debug("%s: %r", record.getMessage(), error)
        return False
    return True


_aiohttp_log = log.getChild("aiohttp")
_aiohttp_log.addFilter(_is_server_error)
