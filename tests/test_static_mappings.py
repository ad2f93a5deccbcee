"""Static mappings stand while their peer owns the address; their peer may request them, and nobody closes them."""

import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from igd.core.mapping import (
    BY_INTERNAL_ENDPOINT,
    STATIC,
    Change,
    Claim,
    Endpoint,
    Entry,
    Pinhole,
    PortMapping,
    Remote,
    TransportProtocol,
)
from igd.core.policies import Policies
from igd.core.policy import Policy
from igd.core.request import (
    ENDLESS,
    ListMappings,
    Mapped,
    MappingList,
    MapPort,
    Refusal,
    UnmapInternal,
    Unmapped,
    UnmapPorts,
)
from igd.core.reserved_ports import StaticMapping
from igd.core.unique_ids import UNIQUE_IDS
from igd.firewall.backend import FirewallError
from tests.gateway_harness import C1, C2, KEY, PEERS, GatewayHarness, entry, map_port, peer

TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
IPV6 = "2001:db8::2"
STANDS = Entry(PortMapping(TCP, 8043, Endpoint(C1, 8043), "c1", "static", claim=BY_INTERNAL_ENDPOINT), STATIC)


def policies(*lines: str, policy: Policy | None = None) -> Policies:
    """Return policies in which c1 has these static mappings."""
    static = tuple(map(StaticMapping.parse, lines))
    return Policies(by_peer={"c1": replace(policy or Policy(), static=static)}, names={"c1": "laptop"})


def harness_of(*lines: str, policy: Policy | None = None) -> GatewayHarness:
    return GatewayHarness(policies(*lines or ("tcp 8043 10.100.0.2 8043",), policy=policy))


async def test_it_stands_from_the_start_and_is_not_stored() -> None:
    harness = await harness_of().start()
    assert harness.table == harness.backend.entries == {KEY: STANDS}
    assert harness.store.entries == {}
    assert harness.ledger.next_wake() == float("inf")


async def test_a_pinhole_stands_too() -> None:
    harness = harness_of(f"udp 4000 {IPV6} 4000")
    harness.peers.all = (peer("c1", f"{IPV6}/128"),)
    await harness.start()
    hole = Pinhole(UDP, Endpoint(IPv6Address(IPV6), 4000), "c1", "static", claim=BY_INTERNAL_ENDPOINT)
    ((_, entry),) = harness.table.items()
    assert isinstance(entry.mapping, Pinhole)
    assert entry == Entry(replace(hole, unique_id=entry.mapping.unique_id), STATIC)
    assert entry.mapping.unique_id in UNIQUE_IDS


async def test_it_takes_the_place_of_a_stored_mapping() -> None:
    harness = await harness_of().start(entry(8043), entry(9000))
    assert harness.table == harness.backend.entries == {KEY: STANDS, (TCP, 9000): entry(9000)}
    assert set(harness.store.entries) == {(TCP, 9000)}


async def test_its_peer_sees_it_without_an_end_and_is_granted_it_as_requested() -> None:
    harness = await harness_of().start()
    listed = await harness.ask(ListMappings())
    assert listed == MappingList((Mapped(STANDS.mapping, ENDLESS),))
    granted = await harness.ask(map_port(lifetime=300))
    assert granted == Mapped(STANDS.mapping, 300)
    claim = Claim(by_internal=True, nonce=b"twelve bytes")
    by_internal = MapPort(TCP, Endpoint(C1, 8043), None, 7200, any_port=True, claim=claim)
    assert await harness.ask(by_internal) == Mapped(STANDS.mapping, 7200)
    assert harness.table == harness.backend.entries == {KEY: STANDS}
    assert harness.store.entries == {}


@pytest.mark.parametrize(
    "request_",
    [
        map_port(internal_port=9000),
        replace(map_port(), remotes=(Remote(IPv4Network("198.51.100.0/24")),)),
        UnmapPorts(TCP, range(8043, 8044)),
        UnmapPorts(TCP, range(1, 65536)),
        UnmapInternal(TCP, C1, 8043, BY_INTERNAL_ENDPOINT),
    ],
)
async def test_no_request_of_its_peer_changes_it(request_: MapPort | UnmapPorts | UnmapInternal) -> None:
    harness = await harness_of().start()
    assert await harness.ask(request_) is Refusal.STATIC
    assert harness.table == harness.backend.entries == {KEY: STANDS}


