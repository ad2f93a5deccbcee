"""Where nft's own chains let mapped flows in: rule sets as operators have them, and random ones with packets."""

import re
from pathlib import Path

import pytest
from hypothesis import event, given, reject
from hypothesis import strategies as st

from igd.firewall.operator_rules.accepts import mapped_flows
from igd.firewall.operator_rules.nft_rules import Table, parse
from igd.firewall.operator_rules.openings import Openings, find_openings, outcome
from igd.firewall.operator_rules.packet import Version
from igd.firewall.operator_rules.verdict import End
from igd.firewall.site import Site
from tests.firewall.calling import call_from_remote, listener
from tests.firewall.mapped_flows import PORT
from tests.firewall.operator_rules.rule_sets import IN_THE_KERNEL
from tests.firewall.three_hosts import PEERS, REMOTE, ThreeHosts, run

SITE = Site("ext0", "wg0", PEERS, hairpin=False)
CAPTURES = Path(__file__).parents[2] / "captures" / "firewalld"
EXAMPLES = Path("/usr/share/doc/nftables/examples")

ANSWERS = "ct state established,related accept\n"
VMAP = "ct state vmap { established : accept, related : accept, invalid : drop }\n"
BOTH_WAYS = 'iifname "wg0" accept\noifname "wg0" accept\n'

# (what it is, the chain's policy, its rules, the place before which mapped flows are let in: "" where they pass)
END = "the end"
CASES: list[tuple[str, str, str, str]] = [
    ("nothing at all", "accept", "", ""),
    ("a policy", "drop", "", END),
    ("the interface, both ways", "drop", BOTH_WAYS, ""),
    ("behind a reject", "accept", f"reject\n{BOTH_WAYS}", "reject"),
    ("answers alone", "drop", ANSWERS, END),
    ("answers, and in", "drop", f'{ANSWERS}oifname "wg0" accept', ""),
    ("a verdict map, and in", "drop", f'{VMAP}iifname "ext0" oifname "wg0" counter accept', ""),
    ("a verdict map", "drop", VMAP, END),
    ("a map that drops what is new", "accept", "ct state vmap { established : accept, new : drop }", "ct state vmap"),
    ("every redirection", "drop", f"{ANSWERS}ct status dnat accept", ""),
    ("our mark", "drop", "ct mark and 0x10000000 == 0x10000000 accept", ""),
    ("another mark", "drop", "ct mark and 0x1 == 0x1 accept", END),
    ("without our mark", "accept", "ct mark and 0x10000000 == 0 drop", ""),
    ("invalid packets", "accept", "ct state invalid drop", ""),
    ("others' interfaces", "accept", 'iifname { "eth7", "eth8" } drop\niifname != { "ext0", "wg0" } drop', ""),
    ("an interface of ours among others", "accept", 'iifname { "eth7", "ext0" } drop', "iifname"),
    ("all ports", "drop", f"{ANSWERS}meta l4proto {{ tcp, udp }} th dport 1-65535 accept", ""),
    ("some ports", "drop", f"{ANSWERS}meta l4proto {{ tcp, udp }} th dport 1024-65535 accept", END),
    ("the peers' network", "drop", f"{ANSWERS}ip daddr {{ 10.0.0.0/8, 192.168.0.0/16 }} accept", ""),
    ("half the peers", "drop", f"{ANSWERS}ip daddr 10.100.0.0/25 accept", END),
    ("nobody's peer", "accept", 'oifname "wg0" ip daddr 172.16.0.0/12 drop', ""),
    ("all sources but peers", "accept", "ip saddr != 10.100.0.0/24 drop", "ip saddr != 10.100.0.0/24 drop"),
    ("all sources", "accept", "ip saddr { 0.0.0.0-10.99.255.255, 10.100.1.0-255.255.255.255 } drop", "ip saddr"),
    ("a list", "accept", "ip saddr @banned drop", ""),
    ("a list before everything", "drop", "ip saddr @banned drop\nlog\nreject", "reject"),
    ("a list and a port", "drop", "ip saddr . tcp dport { 192.0.2.1 . 80, 192.0.2.2 . 81 } drop", END),
    ("a list of ports", "drop", "tcp dport @ports drop", END),
    ("too many", "accept", "ct state new limit rate over 9/second drop", ""),
    ("flows that begin in the middle", "accept", "tcp flags & (fin|syn|rst|ack) != syn ct state new drop", ""),
    ("too many of one source, the old way", "drop", "meter rates { ip saddr limit rate over 9/minute } drop", END),
    ("too many of one source", "accept", "ct state new add @seen { ip saddr limit rate over 9/minute } drop", ""),
    ("a table for everybody", "drop", "ct count over 9 reject", END),
    ("a spoofed source", "accept", "fib saddr . iif oif missing drop", ""),
    ("a jump that accepts", "drop", "jump user", ""),
    ("a jump for others", "drop", 'iifname "eth7" jump user', END),
    ("a goto that returns", "drop", f"goto nobody\n{BOTH_WAYS}", "goto nobody"),
    ("a jump that returns", "drop", f"jump nobody\n{BOTH_WAYS}", ""),
    ("a map of interfaces", "drop", 'iifname vmap { "wg0" : jump user, "ext0" : goto user }', ""),
    ("half a map of interfaces", "drop", 'iifname vmap { "wg0" : jump user, "eth7" : goto user }', END),
    ("by protocol", "drop", "meta l4proto vmap { tcp : accept, udp : accept }", ""),
    ("a map of both protocols", "accept", "meta l4proto vmap { tcp : drop, udp : drop }", "l4proto vmap"),
    ("IPv6 alone", "accept", "meta nfproto ipv6 drop", ""),
    ("IPv6 alone rejected", "accept", "meta nfproto ipv6 reject", ""),
    ("the rest rejected", "drop", "ip saddr @banned reject\nreject with icmpx admin-prohibited", "reject"),
    ("resets, and rejects", "accept", "reject with tcp reset\nreject", "l4proto tcp reject"),
]  # fmt: skip

