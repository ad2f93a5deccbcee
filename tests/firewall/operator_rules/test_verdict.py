"""Verdicts on a FORWARD chain: rule sets as operators have them, and random ones tried with packets."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from igd.firewall.operator_rules.saved_rules import parse
from igd.firewall.operator_rules.verdict import find_obstacle, packets
from igd.firewall.site import Site
from tests.firewall.calling import call_from_remote, listener
from tests.firewall.mapped_flows import MAPPED, PORT
from tests.firewall.three_hosts import PEERS, REMOTE, ThreeHosts, run, three_hosts

SITE = Site("ext0", "wg0", PEERS, hairpin=False)

WALKTHROUGH = "-A FORWARD -i wg0 -j ACCEPT\n-A FORWARD -o wg0 -j ACCEPT"

UFW = """
:ufw-before-forward - [0:0]
:ufw-after-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-reject-forward - [0:0]
:ufw-track-forward - [0:0]
:ufw-before-logging-forward - [0:0]
-A FORWARD -j ufw-before-logging-forward
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-forward
-A FORWARD -j ufw-reject-forward
-A FORWARD -j ufw-track-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 3 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW -j DROP] "
{user}
-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable
"""

DOCKER = """
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
{forward}
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
{user}
-A DOCKER-USER -j RETURN
"""

REJECTED = "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"
ANSWERS = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
DROPPED = "-A DOCKER-USER -i ext0 -j DROP"
NEW_DROPPED = "-A DOCKER-USER -i ext0 -m conntrack --ctstate NEW -j DROP"
OURS_RETURN = "-A user -o wg0 -j RETURN\n-A user -i wg0 -j RETURN\n"
GOTO = ":user - [0:0]\n-A FORWARD -g user\n"
USER = ":user - [0:0]\n-A FORWARD -j user\n"

# (what it is, FORWARD's policy, rules, the obstacle: None where mapped flows definitely pass)
CASES: list[tuple[str, str, str, str | None]] = [
    ("nothing at all", "ACCEPT", "", None),
    ("a policy", "DROP", "", "policy DROP of FORWARD"),
    ("the walkthrough's lines", "ACCEPT", WALKTHROUGH, None),
    ("the walkthrough's lines before a policy", "DROP", WALKTHROUGH, None),
    ("the walkthrough's lines before a reject", "ACCEPT", f"{WALKTHROUGH}\n{REJECTED}", None),
    ("the walkthrough's lines behind a reject", "ACCEPT", f"{REJECTED}\n{WALKTHROUGH}", REJECTED),
    ("only the way in", "DROP", "-A FORWARD -o wg0 -j ACCEPT", "policy DROP of FORWARD"),
    ("only the way out", "DROP", "-A FORWARD -i wg0 -j ACCEPT", "policy DROP of FORWARD"),
    ("the way in and answers", "DROP", ANSWERS + "-A FORWARD -o wg0 -j ACCEPT", None),
    ("only answers", "DROP", ANSWERS, "policy DROP of FORWARD"),
    ("every redirection", "DROP", "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT", None),
    ("no redirection", "ACCEPT", "-A FORWARD -m conntrack --ctstate DNAT -j DROP", "--ctstate DNAT -j DROP"),
    ("translated sources", "ACCEPT", "-A FORWARD -m conntrack --ctstate SNAT -j DROP", "--ctstate SNAT -j DROP"),
    ("old names of states", "DROP", "-A FORWARD -m state --state NEW,ESTABLISHED -j ACCEPT", None),
    ("invalid packets", "ACCEPT", "-A FORWARD -m conntrack --ctstate INVALID -j DROP", None),
    ("invalid packets, the old way", "ACCEPT", "-A FORWARD -m state --state INVALID -j DROP", None),
    ("all but answers", "ACCEPT", "-A FORWARD ! -i wg0 -m state ! --state ESTABLISHED -j DROP", "ESTABLISHED -j DROP"),
    ("all that is not new", "DROP", "-A FORWARD -m conntrack ! --ctstate INVALID -j ACCEPT", None),
    ("another interface", "ACCEPT", "-A FORWARD -i eth7 -j DROP\n-A FORWARD -o wg1 -j DROP", None),
    ("all but the external interface", "ACCEPT", "-A FORWARD ! -i ext0 -o wg0 -j DROP", None),
    ("all but another interface", "ACCEPT", "-A FORWARD ! -i ext1 -o wg0 -j DROP", "! -i ext1 -o wg0 -j DROP"),
    ("many interfaces", "DROP", "-A FORWARD -i wg+ -j ACCEPT\n-A FORWARD -o wg+ -j ACCEPT", None),
    ("many other interfaces", "ACCEPT", "-A FORWARD -i wg1+ -j DROP\n-A FORWARD -i br-+ -j DROP", None),
    ("one protocol", "DROP", "-A FORWARD -p tcp -j ACCEPT", "policy DROP of FORWARD"),
    ("both protocols", "DROP", "-A FORWARD -p tcp -j ACCEPT\n-A FORWARD -p udp -m udp -j ACCEPT", None),
    ("protocols by number", "DROP", "-A FORWARD -p 6 -j ACCEPT\n-A FORWARD -p 17 -j ACCEPT", None),
    ("another protocol", "ACCEPT", "-A FORWARD -p icmp -j DROP", None),
    ("all but one protocol", "ACCEPT", "-A FORWARD ! -p tcp -j DROP", "! -p tcp -j DROP"),
    ("some ports", "DROP", f"{ANSWERS}-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT", "policy DROP of FORWARD"),
    ("all ports", "DROP", f"{ANSWERS}-A FORWARD -p udp -j ACCEPT\n-A FORWARD -p tcp -m tcp --dport 1: -j ACCEPT", None),
    ("several ports", "ACCEPT", "-A FORWARD -p tcp -m multiport --dports 25,80:90 -j DROP", "--dports 25,80:90"),
    ("the server itself", "ACCEPT", "-A FORWARD -m addrtype --dst-type LOCAL,BROADCAST -j DROP", None),
    ("nobody but the server", "ACCEPT", "-A FORWARD -m addrtype ! --dst-type LOCAL -j DROP", "! --dst-type LOCAL"),
    ("a routing header", "ACCEPT", "-A FORWARD -m rt ! --rt-type 0 -j DROP", None),
    ("some ports shut", "ACCEPT", "-A FORWARD -p tcp -m tcp --dport 25 -j DROP", "--dport 25 -j DROP"),
    ("the peers' network", "DROP", f"{ANSWERS}-A FORWARD -d 10.100.0.0/16 -j ACCEPT", None),
    ("half the peers", "DROP", f"{ANSWERS}-A FORWARD -d 10.100.0.0/25 -j ACCEPT", "policy DROP of FORWARD"),
    ("nobody's peer", "ACCEPT", "-A FORWARD -o wg0 -d 192.168.0.0/16 -j DROP", None),
    ("private addresses, as a remote may have", "ACCEPT", "-A FORWARD -d 192.168.0.0/16 -j DROP", "-d 192.168.0.0/16"),
    ("an address on the internet", "ACCEPT", "-A FORWARD -s 203.0.113.9/32 -j DROP", "-s 203.0.113.9/32 -j DROP"),
    ("all but the peers", "ACCEPT", "-A FORWARD -i ext0 ! -d 10.100.0.0/24 -j DROP", None),
    ("spoofed peers", "ACCEPT", "-A FORWARD -i wg0 ! -s 10.100.0.0/24 -j DROP", None),
    ("a mask with holes", "ACCEPT", "-A FORWARD -d 0.0.0.9/0.0.0.255 -j DROP", "-d 0.0.0.9/0.0.0.255 -j DROP"),
    ("our mark", "DROP", "-A FORWARD -m connmark --mark 0x10000000/0x10000000 -j ACCEPT", None),
    ("another mark", "DROP", "-A FORWARD -m connmark --mark 0x1/0x1 -j ACCEPT", "policy DROP of FORWARD"),
    ("a packet's mark", "DROP", "-A FORWARD -m mark --mark 0x10000000/0x10000000 -j ACCEPT", "policy DROP of FORWARD"),
    ("without our mark", "ACCEPT", "-A FORWARD -m connmark ! --mark 0x10000000/0x10000000 -j DROP", None),
    ("marks changed", "DROP", f"-A FORWARD -j CONNMARK --set-xmark 0x0/0xffffffff\n{REJECTED}", "-j CONNMARK --set"),
    ("an unknown match that drops", "ACCEPT", "-A FORWARD -m bpf --bytecode 1 -j DROP", "--bytecode 1 -j DROP"),
    ("an unknown match that accepts", "DROP", "-A FORWARD -m bpf --bytecode 1 -j ACCEPT", "policy DROP of FORWARD"),
    ("an unknown target", "ACCEPT", "-A FORWARD -j NFQUEUE --queue-num 0", "-j NFQUEUE --queue-num 0"),
    ("an unknown target elsewhere", "ACCEPT", "-A FORWARD -i eth7 -j NFQUEUE --queue-num 0", None),
    ("only counting", "ACCEPT", "-A FORWARD -i ext0\n-A FORWARD -j LOG --log-prefix -j", None),
    ("comments like options", "DROP", '-A FORWARD -m comment --comment "-j DROP" -j ACCEPT', None),
    ("comments like targets", "DROP", "-A FORWARD -m comment --comment -j -j ACCEPT", None),
    ("comments in quotes", "ACCEPT", r'-A FORWARD -i eth7 -m comment --comment "\" -j ACCEPT" -j DROP', None),
    ("a chain that accepts", "DROP", USER + "-A user -j ACCEPT", None),
    ("a chain that returns", "DROP", USER + "-A user -j RETURN\n-A user -j ACCEPT", "policy DROP of FORWARD"),
    ("a chain that may return", "DROP", USER + "-A user -s 1.1.1.1/32 -j RETURN\n-A user -j ACCEPT", "policy DROP of"),
    ("a chain, perhaps", "ACCEPT", USER + "-A user -s 1.1.1.1/32 -j RETURN\n-A user -j DROP", "-A user -j DROP"),
    ("a chain that may drop", "ACCEPT", USER + "-A user -s 1.1.1.1/32 -j DROP", "-A user -s 1.1.1.1/32 -j DROP"),
    ("a chain that drops others", "ACCEPT", f"{USER}{OURS_RETURN}-A user -j DROP", None),
    ("a chain that may accept", "ACCEPT", f"{USER}{REJECTED}\n-A user -s 1.1.1.1/32 -j ACCEPT", REJECTED),
    ("a chain for others", "ACCEPT", ":user - [0:0]\n-A FORWARD -i eth7 -j user\n-A user -j DROP", None),
    ("a goto does not return", "ACCEPT", f"{GOTO}{REJECTED}", None),
    ("a goto ends at the policy", "DROP", f"{GOTO}{WALKTHROUGH}", "policy DROP of FORWARD"),
    ("a goto, perhaps", "DROP", f":user - [0:0]\n-A FORWARD -s 1.1.1.1/32 -g user\n{WALKTHROUGH}", "policy DROP"),
    ("a goto inside a chain", "DROP", f":b - [0:0]\n{USER}-A user -g b\n-A user -j DROP\n{WALKTHROUGH}", None),
    ("ufw", "DROP", UFW.format(user=""), "-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable"),
    ("ufw with a route", "DROP", UFW.format(user="-A ufw-user-forward -i ext0 -o wg0 -j ACCEPT"), None),
    ("docker", "DROP", DOCKER.format(forward="", user=""), "policy DROP of FORWARD"),
    ("docker and the walkthrough", "DROP", DOCKER.format(forward=WALKTHROUGH, user=""), None),
    ("docker's users", "DROP", DOCKER.format(forward="", user=DROPPED), DROPPED),
    ("docker's users first", "DROP", DOCKER.format(forward=WALKTHROUGH, user=NEW_DROPPED), NEW_DROPPED),
]  # fmt: skip


def saved(policy: str, rules: str) -> str:
    """Write a filter table as iptables-save does, between tables that say the opposite."""
    chains, lines = ([line for line in rules.splitlines() if line.startswith(letter)] for letter in (":", "-"))
    head = [":INPUT DROP [0:0]", f":FORWARD {policy} [1:52]", ":OUTPUT ACCEPT [0:0]"]
    other = ["*mangle", ":FORWARD DROP [0:0]", "-A FORWARD -j DROP", "COMMIT"]
    return "\n".join(["# Generated", *other, "*filter", *head, *chains, *lines, "COMMIT", *other, ""])


@pytest.mark.parametrize(("policy", "rules", "obstacle"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_obstacle(policy: str, rules: str, obstacle: str | None) -> None:
    found = find_obstacle(parse(saved(policy, rules)), packets(SITE))
    if obstacle is None:
        assert found is None
    else:
        assert obstacle in str(found)


def test_peers_that_are_not_known_might_be_anybody() -> None:
    site = Site("ext0", "wg0", ())
    found = find_obstacle(parse(saved("ACCEPT", "-A FORWARD -d 192.168.9.9/32 -j DROP")), packets(site))
    assert found is not None


def test_what_goes_between_peers_must_pass_where_hairpin_is_on() -> None:
    rules = parse(saved("DROP", f"{ANSWERS}-A FORWARD -i ext0 -o wg0 -j ACCEPT\n-A FORWARD -i wg0 -o ext0 -j ACCEPT"))
    assert find_obstacle(rules, packets(SITE)) is None
    found = find_obstacle(rules, packets(replace(SITE, hairpin=True)))
    assert "between peers" in str(found)


def test_by_which_interface_ipv6_comes_is_not_known() -> None:
    accepts = "-A FORWARD {} -o wg0 -j ACCEPT\n-A FORWARD -i wg0 -j ACCEPT"
    assert find_obstacle(parse(saved("DROP", accepts.format("-i ext0"))), packets(SITE, 6)) is not None
    assert find_obstacle(parse(saved("DROP", accepts.format(""))), packets(SITE, 6)) is None


def test_every_peer_must_be_reachable() -> None:
    site = Site("ext0", "wg0", (*PEERS, IPv4Network("192.168.7.0/24")))
    rules = ANSWERS + "-A FORWARD -d 10.100.0.0/24 -j ACCEPT"
    assert find_obstacle(parse(saved("DROP", rules)), packets(site)) is not None
    rules += "\n-A FORWARD -d 192.168.0.0/16 -j ACCEPT"
    assert find_obstacle(parse(saved("DROP", rules + "\n")), packets(site)) is not None, "each alone is a maybe"


def test_no_filter_table_is_no_obstacle() -> None:
    assert find_obstacle(parse(""), packets(SITE)) is None


def test_chains_that_many_rules_lead_to_are_walked_once() -> None:
    """A ladder of 60 chains with two ways down each has more ways than there are seconds."""
    chains = "\n".join(f":c{n} - [0:0]" for n in range(61))
    jumps = "\n".join(f"-A c{n} -s 1.1.1.1/32 -j c{n + 1}\n-A c{n} -s 2.2.2.2/32 -j c{n + 1}" for n in range(60))
    rules = f"{chains}\n-A FORWARD -j c0\n{jumps}\n-A c60 -j LOG"
    assert find_obstacle(parse(saved("ACCEPT", rules)), packets(SITE)) is None


@pytest.fixture(scope="module")
def mapped() -> Iterator[ThreeHosts]:
    with three_hosts() as hosts:
        run("nft", "-f", "-", text=MAPPED)
        yield hosts


CONDITIONS = [
    "-i ext0", "-o wg0", "-i wg0", "! -i wg0", "-o ext0", "-i e+", "-p tcp", "-p udp", "! -p udp",
    "-d 10.100.0.0/24", "! -d 10.100.0.2", "-s 10.100.0.0/16", "-s 60.60.60.2", "-d 10.0.0.0/8",
    "-m conntrack --ctstate NEW", "-m conntrack --ctstate ESTABLISHED,RELATED", "-m conntrack --ctstate DNAT",
    "-m conntrack ! --ctstate DNAT", "-m conntrack ! --ctstate NEW", "-m state --state NEW", "-m state ! --state NEW",
    "-m conntrack --ctstate INVALID", "-m connmark --mark 0x10000000/0x10000000", "-m connmark ! --mark 0x1/0x1",
    "-m mark --mark 0", "-p tcp -m tcp --dport 1:65535", "-p udp -m udp --dport 0:8042",
    "-m addrtype --dst-type UNICAST", "-m addrtype ! --dst-type LOCAL", "-p tcp -m multiport --dports 80,8000:9000",
    "-p tcp -m multiport ! --dports 80",
    '-m comment --comment "-j DROP"', "-p udp -m udp --dport 8043", "-p udp -m udp ! --dport 8043",
]  # fmt: skip
TARGETS = ["ACCEPT", "ACCEPT", "RETURN", "DROP", "REJECT", "MARK --set-mark 1"]


def rules_of(chain: str, targets: list[str]) -> st.SearchStrategy[list[str]]:
    """Make rules whose jumps only lead to `targets`, so that no chain leads back to itself."""
    verdict = st.sampled_from([f"-j {target}" for target in targets])
    if "two" in targets:
        verdict |= st.sampled_from(["-g two"])
    conditions = st.lists(st.sampled_from(CONDITIONS), max_size=2, unique_by=lambda text: text.lstrip("! ")[:2])
    rule = st.builds(lambda asked, then: " ".join(["-A", chain, *asked, then]), conditions, verdict)
    return st.lists(rule, max_size=4)


@pytest.mark.root
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.generate],  # to make a failure smaller takes minutes: every lost packet is waited for
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    policy=st.sampled_from(["ACCEPT", "DROP"]),
    forward=rules_of("FORWARD", [*TARGETS, "one", "two"]),
    one=rules_of("one", [*TARGETS, "two"]),
    two=rules_of("two", TARGETS),
)
def test_what_is_said_to_pass_passes(
    mapped: ThreeHosts, policy: str, forward: list[str], one: list[str], two: list[str]
) -> None:
    """Not the other way round: what is not understood may well let it through."""
    lines = ["*filter", f":FORWARD {policy} [0:0]", ":one - [0:0]", ":two - [0:0]", *forward, *one, *two, "COMMIT"]
    run("iptables-nft-restore", text="\n".join(lines) + "\n")
    if find_obstacle(parse(run("iptables-nft-save", "-t", "filter")), packets(SITE)) is not None:
        event("may not pass")
        return
    for protocol in ("tcp", "udp"):
        with listener(mapped.peer, protocol, PORT) as waiting:
            assert call_from_remote(mapped, protocol, PORT, waiting) == REMOTE
