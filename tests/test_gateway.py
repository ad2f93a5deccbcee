"""The gateway decides by the peers, the policy, the table and the clock."""

import asyncio
import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import NoReturn

import pytest

from igd import gateway
from igd.core.mapping import Endpoint, Entry, Pinhole, PortMapping, Remote, TransportProtocol
from igd.core.oldest_first import OldestFirst
from igd.core.peers import Address, Peers
from igd.core.request import (
    ExternalAddress,
    GetExternalAddress,
    GetLinkStatus,
    GetMapping,
    GetMappingAt,
    ListMappings,
    Mapped,
    MappingList,
    MapPort,
    Refusal,
    Unmapped,
    UnmapPorts,
)
from igd.core.table import Table
from igd.core.unique_ids import UNIQUE_IDS
from igd.gateway import LISTED_AT_ONCE, LIVE_SECONDS, MAX_WAITING, REREAD_SECONDS
from igd.log_lines import cause
from tests.gateway_harness import (
    C1,
    C1_HOST,
    C2,
    EXTERNAL,
    KEY,
    LINK,
    PEERS,
    SERVER,
    GatewayHarness,
    entry,
    map_port,
    peer,
    policy,
    ports,
)

# Admission


@pytest.mark.parametrize("source", [SERVER, IPv4Address("10.100.0.9"), IPv4Address("60.60.60.1")])
async def test_an_unknown_source_is_not_admitted(source: IPv4Address) -> None:
    harness = await GatewayHarness().start()
    assert await harness.admit(source) == Refusal.NOT_A_PEER


async def test_the_rate_limit_refuses_one_peer_and_not_the_others() -> None:
    harness = await GatewayHarness(rate=2).start()
    assert [await harness.admit(source) for source in (C1, C1_HOST, C1, C2)] == [
        PEERS[0],
        PEERS[0],
        Refusal.TOO_MANY_REQUESTS,
        PEERS[1],
    ]


async def test_a_peer_that_was_added_after_the_peers_were_read_is_admitted() -> None:
    harness = await GatewayHarness().start()
    harness.peers.remember(PEERS[1])
    assert await harness.admit(C1) == PEERS[0]
    assert harness.peers.readings == 1


async def test_concurrent_unknown_sources_share_a_reading() -> None:
    harness = await GatewayHarness().start()
    harness.peers.remember()
    admitted = await asyncio.gather(*(harness.admit(source) for source in (C1, C2, C1_HOST) * 3))
    assert admitted == [PEERS[0], PEERS[1], PEERS[0]] * 3


