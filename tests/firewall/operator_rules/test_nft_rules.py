"""Rules of nftables in iptables' words: each as the real nft lists it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from igd.firewall.operator_rules.nft_rules import Table, parse
from igd.firewall.operator_rules.saved_rules import Rule
from tests.firewall.three_hosts import new_namespace, run

CAPTURES = Path(__file__).parents[2] / "captures" / "firewalld"

V4, V6 = "nfproto 4", "nfproto 6"
ANY = "match"  # an option that nobody knows: it may hold

# (what the operator writes, for each rule that it becomes: the conditions, the target; "match" stands for any unknown)
CASES: list[tuple[str, list[tuple[list[str], str]]]] = [
    ("accept", [([], "accept")]),
    ("counter drop", [([], "drop")]),
    ("reject with icmpx type admin-prohibited", [([], "reject")]),
    ('counter log prefix "x" accept', [([], "accept")]),
    ("counter", []),
    ("return", [([], "return")]),
    ("jump user", [([], "user")]),
    ("goto user", [([], "user")]),
    ("continue", [([], "continue")]),
    ('iifname "wg0" accept', [(["-i wg0"], "accept")]),
    ('iifname != { "wg0", "lo" } drop', [(["! -i lo wg0"], "drop")]),
    ('oifname "wg*" accept', [(["-o wg+"], "accept")]),
    ('iifname "wg+" accept', [([ANY], "accept")]),
    ('iif "lo" accept', [(["-i lo"], "accept")]),
    ("iifgroup 5 accept", [(["unknown iifgroup 5"], "accept")]),
    ("ct state established,related accept", [(["--ctstate ESTABLISHED,RELATED"], "accept")]),
    ("ct state { established, new } accept", [(["--ctstate ESTABLISHED,NEW"], "accept")]),
    ("ct state != invalid accept", [(["! --ctstate INVALID"], "accept")]),
    ("ct state & (established|related) == 0 drop", [(["! --ctstate ESTABLISHED,RELATED"], "drop")]),
    ("ct state != established|related drop", [([ANY], "drop")]),
    ("ct status dnat accept", [(["--ctstatus DNAT"], "accept")]),
    ("ct status & dnat == dnat accept", [(["--ctstatus DNAT"], "accept")]),
    ("ct status snat,dnat accept", [(["--ctstatus SNAT,DNAT"], "accept")]),
    ("ct status == dnat accept", [([ANY], "accept")]),
    ("ct status != dnat drop", [([ANY], "drop")]),
    ("ct mark and 0x10000000 == 0x10000000 accept", [(["--mark 0x10000000/0x10000000"], "accept")]),
    ("ct mark and 0x10000000 != 0 accept", [(["! --mark 0x0/0x10000000"], "accept")]),
    ("ct mark 7 accept", [(["--mark 0x7"], "accept")]),
    ("ct mark and 3 == { 1, 2 } accept", [([ANY], "accept")]),
    ("meta mark 7 accept", [([ANY], "accept")]),
    ("ct mark set 7 accept", [([], "ct mark set"), ([], "accept")]),
    ("meta mark set 7 accept", [([], "accept")]),
    ("meta l4proto { tcp, udp } accept", [(["-p tcp udp"], "accept")]),
    ("ip protocol udp accept", [([V4, "-p udp"], "accept")]),
    ("ip6 nexthdr udp accept", [([V6, "-p udp"], "accept")]),
    ("icmpv6 type nd-router-advert accept", [(["-p ipv6-icmp", ANY], "accept")]),
    ("meta nfproto ipv6 drop", [([V6], "drop")]),
    ("meta protocol ip drop", [([V4], "drop")]),
    ("ip saddr 10.0.0.0/8 accept", [([V4, "-s 10.0.0.0/8"], "accept")]),
    ("ip saddr != 10.0.0.1 drop", [([V4, "! -s 10.0.0.1/32"], "drop")]),
    ("ip daddr { 10.0.0.1, 10.0.0.8-10.0.0.9 } accept", [([V4, "-d 10.0.0.1/32 10.0.0.8/31"], "accept")]),
    ("ip6 daddr fe80::/10 accept", [([V6, "-d fe80::/10"], "accept")]),
    ("ip saddr & 255.0.0.255 == 10.0.0.1 accept", [([V4, ANY], "accept")]),
    ("ip saddr @some accept", [([V4, ANY], "accept")]),
    ("rt type 0 drop", [(["-m rt", ANY], "drop")]),
    ("tcp dport 80 accept", [(["-p tcp", "--dports 80"], "accept")]),
    ("tcp dport != { 22, 80-90 } drop", [(["-p tcp", "! --dports 22,80:90"], "drop")]),
    ("udp dport > 1023 accept", [(["-p udp", "--dports 1024:65535"], "accept")]),
    ("meta l4proto udp th dport 53 accept", [(["-p udp", "--dports 53"], "accept")]),
    ("tcp dport @ports accept", [(["-p tcp", ANY], "accept")]),
    ("tcp flags syn accept", [(["-p tcp", ANY], "accept")]),
    ("tcp flags & (fin|syn|rst|ack) != syn drop", [(["-p tcp", "! --tcp-flags FIN,SYN,RST,ACK SYN"], "drop")]),
    ("tcp flags & (fin|syn) == (fin|syn) drop", [(["-p tcp", "--tcp-flags FIN,SYN FIN,SYN"], "drop")]),
    ('meta oifkind "wireguard" drop', [(["unknown oifkind wireguard"], "drop")]),
    ("fib daddr type { local, multicast } accept", [(["--dst-type LOCAL,MULTICAST"], "accept")]),
    ("fib daddr . iif type local accept", [([ANY], "accept")]),
    ("fib saddr . iif oif missing drop", [([ANY], "drop")]),
    ("limit rate 3/second accept", [([ANY], "accept")]),
    ("meter rates { ip saddr limit rate over 3/second } drop", [([ANY], "drop")]),
    ("ct state new ct count over 3 drop", [(["--ctstate NEW", ANY], "drop")]),
    ("add @seen { ip saddr } drop", [(["unknown set"], "drop")]),
    ("update @seen { ip saddr limit rate over 9/second } drop", [([ANY], "drop")]),
    (
        'iifname . tcp dport { "wg0" . 80 } accept',
        [(["-p tcp", "-i wg0", "--dports 80"], "accept")],
    ),
    (
        "ip daddr . tcp dport { 1.2.3.4 . 80, 1.2.3.5 . 81-83 } accept",
        [([V4, "-p tcp", "-d 1.2.3.4/32 1.2.3.5/32", "--dports 80,81:83", ANY], "accept")],
    ),
    (
        "ct state vmap { established : accept, invalid : drop }",
        [(["--ctstate INVALID"], "drop"), (["--ctstate ESTABLISHED"], "accept")],
    ),
    (
        'iifname vmap { "wg0" : jump user, "lo" : accept }',
        [(["-i lo"], "accept"), (["-i wg0"], "user")],
    ),
    (
        "tcp dport vmap { 80 : goto user, 90-99 : continue }",
        [(["-p tcp", "--dports 80"], "user"), (["-p tcp", "--dports 90:99"], "continue")],
    ),
    ("tcp dport vmap @verdicts", [([], "vmap @verdicts")]),
]  # fmt: skip

NAT_CASES: list[tuple[str, list[tuple[list[str], str]]]] = [
    ("udp dport { 53, 54 } redirect to :5353", [(["-p udp", "--dports 53,54"], "redirect")]),
    ("tcp dport 80 dnat ip to 10.0.0.1:8080", [(["-p tcp", "--dports 80"], "dnat")]),
    ("dnat ip to tcp dport map { 80 : 1.1.1.1, 90-99 : 1.1.1.2 }", [(["-p tcp", "--dports 80,90:99"], "dnat")]),
    (
        "meta l4proto tcp redirect to :tcp dport map { 80 : 8080 }",
        [(["-p tcp", "--dports 80"], "redirect")],
    ),
    ("dnat ip to tcp dport map @addresses", [([ANY], "dnat")]),
]

SETS = """
    set some { type ipv4_addr; elements = { 192.0.2.77 }; }
    set ports { type inet_service; }
    set seen { type ipv4_addr; flags dynamic; size 9; }
    map verdicts { type inet_service : verdict; elements = { 4711 : accept }; }
    map addresses { type inet_service : ipv4_addr; }
