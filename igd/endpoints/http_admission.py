"""Who gets an HTTP connection: decided when it is accepted, by the peer that owns its source."""

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Callable

from igd.core.peers import Address, Peer
from igd.core.places import Places
from igd.core.request import Refusal
from igd.endpoints.http_connection import Connection, Responder
from igd.endpoints.tcp_listener import PAUSE_SECONDS, reset
from igd.gateway import Gateway

log = logging.getLogger(__name__)

Respond = Callable[[Address, Peer | Refusal], Responder]


class HttpAdmission:
    """Counts each connection once against its peer's rate, and gives it a place.

    A connection above the rate or without a place is reset: an answer would cost as much as a served request. The
    others are identified before anything is read from them; `respond` returns aiohttp's side of a connection from a
    source that a peer owns, or that is refused with an answer.
    """

    def __init__(self, gateway: Gateway, places: Places[Connection], respond: Respond) -> None:
        self._gateway = gateway
        self._places = places
        self._respond = respond
        self._opening: set[asyncio.Task[None]] = set()
        self._logged_at = -math.inf

    def accepted(self, sock: socket.socket, source: Address) -> None:
        """Admit or reset a connection that was accepted."""
        subject = self._gateway.subject(source)
        if not self._gateway.count(subject):
            self._refuse(sock, "too many requests")
        elif not self._places.is_open_to(subject):
            self._gateway.dropped[subject, "connections above connections_per_peer or connections"] += 1
            self._refuse(sock, "too many connections")
        else:
            connection = Connection(sock, lambda ended: self._places.release(subject, ended))
            displaced = self._places.take(subject, connection)
            if displaced is not None:
                self._count("displaced connections")
                displaced.abort()
            task = asyncio.create_task(self._open(connection, source))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def limit(self, connections: int, per_peer: int) -> None:
        """Admit so many connections at once from now on, in all and of one peer; those that are open stay."""
        self._places.resize(connections, per_peer)

    def lacking(self, error: OSError) -> None:
        """Log, at most once in PAUSE_SECONDS, that connections have to wait for a descriptor or for memory."""
        self._count("accepting paused")
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= PAUSE_SECONDS:
            self._logged_at = now
            remedy = "; set a higher LimitNOFILE= in the unit" if error.errno == errno.EMFILE else ""
            log.error("HTTP connections wait for %g s: %s%s", PAUSE_SECONDS, error.strerror, remedy)

    async def close(self) -> None:
        """Reset the connections from which nothing was read yet."""
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    async def _open(self, connection: Connection, source: Address) -> None:
        try:
            admission = await self._gateway.identify(source)
            await connection.open(self._respond(source, admission))
        except asyncio.CancelledError:
            connection.abort()
            raise

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        self._count(reason)
        reset(sock)
        sock.close()

    def _count(self, outcome: str) -> None:
        self._gateway.counters["http", outcome] += 1