async def test_unknown_sources_have_the_peers_read_five_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the test advances by the pauses that the gateway makes."""
    harness = await GatewayHarness().start()

    async def pause(seconds: float) -> None:
        harness.clock.now += max(0.0, seconds)

    monkeypatch.setattr("igd.gateway.asyncio.sleep", pause)
    begin, before = harness.clock.now, harness.peers.readings
    for _ in range(10):
        harness.peers.remember(*PEERS)
        assert await harness.admit(IPv4Address("10.100.0.9")) == Refusal.NOT_A_PEER
    assert harness.peers.readings - before == 10
    assert harness.clock.now - begin == pytest.approx(9 * REREAD_SECONDS, abs=0.002)


async def test_unknown_sources_above_their_rate_limit_have_nothing_read() -> None:
    harness = await GatewayHarness(rate=1).start()
    replies, before = [], harness.peers.readings
    for _ in range(3):
        harness.peers.remember(*PEERS)
        replies.append(await harness.admit(IPv4Address("10.100.0.9")))
    assert replies == [Refusal.NOT_A_PEER, Refusal.TOO_MANY_REQUESTS, Refusal.TOO_MANY_REQUESTS]
    assert harness.peers.readings - before == 1


async def test_no_source_is_admitted_while_the_peers_cannot_be_read() -> None:
    harness = await GatewayHarness().start()
    harness.peers.trouble = OSError("no such device")
    assert await harness.admit(C1) == Refusal.SYSTEM_FAILURE


# Opening


async def test_a_mapping_is_granted_and_listed() -> None:
    harness = await GatewayHarness().start()
    granted = await harness.ask(map_port(description="web"))
    mapping = PortMapping(TransportProtocol.TCP, 8043, Endpoint(C1, 8043), "c1", "web")
    assert granted == Mapped(mapping, 300)
    assert harness.all_equal()
    assert harness.backend.addresses == {EXTERNAL}
    harness.clock.now += 100
    assert await harness.ask(GetMapping(*KEY)) == Mapped(mapping, 200)
    assert await harness.ask(ListMappings()) == MappingList((Mapped(mapping, 200),))
    assert await harness.gateway.mappings() == [Mapped(mapping, 200)]


@pytest.mark.parametrize(
    ("source", "internal", "refusal"),
    [
        (C1, C2, Refusal.NOT_YOUR_ADDRESS),
        (C1, SERVER, Refusal.NOT_YOUR_ADDRESS),
        (C1, EXTERNAL, Refusal.NOT_YOUR_ADDRESS),
        (C1, IPv4Address("127.0.0.1"), Refusal.NOT_YOUR_ADDRESS),
        (C1, C1_HOST, None),
        (C1_HOST, C1, None),
    ],
)
async def test_a_peer_maps_only_to_its_own_addresses(
    source: IPv4Address, internal: IPv4Address, refusal: Refusal | None
) -> None:
    harness = await GatewayHarness().start()
    reply = await harness.ask(map_port(internal=internal), source)
    assert reply == refusal if refusal else isinstance(reply, Mapped)
    assert len(harness.table) == (refusal is None)


@pytest.mark.parametrize(
    "internal", ["0.1.2.3", "127.0.0.2", "169.254.1.1", "192.0.0.9", "224.0.0.5", "240.0.0.1", "255.255.255.255"]
)
async def test_an_address_that_is_not_one_hosts_is_not_mapped_whoever_owns_it(internal: str) -> None:
    harness = GatewayHarness()
    harness.peers.all = (peer("c1", "10.100.0.2/32", f"{internal}/32"),)
    await harness.start()
    assert await harness.ask(map_port(internal=IPv4Address(internal))) == Refusal.NOT_YOUR_ADDRESS
    assert not len(harness.table)


@pytest.mark.parametrize(
    ("internal", "granted"), [(C1, True), (C2, False), (SERVER, False), (IPv4Address("8.8.8.8"), False)]
)
async def test_a_peer_with_allowed_ips_of_any_address_maps_to_its_source(
    internal: IPv4Address, *, granted: bool
) -> None:
    harness = GatewayHarness()
    harness.peers.all = (peer("c1", "0.0.0.0/0", "::/0"),)
    await harness.start()
    assert isinstance(await harness.ask(map_port(internal=internal)), Mapped) is granted
    await harness.maintenance.recheck_peers()
    assert len(harness.table) == granted


async def test_a_change_is_decided_for_the_peer_that_owns_the_source_when_the_peers_are_read() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(2000, internal=C1_HOST))
    harness.peers.all = (peer("new", f"{C1}/32"), peer("c1", f"{C1_HOST}/32"))
    granted = await harness.ask(map_port())
    assert isinstance(granted, Mapped)
    assert granted.mapping.peer == "new"
    assert await harness.ask(UnmapPorts(TransportProtocol.TCP, range(2000, 2001))) == Refusal.NO_SUCH_MAPPING
    await harness.maintenance.recheck_peers()
    assert [key[1] for key in harness.table] == [2000, 8043]


async def test_the_new_owner_of_an_address_gets_the_port_that_its_last_owner_had_mapped_to_it() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port())
    harness.peers.all = (peer("new", f"{C1}/32"), PEERS[1])
    granted = await harness.ask(map_port())
    assert isinstance(granted, Mapped)
    assert granted.mapping.peer == "new"
    assert harness.all_equal()


async def test_a_change_from_an_address_that_no_peer_owns_any_more_is_refused() -> None:
    harness = await GatewayHarness().start()
    harness.peers.all = PEERS[1:]
    assert await harness.gateway.ask(PEERS[0], C1, map_port()) == Refusal.NOT_A_PEER


async def test_a_change_is_refused_while_the_peers_cannot_be_read() -> None:
    harness = await GatewayHarness().start()
    harness.peers.trouble = OSError("no such device")
    assert await harness.gateway.ask(PEERS[0], C1, map_port()) == Refusal.SYSTEM_FAILURE
    assert harness.gateway.counters["MapPort", "SYSTEM_FAILURE"] == 1


async def test_what_is_logged_about_new_peers_is_not_the_requesters() -> None:
    """A warning about another peer would be lost for good if the requester had used up its lines of the log."""
    harness = await GatewayHarness().start()
    causes: list[str | None] = []

    async def follow(_peers: Peers) -> None:
        causes.append(cause.get())

    harness.gateway.on_new_peers.append(follow)
    await harness.ask(map_port())
    assert causes == [None]
    assert cause.get() == PEERS[0].public_key


async def test_new_peers_are_followed_before_a_change_is_decided_and_once() -> None:
    harness = await GatewayHarness().start()
    followed: list[Peers] = []

    async def follow(peers: Peers) -> None:
        assert not harness.table, "the mapping was granted before"
        followed.append(peers)

    harness.gateway.on_new_peers.append(follow)
    harness.peers.all = (*PEERS, peer("new", "10.200.0.9/32"))
    await asyncio.gather(*(harness.ask(map_port(port)) for port in (2000, 2001)))
    await harness.maintenance.recheck_peers()
    assert [peers.all for peers in followed] == [harness.peers.all]


@pytest.mark.parametrize("asked", [map_port(80), map_port(internal_port=80)])
async def test_a_port_that_the_rules_do_not_allow_is_forbidden(asked: MapPort) -> None:
    harness = await GatewayHarness().start()
    assert await harness.ask(asked) == Refusal.FORBIDDEN


async def test_without_an_external_address_port_mappings_are_refused() -> None:
    harness = await GatewayHarness().start()
    assert await harness.ask(GetExternalAddress()) == ExternalAddress(EXTERNAL)
    await harness.maintenance.set_addresses(None, [])
    assert await harness.ask(map_port()) == Refusal.NO_EXTERNAL_ADDRESS
    assert await harness.ask(GetExternalAddress()) == Refusal.NO_EXTERNAL_ADDRESS
    await harness.maintenance.set_addresses(IPv4Address("60.60.60.9"), [IPv4Address("10.1.1.1")])
    assert isinstance(await harness.ask(map_port()), Mapped)
    assert await harness.ask(GetExternalAddress()) == ExternalAddress(IPv4Address("60.60.60.9"))
    assert harness.backend.addresses == {IPv4Address("10.1.1.1")}


async def test_a_port_of_another_host_or_peer_is_a_conflict() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port())
    for asked, source in ((map_port(internal=C2), C2), (map_port(internal=C1_HOST), C1)):
        assert await harness.ask(asked, source) == Refusal.CONFLICT
    assert harness.all_equal()


async def test_a_renewal_keeps_the_place_in_the_list_and_updates_the_mapping() -> None:
    harness = await GatewayHarness().start()
    for port in (8043, 8044):
        await harness.ask(map_port(port))
    renewed = await harness.ask(map_port(internal_port=9000, lifetime=600, description="new"))
    assert renewed == Mapped(PortMapping(TransportProtocol.TCP, 8043, Endpoint(C1, 9000), "c1", "new"), 600)
    assert await ports(harness) == [8043, 8044]
    assert harness.all_equal()


async def test_the_quota_counts_per_peer_and_does_not_limit_renewals() -> None:
    harness = await GatewayHarness(policy("allow 1024-65535 0.0.0.0/0 1024-65535", quota=2)).start()
    for port in (2000, 2001):
        assert isinstance(await harness.ask(map_port(port)), Mapped)
    assert await harness.ask(map_port(2002)) == Refusal.QUOTA
    assert await harness.ask(map_port(None, internal_port=8044, any_port=True)) == Refusal.QUOTA
    assert isinstance(await harness.ask(map_port(2001)), Mapped)
    assert isinstance(await harness.ask(map_port(2002, C2), C2), Mapped)


# Any port

THREE = policy("allow 2000-2002 0.0.0.0/0 0-65535")


async def test_any_port_grants_the_suggested_port_or_a_free_one() -> None:
    harness = await GatewayHarness(THREE).start()
    first = await harness.ask(map_port(2001, any_port=True))
    assert isinstance(first, Mapped)
    assert first.mapping.external_port == 2001
    for port in (8043, 8044):
        assert isinstance(await harness.ask(map_port(2001, C2, internal_port=port, any_port=True), C2), Mapped)
    assert sorted(await ports(harness, C2)) == [2000, 2002]
    assert await harness.ask(map_port(2001, C2, internal_port=8045, any_port=True), C2) == Refusal.NO_FREE_PORT


async def test_the_gateway_never_chooses_a_port_that_the_peer_uses_for_another_endpoint() -> None:
    harness = await GatewayHarness(THREE).start()
    for internal_port in (5000, 5001, 5002):
        assert isinstance(await harness.ask(map_port(None, internal_port=internal_port, any_port=True)), Mapped)
    before = harness.table
    assert await harness.ask(map_port(None, internal_port=5003, any_port=True)) == Refusal.NO_FREE_PORT
    assert harness.table == before
    assert sorted(held.mapping.internal.port for held in before.values()) == [5000, 5001, 5002]


async def test_any_port_renews_the_suggested_port_if_the_peer_holds_it() -> None:
    harness = await GatewayHarness(THREE).start()
    await harness.ask(map_port(2001, lifetime=60))
    renewed = await harness.ask(map_port(2001, lifetime=600, any_port=True))
    assert isinstance(renewed, Mapped)
    assert (renewed.mapping.external_port, renewed.lifetime, len(harness.table)) == (2001, 600, 1)


async def test_a_forbidden_suggestion_gets_another_port_if_any_is_allowed() -> None:
    harness = await GatewayHarness(THREE).start()
    granted = await harness.ask(map_port(80, any_port=True))
    assert isinstance(granted, Mapped)
    assert granted.mapping.external_port in range(2000, 2003)
    harness = await GatewayHarness(policy()).start()
    assert await harness.ask(map_port(None, any_port=True)) == Refusal.FORBIDDEN


# Remotes and pinholes


ONE = (Remote(IPv4Network("198.51.100.7")),)


async def test_a_mapping_for_one_remote_is_read_and_closed_by_that_remote() -> None:
    harness = await GatewayHarness().start()
    granted = await harness.ask(replace(map_port(), remotes=ONE))
    assert isinstance(granted, Mapped)
    assert granted.mapping.remotes == ONE
    assert await harness.ask(GetMapping(*KEY)) == Refusal.NO_SUCH_MAPPING
    assert await harness.ask(GetMapping(*KEY, ONE)) == granted
    other = (Remote(IPv4Network("198.51.100.8")),)
    assert await harness.ask(UnmapPorts(TransportProtocol.TCP, range(8043, 8044), other)) == Refusal.NO_SUCH_MAPPING
    assert isinstance(await harness.ask(UnmapPorts(TransportProtocol.TCP, range(8043, 8044), ONE)), Unmapped)


async def test_the_last_request_sets_the_remotes() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(replace(map_port(), remotes=ONE))
    await harness.ask(map_port())
    assert harness.table[KEY].mapping.remotes == ()
    assert harness.all_equal()


INSIDE = IPv6Address("2001:470:100::2")


def pinhole(port: int = 8043, address: IPv6Address = INSIDE) -> MapPort:
    return MapPort(TransportProtocol.TCP, Endpoint(address, port), None, 300, any_port=True)


@pytest.mark.parametrize("source", [C1, INSIDE])
async def test_a_peer_gets_a_pinhole_to_its_own_address_from_any_of_its_addresses(source: Address) -> None:
    harness = GatewayHarness()
    harness.peers.all = (peer("c1", f"{C1}/32", f"{INSIDE}/128"), PEERS[1])
    await harness.start()
    granted = await harness.ask(pinhole(), source)
    assert isinstance(granted, Mapped)
    assert isinstance(granted.mapping, Pinhole)
    unique_id = granted.mapping.unique_id
    assert unique_id in UNIQUE_IDS
    assert granted == Mapped(Pinhole(TransportProtocol.TCP, Endpoint(INSIDE, 8043), "c1", unique_id=unique_id), 300)
    assert harness.all_equal()
    assert await ports(harness) == [], "a pinhole is not a port mapping"
    assert [mapped.mapping for mapped in await harness.gateway.mappings()] == [granted.mapping]
    assert await harness.ask(pinhole(), C2) == Refusal.NOT_YOUR_ADDRESS
    assert await harness.ask(pinhole(80), source) == Refusal.FORBIDDEN


async def test_pinholes_count_as_mappings_and_need_no_external_address() -> None:
    harness = GatewayHarness(policy("allow 1024-65535 2001:470:100::/64 1024-65535", quota=1))
    harness.peers.all = (peer("c1", f"{C1}/32", f"{INSIDE}/128"),)
    await harness.maintenance.start([], None, [])
    assert isinstance(await harness.ask(pinhole()), Mapped)
    assert await harness.ask(pinhole(8044)) == Refusal.QUOTA


# Closing


async def test_a_peer_closes_only_its_own_mappings() -> None:
    harness = await GatewayHarness().start()
    for port, source in ((2000, C1), (2001, C2), (2002, C1)):
        await harness.ask(map_port(port, source), source)
    closed = await harness.ask(UnmapPorts(TransportProtocol.TCP, range(2000, 2003)))
    assert isinstance(closed, Unmapped)
    assert [mapping.external_port for mapping in closed.mappings] == [2000, 2002]
    assert await ports(harness) == []
    assert await ports(harness, C2) == [2001]
    assert await harness.ask(UnmapPorts(TransportProtocol.TCP, range(2000, 2003))) == Refusal.NO_SUCH_MAPPING
    assert await harness.ask(GetMapping(TransportProtocol.TCP, 2001)) == Refusal.NO_SUCH_MAPPING
    assert harness.all_equal()


# Failures, logs and concurrency


async def test_the_link_status_is_read_and_a_failure_refuses_the_request() -> None:
    harness = await GatewayHarness().start()
    assert await harness.ask(GetLinkStatus()) == LINK
    harness.link_trouble = OSError("gone")
    assert await harness.ask(GetLinkStatus()) == Refusal.SYSTEM_FAILURE


async def test_every_decision_is_counted_and_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    harness = await GatewayHarness().start()
    with caplog.at_level(logging.INFO):
        await harness.ask(map_port(description="a\nb"))
        await harness.ask(map_port(80))
        await harness.ask(GetExternalAddress())
    assert harness.gateway.counters == {
        ("MapPort", "GRANTED"): 1,
        ("MapPort", "FORBIDDEN"): 1,
        ("GetExternalAddress", "GRANTED"): 1,
    }
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "GRANTED, TCP 8043 -> 10.100.0.2:8043",
        "FORBIDDEN, the operator's rules, or routed_hosts, do not allow this mapping",
    ]
    assert not any("\n" in record.message for record in caplog.records), "descriptions come from peers"


async def test_of_two_concurrent_requests_for_one_port_one_is_refused() -> None:
    harness = await GatewayHarness().start()
    replies = await asyncio.gather(harness.ask(map_port(2000)), harness.ask(map_port(2000, C2), C2))
    assert isinstance(replies[0], Mapped)
    assert replies[1] == Refusal.CONFLICT


async def test_a_local_network_of_the_server_inside_a_peers_allowed_ips_is_not_mapped_to() -> None:
    harness = await GatewayHarness().start()
    harness.peers.all = (peer("site", "10.100.0.2/32", "10.0.0.0/8"),)
    behind, shadowed = IPv4Address("10.5.0.7"), IPv4Address("10.6.0.7")
    harness.peers.shadowed = {shadowed, C1}
    for internal, granted in ((behind, True), (shadowed, False), (C1, False)):
        asked = MapPort(TransportProtocol.TCP, Endpoint(internal, 8043), int(internal) % 1000 + 2000, 300)
        assert (await harness.ask(asked) != Refusal.NOT_YOUR_ADDRESS) is granted


async def test_the_concurrent_changes_of_one_peer_are_limited() -> None:
    harness = await GatewayHarness().start()
    async with harness.ledger.peer_lock("c1"):
        greedy = [
            asyncio.create_task(harness.ask(MapPort(TransportProtocol.TCP, Endpoint(C1, port), port, 300)))
            for port in range(2000, 2000 + MAX_WAITING + 3)
        ]
        modest = asyncio.create_task(
            harness.ask(MapPort(TransportProtocol.TCP, Endpoint(C2, 3000), 3000, 300), source=C2)
        )
        refused = [await task for task in greedy[MAX_WAITING:]]
    assert refused == [Refusal.TOO_MANY_REQUESTS] * 3
    assert isinstance(await modest, Mapped)
    assert all(isinstance(reply, Mapped) for reply in await asyncio.gather(*greedy[:MAX_WAITING]))
    assert isinstance(await harness.ask(MapPort(TransportProtocol.TCP, Endpoint(C1, 4000), 4000, 300)), Mapped)


async def test_refused_admissions_are_counted() -> None:
    harness = await GatewayHarness().start()
    await harness.admit(IPv4Address("10.100.0.99"))
    assert harness.gateway.counters["admission", "NOT_A_PEER"] == 1


async def test_an_entry_is_read_without_a_list_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by its index nor by its port, however many there are."""
    harness = await GatewayHarness().start(*(entry(port) for port in range(1024, 1024 + 1000)))
    assert isinstance(await harness.ask(map_port(2023, internal_port=8080)), Mapped)  # follows the peers

    def walk(*_table: object) -> NoReturn:
        raise AssertionError("all entries are walked through")

    monkeypatch.setattr(Table, "of_peer", walk)
    monkeypatch.setattr(Table, "__iter__", walk)
    monkeypatch.setattr(OldestFirst, "__iter__", walk)
    for request in (GetMappingAt(999), GetMapping(TransportProtocol.TCP, 2023)):
        found = await harness.ask(request)
        assert isinstance(found, Mapped)
        assert found.mapping == entry(2023).mapping
    assert await harness.ask(GetMappingAt(1000)) == Refusal.NO_SUCH_MAPPING
    listed = await harness.ask(ListMappings(TransportProtocol.TCP, range(2000, 2000 + LISTED_AT_ONCE)))
    assert isinstance(listed, MappingList)
    assert len(listed.mappings) == 24
    assert isinstance(await harness.ask(UnmapPorts(TransportProtocol.TCP, range(2000, 2500))), Unmapped)


