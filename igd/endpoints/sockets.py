"""Sockets on the WireGuard interface, and the tasks that respond to their datagrams."""

import asyncio
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, cast

from igd.core.mapping import Endpoint
from igd.core.peers import Address

log = logging.getLogger(__name__)

PENDING = 256
"""The most responses of one server under way at once. Further datagrams are dropped, as UDP may; clients send again."""

SocketAddress = tuple[str | Any, ...]
"""An address as the socket module has it: host, port, and for IPv6 flow label and scope."""


def bind(
    kind: socket.SocketKind, interface: str, address: Address, port: int, *, reuse_address: bool = False
) -> socket.socket:
    """Return a socket that is bound to an address of the interface; raise OSError if the port is in use."""
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        protocol = "TCP" if kind is socket.SOCK_STREAM else "UDP"
        raise OSError(error.errno, f"{protocol} {Endpoint(address, port)}: {error.strerror}") from error
    return sock


class UdpServer(ABC):
    """Receives datagrams on its sockets, and responds in tasks."""

    def __init__(self) -> None:
        self._transports: list[asyncio.DatagramTransport] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def received(self, datagram: bytes, source: SocketAddress, transport: asyncio.DatagramTransport) -> None:
        """Handle a datagram that this transport received."""

    async def close(self) -> None:
        """Stop listening; responses under way are not sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for transport in self._transports:
            transport.close()

    async def _listen(
        self, interface: str, address: Address, port: int, *, reuse_address: bool = False
    ) -> asyncio.DatagramTransport:
        loop = asyncio.get_running_loop()
        sock = bind(socket.SOCK_DGRAM, interface, address, port, reuse_address=reuse_address)
        transport, _ = await loop.create_datagram_endpoint(lambda: _Listener(self), sock=sock)
        self._transports.append(transport)
        return transport

    def _is_busy(self) -> bool:
        return len(self._tasks) >= PENDING

    def _start(self, response: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(response)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Listener(asyncio.DatagramProtocol):
    _transport: asyncio.DatagramTransport

    def __init__(self, server: UdpServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Python 3.11's transport is not a subclass of DatagramTransport
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: SocketAddress) -> None:
        self._server.received(data, addr, self._transport)

    def error_received(self, exc: Exception) -> None:  # the peer has no endpoint yet, or its host has just gone
        log.debug("a datagram to a peer was not delivered: %s", exc)
