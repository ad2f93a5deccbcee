"""A pinhole is one thing, whoever requests it: UPnP names it by a number, PCP by its endpoint."""

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from igd.core.mapping import (
    BY_INTERNAL_ENDPOINT,
    STATIC,
    Claim,
    ControlProtocol,
    Endpoint,
    Entry,
    Lease,
    Pinhole,
    PortMapping,
    Remote,
    TransportProtocol,
)
from igd.core.peers import Address
from igd.core.policies import Policies
from igd.core.policy import Policy
from igd.core.request import (
    ENDLESS,
    GetPeerState,
    GetPinholeTraffic,
    ListMappings,
    Mapped,
    MappingList,
    MapPort,
    PeerState,
    Refusal,
    RenewPinhole,
    Reply,
    UnmapInternal,
    Unmapped,
    UnmapPinhole,
    UnmapPorts,
)
from igd.core.reserved_ports import Reservation, StaticMapping
from igd.core.unique_ids import UNIQUE_IDS
from igd.firewall.backend import FirewallError
from tests.gateway_harness import C1, C2, GatewayHarness, map_port, peer, policy

TCP = TransportProtocol.TCP
IPV6, C2_IPV6 = IPv6Address("2001:470:100::2"), IPv6Address("2001:470:100::3")
R1, R2 = (Remote(IPv6Network(f"2001:db8::{host}/128")) for host in (1, 2))
NONCE = Claim(by_internal=True, nonce=b"twelve bytes")
OWNERS = (peer("c1", f"{C1}/32", f"{IPV6}/128"), peer("c2", f"{C2}/32", f"{C2_IPV6}/128"))


async def started(policy: Policy | Policies | None = None, *stored: Entry) -> GatewayHarness:
    harness = GatewayHarness(policy)
    harness.peers.all = OWNERS
    return await harness.start(*stored)


def upnp(*remotes: Remote, port: int = 8043, lifetime: int = 300, address: IPv6Address = IPV6) -> MapPort:
    """Return what AddPinhole requests."""
    return MapPort(TCP, Endpoint(address, port), port, lifetime, remotes=remotes)


def pcp(*remotes: Remote, port: int = 8043, lifetime: int = 300) -> MapPort:
    """Return what PCP's MAP requests, with FILTER options for the remotes."""
    internal = Endpoint(IPV6, port)
    return MapPort(TCP, internal, port, lifetime, any_port=True, remotes=remotes, claim=NONCE, adds_remotes=not remotes)


def delete_by_pcp(port: int = 8043) -> UnmapInternal:
    return UnmapInternal(TCP, IPV6, port, NONCE)


def opened(reply: Reply) -> Pinhole:
    assert isinstance(reply, Mapped), reply
    assert isinstance(reply.mapping, Pinhole)
    return reply.mapping


async def unique_id(harness: GatewayHarness, request: MapPort, source: Address = C1) -> int:
    """Ask for a pinhole and return its UniqueID."""
    return opened(await harness.ask(request, source)).unique_id


def seconds(harness: GatewayHarness) -> dict[int, int]:
    """Return the seconds left of each pinhole by UniqueID."""
    now = harness.clock()
    pinholes = ((entry.mapping, entry.lease) for entry in harness.table.values())
    return {mapping.unique_id: lease.remaining(now) for mapping, lease in pinholes if isinstance(mapping, Pinhole)}


async def test_pinholes_for_different_remotes_are_different_ones() -> None:
    harness = await started()
    requests = [upnp(), upnp(R1), upnp(R2), upnp(replace(R1, port=443))]
    first = [await unique_id(harness, request) for request in requests]
    assert len(set(first)) == len(harness.table) == 4
    assert [await unique_id(harness, request) for request in requests] == first, "renewals"
    closed = await harness.ask(UnmapPinhole(first[1]))
    assert isinstance(closed, Unmapped)
    assert [mapping.remotes for mapping in closed.mappings] == [(R1,)]
    assert set(seconds(harness)) == {first[0], *first[2:]}
    assert harness.all_equal()


