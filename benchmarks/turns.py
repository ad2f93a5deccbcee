"""Taking turns: what is compared is measured alternately, so that what else the machine does falls on all alike."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from benchmarks import natpmp, soap, traffic
from benchmarks.figures import Series
from benchmarks.gateways import Gateway, filled
from igd.core.mapping import TransportProtocol
from igd.wire.pcp.natpmp import AddressRequest, Request
from tests.lab import Lab

Kinds = Mapping[str, Callable[[Gateway, int], float]]
"""The requests of one round, on one port, each with the seconds that it takes; after a round all is as it was."""

UPNP: Kinds = {
    "external address": lambda gateway, _: soap.ask(gateway.lab.c1, gateway.control, soap.EXTERNAL_ADDRESS),
    "add TCP": lambda gateway, port: soap.ask(gateway.lab.c1, gateway.control, soap.add("TCP", port)),
    "add UDP": lambda gateway, port: soap.ask(gateway.lab.c1, gateway.control, soap.add("UDP", port)),
    "delete UDP": lambda gateway, port: soap.ask(gateway.lab.c1, gateway.control, soap.delete("UDP", port)),
    "renew TCP": lambda gateway, port: soap.ask(gateway.lab.c1, gateway.control, soap.add("TCP", port)),
    "delete TCP": lambda gateway, port: soap.ask(gateway.lab.c1, gateway.control, soap.delete("TCP", port)),
}
"""miniupnpd reads its rules anew after each change: what follows a renewal is cheaper, and that is to be no add."""

NAT_PMP: Kinds = {
    "map TCP": lambda gateway, port: _natpmp(gateway, natpmp.mapping(TransportProtocol.TCP, port)),
    "map UDP": lambda gateway, port: _natpmp(gateway, natpmp.mapping(TransportProtocol.UDP, port)),
    "delete UDP": lambda gateway, port: _natpmp(gateway, natpmp.deletion(TransportProtocol.UDP, port)),
    "delete TCP": lambda gateway, port: _natpmp(gateway, natpmp.deletion(TransportProtocol.TCP, port)),
}
"""natpmpc, transmission and syncthing ask for the address before each of them, and wait for both answers."""

SPARE = 5
"""How many rounds of requests do not count, at the beginning."""

LATEST_END = 45.0
"""After so many seconds of them, rounds end, if at least LEAST counted."""

LEAST = 10

REST_SECONDS = 0.1
"""How long to wait for a gateway that has answered to come to rest."""

_FIRST_PORT = 3000  # below what gateways are filled with


T = TypeVar("T")


class Cost(NamedTuple):
    """What requests of one kind cost: seconds until the client has its answer, and the server's processor seconds."""

    wall: Series
    processor: float  # the mean: what is done once a second falls on some requests, and is spread over all


class Mappings(NamedTuple):
    """Two mappings that follow each other: the TCP one has this number, the UDP one the next."""

    lab: Lab
    number: int  # even


class Rates(NamedTuple):
    """What passed in a second."""

    connections: Series
    datagrams: Series


def requests(gateways: Sequence[Gateway], kinds: Kinds, rounds: int) -> list[Mapping[str, Cost]]:
    """Make rounds of requests to each, a round here and one there; the costs of each kind, by gateway."""
    meters = [_Meter(gateway, kinds) for gateway in gateways]
    end = time.monotonic() + LATEST_END
    for number in range(SPARE + rounds):
        if time.monotonic() > end and number >= SPARE + LEAST:
            break
        for meter in _rotated(meters, number):
            for kind in kinds:
                meter.ask(kind, _FIRST_PORT + number)
    return [meter.costs() for meter in meters]


class _Meter:
    """Asks one gateway; what it does after an answer, until it comes to rest, counts for that answer."""

    def __init__(self, gateway: Gateway, kinds: Kinds) -> None:
        self._gateway = gateway
        self._kinds = kinds
        self._walls: dict[str, list[float]] = defaultdict(list)
        self._spent: dict[str, list[float]] = defaultdict(list)

    def ask(self, kind: str, port: int) -> None:
        before = self._gateway.processor_seconds()
        self._walls[kind].append(self._kinds[kind](self._gateway, port))
        self._rest()
        self._spent[kind].append(self._gateway.processor_seconds() - before)

    def _rest(self) -> None:
        """Wait until it is done with what it does after the answer, so that the next one's turn is the next one's."""
        end, before = time.monotonic() + REST_SECONDS, -1.0
        while before != (before := self._gateway.processor_seconds()) and time.monotonic() < end:
            time.sleep(0.002)

    def costs(self) -> Mapping[str, Cost]:
        return {
            kind: Cost(Series(tuple(self._walls[kind][SPARE:])), statistics.mean(self._spent[kind][SPARE:]))
            for kind in self._kinds
        }


def _natpmp(gateway: Gateway, request: Request) -> float:
    return sum(natpmp.ask(gateway.lab.c1, gateway.control.natpmp, each) for each in (AddressRequest(), request))


def traffic_rates(paths: Sequence[Mappings], spells: int, seconds: float) -> list[Rates]:
    """Send TCP and UDP along each path in turn, in spells of so many seconds; the rates, by path."""
    rates: list[tuple[list[float], list[float]]] = [([], []) for _ in paths]
    for spell in range(spells):
        for (lab, number), (connections, datagrams) in _rotated(list(zip(paths, rates, strict=True)), spell):
            connections.append(traffic.connections_per_second(lab, filled(number)[1], seconds))
            datagrams.append(traffic.datagrams_per_second(lab, filled(number + 1)[1], seconds))
    return [Rates(Series(tuple(connections)), Series(tuple(datagrams))) for connections, datagrams in rates]


def _rotated(items: Sequence[T], by: int) -> list[T]:
    """Begin with another one in each round: to come first may be an advantage."""
    first = by % len(items)
    return [*items[first:], *items[:first]]
