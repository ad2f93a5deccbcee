"""One peer's flood: `python -m benchmarks.flooder KIND RATE SECONDS`, in the network of the peer.

It sends so many requests a second at most, prints "flooding" when it begins, and at the end how many it sent. Datagrams
are built before. An HTTP request is a connection of its own, of which CONNECTIONS are open at most.
"""

import contextlib
import itertools
import os
import random
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from benchmarks.soap import CLIENT, GATEWAY
from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.opcodes import Map
from igd.wire.pcp.options import NO_OPTIONS, Filter, Options
from tests.wire.pcp import client_codec

ROUTED = IPv4Network("10.77.0.0/16")
"""A network behind the flooding peer: it may send from all of these addresses."""

HTTP_PORT, PORT_CONTROL, SSDP = 2869, 5351, 1900

CONNECTIONS = 700
"""More than a gateway accepts at once."""

SOCKETS = 32  # of UDP
VARIATIONS = 1024  # of datagrams, each built once
SLICE = 100  # requests that are sent at once at most
LATE_SECONDS = 0.1  # a backlog that is older is left out: the rate is a maximum
IDLE_SECONDS = 0.0005
SLOW_SECONDS = 1.0  # between two bytes of a slow request
GIANT = 1 << 20  # bytes of a giant body

_CONTROL = "/control/WANIPConn1"
_SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"

Datagram = tuple[int, bytes]
"""A port of the server, and what is sent there."""


# Datagrams, by number


def _natpmp(number: int) -> Datagram:
    port = 2000 + number % 60_000
    request = natpmp.MapRequest(TransportProtocol.TCP, port, port, 60 if number % 3 else 0)
    return PORT_CONTROL, client_codec.encode(request)


def _pcp(number: int, client: IPv4Address = IPv4Address(CLIENT), options: Options = NO_OPTIONS) -> Datagram:  # noqa: B008 - an address never changes
    payload = Map(os.urandom(12), TransportProtocol.TCP, 2000 + number % 60_000, 0, IPv4Address(0))
    return PORT_CONTROL, client_codec.encode(pcp.Request(600, client, payload, options))


def _filters(number: int) -> Datagram:
    """Change the remote hosts of one of 64 mappings."""
    remotes = tuple(Filter(128, 0, IPv4Address(random.getrandbits(32))) for _ in range(8))
    payload = Map(b"twelve bytes", TransportProtocol.UDP, 3000 + number % 64, 0, IPv4Address(0))
    request = pcp.Request(600, IPv4Address(CLIENT), payload, Options(filters=remotes))
    return PORT_CONTROL, client_codec.encode(request)


