"""Finds out whether a NAT in front of this server forwards ports to it, or only lets answers in (RFC 5780).

A NAT that forwards every port (1:1, as in most clouds, or a router's "DMZ host") lets mappings work. A carrier's NAT
does not, and neither does a home router that was not configured to forward.
"""

import asyncio
import errno
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from igd.host.stun import Answer, StunClient, Timing, cancel, repeat, udp_socket
from igd.wire.stun import TRANSACTION_ID_BYTES, IPv4Endpoint, encode_request

CARRIER_GRADE_NAT = IPv4Network("100.64.0.0/10")
"""The addresses between a provider's NAT and its customers (RFC 6598)."""

TIMING = Timing(requests=4, last=4)
"""The server has just answered: 5.5 seconds of silence mean that something drops its answers."""

CANNOT_TELL = "cannot tell whether the NAT in front of this server forwards ports to it"
NOBODY_REACHES = "nobody reaches the ports that peers map"
"""Parts of a verdict's text: it is unknown whether the NAT forwards ports; it does not."""


class Verdict(NamedTuple):
    """Whether the NAT forwards ports, None if that is unknown; `text` reports it to the operator, with the remedy."""

    forwards: bool | None
    text: str


class NatTest:
    """Has the server send a packet to a port that never sent any.

    `ports` yields UDP ports that mappings may use and none uses, in the order in which to try them. `obstacle(sender,
    address, port)` returns which of this machine's own rules may drop a packet of this sender to this address and port,
    or None; it may block.
    """

    def __init__(
        self,
        client: StunClient,
        ports: Callable[[], Iterable[int]],
        obstacle: Callable[[IPv4Address, IPv4Address, int], str | None],
        timing: Timing = TIMING,
    ) -> None:
        self._client = client
        self._ports = ports
        self._obstacle = obstacle
        self._timing = timing

    async def judge(self, interface: str, answer: Answer) -> Verdict:
        """Return the verdict on the NAT behind which the server gave this answer."""
        if answer.mapped.address == answer.local.address:
            return Verdict(forwards=True, text="there is no NAT in front of this server")
        if answer.other is None:
            return _unknown(answer, f"{answer.server} does not speak RFC 5780")
        try:
            return await self._judge(interface, answer, answer.other)
        except OSError as error:
            return _unknown(answer, f"the test failed: {error.strerror or error}")

    async def _judge(self, interface: str, answer: Answer, other: IPv4Endpoint) -> Verdict:
        silent = self._silent_socket(interface, answer.local.address)
        if silent is None:
            return _unknown(answer, "no port that peers may map is free")
        with silent, self._client.open(interface, answer.local.address) as sock:
            port = silent.getsockname()[1]
            arrived = await self._arrives_at(silent, sock, answer.asked)
        if arrived:
            how = f"an unrequested packet to UDP port {port} of {answer.mapped.address} arrived"
            return Verdict(forwards=True, text=f"the NAT in front of this server forwards ports to it: {how}")
        sender = answer.asked.address
        if arrived is None:
            sender = other.address
            with self._client.open(interface, answer.local.address) as sock:
                port = sock.getsockname()[1]
                if await self._arrives_from(other, sock, answer.asked) is not False:
                    return _unknown(answer, f"{answer.server} does not speak all of RFC 5780 (RESPONSE-PORT)")
        where = await asyncio.to_thread(self._obstacle, sender, answer.local.address, port)
        if where is not None:
            return _unknown(answer, f"this server's own firewall may drop the test packet ({where})")
        return _forwards_nothing(answer, port)

    def _silent_socket(self, interface: str, source: IPv4Address) -> socket.socket | None:
        """Return a socket at one of the ports, or None if none can be had."""
        for port in self._ports():
            try:
                return udp_socket(interface, source, port)
            except OSError as error:
                if error.errno not in {errno.EADDRINUSE, errno.EACCES}:  # below 1024, the service may not listen
                    raise
        return None

    async def _arrives_at(self, silent: socket.socket, sock: socket.socket, asked: IPv4Endpoint) -> bool | None:
        """Return whether the answer arrives at the silent socket; None: the server does not know RESPONSE-PORT."""
        transaction_id = secrets.token_bytes(TRANSACTION_ID_BYTES)
        request = encode_request(transaction_id, response_port=silent.getsockname()[1])
        outcomes = (
            self._outcome(silent, transaction_id, {asked: True}),
            self._outcome(sock, transaction_id, {asked: None}),
        )
        return await self._send(sock, request, asked, _first(*outcomes))

    async def _arrives_from(self, other: IPv4Endpoint, sock: socket.socket, asked: IPv4Endpoint) -> bool | None:
        """Return whether the answer arrives from the other address; None: the server does not know CHANGE-REQUEST."""
        transaction_id = secrets.token_bytes(TRANSACTION_ID_BYTES)
        request = encode_request(transaction_id, change_address=True)
        return await self._send(sock, request, asked, self._outcome(sock, transaction_id, {other: True, asked: None}))

    async def _outcome(
        self, sock: socket.socket, transaction_id: bytes, outcomes: Mapping[IPv4Endpoint, bool | None]
    ) -> bool | None:
        """Wait for a response at this socket, and return what its sender stands for."""
        response = await self._client.response(sock, transaction_id, *outcomes)
        return outcomes[response.sender]

    async def _send(
        self, sock: socket.socket, request: bytes, asked: IPv4Endpoint, outcome: Coroutine[Any, Any, bool | None]
    ) -> bool | None:
        """Send the request until there is an outcome, and return it; False without one."""
        try:
            return await repeat(lambda: sock.sendto(request, (str(asked.address), asked.port)), outcome, self._timing)
        except TimeoutError:
            return False


async def _first(*outcomes: Coroutine[Any, Any, bool | None]) -> bool | None:
    tasks = list(map(asyncio.create_task, outcomes))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        await cancel(tasks)


def _forwards_nothing(answer: Answer, port: int) -> Verdict:
    local, outside = answer.local.address, answer.mapped.address
    found = f"the NAT in front of this server dropped an unrequested packet to UDP port {port} of {outside}"
    remedy = f"forward the ports that peers may map, UDP and TCP, to {local} at the router"
    if local in CARRIER_GRADE_NAT:
        remedy = f"ask the provider for a public address, as {local} is one of its own NAT (RFC 6598)"
    return Verdict(forwards=False, text=f"{found}: {NOBODY_REACHES}; {remedy}")


def _unknown(answer: Answer, reason: str) -> Verdict:
    hint = ""
    if answer.local.address in CARRIER_GRADE_NAT:
        hint = f"; {answer.local.address} is an address of a provider's own NAT (RFC 6598), which usually forwards none"
    elif answer.mapped.port != answer.local.port:
        hint = "; it changes source ports, which a NAT that forwards every port does not do"
    return Verdict(forwards=None, text=f"{CANNOT_TELL}: {reason}{hint}")
