"""The first matching rule decides, and only allowed ports are candidates."""

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import Endpoint, Lease, TransportProtocol, parse_ports
from igd.core.policy import CANDIDATES, Policy, PortRule
from igd.core.request import ENDLESS
from igd.core.reserved_ports import Reservation, StaticMapping

C1 = IPv4Address("10.100.0.2")
TCP, UDP = TransportProtocol
WEB = Endpoint(C1, 8080)


def rng(seed: int) -> random.Random:
    return random.Random(seed)


def policy(*rules: str) -> Policy:
    return Policy(tuple(map(PortRule.parse, rules)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8080", range(8080, 8081)), ("0-65535", range(65536)), ("1024-1024", range(1024, 1025))],
)
def test_a_port_range_is_parsed(text: str, expected: range) -> None:
    assert parse_ports(text) == expected
    assert parse_ports(str(PortRule.parse(f"allow {text} ::/0 80")).split()[1]) == expected


@pytest.mark.parametrize(
    "text", ["", "-", "1-", "-1", "70000", "1-65536", "9-8", "1 - 2", "0x10", "123456", "\u0661", "a"]
)
def test_text_that_is_no_port_range_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a range of ports such as"):
        parse_ports(text)


def test_a_rule_has_the_grammar_of_miniupnpd() -> None:
    rule = PortRule.parse('deny 1024-65535 10.100.0.0/16 80 "^(a b|c\'d)#"')
    assert (rule.allow, rule.external, rule.network, rule.internal) == (
        False,
        range(1024, 65536),
        IPv4Network("10.100.0.0/16"),
        range(80, 81),
    )
    assert rule.description
    assert rule.description.pattern == "^(a b|c'd)#"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("", "is not of the form"),
        ("allow 80 10.0.0.0/8", "is not of the form"),
        ("permit 80 10.0.0.0/8 80", "is not of the form"),
        ("allow 80 10.0.0.0/8 80 a b", "is not of the form"),
        ("allow 80 10.0.0.0/33 80", "is not an address or a network"),
        ("allow 80 fd00::/129 80", "is not an address or a network"),
        ("allow 80 10.0.0.0/8 80 regex", "is not a regular expression in double quotes"),
        ('allow 80 10.0.0.0/8 80 "("', "is not a regular expression: "),
        ('allow 80 10.0.0.0/8 80 "', "No closing quotation"),
        ("allow 80-79 10.0.0.0/8 80", "'80-79' is not a range of ports .*: it is backwards; write 79-80"),
        ("allow 65535-1024 10.0.0.0/8 80", "backwards; write 1024-65535"),
        ("allow 0 10.0.0.0/8 80", "the lowest port is 1; write 0-65535 for all ports"),
        ("allow 80 10.0.0.0/8 0-0", "the lowest port is 1"),
        ("allow 80 10.0.0.0/8 65536", "the highest port is 65535"),
        ("allow 99999-80 10.0.0.0/8 80", "the highest port is 65535"),
        ("allow 80 10.1.0.7/16 80", "is an address and a network; write 10.1.0.0/16 or 10.1.0.7"),
        ("allow 80 10.1.0.7/255.255.0.0 80", "write 10.1.0.0/16 or 10.1.0.7"),
        ("allow 80 2001:db8::1/64 80", "write 2001:db8::/64 or 2001:db8::1"),
    ],
)
def test_text_that_is_no_rule_is_an_error_with_the_reason(text: str, warning: str) -> None:
    with pytest.raises(ValueError, match=warning):
        PortRule.parse(text)


