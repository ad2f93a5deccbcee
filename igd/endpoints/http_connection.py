"""A TCP connection of the HTTP server, until aiohttp reads it: limits at connect, and a missing Host header."""

import asyncio
import re
from collections.abc import Callable

LONGEST_HEAD = 16 * 1024
"""Octets of request line and headers that wait for their end; aiohttp accepts fewer."""

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 4

_REQUEST_LINE = re.compile(rb"[^\r\n]+ HTTP/1\.1\r?\n")
_HOST = re.compile(rb"\nhost[ \t]*:", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """A new connection, which `accept` gives to aiohttp or aborts; aiohttp gets the head of the request in one piece.

    asyncio reports the source of a connection only here. aiohttp refuses a request of HTTP/1.1 without Host (RFC 9112
    §3.2) before any code of ours runs. TinyUPnP (ESP8266) sends such requests, and they can mean one host only.
    """

    def __init__(self, accept: Callable[[asyncio.Transport], asyncio.Protocol | None]) -> None:
        self._accept = accept
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept or abort the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._reader = self._accept(transport)

    def data_received(self, data: bytes) -> None:
        """Keep the octets until the head has ended."""
        searched = max(0, len(self._head) - _LONGEST_END)
        self._head = (self._head + data).lstrip(b"\r\n")
        if _END_OF_HEAD.search(self._head, searched) or len(self._head) > LONGEST_HEAD:
            self._hand_over()

    def eof_received(self) -> bool | None:
        """Have aiohttp end the connection."""
        return self._hand_over().eof_received() if self._reader else None

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the connection to aiohttp."""
        if self._reader:
            self._reader.connection_lost(exc)

    def _hand_over(self) -> asyncio.Protocol:
        """Have aiohttp read the connection from now on, beginning with what has been received."""
        assert self._reader is not None, "an aborted connection receives nothing"
        self._transport.set_protocol(self._reader)
        self._reader.data_received(with_host(self._head, self._transport.get_extra_info("sockname")))
        return self._reader


def with_host(received: bytes, own: tuple[str, int]) -> bytes:
    """Return a head of HTTP/1.1 and what follows it, with `own`, where it was received, as Host if it has none."""
    head = _END_OF_HEAD.split(received, 1)[0]
    line = _REQUEST_LINE.match(received)
    if line is None or _HOST.search(head):
        return received
    address, port = own[:2]
    host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return received[: line.end()] + f"Host: {host}\r\n".encode() + received[line.end() :]
