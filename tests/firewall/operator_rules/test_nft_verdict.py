"""Verdicts on nft's own forward chains: rule sets as operators have them, and random ones tried with packets."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, event, given, reject, settings
from hypothesis import strategies as st

from igd.firewall.operator_rules.nft_rules import Table, parse
from igd.firewall.operator_rules.packet import Version, packets
from igd.firewall.operator_rules.verdict import Obstacle, find_obstacle
from igd.firewall.site import Site
from tests.firewall.calling import call_from_remote, listener
from tests.firewall.mapped_flows import MAPPED, PORT
from tests.firewall.three_hosts import PEERS, REMOTE, ThreeHosts, run, three_hosts

SITE = Site("ext0", "wg0", PEERS, hairpin=False)
CAPTURES = Path(__file__).parents[2] / "captures" / "firewalld"
EXAMPLES = Path("/usr/share/doc/nftables/examples")

ANSWERS = "ct state established,related accept\n"
VMAP = "ct state vmap { established : accept, related : accept, invalid : drop }\n"
BOTH_WAYS = 'iifname "wg0" accept\noifname "wg0" accept\n'

# (what it is, the chain's policy, its rules, the obstacle: None where mapped flows definitely pass)
CASES: list[tuple[str, str, str, str | None]] = [
    ("nothing at all", "accept", "", None),
    ("a policy", "drop", "", "policy DROP of forward"),
    ("the interface, both ways", "drop", BOTH_WAYS, None),
    ("behind a reject", "accept", f"reject\n{BOTH_WAYS}", "inet filter forward: reject"),
    ("answers alone", "drop", ANSWERS, "policy DROP"),
    ("answers, and in", "drop", f'{ANSWERS}oifname "wg0" accept', None),
    ("a verdict map, and in", "drop", f'{VMAP}iifname "ext0" oifname "wg0" counter accept', None),
    ("a verdict map", "drop", VMAP, "policy DROP"),
    ("every redirection", "drop", f"{ANSWERS}ct status dnat accept", None),
    ("our mark", "drop", "ct mark and 0x10000000 == 0x10000000 accept", None),
    ("another mark", "drop", "ct mark and 0x1 == 0x1 accept", "policy DROP"),
    ("without our mark", "accept", "ct mark and 0x10000000 == 0 drop", None),
    ("marks changed", "accept", "ct mark set 1", "ct mark"),
    ("invalid packets", "accept", "ct state invalid drop", None),
    ("others' interfaces", "accept", 'iifname { "eth7", "eth8" } drop\niifname != { "ext0", "wg0" } drop', None),
    ("an interface of ours among others", "accept", 'iifname { "eth7", "ext0" } drop', "ext0, eth7"),
    ("all but ports", "accept", "tcp dport != { 80, 443 } drop", "tcp dport != { 80, 443 } drop"),
    ("all ports", "drop", f"{ANSWERS}meta l4proto {{ tcp, udp }} th dport 1-65535 accept", None),
    ("some ports", "drop", f"{ANSWERS}meta l4proto {{ tcp, udp }} th dport 1024-65535 accept", "policy DROP"),
    ("the peers' network", "drop", f"{ANSWERS}ip daddr {{ 10.0.0.0/8, 192.168.0.0/16 }} accept", None),
    ("half the peers", "drop", f"{ANSWERS}ip daddr 10.100.0.0/25 accept", "policy DROP"),
    ("nobody's peer", "accept", 'oifname "wg0" ip daddr 172.16.0.0/12 drop', None),
    ("a list", "accept", "ip saddr @banned drop", "ip saddr @banned drop"),
    ("a list of others'", "accept", 'iifname "eth7" ip saddr @banned drop', None),
    ("too many", "accept", "ct state new limit rate over 9/second drop", "limit drop"),
    ("a jump that accepts", "drop", "jump user", None),
    ("a jump for others", "drop", 'iifname "eth7" jump user', "policy DROP"),
    ("a goto that returns", "drop", f"goto nobody\n{BOTH_WAYS}", "policy DROP"),
    ("a jump that returns", "drop", f"jump nobody\n{BOTH_WAYS}", None),
    ("a map of interfaces", "drop", 'iifname vmap { "wg0" : jump user, "ext0" : goto user }', None),
    ("half a map of interfaces", "drop", 'iifname vmap { "wg0" : jump user, "eth7" : goto user }', "policy DROP"),
    ("a map that nobody reads", "accept", "tcp dport vmap @verdicts", "tcp dport vmap @verdicts"),
    ("by protocol", "drop", "meta l4proto vmap { tcp : accept, udp : accept }", None),
    ("IPv6 alone", "accept", "meta nfproto ipv6 drop", None),
]


def load(policy: str, rules: str) -> None:
    chains = "chain user { accept; }\nchain nobody {\n}\n"
    sets = "set banned { type ipv4_addr; }\nmap verdicts { type inet_service : verdict; }\n"
    forward = f"chain forward {{ type filter hook forward priority filter; policy {policy};\n{rules}\n}}"
    text = f"table inet filter {{\n}}\ndelete table inet filter\ntable inet filter {{\n{sets}{chains}{forward}\n}}\n"
    run("nft", "-f", "-", text=text)


def listed(family: str = "inet", name: str = "filter") -> Table:
    return parse(run("nft", "-j", "-t", "list", "table", family, name), f"{family} {name}")


def obstacle(table: Table, version: Version = 4, chain: str = "forward") -> Obstacle | None:
    return find_obstacle(table.rules, packets(SITE, version), chain)


@pytest.mark.root
@pytest.mark.parametrize(("policy", "rules", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.usefixtures("alone")
def test_obstacle(policy: str, rules: str, expected: str | None) -> None:
    load(policy, rules)
    found = obstacle(listed())
    if expected is None:
        assert found is None
    else:
        assert expected in str(found)


@pytest.mark.root
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (f"{ANSWERS}ip6 daddr 2001:470:100::/64 accept", None),
        (f"{ANSWERS}ip daddr 10.100.0.0/24 accept", "policy DROP"),
        (f"{ANSWERS}ct status dnat accept", "policy DROP"),
        ("ct mark and 0x10000000 == 0x10000000 accept", None),
        (f"rt type 0 drop\n{BOTH_WAYS}", None),
        (f"meta nfproto ipv4 drop\nicmpv6 type nd-router-advert drop\n{BOTH_WAYS}", None),
    ],
)
def test_obstacle_for_pinholes(rules: str, expected: str | None) -> None:
    """Nothing is translated by IPv6, so that `ct status dnat` says nothing about pinholes."""
    load("drop", rules)
    found = obstacle(listed(), 6)
    assert found is None if expected is None else expected in str(found)


@pytest.mark.root
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("example", "table"),
    [("inet-filter", "inet filter"), ("ipv4-filter", "ip filter"), ("ipv6-filter", "ip6 filter")],
)
def test_debians_empty_chains_are_no_obstacle(example: str, table: str, version: Version) -> None:
    path = EXAMPLES / f"{example}.nft"
    if not path.exists():
        pytest.skip("nftables' examples are not installed")
    run("nft", "-f", str(path))
    found = listed(*table.split())
    assert found.rules.chains.keys() == {"input", "forward", "output"}
    assert obstacle(found, version) is None


@pytest.mark.parametrize("capture", ["shared", "shared-followed", "own-zone"])
def test_firewalld_lets_redirections_in_and_pinholes_not(capture: str) -> None:
    table = parse((CAPTURES / f"{capture}.json").read_text(), "inet firewalld")
    assert obstacle(table, 4, "filter_FORWARD") is None
    assert "inet firewalld filter_FWD_public: reject" in str(obstacle(table, 6, "filter_FORWARD"))


CONDITIONS = [
    'iifname "ext0"', 'oifname "wg0"', 'iifname "wg0"', 'iifname != "wg0"', 'oifname != { "ext0", "lo" }',
    'iifname "e*"',
    "meta l4proto tcp", "meta l4proto { tcp, udp }", "meta l4proto != tcp", "ip protocol udp", "meta nfproto ipv4",
    "ip daddr 10.100.0.0/24", "ip daddr != 10.100.0.2", "ip saddr { 10.100.0.0/16, 60.60.60.2 }", "ip6 saddr != ::1",
    "ip daddr != { 10.0.0.0/8, 60.60.60.0-60.60.60.255 }", "ct state new", "ct state established,related",
    "ct state != new", "ct state { new, invalid }", "ct state ! established,related", "ct state invalid",
    "ct status dnat", "ct status & dnat == dnat", "ct status != dnat", "ct status snat,dnat", "ct mark 0x10000000",
    "ct mark & 0x10000000 == 0x10000000", "ct mark & 0x10000000 != 0", "ct mark & 0x1 == 0", "meta mark 0",
    "tcp dport 8043", "tcp dport != 8043", "udp dport { 1-8042, 8044-65535 }", "th dport 1-65535", "udp dport > 8042",
    "tcp sport 8043", "fib daddr type unicast", "fib daddr type != local", "ip daddr . tcp dport { 10.100.0.2 . 8043 }",
    "ct direction original", "limit rate 100/second", "icmpv6 type nd-router-advert", "counter", "ip saddr @banned",
]  # fmt: skip
VERDICTS = ["accept", "accept", "return", "drop", "reject", "continue", "meta mark set 0 accept"]
MAPS = [
    "ct state vmap {{ established : {0}, new : {1} }}",
    'iifname vmap {{ "wg0" : {0}, "ext0" : {1}, "lo" : drop }}',
    "meta l4proto vmap {{ tcp : {0}, udp : {1} }}",
    "tcp dport vmap {{ 1-8042 : drop, 8043 : {0}, 8044 : {1} }}",
    "ip daddr vmap {{ 10.100.0.0/24 : {0}, 60.60.60.0/24 : {1} }}",
]


def rules_of(verdicts: list[str]) -> st.SearchStrategy[str]:
    """Make rules whose jumps only lead to chains that do not lead back."""
    plain = [verdict for verdict in verdicts if not verdict.startswith(("meta", "reject"))]
    mapped = st.builds(str.format, st.sampled_from(MAPS), st.sampled_from(plain), st.sampled_from(plain))
    conditions = st.lists(st.sampled_from(CONDITIONS), max_size=2)
    ends = st.sampled_from(verdicts) | mapped
    return st.lists(st.builds(lambda asked, end: " ".join([*asked, end]), conditions, ends), max_size=4).map("\n".join)


@pytest.fixture(scope="module")
def mapped() -> Iterator[ThreeHosts]:
    with three_hosts() as hosts:
        run("nft", "-f", "-", text=MAPPED)
        yield hosts


@pytest.mark.root
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.generate],  # to make a failure smaller takes minutes: every lost packet is waited for
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    policy=st.sampled_from(["accept", "drop"]),
    forward=rules_of([*VERDICTS, "jump one", "goto two"]),
    one=rules_of([*VERDICTS, "jump two", "goto two"]),
    two=rules_of(VERDICTS),
)
def test_what_is_said_to_pass_passes(mapped: ThreeHosts, policy: str, forward: str, one: str, two: str) -> None:
    """Not the other way round: what is not understood may well let it through."""
    base = f"chain forward {{ type filter hook forward priority filter; policy {policy};\n{forward}\n}}"
    chains = f"set banned {{ type ipv4_addr; }}\nchain two {{\n{two}\n}}\nchain one {{\n{one}\n}}\n{base}"
    try:
        run("nft", "-f", "-", text=f"table inet filter\ndelete table inet filter\ntable inet filter {{\n{chains}\n}}\n")
    except AssertionError as error:
        # "ip daddr ... tcp dport ... udp dport ..."; nft 1.1 names the layer
        assert re.search("conflicting (network layer |transport layer )?protocols", str(error))  # noqa: PT017 - as above
        reject()
    if obstacle(listed()) is not None:
        event("may not pass")
        return
    for protocol in ("tcp", "udp"):
        with listener(mapped.peer, protocol, PORT) as waiting:
            assert call_from_remote(mapped, protocol, PORT, waiting) == REMOTE