@pytest.mark.parametrize("first", [upnp, pcp])
async def test_upnp_and_pcp_share_a_pinhole_that_either_closes(first: object) -> None:
    harness = await started()
    requests = [upnp(), pcp()] if first is upnp else [pcp(), upnp()]
    numbers = {await unique_id(harness, request) for request in requests}
    assert len(numbers) == len(harness.table) == 1
    closed = await harness.ask(UnmapPinhole(*numbers))
    assert isinstance(closed, Unmapped)
    assert len(closed.mappings) == 1
    assert await harness.ask(delete_by_pcp()) == Unmapped(())
    for request in requests:
        await harness.ask(request)
    assert isinstance(await harness.ask(delete_by_pcp()), Unmapped)
    assert harness.table == {}
    assert await harness.ask(UnmapPinhole(*numbers)) is Refusal.NO_SUCH_MAPPING
    assert harness.all_equal()


async def test_a_shared_pinhole_has_the_longer_lease() -> None:
    harness = await started()
    number = await unique_id(harness, upnp(lifetime=300))
    await harness.ask(pcp(lifetime=7200))
    assert seconds(harness) == {number: 7200}
    for shorter in (upnp(lifetime=60), pcp(lifetime=120), RenewPinhole(number, 60)):
        reply = await harness.ask(shorter)
        assert isinstance(reply, Mapped)
        assert reply.lifetime == 7200
    assert await harness.ask(RenewPinhole(number, 86400)) == Mapped(opened(await harness.ask(upnp())), 86400)
    assert harness.all_equal()


async def test_upnp_alone_sets_its_lease_as_it_likes() -> None:
    harness = await started(policy("allow 1024-65535 ::/0 1024-65535", max_lifetime=3600))
    number = await unique_id(harness, upnp(lifetime=300))
    for requested, granted in ((60, 60), (86400, 3600)):
        reply = await harness.ask(RenewPinhole(number, requested))
        assert isinstance(reply, Mapped)
        assert reply.lifetime == granted
        assert seconds(harness) == {number: granted}
    assert harness.all_equal()


async def test_a_filter_of_pcp_is_kept_when_upnp_requests_any_source() -> None:
    """A filter is a restriction that the peer wanted. UPnP's pinhole for a remote is another one."""
    harness = await started()
    filtered = opened(await harness.ask(pcp(R1)))
    assert opened(await harness.ask(upnp())).remotes == (R1,)
    other = opened(await harness.ask(upnp(R1)))
    assert other.unique_id != filtered.unique_id
    assert len(harness.table) == 2
    assert isinstance(await harness.ask(delete_by_pcp()), Unmapped)
    assert [entry.mapping for entry in harness.table.values()] == [other]


async def test_a_filter_of_pcp_does_not_cut_off_what_upnp_lets_in() -> None:
    harness = await started()
    number = await unique_id(harness, upnp())
    assert await harness.ask(pcp(R1)) is Refusal.CONFLICT
    assert await unique_id(harness, upnp()) == number
    assert [entry.mapping.remotes for entry in harness.table.values()] == [()]


async def test_another_peer_cannot_name_it() -> None:
    harness = await started()
    number = await unique_id(harness, upnp())
    before = harness.table
    for request in (RenewPinhole(number, 600), UnmapPinhole(number), GetPinholeTraffic(number)):
        assert await harness.ask(request, C2) is Refusal.NO_SUCH_MAPPING
        assert await harness.ask(replace(request, unique_id=number % 65535 + 1)) is Refusal.NO_SUCH_MAPPING
    assert harness.table == before
    assert await harness.ask(upnp(), C2) is Refusal.NOT_YOUR_ADDRESS
    assert await unique_id(harness, upnp(address=C2_IPV6), C2) != number


