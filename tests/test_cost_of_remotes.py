"""What remotes cost a peer's rate limit: each is work for kernel and store, for which all peers wait."""

from dataclasses import replace
from ipaddress import IPv4Network

from igd.core.mapping import BY_INTERNAL_ENDPOINT, Remote
from igd.core.request import Mapped, Refusal
from igd.core.table import MAX_REMOTES
from tests.gateway_harness import C2, GatewayHarness, map_port

MOST = tuple(Remote(IPv4Network(f"198.51.100.{number}")) for number in range(MAX_REMOTES))
FILTERED = replace(map_port(any_port=True), claim=BY_INTERNAL_ENDPOINT, remotes=MOST, adds_remotes=True)
RENEWAL = replace(FILTERED, remotes=())  # by NAT-PMP, which knows no filters, or by PCP without the option


async def test_each_remote_of_a_mapping_that_is_opened_or_renewed_costs_a_request() -> None:
    harness = await GatewayHarness(rate=20).start()
    assert isinstance(await harness.ask(FILTERED), Mapped)  # 1 + 16 of 20
    before = harness.table
    assert await harness.ask(RENEWAL) is Refusal.TOO_MANY_REQUESTS
    assert harness.table == before
    assert harness.all_equal()
    harness.clock.now += 1
    assert isinstance(await harness.ask(RENEWAL), Mapped)
    assert [entry.mapping.remotes for entry in harness.table.values()] == [MOST]


async def test_remotes_cost_their_own_peer_alone_and_plain_mappings_as_little_as_ever() -> None:
    harness = await GatewayHarness(rate=20).start()
    assert isinstance(await harness.ask(FILTERED), Mapped)
    for port in (2000, 2001, 2002):
        assert isinstance(await harness.ask(map_port(port, internal_port=port)), Mapped)
    for port in range(3000, 3020):
        assert isinstance(await harness.ask(map_port(port, C2, internal_port=port), C2), Mapped)


async def test_a_port_set_costs_the_remotes_of_all_its_ports() -> None:
    harness = await GatewayHarness(rate=40).start()
    port_set = replace(FILTERED, count=4, remotes=MOST[:9])
    assert await harness.ask(port_set) is Refusal.TOO_MANY_REQUESTS  # 1 + 4 + 4 * 9
    assert harness.table == {}
    harness.clock.now += 1
    reply = await harness.ask(replace(port_set, remotes=MOST[:8]))
    assert isinstance(reply, Mapped)
    assert reply.count == 4
