"""Sockets on the addresses of the WireGuard interface, and the tasks that respond to their datagrams."""

import asyncio
import errno
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from ipaddress import ip_address
from typing import Any, Generic, Protocol, TypeVar

from igd.core.mapping import Endpoint
from igd.core.peers import Address, Interface

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


class _Closable(Protocol):
    def close(self) -> None:
        """Close the socket."""


Opened = TypeVar("Opened", bound=_Closable)


class AddressSockets(Generic[Opened]):
    """A socket on each address of the interface, while the address is there; `open_socket` opens one (OSError)."""

    def __init__(self, open_socket: Callable[[Address], Awaitable[Opened]]) -> None:
        self._open_socket = open_socket
        self._served: tuple[Interface, ...] = ()
        self._by_address: dict[Address, Opened] = {}
        self._started = False

    async def follow(self, addresses: Iterable[Interface], groups: Iterable[Address] = ()) -> list[str]:
        """Open and close sockets until there is one on each of these addresses, and of these groups of their versions.

        Sockets of addresses that stay are not touched. Return a sentence for each socket that cannot be opened; the
        next call tries again. The first call raises OSError if no address of IPv4, or without IPv4 of IPv6, can be
        opened.
        """
        self._served = tuple(addresses)
        versions = {each.version for each in self._served}
        wanted = [each.ip for each in self._served] + [group for group in groups if group.version in versions]
        for gone in self._by_address.keys() - set(wanted):
            self._by_address.pop(gone).close()
        errors: dict[Address, OSError] = {}
        for address in wanted:
            if address not in self._by_address and address not in errors:
                try:
                    self._by_address[address] = await self._open_socket(address)
                except OSError as error:
                    errors[address] = error
        if not self._started:
            self._raise_if_useless(errors)
            self._started = True
        return [f"peers are not served at {error.strerror}; trying again" for error in errors.values()]

    def _raise_if_useless(self, errors: dict[Address, OSError]) -> None:
        version = min((each.version for each in self._served), default=4)
        own = [each.ip for each in self._served if each.version == version]
        # An IPv6 address that was just added cannot be bound for a moment.
        if own and all(address in errors and errors[address].errno != errno.EADDRNOTAVAIL for address in own):
            raise errors[own[0]]

    def at(self, address: Address) -> Opened | None:
        """Return the socket that is bound to this address, or None."""
        return self._by_address.get(address)

    def addresses(self) -> list[Address]:
        """Return the interface's addresses that have a socket, in the kernel's order."""
        return list(dict.fromkeys(each.ip for each in self._served if each.ip in self._by_address))

    def nearest(self, peer: Address) -> Address | None:
        """Return the address to talk to `peer` from: in the smallest network that contains it, else the first, or None.

        The address is of the peer's IP version and has a socket.
        """
        found = [each for each in self._served if each.version == peer.version and each.ip in self._by_address]
        nearest = max(found, key=lambda each: each.network.prefixlen if peer in each.network else -1, default=None)
        return nearest.ip if nearest else None

    def close(self) -> None:
        """Close all sockets."""
        for opened in self._by_address.values():
            opened.close()
        self._by_address.clear()


class UdpServer(ABC):
    """Receives datagrams on its sockets, and responds in tasks."""

    def __init__(self, interface: str, port: int) -> None:
        self._interface = interface
        self._port = port
        self._sockets = AddressSockets(self._open)
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen_on(self, addresses: Sequence[Interface]) -> list[str]:
        """Serve on these addresses of the interface, and no others; return and OSError as AddressSockets.follow."""
        return await self._sockets.follow(addresses)

    @abstractmethod
    def received(self, datagram: bytes, source: SocketAddress, own: Address) -> None:
        """Handle a datagram that the socket on the address (or group) `own` received."""

    async def close(self) -> None:
        """Stop listening; responses under way are not sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sockets.close()

    def _bind(self, address: Address) -> socket.socket:
        return bind(socket.SOCK_DGRAM, self._interface, address, self._port)

    async def _open(self, address: Address) -> asyncio.DatagramTransport:
        sock = self._bind(address)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Listener(self, address), sock=sock)
        return transport

    def _send(self, datagram: bytes, destination: SocketAddress, own: Address) -> None:
        """Send from this address, unless it has gone in the meantime."""
        transport = self._sockets.at(own)
        if transport is not None:
            transport.sendto(datagram, destination)

    def _is_busy(self) -> bool:
        return len(self._tasks) >= PENDING

    def _start(self, response: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(response)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def peer_address(source: SocketAddress) -> Address:
    """Return the address of a datagram's or a connection's source, without the scope of a link-local one."""
    return ip_address(source[0].partition("%")[0])


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, server: UdpServer, own: Address) -> None:
        self._server = server
        self._own = own

    def datagram_received(self, data: bytes, addr: SocketAddress) -> None:
        self._server.received(data, addr, self._own)

    def error_received(self, exc: Exception) -> None:  # the peer has no endpoint yet, or its host has just gone
        log.debug("a datagram to a peer was not delivered: %s", exc)
