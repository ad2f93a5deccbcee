"""The counter decides as the peers, the operator's rules, the table and the clock have it."""

import asyncio
import logging
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, Protocol
from igd.core.policy import Policy, Rule
from igd.core.request import (
    ENDLESS,
    ExternalAddress,
    GetExternalAddress,
    GetLinkStatus,
    GetMapping,
    ListMappings,
    Mapped,
    Mappings,
    MapPort,
    Refusal,
    Refused,
    Unmapped,
    UnmapPorts,
)
from igd.firewall.backend import FirewallError
from igd.gateway import LIVE_SECONDS, WAITING
from tests.counter import C1, C1_HOST, C2, EXTERNAL, LINK, PEERS, SERVER, Counter, map_port, peer

WEEK = 604800
KEY = (Protocol.TCP, 8043)


def entry(port: int, expires: float = 2000.0, *, endless: bool = False, internal: IPv4Address = C1) -> Entry:
    owner = "c2" if internal == C2 else "c1"
    return Entry(PortMapping(Protocol.TCP, port, Endpoint(internal, 8080), owner), Lease(expires, endless))


def policy(*rules: str, max_lifetime: int = WEEK, default_lifetime: int = WEEK, quota: int = 64) -> Policy:
    return Policy(tuple(map(Rule.parse, rules)), max_lifetime, default_lifetime, quota)


async def ports(counter: Counter, source: IPv4Address = C1) -> list[int]:
    listed = await counter.ask(ListMappings(), source)
    assert isinstance(listed, Mappings)
    return [mapped.mapping.external_port for mapped in listed.mappings]


# Who may ask


@pytest.mark.parametrize("source", [SERVER, IPv4Address("10.100.0.9"), IPv4Address("60.60.60.1")])
async def test_who_is_no_peer_is_not_admitted(source: IPv4Address) -> None:
    counter = await Counter().start()
    assert await counter.gateway.admit(source) == Refused(Refusal.NOT_A_PEER)


async def test_who_asks_too_often_is_refused_and_others_are_not() -> None:
    counter = await Counter(rate=2).start()
    assert [await counter.gateway.admit(source) for source in (C1, C1_HOST, C1, C2)] == [
        PEERS[0],
        PEERS[0],
        Refused(Refusal.TOO_MANY_REQUESTS),
        PEERS[1],
    ]


async def test_nobody_is_admitted_while_the_peers_cannot_be_read() -> None:
    counter = await Counter().start()
    counter.peers.trouble = OSError("no such device")
    assert await counter.gateway.admit(C1) == Refused(Refusal.SYSTEM_FAILURE)


# Opening


async def test_a_mapping_is_granted_held_and_listed() -> None:
    counter = await Counter().start()
    granted = await counter.ask(map_port(description="web"))
    mapping = PortMapping(Protocol.TCP, 8043, Endpoint(C1, 8043), "c1", "web")
    assert granted == Mapped(mapping, 300)
    assert counter.all_equal()
    assert counter.backend.addresses == {EXTERNAL}
    counter.clock.now += 100
    assert await counter.ask(GetMapping(*KEY)) == Mapped(mapping, 200)
    assert await counter.ask(ListMappings()) == Mappings((Mapped(mapping, 200),))
    assert counter.gateway.mappings() == [Mapped(mapping, 200)]


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
async def test_a_peer_maps_to_its_own_addresses(
    source: IPv4Address, internal: IPv4Address, refusal: Refusal | None
) -> None:
    counter = await Counter().start()
    reply = await counter.ask(map_port(internal=internal), source)
    assert reply == Refused(refusal) if refusal else isinstance(reply, Mapped)
    assert len(counter.table) == (refusal is None)


@pytest.mark.parametrize(
    ("internal", "granted"), [(C1, True), (C2, False), (SERVER, False), (IPv4Address("8.8.8.8"), False)]
)
async def test_a_lone_peer_that_may_send_to_everywhere_maps_to_its_source(internal: IPv4Address, granted: bool) -> None:  # noqa: FBT001
    counter = Counter()
    counter.peers.all = (peer("c1", "0.0.0.0/0", "::/0"),)
    await counter.start()
    assert isinstance(await counter.ask(map_port(internal=internal)), Mapped) is granted
    await counter.gateway.recheck_peers()
    assert len(counter.table) == granted


async def test_an_address_that_changed_hands_after_admission_is_no_longer_the_askers() -> None:
    counter = await Counter().start()
    counter.peers.all = (peer("new", f"{C1}/32"),)
    assert await counter.gateway.ask(PEERS[0], C1, map_port()) == Refused(Refusal.NOT_YOUR_ADDRESS)


