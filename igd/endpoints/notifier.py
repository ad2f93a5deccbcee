"""Delivers event messages: by HTTP to a literal address, through the tunnel, and no further.

aiohttp's client would read interim answers for as long as they come, and spend all of the processor's time on that.
"""

import asyncio
import enum
import logging
import socket

from igd.core.peers import Address
from igd.endpoints.sockets import bind
from igd.wire.upnp import gena

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
"""The time limits of one delivery; subscribers answer within milliseconds. §4.3.2 would allow them 30 seconds."""

LONGEST_ANSWER = 4096
"""How many octets of an answer are read: the head must be among them."""


class Delivery(enum.Enum):
    """What became of an event message."""

    DONE = "delivered"
    NOT_SENT = "subscriber not reached"
    UNANSWERED = "no valid answer"


class Notifier:
    """Sends event messages from this interface."""

    def __init__(self, interface: str) -> None:
        self._interface = interface

    async def notify(self, own: Address, callback: gena.Callback, message: bytes) -> Delivery:
        """Deliver one message from the address `own`. Redirects are not followed; any answer but 200 is none."""
        try:
            sock = await self._connect(own, callback)
        except OSError as error:
            log.debug("event not sent to %s: %r", callback, error)
            return Delivery.NOT_SENT
        with sock:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    status = await _exchange(sock, message)
            except OSError as error:
                log.debug("event not answered by %s: %r", callback, error)
                return Delivery.UNANSWERED
        log.debug("event answered by %s: %s", callback, status)
        return Delivery.DONE if status == 200 else Delivery.UNANSWERED

    async def _connect(self, own: Address, callback: gena.Callback) -> socket.socket:
        sock = bind(socket.SOCK_STREAM, self._interface, own, 0)
        try:
            sock.setblocking(False)  # noqa: FBT003 - the parameter has no name
            destination = str(callback.endpoint.address), callback.endpoint.port
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, destination)
        except BaseException:
            sock.close()
            raise
        return sock


async def _exchange(sock: socket.socket, message: bytes) -> int | None:
    """Send a message, and return the status of the answer; None if that is too long, or ends before its head does."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, message)
    received = b""
    while len(received) < LONGEST_ANSWER and (piece := await loop.sock_recv(sock, LONGEST_ANSWER - len(received))):
        received += piece
        status = gena.decode_answer(received)
        if status is not None:
            return status
    return None
