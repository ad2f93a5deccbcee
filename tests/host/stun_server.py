"""A STUN server on this machine's loopback that answers as a test wants."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import cast

from igd.host.stun import Timing
from tests.wire import stun_server_codec as codec

LOOPBACK = "lo"
SOURCE = IPv4Address("127.0.0.1")
PUBLIC = "60.60.60.9"

QUICK = Timing(rto=0.01, requests=3, last=2, stagger=0.01, resolve=0.1)
PATIENT = Timing(rto=60, stagger=60, resolve=60)
"""What is waited for must come by itself: no second request, no second server."""


def ignore() -> None:
    """Count nothing."""


Datagram = tuple[bytes, tuple[str, int]]
"""Bytes, and for whom they are."""


class FakeServer(asyncio.DatagramProtocol):
    """Its address, the requests that it has received, and how it answers: `answer(request, sender)`."""

    _transport: asyncio.DatagramTransport

    def __init__(
        self, address: tuple[str, int], answer: Callable[[bytes, tuple[str, int]], Iterable[bytes | Datagram]]
    ) -> None:
        self.address = address
        self.answer = answer
        self.requests: list[Datagram] = []
        self.received = asyncio.Event()

    @property
    def port(self) -> int:
        """Its UDP port."""
        return self.address[1]

    def send(self, datagram: bytes, receiver: tuple[str, int]) -> None:
        """Send from its address."""
        self._transport.sendto(datagram, receiver)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer."""
        self.requests.append((data, addr))
        for each in self.answer(data, addr):
            self.send(*((each, addr) if isinstance(each, bytes) else each))
        self.received.set()


@asynccontextmanager
async def fake_server(
    answer: Callable[[bytes, tuple[str, int]], Iterable[bytes | Datagram]], address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[FakeServer]:
    """Run a server that sends what `answer` returns, by default to who asked."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    server = FakeServer(sock.getsockname(), answer)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, sock=sock)
    try:
        yield server
    finally:
        transport.close()


def silence(_request: bytes, _sender: tuple[str, int]) -> Iterable[bytes]:
    """Answer nothing."""
    return ()


def seen(
    address: str = PUBLIC, port: int | None = None, *more: codec.Attribute
) -> Callable[[bytes, tuple[str, int]], list[bytes]]:
    """Return what answers that the request came from this address, and from the port that it did come from."""

    def answer(request: bytes, sender: tuple[str, int]) -> list[bytes]:
        mapped = codec.address(codec.XOR_MAPPED_ADDRESS, address, port or sender[1])
        return [codec.message(codec.SUCCESS, request[8:20], mapped, *more, fingerprint=True)]

    return answer


def refusing(code: int, reason: str) -> Callable[[bytes, tuple[str, int]], list[bytes]]:
    """Return what answers with an error."""
    return lambda request, _: [codec.message(codec.ERROR, request[8:20], codec.error(code, reason))]