UNJUDGED = [
    "ip saddr != @banned drop", "tcp dport != { 80, 443 } drop", "ct mark set 1", "tcp dport vmap @verdicts",
    "add @seen { ip saddr } drop", "meta mark != 7 drop",
    'meta oifkind "wireguard" drop', "oifgroup 7 drop", "ct direction original drop",
]  # fmt: skip


def load(policy: str, rules: str) -> None:
    chains = "chain user { accept; }\nchain nobody {\n}\n"
    sets = """set banned { type ipv4_addr; }
        set banned6 { type ipv6_addr; }
        set ports { type inet_service; }
        set seen { type ipv4_addr; flags dynamic; size 9; }
        map verdicts { type inet_service : verdict; }
    """
    forward = f"chain forward {{ type filter hook forward priority filter; policy {policy};\n{rules}\n}}"
    text = f"table inet filter {{\n}}\ndelete table inet filter\ntable inet filter {{\n{sets}{chains}{forward}\n}}\n"
    run("nft", "-f", "-", text=text)


def listed(family: str = "inet", name: str = "filter") -> Table:
    return parse(run("nft", "-j", "-t", "list", "table", family, name), f"{family} {name}")


def openings(table: Table, version: Version = 4, chain: str = "forward") -> Openings:
    return find_openings(table.rules, chain, mapped_flows(SITE, [version]))


def place(found: Openings) -> str:
    texts = [each.before.text.partition(": ")[2] if each.before else END for each in found.needed]
    return "; ".join(texts)


@pytest.mark.root
@pytest.mark.parametrize(("policy", "rules", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
@pytest.mark.usefixtures("alone")
def test_the_place(policy: str, rules: str, expected: str) -> None:
    load(policy, rules)
    found = openings(listed())
    assert place(found).startswith(expected)
    assert bool(found.needed) is bool(expected)
    assert (found.warnings(), found.still_stopped) == ([], {})


@pytest.mark.root
@pytest.mark.parametrize("rule", UNJUDGED)
@pytest.mark.usefixtures("alone")
def test_a_rule_that_cannot_be_judged_stays_ahead_and_is_named(rule: str) -> None:
    for policy, rest, expected in (("accept", "", ""), ("drop", "", END), ("accept", "\nreject", "reject")):
        load(policy, rule + rest)
        found = openings(listed())
        assert place(found) == expected
        assert len(found.warnings()) == 1


@pytest.mark.root
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (f"{ANSWERS}ip6 daddr 2001:470:100::/64 accept", ""),
        (f"{ANSWERS}ip daddr 10.100.0.0/24 accept", END),
        (f"{ANSWERS}ct status dnat accept", END),
        ("ct mark and 0x10000000 == 0x10000000 accept", ""),
        (f"rt type 0 drop\n{BOTH_WAYS}", ""),
        (f"meta nfproto ipv4 drop\nicmpv6 type nd-router-advert drop\n{BOTH_WAYS}", ""),
        ("ip6 saddr 2001:db8::7 drop\nip6 saddr @banned6 drop", END),
        ("ip6 saddr 2001:db8::7 drop\nmeta nfproto ipv6 reject", "reject"),
        ("meta nfproto ipv4 reject\nip6 saddr 2001:db8::7 drop", END),
    ],
)
def test_the_place_for_pinholes(rules: str, expected: str) -> None:
    """Nothing is translated by IPv6, so that `ct status dnat` says nothing about pinholes."""
    load("drop", rules)
    assert place(openings(listed(), 6)) == expected


@pytest.mark.root
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("example", "table"),
    [("inet-filter", "inet filter"), ("ipv4-filter", "ip filter"), ("ipv6-filter", "ip6 filter")],
)
def test_debians_empty_chains_need_nothing(example: str, table: str, version: Version) -> None:
    path = EXAMPLES / f"{example}.nft"
    if not path.exists():
        pytest.skip("nftables' examples are not installed")
    run("nft", "-f", str(path))
    found = listed(*table.split())
    assert found.rules.chains.keys() == {"input", "forward", "output"}
    assert openings(found, version).needed == []


@pytest.mark.parametrize("capture", ["shared", "shared-followed", "own-zone"])
def test_firewalld_lets_redirections_in_and_pinholes_not(capture: str) -> None:
    table = parse((CAPTURES / f"{capture}.json").read_text(), "inet firewalld")
    assert openings(table, 4, "filter_FORWARD").needed == []
    found = openings(table, 6, "filter_FORWARD")
    assert "inet firewalld filter_FWD_public: reject" in "".join(found.stopped)
    assert found.still_stopped == {}


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


@pytest.mark.root
@IN_THE_KERNEL
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
    found = outcome(listed().rules, "forward", mapped_flows(SITE, [4]), ())
    if any(end is not End.PASSES or ahead for end, ahead in found):
        event("may not pass")
        return
    for protocol in ("tcp", "udp"):
        with listener(mapped.peer, protocol, PORT) as waiting:
            assert call_from_remote(mapped, protocol, PORT, waiting) == REMOTE