"""


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with new_namespace():
        run("ip", "link", "set", "lo", "up")
        yield


def listed(rule: str, hook: str = "type filter hook forward priority 0; policy drop;") -> str:
    base = f"chain base {{ {hook}\n{rule}\n}}"
    run("nft", "-f", "-", text=f"flush ruleset\ntable inet mine {{ {SETS}\nchain user {{\n}}\n{base}\n}}")
    return run("nft", "-j", "-t", "list", "table", "inet", "mine")


def words(rule: Rule) -> list[str]:
    known = [each for each in rule.conditions if (each.module, each.option) != ("nft", "match")]
    said = [f"{'! ' if each.negated else ''}{each.option} {each.value}" for each in known]
    return said + [ANY] * (len(known) < len(rule.conditions))


def base(table: Table) -> list[Rule]:
    return table.rules.chains["base"]


@pytest.mark.root
@pytest.mark.parametrize(("line", "becomes"), CASES, ids=[case[0] for case in CASES])
def test_a_rule(line: str, becomes: list[tuple[list[str], str]]) -> None:
    found = [(words(rule), rule.target) for rule in base(parse(listed(line), "inet mine"))]
    assert sorted(found) == sorted(becomes)


@pytest.mark.root
@pytest.mark.parametrize(("line", "becomes"), NAT_CASES, ids=[case[0] for case in NAT_CASES])
def test_a_nat_rule(line: str, becomes: list[tuple[list[str], str]]) -> None:
    listing = listed(line, "type nat hook prerouting priority -100;")
    rules = base(parse(listing, "inet mine"))
    # nft 1.0 lists the protocol a second time where a statement needs it as well, nft 1.1 does not.
    assert [(list(dict.fromkeys(words(rule))), rule.target) for rule in rules] == becomes


@pytest.mark.root
def test_jumps_come_back_and_gotos_do_not() -> None:
    rules = base(parse(listed("jump user\ngoto user\ntcp dport vmap { 1 : goto user }"), "inet mine"))
    assert [rule.goto for rule in rules] == [False, True, True]


@pytest.mark.root
def test_the_table() -> None:
    table = parse(listed('ct state new iifname "wg0" tcp dport { 22, 80 } counter jump user'), "inet mine")
    assert [tuple(chain) for chain in table.base_chains] == [("base", "filter", "forward", 0)]
    assert table.rules.policies == {"base": "DROP", "user": "-"}
    assert table.rules.chains["user"] == []
    (rule,) = base(table)
    assert rule.chain == "base"
    assert rule.text == "inet mine base: ct state new iifname wg0 tcp dport { 22, 80 } counter jump user"


@pytest.mark.root
def test_what_sets_hold_is_not_asked_for() -> None:
    listing = listed("ip saddr @some accept\ntcp dport vmap @verdicts")
    assert "192.0.2.77" not in listing
    assert "4711" not in listing


@pytest.mark.parametrize("strange", ['"accept"', "null", "7", "[]", '{"a": 1, "b": 2}', '{"future": {"x": 1}}'])
def test_statements_of_the_future_may_drop(strange: str) -> None:
    rule = f'{{"rule": {{"chain": "base", "expr": [{strange}, {{"accept": null}}]}}}}'
    first, second = base(parse(f'{{"nftables": [{rule}]}}', "inet mine"))
    assert first.target not in ("accept", "", "continue", "return")
    assert (first.conditions, second.target) == ((), "accept")


@pytest.mark.parametrize("strange", ["", "{", "[]", '{"nftables": [{"rule": {}}]}'])
def test_no_table(strange: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        parse(strange, "inet mine")


def test_firewalld_has_no_rule_that_is_not_understood() -> None:
    for capture in CAPTURES.glob("*.json"):
        table = parse(capture.read_text(), "inet firewalld")
        forward = [rule for chain, rules in table.rules.chains.items() if "_FWD" in chain for rule in rules]
        assert forward
        assert all(ANY not in words(rule) for rule in forward)
