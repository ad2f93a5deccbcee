"""WANIPv6FirewallControl:1 and state variables over HTTP, decided by a real gateway."""

import re
from collections.abc import AsyncIterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from igd.core.mapping import Endpoint, Pinhole, TransportProtocol
from igd.core.peers import Peer
from igd.core.policies import Policies
from igd.endpoints.upnp_http import UPnPHttp
from igd.wire.upnp import soap
from tests.endpoints.http_client import call, error_code, exchange, serving
from tests.gateway_harness import C1, C2, GatewayHarness, map_port, policy

ALLOW = "allow 1024-65535 ::/0 1024-65535", "allow 1024-65535 0.0.0.0/0 1024-65535"
FIREWALL = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
C1_IPV6, C2_IPV6 = "2001:db8:1::2", "2001:db8:1::3"
PINHOLE = {
    "RemoteHost": "",
    "RemotePort": "0",
    "InternalClient": C1_IPV6,
    "InternalPort": "8043",
    "Protocol": "6",
    "LeaseTime": "300",
}


@pytest.fixture
async def harness() -> GatewayHarness:
    """Return a harness in which each peer has one IPv6 address."""
    harness = GatewayHarness(policy(*ALLOW, quota=3))
    harness.peers.all = tuple(
        Peer(name, (ip_network(f"{ipv4}/32"), ip_network(f"{ipv6}/128")))
        for name, ipv4, ipv6 in (("c1", C1, C1_IPV6), ("c2", C2, C2_IPV6))
    )
    return await harness.start()


@pytest.fixture
async def server(harness: GatewayHarness) -> AsyncIterator[UPnPHttp]:
    async with serving(harness) as server:
        yield server


pytestmark = [pytest.mark.root, pytest.mark.usefixtures("server")]


async def asked(action: str, arguments: Mapping[str, str] = PINHOLE, source: IPv4Address = C1) -> dict[str, str] | int:
    """Return the out-arguments, or the code of an error."""
    answer = await exchange(call(action, arguments, path="/control/WANIPv6Firewall1", service=FIREWALL), source=source)
    if answer.status == 500:
        return error_code(answer)
    assert f'<u:{action}Response xmlns:u="{FIREWALL}">' in answer.body
    return dict(re.findall(r"<(\w+)>([^<]*)</\1>", answer.body.partition("Response")[2]))


async def added(changed: Mapping[str, str] = PINHOLE) -> str:
    outputs = await asked("AddPinhole", {**PINHOLE, **changed})
    assert isinstance(outputs, dict)
    return outputs["UniqueID"]


async def queried(service: str, name: str, source: IPv4Address = C1) -> str:
    request = call("QueryStateVariable", {"varName": name}, path=f"/control/{service}", service=soap.CONTROL)
    return (await exchange(request, source=source)).body.partition("<return>")[2].partition("<")[0]


async def test_a_pinhole_is_opened_renewed_and_closed(harness: GatewayHarness) -> None:
    unique_id = await added()
    internal = Endpoint(IPv6Address(C1_IPV6), 8043)
    (held,) = harness.table.values()
    assert held.mapping == Pinhole(TransportProtocol.TCP, internal, "c1", unique_id=int(unique_id))
    assert held.lease.remaining(harness.clock.now) == 300
    assert harness.all_equal()
    assert await asked("UpdatePinhole", {"UniqueID": unique_id, "NewLeaseTime": "600"}) == {}
    (held,) = harness.table.values()
    assert held.lease.remaining(harness.clock.now) == 600
    assert await asked("DeletePinhole", {"UniqueID": unique_id}) == {}
    assert not harness.table
    assert await asked("DeletePinhole", {"UniqueID": unique_id}) == 704


async def test_the_same_arguments_renew_and_other_ones_are_another_pinhole() -> None:
    unique_id = await added()
    assert await added({"LeaseTime": "86400"}) == unique_id
    assert await added({"RemoteHost": "::/0"}) == unique_id
    assert await added({"RemoteHost": "2001:db8::9"}) != unique_id


