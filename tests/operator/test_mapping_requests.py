"""What `igd add` and `igd revoke` ask of a gateway."""

from ipaddress import IPv6Address
from typing import Any

import pytest

from igd.core.mapping import AnyMapping, Endpoint, TransportProtocol
from igd.core.policies import Policies
from igd.core.policy import Policy
from igd.core.request import MapPort
from igd.core.reserved_ports import StaticMapping
from igd.firewall.backend import FirewallError
from igd.operator.admin_paths import RefusedError
from igd.operator.mapping_requests import MappingRequests
from tests.gateway_harness import C1, C1_HOST, C2, GatewayHarness, map_port, peer

V6 = IPv6Address("2001:db8::2")


@pytest.fixture
async def harness() -> GatewayHarness:
    """A gateway with a static mapping, three port mappings and a pinhole of c1, and a port mapping of c2."""
    policy = Policy(static=(StaticMapping.parse(f"tcp 80 {C1} 80"),))
    harness = GatewayHarness(Policies(by_peer={"c1": policy}, names={"c1": "laptop"}))
    harness.peers.all = (peer("c1", "10.100.0.2/32", "192.168.7.0/24", f"{V6}/128"), harness.peers.all[1])
    await harness.start()
    await harness.ask(map_port(8043))
    await harness.ask(MapPort(TransportProtocol.UDP, Endpoint(C1, 8043), 8043, 300))
    await harness.ask(map_port(8044, C1_HOST), C1_HOST)
    await harness.ask(MapPort(TransportProtocol.TCP, Endpoint(V6, 8043), 8043, 300), V6)
    await harness.ask(map_port(8045, C2), C2)
    assert len(harness.table) == 6
    return harness


def wanted(**given: str) -> dict[str, Any]:
    return {"protocol": None, "ports": None, "to": None, "peer": None, **given}


@pytest.mark.parametrize(
    ("selection", "closed"),
    [
        (wanted(protocol="tcp", ports="8043"), ["TCP 8043 ->"]),
        (wanted(ports="8043"), ["TCP 8043 ->", "UDP 8043 ->"]),
        (wanted(protocol="tcp", ports="8000-9000"), ["TCP 8043 ->", "TCP 8044 ->", "TCP 8045 ->"]),
        (wanted(protocol="tcp", ports="8043", to=str(V6)), [f"TCP [{V6}]:8043"]),
        (wanted(to=str(C1)), ["TCP 8043 ->", "UDP 8043 ->"]),
        (wanted(peer="laptop"), ["TCP 8043 ->", "UDP 8043 ->", "TCP 8044 ->", f"TCP [{V6}]:8043"]),
        (wanted(peer="c1", protocol="udp"), ["UDP 8043 ->"]),
        (wanted(peer="c2"), ["TCP 8045 ->"]),
    ],
)
async def test_what_is_selected_is_closed_and_nothing_else(
    harness: GatewayHarness, selection: dict[str, Any], closed: list[str]
) -> None:
    before = {str(each.mapping) for each in harness.table.values()}
    revoked: list[AnyMapping] = []
    harness.gateway.on_revoked.append(revoked.extend)
    result = await MappingRequests(harness.gateway).revoke(selection)
    assert {text for text in before if any(text.startswith(start) for start in closed)} == {
        text.rpartition(" (")[0] for text in result["closed"]
    }
    assert len(result["closed"]) == len(closed) == len(revoked)
    assert before - {str(each.mapping) for each in harness.table.values()} == set(map(str, revoked))
    assert harness.backend.entries == harness.table


async def test_a_static_mapping_is_refused_with_the_way_to_close_it(harness: GatewayHarness) -> None:
    result = await MappingRequests(harness.gateway).revoke(wanted(ports="80"))
    assert result["closed"] == []
    assert "delete its `static` line" in result["refused"][0]
    assert len(harness.table) == 6


@pytest.mark.parametrize("selection", [wanted(ports="9"), wanted(peer="nobody"), wanted(to="10.100.0.3", peer="c1")])
async def test_nothing_selected_is_refused(harness: GatewayHarness, selection: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="no such mapping"):
        await MappingRequests(harness.gateway).revoke(selection)


async def test_a_kernel_that_fails_is_reported_and_nobody_is_told(harness: GatewayHarness) -> None:
    revoked: list[AnyMapping] = []
    harness.gateway.on_revoked.append(revoked.extend)
    harness.backend.fail_next = FirewallError("not now")
    result = await MappingRequests(harness.gateway).revoke(wanted(protocol="tcp", ports="8043"))
    assert (result["closed"], len(result["refused"]), revoked) == ([], 1, [])
    assert result["refused"][0].startswith("SYSTEM_FAILURE: ")
    assert len(harness.table) == 6


@pytest.mark.parametrize(
    "invalid", [wanted(protocol="icmp"), wanted(ports="x"), wanted(to="10.0.0.0/8"), {}, [], "text", None, 7]
)
async def test_what_no_command_posts_is_an_error_of_its_form(harness: GatewayHarness, invalid: dict[str, Any]) -> None:
    for ask in (MappingRequests(harness.gateway).revoke, MappingRequests(harness.gateway).add):
        with pytest.raises((KeyError, TypeError, ValueError)):
            await ask(invalid)


async def test_a_mapping_is_added_for_the_peer_that_owns_the_address(harness: GatewayHarness) -> None:
    value = {"protocol": "tcp", "port": 9000, "address": str(C2), "internal_port": 1, "seconds": 0, "description": "x"}
    harness.gateway.policies = Policies()
    with pytest.raises(RefusedError, match=r"FORBIDDEN: .*; a `static` line"):
        await MappingRequests(harness.gateway).add(value)
    added = await MappingRequests(harness.gateway).add({**value, "internal_port": 2000})
    assert added == f"TCP 9000 -> {C2}:2000 (c2) for 604800 s"
    (entry,) = (each for each in harness.table.values() if each.mapping.external_port == 9000)
    assert (entry.mapping.peer, entry.lease.endless, entry.mapping.description) == ("c2", True, "x")


async def test_the_peers_cannot_be_read(harness: GatewayHarness) -> None:
    harness.peers.trouble = OSError("no wg")
    value = {"protocol": "tcp", "port": 9000, "address": str(C2), "internal_port": 1, "seconds": 0, "description": ""}
    with pytest.raises(RefusedError, match="the peers cannot be read: no wg"):
        await MappingRequests(harness.gateway).add(value)
