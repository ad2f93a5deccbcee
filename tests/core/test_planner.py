"""What is planned is what the rules, the table and the RFCs allow: one port, the port that is held already, a row."""

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from igd.core.planner import NEVER, Planner
from igd.core.policy import ANY_UNPRIVILEGED, Policy, PortRule
from igd.core.request import MapPort, Refusal
from igd.core.table import HOLD_DOWN, MAX_REMOTES, Table

C1, C1_HOST, C2 = (IPv4Address(text) for text in ("10.100.0.2", "192.168.7.20", "10.100.0.3"))
C1_IPV6 = IPv6Address("2001:db8::2")
TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
NOW = 1000.0
QUOTA = 64
GUARDED, OTHER = (Claim(by_internal=True, nonce=nonce * 12) for nonce in (b"n", b"o"))


class Desk:
    """A planner and what it stands on, in the open."""

    def __init__(self, *rules: str, quota: int = QUOTA, seed: int = 1) -> None:
        self.policy = Policy(tuple(map(PortRule.parse, rules)) or ANY_UNPRIVILEGED, mappings_per_peer=quota)
        self.table = Table()
        self.taken: set[Key] = set()
        rng = random.Random(seed)  # noqa: S311 - the same in every run
        self.planner = Planner(self.policy, self.table, lambda protocol, port: (protocol, port) in self.taken, rng)

    def hold(  # noqa: PLR0913 - what a mapping has
        self,
        port: int,
        internal_port: int | None = None,
        *,
        peer: str = "c1",
        address: IPv4Address = C1,
        protocol: TransportProtocol = TCP,
        claim: Claim = BY_EXTERNAL_PORT,
        lifetime: float = 600,
    ) -> Entry:
        """Hold a mapping, to the same port where no other is named."""
        internal = Endpoint(address, internal_port or port)
        entry = Entry(PortMapping(protocol, port, internal, peer, "", (), claim), Lease(NOW + lifetime))
        self.table.accept([Change(None, entry)], NOW)
        return entry

    def close(self, entry: Entry) -> None:
        """Close it, now."""
        self.table.accept([Change(entry, None)], NOW)

    def plan(self, request: MapPort, peer: str = "c1", now: float = NOW) -> Change | Refusal:
        """Plan for a peer."""
        return self.planner.plan(peer, request, now)

    def port(self, request: MapPort, peer: str = "c1", now: float = NOW) -> int | Refusal:
        """Tell the port that is granted."""
        plan = self.plan(request, peer, now)
        return plan if isinstance(plan, Refusal) else plan.key[1]

    def row(self, request: MapPort, peer: str = "c1") -> list[int] | Refusal:
        """Tell the ports that are granted."""
        plan = self.planner.plan_row(peer, request, NOW)
        return plan if isinstance(plan, Refusal) else [change.key[1] for change in plan]


def upnp(port: int, internal_port: int | None = None, *, any_port: bool = False) -> MapPort:
    return MapPort(TCP, Endpoint(C1, internal_port or port), port, 3600, any_port=any_port)


def pcp(port: int, internal_port: int | None = None, *, or_none: bool = False, claim: Claim = GUARDED) -> MapPort:
    internal = Endpoint(C1, internal_port or port)
    return MapPort(TCP, internal, port, 3600, any_port=not or_none, claim=claim, adds_remotes=True)


def natpmp(port: int, internal_port: int | None = None) -> MapPort:
    return pcp(port, internal_port, claim=BY_INTERNAL_ENDPOINT)


def row(count: int, port: int = 5000, internal_port: int | None = None, *, parity: bool = False) -> MapPort:
    return replace(pcp(port, internal_port), count=count, keeps_parity=parity)


# What names a mapping by its internal endpoint


@pytest.mark.parametrize("first", [GUARDED, BY_INTERNAL_ENDPOINT])
@pytest.mark.parametrize("again", [pcp(7000, 5000), pcp(5000), natpmp(7000, 5000)])
def test_the_mapping_that_is_there_is_renewed_whatever_is_wished(first: Claim, again: MapPort) -> None:
    desk = Desk()
    held = desk.hold(6000, 5000, claim=first)
    plan = desk.plan(again)
    assert isinstance(plan, Change)
    assert plan.before == held
    assert plan.key == (TCP, 6000)


