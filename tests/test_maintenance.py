"""Mappings follow the clock, the peers and the store."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, TransportProtocol
from igd.core.request import (
    ENDLESS,
    GetMapping,
    Mapped,
    MapPort,
    Refusal,
)
from igd.firewall.backend import FirewallError
from igd.gateway import LIVE_SECONDS
from igd.maintenance import FLAP_SECONDS
from tests.gateway_harness import (
    C1,
    C1_HOST,
    C2,
    EXTERNAL,
    KEY,
    PEERS,
    SERVER,
    WEEK,
    GatewayHarness,
    entry,
    map_port,
    peer,
    policy,
    ports,
)

# Time


async def test_a_lease_ends_when_it_expires_and_not_before() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(2000, lifetime=2))
    await harness.ask(map_port(2001, lifetime=600))
    assert harness.ledger.next_wake() == harness.clock.now + 2
    harness.clock.now += 1.9
    await harness.maintenance.wake()
    assert await ports(harness) == [2000, 2001]
    harness.clock.now += 0.1
    await harness.maintenance.wake()
    assert await ports(harness) == [2001]
    assert harness.all_equal()


@pytest.mark.parametrize("late", [0.0, 0.4, 1.6, 1.9999, 2.0, 60.0])
async def test_an_open_mapping_is_never_reported_with_lifetime_zero(late: float) -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(lifetime=2))
    harness.clock.now += late
    mapped = await harness.ask(GetMapping(*KEY))
    assert isinstance(mapped, Mapped)
    assert mapped.lifetime in {1, 2}


async def test_an_endless_lease_is_reported_as_the_default_and_renewed_from_the_last_handshake() -> None:
    harness = await GatewayHarness().start()
    granted = await harness.ask(map_port(lifetime=ENDLESS))
    assert isinstance(granted, Mapped)
    assert granted.lifetime == WEEK
    harness.clock.now += WEEK
    harness.peers.shaken["c1"] = harness.clock.now - 1000
    await harness.maintenance.wake()
    held = harness.table[KEY]
    assert held.lease == Lease(harness.clock.now - 1000 + WEEK, endless=True)
    assert held.mapping == granted.mapping
    assert harness.all_equal()
    harness.clock.now = held.lease.expires
    await harness.maintenance.wake()
    assert harness.table == harness.backend.entries == harness.store.entries == {}


@pytest.mark.parametrize("handshakes", [{}, {"c2": 1000.0 + WEEK}, {"c1": 1000.0}])
async def test_an_endless_lease_ends_without_a_recent_handshake(handshakes: dict[str, float]) -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(lifetime=ENDLESS))
    harness.clock.now += WEEK
    harness.peers.shaken = handshakes
    await harness.maintenance.wake()
    assert harness.table == {}


async def test_a_short_default_lifetime_does_not_end_the_endless_leases_of_a_live_peer() -> None:
    harness = await GatewayHarness(policy("allow 1024-65535 0.0.0.0/0 1024-65535", default_lifetime=60)).start()
    await harness.ask(map_port(lifetime=ENDLESS))
    harness.clock.now += 60
    harness.peers.shaken["c1"] = harness.clock.now - (LIVE_SECONDS - 1)
    await harness.maintenance.wake()
    assert harness.table[KEY].lease == Lease(harness.clock.now + 1, endless=True)


async def test_a_handshake_in_the_future_counts_as_now() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(lifetime=ENDLESS))
    harness.clock.now += WEEK
    harness.peers.shaken["c1"] = harness.clock.now + 1e8
    await harness.maintenance.wake()
    assert harness.table[KEY].lease.expires == harness.clock.now + WEEK


async def test_other_leases_end_while_handshakes_cannot_be_read() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(2000, lifetime=ENDLESS))
    harness.clock.now += WEEK - 300
    await harness.ask(map_port(2001))
    harness.clock.now += 300
    harness.peers.trouble = OSError("no such device")
    await harness.maintenance.wake()
    assert list(harness.table) == [(TransportProtocol.TCP, 2000)]
    wake = harness.ledger.next_wake()
    assert wake
    assert wake > harness.clock.now
    harness.peers.trouble = None
    harness.clock.now = wake
    await harness.maintenance.wake()
    assert harness.table == {}


async def test_an_end_that_the_kernel_rejects_is_retried_with_a_pause() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(lifetime=2))
    harness.clock.now += 2
    harness.backend.fail_next = FirewallError("busy")
    await harness.maintenance.wake()
    assert harness.all_equal()
    assert len(harness.table) == 1
    wake = harness.ledger.next_wake()
    assert wake
    assert wake > harness.clock.now
    harness.clock.now = wake
    await harness.maintenance.wake()
    assert harness.all_equal()
    assert harness.table == {}
    assert harness.ledger.next_wake() is None


# Removed peers


@pytest.mark.parametrize(
    ("peers", "left"),
    [
        (PEERS, [2000, 2001, 2002]),
        (PEERS[:1], [2000, 2001]),
        (PEERS[1:], [2002]),
        ((), []),
        ((peer("c1", f"{C1}/32"), PEERS[1]), [2000, 2002]),  # c1 no longer routes the network
        ((peer("c1", f"{C2}/32"), peer("c2", f"{C1}/32")), []),  # the peers have exchanged addresses
    ],
)
async def test_mappings_end_when_their_peer_no_longer_owns_the_address(
    peers: tuple[object, ...], left: list[int]
) -> None:
    harness = await GatewayHarness().start(entry(2000), entry(2001, internal=C1_HOST), entry(2002, internal=C2))
    harness.peers.all = peers  # type: ignore[assignment]
    await harness.maintenance.recheck_peers()
    assert [key[1] for key in harness.table] == left
    assert harness.all_equal()


async def test_a_change_in_progress_when_its_peer_was_removed_is_closed_too() -> None:
    harness = await GatewayHarness().start(entry(2002, internal=C2))
    asked = map_port(2000)
    async with harness.ledger.peer_lock("c1"):
        asking = asyncio.create_task(harness.ask(asked))
        await asyncio.sleep(0)  # the request is admitted and waits
        harness.peers.all = PEERS[1:]
        await harness.maintenance.recheck_peers()
        harness.peers.all = PEERS
    assert isinstance(await asking, Mapped), "the peers were restored before they were read"
    harness.peers.all = PEERS[1:]
    await harness.maintenance.recheck_peers()
    assert [key[1] for key in harness.table] == [2002]


async def test_no_mapping_ends_while_the_peers_cannot_be_read() -> None:
    harness = await GatewayHarness().start(entry(2000))
    harness.peers.trouble = OSError("interrupted")
    with pytest.raises(OSError, match="interrupted"):
        await harness.maintenance.recheck_peers()
    await harness.maintenance.recheck_routes()
    assert len(harness.table) == 1


async def test_a_peer_that_is_back_before_the_peers_are_read_keeps_its_mappings() -> None:
    harness = await GatewayHarness().start(entry(2000))
    harness.peers.all = PEERS[1:]
    harness.peers.all = PEERS
    await harness.maintenance.recheck_peers()
    assert len(harness.table) == 1


# Routes


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have routes believed at the first look."""
    monkeypatch.setattr("igd.maintenance.FLAP_SECONDS", 0)