@pytest.mark.parametrize("asked", [map_port(80), map_port(internal_port=80)])
async def test_what_the_rules_do_not_allow_is_forbidden(asked: MapPort) -> None:
    counter = await Counter().start()
    assert await counter.ask(asked) == Refused(Refusal.FORBIDDEN)


async def test_without_an_external_address_nothing_is_mapped() -> None:
    counter = await Counter().start()
    assert await counter.ask(GetExternalAddress()) == ExternalAddress(EXTERNAL)
    await counter.gateway.set_addresses(None, [])
    assert await counter.ask(map_port()) == Refused(Refusal.NO_EXTERNAL_ADDRESS)
    assert await counter.ask(GetExternalAddress()) == Refused(Refusal.NO_EXTERNAL_ADDRESS)
    await counter.gateway.set_addresses(IPv4Address("60.60.60.9"), [IPv4Address("10.1.1.1")])
    assert isinstance(await counter.ask(map_port()), Mapped)
    assert await counter.ask(GetExternalAddress()) == ExternalAddress(IPv4Address("60.60.60.9"))
    assert counter.backend.addresses == {IPv4Address("10.1.1.1")}


async def test_a_port_in_other_hands_is_a_conflict() -> None:
    counter = await Counter().start()
    await counter.ask(map_port())
    for asked, source in ((map_port(internal=C2), C2), (map_port(internal=C1_HOST), C1)):
        assert await counter.ask(asked, source) == Refused(Refusal.CONFLICT)
    assert counter.all_equal()


async def test_a_renewal_keeps_the_place_in_the_list_and_takes_what_is_new() -> None:
    counter = await Counter().start()
    for port in (8043, 8044):
        await counter.ask(map_port(port))
    renewed = await counter.ask(map_port(internal_port=9000, lifetime=600, description="new"))
    assert renewed == Mapped(PortMapping(Protocol.TCP, 8043, Endpoint(C1, 9000), "c1", "new"), 600)
    assert await ports(counter) == [8043, 8044]
    assert counter.all_equal()


async def test_the_quota_counts_per_peer_and_lets_renewals_pass() -> None:
    counter = await Counter(policy("allow 1024-65535 0.0.0.0/0 1024-65535", quota=2)).start()
    for port in (2000, 2001):
        assert isinstance(await counter.ask(map_port(port)), Mapped)
    assert await counter.ask(map_port(2002)) == Refused(Refusal.QUOTA)
    assert await counter.ask(map_port(None, any_port=True)) == Refused(Refusal.QUOTA)
    assert isinstance(await counter.ask(map_port(2001)), Mapped)
    assert isinstance(await counter.ask(map_port(2002, C2), C2), Mapped)


# Any port

THREE = policy("allow 2000-2002 0.0.0.0/0 0-65535")


async def test_any_port_grants_the_wish_and_then_what_is_free() -> None:
    counter = await Counter(THREE).start()
    first = await counter.ask(map_port(2001, any_port=True))
    assert isinstance(first, Mapped)
    assert first.mapping.external_port == 2001
    for _ in range(2):
        assert isinstance(await counter.ask(map_port(2001, C2, any_port=True), C2), Mapped)
    assert sorted(await ports(counter, C2)) == [2000, 2002]
    assert await counter.ask(map_port(2001, C2, any_port=True), C2) == Refused(Refusal.NO_FREE_PORT)


async def test_a_port_of_our_choice_is_never_one_that_the_asker_uses_for_something_else() -> None:
    counter = await Counter(THREE).start()
    for internal_port in (5000, 5001, 5002):
        assert isinstance(await counter.ask(map_port(None, internal_port=internal_port, any_port=True)), Mapped)
    before = counter.table
    assert await counter.ask(map_port(None, internal_port=5003, any_port=True)) == Refused(Refusal.NO_FREE_PORT)
    assert counter.table == before
    assert sorted(held.mapping.internal.port for held in before.values()) == [5000, 5001, 5002]


async def test_any_port_renews_the_wish_where_the_asker_holds_it() -> None:
    counter = await Counter(THREE).start()
    await counter.ask(map_port(2001, lifetime=60))
    renewed = await counter.ask(map_port(2001, lifetime=600, any_port=True))
    assert isinstance(renewed, Mapped)
    assert (renewed.mapping.external_port, renewed.lifetime, len(counter.table)) == (2001, 600, 1)


