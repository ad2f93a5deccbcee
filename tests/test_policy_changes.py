"""Mappings fit the policies after the configuration was read again: as after a restart, and without its gap."""

import asyncio
import random
from dataclasses import replace

import pytest

from igd.core.mapping import AnyMapping, ControlProtocol, Endpoint, TransportProtocol
from igd.core.policies import Policies
from igd.core.policy import Policy, PortRule
from igd.core.request import Mapped, Refusal
from igd.core.reserved_ports import Reservation, StaticMapping
from igd.firewall.backend import FirewallError
from tests.gateway_harness import C1, C1_HOST, C2, GatewayHarness, map_port, policy, ports

TCP = TransportProtocol.TCP


async def follow(harness: GatewayHarness, policies: Policies) -> list[AnyMapping]:
    harness.gateway.policies = policies
    return await harness.maintenance.follow_policies()


def of_c1(own: Policy) -> Policies:
    return Policies(by_peer={"c1": own})


@pytest.mark.parametrize(
    ("policies", "reason"),
    [
        (Policies(policy("deny 8043 0.0.0.0/0 0-65535", "allow 1024-65535 0.0.0.0/0 0-65535")), "the rules do not"),
        (of_c1(Policy(protocols=frozenset({ControlProtocol.PCP}))), "may no longer use the protocol"),
        (of_c1(Policy(routed_hosts=False)), ""),
        (Policies(by_peer={"c2": Policy(reserved=(Reservation(TCP, range(8043, 8044)),))}), "reserved for another"),
    ],
)
async def test_what_is_not_allowed_any_more_is_closed_with_its_reason(
    policies: Policies, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    harness = await GatewayHarness().start()
    await harness.ask(map_port(8043))
    await harness.ask(map_port(9000, C2, internal_port=9000), C2)
    closed = await follow(harness, policies)
    assert [each.external_port for each in closed] == ([8043] if reason else [])
    assert await ports(harness) == ([] if reason else [8043])
    assert await ports(harness, C2) == [9000]
    assert harness.all_equal()
    assert any(reason in line for line in caplog.messages)


async def test_mappings_to_hosts_behind_a_peer_are_closed_when_they_are_no_longer_allowed() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(8043, C1_HOST), C1_HOST)
    await harness.ask(map_port(8044))
    assert [each.external_port for each in await follow(harness, of_c1(Policy(routed_hosts=False)))] == [8043]


async def test_a_lower_quota_closes_nothing_and_admits_nothing() -> None:
    harness = await GatewayHarness().start()
    for port in (8043, 8044, 8045):
        await harness.ask(map_port(port, internal_port=port))
    assert await follow(harness, Policies(policy("allow 1-65535 0.0.0.0/0 0-65535", quota=1))) == []
    assert await ports(harness) == [8043, 8044, 8045]
    assert await harness.ask(map_port(8046, internal_port=8046)) is Refusal.QUOTA


async def test_leases_above_the_longest_one_are_shortened() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(8043, lifetime=86400))
    await harness.ask(map_port(8044, internal_port=8044, lifetime=100))
    await follow(harness, of_c1(Policy(max_lifetime=600, default_lifetime=600)))
    assert [each.lease.expires - harness.clock.now for each in harness.table.values()] == [600, 100]
    assert harness.all_equal()


async def test_static_mappings_come_move_and_go() -> None:
    harness = await GatewayHarness().start()
    own = await harness.ask(map_port(8043))
    assert isinstance(own, Mapped)
    for line, expected in (
        ("tcp 8043 10.100.0.2 80", {(8043, 80, True)}),
        ("tcp 8043 10.100.0.2 81", {(8043, 81, True)}),
        ("tcp 8044 10.100.0.2 81", {(8044, 81, True)}),
        ("", set()),
    ):
        await follow(harness, of_c1(Policy(static=(StaticMapping.parse(line),) if line else ())))
        found = {
            (each.mapping.external_port, each.mapping.internal.port, each.lease.static)
            for each in harness.table.values()
        }
        assert found == expected, line
        assert harness.backend.entries == harness.table


async def test_a_static_mapping_moves_from_one_peer_to_another() -> None:
    harness = await GatewayHarness().start()
    for peer, address in (("c1", C1), ("c2", C2)):
        static = StaticMapping.parse(f"tcp 443 {address} 80")
        await follow(harness, Policies(by_peer={peer: Policy(static=(static,))}))
        assert [(each.mapping.peer, each.mapping.internal) for each in harness.table.values()] == [
            (peer, Endpoint(address, 80))
        ]


async def test_a_change_that_the_former_policies_have_decided_is_closed_too() -> None:
    """It was planned before, and is in the table only afterwards."""
    harness = await GatewayHarness().start()
    lock = harness.ledger.peer_lock("c1")
    await lock.acquire()
    request = asyncio.create_task(harness.ask(map_port(8043)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert harness.gateway.is_changing
    harness.gateway.policies = Policies(policy("deny 1-65535 0.0.0.0/0 0-65535"))
    following = asyncio.create_task(harness.maintenance.follow_policies())
    await asyncio.sleep(0)
    lock.release()
    await following
    await request
    assert harness.table == {}


async def test_what_fails_is_closed_by_the_next_check() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(8043))
    harness.backend.fail_next = FirewallError("not now")
    assert await follow(harness, Policies(policy("deny 1-65535 0.0.0.0/0 0-65535"))) == []
    await harness.maintenance.recheck_peers()
    assert harness.table == harness.backend.entries == harness.store.entries == {}


async def test_listeners_hear_which_mappings_the_operator_has_closed() -> None:
    harness = await GatewayHarness().start()
    heard: list[AnyMapping] = []
    harness.gateway.on_revoked.append(heard.extend)
    await harness.ask(map_port(8043))
    held = next(iter(harness.table.values())).mapping
    await follow(harness, Policies())
    assert heard == []
    await follow(harness, Policies(policy("deny 1-65535 0.0.0.0/0 0-65535")))
    assert heard == [held]


async def test_suspended_mappings_resume_when_idle_after_is_taken_back() -> None:
    harness = await GatewayHarness().start()
    await harness.ask(map_port(8043))
    harness.gateway.policies = of_c1(Policy(idle_after=300))
    harness.clock.now += 301
    await harness.maintenance.follow_policies()
    suspended = [each.suspended for each in harness.table.values()]
    await follow(harness, Policies())
    assert (suspended, [each.suspended for each in harness.table.values()]) == ([True], [False])


RULES = (
    "deny 2000-2003 0.0.0.0/0 0-65535",
    "allow 2002-2008 10.100.0.2/32 0-65535",
    "allow 1024-65535 10.100.0.0/16 1024-65535",
    "allow 1024-65535 0.0.0.0/0 1024-65535",
)


def any_policy(rng: random.Random) -> Policy:
    return Policy(
        tuple(PortRule.parse(rule) for rule in RULES if rng.random() < 0.7),
        max_lifetime=rng.choice((600, 3600, 86400)),
        default_lifetime=600,
        max_mappings=rng.choice((1, 8)),
        protocols=frozenset(each for each in ControlProtocol if rng.random() < 0.8),
        routed_hosts=rng.random() < 0.7,
        static=tuple(
            StaticMapping.parse(f"tcp {port} {C1} {rng.choice((80, 81))}")
            for port in (2001, 2005)
            if rng.random() < 0.3
        ),
    )


def any_policies(rng: random.Random) -> Policies:
    reserved = (Reservation(TCP, range(2004, 2006)),) if rng.random() < 0.3 else ()
    of_c2 = replace(any_policy(rng), static=(), reserved=reserved)
    of_c1 = any_policy(rng)
    if reserved:
        of_c1 = replace(of_c1, static=())
    return Policies(replace(any_policy(rng), static=()), {"c1": of_c1, "c2": of_c2})


@pytest.mark.parametrize("seed", range(50))
async def test_a_reload_has_the_effect_of_a_restart(seed: int) -> None:
    """Whatever the former and the new policies are, and several times in a row."""
    rng = random.Random(seed)
    harness = GatewayHarness(any_policies(rng))
    await harness.start()
    for _ in range(4):
        for source in (C1, C1_HOST, C2):
            for _port in range(4):
                port = rng.randrange(2000, 2010)
                lifetime = rng.choice((300, 3600, 86400))
                await harness.ask(
                    map_port(port, source, internal_port=rng.choice((80, port)), lifetime=lifetime), source
                )
        policies = any_policies(rng)
        restarted = GatewayHarness(policies, clock=harness.clock)
        await restarted.start(*(each for each in harness.table.values() if not each.lease.static))
        await follow(harness, policies)
        assert harness.table == restarted.table
        assert harness.backend.entries == harness.table
        assert harness.store.entries == {key: each for key, each in harness.table.items() if not each.lease.static}
