"""The walkthrough: a WireGuard server without any configuration becomes a gateway that real clients use."""

import re
from collections.abc import Iterator

import pytest

from tests.e2e.serving import C1, C2, PUBLIC, igd, mappings, serving, upnpc
from tests.lab import PATIENCE, Lab
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
    """Return a lab with igd in it, shared: each test uses ports of its own."""
    needs("upnpc", "external-ip", "nft", "conntrack")
    with Lab() as lab, serving(lab):
        yield lab


def test_external_ip_prints_the_public_address(served: Lab) -> None:
    assert served.c1.run("external-ip").stdout == f"{PUBLIC}\n"


def test_upnpc_finds_the_gateway_and_shows_its_state(served: Lab) -> None:
    printed = served.c1.run("upnpc", "-s").stdout
    assert re.search(r"Found valid IGD : http://10\.100\.0\.1:2869/", printed)
    assert f"Local LAN ip address : {C1}\n" in printed
    assert re.search(r"Status : Connected, uptime=\d+s, LastConnectionError : ERROR_NONE", printed)
    assert f"ExternalIPAddress = {PUBLIC}\n" in printed
    assert re.search(r"Bytes:\s+Sent:\s+[1-9]\d*\s+Recv:\s+[1-9]", printed)


def test_upnpc_n_gets_the_port_it_asks_for(served: Lab) -> None:
    printed = upnpc(served.c1, "-n", C1, "8043", "8043", "tcp", "300")
    assert f"external {PUBLIC}:8043 TCP is redirected to internal {C1}:8043 (duration=300)" in printed


def test_upnpc_n_gets_another_port_where_that_one_is_taken(served: Lab) -> None:
    upnpc(served.c2, "-a", C2, "8100", "8100", "tcp", "300")
    printed = upnpc(served.c1, "-n", C1, "8100", "8100", "tcp", "300")
    granted = re.search(rf"external {PUBLIC}:(\d+) TCP is redirected to internal {C1}:8100 \(duration=300\)", printed)
    assert granted
    assert granted[1] != "8100"


def test_upnpc_a_adds_and_l_lists_it(served: Lab) -> None:
    printed = upnpc(served.c1, "-e", "my game", "-a", C1, "8200", "8201", "udp", "120")
    assert f"external {PUBLIC}:8201 UDP is redirected to internal {C1}:8200 (duration=120)" in printed
    listed = upnpc(served.c1, "-l")
    assert re.search(rf" UDP  8201->{C1}:8200 +'my game' '' (120|1[01]\d|[6-9]\d)\n", listed)


def test_upnpc_l_shows_a_peer_its_own_mappings_alone(served: Lab) -> None:
    upnpc(served.c2, "-a", C2, "8300", "8300", "tcp", "300")
    assert "8300->" in upnpc(served.c2, "-l")
    assert "8300->" not in upnpc(served.c1, "-l")


def test_upnpc_r_maps_several_ports_to_its_own_address_for_a_week(served: Lab) -> None:
    printed = upnpc(served.c1, "-r", "8400", "8401", "tcp", "8402", "udp")
    assert f"external {PUBLIC}:8401 TCP is redirected to internal {C1}:8400 (duration=604800)" in printed
    assert f"external {PUBLIC}:8402 UDP is redirected to internal {C1}:8402 (duration=604800)" in printed


def test_upnpc_d_deletes(served: Lab) -> None:
    upnpc(served.c1, "-a", C1, "8500", "8500", "tcp", "300")
    assert "UPNP_DeletePortMapping() returned : 0" in upnpc(served.c1, "-d", "8500", "tcp")
    assert "8500->" not in upnpc(served.c1, "-l")


def test_the_operator_sees_what_clients_did(served: Lab) -> None:
    key = served.c1.run("sh", "-c", "wg show wg0 private-key | wg pubkey").stdout.strip()
    upnpc(served.c1, "-e", "for the operator", "-a", C1, "8600", "8601", "tcp", "300")
    (mapping,) = (mapping for mapping in mappings(served) if mapping["external_port"] == 8601)
    assert 300 - PATIENCE <= mapping.pop("lease") <= 300
    assert mapping == {
        "interface": "wg0",
        "protocol": "TCP",
        "external_port": 8601,
        "internal_address": C1,
        "internal_port": 8600,
        "remotes": [],
        "static": False,
        "suspended": False,
        "peer": key,
        "name": None,
        "description": "for the operator",
        "unique_id": None,
    }
    table = igd(served, "list", "wg0").stdout
    assert re.search(rf"TCP +8601 +anywhere +{C1}:8600 +\d+s +{re.escape(key)} +for the operator\n", table)
    status = igd(served, "status", "wg0").stdout
    assert re.search(rf"external address +{PUBLIC}\n", status)
    assert re.search(r"backend +nftables: ", status)