async def test_a_wish_that_is_forbidden_gets_another_port_and_where_all_are_none() -> None:
    counter = await Counter(THREE).start()
    granted = await counter.ask(map_port(80, any_port=True))
    assert isinstance(granted, Mapped)
    assert granted.mapping.external_port in range(2000, 2003)
    counter = await Counter(policy()).start()
    assert await counter.ask(map_port(None, any_port=True)) == Refused(Refusal.FORBIDDEN)


# Closing


async def test_a_peer_closes_its_own_and_nobody_elses() -> None:
    counter = await Counter().start()
    for port, source in ((2000, C1), (2001, C2), (2002, C1)):
        await counter.ask(map_port(port, source), source)
    closed = await counter.ask(UnmapPorts(Protocol.TCP, 2000, 2002))
    assert isinstance(closed, Unmapped)
    assert [mapping.external_port for mapping in closed.mappings] == [2000, 2002]
    assert await ports(counter) == []
    assert await ports(counter, C2) == [2001]
    assert await counter.ask(UnmapPorts(Protocol.TCP, 2000, 2002)) == Refused(Refusal.NO_SUCH_MAPPING)
    assert await counter.ask(GetMapping(Protocol.TCP, 2001)) == Refused(Refusal.NO_SUCH_MAPPING)
    assert counter.all_equal()


# Trouble


async def test_the_link_is_read_for_whoever_asks_and_trouble_refuses() -> None:
    counter = await Counter().start()
    assert await counter.ask(GetLinkStatus()) == LINK
    counter.link_trouble = OSError("gone")
    assert await counter.ask(GetLinkStatus()) == Refused(Refusal.SYSTEM_FAILURE)


async def test_every_decision_is_counted_and_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    counter = await Counter().start()
    with caplog.at_level(logging.INFO):
        await counter.ask(map_port(description="a\nb"))
        await counter.ask(map_port(80))
        await counter.ask(GetExternalAddress())
    assert counter.gateway.counters == {
        ("MapPort", "GRANTED"): 1,
        ("MapPort", "FORBIDDEN"): 1,
        ("GetExternalAddress", "GRANTED"): 1,
    }
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "GRANTED, TCP 8043 -> 10.100.0.2:8043",
        "FORBIDDEN, the operator's rules do not allow this mapping",
    ]
    assert not any("\n" in record.message for record in caplog.records), "peers write descriptions"


async def test_two_who_want_one_port_at_once_do_not_both_get_it() -> None:
    counter = await Counter().start()
    replies = await asyncio.gather(counter.ask(map_port(2000)), counter.ask(map_port(2000, C2), C2))
    assert isinstance(replies[0], Mapped)
    assert replies[1] == Refused(Refusal.CONFLICT)


# Time


async def test_a_lease_ends_when_it_has_run_out_and_not_before() -> None:
    counter = await Counter().start()
    await counter.ask(map_port(2000, lifetime=2))
    await counter.ask(map_port(2001, lifetime=600))
    assert counter.ledger.next_wake() == counter.clock.now + 2
    counter.clock.now += 1.9
    await counter.gateway.wake()
    assert await ports(counter) == [2000, 2001]
    counter.clock.now += 0.1
    await counter.gateway.wake()
    assert await ports(counter) == [2001]
    assert counter.all_equal()


@pytest.mark.parametrize("late", [0.0, 0.4, 1.6, 1.9999, 2.0, 60.0])
async def test_what_stands_is_never_told_as_endless(late: float) -> None:
    counter = await Counter().start()
    await counter.ask(map_port(lifetime=2))
    counter.clock.now += late
    mapped = await counter.ask(GetMapping(*KEY))
    assert isinstance(mapped, Mapped)
    assert mapped.lifetime in {1, 2}


async def test_an_endless_lease_is_told_as_the_default_and_renewed_from_the_last_handshake() -> None:
    counter = await Counter().start()
    granted = await counter.ask(map_port(lifetime=ENDLESS))
    assert isinstance(granted, Mapped)
    assert granted.lifetime == WEEK
    counter.clock.now += WEEK
    counter.peers.shaken["c1"] = counter.clock.now - 1000
    await counter.gateway.wake()
    held = counter.table[KEY]
    assert held.lease == Lease(counter.clock.now - 1000 + WEEK, endless=True)
    assert held.mapping == granted.mapping
    assert counter.all_equal()
    counter.clock.now = held.lease.expires
    await counter.gateway.wake()
    assert counter.table == counter.backend.entries == counter.store.entries == {}


@pytest.mark.parametrize("handshakes", [{}, {"c2": 1000.0 + WEEK}, {"c1": 1000.0}])
async def test_an_endless_lease_ends_with_a_silent_peer(handshakes: dict[str, float]) -> None:
    counter = await Counter().start()
    await counter.ask(map_port(lifetime=ENDLESS))
    counter.clock.now += WEEK
    counter.peers.shaken = handshakes
    await counter.gateway.wake()
    assert counter.table == {}


