"""The disk of the leases is full: igd starts, closes and renews, refuses what is new, and saves all later."""

import itertools
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from tests.e2e import control, stored
from tests.e2e.pcp_client import exchange, map_port, refused
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, igd, ports, serving, start, upnpc
from tests.lab import Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.wire.pcp import client_codec
from tests.wire.pcp.client_codec import MapResponse

pytestmark = requires_root


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "nft")


@pytest.fixture
def small_disk(lab: Lab) -> None:
    lab.srv.run("mkdir", "-p", "-m", "700", "/var/lib/igd/wg0")
    lab.srv.run("mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", "/var/lib/igd/wg0")


@contextmanager
def full(lab: Lab) -> Iterator[None]:
    """Leave no room for the leases during the block."""
    lab.srv.run("sh", "-c", "cat /dev/zero > /var/lib/igd/wg0/junk", check=False)
    yield
    lab.srv.run("rm", "/var/lib/igd/wg0/junk")


def saved(lab: Lab) -> float:
    """Return how many leases the file has."""
    return stored.read(lab, "SELECT count(*) FROM lease")


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_becomes_full_closes_and_renews_and_opens_nothing(lab: Lab) -> None:
    with start(lab) as process, answering(lab.c1, 8043), answering(lab.c1, 8045):
        for port in ("8043", "8044", "8045"):
            upnpc(lab.c1, "-a", C1, port, port, "tcp", "300")
        with full(lab):
            _fill_the_journal(lab)
            before = ports(lab)
            assert control.ask(lab.c1, "DeletePortMapping", control.key(8043)) == 200
            with pytest.raises(ConnectionRefusedError):
                ask(lab.net, PUBLIC, 8043)
            upnpc(lab.c1, "-a", C1, "8044", "8044", "tcp", "3000")
            assert ask(lab.net, PUBLIC, 8045).source == REMOTE
            _assert_new_ones_are_refused(lab)
            assert ports(lab) == [port for port in before if port != ("TCP", 8043)]
            assert saved(lab) == len(before)
            assert re.search("(?m)^warning +leases cannot be saved: ", igd(lab, "status", "wg0").stdout)
        until(lambda: saved(lab) == len(before) - 1)
        process.signal(signal.SIGKILL)
        process.wait()
    with serving(lab):
        assert ports(lab) == [port for port in before if port != ("TCP", 8043)]
        assert control.add(lab.c1, {"ExternalPort": 9003}) == 200
    lines = [line for line in process.lines if "cannot be saved" in line or "saved again" in line]
    assert len(lines) == 2, lines


@pytest.mark.usefixtures("small_disk")
def test_a_stop_names_the_ports_that_the_next_start_opens_again(lab: Lab) -> None:
    process = start(lab)
    for port in ("8043", "8044"):
        upnpc(lab.c1, "-a", C1, port, port, "tcp", "300")
    with full(lab):
        _fill_the_journal(lab)
        assert control.ask(lab.c1, "DeletePortMapping", control.key(8043)) == 200
        assert process.stop() == 0
        with serving(lab):
            assert ("TCP", 8043) in ports(lab)
    (line,) = [line for line in process.lines if "opens again what was closed" in line]
    assert f"TCP 8043 -> {C1}:8043; " in line
    assert "8044" not in line


def _fill_the_journal(lab: Lab) -> None:
    """Map ports until one is refused: the last block of the journal may have room."""
    ports = itertools.count(9010)
    until(lambda: control.add(lab.c1, {"ExternalPort": next(ports)}) == 501)


def _assert_new_ones_are_refused(lab: Lab) -> None:
    """Assert what each protocol says when the server cannot carry out a request."""
    assert control.add(lab.c1, {"ExternalPort": 9002}) == 501
    assert refused(map_port(lab.c2, 9002, source=C2)) is pcp.Result.NO_RESOURCES
    request = natpmp.MapRequest(natpmp.MAP[2], 9002, 9002, 300)
    response = client_codec.decode_natpmp(exchange(lab.c2, GATEWAY, client_codec.encode(request)))
    assert isinstance(response, MapResponse)
    assert response.result == natpmp.Result.OUT_OF_RESOURCES


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("state", ["new", "stopped", "killed"])
def test_igd_starts_with_a_full_disk(lab: Lab, state: str) -> None:
    held = []
    if state != "new":
        process = start(lab)
        upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
        process.signal(signal.SIGKILL if state == "killed" else signal.SIGTERM)
        process.wait()
        held = [("TCP", 8043)]
    with full(lab):
        with serving(lab), answering(lab.c1, 8043):
            assert ports(lab) == held
            _fill_the_journal(lab)
            if held:
                assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        process = start(lab)
    until(lambda: control.add(lab.c1, {"ExternalPort": 9003}) == 200)
    process.signal(signal.SIGKILL)
    process.wait()
    with serving(lab):
        assert ("TCP", 9003) in ports(lab)
        assert [port for port in held if port not in ports(lab)] == []