def test_the_other_protocol_another_host_and_another_peer_have_mappings_of_their_own() -> None:
    desk = Desk()
    desk.hold(6000, 5000, claim=GUARDED)
    asked = pcp(7000, 5000)
    assert desk.port(replace(asked, protocol=UDP)) == 7000
    assert desk.port(replace(asked, internal=Endpoint(C1_HOST, 5000))) == 7000
    assert desk.port(replace(asked, internal=Endpoint(C2, 5000)), "c2") == 7000


def test_another_nonce_is_refused() -> None:
    desk = Desk()
    desk.hold(6000, 5000, claim=GUARDED)
    assert desk.port(pcp(6000, 5000, claim=OTHER)) is Refusal.OTHER_NONCE


@pytest.mark.parametrize(("wish", "port"), [(6000, 6000), (7000, 7000)])
def test_upnps_mapping_is_shared_by_who_wishes_for_it_and_left_alone_otherwise(wish: int, port: int) -> None:
    """Libtorrent asks both ways for one port; Syncthing for two."""
    desk = Desk()
    desk.hold(6000, 5000)
    assert desk.port(pcp(wish, 5000)) == port


def test_upnps_mapping_of_another_internal_port_is_never_taken_over() -> None:
    desk = Desk()
    desk.hold(6000, 5000)
    assert desk.port(pcp(6000, 5001)) not in {6000, Refusal.CONFLICT}
    assert desk.port(pcp(6000, 5001, or_none=True)) is Refusal.CONFLICT


@pytest.mark.parametrize("claim", [GUARDED, BY_INTERNAL_ENDPOINT])
def test_upnp_shares_what_another_protocol_has_or_leads_it_elsewhere(claim: Claim) -> None:
    desk = Desk()
    held = desk.hold(6000, 5000, claim=claim, lifetime=86400)
    plan = desk.plan(upnp(6000, 5000))
    assert isinstance(plan, Change)
    assert plan.after == held, "neither the nonce nor the longer lease is lost"
    moved = desk.plan(upnp(6000, 5001))
    assert isinstance(moved, Change)
    assert moved.after == Entry(
        replace(held.mapping, internal=Endpoint(C1, 5001), claim=BY_EXTERNAL_PORT), Lease(NOW + 3600)
    )
    desk.table.accept([moved], NOW)
    assert desk.port(pcp(6000, 5000)) not in {6000, *Refusal}


def test_what_is_held_and_no_longer_allowed_is_not_renewed() -> None:
    desk = Desk("allow 1024-65535 0.0.0.0/0 6000-65535")
    desk.hold(6000, 5000, claim=GUARDED)
    assert desk.port(pcp(6000, 5000)) is Refusal.FORBIDDEN


def test_what_is_held_and_taken_by_the_server_since_is_not_renewed() -> None:
    desk = Desk()
    desk.hold(6000, 5000, claim=GUARDED)
    desk.taken.add((TCP, 6000))
    assert desk.port(pcp(6000, 5000)) is Refusal.CONFLICT


def test_filters_add_to_those_of_before() -> None:
    desk = Desk()
    remotes = [Remote(IPv4Network(f"198.51.100.{number}")) for number in range(MAX_REMOTES + 1)]
    for known in range(1, MAX_REMOTES + 1):
        plan = desk.plan(replace(pcp(5000), remotes=(remotes[known - 1],)))
        assert isinstance(plan, Change)
        assert plan.after
        assert plan.after.mapping.remotes == tuple(remotes[:known])
        desk.table.accept([plan], NOW)
    assert desk.port(replace(pcp(5000), remotes=(remotes[-1],))) is Refusal.TOO_MANY_REMOTES
    none = desk.plan(replace(pcp(5000), adds_remotes=False))
    assert isinstance(none, Change)
    assert none.after
    assert none.after.mapping.remotes == ()


# This port or none (PREFER_FAILURE)


def test_a_port_that_can_be_had_is_had() -> None:
    assert Desk().port(pcp(7000, 5000, or_none=True)) == 7000


@pytest.mark.parametrize(
    ("held", "refusal"),
    [
        ({"peer": "c2", "address": C2}, Refusal.CONFLICT),
        ({"address": C1_HOST}, Refusal.CONFLICT),
        ({"internal_port": 5001, "claim": GUARDED}, Refusal.CONFLICT),
        ({"peer": "c2", "address": C2, "protocol": UDP}, Refusal.CONFLICT),  # its companion
        ({"protocol": UDP}, None),
    ],
)
def test_a_port_that_somebody_holds_is_no_other_port(held: dict[str, object], refusal: Refusal | None) -> None:
    desk = Desk()
    desk.hold(7000, **held)  # type: ignore[arg-type]
    assert desk.port(pcp(7000, 5000, or_none=True)) == (refusal or 7000)


