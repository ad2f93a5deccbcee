"""A peer that maps ports while another floods: its requests, with the retries of its clients, and its stopwatch."""

import contextlib
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

from benchmarks import soap
from benchmarks.soap import GATEWAY
from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.opcodes import Map
from tests.lab import Host
from tests.wire.pcp import client_codec

ADDRESS = "10.100.0.3"

FIRST_RETRY = 0.25
RETRIES = 4
"""NAT-PMP and PCP clients send again after 250 ms, then after twice the time each (RFC 6886 §3.1): 8 s in all."""

CONTROL = soap.Control(2869, "/control/WANIPConn1")

SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
)


class Unanswered(Exception):  # noqa: N818 - it says what happened to a request
    """A request that got no answer, or another than it asks for."""


class Bystander:
    """Maps and deletes ports by each protocol in turn; `times` has the seconds of its requests by protocol.

    `strict`: the answer must grant the request; otherwise any answer counts, as of a server that only answers.
    """

    def __init__(self, host: Host, *, strict: bool) -> None:
        self._host = host
        self._strict = strict
        self._round = 0
        self.times: dict[str, list[float]] = defaultdict(list)
        self.repeated = 0
        self.failures: list[str] = []

    def ask_all(self) -> None:
        """Make one request by each protocol, and delete the mappings again."""
        self._round += 1
        port = 40_000 + self._round % 500
        for name, request in self._requests(port).items():
            start = time.perf_counter()
            try:
                request()
            except (OSError, Unanswered) as failure:
                self.failures.append(f"{name}: {failure!r}")
            self.times[name].append(time.perf_counter() - start)

    def _requests(self, port: int) -> Mapping[str, Callable[[], None]]:
        return {
            "UPnP": lambda: self._http(soap.add("TCP", port, ADDRESS)),
            "UPnP delete": lambda: self._http(soap.delete("TCP", port)),
            "NAT-PMP": lambda: self._natpmp(port + 1000, 600),
            "NAT-PMP delete": lambda: self._natpmp(port + 1000, 0),
            "PCP": lambda: self._pcp(port + 2000, 600),
            "PCP delete": lambda: self._pcp(port + 2000, 0),
            "SSDP": self._search,
        }

    def _http(self, action: soap.Action) -> None:
        soap.ask(self._host, CONTROL, action)

    def _natpmp(self, port: int, lifetime: int) -> None:
        request = natpmp.MapRequest(TransportProtocol.UDP, port, port, lifetime)
        answer = self._datagram(5351, client_codec.encode(request))
        if self._strict and client_codec.decode_natpmp(answer).result:
            raise Unanswered(client_codec.decode_natpmp(answer))

    def _pcp(self, port: int, lifetime: int) -> None:
        payload = Map(b"twelve bytes", TransportProtocol.UDP, port, 0, IPv4Address(0))
        request = pcp.Request(lifetime, IPv4Address(ADDRESS), payload)
        answer = self._datagram(5351, client_codec.encode(request))
        if self._strict and not isinstance(client_codec.decode_pcp(answer), client_codec.Response):
            raise Unanswered(client_codec.decode_pcp(answer))

    def _search(self) -> None:
        self._datagram(1900, SEARCH)

    def _datagram(self, port: int, datagram: bytes) -> bytes:
        """Send a datagram until it is answered; Unanswered."""
        with self._host.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind((ADDRESS, 0))
            asking.connect((GATEWAY, port))
            for retry in range(RETRIES + 1):
                asking.settimeout(FIRST_RETRY * 2**retry)
                self.repeated += bool(retry)
                with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                    asking.send(datagram)
                    return asking.recv(2048)
        raise Unanswered("no answer")