def _search(number: int) -> Datagram:
    target = "ssdp:all" if number % 2 else "upnp:rootdevice"
    lines = ("M-SEARCH * HTTP/1.1", "HOST: 239.255.255.250:1900", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {target}")
    return SSDP, ("\r\n".join(lines) + "\r\n\r\n").encode()


def _large(number: int) -> Datagram:
    """Return what no request is as large as."""
    return (SSDP if number % 2 else PORT_CONTROL), _search(number)[1] + b"X" * 65_000


DATAGRAMS: Mapping[str, Callable[[int], Datagram]] = {
    "natpmp": _natpmp,
    "pcp": _pcp,
    "filters": _filters,
    "search": _search,
    "large": _large,
}

Send = Callable[[int], int]
"""Sends so many requests, or as many as is possible now, and returns how many."""


def datagrams(make: Callable[[int], Datagram]) -> Send:
    """Return what sends datagrams from SOCKETS ports of the peer."""
    return _sender([(socket_to(make(0)[0], ""), make) for _ in range(SOCKETS)])


def routed() -> Send:
    """Return what sends requests for mappings from ever other addresses behind the peer."""
    sockets = []
    for number in range(8 * SOCKETS):
        source = ROUTED[1 + number * 255]
        port = SSDP if number % 3 == 0 else PORT_CONTROL
        make = _search if port == SSDP else _natpmp if number % 3 == 1 else _pcp_from(source)
        sockets.append((socket_to(port, str(source)), make))
    return _sender(sockets)


def _pcp_from(source: IPv4Address) -> Callable[[int], Datagram]:
    return lambda number: _pcp(number, source)


def socket_to(port: int, source: str) -> socket.socket:
    """Return a UDP socket that is connected to a port of the gateway."""
    sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sending.setblocking(False)  # noqa: FBT003 - the parameter has no name
    sending.bind((source, 0))
    sending.connect((GATEWAY, port))
    return sending


def _sender(sockets: Sequence[tuple[socket.socket, Callable[[int], Datagram]]]) -> Send:
    each = max(1, VARIATIONS // len(sockets))
    pairs = [(sending, make(index)[1]) for index in range(each) for sending, make in sockets]
    ring = itertools.cycle(pairs)

    def send(count: int) -> int:
        for sending, datagram in itertools.islice(ring, count):
            # refused: nobody listens; the buffer is full: it is lost, as on a slow link
            with contextlib.suppress(ConnectionRefusedError, BlockingIOError):
                sending.send(datagram)
        return count

    return send


# HTTP


def _head(length: int, action: str = "AddPortMapping") -> bytes:
    lines = (
        f"POST {_CONTROL} HTTP/1.1",
        f"Host: {GATEWAY}:{HTTP_PORT}",
        f"Content-Length: {length}",
        "Content-Type: text/xml",
        f'SOAPAction: "{_SERVICE}#{action}"',
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _names(number: int) -> bytes:
    """Return a request whose XML has names that no request had before."""
    names = b"".join(b"<n%d a%d='1'/>" % (each, each) for each in range(number * 400, number * 400 + 400))
    body = b"<s:Envelope xmlns:s='http://schemas.xmlsoap.org/soap/envelope/'><s:Body>%s</s:Body></s:Envelope>" % names
    return _head(len(body)) + body


def _giant(_number: int) -> bytes:
    return _head(GIANT) + b"<" * GIANT


def _status(_number: int) -> bytes:
    body = (
        f'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><u:GetStatusInfo xmlns:u="{_SERVICE}"'
        "/></s:Body></s:Envelope>"
    ).encode()
    return _head(len(body), "GetStatusInfo") + body


def _expect(_number: int) -> bytes:
    return _head(0).replace(b"\r\n\r\n", b"\r\nExpect: x\r\n\r\n")


HTTP: Mapping[str, Callable[[int], bytes]] = {"http": _status, "names": _names, "giant": _giant, "expect": _expect}


class Connections:
    """HTTP requests, each on a connection of its own, which ends with the first bytes of the answer.

    A slow one sends a byte each SLOW_SECONDS until the server closes it.
    """

    def __init__(self, make: Callable[[int], bytes], *, slow: bool = False, sources: Iterable[str] = ("",)) -> None:
        self._make = make
        self._slow = slow
        self._sources = itertools.cycle(sources)
        self._numbers = itertools.count(random.getrandbits(40))
        self._selector = selectors.DefaultSelector()
        self._unsent: dict[socket.socket, bytes] = {}
        self._next_byte = time.monotonic()

    def send(self, count: int) -> int:
        """Open so many connections, as far as there is room, and serve those that are open; return how many opened."""
        opened = min(count, CONNECTIONS - len(self._unsent))
        for _ in range(opened):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            connection.setblocking(False)  # noqa: FBT003 - the parameter has no name
            source = next(self._sources)
            if source:
                connection.bind((source, 0))
            connection.connect_ex((GATEWAY, HTTP_PORT))
            self._unsent[connection] = self._make(next(self._numbers))
            self._selector.register(connection, selectors.EVENT_WRITE)
        for key, _ in self._selector.select(0):
            assert isinstance(key.fileobj, socket.socket), "only sockets are registered"
            self._serve(key.fileobj, writable=bool(key.events & selectors.EVENT_WRITE))
        if self._slow and time.monotonic() > self._next_byte:
            self._next_byte = time.monotonic() + SLOW_SECONDS
            for connection in list(self._unsent):
                self._write(connection, 1)
        return opened

    def _serve(self, connection: socket.socket, *, writable: bool) -> None:
        if writable and not self._slow:
            self._write(connection, len(self._unsent[connection]))
        elif writable:
            self._selector.modify(connection, selectors.EVENT_READ)
        else:
            self._close(connection)

    def _write(self, connection: socket.socket, size: int) -> None:
        unsent = self._unsent[connection]
        try:
            sent = connection.send(unsent[:size])
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        self._unsent[connection] = unsent[sent:]
        if not unsent[sent:]:
            self._selector.modify(connection, selectors.EVENT_READ)

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._unsent[connection]
        connection.close()


def _mixed() -> Send:
    sends = itertools.cycle([sender(kind) for kind in KINDS if kind != "mixed"])

    def send(count: int) -> int:
        share = max(1, count // 8)
        return sum(next(sends)(share) for _ in range(0, count, share))

    return send


KINDS = (*DATAGRAMS, "routed", *HTTP, "slow", "routed http", "mixed")


def sender(kind: str) -> Send:
    """Return what sends requests of this kind."""
    if kind in DATAGRAMS:
        return datagrams(DATAGRAMS[kind])
    if kind in HTTP:
        return Connections(HTTP[kind]).send
    if kind == "routed":
        return routed()
    if kind == "routed http":
        return Connections(_status, sources=[str(ROUTED[number * 250 + 1]) for number in range(256)]).send
    return Connections(_status, slow=True).send if kind == "slow" else _mixed()


def due(rate: int, seconds: float) -> Iterator[int]:
    """Yield how many requests are due, until `seconds` are over."""
    start = last = time.monotonic()
    while (now := time.monotonic()) < start + seconds:
        last = max(last, now - LATE_SECONDS)
        count = min(int((now - last) * rate), SLICE)
        last += count / rate
        yield count
        if count < SLICE:
            time.sleep(IDLE_SECONDS)


def main() -> None:
    """Flood."""
    kind, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    send = sender(kind)
    print("flooding", flush=True)
    sent = 0
    for count in due(rate, seconds):
        sent += send(count)
    print(f"sent {sent / seconds:.0f} a second", flush=True)


if __name__ == "__main__":
    main()