def test_a_port_that_is_another_than_the_one_held_is_refused() -> None:
    desk = Desk()
    desk.hold(6000, 5000, claim=GUARDED)
    assert desk.port(pcp(7000, 5000, or_none=True)) is Refusal.CONFLICT
    assert desk.port(pcp(6000, 5000, or_none=True)) == 6000


def test_a_port_that_is_forbidden_is_refused_and_no_other_given() -> None:
    assert Desk().port(pcp(80, 5000, or_none=True)) is Refusal.FORBIDDEN


# Ports that nobody gets


@pytest.mark.parametrize(("protocol", "port"), sorted(NEVER))
def test_the_ports_of_these_protocols_are_nobodys(protocol: TransportProtocol, port: int) -> None:
    """RFC 6887 §11.3."""
    desk = Desk()
    wish = replace(pcp(port, 5000), protocol=protocol)
    assert desk.port(wish) not in {port, *Refusal}
    assert desk.port(replace(wish, any_port=False)) is Refusal.CONFLICT
    assert desk.port(replace(upnp(port, 5000), protocol=protocol)) is Refusal.CONFLICT
    assert desk.port(replace(wish, protocol=TCP)) == port
    pinhole = replace(wish, internal=Endpoint(C1_IPV6, port))
    assert desk.port(pinhole) is Refusal.FORBIDDEN
    assert desk.port(replace(pinhole, internal=Endpoint(C1_IPV6, 5000))) == 5000


def test_where_only_those_are_allowed_there_is_no_port() -> None:
    desk = Desk("allow 5350-5351 0.0.0.0/0 1-65535")
    assert desk.port(replace(pcp(5000), protocol=UDP)) is Refusal.NO_FREE_PORT
    assert desk.row(replace(row(2), protocol=UDP)) is Refusal.NO_FREE_PORT


# Hold-down, and the companion port


def test_a_closed_port_is_its_former_holders() -> None:
    """RFC 6887 §15."""
    desk = Desk()
    desk.close(desk.hold(5000, claim=GUARDED))
    foreign = replace(pcp(5000), internal=Endpoint(C2, 5000))
    assert desk.port(pcp(5000)) == 5000
    for asked in (foreign, replace(foreign, any_port=False), replace(foreign, claim=BY_EXTERNAL_PORT)):
        expected = {5000} if asked.any_port else set()
        granted = desk.port(asked, "c2")
        assert granted not in expected
        assert (granted is Refusal.CONFLICT) != asked.any_port
        assert desk.port(asked, "c2", NOW + HOLD_DOWN) == 5000


def test_upnp_may_ask_for_a_closed_port_by_its_number() -> None:
    desk = Desk()
    desk.close(desk.hold(5000, claim=GUARDED))
    assert desk.port(replace(upnp(5000), internal=Endpoint(C2, 5000)), "c2") == 5000


@pytest.mark.parametrize("asked", [natpmp(5000), pcp(5000), upnp(5000, any_port=True)])
def test_the_companion_port_is_kept_for_the_same_host(asked: MapPort) -> None:
    """RFC 6886 §3.3."""
    desk = Desk()
    desk.hold(5000, protocol=UDP, claim=BY_INTERNAL_ENDPOINT)
    assert desk.port(asked) == 5000
    assert desk.port(replace(asked, internal=Endpoint(C1_HOST, 5000))) not in {5000, *Refusal}
    assert desk.port(replace(asked, internal=Endpoint(C2, 5000)), "c2") not in {5000, *Refusal}


# Rows (RFC 7753)


def test_a_row_lies_where_it_is_wished() -> None:
    desk = Desk()
    plans = desk.planner.plan_row("c1", row(4, 7000, 5000), NOW)
    assert isinstance(plans, list)
    entries = [plan.after for plan in plans]
    assert [entry and str(entry.mapping) for entry in entries] == [
        f"TCP {7000 + step} -> 10.100.0.2:{5000 + step}" for step in range(4)
    ]


def test_a_row_of_one_is_the_plan_for_one_port() -> None:
    desk = Desk()
    asked = pcp(7000, 5000)
    assert desk.planner.plan_row("c1", asked, NOW) == [desk.plan(asked)]
    assert desk.row(pcp(80, 5000, or_none=True)) is Refusal.FORBIDDEN


def test_a_row_that_is_partly_taken_lies_elsewhere() -> None:
    desk = Desk()
    desk.hold(5002, peer="c2", address=C2)
    granted = desk.row(row(4))
    assert isinstance(granted, list)
    assert granted == list(range(granted[0], granted[0] + 4))
    assert 5002 not in granted


