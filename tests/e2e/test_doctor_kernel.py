"""igd doctor compares the kernel's mappings with igd's, and finds those that nobody serves."""

import signal
from collections.abc import Iterator

import pytest

from tests.e2e.doctoring import Row, doctor
from tests.e2e.pcp_client import C1_IPV6, granted, map_port
from tests.e2e.serving import igd, start, upnpc
from tests.lab import Lab
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root


@pytest.fixture(scope="module")
def server(root: None) -> Iterator[Lab]:
    """A lab whose tests leave it without mappings."""
    with Lab() as lab:
        yield lab


def _row(lab: Lab) -> Row:
    (row,) = (row for row in doctor(lab) if row.check == "kernel")
    return row


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_mappings_are_the_same_until_nobody_serves_them(server: Lab, backend: str) -> None:
    needs("upnpc", "iptables-legacy")
    assert _row(server).text == "igd is not running, and the kernel has no mappings"
    with start(server, f'[firewall]\nbackend = "{backend}"\n') as doomed:
        upnpc(server.c1, "-r", "8043", "tcp", "8044", "udp")
        granted(map_port(server.c1, 8043, source=C1_IPV6))
        assert _row(server)[1:] == ("green", "the kernel has all 3 mappings, and no others", "")
        doomed.signal(signal.SIGKILL)
        doomed.wait()
    names = f"TCP 8043, TCP [{C1_IPV6}]:8043, UDP 8044"
    text = f"no igd runs, and the kernel still has mappings, until 30 s after the end of their leases: {names}"
    assert _row(server)[1:] == ("yellow", text, "igd run wg0 --detach")
    server.srv.run("rm", "/var/lib/igd/wg0/leases.sqlite")
    row = _row(server)
    assert (row.colour, row.remedy) == ("red", "igd stop wg0")
    assert row.text == f"no igd runs, and the kernel has mappings that no lease is stored for: {names}"
    igd(server, "stop", "wg0")
    assert _row(server).colour == "green"
