"""upnpc and external-ip (Debian's miniupnpc): every option."""

import re

import pytest

from tests.e2e.control_points.reach import (
    C1_IPV6,
    REMOTE_IPV6,
    assert_closed,
    assert_dropped,
    assert_reached,
    assert_reached_by_ipv6,
)
from tests.e2e.serving import C1, GATEWAY, PUBLIC, REMOTE, mappings, ports
from tests.lab import CommandFailed, Lab
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

IPV6 = ("-6", "-u", "http://[2001:470:100::1]:2869/2/device.xml")
"""Asks over IPv6, without the seconds of discovery."""

ADDRESS = f"ExternalIPAddress = {PUBLIC}"


@pytest.fixture(scope="module", autouse=True)
def programs(root: None) -> None:
    needs("upnpc", "external-ip")


def upnpc(lab: Lab, *words: str, version: int = 2) -> str:
    """Run upnpc in c1 with this version's description, and return what it printed."""
    return lab.c1.run("upnpc", "-u", f"http://{GATEWAY}:2869/{version}/device.xml", *words).stdout


def upnpc6(lab: Lab, *words: str) -> str:
    """Run upnpc in c1, over IPv6, and return what it printed."""
    return lab.c1.run("upnpc", *IPV6, *words).stdout


def test_discovery(served: Lab) -> None:
    """All at once: each waits for two seconds, and over IPv6 twice."""
    options = [
        (),
        ("-m", "wg0"),
        ("-m", C1, "-z", "3456", "-t", "4", "-p", "/nonexistent"),
        ("-6", "-m", "wg0"),
        ("-i",),
    ]
    running = [served.c1.start("upnpc", *words, "-s") for words in options]
    external_ip = served.c1.start("external-ip")
    for process in running:
        process.wait_for(ADDRESS)
        assert process.wait() == 0
    assert external_ip.wait() == 0
    assert external_ip.lines == [PUBLIC]


@pytest.mark.parametrize("version", [1, 2])
def test_status(served: Lab, version: int) -> None:
    printed = upnpc(served, "-s", version=version)
    assert f"Local LAN ip address : {C1}\nConnection Type : IP_Routed\nStatus : Connected, " in printed
    assert ADDRESS in printed
    assert re.search(r"Bytes: +Sent: +[1-9]\d*\tRecv: +[1-9]\d*\nPackets: Sent: +[1-9]\d*\tRecv: +[1-9]\d*\n", printed)
    assert "Presentation URL found:\n            /\n" in upnpc(served, "-P", version=version)


@pytest.mark.parametrize("version", [1, 2])
def test_a_mapping_is_made_listed_and_deleted(served: Lab, version: int) -> None:
    external, internal = 9100 + version, 8100 + version
    printed = upnpc(served, "-e", "my game", "-a", "@", str(internal), str(external), "tcp", "300", version=version)
    assert f"external {PUBLIC}:{external} TCP is redirected to internal {C1}:{internal} (duration=" in printed
    assert_reached(served, external, internal)
    line = rf"(?m)^ *\d+ TCP +{external}->{C1}:{internal} +'my game' '' \d+$"
    assert re.search(line, upnpc(served, "-l", version=version))
    assert "UPNP_DeletePortMapping() returned : 0\n" in upnpc(served, "-d", str(external), "tcp", version=version)
    assert_closed(served, external)
    with pytest.raises(CommandFailed, match=r"UPNP_DeletePortMapping\(\) failed with code : 714\b"):
        upnpc(served, "-d", str(external), "tcp", version=version)


def test_the_list_of_version_2(served: Lab) -> None:
    upnpc(served, "-a", C1, "8111", "9111", "udp", "300", REMOTE)
    assert_reached(served, 9111, 8111, "udp")
    assert re.search(rf"(?m)^ *\d+ UDP +9111->{C1}:8111 +'libminiupnpc' '{REMOTE}' ", upnpc(served, "-L"))
    assert "UPNP_DeletePortMapping() returned : 0\n" in upnpc(served, "-d", "9111", "udp", REMOTE)


