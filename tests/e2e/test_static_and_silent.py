"""What the operator says about single peers, with real traffic: static, masquerade_inbound, idle_after."""

import re
import signal
from collections.abc import Iterator

import pytest

from tests.e2e import control, pcp_client
from tests.e2e.serving import C1, IGD, PUBLIC, REMOTE, held, igd, mappings, rules, serving, start, upnpc
from tests.lab import Host, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

BACKENDS = pytest.mark.parametrize("backend", ["nftables", "iptables"])
IDLE_SECONDS = 10
SHORT_IDLE = (
    *IGD[:3],
    "-c",
    f"import sys, igd.cli, igd.config_values as v; v.MIN_IDLE_SECONDS = {IDLE_SECONDS}; sys.exit(igd.cli.main())",
)
"""igd, as IGD, without the lower limit of `idle_after`."""


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "nft", "conntrack")


def section(client: Host, lines: str, backend: str = "nftables") -> str:
    """Return a configuration with a section for this client."""
    key = client.run("wg", "show", "wg0", "public-key").stdout.strip()
    return f'[firewall]\nbackend = "{backend}"\n[peers.laptop]\npublic_key = "{key}"\n{lines}\n'


@BACKENDS
def test_a_static_mapping_stands_and_no_protocol_closes_it(lab: Lab, backend: str) -> None:
    config = section(lab.c1, f'static = ["tcp 80 {C1} 8043", "tcp 8044 {C1} 8044"]', backend)
    with answering(lab.c1, 8043), serving(lab, config):
        assert ask(lab.net, PUBLIC, 80).source == REMOTE
        assert control.ask(lab.c1, "DeletePortMapping", control.key(80)) == 606
        assert control.add(lab.c2, {"ExternalPort": 8044, "InternalClient": "10.100.0.3"}) == 718
        mapped = pcp_client.map_port(lab.c1, 8043, lifetime=3600)
        assert pcp_client.granted(mapped).external_port == 80
        assert pcp_client.refused(pcp_client.map_port(lab.c1, 8043, lifetime=0)) == 2  # NOT_AUTHORIZED
        upnpc(lab.c1, "-r", "8044", "tcp")
        assert "TCP    80->10.100.0.2:8043" in re.sub(r"TCP +", "TCP    ", upnpc(lab.c1, "-l"))
        assert re.search(r"TCP +80 .* static ", igd(lab, "list", "wg0").stdout)
        assert ask(lab.net, PUBLIC, 80).source == REMOTE
        with pytest.raises(ConnectionRefusedError):  # its listener is gone
            ask(lab.net, PUBLIC, 8044)
    with pytest.raises(ConnectionRefusedError):  # the server itself says so
        ask(lab.net, PUBLIC, 80)


def test_a_static_mapping_comes_and_goes_with_its_peer(lab: Lab) -> None:
    key = lab.c1.run("wg", "show", "wg0", "public-key").stdout.strip()
    with serving(lab, section(lab.c1, f'static = ["tcp 8043 {C1} 8043"]')) as process:
        assert held(lab) == [("TCP", 8043)]
        lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", "10.100.0.77/32")
        until(lambda: held(lab) == [])
        process.wait_for(f'static mapping "tcp 8043 {C1} 8043" of laptop does not stand')
        warning = rf'(?m)^warning +static mapping "tcp 8043 {C1} 8043" of laptop does not stand: '
        assert re.search(warning, igd(lab, "status", "wg0").stdout)
        lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"{C1}/32")
        until(lambda: held(lab) == [("TCP", 8043)])
        until(lambda: not re.search(warning, igd(lab, "status", "wg0").stdout))


def test_a_static_mapping_survives_a_kill_without_a_gap(lab: Lab) -> None:
    config = section(lab.c1, f'static = ["tcp 8043 {C1} 8043"]')
    with answering(lab.c1, 8043):
        with start(lab, config) as process:
            process.signal(signal.SIGKILL)
            process.wait()
        assert held(lab) == [("TCP", 8043)]
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        with serving(lab, config):
            assert [each["static"] for each in mappings(lab)] == [True]
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE


SPLIT = ("Table = off", "PostUp = ip route add 10.100.0.0/24 dev %i")


@pytest.fixture
def split(root: None) -> Iterator[Lab]:
    """A lab whose clients take from the tunnel only packets of the tunnel's network."""
    with Lab(client_lines=SPLIT, forward="drop") as lab:
        server = lab.srv.run("wg", "show", "wg0", "public-key").stdout.strip()
        for client in (lab.c1, lab.c2):
            client.run("wg", "set", "wg0", "peer", server, "allowed-ips", "10.100.0.0/24")
        yield lab


@BACKENDS
def test_a_peer_that_takes_no_packets_of_the_internet_is_reached(split: Lab, backend: str) -> None:
    before = rules(split)
    with answering(split.c1, 8043), serving(split, section(split.c1, "masquerade_inbound = true", backend)):
        upnpc(split.c1, "-r", "8043", "tcp")
        assert ask(split.net, PUBLIC, 8043).source == "10.100.0.1"
    assert rules(split) == before


def test_masquerade_follows_the_peer_and_is_no_other_peers(lab: Lab) -> None:
    key = lab.c1.run("wg", "show", "wg0", "public-key").stdout.strip()
    lab.c1.run("ip", "address", "add", "10.77.0.1/32", "dev", "wg0")
    with answering(lab.c1, 8043), answering(lab.c2, 8044), serving(lab, section(lab.c1, "masquerade_inbound = true")):
        upnpc(lab.c2, "-r", "8044", "tcp")
        assert ask(lab.net, PUBLIC, 8044).source == REMOTE
        lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"{C1}/32,10.77.0.0/20")
        lab.srv.run("ip", "route", "add", "10.77.0.0/20", "dev", "wg0")
        until(lambda: "ip daddr 10.77.0.0/20 masquerade" in rules(lab))
        assert control.add(lab.c1, {"InternalClient": "10.77.0.1", "InternalPort": 8043, "ExternalPort": 8043}) == 200
        assert ask(lab.net, PUBLIC, 8043).source == "10.100.0.1"


def test_a_silent_peers_ports_are_closed_and_kept_until_it_is_back(root: None) -> None:
    with Lab(keepalive=0) as lab:
        config = section(lab.c1, f"idle_after = {IDLE_SECONDS}")
        with answering(lab.c1, 8043), serving(lab, config, SHORT_IDLE):
            upnpc(lab.c1, "-r", "8043", "tcp")
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE
            until(lambda: held(lab) == [])
            assert re.search(r"TCP +8043 .*, suspended ", igd(lab, "list", "wg0").stdout)
            assert control.add(lab.c2, {"ExternalPort": 8043, "InternalClient": "10.100.0.3"}) == 718
            with pytest.raises(ConnectionRefusedError):
                ask(lab.net, PUBLIC, 8043)
            lab.wg_down(lab.c1)
            lab.wg_up(lab.c1)  # a new session begins with a handshake
            until(lambda: held(lab) == [("TCP", 8043)])
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE
