"""Mappings of silent peers are suspended, keep their ports, and are resumed."""

import pytest

from igd.core.mapping import Change
from igd.core.policies import Policies
from igd.core.policy import Policy
from igd.core.request import ListMappings, Mapped, MappingList, Refusal
from igd.core.reserved_ports import StaticMapping
from tests.gateway_harness import C1, C2, KEY, GatewayHarness, map_port

IDLE = 300


async def harness_with(*, handshake: float | None = None, idle_after: int = IDLE) -> GatewayHarness:
    """Return a harness in which c1 had this handshake, and c1 and c2 have a mapping each of a thousand seconds."""
    policies = Policies(by_peer={"c1": Policy(idle_after=idle_after)})
    harness = await GatewayHarness(policies).start()
    if handshake is not None:
        harness.peers.shaken["c1"] = handshake
    await harness.ask(map_port(lifetime=1000))
    await harness.ask(map_port(9000, C2, internal_port=9000, lifetime=1000), C2)
    return harness


def open_ports(harness: GatewayHarness) -> list[int]:
    return sorted(each.mapping.external_port for each in harness.backend.entries.values())


@pytest.mark.parametrize(("handshake", "last"), [(None, 1000.0), (1000.0, 1000.0), (900.0, 900.0)])
async def test_they_are_suspended_after_the_time_and_not_before(handshake: float | None, last: float) -> None:
    harness = await harness_with(handshake=handshake)
    harness.clock.now = last + IDLE
    await harness.maintenance.recheck_peers()
    assert open_ports(harness) == [8043, 9000]
    harness.clock.now += 0.1
    await harness.maintenance.recheck_peers()
    assert open_ports(harness) == [9000]
    assert set(harness.table) == set(harness.store.entries) == {KEY, (KEY[0], 9000)}


async def suspended(handshake: float | None = None) -> GatewayHarness:
    harness = await harness_with(handshake=handshake)
    harness.clock.now += IDLE + 1
    await harness.maintenance.recheck_peers()
    assert open_ports(harness) == [9000]
    return harness


async def test_a_handshake_resumes_them() -> None:
    harness = await suspended()
    harness.peers.shaken["c1"] = harness.clock.now
    await harness.maintenance.recheck_peers()
    assert open_ports(harness) == [8043, 9000]
    assert harness.all_equal()


async def test_a_handshake_opens_them_after_the_sweep_of_their_earlier_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the sweep would end new flows."""
    harness = await suspended()
    opened: list[Change] = []
    monkeypatch.setattr(harness.backend, "sweep_of", opened.extend)
    harness.peers.shaken["c1"] = harness.clock.now
    await harness.maintenance.recheck_peers()
    assert opened == [Change(None, harness.table[KEY])]


async def test_the_ports_are_kept() -> None:
    harness = await suspended()
    assert await harness.ask(map_port(internal=C2), C2) is Refusal.CONFLICT
    listed = await harness.ask(ListMappings(), C1)
    assert isinstance(listed, MappingList)
    assert [each.suspended for each in listed.mappings] == [True]


async def test_a_request_of_the_peer_opens_its_port_at_once() -> None:
    harness = await suspended()
    assert isinstance(await harness.ask(map_port(lifetime=1000)), Mapped)
    assert open_ports(harness) == [8043, 9000]
    assert harness.all_equal()


async def test_a_port_that_something_else_uses_by_now_stays_suspended(caplog: pytest.LogCaptureFixture) -> None:
    harness = await suspended()
    harness.servers_own.add(KEY)
    harness.peers.shaken["c1"] = harness.clock.now
    for _ in range(2):
        await harness.maintenance.recheck_peers()
    assert open_ports(harness) == [9000]
    assert caplog.text.count("stays suspended") == 1
    harness.servers_own.clear()
    await harness.maintenance.recheck_peers()
    assert open_ports(harness) == [8043, 9000]
    assert harness.all_equal()


async def test_the_lease_ends_all_the_same() -> None:
    harness = await suspended()
    harness.clock.now = 2000.0
    await harness.maintenance.wake()
    assert harness.table == harness.backend.entries == harness.store.entries == {}


async def test_a_repair_of_the_kernel_does_not_open_them() -> None:
    harness = await suspended()
    await harness.ledger.repair()
    assert open_ports(harness) == [9000]


async def test_a_static_mapping_is_suspended_too() -> None:
    static = (StaticMapping.parse("tcp 8043 10.100.0.2 8043"),)
    harness = await GatewayHarness(Policies(by_peer={"c1": Policy(idle_after=IDLE, static=static)})).start()
    harness.clock.now += IDLE + 1
    await harness.maintenance.recheck_peers()
    assert open_ports(harness) == []
    harness.peers.shaken["c1"] = harness.clock.now
    await harness.maintenance.recheck_peers()
    assert open_ports(harness) == [8043]


async def test_other_peers_do_not_cost_a_reading_of_handshakes() -> None:
    harness = await harness_with(idle_after=0)
    harness.clock.now += 10 * IDLE
    readings = 0
    handshakes = harness.peers.handshakes

    async def count() -> object:
        nonlocal readings
        readings += 1
        return await handshakes()

    harness.peers.handshakes = count  # type: ignore[method-assign,assignment]
    await harness.maintenance.recheck_peers()
    assert not readings
