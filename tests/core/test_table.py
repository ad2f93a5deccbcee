"""The table against a plain dictionary, and each plan and refusal by itself."""
# ruff: noqa: D102 - the name of a step of the state machine is its documentation

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    Change,
    Claim,
    Endpoint,
    Entry,
    Key,
    Lease,
    Pinhole,
    PortMapping,
    Remote,
    TransportProtocol,
)
from igd.core.request import Refusal, UnmapInternal, UnmapPorts
from igd.core.table import HOLD_DOWN, MAX_FORMER_PEERS, MAX_HELD_DOWN, MAX_REMOTES, HoldDown, Table

C1, C1_HOST, C2 = (IPv4Address(text) for text in ("10.100.0.2", "192.168.7.20", "10.100.0.3"))
QUOTA = 3
NOW = 5.0


def mapping(
    port: int, internal: IPv4Address = C1, internal_port: int = 80, peer: str = "c1", description: str = ""
) -> PortMapping:
    return PortMapping(TransportProtocol.TCP, port, Endpoint(internal, internal_port), peer, description)


def entry(port: int, expires: float = 60.0, peer: str = "c1") -> Entry:
    return Entry(mapping(port, peer=peer), Lease(expires))


def offers(held: Table, port: int, peer: str = "c1", internal: IPv4Address = C1, now: float = NOW) -> bool:
    return held.offers(TransportProtocol.TCP, port, peer, Endpoint(internal, 80), now)


def table(*entries: Entry) -> Table:
    made = Table()
    made.accept((Change(None, each) for each in entries), NOW)
    return made


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (mapping(1), None),  # the same again
        (mapping(1, internal_port=81), None),
        (mapping(1, description="new"), None),
        (mapping(1, internal=C1_HOST), Refusal.CONFLICT),  # another host behind the same peer
        (mapping(1, internal=C2, peer="c2"), Refusal.CONFLICT),
        (mapping(1, peer="c2"), Refusal.CONFLICT),  # the address has moved to another peer
    ],
)
def test_only_the_same_host_of_the_same_peer_renews_a_mapping(asked: PortMapping, answer: Refusal | None) -> None:
    lease = Lease(90.0)
    held = table(entry(1))
    assert held.plan_map(asked, lease, QUOTA) == (answer or Change(entry(1), Entry(asked, lease)))


def test_the_quota_counts_new_mappings_of_one_peer() -> None:
    full = table(entry(1), entry(2), entry(3))
    assert full.plan_map(mapping(4), Lease(60.0), QUOTA) is Refusal.QUOTA
    assert isinstance(full.plan_map(mapping(3), Lease(60.0), QUOTA), Change)
    assert isinstance(full.plan_map(mapping(4, peer="c2"), Lease(60.0), QUOTA), Change)


def test_the_same_port_of_the_other_protocol_is_another_mapping() -> None:
    other = PortMapping(TransportProtocol.UDP, 1, Endpoint(C2, 80), "c2")
    held = table(entry(1))
    assert not offers(held, 1)
    assert held.plan_map(other, Lease(60.0), QUOTA) == Change(None, Entry(other, Lease(60.0)))


def test_a_plan_changes_nothing() -> None:
    held = table(entry(1))
    held.plan_map(mapping(2), Lease(60.0), QUOTA)
    held.plan_unmap("c1", UnmapPorts(TransportProtocol.TCP, range(1, 65536)))
    held.expired(1000.0)
    assert list(held) == [entry(1)]


def test_the_companion_port_is_offered_only_to_the_same_host() -> None:
    held = table(entry(1))
    assert held.offers(TransportProtocol.UDP, 1, "c1", Endpoint(C1, 81), NOW)
    assert not held.offers(TransportProtocol.UDP, 1, "c1", Endpoint(C1_HOST, 80), NOW)
    assert not held.offers(TransportProtocol.UDP, 1, "c2", Endpoint(C2, 80), NOW)


def test_a_closed_port_is_held_down_for_the_peer_that_held_it() -> None:
    held = table(entry(1), entry(2))
    held.accept([Change(entry(1), None)], NOW)
    held.accept([Change(entry(2), None)], NOW + 1)
    end = NOW + HOLD_DOWN
    assert offers(held, 1)
    assert not offers(held, 1, "c2", C2, end - 1)
    assert offers(held, 1, "c2", C2, end)
    assert not offers(held, 2, "c2", C2, end)
    assert isinstance(held.plan_map(mapping(1, internal=C2, peer="c2"), Lease(60.0), QUOTA), Change), (
        "if the request names it"
    )


