"""UDP 5351 on the WireGuard interface: NAT-PMP and PCP share it, and their announcements leave from it."""

import asyncio
import logging
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Any, TypeVar, cast

from igd.core.mapping import PortMapping
from igd.core.peers import Address, Peer
from igd.core.request import Refusal, Refused, Reply, Request
from igd.gateway import Gateway
from igd.wire.malformed import Rejected
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp, requests
from igd.wire.pcp.opcodes import Announce

log = logging.getLogger(__name__)

PENDING = 256
"""Requests under way at once; what comes beyond is dropped, as UDP may. Clients ask again."""

Settled = TypeVar("Settled", natpmp.Result, pcp.Result | None)
"""What a codec's words amount to where there is nothing to ask."""

Source = tuple[str | Any, ...]
"""An address as sockets have it: the host, the port, and by IPv6 two numbers more."""

ROUNDS = 10
FIRST_INTERVAL = 0.25
"""Announcements come ten times, with doubled intervals from this many seconds on (RFC 6886 §3.2.1)."""


class PortControl:
    """Answers from the very socket and address that were asked.

    `epoch` tells for how many seconds the state has not been lost (RFC 6886 §3.6, RFC 6887 §8.5).
    """

    def __init__(self, gateway: Gateway, epoch: Callable[[], int], *, third_party: bool) -> None:
        self._gateway = gateway
        self._epoch = epoch
        self._third_party = third_party
        self._transports: list[asyncio.DatagramTransport] = []
        self._announcers: dict[int, asyncio.DatagramTransport] = {}  # by IP version
        self._tasks: set[asyncio.Task[None]] = set()
        self._announcing: asyncio.Task[None] | None = None
        self._lost = False  # and not all have been told so ten times

    async def open(self, interface: str, addresses: list[Address]) -> None:
        """Listen on these addresses, and announce from the first of each IP version; OSError when a port is taken."""
        loop = asyncio.get_running_loop()
        for address in addresses:
            sock = _socket(interface, address)
            transport, _ = await loop.create_datagram_endpoint(lambda: _Listener(self), sock=sock)
            self._transports.append(transport)
            self._announcers.setdefault(address.version, transport)

    async def close(self) -> None:
        """Stop listening and announcing."""
        tasks = [*self._tasks, *([self._announcing] if self._announcing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for transport in self._transports:
            transport.close()

    # Being asked

    def received(self, datagram: bytes, source: Source, transport: asyncio.DatagramTransport) -> None:
        """Take one datagram that came to this transport."""
        if len(self._tasks) >= PENDING:
            self._count("dropped")
            return
        task = asyncio.create_task(self._answer(datagram, source, transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, datagram: bytes, asker: Source, transport: asyncio.DatagramTransport) -> None:
        source = ip_address(asker[0])
        admitted = await self._gateway.admit(source)
        if admitted == Refused(Refusal.TOO_MANY_REQUESTS):
            self._count("dropped")
            return
        try:
            if natpmp.is_natpmp(datagram) and isinstance(source, IPv4Address):
                answer: bytes | None = await self._answer_natpmp(datagram, source, admitted)
            else:
                answer = await self._answer_pcp(datagram, source, admitted)
        except Rejected as rejected:
            self._count("malformed")
            log.debug("%s port %s: %s", *asker[:2], rejected.reason)
            answer = rejected.answer
        if answer is not None:
            transport.sendto(answer, asker)

    async def _answer_natpmp(self, datagram: bytes, source: IPv4Address, admitted: Peer | Refused) -> bytes:
        asked = natpmp.decode_request(datagram, self._epoch())
        request = requests.from_natpmp(asked, source)
        reply = await self._reply(admitted, source, request)
        return natpmp.encode_response(requests.to_natpmp(asked, reply, self._epoch()))

    async def _answer_pcp(self, datagram: bytes, source: Address, admitted: Peer | Refused) -> bytes:
        asked = pcp.decode_request(datagram, source, self._epoch())
        request = requests.from_pcp(asked, self._gateway.announced, third_party=self._third_party)
        reply = await self._reply(admitted, source, request)
        return requests.to_pcp(datagram, asked, reply, self._epoch(), self._gateway.announced)

    async def _reply(self, admitted: Peer | Refused, source: Address, request: Request | Settled) -> Reply | Settled:
        """Ask for what neither the asker nor the words of the request have settled."""
        if isinstance(admitted, Refused):
            return admitted
        return await self._gateway.ask(admitted, source, request) if isinstance(request, Request) else request

    # Telling

    def announce(self, *, lost: bool) -> None:
        """Begin to tell live peers the address and what became of their mappings, and that they were `lost`, ten times.

        Whoever hears of PCP's mappings being lost asks for all of his again (RFC 6887 §14.1).
        """
        if self._announcing is not None:
            self._announcing.cancel()
        self._lost = lost = lost or self._lost
        self._announcing = asyncio.create_task(self._announce(lost=lost))

    async def _announce(self, *, lost: bool) -> None:
        for number in range(ROUNDS):
            try:
                await self._announce_once(lost=lost)
            except OSError as error:
                log.warning("not announced: %s", error)
            await asyncio.sleep(FIRST_INTERVAL * 2**number)
        self._lost = False

    async def _announce_once(self, *, lost: bool) -> None:
        """A multicast reaches nobody on WireGuard, so that each peer is told what concerns it."""
        external, live = self._gateway.announced, await self._gateway.live_peers()
        for address in [address for peer in live for address in peer.addresses]:
            if lost:
                restarted = pcp.Response(0, self._epoch(), Announce())
                self._send(pcp.encode_response(restarted), address, pcp.CLIENT_PORT)
            if external is not None and address.version == 4:
                told = natpmp.AddressResponse(natpmp.Result.SUCCESS, self._epoch(), external)
                self._send(natpmp.encode_response(told), address, natpmp.CLIENT_PORT)
        keys = {peer.public_key for peer in live}
        for mapped in self._gateway.guarded_mappings():
            nowhere = external is None and isinstance(mapped.mapping, PortMapping)
            if mapped.mapping.peer in keys and not nowhere:
                message = requests.changed(mapped, self._epoch(), external)
                self._send(message, mapped.mapping.internal.address, pcp.CLIENT_PORT)
                await asyncio.sleep(0)  # nobody who asks waits for thousands of these

    def _send(self, message: bytes, address: Address, port: int) -> None:
        transport = self._announcers.get(address.version)
        if transport is not None:
            transport.sendto(message, (str(address), port))

    def _count(self, what: str) -> None:
        self._gateway.counters["port control", what] += 1


class _Listener(asyncio.DatagramProtocol):
    _transport: asyncio.DatagramTransport

    def __init__(self, port_control: PortControl) -> None:
        self._port_control = port_control

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # Python 3.11's bears another name

    def datagram_received(self, data: bytes, addr: Source) -> None:
        self._port_control.received(data, addr, self._transport)

    def error_received(self, exc: Exception) -> None:  # a peer without an endpoint yet, or that has just gone
        log.debug("not sent: %s", exc)


def _socket(interface: str, address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - it has no name
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.bind((str(address), pcp.SERVER_PORT))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"UDP {address} port {pcp.SERVER_PORT}: {error.strerror}") from error
    return sock