async def test_the_address_that_is_not_named_is_the_only_one(harness: GatewayHarness) -> None:
    await added({"InternalClient": ""})
    (held,) = harness.table.values()
    assert held.mapping.internal == Endpoint(IPv6Address(C1_IPV6), 8043)


async def test_a_peer_of_two_addresses_must_name_one(harness: GatewayHarness) -> None:
    (c1, c2) = harness.peers.all
    harness.peers.all = (Peer("c1", (*c1.allowed_ips, ip_network("2001:db8:1::9/128"))), c2)
    assert await asked("AddPinhole", PINHOLE | {"InternalClient": ""}) == 402
    assert not harness.table


@pytest.mark.parametrize("address", [C2_IPV6, "2001:db8:ffff::1", "fe80::2%wg0", "ff02::1", "::1"])
async def test_a_foreign_address_is_606(harness: GatewayHarness, address: str) -> None:
    assert await asked("AddPinhole", PINHOLE | {"InternalClient": address}) == 606
    assert not harness.table


async def test_a_forbidden_port_is_606() -> None:
    assert await asked("AddPinhole", PINHOLE | {"InternalPort": "80"}) == 606


@pytest.mark.parametrize("action", ["UpdatePinhole", "DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"])
async def test_another_peers_pinhole_is_704(harness: GatewayHarness, action: str) -> None:
    unique_id = await added()
    before = harness.table
    assert await asked(action, {"UniqueID": unique_id, "NewLeaseTime": "1"}, C2) == 704
    assert await asked(action, {"UniqueID": "0", "NewLeaseTime": "1"}) == 704
    assert harness.table == before


async def test_beyond_the_quota_is_701() -> None:
    for port in range(8001, 8004):
        await added({"InternalPort": str(port)})
    assert await asked("AddPinhole") == 701


async def test_packets() -> None:
    """The pretended kernel passes none."""
    unique_id = await added()
    assert await asked("GetPinholePackets", {"UniqueID": unique_id}) == {"PinholePackets": "0"}
    assert await asked("CheckPinholeWorking", {"UniqueID": unique_id}) == 709


async def test_the_timeout_of_an_outbound_flow() -> None:
    assert await asked("GetOutboundPinholeTimeout") == {"OutboundPinholeTimeout": "432000"}
    assert await asked("GetOutboundPinholeTimeout", PINHOLE | {"Protocol": "17"}) == {"OutboundPinholeTimeout": "120"}


async def test_the_firewall_is_enabled_and_allows_pinholes() -> None:
    assert await asked("GetFirewallStatus", {}) == {"FirewallEnabled": "1", "InboundPinholeAllowed": "1"}


async def test_where_no_rule_allows_a_pinhole_it_is_703(harness: GatewayHarness) -> None:
    harness.gateway.policies = Policies(policy(ALLOW[1]))
    assert await asked("GetFirewallStatus", {}) == {"FirewallEnabled": "1", "InboundPinholeAllowed": "0"}
    assert await asked("AddPinhole") == 703


async def test_a_query_is_answered_for_the_peer_that_asks(harness: GatewayHarness) -> None:
    await harness.ask(map_port(2000, C1), C1)
    await harness.ask(map_port(2001, C1), C1)
    await harness.ask(map_port(2002, C2), C2)
    assert await queried("WANIPConn1", "PortMappingNumberOfEntries", C1) == "2"
    assert await queried("WANIPConn1", "PortMappingNumberOfEntries", C2) == "1"
    assert await queried("WANIPConn1", "ExternalIPAddress") == "60.60.60.1"
    assert await queried("WANIPv6Firewall1", "InboundPinholeAllowed") == "1"


async def test_a_query_for_an_unknown_variable_is_404() -> None:
    request = call("QueryStateVariable", {"varName": "Nonsense"}, service=soap.CONTROL)
    assert error_code(await exchange(request)) == 404