@pytest.mark.parametrize("returned", [False, True])
async def test_mappings_end_when_their_address_stays_elsewhere(
    monkeypatch: pytest.MonkeyPatch, *, returned: bool
) -> None:
    harness = await GatewayHarness().start(entry(2000))
    await harness.maintenance.recheck_peers()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        harness.clock.now += seconds * 1.01
        if returned:
            harness.peers.shadowed = set()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    harness.peers.shadowed = {C1}
    await harness.maintenance.recheck_routes()
    assert slept == pytest.approx([FLAP_SECONDS])
    assert len(harness.table) == returned
    assert harness.all_equal()


@pytest.mark.usefixtures("at_once")
async def test_mappings_end_when_their_address_is_routed_elsewhere() -> None:
    harness = await GatewayHarness().start(entry(2000), entry(2001, internal=C1_HOST), entry(2002, internal=C2))
    await harness.maintenance.recheck_peers()
    harness.peers.shadowed = {C1_HOST}
    await harness.maintenance.recheck_routes()
    assert [key[1] for key in harness.table] == [2000, 2002]
    assert harness.all_equal()


@pytest.mark.usefixtures("at_once")
async def test_routes_that_changed_while_the_peers_could_not_be_read_are_checked_later() -> None:
    harness = await GatewayHarness().start(entry(2000))
    await harness.maintenance.recheck_peers()
    harness.peers.shadowed, harness.peers.trouble = {C1}, OSError("interrupted")
    await harness.maintenance.recheck_routes()
    harness.peers.trouble = None
    await harness.maintenance.recheck_peers()
    assert harness.table == {}


@pytest.mark.usefixtures("at_once")
async def test_a_change_in_progress_when_its_route_moved_is_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = await GatewayHarness().start()
    committing, proceed = asyncio.Event(), asyncio.Event()
    commit = harness.ledger.commit

    async def slow_commit(changes: Sequence[Change], *, imposed: bool = False) -> None:
        committing.set()
        await proceed.wait()
        await commit(changes, imposed=imposed)

    monkeypatch.setattr(harness.ledger, "commit", slow_commit)
    asking = asyncio.create_task(harness.ask(map_port(2000)))
    await committing.wait()
    harness.peers.shadowed = {C1}
    await harness.maintenance.recheck_routes()
    proceed.set()
    assert isinstance(await asking, Mapped), "it was decided before"
    await harness.maintenance.recheck_peers()
    assert harness.table == harness.backend.entries == {}


