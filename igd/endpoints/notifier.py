"""Delivers event messages: by HTTP to a literal address, through the tunnel, and no further."""

import enum
import logging
import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from igd.core.peers import Address
from igd.endpoints.sockets import bind
from igd.wire.upnp import gena

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 10.0
"""The time limits of one delivery; subscribers answer within milliseconds. §4.3.2 would allow them 30 seconds."""

LONGEST_ANSWER = 4096
"""Octets of the answer that are buffered; its body is not read."""


class Delivery(enum.Enum):
    """What became of an event message."""

    DONE = "delivered"
    NOT_SENT = "subscriber not reached"
    UNANSWERED = "no valid answer"


class _NoNames(AbstractResolver):
    """Resolves nothing: callbacks have addresses."""

    async def resolve(self, host: str, *_: object, **__: object) -> list[ResolveResult]:
        raise OSError(f"{host} is a name")

    async def close(self) -> None:
        """Do nothing: nothing is open."""


class Notifier:
    """Sends event messages from this interface and its address `own`."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._sessions: dict[Address, aiohttp.ClientSession] = {}

    async def notify(self, own: Address, callback: gena.Callback, headers: dict[str, str], body: bytes) -> Delivery:
        """Deliver one message. Redirects are not followed; any answer but 200 is none."""
        url = URL(str(callback), encoded=True)
        skip = ("Accept", "Accept-Encoding", "User-Agent")
        try:
            async with self._session(own).request(
                "NOTIFY", url, data=body, headers=headers, allow_redirects=False, skip_auto_headers=skip
            ) as response:
                return Delivery.DONE if response.status == 200 else Delivery.UNANSWERED
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            log.debug("event not sent to %s: %r", callback, error)
            return Delivery.NOT_SENT
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.debug("event not answered by %s: %r", callback, error)
            return Delivery.UNANSWERED

    async def close(self) -> None:
        """End deliveries under way."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def _session(self, own: Address) -> aiohttp.ClientSession:
        if own not in self._sessions:
            self._sessions[own] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=_NoNames(),
                    limit=0,  # of subscriptions: each has one delivery under way at most
                    force_close=True,
                    socket_factory=lambda _address: self._open(own),
                ),
                timeout=aiohttp.ClientTimeout(TOTAL_SECONDS, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=LONGEST_ANSWER,
                max_line_size=LONGEST_ANSWER,
                max_field_size=LONGEST_ANSWER,
            )
        return self._sessions[own]

    def _open(self, own: Address) -> socket.socket:
        opened = bind(socket.SOCK_STREAM, self._interface, own, 0)
        opened.settimeout(0)
        return opened