networks = st.builds(
    lambda number, length: IPv4Network((number, length), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
ports = st.integers(0, 65535)
port_ranges = ports.filter(bool).map(str) | st.lists(ports, min_size=2, max_size=2, unique=True).map(
    lambda pair: f"{min(pair)}-{max(pair)}"
)


@given(
    allow=st.booleans(),
    external=port_ranges,
    network=networks,
    internal=port_ranges,
    pattern=st.none() | st.sampled_from([".*", "^a b$", r"\bx\b", "'", "#", "ü", "\\\\"]),
)
def test_the_text_of_a_rule_is_the_text_it_was_parsed_from(
    *,
    allow: bool,
    external: str,
    network: IPv4Network,
    internal: str,
    pattern: str | None,
) -> None:
    words = ["allow" if allow else "deny", external, str(network), internal]
    text = " ".join(words if pattern is None else [*words, f'"{pattern}"'])
    assert str(PortRule.parse(text)) == text


ORDERED = policy(
    "deny 5000 0.0.0.0/0 0-65535",
    "allow 5000-5010 10.100.0.0/24 8080",
    'allow 5000-5020 10.100.0.0/16 0-65535 "^torrent"',
)


@pytest.mark.parametrize(
    ("port", "internal", "description", "allowed"),
    [
        (5000, WEB, "torrent", False),  # the first match decides
        (5001, WEB, "", True),
        (5010, WEB, "", True),
        (5011, WEB, "", False),
        (5011, WEB, "torrent", True),
        (5011, WEB, "a torrent", False),
        (5001, Endpoint(C1, 8081), "", False),
        (5001, Endpoint(IPv4Address("10.100.1.2"), 8080), "", False),
        (5001, Endpoint(IPv4Address("10.101.0.2"), 8080), "torrent", False),
        (4999, WEB, "torrent", False),  # no match denies
    ],
)
def test_the_first_rule_that_matches_decides(port: int, internal: Endpoint, description: str, *, allowed: bool) -> None:
    assert ORDERED.allows(TCP, port, internal, description) is allowed


@pytest.mark.parametrize(
    ("external", "internal", "allowed"),
    [(1024, 1024, True), (65535, 65535, True), (1023, 1024, False), (1024, 1023, False), (80, 80, False)],
)
def test_unprivileged_ports_are_allowed_by_default(external: int, internal: int, *, allowed: bool) -> None:
    assert Policy().allows(TCP, external, Endpoint(C1, internal), "") is allowed


def test_no_rules_allow_nothing() -> None:
    assert not policy().allows(TCP, 5000, WEB, "")
    assert list(policy().candidates(TCP, WEB, "", rng(1))) == []


@pytest.mark.parametrize(
    ("asked", "lease"),
    [
        (60, Lease(160.0)),
        (3600, Lease(3700.0)),
        (3601, Lease(3700.0)),
        (2**32 - 1, Lease(3700.0)),
        (ENDLESS, Lease(1900.0, endless=True)),
    ],
)
def test_leases_are_cut_to_the_maximum_and_endless_ones_have_the_default(asked: int, lease: Lease) -> None:
    assert Policy(max_lifetime=3600, default_lifetime=1800).lease(asked, 100.0) == lease


small_ports = st.integers(0, 40)
small_ranges = st.tuples(small_ports, small_ports).map(lambda pair: range(min(pair), max(pair) + 1))
small_rules = st.lists(
    st.builds(
        PortRule,
        st.booleans(),
        small_ranges,
        st.sampled_from([IPv4Network("10.100.0.0/16"), IPv4Network("10.101.0.0/16")]),
        small_ranges,
    ),
    max_size=6,
).map(tuple)


@given(small_rules, small_ports, st.randoms(use_true_random=False))
def test_all_allowed_ports_are_candidates(rules: tuple[PortRule, ...], internal_port: int, rng: random.Random) -> None:
    internal = Endpoint(C1, internal_port)
    judge = Policy(rules)
    allowed = {port for port in range(1, 100) if judge.allows(TCP, port, internal, "")}
    candidates = list(judge.candidates(TCP, internal, "", rng))
    assert sorted(candidates) == sorted(allowed)


def test_a_limited_number_of_distinct_random_ports_are_candidates() -> None:
    candidates = list(Policy().candidates(TCP, WEB, "", rng(1)))
    assert len(candidates) == len(set(candidates)) == CANDIDATES
    assert candidates != list(Policy().candidates(TCP, WEB, "", rng(2)))
    assert max(candidates) > 60000
    assert min(candidates) < 5000


def test_few_allowed_ports_among_many_denied_are_all_candidates() -> None:
    narrow = policy("deny 1024-65500 0.0.0.0/0 0-65535", "allow 1024-65535 0.0.0.0/0 0-65535")
    assert sorted(narrow.candidates(TCP, WEB, "", rng(1))) == list(range(65501, 65536))


def test_candidates_for_any_mapping_are_those_of_the_rules_for_ipv4() -> None:
    rules = policy("deny 5001 0.0.0.0/0 1-2", "allow 5000-5003 10.0.0.0/8 80", "allow 6000 ::/0 6000")
    assert sorted(rules.any_candidates(rng(1))) == [5000, 5002, 5003]
    assert list(policy().any_candidates(rng(1))) == []
    assert len(list(Policy().any_candidates(rng(1)))) == CANDIDATES


# Ports that are reserved for the peer

OWN = Policy(
    (PortRule.parse("allow 25560-25566 0.0.0.0/0 0-65535"), PortRule.parse("deny 0-65535 0.0.0.0/0 0-65535")),
    reserved=(Reservation.parse("tcp 25565-25567"),),
    static=(StaticMapping.parse("udp 9000 10.100.0.2 9"),),
)


@pytest.mark.parametrize(
    ("protocol", "port", "allowed"),
    [
        (TCP, 25565, True),
        (TCP, 25567, True),
        (UDP, 25567, False),
        (UDP, 25566, True),
        (UDP, 9000, True),
        (TCP, 9000, False),
    ],
)
def test_the_rules_do_not_concern_reserved_ports(protocol: TransportProtocol, port: int, *, allowed: bool) -> None:
    assert OWN.allows(protocol, port, Endpoint(C1, 1), "") is allowed


def test_reserved_ports_are_the_last_that_the_gateway_chooses() -> None:
    """Whoever reserves a port for a game must not find it taken by its own torrent client."""
    candidates = list(OWN.candidates(TCP, WEB, "", rng(1)))
    assert sorted(candidates[:5]) == [25560, 25561, 25562, 25563, 25564]
    assert candidates[5:] == [25565, 25566, 25567]
    assert sorted(OWN.candidates(UDP, WEB, "", rng(1))) == [9000, *range(25560, 25567)]


def test_a_peer_without_rules_is_given_its_reserved_ports() -> None:
    own = Policy((), reserved=(Reservation.parse("tcp 3000-3001"),))
    assert list(own.candidates(TCP, WEB, "", rng(1))) == [3000, 3001]
    assert list(own.candidates(UDP, WEB, "", rng(1))) == []


@pytest.mark.parametrize(("asked", "granted"), [(1, 300), (299, 300), (300, 300), (301, 301), (4000, 3600)])
def test_a_lease_is_within_the_shortest_and_the_longest(asked: int, granted: int) -> None:
    assert Policy(min_lifetime=300, max_lifetime=3600).lease(asked, 100.0) == Lease(100.0 + granted)


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ((), False),
        (("allow 1024-65535 0.0.0.0/0 1024-65535",), False),
        (("allow 80 ::/0 80",), True),
        (("allow 80 ::/0 8080",), False),  # no pinhole has different ports
        (("deny 0-65535 ::/0 0-65535", "allow 80 ::/0 80"), False),
        (("deny 0-65535 2001:db8::/32 0-65535", "allow 80 ::/0 80"), True),  # elsewhere
        (("deny 0-65535 ::/0 0-65535", "allow 80 2001:db8::/64 80"), False),
        (("deny 1-79 ::/0 0-65535", "deny 80-90 ::/0 80-90", "allow 60-90 ::/0 60-90"), False),  # both together
        (("deny 1-79 ::/0 0-65535", "deny 81-90 ::/0 0-65535", "allow 60-90 ::/0 60-90"), True),
        (('deny 0-65535 ::/0 0-65535 "torrent"', "allow 80 ::/0 80"), True),  # with another description
        (("deny 80 ::/0 81", "allow 80 ::/0 80"), True),  # it is about no pinhole
        (("deny 0-65535 0.0.0.0/0 0-65535", "allow 80 ::/0 80"), True),
    ],
)
def test_whether_the_rules_allow_some_pinhole(rules: tuple[str, ...], *, allowed: bool) -> None:
    assert policy(*rules).allows_pinholes() is allowed


def test_a_reserved_port_of_ipv4_permits_no_pinhole() -> None:
    reserving = Policy((PortRule.parse("allow 8080 ::/0 8080"),), reserved=(Reservation.parse("tcp 22"),))
    inside = IPv6Address("2001:db8::2")
    assert reserving.allows(TCP, 22, Endpoint(C1, 22), "")
    assert not reserving.allows(TCP, 22, Endpoint(inside, 22), "")
    assert reserving.allows(TCP, 8080, Endpoint(inside, 8080), "")