async def test_a_protocol_that_the_peer_may_not_use_renews_and_closes_nothing() -> None:
    harness = await started(replace(Policy(), protocols=frozenset({ControlProtocol.PCP})))
    number = await unique_id(harness, pcp())
    owner = await harness.admit(C1)
    assert not isinstance(owner, Refusal)
    for request in (RenewPinhole(number, 600), UnmapPinhole(number)):
        reply = await harness.gateway.ask(owner, C1, request, ControlProtocol.UPNP)
        assert reply is Refusal.PROTOCOL_FORBIDDEN
    assert seconds(harness) == {number: 300}
    assert await harness.ask(GetPeerState()) == PeerState(0, 0, pinholes_allowed=False), "by UPnP"


async def test_the_quota_counts_each_remotes_pinhole() -> None:
    harness = await started(policy("allow 1024-65535 ::/0 1024-65535", quota=2))
    number = await unique_id(harness, upnp(R1))
    await harness.ask(upnp(R2))
    assert await harness.ask(upnp()) is Refusal.QUOTA
    assert await unique_id(harness, upnp(R1)) == number
    await harness.ask(UnmapPinhole(number))
    assert await unique_id(harness, upnp()) != number


async def test_without_a_free_unique_id_a_pinhole_is_refused_and_a_renewal_is_not() -> None:
    harness = await started()
    use_all_but(harness, 7)
    assert await unique_id(harness, upnp(port=2000)) == 7
    assert await harness.ask(upnp(port=2001)) is Refusal.NO_FREE_PORT
    assert await harness.ask(pcp(port=2001)) is Refusal.NO_FREE_PORT
    assert await unique_id(harness, upnp(port=2000)) == 7
    assert isinstance(await harness.ask(map_port()), Mapped), "port mappings need none"


def numbered(number: int) -> Pinhole:
    """Return a pinhole of c2's with this UniqueID."""
    return Pinhole(TCP, Endpoint(C2_IPV6, 1024 + number), "c2", unique_id=number)


OTHER = numbered(1)


def use_all_but(harness: GatewayHarness, *unused: int) -> None:
    """Have other pinholes use all UniqueIDs but these."""
    for number in UNIQUE_IDS:
        if number not in unused:
            harness.ledger.table.unique_ids.take(replace(OTHER, unique_id=number))


async def test_two_plans_in_progress_do_not_get_the_same_unique_id() -> None:
    unused = {7, 8}
    harness = await started()
    use_all_but(harness, *unused)
    replies = await asyncio.gather(
        harness.ask(upnp(port=2000)), harness.ask(upnp(port=2001, address=C2_IPV6), C2), harness.ask(upnp(port=2002))
    )
    numbers = [opened(reply).unique_id for reply in replies if isinstance(reply, Mapped)]
    assert Counter(numbers) == Counter(unused)


async def test_a_unique_id_of_a_refused_pinhole_is_free_again() -> None:
    harness = await started()
    use_all_but(harness, 7)
    harness.backend.fail_next = FirewallError("no room")
    assert await harness.ask(upnp(port=2000)) is Refusal.SYSTEM_FAILURE
    assert await unique_id(harness, upnp(port=2001)) == 7


async def test_lists_and_closing_of_port_mappings_leave_it_alone() -> None:
    harness = await started()
    await harness.ask(upnp())
    await harness.ask(map_port())
    listed = await harness.ask(ListMappings())
    assert isinstance(listed, MappingList)
    assert [type(each.mapping) for each in listed.mappings] == [PortMapping]
    assert await harness.ask(GetPeerState()) == PeerState(1, 1, pinholes_allowed=True)
    await harness.ask(UnmapPorts(TCP, range(1, 65536)))
    assert len(seconds(harness)) == 1
    assert await harness.ask(GetPeerState()) == PeerState(0, 2, pinholes_allowed=True)