@pytest.mark.usefixtures("at_once")
async def test_an_end_of_a_shadowed_mapping_that_the_kernel_rejects_is_retried() -> None:
    harness = await GatewayHarness().start(entry(2000))
    await harness.maintenance.recheck_peers()
    harness.peers.shadowed = {C1}
    harness.backend.fail_next = FirewallError("busy")
    await harness.maintenance.recheck_routes()
    assert len(harness.table) == 1
    await harness.maintenance.recheck_peers()
    assert harness.table == {}


async def test_unchanged_peers_and_routes_are_not_checked_again() -> None:
    harness = await GatewayHarness().start(entry(2000))
    await harness.maintenance.recheck_peers()
    harness.peers.shadowed = {C1}  # and nothing reports it
    await harness.maintenance.recheck_peers()
    assert len(harness.table) == 1


# Restart


@pytest.mark.parametrize(
    ("stored", "stays"),
    [
        (entry(2000), True),
        (entry(2000, 999.0), False),
        (entry(80), False),  # the rules have changed
        (entry(2000, internal=IPv4Address("10.100.0.9")), False),  # the peers have changed
    ],
)
async def test_at_the_start_mappings_that_are_no_longer_allowed_are_dropped(stored: Entry, *, stays: bool) -> None:
    harness = await GatewayHarness().start(stored, entry(3000))
    assert (stored.mapping.key in harness.table) is stays
    assert harness.all_equal()
    assert [mapped.mapping.external_port for mapped in await harness.gateway.mappings()][-1] == 3000


async def test_at_the_start_mappings_to_an_address_that_is_not_one_hosts_are_dropped() -> None:
    """Older versions granted them."""
    reserved = entry(2000, internal=IPv4Address("240.0.0.1"))
    harness = GatewayHarness()
    harness.peers.all = (peer("c1", "10.100.0.2/32", "240.0.0.1/32"),)
    await harness.start(reserved, entry(3000))
    assert await ports(harness) == [3000]
    assert harness.all_equal()


async def test_an_endless_lease_that_expired_while_the_daemon_was_stopped_is_renewed_for_a_live_peer() -> None:
    harness = await GatewayHarness().start(
        entry(2000, 999.0, endless=True), entry(2001, 999.0, endless=True, internal=C2)
    )
    assert harness.ledger.next_wake() == harness.clock.now + LIVE_SECONDS, "a reboot has ended all sessions"
    harness.clock.now += LIVE_SECONDS - 1
    harness.peers.shaken["c1"] = harness.clock.now - 20
    await harness.maintenance.wake()
    assert len(harness.table) == 2
    harness.clock.now += 1
    await harness.maintenance.wake()
    assert list(harness.table) == [(TransportProtocol.TCP, 2000)]
    assert harness.all_equal()


async def test_at_the_start_leases_are_cut_to_the_longest_lifetime() -> None:
    harness = await GatewayHarness(
        policy("allow 1-65535 0.0.0.0/0 1-65535", max_lifetime=3600, default_lifetime=60)
    ).start(entry(2000, 9000.0), entry(2001, 1e9, endless=True), entry(2002, 1500.0))
    assert [held.lease for held in harness.table.values()] == [
        Lease(1000.0 + 3600),
        Lease(1000.0 + 3600, endless=True),
        Lease(1500.0),
    ]


async def test_a_start_that_the_kernel_rejects_raises() -> None:
    harness = GatewayHarness()
    harness.backend.fail_next = FirewallError("no")
    with pytest.raises(FirewallError):
        await harness.start(entry(2000))


async def test_the_start_replaces_the_previous_state_of_the_kernel() -> None:
    harness = GatewayHarness()
    harness.backend.replace_all([SERVER], [entry(9999)], 0.0)
    await harness.start(entry(2000))
    assert list(harness.backend.entries) == [(TransportProtocol.TCP, 2000)]
    assert harness.backend.addresses == {EXTERNAL}


# Ports of the server


async def test_a_port_that_the_server_uses_is_never_mapped_and_is_dropped_at_the_start() -> None:
    harness = GatewayHarness()
    harness.servers_own = {(TransportProtocol.TCP, 2000)}
    await harness.start(entry(2000), entry(2001))
    assert list(harness.table) == [(TransportProtocol.TCP, 2001)]
    asked = MapPort(TransportProtocol.TCP, Endpoint(C1, 80 + 1024), 2000, 300)
    assert await harness.ask(asked) == Refusal.CONFLICT
    granted = await harness.ask(replace(asked, any_port=True))
    assert isinstance(granted, Mapped)
    assert granted.mapping.external_port not in {2000, 2001}
