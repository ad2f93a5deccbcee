"""One peer's connections, from as many addresses as it likes, cost another peer no answer."""

import contextlib
import errno
import itertools
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.e2e import control
from tests.e2e.control import ask, head
from tests.e2e.serving import C2, decisions, serving, upnpc
from tests.lab import Lab, Process, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

ROUTED = IPv4Address("10.77.0.1")
REQUESTS = 200
"""That the other peer makes; a client that maps a port makes three to ten."""

PAGE = b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\n\r\n"
EXPECT = b"GET / HTTP/1.1\r\nHost: 10.100.0.1\r\nExpect: x\r\n\r\n"
M_POST = b"M-POST / HTTP/1.1\r\nHost: 10.100.0.1\r\n\r\n"


@pytest.fixture
def routed(lab: Lab) -> Lab:
    """The lab; c2 may send from all of 10.77.0.0/16."""
    key = lab.c2.run("sh", "-c", "wg show wg0 private-key | wg pubkey").stdout.strip()
    lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"{C2}/32,10.77.0.0/16")
    lab.srv.run("ip", "route", "add", "10.77.0.0/16", "dev", "wg0")
    lab.c2.run("ip", "route", "add", "local", "10.77.0.0/16", "dev", "lo")
    return lab


def sources(count: int) -> Iterator[str]:
    """Return this many addresses of c2's."""
    return (str(ROUTED + number) for number in range(count))


def answers(lab: Lab) -> list[int]:
    """Return the results of the other peer's requests, one after another."""
    return [ask(lab.c1, "GetExternalIPAddress") for _ in range(REQUESTS)]


def is_answered(lab: Lab, request: bytes, source: str) -> bool:
    """Return whether a request of c2's is answered, and not reset."""
    try:
        response = control.exchange(lab.c2, request, source=source)
    except ConnectionError:
        return False
    assert b"\r\nServer: Linux UPnP/1.1 igd/" in response.rest
    return True


@contextmanager
def repeating(action: Callable[[], object]) -> Iterator[None]:
    """Repeat an action in another thread."""
    ends = threading.Event()

    def repeat() -> None:
        while not ends.is_set():
            with contextlib.suppress(ConnectionError):
                action()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def test_a_routed_network_has_the_places_of_one_peer(routed: Lab) -> None:
    with serving(routed, "[limits]\nrequests_per_second = 10000\n"), ExitStack() as held:
        for source in sources(600):
            with contextlib.suppress(ConnectionError):
                held.enter_context(control.connect(routed.c2, source))
        assert answers(routed) == [200] * REQUESTS
        assert decisions(routed)["http too many connections"] == 600 - 32
        assert "8043" in upnpc(routed.c1, "-r", "8043", "tcp")


@pytest.mark.parametrize(
    "request_", [PAGE, EXPECT, b"M-POST / HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["page", "expect", "M-POST"]
)
def test_what_aiohttp_answers_itself_is_counted_for_the_peer(routed: Lab, request_: bytes) -> None:
    with serving(routed, "[limits]\nrequests_per_second = 10\n") as process:
        begin, lines = time.monotonic(), len(process.lines)
        answered = sum(is_answered(routed, request_, source) for source in sources(300))
        assert answered <= 10 * (2 + time.monotonic() - begin)
        assert decisions(routed)["http too many requests"] == 300 - answered
        assert ask(routed.c1, "GetExternalIPAddress") == 200
        assert process.lines[lines:] == []


def test_connections_that_are_opened_and_reset_at_once_cost_nobody_an_answer(routed: Lab) -> None:
    addresses = itertools.cycle(sources(500))

    def open_and_reset() -> None:
        with control.connect(routed.c2, next(addresses)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(routed) as process:
        lines = len(process.lines)
        with repeating(open_and_reset):
            until(lambda: decisions(routed).get("http too many requests", 0) > 100)
            assert answers(routed) == [200] * REQUESTS
        assert process.lines[lines:] == []


def test_half_open_connections_keep_nobody_out(routed: Lab) -> None:
    """More than the kernel remembers: it answers with SYN cookies then."""
    needs("iptables")
    routed.c2.run(*"iptables -A INPUT -d 10.77.0.0/16 -p tcp --tcp-flags SYN,ACK SYN,ACK -j DROP".split())
    with serving(routed):
        for source in sources(6_000):
            with routed.c2.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
                connection.bind((source, 0))
                connection.settimeout(0)
                assert connection.connect_ex(control.ADDRESS) == errno.EINPROGRESS
        assert answers(routed) == [200] * REQUESTS


def test_requests_that_never_end_free_their_places(routed: Lab) -> None:
    """After ten seconds the server's kernel keeps nothing of them either."""
    with serving(routed, "[limits]\nconnections_per_peer = 4\n"), ExitStack() as held:
        for source in sources(4):
            connection = held.enter_context(control.connect(routed.c2, source))
            connection.sendall(head("GetExternalIPAddress", {"Content-Length": 1000}))
        until(lambda: is_answered(routed, PAGE, C2))
        assert not routed.srv.run("ss", "-Htan", "sport = :2869 and dst 10.77.0.0/16").stdout


def test_running_out_of_descriptors_costs_a_line_a_second_and_passes(routed: Lab) -> None:
    with serving(routed, "[port_control]\nenabled = false\n") as process, ExitStack() as held:
        assert answers(routed) == [200] * REQUESTS
        lines, begin = len(process.lines), time.monotonic()
        limit = len(list(Path(f"/proc/{process.pid}/fd").iterdir())) + 4
        set_limit(process, limit)
        for source in sources(60):
            held.enter_context(control.connect(routed.c2, source))
        for _ in range(3):
            process.wait_for("HTTP connections wait for 1 s: Too many open files; set a higher LimitNOFILE=")
        logged, passed = process.lines[lines:], time.monotonic() - begin
        assert sum("HTTP connections wait" in line for line in logged) <= passed + 1
        others = [line for line in logged if "HTTP connections wait" not in line]
        assert len(others) == len(set(others)), others  # what else needs descriptors reports it once
        assert not [line for line in logged if "Traceback" in line]
        set_limit(process, 1024)
        assert answers(routed) == [200] * REQUESTS
        assert decisions(routed)["http accepting paused"] >= 3


def set_limit(process: Process, limit: int) -> None:
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, 4096))
