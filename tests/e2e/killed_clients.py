"""Clients that ask for random mappings by one protocol each, and remember what the gateway owes them."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.opcodes import Map
from igd.wire.pcp.options import Filter, Options, PortSet
from tests.e2e import control
from tests.e2e.pcp_client import GATEWAY6, NONCE
from tests.e2e.serving import GATEWAY
from tests.lab import Host
from tests.wire.pcp import client_codec
from tests.wire.pcp.client_codec import MapResponse, Response

RESPONSE_SECONDS = 5.0  # for which a client waits while the gateway runs; a killed one rejects what it is sent
SET = 4  # ports of a port set


class Spot(NamedTuple):
    """What a mapping leads to; no two clients use the same."""

    protocol: str
    address: str
    port: int


@dataclass(frozen=True)
class Granted:
    """What a client was told about a mapping, and the monotonic times around it."""

    external_port: int
    lifetime: int
    asked: float
    told: float
    in_set: bool = False

    def admits(self, lease: int, begin: float, end: float) -> bool:
        """Return whether a lease that was listed between these times is the rest of this one.

        A port set has the shortest lifetime of its ports, so that the rest of one may be longer.
        """
        rounding = 2
        least, most = self.lifetime - (end - self.asked), self.lifetime - (begin - self.told)
        return least - rounding <= lease and (self.in_set or lease <= most + rounding)


class Client:
    """Asks by one protocol, in a thread, until it is stopped or gets no response.

    `known` is what it was told last. `doubtful` are the mappings of a request without a response.
    """

    def __init__(self, ask: "Ask", spots: list[Spot], size: int = 1) -> None:
        self._ask = ask
        self._size = size
        self._first = spots[::size]
        self.spots = spots
        self.known: dict[Spot, Granted] = {}
        self.doubtful: set[Spot] = set()
        self.responses = 0

    @contextmanager
    def running(self, rng: random.Random) -> Iterator[None]:
        """Ask during the block; leave when the last request has ended."""
        self.doubtful = set()
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop, rng))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _run(self, stop: threading.Event, rng: random.Random) -> None:
        while not stop.is_set():
            first = rng.choice(self._first)
            lifetime = rng.choice([0, 600, 3000, 7200])
            spots = [first._replace(port=first.port + number) for number in range(self._size)]
            try:
                asked = time.monotonic()
                granted = self._ask(first, lifetime)
            except OSError:
                self.doubtful = set(spots)
                return
            self.responses += 1
            if granted is None:
                continue
            for number, spot in enumerate(spots[: granted.size]):
                if lifetime:
                    port = granted.external_port + number
                    self.known[spot] = Granted(port, granted.lifetime, asked, time.monotonic(), self._size > 1)
                else:
                    self.known.pop(spot, None)


class Success(NamedTuple):
    """A success response, for `size` ports."""

    external_port: int
    lifetime: int
    size: int = 1


Ask = Callable[[Spot, int], Success | None]
"""Asks to map what begins with this spot for a lifetime, or with 0 to delete it; None if that is refused."""


def by_upnp(client: Host) -> Ask:
    def ask(spot: Spot, lifetime: int) -> Success | None:
        if not lifetime:
            code = control.ask(client, "DeletePortMapping", control.key(spot.port, spot.protocol), source=spot.address)
            return Success(spot.port, 0) if code in (200, 714) else None
        arguments = {
            "ExternalPort": spot.port,
            "InternalPort": spot.port,
            "Protocol": spot.protocol,
            "InternalClient": spot.address,
            "LeaseDuration": lifetime,
        }
        code = control.add(client, arguments, source=spot.address)
        return Success(spot.port, lifetime) if code == 200 else None

    return ask


def by_natpmp(client: Host) -> Ask:
    def ask(spot: Spot, lifetime: int) -> Success | None:
        suggested = 20000 + spot.port % 8 if lifetime else 0  # other clients want them, too
        request = natpmp.MapRequest(TransportProtocol[spot.protocol], spot.port, suggested, lifetime)
        response = client_codec.decode_natpmp(_exchange(client, GATEWAY, client_codec.encode(request)))
        if not isinstance(response, MapResponse) or response.result:
            return None
        return Success(response.external_port, response.lifetime)

    return ask


def by_pcp(client: Host, options: Options) -> Ask:
    def ask(spot: Spot, lifetime: int) -> Success | None:
        address = ip_address(spot.address)
        server, unspecified = (GATEWAY, "0.0.0.0") if address.version == 4 else (GATEWAY6, "::")
        suggested = 20000 + spot.port % 8 if lifetime else 0
        sent = options if lifetime or options.port_set else Options()
        if sent.port_set:
            sent = Options(port_set=PortSet(SET, spot.port))
        payload = Map(NONCE, TransportProtocol[spot.protocol], spot.port, suggested, ip_address(unspecified))
        request = client_codec.encode(pcp.Request(lifetime, address, payload, sent))
        response = client_codec.decode_pcp(_exchange(client, server, request, spot.address))
        if not isinstance(response, Response):
            return None
        assert isinstance(response.payload, Map)
        size = response.options.port_set.size if response.options.port_set else 1
        return Success(response.payload.external_port, response.lifetime, size)

    return ask


FILTERED = Options(filters=(Filter(128, 0, IPv4Address("198.51.100.7")), Filter(120, 53, IPv4Address("203.0.113.0"))))
FILTERED_6 = Options(filters=(Filter(32, 0, ip_address("2001:db8::")),))
IN_SETS = Options(port_set=PortSet(SET, 1))


def _exchange(client: Host, server: str, datagram: bytes, source: str = "") -> bytes:
    """Send a datagram, again every second, as clients do; OSError if a killed gateway rejects it."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    deadline = time.monotonic() + RESPONSE_SECONDS
    with client.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.settimeout(1.0)
        sock.connect((server, pcp.SERVER_PORT))
        while True:
            sock.send(datagram)
            try:
                return sock.recv(2048)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