async def test_a_list_looks_at_no_more_than_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = await GatewayHarness().start(*(entry(port) for port in range(1024, 1024 + 3 * LISTED_AT_ONCE)))
    seen = list[Entry]()

    def is_asked_for(each: Entry, _request: ListMappings) -> bool:
        seen.append(each)
        return True

    monkeypatch.setattr(gateway, "_is_asked_for", is_asked_for)
    for most, looked_at in ((1, 1), (LISTED_AT_ONCE, 1), (LISTED_AT_ONCE + 1, 2), (0, 3), (9999, 3)):
        seen.clear()
        listed = await harness.ask(ListMappings(most=most))
        assert isinstance(listed, MappingList)
        assert len(listed.mappings) == min(most or len(seen), len(seen))
        assert len(seen) == looked_at * LISTED_AT_ONCE


async def test_live_peers_are_those_with_a_recent_handshake() -> None:
    harness = GatewayHarness()
    harness.peers.all = (
        *PEERS,
        peer("silent", "10.100.0.4/32"),
        peer("never", "10.100.0.5/32"),
        peer("all", "0.0.0.0/0"),
    )
    now = harness.clock.now
    harness.peers.shaken = {"c1": now, "c2": now - LIVE_SECONDS + 1, "silent": now - LIVE_SECONDS, "all": now}
    live = await harness.gateway.live_peers()
    assert [each.public_key for each in live] == ["c1", "c2", "all"]
    assert [each.addresses for each in live] == [(C1,), (C2,), ()]


@pytest.mark.parametrize(
    ("request_", "ports"),
    [
        (ListMappings(), [8043, 8044, 9000, 9001]),
        (ListMappings(TransportProtocol.TCP, range(1, 9001)), [8043, 9000]),
        (ListMappings(TransportProtocol.TCP, range(1, 9001), 1), [8043]),
        (ListMappings(TransportProtocol.UDP), [8044]),
        (ListMappings(ports=range(9001, 9002)), [9001]),
        (ListMappings(TransportProtocol.TCP, range(1, 2)), []),
    ],
)
async def test_a_list_holds_what_was_asked_for(request_: ListMappings, ports: list[int]) -> None:
    harness = await GatewayHarness().start()
    for port, protocol in ((8043, "TCP"), (8044, "UDP"), (9000, "TCP"), (9001, "TCP")):
        internal = Endpoint(C1, 8080)
        await harness.ask(MapPort(TransportProtocol[protocol], internal, port, 300))
    listed = await harness.ask(request_)
    assert isinstance(listed, MappingList)
    assert [mapped.mapping.external_port for mapped in listed.mappings] == ports
