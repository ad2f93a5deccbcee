"""A port that is reserved for a peer is granted to it whenever it asks, and to nobody else."""

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    SAME_PORT,
    Change,
    Claim,
    Endpoint,
    TransportProtocol,
)
from igd.core.planner import Planner
from igd.core.policies import Policies
from igd.core.policy import Policy, PortRule
from igd.core.request import MapPort, Refusal
from igd.core.reserved_ports import Reservation
from igd.core.table import Table

TCP, UDP = TransportProtocol
NOW = 1000.0
ADDRESSES: Mapping[str, IPv4Address] = {"owner": IPv4Address("10.100.0.2"), "other": IPv4Address("10.100.0.3")}
C = ADDRESSES["other"]
RULES = (PortRule.parse("allow 5000-5005 0.0.0.0/0 0-65535"),)
RESERVED = (Reservation.parse("tcp 5001-5002"), Reservation.parse("udp 5003"), Reservation.parse("udp 5010"))
POLICIES = Policies(Policy(RULES), {"owner": Policy((), reserved=RESERVED)})
PCP = Claim(by_internal=True, nonce=b"n" * 12)


class Planned:
    """A table, and what peers plan and get in it."""

    def __init__(self, seed: int = 1) -> None:
        self.table = Table()
        self._rng = random.Random(seed)

    def plan(self, peer: str, request: MapPort, now: float = NOW) -> list[Change] | Refusal:
        """Plan as the gateway does."""
        taken = partial(POLICIES.withholds, peer)
        request = replace(request, internal=Endpoint(ADDRESSES[peer], request.internal.port))
        return Planner(POLICIES.of(peer), self.table, taken, self._rng, peer, request, now).plan_port_set()

    def get(self, peer: str, request: MapPort, now: float = NOW) -> list[int] | Refusal:
        """Plan and accept; return the external ports."""
        plans = self.plan(peer, request, now)
        if isinstance(plans, Refusal):
            return plans
        self.table.accept(plans, now)
        return [change.key[1] for change in plans]

    def close_all(self, peer: str) -> None:
        """Close all mappings of a peer; its ports are held down."""
        self.table.accept([Change(entry, None) for entry in self.table.of_peer(peer)], NOW)


def ask(
    port: int, protocol: TransportProtocol = TCP, claim: Claim = BY_EXTERNAL_PORT, *, any_port: bool = False
) -> MapPort:
    return MapPort(protocol, Endpoint(ADDRESSES["owner"], 80), port, 600, any_port=any_port, claim=claim)


def same_port(port: int, protocol: TransportProtocol) -> MapPort:
    """Return what NAT-PMP requests with internal port 0."""
    internal = Endpoint(ADDRESSES["owner"], 0)
    return MapPort(
        protocol, internal, port, 600, SAME_PORT, any_port=True, claim=BY_INTERNAL_ENDPOINT, adds_remotes=True
    )


@pytest.mark.parametrize("claim", [BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT, PCP])
def test_another_peer_does_not_get_it_by_request(claim: Claim) -> None:
    assert Planned().get("other", ask(5001, claim=claim)) is Refusal.CONFLICT


def test_another_peer_does_not_get_it_by_choice() -> None:
    planned = Planned()
    requests = (replace(ask(5001, any_port=True), internal=Endpoint(C, number)) for number in range(1, 7))
    granted = [planned.get("other", request) for request in requests]
    assert sorted(map(str, granted)) == ["Refusal.NO_FREE_PORT"] * 2 + ["[5000]", "[5003]", "[5004]", "[5005]"]


def test_another_peer_does_not_get_it_in_a_port_set() -> None:
    request = replace(ask(5000, claim=PCP, any_port=True), count=4)
    granted = Planned().get("other", request)
    assert isinstance(granted, list)
    assert not {5001, 5002} & set(granted)


def test_another_peer_does_not_get_it_as_the_companion_of_its_own_port() -> None:
    """NAT-PMP with internal port 0 keeps the other protocol's port for the same host."""
    planned = Planned()
    assert planned.get("other", same_port(5003, TCP)) != [5003]


def test_a_companion_that_another_peer_has_does_not_keep_it_from_its_owner() -> None:
    """The mapping is older than the reservation."""
    planned = Planned()
    held = Planner(
        POLICIES.default,
        planned.table,
        lambda *_: False,
        random.Random(1),
        "other",
        replace(same_port(5003, TCP), internal=Endpoint(C, 0)),
        NOW,
    ).plan()
    assert isinstance(held, Change)
    planned.table.accept([held], NOW)
    assert [entry.mapping.description for entry in planned.table] == [SAME_PORT]
    assert planned.get("owner", ask(5003, UDP)) == [5003]


@pytest.mark.parametrize("claim", [BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT, PCP])
def test_a_hold_down_for_another_peer_does_not_keep_it_from_its_owner(claim: Claim) -> None:
    planned = Planned()
    before = Planner(
        POLICIES.default, planned.table, lambda *_: False, random.Random(1), "other", ask(5001, claim=claim), NOW
    )
    plan = before.plan()
    assert isinstance(plan, Change)
    planned.table.accept([plan], NOW)
    planned.close_all("other")
    assert planned.get("other", ask(5001, claim=claim)) is Refusal.CONFLICT
    assert planned.get("owner", ask(5001, claim=claim, any_port=claim.by_internal)) == [5001]


def test_its_owner_keeps_the_rules_of_renewals() -> None:
    planned = Planned()
    assert planned.get("owner", ask(5001, claim=PCP)) == [5001]
    assert planned.get("owner", ask(5001, claim=replace(PCP, nonce=b"o" * 12))) is Refusal.OTHER_NONCE


asks = st.one_of(
    st.builds(
        MapPort,
        st.sampled_from(TransportProtocol),
        st.builds(Endpoint, st.just(ADDRESSES["owner"]), st.integers(4999, 5011)),
        st.integers(4999, 5011),
        st.integers(1, 600),
        any_port=st.booleans(),
        claim=st.sampled_from([BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT, PCP]),
        count=st.integers(1, 4),
    ),
    st.builds(same_port, st.integers(4999, 5011), st.sampled_from(TransportProtocol)),
)
steps = st.lists(st.tuples(st.sampled_from(["owner", "other", "third"]), asks, st.booleans()), max_size=10)


@given(steps, st.integers(0, 3))
def test_whatever_others_do_the_owner_gets_its_ports(steps: list[tuple[str, MapPort, bool]], seed: int) -> None:
    planned = Planned(seed)
    for step, (peer, request, closes) in enumerate(steps):
        asker = "other" if peer == "third" else peer
        planned.get(asker, request, NOW + step)
        if closes:
            planned.close_all(asker)
        for entry in planned.table:
            reserved = POLICIES.reserved_for(entry.mapping.protocol, entry.mapping.external_port)
            assert reserved in {None, entry.mapping.peer}
        for protocol, port in ((TCP, 5001), (TCP, 5002), (UDP, 5003), (UDP, 5010)):
            if not planned.table.holds((protocol, port)):
                plans = planned.plan("owner", ask(port, protocol), NOW + step)
                assert isinstance(plans, list)
                assert [change.key for change in plans] == [(protocol, port)]
