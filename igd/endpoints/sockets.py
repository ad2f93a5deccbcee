"""Sockets on the addresses of the WireGuard interface, and the tasks that respond to their datagrams.

A datagram is dropped as early as that is decided: for its size, then because its peer's earlier ones are not responded
to yet, then for its peer's rate. Nothing of its content is read before.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any, Generic, Protocol, TypeVar

from igd.core.mapping import Endpoint
from igd.core.peers import Address, Interface
from igd.gateway import Gateway

log = logging.getLogger(__name__)

PENDING = 64
"""The most responses to one peer that a server has under way at once. Further datagrams of the peer are dropped, as UDP
may; clients send again. All unknown sources count as one peer."""

_WITHOUT_PLACE = f"datagrams while {PENDING} responses were under way"

LARGEST = 2048
"""The largest datagram that is looked at, in octets. A PCP request has at most 1,100 (RFC 6887 §7), and a search fits
into one packet of at most 1,500."""

BATCH = 256
"""How many datagrams are read from one socket before everything else gets its turn."""

RECEIVE_BUFFER = 1 << 20
"""Octets, of which the kernel counts about 800 for a small datagram: the bursts of several peers find room."""

UNSENT = 1 << 14
"""How many datagrams wait for room in a socket's send buffer at most; the oldest are dropped. Announcements to 1,000
peers are 14,000."""

SO_RCVBUFFORCE = 33  # may exceed net.core.rmem_max; needs CAP_NET_ADMIN

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h

SocketAddress = tuple[str | Any, ...]
"""An address as the socket module has it: host, port, and for IPv6 flow label and scope."""


def bind(
    kind: socket.SocketKind, interface: str, address: Address, port: int, *, reuse_address: bool = False
) -> socket.socket:
    """Return a socket that is bound to an address of the interface; raise OSError if the port is in use.

    With port 0, `connect` chooses the port: one that is in use for another destination, or was, will do.
    """
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, port == 0)
        sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        protocol = "TCP" if kind is socket.SOCK_STREAM else "UDP"
        raise OSError(error.errno, f"{protocol} {Endpoint(address, port)}: {error.strerror}") from error
    return sock


def is_usable(own: Address, peer: Address) -> bool:
    """Return whether a peer with this address can be told to use the address `own` of the server.

    It must be of the same IP version. An IPv6 link-local one is for link-local peers only: a URL does not say on which
    link it is (RFC 6874), but a peer that has asked from there knows.
    """
    return own.version == peer.version and (own.version == 4 or peer.is_link_local or not own.is_link_local)


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

        The address has a socket and is usable for the peer.
        """
        found = [each for each in self._served if is_usable(each.ip, peer) and each.ip in self._by_address]
        nearest = max(found, key=lambda each: each.network.prefixlen if peer in each.network else -1, default=None)
        return nearest.ip if nearest else None

    def close(self) -> None:
        """Close all sockets."""
        for opened in self._by_address.values():
            opened.close()
        self._by_address.clear()


class UdpServer(ABC):
    """Receives datagrams on its sockets, and responds in tasks; `name` is that of its counters.

    Each peer has a rate and PENDING places of its own, so that no peer takes those of another.
    """

    def __init__(self, name: str, interface: str, port: int, gateway: Gateway) -> None:
        self._name = name
        self._interface = interface
        self._port = port
        self._gateway = gateway
        self._sockets = AddressSockets(self._open)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: Counter[str | None] = Counter()  # responses under way, by Gateway.subject

    async def listen_on(self, addresses: Sequence[Interface]) -> list[str]:
        """Serve on these addresses of the interface, and no others; return and OSError as AddressSockets.follow."""
        return await self._sockets.follow(addresses)

    def received(self, datagram: bytes, source: SocketAddress, own: Address) -> None:
        """Start the response to a datagram that the socket on the address (or group) `own` received, or drop it."""
        if len(datagram) > LARGEST:
            self._count("too large")
            return
        subject = self._gateway.subject(peer_address(source))
        if not self._admit(subject):
            self._count("dropped")
            return
        self._pending[subject] += 1
        task = asyncio.create_task(self._respond(datagram, source, own))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._end(task, subject))

    def _admit(self, subject: str | None) -> bool:
        if self._pending[subject] >= PENDING:
            self._gateway.dropped[subject, _WITHOUT_PLACE] += 1
            return False
        return self._gateway.count(subject)

    @abstractmethod
    async def _respond(self, datagram: bytes, source: SocketAddress, own: Address) -> None:
        """Identify the sender of a datagram, read the datagram, and respond to it."""

    def _end(self, task: asyncio.Task[None], subject: str | None) -> None:
        self._tasks.discard(task)
        self._pending[subject] -= 1
        if not self._pending[subject]:
            del self._pending[subject]

    async def close(self) -> None:
        """Stop listening; responses under way are not sent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sockets.close()

    def _bind(self, address: Address) -> socket.socket:
        return bind(socket.SOCK_DGRAM, self._interface, address, self._port)

    async def _open(self, address: Address) -> "_DatagramSocket":
        return _DatagramSocket(self._bind(address), lambda datagram, source: self.received(datagram, source, address))

    def _send(self, datagram: bytes, destination: SocketAddress, own: Address) -> None:
        """Send from this address, unless it has gone in the meantime."""
        opened = self._sockets.at(own)
        if opened is not None:
            opened.send(datagram, destination)

    def _count(self, what: str) -> None:
        self._gateway.counters[self._name, what] += 1


def peer_address(source: SocketAddress) -> Address:
    """Return the address of a datagram's or a connection's source, without the scope of a link-local one."""
    return ip_address(source[0].partition("%")[0])


class _DatagramSocket:
    """Calls `received` for each datagram of a socket, many of them in one turn of the event loop.

    asyncio's own transport reads one datagram in a turn, so that the flood of one peer would cost the others a turn for
    each of its datagrams.
    """

    def __init__(self, sock: socket.socket, received: Callable[[bytes, SocketAddress], None]) -> None:
        self._socket = sock
        self._received = received
        self._unsent: deque[tuple[bytes, SocketAddress]] = deque(maxlen=UNSENT)
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)  # noqa: FBT003 - the parameter has no name
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._loop.add_reader(sock.fileno(), self._read)

    def _read(self) -> None:
        for _ in range(BATCH):
            try:
                datagram, source = self._socket.recvfrom(LARGEST + 1)  # one more, which tells that it is too large
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                _log_undelivered(error)
                return
            self._received(datagram, source)

    def send(self, datagram: bytes, destination: SocketAddress) -> None:
        """Send a datagram, after those that wait for room in the kernel's buffer."""
        self._unsent.append((datagram, destination))
        if len(self._unsent) == 1 and not self._is_all_sent():
            self._loop.add_writer(self._socket.fileno(), self._write)

    def _write(self) -> None:
        if self._is_all_sent():
            self._loop.remove_writer(self._socket.fileno())

    def _is_all_sent(self) -> bool:
        """Send what waits, as far as there is room; return whether it is all sent."""
        while self._unsent:
            try:
                self._socket.sendto(*self._unsent[0])
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                _log_undelivered(error)
            self._unsent.popleft()
        return True

    def close(self) -> None:
        """Close the socket; what waits is not sent."""
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()


def _log_undelivered(error: OSError) -> None:
    """Log an error of a socket: the peer has no endpoint yet, or does not listen, or its host has just gone."""
    log.debug("a datagram to a peer was not delivered: %s", error)