def test_the_number_of_held_down_ports_of_one_peer_is_limited() -> None:
    held = table()
    for port in range(1, MAX_HELD_DOWN + 11):
        held.accept([Change(None, entry(port))], NOW)
        held.accept([Change(entry(port), None)], NOW)
    taken = [port for port in range(1, MAX_HELD_DOWN + 11) if not offers(held, port, "c2", C2)]
    assert taken == list(range(11, MAX_HELD_DOWN + 11))


def test_hold_downs_of_an_earlier_run_are_resumed() -> None:
    held = table(entry(3))
    held_down = [HoldDown((TransportProtocol.TCP, port), "c1", NOW + 10 * port) for port in (1, 2, 3)]
    held.resume_hold_downs(held_down, NOW)
    assert [port for port in (1, 2, 3) if offers(held, port)] == [1, 2]
    assert not offers(held, 1, "c2", C2, NOW + 9)
    assert offers(held, 1, "c2", C2, NOW + 10)
    assert not offers(held, 2, "c2", C2, NOW + 10)
    held.accept([Change(entry(3), None)], NOW + 15)
    assert not offers(held, 2, "c2", C2, NOW + 19), "it ends before that of port 3"
    assert offers(held, 2, "c2", C2, NOW + 20)


def test_the_number_of_resumed_hold_downs_of_one_peer_is_limited() -> None:
    held = table()
    ports = range(1, MAX_HELD_DOWN + 11)
    held.resume_hold_downs([HoldDown((TransportProtocol.TCP, port), "c1", NOW + port) for port in ports], NOW)
    assert [port for port in ports if not offers(held, port, "c2", C2)] == list(range(11, MAX_HELD_DOWN + 11))


def test_the_companion_of_a_reserved_port_is_not_offered() -> None:
    held = table()
    held.reserve([Change(None, entry(1))])
    assert not held.offers(TransportProtocol.UDP, 1, "c2", Endpoint(C2, 80), NOW)


GUARDED, OTHER = (Claim(by_internal=True, nonce=nonce * 12) for nonce in (b"n", b"o"))


def claimed(claim: Claim, expires: float = 60.0, description: str = "") -> Entry:
    return Entry(replace(mapping(1, description=description), claim=claim), Lease(expires))


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        (GUARDED, GUARDED, GUARDED),
        (GUARDED, OTHER, Refusal.OTHER_NONCE),
        (BY_EXTERNAL_PORT, GUARDED, GUARDED),
        (GUARDED, BY_EXTERNAL_PORT, GUARDED),
        (BY_INTERNAL_ENDPOINT, GUARDED, GUARDED),
        (GUARDED, BY_INTERNAL_ENDPOINT, GUARDED),
        (BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT, BY_INTERNAL_ENDPOINT),
        (BY_INTERNAL_ENDPOINT, BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT),
        (BY_EXTERNAL_PORT, BY_EXTERNAL_PORT, BY_EXTERNAL_PORT),
    ],
)
def test_a_nonce_guards_only_against_another_nonce(first: Claim, second: Claim, left: Claim | Refusal) -> None:
    held = table(claimed(first))
    plan = held.plan_map(claimed(second).mapping, Lease(90.0), QUOTA)
    assert plan == (left if isinstance(left, Refusal) else Change(claimed(first), claimed(left, 90.0)))


WEB, PCP = (Remote(IPv4Network(f"198.51.100.{host}")) for host in (7, 8))


def version(claim: Claim, expires: float, description: str = "", *remotes: Remote, internal_port: int = 80) -> Entry:
    internal = mapping(1, internal_port=internal_port, description=description)
    return Entry(replace(internal, claim=claim, remotes=remotes), Lease(expires))


