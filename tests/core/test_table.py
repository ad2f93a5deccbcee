"""The table against a plain dictionary, and its words of refusal one by one."""
# ruff: noqa: D102 - the names of the steps say what they do

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from igd.core.mapping import Change, Endpoint, Entry, Key, Lease, Pinhole, PortMapping, Protocol, Remote
from igd.core.request import Refusal
from igd.core.table import Table

C1, C1_HOST, C2 = (IPv4Address(text) for text in ("10.100.0.2", "192.168.7.20", "10.100.0.3"))
QUOTA = 3


def mapping(
    port: int, internal: IPv4Address = C1, internal_port: int = 80, peer: str = "c1", description: str = ""
) -> PortMapping:
    return PortMapping(Protocol.TCP, port, Endpoint(internal, internal_port), peer, description)


def entry(port: int, expires: float = 60.0, peer: str = "c1") -> Entry:
    return Entry(mapping(port, peer=peer), Lease(expires))


def table(*entries: Entry) -> Table:
    made = Table()
    made.accept(Change(None, each) for each in entries)
    return made


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (mapping(1), None),  # the same again
        (mapping(1, internal_port=81), None),
        (mapping(1, description="new"), None),
        (mapping(1, internal=C1_HOST), Refusal.CONFLICT),  # another host behind the same peer
        (mapping(1, internal=C2, peer="c2"), Refusal.CONFLICT),
        (mapping(1, peer="c2"), Refusal.CONFLICT),  # an address that has changed hands
    ],
)
def test_whoever_holds_a_port_may_renew_it_and_nobody_else(asked: PortMapping, answer: Refusal | None) -> None:
    lease = Lease(90.0)
    held = table(entry(1))
    assert held.plan_map(asked, lease, QUOTA) == (answer or Change(entry(1), Entry(asked, lease)))


def test_the_quota_counts_new_mappings_of_one_peer() -> None:
    full = table(entry(1), entry(2), entry(3))
    assert full.plan_map(mapping(4), Lease(60.0), QUOTA) is Refusal.QUOTA
    assert isinstance(full.plan_map(mapping(3), Lease(60.0), QUOTA), Change)
    assert isinstance(full.plan_map(mapping(4, peer="c2"), Lease(60.0), QUOTA), Change)


def test_the_same_port_of_the_other_protocol_is_free() -> None:
    other = PortMapping(Protocol.UDP, 1, Endpoint(C2, 80), "c2")
    held = table(entry(1))
    assert held.free(other.key)
    assert not held.free((Protocol.TCP, 1))
    assert held.plan_map(other, Lease(60.0), QUOTA) == Change(None, Entry(other, Lease(60.0)))


def test_a_plan_changes_nothing() -> None:
    held = table(entry(1))
    held.plan_map(mapping(2), Lease(60.0), QUOTA)
    held.plan_unmap("c1", Protocol.TCP, 1, 65535)
    held.expired(1000.0)
    assert list(held) == [entry(1)]


def test_what_is_reserved_is_nobodys_until_it_is_settled() -> None:
    held = table()
    plan = [Change(None, entry(1))]
    held.reserve(plan)
    assert not held.free((Protocol.TCP, 1))
    assert held.plan_map(mapping(1, internal=C2, peer="c2"), Lease(60.0), QUOTA) is Refusal.CONFLICT
    assert list(held) == []
    held.release(plan)
    assert held.free((Protocol.TCP, 1))
    held.reserve(plan)
    held.accept(plan)
    held.reserve([Change(entry(1), None)])
    assert not held.free((Protocol.TCP, 1)), "it is still open"
    held.accept([Change(entry(1), None)])
    assert held.free((Protocol.TCP, 1))


PINHOLE = Pinhole(Protocol.TCP, Endpoint(IPv6Address("2001:db8::2"), 1), "c1")


def test_a_pinhole_and_a_port_mapping_of_one_port_do_not_meet() -> None:
    held = table(entry(1), Entry(PINHOLE, Lease(60.0)))
    assert held.plan_unmap("c1", Protocol.TCP, 1, 65535) == [Change(entry(1), None)]
    renewed = Entry(PINHOLE, Lease(90.0))
    assert held.plan_map(PINHOLE, Lease(90.0), QUOTA) == Change(Entry(PINHOLE, Lease(60.0)), renewed)
    assert held.plan_map(replace(PINHOLE, peer="c2"), Lease(90.0), QUOTA) is Refusal.CONFLICT


ONE = (Remote(IPv4Network("198.51.100.7")),)


def test_who_names_remotes_closes_what_is_for_just_these() -> None:
    restricted = Entry(replace(mapping(1), remotes=ONE), Lease(60.0))
    held = table(restricted, entry(2))
    assert held.plan_unmap("c1", Protocol.TCP, 1, 2, ONE) == [Change(restricted, None)]
    assert held.plan_unmap("c1", Protocol.TCP, 1, 2, ()) == [Change(entry(2), None)]
    assert len(held.plan_unmap("c1", Protocol.TCP, 1, 2)) == 2