async def test_a_short_default_does_not_end_the_endless_leases_of_a_peer_that_is_there() -> None:
    counter = await Counter(policy("allow 1024-65535 0.0.0.0/0 1024-65535", default_lifetime=60)).start()
    await counter.ask(map_port(lifetime=ENDLESS))
    counter.clock.now += 60
    counter.peers.shaken["c1"] = counter.clock.now - (LIVE_SECONDS - 1)
    await counter.gateway.wake()
    assert counter.table[KEY].lease == Lease(counter.clock.now + 1, endless=True)


async def test_a_handshake_in_the_future_lengthens_no_lease() -> None:
    counter = await Counter().start()
    await counter.ask(map_port(lifetime=ENDLESS))
    counter.clock.now += WEEK
    counter.peers.shaken["c1"] = counter.clock.now + 1e8
    await counter.gateway.wake()
    assert counter.table[KEY].lease.expires == counter.clock.now + WEEK


async def test_other_leases_end_while_handshakes_cannot_be_read() -> None:
    counter = await Counter().start()
    await counter.ask(map_port(2000, lifetime=ENDLESS))
    counter.clock.now += WEEK - 300
    await counter.ask(map_port(2001))
    counter.clock.now += 300
    counter.peers.trouble = OSError("no such device")
    await counter.gateway.wake()
    assert list(counter.table) == [(Protocol.TCP, 2000)]
    wake = counter.ledger.next_wake()
    assert wake
    assert wake > counter.clock.now
    counter.peers.trouble = None
    counter.clock.now = wake
    await counter.gateway.wake()
    assert counter.table == {}


async def test_an_end_that_the_kernel_refuses_is_tried_again_and_does_not_spin() -> None:
    counter = await Counter().start()
    await counter.ask(map_port(lifetime=2))
    counter.clock.now += 2
    counter.backend.fail_next = FirewallError("busy")
    await counter.gateway.wake()
    assert counter.all_equal()
    assert len(counter.table) == 1
    wake = counter.ledger.next_wake()
    assert wake
    assert wake > counter.clock.now
    counter.clock.now = wake
    await counter.gateway.wake()
    assert counter.all_equal()
    assert counter.table == {}
    assert counter.ledger.next_wake() is None


# Peers that go


@pytest.mark.parametrize(
    ("peers", "left"),
    [
        (PEERS, [2000, 2001, 2002]),
        (PEERS[:1], [2000, 2001]),
        (PEERS[1:], [2002]),
        ((), []),
        ((peer("c1", f"{C1}/32"), PEERS[1]), [2000, 2002]),  # it no longer routes the network
        ((peer("c1", f"{C2}/32"), peer("c2", f"{C1}/32")), []),  # they have exchanged addresses
    ],
)
async def test_mappings_end_with_the_right_to_their_addresses(peers: tuple[object, ...], left: list[int]) -> None:
    counter = await Counter().start(entry(2000), entry(2001, internal=C1_HOST), entry(2002, internal=C2))
    counter.peers.all = peers  # type: ignore[assignment]
    await counter.gateway.recheck_peers()
    assert [port for _, port in counter.table] == left
    assert counter.all_equal()


async def test_no_mapping_ends_because_the_peers_cannot_be_read() -> None:
    counter = await Counter().start(entry(2000))
    counter.peers.trouble = OSError("interrupted")
    await counter.gateway.recheck_peers()
    assert len(counter.table) == 1


async def test_the_living_are_those_who_shook_hands_lately_and_have_an_address_to_themselves() -> None:
    counter = Counter()
    counter.peers.all = (
        *PEERS,
        peer("silent", "10.100.0.4/32"),
        peer("never", "10.100.0.5/32"),
        peer("all", "0.0.0.0/0"),
    )
    now = counter.clock.now
    counter.peers.shaken = {"c1": now, "c2": now - LIVE_SECONDS + 1, "silent": now - LIVE_SECONDS, "all": now}
    assert await counter.gateway.live_addresses() == [C1, C2]


# Over a restart


@pytest.mark.parametrize(
    ("stored", "stays"),
    [
        (entry(2000), True),
        (entry(2000, 999.0), False),
        (entry(80), False),  # the rules have changed
        (entry(2000, internal=IPv4Address("10.100.0.9")), False),  # the peers have changed
        (entry(2000, 999.0, endless=True), True),  # the handshakes will tell
    ],
)
async def test_at_the_start_what_is_no_longer_allowed_goes(stored: Entry, stays: bool) -> None:  # noqa: FBT001
    counter = await Counter().start(stored, entry(3000))
    assert (stored.mapping.key in counter.table) is stays
    assert counter.all_equal()
    assert [mapped.mapping.external_port for mapped in counter.gateway.mappings()][-1] == 3000