RENEWALS: dict[str, tuple[Entry, Entry, Entry | Refusal]] = {
    # row of the table in igd.core.table: the entry held, the entry requested, and the result
    "another peer": (
        version(BY_EXTERNAL_PORT, 90.0),
        Entry(mapping(1, peer="c2"), Lease(60.0)),
        Refusal.CONFLICT,
    ),
    "another host of the peer": (
        version(BY_EXTERNAL_PORT, 90.0),
        Entry(mapping(1, internal=C1_HOST), Lease(60.0)),
        Refusal.CONFLICT,
    ),
    "both by external port": (
        version(BY_EXTERNAL_PORT, 90.0, "web", WEB),
        version(BY_EXTERNAL_PORT, 60.0),
        version(BY_EXTERNAL_PORT, 60.0),
    ),
    "both by external port, to another endpoint": (
        version(BY_EXTERNAL_PORT, 90.0),
        version(BY_EXTERNAL_PORT, 60.0, internal_port=81),
        version(BY_EXTERNAL_PORT, 60.0, internal_port=81),
    ),
    "by external port to another endpoint": (
        version(GUARDED, 90.0, "PCP", PCP),
        version(BY_EXTERNAL_PORT, 60.0, "", internal_port=81),
        version(BY_EXTERNAL_PORT, 60.0, "", internal_port=81),
    ),
    "by internal endpoint, held for another endpoint by external port": (
        version(BY_EXTERNAL_PORT, 90.0),
        version(GUARDED, 60.0, internal_port=81),
        Refusal.CONFLICT,
    ),
    "by internal endpoint, held for another endpoint by internal endpoint": (
        version(GUARDED, 90.0),
        version(GUARDED, 60.0, internal_port=81),
        Refusal.CONFLICT,
    ),
    "another nonce": (version(GUARDED, 90.0), version(OTHER, 60.0), Refusal.OTHER_NONCE),
    "a filter on what was requested by external port": (
        version(BY_EXTERNAL_PORT, 90.0),
        version(BY_INTERNAL_ENDPOINT, 60.0, "", PCP),
        Refusal.CONFLICT,
    ),
    "no filter on what was requested by external port with one": (
        version(BY_EXTERNAL_PORT, 90.0, "", WEB),
        version(BY_INTERNAL_ENDPOINT, 60.0),
        Refusal.CONFLICT,
    ),
    "by internal endpoint, held by external port": (
        version(BY_EXTERNAL_PORT, 90.0, "web", WEB),
        version(GUARDED, 60.0, "PCP", WEB),
        version(GUARDED, 90.0, "web", WEB),
    ),
    "both by internal endpoint": (
        version(GUARDED, 60.0, "", WEB),
        version(BY_INTERNAL_ENDPOINT, 90.0, "PCP", PCP),
        version(GUARDED, 90.0, "PCP", PCP),
    ),
    "by external port, held by internal endpoint": (
        version(GUARDED, 90.0, "PCP", PCP),
        version(BY_EXTERNAL_PORT, 60.0, "web", WEB),
        version(GUARDED, 90.0, "web", PCP),
    ),
    "by external port with a filter, held by internal endpoint without": (
        version(BY_INTERNAL_ENDPOINT, 90.0, "PCP"),
        version(BY_EXTERNAL_PORT, 60.0, "", WEB),
        version(BY_INTERNAL_ENDPOINT, 90.0, "", WEB),
    ),
}


@pytest.mark.parametrize("case", RENEWALS)
def test_each_row_of_the_renewal_table(case: str) -> None:
    held, asked, outcome = RENEWALS[case]
    plan = table(held).plan_map(asked.mapping, asked.lease, QUOTA)
    assert plan == (outcome if isinstance(outcome, Refusal) else Change(held, outcome))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (GUARDED, GUARDED),
        (BY_EXTERNAL_PORT, GUARDED),
        (GUARDED, BY_EXTERNAL_PORT),
        (BY_INTERNAL_ENDPOINT, BY_EXTERNAL_PORT),
    ],
)
@pytest.mark.parametrize(
    ("before", "asked", "granted"),
    [
        (Lease(60.0), Lease(90.0), Lease(90.0)),
        (Lease(90.0), Lease(60.0), Lease(90.0)),
        (Lease(60.0, endless=True), Lease(90.0), Lease(60.0, endless=True)),
        (Lease(90.0), Lease(60.0, endless=True), Lease(60.0, endless=True)),
    ],
)
def test_a_shared_mapping_keeps_the_longer_lease(
    first: Claim, second: Claim, before: Lease, asked: Lease, granted: Lease
) -> None:
    held = table(replace(claimed(first), lease=before))
    plan = held.plan_map(claimed(second).mapping, asked, QUOTA)
    assert isinstance(plan, Change)
    assert plan.after is not None
    assert plan.after.lease == granted


