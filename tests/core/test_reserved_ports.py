"""Reservations and static mappings are read as written; whoever owns a port owns it alone."""

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import Endpoint, TransportProtocol
from igd.core.policies import Policies
from igd.core.policy import Policy, PortRule
from igd.core.reserved_ports import Reservation, StaticMapping

TCP, UDP = TransportProtocol


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp 25565", Reservation(TCP, range(25565, 25566))),
        ("udp 3000-3010", Reservation(UDP, range(3000, 3011))),
        ("  udp   0-65535 ", Reservation(UDP, range(1, 65536))),
    ],
)
def test_a_reservation_is_parsed(text: str, expected: Reservation) -> None:
    assert Reservation.parse(text) == expected == Reservation.parse(str(expected))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "is not of the form: tcp|udp PORTS"),
        ("tcp", "is not of the form"),
        ("tcp 1 2", "is not of the form"),
        ("25565", "is not of the form"),
        ("TCP 25565", "must begin with tcp or udp"),
        ("tcp x", "'x' is not a range of ports"),
        ("tcp 9-8", "it is backwards; write 8-9"),
    ],
)
def test_what_is_no_reservation_is_refused(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error.replace("|", r"\|")):
        Reservation.parse(text)


@pytest.mark.parametrize("text", ["tcp 443 10.100.0.2 8443", "udp 8443 2001:db8::2 8443"])
def test_a_static_mapping_is_parsed(text: str) -> None:
    protocol, external, address, internal = text.split()
    expected = StaticMapping(
        TransportProtocol[protocol.upper()], int(external), Endpoint(ip_address(address), int(internal))
    )
    assert StaticMapping.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tcp 443 10.100.0.2", "is not of the form: tcp"),
        ("sctp 443 10.100.0.2 443", "must begin with tcp or udp"),
        ("tcp 443-444 10.100.0.2 443", "'443-444' is not one port"),
        ("tcp 0 10.100.0.2 443", "the lowest port is 1"),
        ("tcp 443 10.100.0.0/24 443", "is not an address"),
        ("tcp 443 2001:db8::2 444", "both ports must be the same"),
        ("udp 5351 10.100.0.2 5351", "never mapped"),
    ],
)
def test_what_is_no_static_mapping_is_refused(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        StaticMapping.parse(text)


reservations = st.builds(
    Reservation,
    st.sampled_from(TransportProtocol),
    st.tuples(st.integers(1, 40), st.integers(1, 12)).map(lambda pair: range(pair[0], sum(pair))),
)


@given(st.lists(st.tuples(st.sampled_from("abc"), reservations), max_size=8))
def test_a_port_belongs_to_the_peer_that_reserves_it(rows: list[tuple[str, Reservation]]) -> None:
    """Ports of different peers do not overlap, which the configuration assures; those of one peer may."""
    kept: list[tuple[str, Reservation]] = []
    for key, each in rows:
        if all(key == other or each.overlap(reserved) is None for other, reserved in kept):
            kept.append((key, each))
    by_peer = {key: Policy(reserved=tuple(each for owner, each in kept if owner == key)) for key in "abc"}
    policies = Policies(by_peer=by_peer)
    for protocol in TransportProtocol:
        for port in range(60):
            owners = {key for key, each in kept if each.protocol is protocol and port in each.ports}
            assert {policies.reserved_for(protocol, port)} - {None} == owners
            for key in "abcd":
                assert policies.withholds(key, protocol, port) is bool(owners - {key})
                assert policies.of(key).reserves(protocol, port) is (key in owners)


@given(reservations, reservations)
def test_an_overlap_is_what_both_reserve(first: Reservation, second: Reservation) -> None:
    overlap = first.overlap(second)
    both = set(first.ports) & set(second.ports) if first.protocol is second.protocol else set()
    assert set(overlap.ports if overlap else ()) == both
    assert overlap == second.overlap(first)


def test_static_port_mappings_reserve_their_ports_and_pinholes_do_not() -> None:
    static = tuple(map(StaticMapping.parse, ("tcp 443 10.100.0.2 8443", "udp 22 2001:db8::2 22")))
    policies = Policies(by_peer={"a": Policy(static=static)})
    assert policies.withholds("b", TCP, 443)
    assert not policies.withholds("b", UDP, 22)


def test_a_peer_without_a_section_has_the_default_policy_and_no_name() -> None:
    named = Policy(max_mappings=1)
    policies = Policies(Policy(max_mappings=2), {"key of the laptop": named}, {"key of the laptop": "laptop"})
    assert [policies.of(key).max_mappings for key in ("key of the laptop", "another")] == [1, 2]
    assert [policies.name_of(key) for key in ("key of the laptop", "another")] == ["laptop", ""]
    assert [policies.label(key) for key in ("key of the laptop", "another key")] == ["laptop", "another "]


def test_ports_that_some_peer_may_map_are_tried_and_reserved_ones_are_not() -> None:
    """The test of the NAT in front maps a port for a moment, which may be one of no peer."""
    few = Policy((PortRule.parse("allow 5000-5003 0.0.0.0/0 0-65535"),), reserved=(Reservation.parse("udp 5001"),))
    policies = Policies(Policy(rules=()), {"a": few, "b": replace(few, reserved=(Reservation.parse("tcp 5002"),))})
    assert set(policies.any_candidates(random.Random(1))) == {5000, 5003}