async def test_an_endless_lease_that_ran_out_while_nobody_watched_lives_on_with_its_peer() -> None:
    counter = await Counter().start(entry(2000, 999.0, endless=True), entry(2001, 999.0, endless=True, internal=C2))
    counter.peers.shaken["c1"] = counter.clock.now - 20
    assert counter.ledger.next_wake() == 999.0
    await counter.gateway.wake()
    assert list(counter.table) == [(Protocol.TCP, 2000)]
    assert counter.all_equal()


async def test_at_the_start_no_lease_is_longer_than_what_is_granted() -> None:
    counter = await Counter(policy("allow 1-65535 0.0.0.0/0 1-65535", max_lifetime=3600, default_lifetime=60)).start(
        entry(2000, 9000.0), entry(2001, 1e9, endless=True), entry(2002, 1500.0)
    )
    assert [held.lease for held in counter.table.values()] == [
        Lease(1000.0 + 3600),
        Lease(1000.0 + 3600, endless=True),
        Lease(1500.0),
    ]


async def test_a_start_that_the_kernel_refuses_is_trouble() -> None:
    counter = Counter()
    counter.backend.fail_next = FirewallError("no")
    with pytest.raises(FirewallError):
        await counter.start(entry(2000))


async def test_whatever_the_kernel_held_of_ours_is_replaced() -> None:
    counter = Counter()
    counter.backend.replace_all([SERVER], [entry(9999)], 0.0)
    await counter.start(entry(2000))
    assert list(counter.backend.entries) == [(Protocol.TCP, 2000)]
    assert counter.backend.addresses == {EXTERNAL}


# What is the server's own


async def test_the_servers_own_port_is_nobodys_over_a_restart_too() -> None:
    counter = Counter()
    counter.servers_own = {(Protocol.TCP, 2000)}
    await counter.start(entry(2000), entry(2001))
    assert list(counter.table) == [(Protocol.TCP, 2001)]
    asked = MapPort(Protocol.TCP, Endpoint(C1, 80 + 1024), 2000, 300)
    assert await counter.ask(asked) == Refused(Refusal.CONFLICT)
    granted = await counter.ask(replace(asked, any_port=True))
    assert isinstance(granted, Mapped)
    assert granted.mapping.external_port not in {2000, 2001}


async def test_a_network_of_the_servers_that_lies_in_a_peers_allowed_ips_is_not_opened() -> None:
    counter = await Counter().start()
    counter.peers.all = (peer("site", "10.100.0.2/32", "10.0.0.0/8"),)
    behind, shadowed = IPv4Address("10.5.0.7"), IPv4Address("10.6.0.7")
    counter.peers.shadowed = {shadowed, C1}  # of its own network no route is asked about
    for internal, granted in ((behind, True), (shadowed, False), (C1, True)):
        asked = MapPort(Protocol.TCP, Endpoint(internal, 8043), int(internal) % 1000 + 2000, 300)
        assert (await counter.ask(asked) != Refused(Refusal.NOT_YOUR_ADDRESS)) is granted


async def test_nobody_waits_behind_a_peer_that_asks_for_much_at_once() -> None:
    counter = await Counter().start()
    async with counter.ledger.turn():
        greedy = [
            asyncio.create_task(counter.ask(MapPort(Protocol.TCP, Endpoint(C1, port), port, 300)))
            for port in range(2000, 2000 + WAITING + 3)
        ]
        modest = asyncio.create_task(counter.ask(MapPort(Protocol.TCP, Endpoint(C2, 3000), 3000, 300), source=C2))
        refused = [await task for task in greedy[WAITING:]]
    assert refused == [Refused(Refusal.TOO_MANY_REQUESTS)] * 3
    assert isinstance(await modest, Mapped)
    assert all(isinstance(reply, Mapped) for reply in await asyncio.gather(*greedy[:WAITING]))
    assert isinstance(await counter.ask(MapPort(Protocol.TCP, Endpoint(C1, 4000), 4000, 300)), Mapped)


async def test_who_is_not_admitted_is_counted() -> None:
    counter = await Counter().start()
    await counter.gateway.admit(IPv4Address("10.100.0.99"))
    assert counter.gateway.counters["admission", "NOT_A_PEER"] == 1