def test_a_shared_mapping_has_the_description_of_the_request_by_external_port() -> None:
    held = table(claimed(BY_EXTERNAL_PORT, description="web"))
    shared = claimed(GUARDED, description="web")
    assert held.plan_map(claimed(GUARDED, description="PCP").mapping, Lease(60.0), QUOTA) == Change(
        next(iter(held)), shared
    )
    held = table(claimed(GUARDED, description="PCP"))
    assert held.plan_map(claimed(BY_EXTERNAL_PORT, description="web").mapping, Lease(60.0), QUOTA) == Change(
        next(iter(held)), shared
    )


def test_a_request_by_internal_endpoint_never_redirects_a_mapping() -> None:
    held = table(entry(1))
    elsewhere = mapping(1, internal_port=81)
    assert held.plan_map(replace(elsewhere, claim=BY_INTERNAL_ENDPOINT), Lease(60.0), QUOTA) is Refusal.CONFLICT
    assert isinstance(held.plan_map(elsewhere, Lease(60.0), QUOTA), Change)


def unmap(held: Table, protocol: TransportProtocol | None, port: int | None, claim: Claim, count: int = 1) -> object:
    """Plan to close what `c1` has at C1."""
    return held.plan_unmap_internal("c1", UnmapInternal(protocol, C1, port, claim, count))


def test_a_mapping_is_found_by_its_internal_endpoint_if_it_is_claimed_so() -> None:
    named = claimed(BY_INTERNAL_ENDPOINT)
    held = table(named, entry(2))
    assert held.find_internal("c1", TransportProtocol.TCP, Endpoint(C1, 80)) == named
    assert held.find_internal("c2", TransportProtocol.TCP, Endpoint(C1, 80)) is None
    assert unmap(held, None, None, BY_INTERNAL_ENDPOINT) == [Change(named, None)]
    assert unmap(held, TransportProtocol.TCP, 80, BY_INTERNAL_ENDPOINT) == [Change(named, None)]
    for nothing in (
        UnmapInternal(TransportProtocol.UDP, C1, 80, BY_INTERNAL_ENDPOINT),
        UnmapInternal(TransportProtocol.TCP, C1, 81, BY_INTERNAL_ENDPOINT),
        UnmapInternal(TransportProtocol.TCP, C1_HOST, 80, BY_INTERNAL_ENDPOINT),
    ):
        assert held.plan_unmap_internal("c1", nothing) == []
    held.accept([Change(named, None)], NOW)
    assert held.find_internal("c1", TransportProtocol.TCP, Endpoint(C1, 80)) is None


@pytest.mark.parametrize(
    ("first", "second", "closed"),
    [
        (GUARDED, GUARDED, True),
        (GUARDED, OTHER, False),
        (GUARDED, BY_INTERNAL_ENDPOINT, True),
        (BY_INTERNAL_ENDPOINT, GUARDED, True),
    ],
)
def test_a_nonce_guards_against_closing_with_another_nonce(first: Claim, second: Claim, *, closed: bool) -> None:
    held = table(claimed(first))
    for port in (80, None):
        assert unmap(held, TransportProtocol.TCP, port, second) == (
            [Change(claimed(first), None)] if closed else Refusal.OTHER_NONCE
        )


def test_closing_several_mappings_closes_those_that_admit_the_nonce() -> None:
    other = Entry(replace(mapping(2, internal_port=81), claim=OTHER), Lease(60.0))
    held = table(claimed(GUARDED), other)
    assert unmap(held, None, None, GUARDED) == [Change(claimed(GUARDED), None)]


def test_it_is_still_found_after_another_mapping_to_the_same_endpoint_changes() -> None:
    named, other = claimed(BY_INTERNAL_ENDPOINT), entry(2)
    held = table(named, other)
    renewed = entry(2, 90.0)
    for change in (Change(other, renewed), Change(renewed, None)):
        held.accept([change], NOW)
        assert held.find_internal("c1", TransportProtocol.TCP, Endpoint(C1, 80)) == named


def test_consecutive_ports_are_closed_together() -> None:
    row = [
        Entry(replace(mapping(port, internal_port=80 + port), claim=BY_INTERNAL_ENDPOINT), Lease(60.0))
        for port in range(1, 6)
    ]
    held = table(*row)
    assert unmap(held, TransportProtocol.TCP, 82, BY_INTERNAL_ENDPOINT, 3) == [Change(each, None) for each in row[1:4]]


def test_a_filter_stays_and_does_not_restrict_a_mapping_claimed_by_external_port() -> None:
    one = (Remote(IPv4Network("198.51.100.7")),)
    filtered = Entry(replace(mapping(1), claim=GUARDED, remotes=one), Lease(60.0))
    plan = table(filtered).plan_map(mapping(1), Lease(60.0), QUOTA)
    assert isinstance(plan, Change)
    assert plan.after == filtered
    held = table(entry(1))
    assert held.plan_map(filtered.mapping, Lease(60.0), QUOTA, adds_remotes=True) is Refusal.CONFLICT


def test_remotes_are_added_on_request_up_to_the_limit() -> None:
    two = (Remote(IPv4Network("198.51.100.7")), Remote(IPv4Network("198.51.100.8"), 80))
    held = table(Entry(replace(mapping(1), remotes=two[:1]), Lease(60.0)))
    added = held.plan_map(replace(mapping(1), remotes=two), Lease(60.0), QUOTA, adds_remotes=True)
    assert isinstance(added, Change)
    assert added.after == Entry(replace(mapping(1), remotes=two), Lease(60.0))
    kept = held.plan_map(mapping(1), Lease(60.0), QUOTA, adds_remotes=True)
    assert isinstance(kept, Change)
    assert kept.after == kept.before
    many = tuple(Remote(IPv4Network(f"198.51.100.{n}")) for n in range(MAX_REMOTES + 1))
    assert isinstance(held.plan_map(replace(mapping(2), remotes=many[1:]), Lease(60.0), QUOTA), Change)
    assert held.plan_map(replace(mapping(2), remotes=many), Lease(60.0), QUOTA) is Refusal.TOO_MANY_REMOTES


def test_a_reserved_port_is_withheld_until_it_is_accepted_or_released() -> None:
    held = table()
    plan = [Change(None, entry(1))]
    held.reserve(plan)
    assert not offers(held, 1)
    assert held.plan_map(mapping(1, internal=C2, peer="c2"), Lease(60.0), QUOTA) is Refusal.CONFLICT
    assert list(held) == []
    assert held.holds(plan[0].key)
    held.release(plan)
    assert offers(held, 1)
    assert not held.holds(plan[0].key)
    held.reserve(plan)
    held.accept(plan, NOW)
    held.reserve([Change(entry(1), None)])
    assert not offers(held, 1), "the port is still mapped"
    assert held.holds(plan[0].key)
    held.accept([Change(entry(1), None)], NOW)
    assert offers(held, 1)


PINHOLE = Pinhole(TransportProtocol.TCP, Endpoint(IPv6Address("2001:db8::2"), 1), "c1", unique_id=1)


def test_a_pinhole_and_a_port_mapping_of_one_port_have_different_keys() -> None:
    held = table(entry(1), Entry(PINHOLE, Lease(60.0)))
    assert held.plan_unmap("c1", UnmapPorts(TransportProtocol.TCP, range(1, 65536))) == [Change(entry(1), None)]
    renewed = Entry(PINHOLE, Lease(90.0))
    assert held.plan_map(PINHOLE, Lease(90.0), QUOTA) == Change(Entry(PINHOLE, Lease(60.0)), renewed)
    assert held.plan_map(replace(PINHOLE, peer="c2"), Lease(90.0), QUOTA) is Refusal.CONFLICT


def test_pinholes_of_one_endpoint_that_expire_together_are_two() -> None:
    remotes = [Remote(IPv6Network(f"2001:db8::{host}/128"), port) for host, port in ((2, 0), (1, 0), (1, 443))]
    entries = [
        Entry(replace(PINHOLE, remotes=each, unique_id=number), Lease(60.0))
        for number, each in enumerate([(), *((remote,) for remote in remotes)], start=1)
    ]
    held = table(*entries)
    assert held.expired(60.0) == sorted(entries, key=lambda each: each.mapping.key)
    assert [held.find_pinhole("c1", number) for number in range(1, 6)] == [*entries, None]
    assert held.find_pinhole("c2", 1) is None


ONE = (Remote(IPv4Network("198.51.100.7")),)


def test_closing_with_remotes_closes_the_mappings_that_admit_exactly_these() -> None:
    restricted = Entry(replace(mapping(1), remotes=ONE), Lease(60.0))
    held = table(restricted, entry(2))
    assert held.plan_unmap("c1", UnmapPorts(TransportProtocol.TCP, range(1, 3), ONE)) == [Change(restricted, None)]
    assert held.plan_unmap("c1", UnmapPorts(TransportProtocol.TCP, range(1, 3), ())) == [Change(entry(2), None)]
    assert held.plan_unmap("c1", UnmapPorts(TransportProtocol.TCP, range(1, 3))) == [
        Change(restricted, None),
        Change(entry(2), None),
    ]


def test_entries_are_found_only_by_their_own_peer() -> None:
    held = table(entry(1), entry(2, peer="c2"))
    assert held.find("c1", (TransportProtocol.TCP, 1)) == entry(1)
    assert held.find("c2", (TransportProtocol.TCP, 1)) is None
    assert held.plan_unmap("c2", UnmapPorts(TransportProtocol.TCP, range(1, 65536))) == [
        Change(entry(2, peer="c2"), None)
    ]
    assert held.of_peer("c1") == [entry(1)]


@pytest.mark.parametrize(("first", "last", "ports"), [(1, 3, [1, 3]), (2, 2, []), (3, 3, [3]), (4, 65535, [5])])
def test_a_range_includes_both_ends(first: int, last: int, ports: list[int]) -> None:
    held = table(entry(1), entry(3), entry(5))
    assert held.plan_unmap("c1", UnmapPorts(TransportProtocol.TCP, range(first, last + 1))) == [
        Change(entry(port), None) for port in ports
    ]
    assert held.plan_unmap("c1", UnmapPorts(TransportProtocol.UDP, range(first, last + 1))) == []


def test_a_renewal_keeps_the_place_in_the_lists() -> None:
    held = table(entry(1), entry(2))
    change = held.plan_map(mapping(1, internal_port=99), Lease(90.0), QUOTA)
    assert isinstance(change, Change)
    held.accept([change], NOW)
    assert [each.mapping.internal.port for each in held] == [99, 80]
    assert [each.mapping.internal.port for each in held.of_peer("c1")] == [99, 80]


OPENED = Entry(Pinhole(TransportProtocol.TCP, Endpoint(IPv6Address("fd00::2"), 80), "c1", unique_id=1), Lease(60.0))


def indexed(held: Table, peer: str = "c1") -> list[int]:
    """Return the ports of the peer's port mappings by index, to beyond the last."""
    found = [held.port_mapping_at(peer, index) for index in range(held.port_mappings(peer) + 1)]
    assert found.pop() is None
    return [each.mapping.external_port for each in found if each and isinstance(each.mapping, PortMapping)]


def test_port_mappings_by_index() -> None:
    """Oldest first; a renewal keeps the place, pinholes have none, and what is deleted makes the rest move up."""
    held = table(entry(3), OPENED, entry(1), entry(2, peer="c2"), entry(4))
    assert (indexed(held), indexed(held, "c2"), indexed(held, "c3")) == ([3, 1, 4], [2], [])
    held.accept([Change(entry(3), entry(3, 99.0))], NOW)
    assert indexed(held) == [3, 1, 4]
    held.accept([Change(entry(1), None)], NOW)
    assert indexed(held) == [3, 4]
    held.accept([Change(None, entry(1))], NOW)
    assert indexed(held) == [3, 4, 1]


def test_a_client_that_deletes_the_first_entry_until_there_is_none_deletes_all() -> None:
    held = table(*(entry(port) for port in range(1, 101)))
    deleted = []
    while (first := held.port_mapping_at("c1", 0)) is not None:
        deleted.append(first)
        held.accept([Change(first, None)], NOW)
    assert deleted == [entry(port) for port in range(1, 101)]


