"""Plans follow the policy, the table and the RFCs: for one port, a renewal, and a port set."""

import random
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address

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
    Entry,
    Key,
    Lease,
    Pinhole,
    PortMapping,
    Remote,
    TransportProtocol,
)
from igd.core.planner import Planner
from igd.core.policy import ANY_UNPRIVILEGED, Policy, PortRule
from igd.core.request import MapPort, Refusal
from igd.core.reserved_ports import NEVER_MAPPED
from igd.core.table import HOLD_DOWN, MAX_REMOTES, Table

C1, C1_HOST, C2 = (IPv4Address(text) for text in ("10.100.0.2", "192.168.7.20", "10.100.0.3"))
C1_IPV6 = IPv6Address("2001:db8::2")
TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
NOW = 1000.0
QUOTA = 64
GUARDED, OTHER = (Claim(by_internal=True, nonce=nonce * 12) for nonce in (b"n", b"o"))


class PlannerHarness:
    """A planner, and the policy and the table that it uses."""

    def __init__(self, *rules: str, quota: int = QUOTA, seed: int = 1) -> None:
        self.policy = Policy(tuple(map(PortRule.parse, rules)) or ANY_UNPRIVILEGED, max_mappings=quota)
        self.table = Table()
        self.taken: set[Key] = set()
        rng = random.Random(seed)
        self.planner = partial(
            Planner, self.policy, self.table, lambda protocol, port: (protocol, port) in self.taken, rng
        )

    def hold(
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
        """Add a mapping to the table; the internal port is the external one by default."""
        internal = Endpoint(address, internal_port or port)
        entry = Entry(PortMapping(protocol, port, internal, peer, "", (), claim), Lease(NOW + lifetime))
        self.table.accept([Change(None, entry)], NOW)
        return entry

    def close(self, entry: Entry) -> None:
        """Remove a mapping from the table."""
        self.table.accept([Change(entry, None)], NOW)

    def plan(self, request: MapPort, peer: str = "c1", now: float = NOW) -> Change | Refusal:
        """Plan one port of the peer."""
        return self.planner(peer, request, now).plan()

    def port(self, request: MapPort, peer: str = "c1", now: float = NOW) -> int | Refusal:
        """Return the granted external port."""
        plan = self.plan(request, peer, now)
        return plan if isinstance(plan, Refusal) else plan.key[1]

    def port_set(self, request: MapPort, peer: str = "c1") -> list[int] | Refusal:
        """Return the granted external ports."""
        plan = self.planner(peer, request, NOW).plan_port_set()
        return plan if isinstance(plan, Refusal) else [change.key[1] for change in plan]


def upnp(port: int, internal_port: int | None = None, *, any_port: bool = False) -> MapPort:
    return MapPort(TCP, Endpoint(C1, internal_port or port), port, 3600, any_port=any_port)


def pcp(port: int, internal_port: int | None = None, *, or_none: bool = False, claim: Claim = GUARDED) -> MapPort:
    internal = Endpoint(C1, internal_port or port)
    return MapPort(TCP, internal, port, 3600, any_port=not or_none, claim=claim, adds_remotes=True)


def natpmp(port: int, internal_port: int | None = None) -> MapPort:
    return pcp(port, internal_port, claim=BY_INTERNAL_ENDPOINT)


def port_set(count: int, port: int = 5000, internal_port: int | None = None, *, parity: bool = False) -> MapPort:
    return replace(pcp(port, internal_port), count=count, keeps_parity=parity)


# Requests by internal endpoint


@pytest.mark.parametrize("first", [GUARDED, BY_INTERNAL_ENDPOINT])
@pytest.mark.parametrize("again", [pcp(7000, 5000), pcp(5000), natpmp(7000, 5000)])
def test_the_mapping_of_an_internal_endpoint_is_renewed_whatever_port_is_suggested(
    first: Claim, again: MapPort
) -> None:
    harness = PlannerHarness()
    held = harness.hold(6000, 5000, claim=first)
    plan = harness.plan(again)
    assert isinstance(plan, Change)
    assert plan.before == held
    assert plan.key == (TCP, 6000)


def test_another_protocol_host_or_peer_gets_another_mapping() -> None:
    harness = PlannerHarness()
    harness.hold(6000, 5000, claim=GUARDED)
    request = pcp(7000, 5000)
    assert harness.port(replace(request, protocol=UDP)) == 7000
    assert harness.port(replace(request, internal=Endpoint(C1_HOST, 5000))) == 7000
    assert harness.port(replace(request, internal=Endpoint(C2, 5000)), "c2") == 7000


def test_another_nonce_is_refused() -> None:
    harness = PlannerHarness()
    harness.hold(6000, 5000, claim=GUARDED)
    assert harness.port(pcp(6000, 5000, claim=OTHER)) is Refusal.OTHER_NONCE


@pytest.mark.parametrize(("suggested", "port"), [(6000, 6000), (7000, 7000)])
def test_a_mapping_by_external_port_is_shared_if_its_port_is_suggested_and_untouched_otherwise(
    suggested: int, port: int
) -> None:
    """Libtorrent requests one port by both protocols; Syncthing requests two."""
    harness = PlannerHarness()
    harness.hold(6000, 5000)
    assert harness.port(pcp(suggested, 5000)) == port


def test_a_mapping_by_external_port_to_another_internal_port_is_never_taken_over() -> None:
    harness = PlannerHarness()
    harness.hold(6000, 5000)
    assert harness.port(pcp(6000, 5001)) not in {6000, Refusal.CONFLICT}
    assert harness.port(pcp(6000, 5001, or_none=True)) is Refusal.CONFLICT


@pytest.mark.parametrize("claim", [GUARDED, BY_INTERNAL_ENDPOINT])
def test_a_request_by_external_port_shares_or_redirects_a_mapping_by_internal_endpoint(claim: Claim) -> None:
    harness = PlannerHarness()
    held = harness.hold(6000, 5000, claim=claim, lifetime=86400)
    plan = harness.plan(upnp(6000, 5000))
    assert isinstance(plan, Change)
    assert plan.after == held, "the nonce and the longer lease are kept"
    moved = harness.plan(upnp(6000, 5001))
    assert isinstance(moved, Change)
    assert moved.after == Entry(
        replace(held.mapping, internal=Endpoint(C1, 5001), claim=BY_EXTERNAL_PORT), Lease(NOW + 3600)
    )
    harness.table.accept([moved], NOW)
    assert harness.port(pcp(6000, 5000)) not in {6000, *Refusal}


def test_a_mapping_that_is_no_longer_allowed_is_not_renewed() -> None:
    harness = PlannerHarness("allow 1024-65535 0.0.0.0/0 6000-65535")
    harness.hold(6000, 5000, claim=GUARDED)
    assert harness.port(pcp(6000, 5000)) is Refusal.FORBIDDEN


def test_a_mapping_whose_port_the_server_now_uses_is_not_renewed() -> None:
    harness = PlannerHarness()
    harness.hold(6000, 5000, claim=GUARDED)
    harness.taken.add((TCP, 6000))
    assert harness.port(pcp(6000, 5000)) is Refusal.CONFLICT


def test_filters_are_added_to_the_previous_ones() -> None:
    harness = PlannerHarness()
    remotes = [Remote(IPv4Network(f"198.51.100.{number}")) for number in range(MAX_REMOTES + 1)]
    for known in range(1, MAX_REMOTES + 1):
        plan = harness.plan(replace(pcp(5000), remotes=(remotes[known - 1],)))
        assert isinstance(plan, Change)
        assert plan.after
        assert plan.after.mapping.remotes == tuple(remotes[:known])
        harness.table.accept([plan], NOW)
    assert harness.port(replace(pcp(5000), remotes=(remotes[-1],))) is Refusal.TOO_MANY_REMOTES
    none = harness.plan(replace(pcp(5000), adds_remotes=False))
    assert isinstance(none, Change)
    assert none.after
    assert none.after.mapping.remotes == ()


MOST = tuple(Remote(IPv4Network(f"198.51.100.{number}")) for number in range(MAX_REMOTES))


def test_the_mappings_of_a_peer_admit_as_many_remotes_as_it_may_have_mappings() -> None:
    harness = PlannerHarness(quota=3 * MAX_REMOTES)
    changes = []
    for port in (5000, 5001, 5002):
        plan = harness.plan(replace(pcp(port), remotes=MOST))
        assert isinstance(plan, Change)
        harness.table.accept([plan], NOW)
        changes.append(plan)
    assert harness.port(replace(pcp(6000), remotes=MOST[:1])) is Refusal.TOO_MANY_REMOTES
    assert harness.port(pcp(6000)) == 6000  # of a mapping without remotes
    assert harness.port(replace(pcp(5000), remotes=MOST)) == 5000  # a renewal
    assert harness.port(replace(pcp(7000), remotes=MOST), "c2") == 7000  # of another peer
    fewer = harness.plan(replace(pcp(5000), remotes=MOST[:8], adds_remotes=False))
    assert isinstance(fewer, Change)
    harness.table.accept([fewer, changes.pop().undone()], NOW)  # there is room for 24 now
    assert harness.port(replace(pcp(6000), remotes=MOST)) == 6000
    assert harness.port_set(replace(port_set(3, 6000), remotes=MOST)) == [6000]
    assert harness.port_set(replace(port_set(30, 6000), remotes=MOST[:1])) == list(range(6000, 6024))


def test_one_mapping_may_admit_the_most_remotes_whatever_the_quota() -> None:
    harness = PlannerHarness(quota=2)
    plan = harness.plan(replace(pcp(5000), remotes=MOST))
    assert isinstance(plan, Change)
    harness.table.accept([plan], NOW)
    assert harness.port(replace(pcp(5001), remotes=MOST[:1])) is Refusal.TOO_MANY_REMOTES
    assert harness.port(pcp(5001)) == 5001


# Any port (AddAnyPortMapping), while the peer has mappings


REMOTE = Remote(IPv4Network("198.51.100.7"))


@pytest.mark.parametrize("claim", [BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT, GUARDED])
@pytest.mark.parametrize(
    "request_",
    [
        upnp(6000, 5001, any_port=True),
        replace(upnp(6000, 5000, any_port=True), internal=Endpoint(C1_HOST, 5000)),
        replace(upnp(6000, 5000, any_port=True), remotes=(REMOTE,)),
        pcp(6000, 5001),
        natpmp(6000, 5001),
    ],
    ids=["another port", "another host", "another remote host", "PCP", "NAT-PMP"],
)
def test_any_port_never_takes_a_port_from_another_program_of_the_peer(request_: MapPort, claim: Claim) -> None:
    harness = PlannerHarness()
    harness.hold(6000, 5000, claim=claim)
    plan = harness.plan(request_)
    assert isinstance(plan, Change)
    assert plan.before is None
    assert plan.key != (TCP, 6000)


def test_any_port_keeps_the_filter_of_the_mapping_that_holds_the_port() -> None:
    harness = PlannerHarness()
    restricted = replace(upnp(6000, 5000), remotes=(REMOTE,))
    first = harness.plan(restricted)
    assert isinstance(first, Change)
    harness.table.accept([first], NOW)
    assert harness.port(upnp(6000, 5000, any_port=True)) not in {6000, *Refusal}
    assert harness.port(replace(restricted, any_port=True)) == 6000


def test_any_port_renews_the_mapping_of_the_same_target() -> None:
    harness = PlannerHarness()
    held = harness.hold(6000, 5000)
    plan = harness.plan(replace(upnp(6000, 5000, any_port=True), description="another"))
    assert isinstance(plan, Change)
    assert (plan.before, plan.key) == (held, (TCP, 6000))


@pytest.mark.parametrize("suggested", [6000, None])
def test_a_port_that_was_granted_instead_is_granted_again(suggested: int | None) -> None:
    """A client that renews with its first wish must not collect mappings."""
    harness = PlannerHarness()
    harness.hold(6000, 5000)
    request = replace(upnp(6000, 5001, any_port=True), external_port=suggested)
    first = harness.plan(request)
    assert isinstance(first, Change)
    harness.table.accept([first], NOW)
    assert harness.port(request) == first.key[1]
    assert harness.port(replace(request, protocol=UDP)) != first.key[1]
    assert harness.port(upnp(7000, 5001, any_port=True)) == 7000


def test_this_port_replaces_the_peers_own_mapping() -> None:
    harness = PlannerHarness()
    held = harness.hold(6000, 5000)
    plan = harness.plan(upnp(6000, 5001))
    assert isinstance(plan, Change)
    assert plan.before == held


# One port inside and outside (NAT-PMP with internal port 0)


def same_port(suggested: int | None = None, protocol: TransportProtocol = UDP, address: IPv4Address = C1) -> MapPort:
    request = replace(natpmp(1), protocol=protocol, internal=Endpoint(address, 0), external_port=suggested)
    return replace(request, description=SAME_PORT, lifetime=60)


def grant(harness: PlannerHarness, request: MapPort, peer: str = "c1") -> int:
    """Carry out a request, and return the port, which is the same on both sides."""
    plan = harness.plan(request, peer)
    assert isinstance(plan, Change), plan
    assert plan.after
    harness.table.accept([plan], NOW)
    assert plan.after.mapping.external_port == plan.after.mapping.internal.port
    assert plan.after.mapping.internal.address == request.internal.address
    return plan.after.mapping.external_port


@pytest.mark.parametrize("first", TransportProtocol)
def test_one_port_is_granted_for_both_protocols_and_again(first: TransportProtocol) -> None:
    harness = PlannerHarness()
    port = grant(harness, same_port(protocol=first))
    assert 1024 <= port <= 65535
    for suggested in (None, port):
        for protocol in (first.companion, first):
            assert grant(harness, same_port(suggested, protocol)) == port
            assert grant(harness, replace(natpmp(port), protocol=protocol)) == port
    assert harness.table.find("c1", (first, port))
    assert len(harness.table) == 2


def test_a_mapped_port_is_kept_whatever_is_suggested() -> None:
    harness = PlannerHarness()
    port = grant(harness, same_port(7000))
    assert port == 7000
    assert grant(harness, same_port(7001)) == port
    assert grant(harness, same_port(80)) == port
    assert grant(harness, same_port(7001, TCP)) == 7001
    assert grant(harness, same_port(None, TCP)) == 7001


def test_the_port_is_recognised_after_a_restart() -> None:
    before, after = PlannerHarness(), PlannerHarness(seed=2)
    port = grant(before, same_port())
    after.table.accept([Change(None, entry) for entry in before.table], NOW)
    assert grant(after, same_port()) == port
    assert grant(after, same_port(protocol=TCP)) == port


@pytest.mark.parametrize("claim", [BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT, GUARDED])
def test_another_mapping_of_the_host_is_renewed_only_if_its_port_is_suggested(claim: Claim) -> None:
    harness = PlannerHarness()
    harness.hold(6000, claim=claim, protocol=UDP)
    assert grant(harness, same_port(6000)) == 6000
    other = PlannerHarness()
    other.hold(6000, claim=claim, protocol=UDP)
    assert grant(other, same_port()) != 6000


def test_a_program_that_maps_the_port_by_other_protocols_does_not_hide_it() -> None:
    """As a torrent client does that was told to use the port."""
    harness = PlannerHarness()
    port = grant(harness, same_port(protocol=TCP))
    for request in (replace(upnp(port), description="torrent"), pcp(port)):
        plan = harness.plan(request)
        assert isinstance(plan, Change)
        harness.table.accept([plan], NOW)
    assert grant(harness, same_port(protocol=TCP)) == port
    assert grant(harness, same_port()) == port


@pytest.mark.parametrize("any_port", [False, True])
def test_the_port_is_reserved_for_the_hosts_other_protocol(any_port: bool) -> None:
    harness = PlannerHarness()
    port = grant(harness, same_port())
    for peer, address in (("c2", C2), ("c1", C1_HOST)):
        request = replace(upnp(port, any_port=any_port), internal=Endpoint(address, port))
        outcome = harness.port(request, peer)
        assert outcome is Refusal.CONFLICT if not any_port else outcome not in {port, *Refusal}
    assert harness.port(upnp(port, 22, any_port=any_port)) is Refusal.FORBIDDEN
    assert harness.port(upnp(port, any_port=any_port)) == port


def test_other_mappings_reserve_nothing() -> None:
    harness = PlannerHarness()
    harness.hold(6000, protocol=UDP, claim=BY_INTERNAL_ENDPOINT)
    assert harness.port(replace(upnp(6000), internal=Endpoint(C2, 6000)), "c2") == 6000


def test_two_hosts_get_different_ports() -> None:
    harness = PlannerHarness("allow 7000-7001 0.0.0.0/0 1024-65535")
    first = grant(harness, same_port())
    second = grant(harness, same_port(protocol=TCP, address=C2), "c2")
    assert {first, second} == {7000, 7001}
    assert grant(harness, same_port(first, UDP, C2), "c2") == second
    assert harness.port(same_port(address=C1_HOST)) is Refusal.NO_FREE_PORT


@pytest.mark.parametrize(
    "held",
    [
        {"protocol": UDP, "internal_port": 5000},
        {"protocol": TCP, "internal_port": 5000},
        {"protocol": UDP, "peer": "c2", "address": C2},
        {"protocol": TCP, "peer": "c2", "address": C2},
    ],
)
def test_a_port_that_is_in_use_by_either_protocol_is_not_chosen(held: dict[str, object]) -> None:
    harness = PlannerHarness("allow 7000-7001 0.0.0.0/0 1024-65535")
    harness.hold(7000, **held)  # type: ignore[arg-type]
    assert harness.port(same_port()) == 7001
    assert harness.port(same_port(7000)) == 7001


@pytest.mark.parametrize("protocol", TransportProtocol)
def test_a_port_that_the_server_uses_by_either_protocol_is_not_chosen(protocol: TransportProtocol) -> None:
    harness = PlannerHarness("allow 7000-7001 0.0.0.0/0 1024-65535")
    harness.taken.add((protocol, 7000))
    assert harness.port(same_port()) == 7001
    assert harness.port(same_port(7000)) == 7001


def test_the_ports_of_nat_pmp_and_pcp_are_not_chosen_for_tcp_either() -> None:
    harness = PlannerHarness("allow 5350-5352 0.0.0.0/0 1024-65535")
    assert harness.port(same_port(5351, TCP)) == 5352


def test_a_companion_that_leads_elsewhere_meanwhile_is_left_alone() -> None:
    harness = PlannerHarness()
    port = grant(harness, same_port())
    harness.hold(port, 5000)
    assert grant(harness, same_port(protocol=TCP)) != port
    assert grant(harness, same_port()) == port


@pytest.mark.parametrize(
    ("rules", "outcome"),
    [
        (["allow 7000-7003 0.0.0.0/0 7003-7010"], 7003),
        (["deny 7000-7010 10.100.0.2 7000-7002", "allow 7000-7003 0.0.0.0/0 7000-7003"], 7003),
        (["allow 7000 0.0.0.0/0 7001"], Refusal.FORBIDDEN),
        (["allow 7000 10.100.0.3 7000"], Refusal.FORBIDDEN),
        (['allow 7000 0.0.0.0/0 7000 "NAT-PMP"'], 7000),
        (["allow 0-1 0.0.0.0/0 0-1"], 1),
    ],
)
def test_the_rules_hold_for_the_port_inside_and_outside(rules: list[str], outcome: int | Refusal) -> None:
    assert PlannerHarness(*rules).port(same_port()) == outcome


def test_the_quota_counts_both_protocols() -> None:
    harness = PlannerHarness(quota=1)
    grant(harness, same_port())
    assert harness.port(same_port(protocol=TCP)) is Refusal.QUOTA


def test_a_port_that_was_closed_is_given_back_if_suggested() -> None:
    harness = PlannerHarness()
    port = grant(harness, same_port())
    (entry,) = harness.table
    harness.close(entry)
    assert harness.port(same_port(port, UDP, C2), "c2") != port
    assert harness.port(same_port(port)) == port


# This port or none (PREFER_FAILURE)


def test_a_free_port_is_granted() -> None:
    assert PlannerHarness().port(pcp(7000, 5000, or_none=True)) == 7000


@pytest.mark.parametrize(
    ("held", "refusal"),
    [
        ({"peer": "c2", "address": C2}, Refusal.CONFLICT),
        ({"address": C1_HOST}, Refusal.CONFLICT),
        ({"internal_port": 5001, "claim": GUARDED}, Refusal.CONFLICT),
        ({"peer": "c2", "address": C2, "protocol": UDP}, Refusal.CONFLICT),  # the companion port
        ({"protocol": UDP}, None),
    ],
)
def test_a_port_that_is_mapped_for_another_endpoint_is_a_conflict(
    held: dict[str, object], refusal: Refusal | None
) -> None:
    harness = PlannerHarness()
    harness.hold(7000, **held)  # type: ignore[arg-type]
    assert harness.port(pcp(7000, 5000, or_none=True)) == (refusal or 7000)


def test_another_port_than_the_mapped_one_is_a_conflict() -> None:
    harness = PlannerHarness()
    harness.hold(6000, 5000, claim=GUARDED)
    assert harness.port(pcp(7000, 5000, or_none=True)) is Refusal.CONFLICT
    assert harness.port(pcp(6000, 5000, or_none=True)) == 6000


def test_a_forbidden_port_is_refused() -> None:
    assert PlannerHarness().port(pcp(80, 5000, or_none=True)) is Refusal.FORBIDDEN


# Reserved ports


@pytest.mark.parametrize(("protocol", "port"), sorted(NEVER_MAPPED))
def test_the_ports_of_nat_pmp_and_pcp_are_never_mapped(protocol: TransportProtocol, port: int) -> None:
    """RFC 6887 §11.3."""
    harness = PlannerHarness()
    suggested = replace(pcp(port, 5000), protocol=protocol)
    assert harness.port(suggested) not in {port, *Refusal}
    assert harness.port(replace(suggested, any_port=False)) is Refusal.CONFLICT
    assert harness.port(replace(upnp(port, 5000), protocol=protocol)) is Refusal.CONFLICT
    assert harness.port(replace(suggested, protocol=TCP)) == port
    pinhole = replace(suggested, internal=Endpoint(C1_IPV6, port))
    assert harness.port(pinhole) is Refusal.FORBIDDEN
    assert harness.port(replace(pinhole, internal=Endpoint(C1_IPV6, 5000))) == 5000


def test_if_only_reserved_ports_are_allowed_no_port_is_free() -> None:
    harness = PlannerHarness("allow 5350-5351 0.0.0.0/0 1-65535")
    assert harness.port(replace(pcp(5000), protocol=UDP)) is Refusal.NO_FREE_PORT
    assert harness.port_set(replace(port_set(2), protocol=UDP)) is Refusal.NO_FREE_PORT


# Hold-down and companion ports


def test_a_closed_port_is_held_down_for_the_peer_that_held_it() -> None:
    """RFC 6887 §15."""
    harness = PlannerHarness()
    harness.close(harness.hold(5000, claim=GUARDED))
    foreign = replace(pcp(5000), internal=Endpoint(C2, 5000))
    assert harness.port(pcp(5000)) == 5000
    for request in (foreign, replace(foreign, any_port=False), replace(foreign, claim=BY_EXTERNAL_PORT)):
        expected = {5000} if request.any_port else set()
        granted = harness.port(request, "c2")
        assert granted not in expected
        assert (granted is Refusal.CONFLICT) != request.any_port
        assert harness.port(request, "c2", NOW + HOLD_DOWN) == 5000


def test_a_request_by_external_port_may_name_a_port_that_is_held_down() -> None:
    harness = PlannerHarness()
    harness.close(harness.hold(5000, claim=GUARDED))
    assert harness.port(replace(upnp(5000), internal=Endpoint(C2, 5000)), "c2") == 5000


@pytest.mark.parametrize("requested", [natpmp(5000), pcp(5000), upnp(5000, any_port=True)])
def test_the_companion_port_is_kept_for_the_same_host(requested: MapPort) -> None:
    """RFC 6886 §3.3."""
    harness = PlannerHarness()
    harness.hold(5000, protocol=UDP, claim=BY_INTERNAL_ENDPOINT)
    assert harness.port(requested) == 5000
    assert harness.port(replace(requested, internal=Endpoint(C1_HOST, 5000))) not in {5000, *Refusal}
    assert harness.port(replace(requested, internal=Endpoint(C2, 5000)), "c2") not in {5000, *Refusal}


# Port sets (RFC 7753)


def test_a_port_set_starts_at_the_suggested_port() -> None:
    harness = PlannerHarness()
    plans = harness.planner("c1", port_set(4, 7000, 5000), NOW).plan_port_set()
    assert isinstance(plans, list)
    entries = [plan.after for plan in plans]
    assert [entry and str(entry.mapping) for entry in entries] == [
        f"TCP {7000 + step} -> 10.100.0.2:{5000 + step}" for step in range(4)
    ]


def test_a_port_set_of_one_port_equals_the_plan_for_one_port() -> None:
    harness = PlannerHarness()
    request = pcp(7000, 5000)
    assert harness.planner("c1", request, NOW).plan_port_set() == [harness.plan(request)]
    assert harness.port_set(pcp(80, 5000, or_none=True)) is Refusal.FORBIDDEN


def test_a_port_set_avoids_ports_that_are_taken() -> None:
    harness = PlannerHarness()
    harness.hold(5002, peer="c2", address=C2)
    granted = harness.port_set(port_set(4))
    assert isinstance(granted, list)
    assert granted == list(range(granted[0], granted[0] + 4))
    assert 5002 not in granted


def test_a_port_set_that_fits_nowhere_is_shortened() -> None:
    harness = PlannerHarness("allow 5000-5009 0.0.0.0/0 1024-65535")
    harness.taken = {(TCP, 5003), (TCP, 5006)}
    granted = harness.port_set(port_set(5))
    assert isinstance(granted, list)
    assert granted == [port for port in range(granted[0], granted[0] + 3) if port not in {5003, 5006}]
    assert len(granted) >= 2


@pytest.mark.parametrize(("port", "internal_port"), [(65534, 5000), (5000, 65534), (65534, 65534)])
def test_a_port_set_ends_at_port_65535(port: int, internal_port: int) -> None:
    harness = PlannerHarness("allow 65000-65535 0.0.0.0/0 1-65535", "allow 5000-5009 0.0.0.0/0 1-65535")
    plans = harness.planner("c1", port_set(4, port, internal_port), NOW).plan_port_set()
    assert isinstance(plans, list)
    assert len(plans) == (2 if internal_port == 65534 else 4), (
        "another place is found if only the external ports run out"
    )
    for plan in plans:
        assert plan.after
        assert plan.key[1] <= 65535
        assert plan.after.mapping.internal.port <= 65535


def test_a_port_set_leads_only_to_allowed_internal_ports() -> None:
    harness = PlannerHarness("allow 1024-65535 0.0.0.0/0 5000-5002")
    assert harness.port_set(port_set(8)) == [5000, 5001, 5002]


@pytest.mark.parametrize(("internal_port", "suggested"), [(5000, 7001), (5001, 7000), (5000, 7000), (5001, 7001)])
def test_a_port_set_keeps_the_parity_of_the_internal_port_on_request(internal_port: int, suggested: int) -> None:
    granted = PlannerHarness().port_set(port_set(4, suggested, internal_port, parity=True))
    assert isinstance(granted, list)
    assert granted[0] % 2 == internal_port % 2
    assert granted == list(range(granted[0], granted[0] + 4))
    assert (granted[0] == suggested) == (suggested % 2 == internal_port % 2)


def test_a_port_set_that_cannot_keep_the_parity_is_refused() -> None:
    harness = PlannerHarness("allow 7001-7001 0.0.0.0/0 1024-65535")
    assert harness.port_set(port_set(4, 7001, 5000, parity=True)) is Refusal.NO_FREE_PORT


def test_the_quota_shortens_a_port_set() -> None:
    harness = PlannerHarness(quota=3)
    harness.hold(9000, claim=GUARDED)
    assert harness.port_set(port_set(8)) == [5000, 5001]
    harness.hold(9001)
    harness.hold(9002)
    assert harness.port_set(port_set(8)) is Refusal.QUOTA


def test_a_port_set_that_fills_the_quota_can_be_renewed() -> None:
    harness = PlannerHarness(quota=3)
    for port in (5000, 5001, 5002):
        harness.hold(port, claim=GUARDED)
    assert harness.port_set(port_set(8)) == [5000, 5001, 5002]
    assert harness.port_set(port_set(8, 7000, 5000)) == [5000, 5001, 5002], "whatever port is suggested"


def test_a_port_set_is_renewed_and_extended() -> None:
    harness = PlannerHarness()
    harness.hold(6000, 5000, claim=GUARDED)
    harness.hold(6002, 5002, claim=BY_INTERNAL_ENDPOINT)
    assert harness.port_set(port_set(4, 7001, 5000, parity=True)) == [6000, 6001, 6002, 6003]


@pytest.mark.parametrize(
    ("obstacle", "granted"),
    [
        ({"port": 6002, "internal_port": 5002, "claim": OTHER}, [6000, 6001]),  # guarded by another nonce
        ({"port": 9000, "internal_port": 5002, "claim": GUARDED}, [6000, 6001]),  # mapped at another port
        ({"port": 6002, "internal_port": 5002}, [6000, 6001, 6002, 6003]),  # the same mapping, by external port
        ({"port": 6002, "internal_port": 5009}, [6000, 6001]),
        ({"port": 6002, "peer": "c2", "address": C2}, [6000, 6001]),
    ],
)
def test_a_port_set_ends_before_an_obstacle(obstacle: dict[str, object], granted: list[int]) -> None:
    harness = PlannerHarness()
    harness.hold(6000, 5000, claim=GUARDED)
    harness.hold(**obstacle)  # type: ignore[arg-type]
    assert harness.port_set(port_set(4, 6000, 5000)) == granted


def test_a_port_set_of_pinholes_has_the_internal_ports() -> None:
    harness = PlannerHarness()
    request = replace(port_set(4, 7001, 5000, parity=True), internal=Endpoint(C1_IPV6, 5000))
    plans = harness.planner("c1", request, NOW).plan_port_set()
    assert isinstance(plans, list)
    planned = [plan.after.mapping for plan in plans if plan.after]
    unique_ids = [each.unique_id for each in planned if isinstance(each, Pinhole)]
    assert len(set(unique_ids)) == 4
    assert planned == [
        Pinhole(TCP, Endpoint(C1_IPV6, port), "c1", "", (), GUARDED, unique_id)
        for port, unique_id in zip(range(5000, 5004), unique_ids, strict=True)
    ]
    harness.table.accept(plans[:2], NOW)
    assert harness.port_set(request) == [5000, 5001, 5002, 5003]


def test_the_search_for_a_port_set_is_bounded() -> None:
    """There is no room for two consecutive ports anywhere, and the search still ends after a few attempts."""
    harness = PlannerHarness()
    tried: list[int] = []

    def taken(_: TransportProtocol, port: int) -> bool:
        tried.append(port)
        return port % 2 == 1

    harness.planner = partial(Planner, harness.policy, harness.table, taken, random.Random(1))
    granted = harness.port_set(port_set(256))
    assert isinstance(granted, list)
    assert len(granted) == 1
    assert len(tried) < 30


# Any request

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
same_ports = st.builds(same_port, st.one_of(st.none(), near), st.sampled_from(TransportProtocol))
steps = st.lists(st.tuples(hosts, st.one_of(asks, same_ports), st.floats(0, 200)), min_size=1, max_size=12)
taken = st.sets(st.tuples(st.sampled_from(TransportProtocol), st.integers(5000, 5030)), max_size=6)


def check(harness: PlannerHarness, peer: str, request: MapPort, plans: list[Change]) -> None:
    """Assert that a granted port set follows the policy, the table and the request."""
    assert 1 <= len(plans) <= request.count
    new = sum(plan.before is None for plan in plans)
    assert not new or len(harness.table.of_peer(peer)) + new <= harness.policy.max_mappings
    first = plans[0].key[1]
    for step, plan in enumerate(plans):
        assert plan.after
        mapping = plan.after.mapping
        assert (mapping.protocol, mapping.external_port) == (request.protocol, first + step)
        assert mapping.internal == Endpoint(request.internal.address, (request.internal.port or first) + step)
        assert (mapping.protocol, mapping.external_port) not in NEVER_MAPPED | harness.taken or isinstance(
            mapping, Pinhole
        )
        assert harness.policy.allows(mapping.protocol, mapping.external_port, mapping.internal, request.description)
        held = {entry.mapping.key: entry for entry in harness.table}.get(plan.key)
        assert plan.before == held
        assert held is None or held.mapping.peer == peer == mapping.peer
        assert held is None or held.mapping.internal.address == mapping.internal.address
        assert held is None or not request.any_port or step or held.mapping.internal == mapping.internal
    if plans[0].before is None and request.any_port and request.keeps_parity:
        assert first % 2 == request.internal.port % 2
    if not request.any_port:
        assert first == request.external_port


def check_reserved_companions(harness: PlannerHarness) -> None:
    """Assert that no host has the other half of a port that the gateway chose for another one."""
    held = {entry.mapping.key: entry.mapping for entry in harness.table if isinstance(entry.mapping, PortMapping)}
    for (protocol, port), mapping in held.items():
        companion = held.get((protocol.companion, port))
        if mapping.reserves_companion and companion is not None:
            assert companion.internal.address == mapping.internal.address


@given(rules, steps, taken, st.integers(0, 3))
def test_every_grant_follows_the_policy(
    texts: list[str],
    requests: list[tuple[tuple[str, IPv4Address | IPv6Address], MapPort, float]],
    servers: set[Key],
    seed: int,
) -> None:
    harness = PlannerHarness(*texts, quota=8, seed=seed)
    harness.taken = servers
    now = NOW
    for (peer, address), drawn, later in requests:
        now += later
        if drawn.internal.port == 0 and address.version == 6:
            continue  # NAT-PMP has no IPv6
        request = replace(drawn, internal=Endpoint(address, drawn.internal.port))
        plans = harness.planner(peer, request, now).plan_port_set()
        if isinstance(plans, list):
            check(harness, peer, request, plans)
            harness.table.accept(plans, now)
            check_reserved_companions(harness)
        elif len(harness.table.of_peer(peer)) and later > 150:
            harness.table.accept([Change(harness.table.of_peer(peer)[0], None)], now)