def test_a_row_that_has_room_nowhere_is_as_long_as_it_can_be() -> None:
    desk = Desk("allow 5000-5009 0.0.0.0/0 1024-65535")
    desk.taken = {(TCP, 5003), (TCP, 5006)}
    granted = desk.row(row(5))
    assert isinstance(granted, list)
    assert granted == [port for port in range(granted[0], granted[0] + 3) if port not in {5003, 5006}]
    assert len(granted) >= 2


@pytest.mark.parametrize(("port", "internal_port"), [(65534, 5000), (5000, 65534), (65534, 65534)])
def test_no_row_goes_on_behind_the_last_port(port: int, internal_port: int) -> None:
    desk = Desk("allow 65000-65535 0.0.0.0/0 1-65535", "allow 5000-5009 0.0.0.0/0 1-65535")
    plans = desk.planner.plan_row("c1", row(4, port, internal_port), NOW)
    assert isinstance(plans, list)
    assert len(plans) == (2 if internal_port == 65534 else 4), "where only the outside is short, another place is found"
    for plan in plans:
        assert plan.after
        assert plan.key[1] <= 65535
        assert plan.after.mapping.internal.port <= 65535


def test_a_row_leads_to_allowed_internal_ports_only() -> None:
    desk = Desk("allow 1024-65535 0.0.0.0/0 5000-5002")
    assert desk.row(row(8)) == [5000, 5001, 5002]


@pytest.mark.parametrize(("internal_port", "wish"), [(5000, 7001), (5001, 7000), (5000, 7000), (5001, 7001)])
def test_a_row_begins_evenly_where_that_is_asked(internal_port: int, wish: int) -> None:
    granted = Desk().row(row(4, wish, internal_port, parity=True))
    assert isinstance(granted, list)
    assert granted[0] % 2 == internal_port % 2
    assert granted == list(range(granted[0], granted[0] + 4))
    assert (granted[0] == wish) == (wish % 2 == internal_port % 2)


def test_a_row_that_cannot_begin_evenly_is_none() -> None:
    desk = Desk("allow 7001-7001 0.0.0.0/0 1024-65535")
    assert desk.row(row(4, 7001, 5000, parity=True)) is Refusal.NO_FREE_PORT


def test_a_row_ends_with_the_quota() -> None:
    desk = Desk(quota=3)
    desk.hold(9000, claim=GUARDED)
    assert desk.row(row(8)) == [5000, 5001]
    desk.hold(9001)
    desk.hold(9002)
    assert desk.row(row(8)) is Refusal.QUOTA


def test_a_full_row_can_be_renewed() -> None:
    desk = Desk(quota=3)
    for port in (5000, 5001, 5002):
        desk.hold(port, claim=GUARDED)
    assert desk.row(row(8)) == [5000, 5001, 5002]
    assert desk.row(row(8, 7000, 5000)) == [5000, 5001, 5002], "whatever is wished"


def test_a_row_is_renewed_and_grows() -> None:
    desk = Desk()
    desk.hold(6000, 5000, claim=GUARDED)
    desk.hold(6002, 5002, claim=BY_INTERNAL_ENDPOINT)
    assert desk.row(row(4, 7001, 5000, parity=True)) == [6000, 6001, 6002, 6003]


@pytest.mark.parametrize(
    ("obstacle", "granted"),
    [
        ({"port": 6002, "internal_port": 5002, "claim": OTHER}, [6000, 6001]),  # another's of PCP
        ({"port": 9000, "internal_port": 5002, "claim": GUARDED}, [6000, 6001]),  # mapped to elsewhere already
        ({"port": 6002, "internal_port": 5002}, [6000, 6001, 6002, 6003]),  # UPnP's, and the same
        ({"port": 6002, "internal_port": 5009}, [6000, 6001]),
        ({"port": 6002, "peer": "c2", "address": C2}, [6000, 6001]),
    ],
)
def test_a_row_ends_before_what_belongs_to_something_else(obstacle: dict[str, object], granted: list[int]) -> None:
    desk = Desk()
    desk.hold(6000, 5000, claim=GUARDED)
    desk.hold(**obstacle)  # type: ignore[arg-type]
    assert desk.row(row(4, 6000, 5000)) == granted