def test_port_mappings_by_their_ports() -> None:
    other = Entry(replace(mapping(2), protocol=TransportProtocol.UDP), Lease(60.0))
    held = table(entry(3), other, entry(2), entry(1), entry(4, peer="c2"))
    assert held.port_mappings_among("c1", range(2, 5)) == [entry(3), other, entry(2)]
    assert held.port_mappings_among("c1", range(5, 9)) == held.port_mappings_among("c3", range(9)) == []


def test_the_update_id_counts_changes_of_the_peers_port_mappings() -> None:
    held = Table()
    counted = []
    for before, after in (
        (None, entry(1)),
        (entry(1), entry(1, 99.0)),  # of the lease alone
        (entry(1, 99.0), entry(1, 99.0)),  # none
        (None, OPENED),
        (OPENED, None),
        (None, entry(2, peer="c2")),
        (entry(1, 99.0), None),
    ):
        held.accept([Change(before, after)], NOW)
        counted.append(held.update_id("c1"))
    assert counted == [1, 2, 2, 2, 2, 2, 3]
    assert (held.update_id("c2"), held.update_id("c3")) == (1, 0)


def test_the_update_id_begins_again_at_0() -> None:
    held = table(entry(1))
    held._update_ids["c1"] = 2**32 - 1
    held.accept([Change(entry(1), None)], NOW)
    assert held.update_id("c1") == 0


def test_update_ids_of_former_peers_do_not_accumulate() -> None:
    """Nor does a peer that returns get a number that it had before."""
    held = table(entry(1), entry(2, peer="first"), entry(3, peer="first"))
    held.accept([Change(entry(port, peer="first"), None) for port in (2, 3)], NOW)
    for number in range(2 * MAX_FORMER_PEERS):
        once = entry(2, peer=f"former {number}")
        held.accept([Change(None, once)], NOW)
        held.accept([Change(once, None)], NOW)
    assert len(held._update_ids) <= MAX_FORMER_PEERS + 2
    assert held.update_id("c1") == 1
    held.accept([Change(None, entry(2, peer="first"))], NOW)
    assert held.update_id("first") > 4


def test_expired_entries_are_returned_until_they_are_removed() -> None:
    held = table(entry(1, 10.0), entry(2, 20.0), entry(3, 10.0))
    assert held.expired(9.9) == []
    for _ in range(2):
        assert held.expired(10.0) == [entry(1, 10.0), entry(3, 10.0)]
        assert held.next_expiry() == 10.0
    held.accept([Change(entry(1, 10.0), None), Change(entry(3, 10.0), None)], NOW)
    assert held.expired(10.0) == []
    assert held.next_expiry() == 20.0


def test_accepting_a_change_that_was_planned_on_another_state_is_an_assertion_error() -> None:
    for change in (Change(None, entry(1)), Change(entry(1, 99.0), None), Change(entry(2), None)):
        with pytest.raises(AssertionError):
            table(entry(1)).accept([change], NOW)


def test_renewals_do_not_accumulate_expiries() -> None:
    held = table(*(entry(port) for port in range(1, 11)))
    for second in range(5000):
        port = second % 10 + 1
        before = held.find("c1", (TransportProtocol.TCP, port))
        held.accept([Change(before, entry(port, 60.0 + second))], NOW)
    assert len(held._expiries) <= 2 * len(held) + 64
    assert held.next_expiry() == min(each.lease.expires for each in held)