async def test_one_of_two_expires_and_the_other_stays() -> None:
    harness = await started()
    await unique_id(harness, upnp(R1, lifetime=100))
    longer = await unique_id(harness, upnp(R2, lifetime=200))
    harness.clock.now += 150
    await harness.maintenance.wake()
    assert set(seconds(harness)) == {longer}
    assert harness.all_equal()


async def test_they_end_with_the_peers_address() -> None:
    harness = await started()
    for remotes in ((), (R1,), (R2,)):
        await unique_id(harness, upnp(*remotes))
    harness.peers.all = (peer("c1", f"{C1}/32"), peer("c2", f"{C2}/32", f"{IPV6}/128"))
    await harness.maintenance.recheck_peers()
    assert harness.table == {}
    assert harness.all_equal()
    assert opened(await harness.ask(upnp(), C2)).peer == "c2", "there is no hold-down"


async def test_it_keeps_its_unique_id_while_its_peer_is_silent() -> None:
    harness = await started(replace(Policy(), idle_after=100))
    number = await unique_id(harness, upnp(lifetime=10_000))
    harness.clock.now += 200
    await harness.maintenance.recheck_peers()
    assert harness.backend.entries == {}
    assert await harness.ask(GetPinholeTraffic(number)) != Refusal.NO_SUCH_MAPPING
    assert await unique_id(harness, upnp(R1)) != number
    assert isinstance(await harness.ask(RenewPinhole(number, 600)), Mapped)
    assert len(harness.backend.entries) == 2, "its request shows that the peer is back"
    harness.clock.now += 200
    await harness.maintenance.recheck_peers()
    assert harness.backend.entries == {}
    assert isinstance(await harness.ask(UnmapPinhole(number)), Unmapped)
    assert number not in seconds(harness)


async def test_unique_ids_survive_a_restart() -> None:
    before = await started()
    numbers = [await unique_id(before, request) for request in (upnp(), upnp(R1), pcp(port=9000))]
    after = await started(None, *before.store.entries.values())
    assert list(seconds(after)) == numbers
    assert isinstance(await after.ask(RenewPinhole(numbers[1], 600)), Mapped)


STATIC_LINE = f"tcp 8043 {IPV6} 8043"


def static(policy: Policy | None = None) -> Policies:
    return Policies(by_peer={"c1": replace(policy or Policy(), static=(StaticMapping.parse(STATIC_LINE),))})


async def test_a_static_one_is_granted_as_requested_and_not_closed() -> None:
    harness = await started(static())
    number = await unique_id(harness, upnp(lifetime=300))
    renewed = await harness.ask(RenewPinhole(number, 600))
    assert isinstance(renewed, Mapped)
    assert renewed.lifetime == 600
    assert await harness.ask(UnmapPinhole(number)) is Refusal.STATIC
    (entry,) = harness.table.values()
    assert entry.lease == STATIC
    assert harness.store.entries == {}
    other = await unique_id(harness, upnp(R1))
    assert isinstance(await harness.ask(UnmapPinhole(other)), Unmapped), "that for a remote is the peer's own"


async def test_a_static_one_has_the_same_unique_id_after_a_restart() -> None:
    first, second = await started(static()), await started(static())
    assert list(seconds(first)) == list(seconds(second))
    (number,) = seconds(first)
    third = await started(static(), Entry(replace(OTHER, unique_id=number), Lease(2000.0)))
    assert len(seconds(third)) == 2, "of both"


@pytest.mark.parametrize("at_start", [True, False])
async def test_a_static_one_has_the_unique_id_of_the_one_that_it_replaces(*, at_start: bool) -> None:
    own = Entry(Pinhole(TCP, Endpoint(IPV6, 8043), "c1", unique_id=7), Lease(2000.0))
    harness = GatewayHarness(static())
    harness.peers.all = OWNERS if at_start else OWNERS[1:]
    await harness.start(*([own] if at_start else []))
    if not at_start:
        harness.peers.shadowed = set()
        harness.peers.all = OWNERS
        own = replace(own, mapping=opened(await harness.ask(upnp())))
        await harness.maintenance.recheck_peers()
    assert isinstance(own.mapping, Pinhole)
    assert list(seconds(harness)) == [own.mapping.unique_id]
    (entry,) = harness.table.values()
    assert entry.lease == STATIC
    assert await harness.ask(UnmapPinhole(own.mapping.unique_id)) is Refusal.STATIC


