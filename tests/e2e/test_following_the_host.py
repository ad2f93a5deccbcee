"""igd follows the host: what comes later, goes or changes needs no restart."""

import pytest

from igd.wire.pcp import messages as pcp
from tests.e2e.pcp_client import C1_IPV6, granted, map_port, refused
from tests.e2e.serving import IGD, PUBLIC, REMOTE, igd, serving, upnpc
from tests.lab import Answer, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "natpmpc", "nft")


def test_a_default_route_that_comes_late(lab: Lab) -> None:
    """Pinholes do not wait for it."""
    lab.srv.run("ip", "route", "add", "70.70.70.0/24", "via", REMOTE)  # the tunnel's own packets
    lab.srv.run("ip", "route", "del", "default")
    with serving(lab) as process, answering(lab.c1, 8043, "tcp"):
        assert granted(map_port(lab.c1, 8043, source=C1_IPV6)).external_port == 8043
        assert refused(map_port(lab.c1, 8043)) is pcp.Result.NETWORK_FAILURE
        lab.srv.run("ip", "route", "add", "default", "via", REMOTE)
        process.wait_for(f"external address: {PUBLIC}")
        upnpc(lab.c1, "-r", "8043", "tcp")
        assert ask(lab.net, PUBLIC, 8043, "tcp").source == REMOTE


def test_pinholes_need_no_ipv4_in_the_tunnel(lab: Lab) -> None:
    lab.srv.run("ip", "addr", "del", "10.100.0.1/24", "dev", "wg0")
    with serving(lab, '[firewall]\nforward_chain = "FORWARD"\n'), answering(lab.c1, 8043, "tcp", ipv6=True):
        assert granted(map_port(lab.c1, 8043, source=C1_IPV6)).external_port == 8043
        assert ask(lab.net, C1_IPV6, 8043, "tcp") == Answer("2001:470:60::2", "who am I?")


def test_another_address_of_the_interface_is_served_without_a_restart(lab: Lab) -> None:
    with lab.srv.start(*IGD, "run", "wg0") as process:
        process.wait_for("ready for")
        pid = igd(lab, "status", "wg0").stdout.split("pid")[1].split()[0]
        lab.srv.run("ip", "addr", "add", "10.100.0.9/32", "dev", "wg0")
        lab.srv.run("ip", "addr", "del", "10.100.0.1/24", "dev", "wg0")
        device = "http://10.100.0.9:2869/1/device.xml"
        until(lambda: PUBLIC in lab.c1.run("upnpc", "-u", device, "-s", check=False).stdout)
        assert igd(lab, "status", "wg0").stdout.split("pid")[1].split()[0] == pid
        assert process.stop() == 0
