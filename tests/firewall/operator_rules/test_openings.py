"""Where mapped flows are let in: before what stops every one of them, and behind every narrower rule."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network
from itertools import chain

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from igd.firewall.forward.iptables_jump import ForwardJump
from igd.firewall.operator_rules.accepts import mapped_flows
from igd.firewall.operator_rules.conditions import Truth, matches
from igd.firewall.operator_rules.openings import Openings, find_openings
from igd.firewall.operator_rules.packet import Packet, Version
from igd.firewall.operator_rules.saved_rules import Rule, Rules, parse
from igd.firewall.operator_rules.verdict import End, Walk
from igd.firewall.site import Site
from tests.firewall.calling import TRANSPORTS, call_from_remote, listener, swallows
from tests.firewall.mapped_flows import PORT
from tests.firewall.operator_rules.rule_sets import (
    ANSWERS,
    DOCKER,
    GOTO,
    IN_THE_KERNEL,
    OURS_RETURN,
    REJECTED,
    UFW,
    USER,
    WALKTHROUGH,
    rules_of,
    saved,
)
from tests.firewall.three_hosts import EXTERNAL, PEER, PEERS, REMOTE, ThreeHosts, run

SITE = Site("ext0", "wg0", PEERS)

BAN = "-A FORWARD -s 60.60.60.254/32 -j DROP"
END = "the end of FORWARD"
BANNED = "-A user -s 60.60.60.254/32 -j DROP"
IN_OUT = """:in - [0:0]
:out - [0:0]
-A FORWARD -i ext0 -j in
-A FORWARD -o ext0 -j out
-A in -s 60.60.60.254/32 -j DROP
-A in -j DROP
-A out -d 60.60.60.254/32 -j REJECT
-A out -j REJECT"""
DOCKER_28 = """:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-INTERNAL - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-INTERNAL
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT"""
FAIL2BAN = """:f2b-sshd - [0:0]
-A FORWARD -p tcp -m multiport --dports 22,80 -j f2b-sshd
-A FORWARD -j f2b-sshd
-A f2b-sshd -s 60.60.60.254/32 -j REJECT --reject-with icmp-port-unreachable
-A f2b-sshd -j RETURN"""
ALL_PORTS = """-A FORWARD -o wg0 -p tcp -m tcp --dport 1:65535 -j DROP
-A FORWARD -o wg0 -p udp -m multiport --dports 1:1023,1024:65535 -j DROP"""
DROPPED = "-A DOCKER-USER -i ext0 -j DROP"

# (what it is, FORWARD's policy, rules, the places: none where mapped flows pass)
BLANKET: list[tuple[str, str, str, list[str]]] = [
    ("nothing at all", "ACCEPT", "", []),
    ("a policy", "DROP", "", [END]),
    ("the walkthrough's lines", "ACCEPT", WALKTHROUGH, []),
    ("the walkthrough's lines before a policy", "DROP", WALKTHROUGH, []),
    ("the walkthrough's lines before a reject", "ACCEPT", f"{WALKTHROUGH}\n{REJECTED}", []),
    ("the walkthrough's lines behind a reject", "ACCEPT", f"{REJECTED}\n{WALKTHROUGH}", [REJECTED]),
    ("only the way in", "DROP", "-A FORWARD -o wg0 -j ACCEPT", [END]),
    ("only the way out", "DROP", "-A FORWARD -i wg0 -j ACCEPT", [END]),
    ("the way in and answers", "DROP", ANSWERS + "-A FORWARD -o wg0 -j ACCEPT", []),
    ("only answers", "DROP", ANSWERS, [END]),
    ("every redirection", "DROP", "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT", []),
    ("no redirection", "ACCEPT", "-A FORWARD -m conntrack --ctstate DNAT -j DROP", ["--ctstate DNAT -j DROP"]),
    ("old names of states", "DROP", "-A FORWARD -m state --state NEW,ESTABLISHED -j ACCEPT", []),
    ("invalid packets", "ACCEPT", "-A FORWARD -m conntrack --ctstate INVALID -j DROP", []),
    ("invalid packets, the old way", "ACCEPT", "-A FORWARD -m state --state INVALID -j DROP", []),
    ("new packets", "ACCEPT", "-A FORWARD -i ext0 -m conntrack --ctstate NEW -j DROP", ["--ctstate NEW -j DROP"]),
    (
        "all but answers",
        "ACCEPT",
        "-A FORWARD ! -i wg0 -m state ! --state ESTABLISHED -j DROP",
        ["ESTABLISHED -j DROP"],
    ),
    ("all that is not new", "DROP", "-A FORWARD -m conntrack ! --ctstate INVALID -j ACCEPT", []),
    (
        "connections that begin in the middle",
        "ACCEPT",
        "-A FORWARD -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW -j DROP",
        [],
    ),
    ("flags that no first packet has", "ACCEPT", "-A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -j DROP", []),
    ("another interface", "ACCEPT", "-A FORWARD -i eth7 -j DROP\n-A FORWARD -o wg1 -j DROP", []),
    ("all but the external interface", "ACCEPT", "-A FORWARD ! -i ext0 -o wg0 -j DROP", []),
    ("all but another interface", "ACCEPT", "-A FORWARD ! -i ext1 -o wg0 -j DROP", ["! -i ext1 -o wg0 -j DROP"]),
    ("into the tunnel", "ACCEPT", "-A FORWARD -o wg0 -j DROP", ["-A FORWARD -o wg0 -j DROP"]),
    ("many interfaces", "DROP", "-A FORWARD -i wg+ -j ACCEPT\n-A FORWARD -o wg+ -j ACCEPT", []),
    ("many other interfaces", "ACCEPT", "-A FORWARD -i wg1+ -j DROP\n-A FORWARD -i br-+ -j DROP", []),
    ("one protocol accepted", "DROP", "-A FORWARD -p tcp -j ACCEPT", [END]),
    ("both protocols", "DROP", "-A FORWARD -p tcp -j ACCEPT\n-A FORWARD -p udp -m udp -j ACCEPT", []),
    ("protocols by number", "DROP", "-A FORWARD -p 6 -j ACCEPT\n-A FORWARD -p 17 -j ACCEPT", []),
    ("another protocol", "ACCEPT", "-A FORWARD -p icmp -j DROP", []),
    (
        "a reject for each protocol",
        "ACCEPT",
        "-A FORWARD -p tcp -j REJECT --reject-with tcp-reset\n-A FORWARD -p udp -j REJECT",
        ["-p tcp -j REJECT --reject-with"],
    ),
    ("all ports", "DROP", f"{ANSWERS}-A FORWARD -p udp -j ACCEPT\n-A FORWARD -p tcp -m tcp --dport 1: -j ACCEPT", []),
    (
        "all ports dropped",
        "ACCEPT",
        ALL_PORTS,
        ["--dport 1:65535 -j DROP"],
    ),
    ("the server itself", "ACCEPT", "-A FORWARD -m addrtype --dst-type LOCAL,BROADCAST -j DROP", []),
    ("nobody but the server", "ACCEPT", "-A FORWARD -m addrtype ! --dst-type LOCAL -j DROP", ["! --dst-type LOCAL"]),
    ("a routing header", "ACCEPT", "-A FORWARD -m rt ! --rt-type 0 -j DROP", []),
    ("the peers' network accepted", "DROP", f"{ANSWERS}-A FORWARD -d 10.100.0.0/16 -j ACCEPT", []),
    ("the peers' network dropped", "ACCEPT", "-A FORWARD -d 10.100.0.0/16 -j DROP", ["-d 10.100.0.0/16 -j DROP"]),
    ("half the peers accepted", "DROP", f"{ANSWERS}-A FORWARD -d 10.100.0.0/25 -j ACCEPT", [END]),
    ("nobody's peer", "ACCEPT", "-A FORWARD -o wg0 -d 192.168.0.0/16 -j DROP", []),
    ("all sources but peers", "ACCEPT", "-A FORWARD ! -s 10.100.0.0/24 -j DROP", ["! -s 10.100.0.0/24 -j DROP"]),
    ("all but the peers", "ACCEPT", "-A FORWARD -i ext0 ! -d 10.100.0.0/24 -j DROP", []),
    ("spoofed peers", "ACCEPT", "-A FORWARD -i wg0 ! -s 10.100.0.0/24 -j DROP", []),
    ("peers and others", "ACCEPT", "-A FORWARD -s 10.0.0.0/8 -j DROP", ["-s 10.0.0.0/8 -j DROP"]),
    ("peers from outside", "ACCEPT", "-A FORWARD -i ext0 -s 10.100.0.0/24 -j DROP", []),
    ("our mark", "DROP", "-A FORWARD -m connmark --mark 0x10000000/0x10000000 -j ACCEPT", []),
    ("another mark", "DROP", "-A FORWARD -m connmark --mark 0x1/0x1 -j ACCEPT", [END]),
    ("a packet's mark", "DROP", "-A FORWARD -m mark --mark 0x10000000/0x10000000 -j ACCEPT", [END]),
    ("without our mark", "ACCEPT", "-A FORWARD -m connmark ! --mark 0x10000000/0x10000000 -j DROP", []),
    ("a log before a reject", "ACCEPT", f"-A FORWARD -m limit --limit 3/min -j LOG\n{REJECTED}", [REJECTED]),
    ("only counting", "ACCEPT", "-A FORWARD -i ext0\n-A FORWARD -j LOG --log-prefix -j", []),
    ("comments like options", "DROP", '-A FORWARD -m comment --comment "-j DROP" -j ACCEPT', []),
    ("comments like targets", "DROP", "-A FORWARD -m comment --comment -j -j ACCEPT", []),
    ("comments in quotes", "ACCEPT", r'-A FORWARD -i eth7 -m comment --comment "\" -j ACCEPT" -j DROP', []),
    ("a chain that accepts", "DROP", USER + "-A user -j ACCEPT", []),
    ("a chain that returns", "DROP", USER + "-A user -j RETURN\n-A user -j ACCEPT", [END]),
    ("a chain that may return", "DROP", USER + "-A user -s 1.1.1.1/32 -j RETURN\n-A user -j ACCEPT", []),
    (
        "a chain that returns some",
        "ACCEPT",
        USER + "-A user -s 1.1.1.1/32 -j RETURN\n-A user -j DROP",
        ["-A user -j DROP"],
    ),
    ("a chain that drops others", "ACCEPT", f"{USER}{OURS_RETURN}-A user -j DROP", []),
    ("a chain that may accept", "ACCEPT", f"{USER}{REJECTED}\n-A user -s 1.1.1.1/32 -j ACCEPT", [REJECTED]),
    ("a chain for others", "ACCEPT", ":user - [0:0]\n-A FORWARD -i eth7 -j user\n-A user -j DROP", []),
    ("a chain that drops all", "ACCEPT", f"{USER}-A user -j DROP", ["-A FORWARD -j user"]),
    ("a chain in a chain", "ACCEPT", f":b - [0:0]\n{USER}-A user -j b\n-A b -j DROP", ["-A FORWARD -j user"]),
    ("a goto does not return", "ACCEPT", f"{GOTO}{REJECTED}", []),
    ("a goto ends at the policy", "DROP", f"{GOTO}{WALKTHROUGH}", ["-A FORWARD -g user"]),
    ("a goto, perhaps", "DROP", f":user - [0:0]\n-A FORWARD -s 1.1.1.1/32 -g user\n{WALKTHROUGH}", []),
    ("a goto inside a chain", "DROP", f":b - [0:0]\n{USER}-A user -g b\n-A user -j DROP\n{WALKTHROUGH}", []),
    ("ufw", "DROP", UFW.format(user=""), ["-A FORWARD -j ufw-reject-forward"]),
    ("ufw by policy", "DROP", UFW.format(user="").replace("-A ufw-reject-forward -j REJECT", "#"), [END]),
    ("ufw with a route", "DROP", UFW.format(user="-A ufw-user-forward -i ext0 -o wg0 -j ACCEPT"), []),
    (
        "one chain for bans and all",
        "DROP",
        f"{USER.replace('-j', '-s 9.9.9.9/32 -j')}-A FORWARD -j user\n-A user -j DROP",
        ["-A FORWARD -j user"],
    ),
    ("docker", "DROP", DOCKER.format(forward="", user=""), [END]),
    ("docker of today", "DROP", DOCKER_28, [END]),
    ("fail2ban", "DROP", FAIL2BAN, [END]),
    ("fail2ban alone", "ACCEPT", FAIL2BAN, []),
    ("docker and the walkthrough", "DROP", DOCKER.format(forward=WALKTHROUGH, user=""), []),
    ("docker's users", "DROP", DOCKER.format(forward="", user=DROPPED), ["-A FORWARD -j DOCKER-USER"]),
]

# Rules that do not concern every mapped flow: alone they cause nothing, and elsewhere they stay ahead of the opening.
NARROW = [
    "-s 60.60.60.254/32 -j DROP",
    "-s 60.60.60.254/32 -j REJECT",
    "-d 60.60.60.254/32 -j DROP",
    "-d 10.100.0.2/32 -j DROP",
    "-s 10.100.0.2/32 -j REJECT",
    "-i wg0 -s 10.100.0.2/32 -j DROP",
    "-d 192.168.0.0/16 -j DROP",
    "-d 0.0.0.9/0.0.0.255 -j DROP",
    "-s 1.1.1.1/32 -i ext0 -o wg0 -m bpf --bytecode 1 -j DROP",
    "-o wg0 -p tcp -m tcp --dport 8000 -j REJECT",
    "-p tcp -m multiport --dports 25,80:90 -j DROP",
    "-p tcp -m multiport --sports 25,80:90 -j DROP",
    "-p udp -m udp --sport 53 -j DROP",
    "-m set --match-set banned src -j DROP",
    "-p tcp -m connlimit --connlimit-above 9 --connlimit-mask 32 --connlimit-saddr -j REJECT",
    "-m hashlimit --hashlimit-above 9/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name x -j DROP",
    "-m recent --update --seconds 60 --name x --mask 255.255.255.255 --rsource -j DROP",
    "-m limit --limit 3/min -j DROP",
    "-m iprange --src-range 1.1.1.1-1.1.1.9 -j DROP",
    "-m mac --mac-source 00:00:00:00:00:01 -j DROP",
    "-m time --timestart 22:00:00 --timestop 06:00:00 -j DROP",
    '-m string --string "BitTorrent" --algo bm --to 65535 -j DROP',
    "-m length --length 1400:65535 -j DROP",
    "-m statistic --mode random --probability 0.1 -j DROP",
    "-m owner --uid-owner 0 -j DROP",
    "-m ttl --ttl-lt 2 -j DROP",
    "-m mark --mark 0x8000/0x8000 -j DROP",
    "-m connmark --mark 0x1/0x1 -j DROP",
    "-m conntrack --ctstate SNAT -j DROP",
    "-m conntrack --ctorigdstport 25 -j DROP",
    "-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK -j DROP",
    "-s 60.60.60.254/32 -j NFQUEUE --queue-num 0",
]

UNJUDGED = [
    "-m geoip --source-country XX -j DROP",
    "-m bpf --bytecode 1 -j DROP",
    "-j NFQUEUE --queue-num 0",
    "-j TARPIT",
    "-j CONNMARK --set-xmark 0x0/0xffffffff",
    "! -s 198.51.100.0/24 -j DROP",
    "-m set ! --match-set allowed src -j DROP",
    "-p tcp -m tcp ! --dport 22 -j DROP",
    "-i ext0 -m policy --dir in --pol none -j DROP",
    "-p udp -m bpf --bytecode 1 -j DROP",
    "-m devgroup --dst-group 0x1 -j DROP",
    "-m conntrack --ctdir ORIGINAL -j DROP",
]


def found(policy: str, rules: str, site: Site = SITE, version: Version = 4, within: str = "") -> Openings:
    return find_openings(parse(saved(policy, rules)), "FORWARD", mapped_flows(site, [version]), within)


def places(openings: Openings) -> list[str]:
    """Return the rules before which there are openings, and the classes of packets if they are not for all."""
    return [
        (each.before.text if each.before else f"the end of {each.chain}") + (f" for {each.only}" if each.only else "")
        for each in openings.needed
    ]


@pytest.mark.parametrize(
    ("policy", "rules", "expected"), [case[1:] for case in BLANKET], ids=[case[0] for case in BLANKET]
)
def test_what_stops_every_mapped_flow(policy: str, rules: str, expected: list[str]) -> None:
    openings = found(policy, rules)
    assert len(places(openings)) == len(expected)
    assert all(wanted in place for wanted, place in zip(expected, places(openings), strict=True))
    assert openings.warnings() == []
    assert openings.still_stopped == {}


@pytest.mark.parametrize("rule", NARROW)
def test_a_narrow_rule_causes_nothing_and_stays_ahead(rule: str) -> None:
    line = f"-A FORWARD {rule}"
    assert places(found("ACCEPT", line)) == []
    assert places(found("DROP", line)) == [END]
    assert places(found("ACCEPT", f"{line}\n{REJECTED}")) == [REJECTED]
    assert places(found("DROP", f"{USER}-A user {rule}\n-A user -j DROP")) == ["-A user -j DROP"]
    assert places(found("DROP", f"{USER}-A user {rule}\n{REJECTED}")) == [REJECTED]
    for rules in (line, f"{line}\n{REJECTED}"):
        assert found("DROP", rules).warnings() == []


@pytest.mark.parametrize("rule", UNJUDGED)
def test_a_rule_that_cannot_be_judged_stays_ahead_and_is_named(rule: str) -> None:
    line = f"-A FORWARD {rule}"
    for policy, rules, expected in (("ACCEPT", "", []), ("DROP", "", [END]), ("ACCEPT", f"\n{REJECTED}", [REJECTED])):
        openings = found(policy, line + rules)
        assert places(openings) == expected
        (warning,) = openings.warnings()
        assert warning.endswith(f"may stop mapped flows: {line}")


@pytest.mark.parametrize("rule", ["-p udp -j DROP", "-o wg0 -p tcp -j REJECT", "! -p tcp -j DROP"])
def test_a_rule_for_one_protocol_causes_nothing_and_is_named(rule: str) -> None:
    openings = found("ACCEPT", f"-A FORWARD {rule}")
    assert places(openings) == []
    (warning,) = openings.warnings()
    assert f"-A FORWARD {rule}; igd opens nothing" in warning


NESTED = f"{BAN}\n{USER}{BANNED}\n-A user -m geoip --source-country XX -j DROP\n-A user -j LOG\n-A user -j DROP"
SHARED = ":b - [0:0]\n:user - [0:0]\n-A FORWARD -j user\n-A FORWARD -j b\n-A user -s 9.9.9.9/32 -j DROP\n-A b -j DROP"


@pytest.mark.parametrize(
    ("policy", "rules", "expected"),
    [
        ("DROP", NESTED, ["-A user -j DROP"]),
        ("DROP", f"{USER}{BANNED}\n-A user -j RETURN\n{BAN}", [END]),
        ("DROP", SHARED, ["-A FORWARD -j b"]),
        ("ACCEPT", f":b - [0:0]\n{GOTO}-A user -g b\n{BANNED.replace('user', 'b')}\n-A b -j DROP", ["-A b -j DROP"]),
        ("DROP", f"{GOTO}{BANNED}", ["the end of user"]),
        (
            "DROP",
            f":ban - [0:0]\n{USER}-A user -i ext0 -j ban\n-A ban -s 9.9.9.9/32 -j DROP\n-A user -j DROP",
            ["-A user -j DROP"],
        ),
        (
            "DROP",
            f":ban - [0:0]\n-A FORWARD -m geoip --source-country XX -j ban\n-A ban -j DROP\n{REJECTED}",
            [REJECTED],
        ),
        ("ACCEPT", IN_OUT, ["-A in -j DROP", "-A out -j REJECT"]),
    ],
)
def test_narrow_rules_in_chains_stay_ahead(policy: str, rules: str, expected: list[str]) -> None:
    openings = found(policy, rules)
    assert places(openings) == expected
    assert openings.still_stopped == {}


def test_an_opening_that_would_overtake_a_rule_for_other_packets_is_for_its_own() -> None:
    tcp = "-A FORWARD -p tcp -j REJECT --reject-with tcp-reset"
    udp = "-A FORWARD -p udp -j REJECT"
    one, two = "the first packet of a mapped flow", "an answer in a mapped flow"
    openings = found("ACCEPT", f"{ANSWERS}{tcp}\n{BAN}\n{udp}")
    assert places(openings) == [f"{tcp} for {one} (tcp from ext0 to wg0)", udp]
    openings = found("DROP", f"-A FORWARD -i ext0 -j DROP\n{BAN.replace('-s', '-d')}")
    assert places(openings).count(END) == 1
    assert all(f" for {two}" not in place for place in places(openings))


ISOLATION = "-A FORWARD -i wg0 -o wg0 -j DROP"


@pytest.mark.parametrize(
    ("policy", "rules", "expected", "hairpin"),
    [
        ("ACCEPT", ISOLATION, [], False),
        ("DROP", "", [END], True),
        ("DROP", ISOLATION, [END], False),
        ("ACCEPT", f"{ISOLATION}\n{REJECTED}", [REJECTED], False),
        ("ACCEPT", f"-A FORWARD -i ext0 -j DROP\n{ISOLATION}", ["-A FORWARD -i ext0 -j DROP"], False),
        ("DROP", "-A FORWARD -i wg0 -o wg0 -m conntrack --ctstate NEW -j REJECT", [END], False),
        ("DROP", "-A FORWARD -i wg0 -s 10.100.0.9/32 -j DROP", [END], True),
        ("ACCEPT", f"{REJECTED}\n-A FORWARD -i wg0 -o wg0 -j ACCEPT", [REJECTED], True),
        ("DROP", "-A FORWARD -i wg0 -o wg0 -j ACCEPT", [END], False),  # they pass already
    ],
)
def test_isolation_of_peers_causes_nothing_and_holds(
    policy: str, rules: str, expected: list[str], *, hairpin: bool
) -> None:
    openings = found(policy, rules)
    assert places(openings) == expected
    assert openings.hairpin is hairpin
    assert not found(policy, rules, replace(SITE, hairpin=False)).hairpin


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (DOCKER.format(forward="", user=""), ["-A DOCKER-USER -j RETURN"]),
        (DOCKER.format(forward="", user="").replace("-A DOCKER-USER -j RETURN", ""), ["the end of DOCKER-USER"]),
        (DOCKER.format(forward="", user=DROPPED), [DROPPED]),
        (DOCKER.format(forward="", user=f"{BAN.replace('FORWARD', 'DOCKER-USER')}\n{DROPPED}"), [DROPPED]),
        (DOCKER.format(forward=WALKTHROUGH, user=""), []),
        (f"{USER}{BANNED}", []),
    ],
)
def test_a_named_chain(rules: str, expected: list[str]) -> None:
    openings = found("DROP", rules, within="DOCKER-USER")
    assert places(openings) == expected
    assert (openings.still_stopped == {}) is ("DOCKER" in rules)


def test_a_chain_without_a_policy_is_always_opened_before_the_first_rule_that_ends_the_road() -> None:
    def opened(rules: str) -> list[str]:
        table = parse(saved("ACCEPT", f":user - [0:0]\n{rules}"))
        return places(find_openings(table, "user", mapped_flows(SITE, [4])))

    assert opened("") == ["the end of user"]
    assert opened(f"{BANNED}\n-A user -p tcp -j DROP\n-A user -p udp -j DROP") == ["-A user -p tcp -j DROP"]
    assert opened(f"-A user -m conntrack --ctstate ESTABLISHED -j ACCEPT\n{BANNED}") == ["the end of user"]
    assert opened(f"{BANNED}\n-A user -j RETURN\n-A user -j DROP") == ["-A user -j RETURN"]
    assert opened(f"{BANNED}\n-A user -j ACCEPT") == ["-A user -j ACCEPT"]


def test_peers_that_are_not_known_might_be_anybody() -> None:
    site = Site("ext0", "wg0", ())
    assert places(found("ACCEPT", "-A FORWARD -d 192.168.9.9/32 -j DROP", site)) == []
    assert places(found("ACCEPT", "-A FORWARD -d 0.0.0.0/0 -j DROP", site)) == ["-A FORWARD -d 0.0.0.0/0 -j DROP"]


def test_a_peer_that_routes_everything_leaves_an_outside() -> None:
    site = replace(SITE, peers=(IPv4Network("0.0.0.0/0"),))
    assert places(found("ACCEPT", BAN, site)) == []
    assert places(found("DROP", BAN, site)) == [END]


def test_by_which_interface_ipv6_comes_is_not_known() -> None:
    accepts = "-A FORWARD {} -o wg0 -j ACCEPT\n-A FORWARD -i wg0 -j ACCEPT"
    assert places(found("DROP", accepts.format("-i ext0"), version=6)) == [END]
    assert places(found("DROP", accepts.format(""), version=6)) == []
    drop = "-A FORWARD -i ext0 -j DROP"
    assert places(found("ACCEPT", drop, version=6)) == [drop]
    assert places(found("DROP", DOCKER_28, version=6)) == [END]
    for rule in ("-i docker0 -j DROP", "-i wg0 -o wg0 -j DROP", "-o docker0 ! -i docker0 -j DROP"):
        openings = found("ACCEPT", f"-A FORWARD {rule}", version=6)
        assert (places(openings), openings.warnings()) == ([], [])


def test_without_a_way_out_the_policy_counts_and_rules_of_interfaces_do_not() -> None:
    site = replace(SITE, external="")
    assert places(found("DROP", BAN, site)) == [END]
    assert places(found("ACCEPT", "-A FORWARD -i ens0 -j DROP", site)) == []
    assert places(found("ACCEPT", REJECTED, site)) == [REJECTED]


def test_every_peer_must_be_reachable() -> None:
    site = Site("ext0", "wg0", (*PEERS, IPv4Network("192.168.7.0/24")))
    rules = ANSWERS + "-A FORWARD -d 10.100.0.0/24 -j ACCEPT\n"
    assert places(found("DROP", rules, site)) == [END]
    assert places(found("ACCEPT", "-A FORWARD -d 10.100.0.0/24 -j DROP", site)) == []


LOGDROP = ":logdrop - [0:0]\n-A FORWARD -d 10.100.0.2/32 -j logdrop\n-A logdrop -j LOG\n-A logdrop -j DROP"


@pytest.mark.parametrize(
    "rules",
    [
        "-A FORWARD -d 10.100.0.2/32 -j DROP",
        "-A FORWARD -s 10.100.0.2/32 -i wg0 -j REJECT",
        "-A FORWARD -d 10.100.0.2/32 -j DROP\n-A FORWARD -d 10.100.0.3/32 -j DROP",
        LOGDROP,
    ],
)
@pytest.mark.parametrize("peers", ["10.100.0.2/32", "10.100.0.2/31"])
def test_a_peer_stays_in_quarantine_when_it_is_the_only_one(peers: str, rules: str) -> None:
    """Removing the other peers must not end it."""
    site = replace(SITE, peers=(IPv4Network(peers),))
    assert places(found("ACCEPT", rules, site)) == []
    assert places(found("DROP", rules, site)) == [END]
    accepts = f"-A FORWARD -d {peers} -j ACCEPT\n-A FORWARD -s {peers} -j ACCEPT"
    assert places(found("DROP", accepts, site)) == []


def test_no_filter_table_needs_nothing() -> None:
    assert find_openings(parse(""), "FORWARD", mapped_flows(SITE, [4])).needed == []


def test_chains_that_many_rules_lead_to_are_walked_once() -> None:
    """A ladder of 60 chains with two ways down each has more ways than there are seconds."""
    chains = "\n".join(f":c{n} - [0:0]" for n in range(61))
    for condition in ("-s 1.1.1.1/32", ""):
        jumps = "\n".join(f"-A c{n} {condition} -j c{n + 1}\n-A c{n} -s 2.2.2.2/32 -j c{n + 1}" for n in range(60))
        rules = f"{chains}\n-A FORWARD -j c0\n{jumps}\n-A c60 -s 3.3.3.3/32 -j DROP"
        assert places(found("DROP", rules)) == [END]


CONCRETE = [
    Packet("a banned packet", 4, *way, protocol, *addresses, frozenset({state, "DNAT"}), SITE.mark, port)
    for way, addresses, state, port in (
        (("ext0", "wg0"), ((IPv4Network(REMOTE),), (IPv4Network(PEER),)), "NEW", 8043),
        (("wg0", "ext0"), ((IPv4Network(PEER),), (IPv4Network(REMOTE),)), "ESTABLISHED", 50000),
        (("ext0", "wg0"), ((IPv4Network(REMOTE),), (IPv4Network(PEER),)), "ESTABLISHED", 8043),
        (("wg0", "wg0"), ((IPv4Network("10.100.0.1"),), (IPv4Network(PEER),)), "NEW", 8043),
    )
    for protocol in ("tcp", "udp")
]


def opened(rules: Rules, openings: Openings, site: Site) -> Rules:
    for name, before, only in openings.needed:
        accepts = mapped_flows(site, [4]).accepts(only, openings.hairpin)
        rules = rules.inserted(name, before, [Rule("", name, each, "ACCEPT") for each in accepts])
    return rules


def narrow_and_blanket(rules: Rules) -> tuple[set[str], set[str]]:
    """Return the rules that some class of packets passes, and those on the road of one that is stopped."""
    roads = [Walk(rules, packet).through("FORWARD") for packet in mapped_flows(SITE, [4]).needed]
    stopped = [road for road in roads if road.end is End.STOPS]
    return (
        {rule.text for road in roads for rule in road.ahead},
        {step.rule.text for road in stopped for step in road.steps if step.rule},
    )


@settings(max_examples=400, deadline=None)
@given(
    policy=st.sampled_from(["ACCEPT", "DROP"]),
    lines=st.tuples(
        rules_of("FORWARD", ["ACCEPT", "RETURN", "DROP", "REJECT", "LOG", "one", "two"]),
        rules_of("one", ["ACCEPT", "RETURN", "DROP", "REJECT", "two"]),
        rules_of("two", ["ACCEPT", "RETURN", "DROP", "REJECT"]),
    ),
)
def test_what_a_narrow_rule_ahead_stops_stays_stopped_and_all_other_mapped_flows_pass(
    policy: str, lines: Iterable[list[str]]
) -> None:
    rules = parse(saved(policy, "\n".join([":one - [0:0]", ":two - [0:0]", *chain.from_iterable(lines)])))
    openings = find_openings(rules, "FORWARD", mapped_flows(SITE, [4]))
    after = opened(rules, openings, SITE)
    assert openings.one_protocol or openings.still_stopped == {}
    ahead, blanket = narrow_and_blanket(rules)
    for packet in CONCRETE:
        before, now = Walk(rules, packet), Walk(after, packet)
        road = before.through("FORWARD")
        texts = {step.rule.text for step in road.steps if step.rule}
        by_policy = "policy" in before.where(road)
        if road.end is End.STOPS and not by_policy and texts & ahead and not texts & blanket and not road.ahead:
            assert now.through("FORWARD").end is End.STOPS
        if road.end is End.PASSES and not road.ahead:
            assert now.through("FORWARD").end is End.PASSES


def is_decided(rule: Rule, packet: Packet) -> bool:
    return matches(rule.conditions, packet) in (Truth.YES, Truth.NO)


@pytest.mark.root
@IN_THE_KERNEL
@given(
    policy=st.sampled_from(["ACCEPT", "DROP"]),
    lines=st.tuples(
        rules_of("FORWARD", ["ACCEPT", "RETURN", "DROP", "MARK --set-mark 1", "one", "two"]),
        rules_of("one", ["ACCEPT", "RETURN", "DROP", "two"]),
        rules_of("two", ["ACCEPT", "RETURN", "DROP"]),
    ),
    ban=st.sampled_from(["", f"-s {REMOTE} ", f"-d {PEER} "]),
)
def test_in_the_kernel_a_ban_in_front_holds_and_what_is_said_to_pass_passes(
    mapped: ThreeHosts, policy: str, lines: Iterable[list[str]], ban: str
) -> None:
    head = [f"*filter\n:FORWARD {policy} [0:0]", ":one - [0:0]", ":two - [0:0]"]
    bans = [f"-A FORWARD {ban}-j DROP"] if ban else []
    text = "\n".join([*head, *bans, *chain.from_iterable(lines), "COMMIT\n"])
    run("iptables-nft-restore", text=text)
    site = replace(SITE, peers=PEERS[:1])
    jump = ForwardJump(site)
    jump.ensure()
    after = parse(run("iptables-nft-save", "-t", "filter"))
    jump.remove()
    assert [line for line in run("iptables-nft-save", "-t", "filter").splitlines() if "igd" in line] == []
    jump.ensure()
    for transport in TRANSPORTS:
        packets = [each for each in CONCRETE[:6] if each.protocol == transport]
        ends = [Walk(after, each).through("FORWARD").end for each in packets]
        if ban:
            assert swallows(mapped.server, mapped.remote, transport, (str(EXTERNAL), PORT))
        elif not all(
            is_decided(rule, packet) for packet in packets for rules in after.chains.values() for rule in rules
        ):
            event("unknown")
        elif set(ends) == {End.PASSES}:
            event("passes")
            with listener(mapped.peer, transport, PORT) as waiting:
                assert call_from_remote(mapped, transport, PORT, waiting) == REMOTE
        elif ends[0] is End.STOPS:
            event("is stopped")
            assert swallows(mapped.server, mapped.remote, transport, (str(EXTERNAL), PORT))