def test_another_peers_entries_are_found_by_nobody() -> None:
    held = table(entry(1), entry(2, peer="c2"))
    assert held.find("c1", (Protocol.TCP, 1)) == entry(1)
    assert held.find("c2", (Protocol.TCP, 1)) is None
    assert held.plan_unmap("c2", Protocol.TCP, 1, 65535) == [Change(entry(2, peer="c2"), None)]
    assert held.of_peer("c1") == [entry(1)]


@pytest.mark.parametrize(("first", "last", "ports"), [(1, 3, [1, 3]), (2, 2, []), (3, 3, [3]), (4, 65535, [5])])
def test_a_range_includes_both_ends(first: int, last: int, ports: list[int]) -> None:
    held = table(entry(1), entry(3), entry(5))
    assert held.plan_unmap("c1", Protocol.TCP, first, last) == [Change(entry(port), None) for port in ports]
    assert held.plan_unmap("c1", Protocol.UDP, first, last) == []


def test_a_renewal_keeps_the_place_in_the_lists() -> None:
    held = table(entry(1), entry(2))
    change = held.plan_map(mapping(1, internal_port=99), Lease(90.0), QUOTA)
    assert isinstance(change, Change)
    held.accept([change])
    assert [each.mapping.internal.port for each in held] == [99, 80]
    assert [each.mapping.internal.port for each in held.of_peer("c1")] == [99, 80]


def test_what_has_run_out_is_told_until_it_is_closed() -> None:
    held = table(entry(1, 10.0), entry(2, 20.0), entry(3, 10.0))
    assert held.expired(9.9) == []
    for _ in range(2):
        assert held.expired(10.0) == [entry(1, 10.0), entry(3, 10.0)]
        assert held.next_expiry() == 10.0
    held.accept([Change(entry(1, 10.0), None), Change(entry(3, 10.0), None)])
    assert held.expired(10.0) == []
    assert held.next_expiry() == 20.0


def test_changes_planned_on_another_table_are_a_mistake_of_our_own() -> None:
    for change in (Change(None, entry(1)), Change(entry(1, 99.0), None), Change(entry(2), None)):
        with pytest.raises(AssertionError):
            table(entry(1)).accept([change])


def test_renewals_do_not_fill_the_memory() -> None:
    held = table(*(entry(port) for port in range(1, 11)))
    for second in range(5000):
        port = second % 10 + 1
        before = held.find("c1", (Protocol.TCP, port))
        held.accept([Change(before, entry(port, 60.0 + second))])
    assert len(held._expiries) <= 2 * len(held) + 64  # noqa: SLF001 - nothing else shows it
    assert held.next_expiry() == min(each.lease.expires for each in held)


class AgainstADictionary(RuleBasedStateMachine):
    """The same steps on a Table and on a dictionary that is searched from end to end."""

    HOSTS: ClassVar = {"c1": (C1, C1_HOST), "c2": (C2,)}

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.model: dict[Key, Entry] = {}
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
        return Change(held, asked) if same else Refusal.CONFLICT

    def accept(self, changes: list[Change]) -> None:
        self.table.accept(changes)
        for change in changes:
            if change.after:
                self.model[change.after.mapping.key] = change.after
            elif change.before:
                del self.model[change.before.mapping.key]

    @rule(
        port=st.integers(1, 6),
        protocol=st.sampled_from(Protocol),
        peer=st.sampled_from(["c1", "c2"]),
        host=st.integers(0, 1),
        lifetime=st.integers(1, 50),
        accepted=st.booleans(),
    )
    def map(self, port: int, protocol: Protocol, peer: str, host: int, lifetime: int, accepted: bool) -> None:  # noqa: FBT001, PLR0913, PLR0917
        hosts = self.HOSTS[peer]
        wanted = PortMapping(protocol, port, Endpoint(hosts[host % len(hosts)], 80), peer)
        asked = Entry(wanted, Lease(self.now + lifetime))
        plan = self.table.plan_map(asked.mapping, asked.lease, QUOTA)
        assert plan == self.expected(asked)
        if accepted and isinstance(plan, Change):
            self.accept([plan])

    @rule(
        peer=st.sampled_from(["c1", "c2"]),
        protocol=st.sampled_from(Protocol),
        first=st.integers(1, 6),
        length=st.integers(0, 3),
    )
    def unmap(self, peer: str, protocol: Protocol, first: int, length: int) -> None:
        plan = self.table.plan_unmap(peer, protocol, first, first + length)
        assert plan == [
            Change(each, None)
            for each in self.of_peer(peer)
            if each.mapping.protocol is protocol and first <= each.mapping.external_port <= first + length
        ]
        self.accept(plan)

    @precondition(lambda self: self.model)
    @rule(seconds=st.integers(1, 20), close=st.booleans())
    def expire(self, seconds: int, close: bool) -> None:  # noqa: FBT001
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
        for key in ((protocol, port) for protocol in Protocol for port in range(1, 7)):
            assert self.table.free(key) == (key not in self.model)


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