class AgainstADictionary(RuleBasedStateMachine):
    """The same steps on a Table and on a dictionary that is searched linearly."""

    HOSTS: ClassVar = {"c1": (C1, C1_HOST), "c2": (C2,)}

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.model: dict[Key, Entry] = {}
        self.closed: dict[Key, tuple[str, float]] = {}
        self.now = 0.0

    def of_peer(self, peer: str) -> list[Entry]:
        return [each for each in self.model.values() if each.mapping.peer == peer]

    def expected(self, asked: Entry) -> Change | Refusal:
        held = self.model.get(asked.mapping.key)
        if held is None:
            full = len(self.of_peer(asked.mapping.peer)) >= QUOTA
            return Refusal.QUOTA if full else Change(None, asked)
        same = (held.mapping.peer, held.mapping.internal.address) == (
            asked.mapping.peer,
            asked.mapping.internal.address,
        )
        if not same:
            return Refusal.CONFLICT
        if held.mapping.claim == BY_EXTERNAL_PORT and asked.mapping.claim == BY_EXTERNAL_PORT:
            return Change(held, asked)
        lease = max(held.lease, asked.lease, key=lambda each: each.expires)
        return Change(held, Entry(replace(asked.mapping, claim=BY_INTERNAL_ENDPOINT), lease))

    def accept(self, changes: list[Change]) -> None:
        self.table.reserve(changes)
        self.table.accept(changes, self.now)
        for change in changes:
            if change.after:
                self.model[change.after.mapping.key] = change.after
            elif change.before:
                del self.model[change.before.mapping.key]
                self.closed[change.before.mapping.key] = (change.before.mapping.peer, self.now)

    @rule(
        port=st.integers(1, 6),
        protocol=st.sampled_from(TransportProtocol),
        peer=st.sampled_from(["c1", "c2"]),
        host=st.integers(0, 1),
        lifetime=st.integers(1, 50),
        named=st.booleans(),
        accepted=st.booleans(),
    )
    def map(
        self,
        *,
        port: int,
        protocol: TransportProtocol,
        peer: str,
        host: int,
        lifetime: int,
        named: bool,
        accepted: bool,
    ) -> None:
        hosts = self.HOSTS[peer]
        internal = Endpoint(hosts[host % len(hosts)], 8000 + port)
        wanted = PortMapping(protocol, port, internal, peer, claim=BY_INTERNAL_ENDPOINT if named else BY_EXTERNAL_PORT)
        asked = Entry(wanted, Lease(self.now + lifetime))
        plan = self.table.plan_map(asked.mapping, asked.lease, QUOTA)
        assert plan == self.expected(asked)
        if accepted and isinstance(plan, Change):
            self.accept([plan])

    @rule(
        peer=st.sampled_from(["c1", "c2"]),
        protocol=st.sampled_from(TransportProtocol),
        first=st.integers(1, 6),
        length=st.integers(0, 3),
    )
    def unmap(self, peer: str, protocol: TransportProtocol, first: int, length: int) -> None:
        plan = self.table.plan_unmap(peer, UnmapPorts(protocol, range(first, first + length + 1)))
        assert plan == [
            Change(each, None)
            for each in self.of_peer(peer)
            if each.mapping.protocol is protocol and first <= each.mapping.external_port <= first + length
        ]
        self.accept(plan)

    @precondition(lambda self: self.model)
    @rule(seconds=st.integers(1, 20), close=st.booleans())
    def expire(self, *, seconds: int, close: bool) -> None:
        self.now += seconds
        expired = self.table.expired(self.now)
        due = [each for each in self.model.values() if each.lease.expires <= self.now]
        assert sorted(map(repr, expired)) == sorted(map(repr, due))
        assert [each.lease.expires for each in expired] == sorted(each.lease.expires for each in due)
        if close:
            self.accept([Change(each, None) for each in expired])

    @invariant()
    def both_hold_the_same(self) -> None:
        assert list(self.table) == list(self.model.values())
        assert len(self.table) == len(self.model)
        assert self.table.next_expiry() == min((each.lease.expires for each in self.model.values()), default=None)
        for peer in ("c1", "c2"):
            assert self.table.of_peer(peer) == self.of_peer(peer)
        for key in ((protocol, port) for protocol in TransportProtocol for port in range(1, 7)):
            for peer, host in (("c1", C1), ("c2", C2)):
                assert self.table.offers(*key, peer, Endpoint(host, 80), self.now) == self.expected_offer(
                    key, peer, host
                )
        for named, entry_ in self.named().items():
            assert self.table.find_internal(*named) == entry_

    def named(self) -> dict[tuple[str, TransportProtocol, Endpoint], Entry]:
        return {
            (each.mapping.peer, each.mapping.protocol, each.mapping.internal): each
            for each in self.model.values()
            if each.mapping.claim.by_internal
        }

    def expected_offer(self, key: tuple[TransportProtocol, int], peer: str, host: IPv4Address) -> bool:
        closer, moment = self.closed.get(key, (peer, 0.0))
        held_down = closer != peer and self.now < moment + HOLD_DOWN
        other = TransportProtocol.UDP if key[0] is TransportProtocol.TCP else TransportProtocol.TCP
        companion = self.model.get((other, key[1]))
        others = companion is not None and companion.mapping.internal.address != host
        return key not in self.model and not held_down and not others


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
