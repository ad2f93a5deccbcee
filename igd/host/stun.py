"""Asks STUN servers which address the internet sees (RFC 8489), from one interface and address of this machine."""

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Any, NamedTuple, TypeVar

from igd.host.resolver import resolve
from igd.host.stun_server import StunServer
from igd.wire.malformed import Malformed
from igd.wire.stun import TRANSACTION_ID_BYTES, Failed, IPv4Endpoint, Mapped, decode_response, encode_request

log = logging.getLogger(__name__)

DATAGRAM_BYTES = 2048

PORT_ATTEMPTS = 64
"""How many ports the kernel may offer until one is found that no mapping uses."""

_T = TypeVar("_T")


class NoAnswer(Exception):  # noqa: N818 - an expected outcome, as `except NoAnswer` reads
    """No usable answer came; the text says from which server, and why."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds and counts of one question. `rto`, `requests` (Rc) and `last` (Rm) are those of RFC 8489 §6.2.1.

    After `stagger` without an answer the next server is asked, too; `resolve` limits the resolution of a name.
    """

    rto: float = 0.5
    requests: int = 7
    last: int = 16
    stagger: float = 1.0
    resolve: float = 10.0

    def waits(self) -> Iterator[float]:
        """Yield the seconds to wait after each request."""
        yield from (self.rto * 2**number for number in range(self.requests - 1))
        yield self.rto * self.last


@dataclass(frozen=True, slots=True)
class Answer:
    """`server`, at the address `asked`, received a request that left `local` from `mapped`.

    `other` is the server's second address, if it speaks RFC 5780.
    """

    server: StunServer
    asked: IPv4Endpoint
    local: IPv4Endpoint
    mapped: IPv4Endpoint
    other: IPv4Endpoint | None


class Response(NamedTuple):
    """A response, and from where it came."""

    sender: IPv4Endpoint
    message: Mapped | Failed


class StunClient:
    """Asks the servers in their order; the first good answer counts.

    A request never leaves from a port that `is_mapped`: our socket would receive the packets of that mapping.
    `count_malformed` is called for each received datagram that is no response.
    """

    def __init__(
        self,
        servers: Sequence[StunServer],
        is_mapped: Callable[[int], bool],
        count_malformed: Callable[[], None],
        timing: Timing | None = None,
    ) -> None:
        self._servers = servers
        self._is_mapped = is_mapped
        self._count_malformed = count_malformed
        self._timing = timing or Timing()

    async def ask(self, interface: str, source: IPv4Address) -> Answer:
        """Return the first good answer; NoAnswer, if all are silent 39.5 seconds after the last one was first asked."""
        return await self._first(partial(self._ask_server, each, interface, source) for each in self._servers)

    async def _first(self, attempts: Iterator[Callable[[], Coroutine[Any, Any, Answer]]]) -> Answer:
        """Make these attempts, each after the stagger or the failure of the one before; return the first answer."""
        running: set[asyncio.Task[Answer]] = set()
        failures: list[str] = []
        try:
            while True:
                attempt = next(attempts, None)
                if attempt is not None:
                    running.add(asyncio.create_task(attempt()))
                elif not running:
                    raise NoAnswer("; ".join(failures))
                timeout = None if attempt is None else self._timing.stagger
                done, running = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                failures += [str(task.exception()) for task in done if isinstance(task.exception(), NoAnswer)]
                for task in done:
                    if not isinstance(task.exception(), NoAnswer):
                        return task.result()
        finally:
            await cancel(running)

    async def _ask_server(self, server: StunServer, interface: str, source: IPv4Address) -> Answer:
        try:
            async with asyncio.timeout(self._timing.resolve):
                addresses = await resolve(server.host)
        except TimeoutError:
            raise NoAnswer(f"{server}: the name was not resolved in {self._timing.resolve:g} s") from None
        except OSError as error:
            raise NoAnswer(f"{server}: the name cannot be resolved: {error.strerror or error}") from None
        return await self._first(partial(self._ask_address, server, each, interface, source) for each in addresses)

    async def _ask_address(
        self, server: StunServer, address: IPv4Address, interface: str, source: IPv4Address
    ) -> Answer:
        asked = IPv4Endpoint(address, server.port)
        name = str(server) if str(server) == str(asked) else f"{server} ({address})"
        try:
            with self.open(interface, source) as sock:
                sock.connect((str(address), server.port))  # only so do ICMP errors reach us
                response = await self.exchange(sock, asked)
                local = IPv4Endpoint(source, sock.getsockname()[1])
        except TimeoutError:
            raise NoAnswer(f"{name}: no answer") from None
        except OSError as error:
            raise NoAnswer(f"{name}: {error.strerror or error}") from None
        if isinstance(response, Failed):
            raise NoAnswer(f"{name}: {response.reason}")
        seen = response.mapped.address
        if not seen.is_global or seen.is_multicast:
            raise NoAnswer(f"{name} sees {seen}, which is not a public address: the server is not on the internet")
        return Answer(server, asked, local, response.mapped, response.other)

    @contextlib.contextmanager
    def open(self, interface: str, source: IPv4Address) -> Iterator[socket.socket]:
        """Open a UDP socket on this interface and address, at a port that is not mapped; OSError."""
        for _ in range(PORT_ATTEMPTS):
            with udp_socket(interface, source) as sock:
                if not self._is_mapped(sock.getsockname()[1]):
                    yield sock
                    return
        raise OSError(errno.EADDRINUSE, "every port that the kernel offers is mapped")

    async def exchange(self, sock: socket.socket, asked: IPv4Endpoint) -> Mapped | Failed:
        """Ask over a connected socket until a response comes; TimeoutError, OSError."""
        transaction_id = secrets.token_bytes(TRANSACTION_ID_BYTES)
        request = encode_request(transaction_id)
        response = self.response(sock, transaction_id, asked)
        return (await repeat(lambda: sock.send(request), response, self._timing)).message

    async def response(self, sock: socket.socket, transaction_id: bytes, *senders: IPv4Endpoint) -> Response:
        """Receive until a datagram is a response to this request, and from one of these senders; OSError."""
        expected = {(str(sender.address), sender.port): sender for sender in senders}
        while True:
            datagram, source = await asyncio.get_running_loop().sock_recvfrom(sock, DATAGRAM_BYTES)
            try:
                if source in expected:
                    return Response(expected[source], decode_response(datagram, transaction_id))
                reason = "another server was asked"
            except Malformed as malformed:
                reason = malformed.reason
            self._count_malformed()
            log.debug("ignored a datagram of %s: %s", source, reason)
            await asyncio.sleep(0)  # a flood of them does not stop all other tasks


async def repeat(send: Callable[[], object], response: Coroutine[Any, Any, _T], timing: Timing) -> _T:
    """Send, again and again as RFC 8489 §6.2.1 says, until `response` returns; TimeoutError, OSError."""
    receiving = asyncio.create_task(response)
    try:
        for wait in timing.waits():
            with contextlib.suppress(BlockingIOError):  # as if the datagram was lost
                send()
            await asyncio.wait({receiving}, timeout=wait)
            if receiving.done():
                return receiving.result()
        raise TimeoutError
    finally:
        await cancel({receiving})


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel these tasks, and return when they have ended."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def udp_socket(interface: str, source: IPv4Address, port: int = 0) -> socket.socket:
    """Return a socket that sends and receives on this interface only; OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(interface))
        sock.bind((str(source), port))
    except OSError:
        sock.close()
        raise
    return sock
