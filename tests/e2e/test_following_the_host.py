"""igd follows the host: what comes later, goes or changes needs no restart."""

import pytest

from igd.wire.pcp import messages as pcp
from tests.e2e.pcp_client import C1_IPV6, granted, map_port, refused
from tests.e2e.serving import C1, IGD, PUBLIC, REMOTE, igd, serving, upnpc
from tests.lab import PATIENCE, Answer, Lab, answering, ask, until
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


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_networks_of_peers_that_come_later_are_let_through(backend: str) -> None:
    """The operator's FORWARD lets in only what goes to wg0's own network."""
    iptables = "iptables-nft" if backend == "nftables" else "iptables-legacy"
    with Lab(forward="open", iptables="nft" if backend == "nftables" else "legacy") as lab:
        for rule in ("-A FORWARD -i wg0", "-A FORWARD -d 10.100.0.0/24 -o wg0"):
            lab.srv.run(iptables, "-w", *rule.split(), "-j", "ACCEPT")
        lab.srv.run(iptables, "-w", "-P", "FORWARD", "DROP")
        with serving(lab, f'[firewall]\nbackend = "{backend}"\n'):
            assert "igd_wg0" not in lab.srv.run(iptables, "-w", "-S", "FORWARD").stdout
            (peer, *_) = lab.srv.run("wg", "show", "wg0", "peers").stdout.split()
            lab.srv.run("wg", "set", "wg0", "peer", peer, "allowed-ips", f"{C1}/32,192.168.77.0/24")
            until(lambda: "igd_wg0" in lab.srv.run(iptables, "-w", "-S", "FORWARD").stdout)
        assert "igd_wg0" not in lab.srv.run(iptables, "-w", "-S", "FORWARD").stdout


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_mappings_stay_while_the_tunnel_is_down(lab: Lab, backend: str) -> None:
    with serving(lab, f'[firewall]\nbackend = "{backend}"\n'), answering(lab.c1, 8043):
        upnpc(lab.c1, "-r", "8043", "tcp")
        lab.srv.run("ip", "link", "set", "wg0", "down")
        lab.srv.run("ip", "link", "set", "wg0", "up")
        lab.c1.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", "10.100.0.1")
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        assert "8043->10.100.0.2:8043" in upnpc(lab.c1, "-l")