def test_any_port(served: Lab) -> None:
    upnpc(served, "-a", C1, "8121", "9121", "tcp")
    printed = upnpc(served, "-n", C1, "8122", "9121", "tcp", "300")
    match = re.search(rf"external {PUBLIC}:(\d+) TCP is redirected to internal {C1}:8122", printed)
    assert match, printed
    assert int(match[1]) not in (0, 9121)
    assert_reached(served, int(match[1]), 8122)
    assert_reached(served, 9121, 8121)


def test_a_range_is_deleted(served: Lab) -> None:
    upnpc(served, "-r", "8131", "9131", "tcp", "9132", "udp", "9133", "tcp")
    assert_reached(served, 9131, 8131)
    assert "UPNP_DeletePortMappingRange() returned : 0\n" in upnpc(served, "-N", "9131", "9133", "tcp")
    assert [port for port in ports(served) if port[1] in range(9131, 9134)] == [("UDP", 9132)]


def test_a_mapping_is_asked_for_over_ipv6(served: Lab) -> None:
    assert ADDRESS in upnpc6(served, "-s")
    upnpc6(served, "-a", C1, "8141", "9141", "tcp", "300")
    assert_reached(served, 9141, 8141)
    assert re.search(rf"TCP +9141->{C1}:8141 ", upnpc6(served, "-l"))
    assert "UPNP_DeletePortMapping() returned : 0\n" in upnpc6(served, "-d", "9141", "tcp")
    assert_closed(served, 9141)


def test_firewall_status(served: Lab) -> None:
    for printed in (upnpc(served, "-S"), upnpc6(served, "-S")):
        assert "FirewallEnabled: 1 & Inbound Pinhole Allowed: 1\n" in printed


def test_a_pinhole(served: Lab) -> None:
    """Every option about pinholes. upnpc renews (-U) only what it has found to work, or to be without traffic."""
    assert_dropped(served, 8151)
    added = re.search(
        r"AddPinhole: .* / Pinhole ID = (\d+)\n", upnpc6(served, "-A", "", "0", "@", "8151", "tcp", "300")
    )
    assert added
    unique_id = added[1]
    assert "CheckPinholeWorking() failed with code 709" in upnpc6(served, "-C", unique_id)
    assert_reached_by_ipv6(served, 8151)
    working = f"CheckPinholeWorking: Pinhole ID = {unique_id} / IsWorking = Yes\n"
    assert working in upnpc6(served, "-C", unique_id)
    packets = re.search(
        rf"GetPinholePackets: Pinhole ID = {unique_id} / PinholePackets = (\d+)\n", upnpc6(served, "-K", unique_id)
    )
    assert packets
    assert int(packets[1]) > 0
    renewed = upnpc6(served, "-U", unique_id, "3000")
    assert working in renewed
    assert f"UpdatePinhole: Pinhole ID = {unique_id} with Lease Time: 3000\n" in renewed
    (lease,) = (mapping["lease"] for mapping in mappings(served) if mapping["internal_port"] == 8151)
    assert lease > 300
    assert "UPNP_DeletePinhole() returned : 0\n" in upnpc6(served, "-D", unique_id)
    assert_dropped(served, 8151)
    assert "UPNP_DeletePinhole() returned : 704\n" in upnpc6(served, "-D", unique_id)


def test_a_pinhole_for_one_remote_is_asked_for_over_ipv4(served: Lab) -> None:
    printed = upnpc(served, "-A", REMOTE_IPV6, "0", C1_IPV6, "8161", "udp", "300")
    added = re.search(r"Pinhole ID = (\d+)\n", printed)
    assert added, printed
    assert_reached_by_ipv6(served, 8161, "udp")
    assert "UPNP_DeletePinhole() returned : 0\n" in upnpc(served, "-D", added[1])
    assert_dropped(served, 8161, "udp")


def test_outbound_pinhole_timeout(served: Lab) -> None:
    for protocol in ("tcp", "udp"):
        printed = upnpc6(served, "-G", "", "0", C1_IPV6, "8171", protocol)
        assert re.search(r"GetOutboundPinholeTimeout: .* / Timeout = [1-9]\d*\n", printed)
