"""One peer causes as many log lines as it can: the log stays small, and another peer's lines are all there."""

import re
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.opcodes import Map
from igd.wire.pcp.options import NO_OPTIONS, Filter, Options
from tests.e2e import control
from tests.e2e.pcp_client import NONCE, connected
from tests.e2e.serving import C1, C2, GATEWAY, serving, upnpc
from tests.lab import Host, Lab, Process
from tests.lab.fixtures import needs, requires_root
from tests.wire.pcp import client_codec

pytestmark = requires_root

SECONDS = 5.0
MOST_BYTES = 20_000  # in a second
FORGED = "ERROR igd: the disk is full"
LONG = f"&#10;{FORGED}{'&#xE0001;' * 220}"
"""The longest description: a line break, a forged line, and characters that are ten each when they are escaped."""

FILTERS = Options(filters=tuple(Filter(96 + 32, 1000 + n, ip_address(f"198.51.100.{n}")) for n in range(16)))


def _add(client: Host, round_: int) -> None:
    control.add(client, {"ExternalPort": 9000 + round_ % 50, "PortMappingDescription": LONG})


def _add_refused(client: Host, _round: int) -> None:
    control.add(client, {"ExternalPort": 1023, "PortMappingDescription": LONG})


def _delete(client: Host, round_: int) -> None:
    control.ask(client, "DeletePortMapping", {
        "RemoteHost": "", "ExternalPort": 9000 + round_ % 50, "Protocol": "TCP",
    })  # fmt: skip


def _send(client: Host, datagram: bytes) -> None:
    with connected(client, GATEWAY) as sock:
        sock.settimeout(0.1)  # no answer: the peer has reached its rate
        sock.send(datagram)
        sock.recv(2048)


def _pcp(client: Host, round_: int) -> None:
    payload = Map(NONCE, TransportProtocol.TCP, 9100, 9100, ip_address("0.0.0.0"))
    lifetime, options = (0, NO_OPTIONS) if round_ % 2 else (7200, FILTERS)
    _send(client, client_codec.encode(pcp.Request(lifetime, ip_address(C1), payload, options)))


def _natpmp(client: Host, round_: int) -> None:
    lifetime = 0 if round_ % 2 else 7200
    _send(client, client_codec.encode(natpmp.MapRequest(TransportProtocol.UDP, 9200, 9200, lifetime)))


def _malformed(client: Host, _round: int) -> None:
    with control.connect(client) as connection:
        connection.sendall(b"GET /\x01\x1b[2J HTTP/1.1\r\nHost: \r\nA: b\r\n c\r\n\r\n")
        connection.recv(100)
    _send(client, b"\x02\x01" + bytes(14))


FLOODS: list[Callable[[Host, int], None]] = [_add, _add_refused, _delete, _pcp, _natpmp, _malformed]


def _flood(client: Host, floods: list[Callable[[Host, int], None]], until: float) -> None:
    round_ = 0
    while time.monotonic() < until:
        for flood in floods:
            try:
                flood(client, round_)
            except OSError:  # refused for its rate
                continue
        round_ += 1


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_peer_cannot_fill_the_log(lab: Lab, backend: str) -> None:
    needs("upnpc")
    with serving(lab, f'[firewall]\nbackend = "{backend}"\n') as process:
        before, begin = len(process.lines), time.monotonic()
        threads = [
            threading.Thread(target=_flood, args=(lab.c1, floods, begin + SECONDS))
            for floods in (FLOODS[:3], FLOODS[3:5])
        ] + [threading.Thread(target=_flood, args=(lab.c1, FLOODS[5:], begin + SECONDS))]
        for thread in threads:
            thread.start()
        for port in range(9300, 9305):
            upnpc(lab.c2, "-e", "of c2", "-a", C2, str(port), str(port), "tcp", "300")
        for thread in threads:
            thread.join()
        lines, seconds = process.lines[before:], time.monotonic() - begin
    size = sum(len(line.encode()) + 1 for line in lines)
    assert size / seconds < MOST_BYTES
    assert [line for line in lines if f"('\\n{FORGED[:20]}" in line]
    granted = [line for line in lines if re.search(rf"{C2} .* map TCP 930\d .*'of c2'\): GRANTED", line)]
    assert len(granted) == 5
    assert not [line for line in process.lines if line.startswith(FORGED) or not line.isprintable()]
    assert _left_out(process, lab.c1) > 0


def _left_out(process: Process, client: Host) -> int:
    """Return how many lines of this peer the log says were left out."""
    key = client.run("sh", "-c", "wg show wg0 private-key | wg pubkey").stdout[:8]
    counts = (re.search(rf"left out (\d+) log lines of peer {re.escape(key)}: ", line) for line in process.lines)
    return sum(int(found[1]) for found in counts if found)