async def test_a_static_one_without_a_free_unique_id_is_a_problem_until_there_is_one() -> None:
    harness = GatewayHarness(static())
    harness.peers.all = OWNERS[1:]
    await harness.start()
    use_all_but(harness)
    harness.peers.all = OWNERS
    await harness.maintenance.recheck_peers()
    (problem,) = harness.maintenance.warnings
    assert "65535 pinholes" in problem
    harness.ledger.table.unique_ids.retire(replace(OTHER, unique_id=7))
    await harness.maintenance.recheck_peers()
    assert harness.maintenance.warnings == []
    assert list(seconds(harness)) == [7]


@pytest.mark.parametrize(
    ("policy", "reply"),
    [
        (policy("allow 1024-65535 0.0.0.0/0 1024-65535"), Refusal.NO_PINHOLES),
        (replace(policy("deny 0-65535 ::/0 0-65535"), reserved=(Reservation.parse("tcp 8043"),)), Refusal.NO_PINHOLES),
        (policy("allow 1024-8000 ::/0 1024-8000"), Refusal.FORBIDDEN),
    ],
)
async def test_what_the_rules_do_not_allow(policy: Policy, reply: Refusal) -> None:
    harness = await started(policy)
    assert await harness.ask(upnp()) is reply
    state = await harness.ask(GetPeerState())
    assert isinstance(state, PeerState)
    assert state.pinholes_allowed is (reply is not Refusal.NO_PINHOLES)


async def test_hosts_behind_the_peer_only_where_they_may_be_mapped() -> None:
    behind = IPv6Address("2001:db8:7::20")
    for routed_hosts, reply in ((True, Mapped), (False, Refusal)):
        harness = GatewayHarness(replace(Policy(), routed_hosts=routed_hosts))
        harness.peers.all = (peer("c1", f"{C1}/32", f"{IPV6}/128", "2001:db8:7::/64"),)
        await harness.start()
        assert isinstance(await harness.ask(upnp(address=behind)), reply)


async def test_renewals_and_closing_count_as_changes_in_progress() -> None:
    harness = await started()
    number = await unique_id(harness, upnp())
    replies = await asyncio.gather(*(harness.ask(RenewPinhole(number, 100 + each)) for each in range(6)))
    assert [type(reply) for reply in replies].count(Mapped) == 4
    assert [reply for reply in replies if not isinstance(reply, Mapped)] == [Refusal.TOO_MANY_REQUESTS] * 2


async def test_the_log_names_the_endpoint_of_a_number(caplog: pytest.LogCaptureFixture) -> None:
    harness = await started()
    number = await unique_id(harness, upnp(R1))
    with caplog.at_level(logging.INFO):
        await harness.ask(RenewPinhole(number, 600))
        await harness.ask(UnmapPinhole(number))
    ends = [message.partition("requests ")[2] for message in caplog.messages]
    where = f"GRANTED, TCP [{IPV6}]:8043 from {R1}"
    assert ends == [f"renew pinhole {number} for 600 s: {where}", f"close pinhole {number}: {where}"]


async def test_an_endless_lease_is_not_shortened_where_another_protocol_holds_it() -> None:
    harness = await started()
    number = await unique_id(harness, replace(pcp(), lifetime=ENDLESS))
    await harness.ask(RenewPinhole(number, 600))
    (entry,) = harness.table.values()
    assert entry.lease.endless
    assert entry.mapping.claim == NONCE
    assert entry.mapping.claim != BY_INTERNAL_ENDPOINT