def test_a_row_of_ipv6_lies_where_it_lies_inside() -> None:
    desk = Desk()
    asked = replace(row(4, 7001, 5000, parity=True), internal=Endpoint(C1_IPV6, 5000))
    plans = desk.planner.plan_row("c1", asked, NOW)
    assert isinstance(plans, list)
    assert [plan.after and plan.after.mapping for plan in plans] == [
        Pinhole(TCP, Endpoint(C1_IPV6, port), "c1", "", (), GUARDED) for port in range(5000, 5004)
    ]
    desk.table.accept(plans[:2], NOW)
    assert desk.row(asked) == [5000, 5001, 5002, 5003]


def test_the_search_for_a_row_is_bounded() -> None:
    """Nothing has room for two ports: a packet costs no more than a few tries."""
    desk = Desk()
    tried: list[int] = []

    def taken(_: TransportProtocol, port: int) -> bool:
        tried.append(port)
        return port % 2 == 1

    desk.planner = Planner(desk.policy, desk.table, taken, random.Random(1))  # noqa: S311
    granted = desk.row(row(256))
    assert isinstance(granted, list)
    assert len(granted) == 1
    assert len(tried) < 30


# Whatever is asked

rules = st.lists(
    st.builds(
        "{} {}-{} {} {}-{}".format,
        st.sampled_from(["allow", "allow", "deny"]),
        st.integers(5000, 5010),
        st.integers(5010, 5030),
        st.sampled_from(["0.0.0.0/0", "10.100.0.2/32", "::/0"]),
        st.integers(1, 5005),
        st.integers(5005, 65535),
    ),
    min_size=1,
    max_size=3,
)
hosts = st.sampled_from([("c1", C1), ("c1", C1_HOST), ("c2", C2), ("c1", C1_IPV6), ("c2", IPv6Address("2001:db8::3"))])
near = st.one_of(st.integers(4998, 5032), st.integers(65530, 65535), st.sampled_from([5350, 5351]))
asks = st.builds(
    MapPort,
    st.sampled_from(TransportProtocol),
    st.builds(Endpoint, st.just(C1), near),
    near,
    st.integers(0, 90000),
    any_port=st.booleans(),
    claim=st.sampled_from([BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT, GUARDED, OTHER]),
    count=st.integers(1, 12),
    keeps_parity=st.booleans(),
)
steps = st.lists(st.tuples(hosts, asks, st.floats(0, 200)), min_size=1, max_size=12)
taken = st.sets(st.tuples(st.sampled_from(TransportProtocol), st.integers(5000, 5030)), max_size=6)


def check(desk: Desk, peer: str, request: MapPort, plans: list[Change]) -> None:
    """Tell what is wrong with a granted row."""
    assert 1 <= len(plans) <= request.count
    new = sum(plan.before is None for plan in plans)
    assert not new or len(desk.table.of_peer(peer)) + new <= desk.policy.mappings_per_peer
    first = plans[0].key[1]
    for step, plan in enumerate(plans):
        assert plan.after
        mapping = plan.after.mapping
        assert (mapping.protocol, mapping.external_port) == (request.protocol, first + step)
        assert mapping.internal == Endpoint(request.internal.address, request.internal.port + step)
        assert (mapping.protocol, mapping.external_port) not in NEVER | desk.taken or isinstance(mapping, Pinhole)
        assert desk.policy.allows(mapping.external_port, mapping.internal, request.description)
        held = {entry.mapping.key: entry for entry in desk.table}.get(plan.key)
        assert plan.before == held
        assert held is None or held.mapping.peer == peer == mapping.peer
        assert held is None or held.mapping.internal.address == mapping.internal.address
    if plans[0].before is None and request.any_port and request.keeps_parity:
        assert first % 2 == request.internal.port % 2
    if not request.any_port:
        assert first == request.external_port


@given(rules, steps, taken, st.integers(0, 3))
def test_whatever_is_asked_is_granted_within_the_rules(
    texts: list[str],
    wishes: list[tuple[tuple[str, IPv4Address | IPv6Address], MapPort, float]],
    servers: set[Key],
    seed: int,
) -> None:
    desk = Desk(*texts, quota=8, seed=seed)
    desk.taken = servers
    now = NOW
    for (peer, address), asked, later in wishes:
        now += later
        request = replace(asked, internal=Endpoint(address, asked.internal.port))
        plans = desk.planner.plan_row(peer, request, now)
        if isinstance(plans, list):
            check(desk, peer, request, plans)
            desk.table.accept(plans, now)
        elif len(desk.table.of_peer(peer)) and later > 150:
            desk.table.accept([Change(desk.table.of_peer(peer)[0], None)], now)