async def test_closing_all_closes_all_others() -> None:
    harness = await harness_of().start()
    await harness.ask(map_port(9000, internal_port=9000))
    closed = await harness.ask(UnmapPorts(TCP, range(1, 65536)))
    assert isinstance(closed, Unmapped)
    assert [each.external_port for each in closed.mappings] == [9000]
    assert await harness.ask(UnmapInternal(None, C1, None, BY_INTERNAL_ENDPOINT)) == Unmapped(())
    assert harness.table == harness.backend.entries == {KEY: STANDS}
    assert harness.store.entries == {}


async def test_nobody_else_gets_its_port() -> None:
    harness = harness_of()
    harness.peers.all = (peer("c2", "10.100.0.3/32"),)  # the peer is not there yet
    await harness.start()
    assert await harness.ask(map_port(internal=C2), C2) is Refusal.CONFLICT
    assert harness.table == {}


async def test_it_follows_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    harness = harness_of()
    harness.peers.all = ()
    await harness.start()
    await harness.maintenance.recheck_peers()
    sentence = 'static mapping "tcp 8043 10.100.0.2 8043" of laptop does not stand'
    assert caplog.text.count(sentence) == 1
    assert [warning.partition(":")[0] for warning in harness.maintenance.warnings] == [sentence]
    harness.peers.all = PEERS
    await harness.maintenance.recheck_peers()
    assert harness.maintenance.warnings == []
    assert harness.table == harness.backend.entries == {KEY: STANDS}
    harness.peers.all = ()
    await harness.maintenance.recheck_peers()
    assert harness.table == harness.backend.entries == {}
    harness.peers.all = PEERS
    await harness.maintenance.recheck_peers()
    assert harness.table == harness.backend.entries == {KEY: STANDS}
    assert harness.store.entries == {}


async def test_it_replaces_what_its_peer_mapped_meanwhile() -> None:
    harness = harness_of("tcp 8043 10.100.0.77 8043")
    await harness.start()
    assert isinstance(await harness.ask(map_port()), Mapped)  # the port is reserved for c1, at any of its addresses
    harness.peers.all = (peer("c1", "10.100.0.2/32", "10.100.0.77/32"),)
    await harness.maintenance.recheck_peers()
    held = harness.table[KEY]
    assert (held.lease, held.mapping.internal.address) == (STATIC, IPv4Address("10.100.0.77"))
    assert harness.backend.entries == harness.table
    assert harness.store.entries == {}


async def test_a_port_that_the_server_uses_is_not_taken_from_it() -> None:
    harness = harness_of()
    harness.servers_own.add(KEY)
    await harness.start()
    assert harness.table == {}
    harness.servers_own.clear()
    await harness.maintenance.recheck_peers()
    assert harness.table == {KEY: STANDS}


async def test_a_failure_of_the_kernel_is_retried() -> None:
    harness = harness_of()
    harness.peers.all = ()
    await harness.start()
    harness.peers.all = PEERS
    harness.backend.fail_next = FirewallError("the kernel is out of sorts")
    await harness.maintenance.recheck_peers()
    assert harness.table == {}
    await harness.maintenance.recheck_peers()
    assert harness.table == harness.backend.entries == {KEY: STANDS}


async def test_a_port_that_another_peer_still_holds_is_not_opened_nor_said_to_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    harness = harness_of()
    harness.peers.all = (peer("c2", "10.100.0.3/32"),)
    await harness.start()
    await harness.ledger.commit([Change(None, entry(8043, internal=C2))])
    harness.peers.all = PEERS
    await harness.maintenance.recheck_peers()
    assert harness.table == {KEY: entry(8043, internal=C2)}
    assert "opened, static" not in caplog.text
