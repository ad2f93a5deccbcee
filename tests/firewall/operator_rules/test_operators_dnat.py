"""Which ports the operator's own redirections have: lines as he has them, random ones, and the kernel's."""

import shlex
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import TransportProtocol
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.nft_rules import parse as parse_native
from igd.firewall.operator_rules.operators_dnat import OperatorsDnat, taken
from igd.firewall.operator_rules.saved_rules import parse
from igd.firewall.site import Site
from tests.firewall.three_hosts import EXTERNAL, PEERS, run

SITE = Site("ext0", "wg0", PEERS)
ALL = [(1, 65535)]
PRE = "-A PREROUTING"
TO = "-j DNAT --to-destination 192.168.7.2:80"

NARROW = f":a - [0:0]\n{PRE} -p tcp -m tcp --dport 80:90 -j a"

DOCKER = """
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A DOCKER ! -i docker0 -p udp -m udp --dport 8081 -j DNAT --to-destination 172.17.0.2:81
-A DOCKER -d 127.0.0.1/32 ! -i docker0 -p tcp -m tcp --dport 8082 -j DNAT --to-destination 172.17.0.2:82
"""

# (what it is, the rules, the ports that are taken of TCP, of UDP)
CASES: list[tuple[str, str, list[tuple[int, int]], list[tuple[int, int]]]] = [
    ("nothing", "", [], []),
    ("one port", f"{PRE} -i ext0 -p tcp -m tcp --dport 80 {TO}", [(80, 80)], []),
    ("a range", f"{PRE} -i ext0 -p udp -m udp --dport 1000:2000 {TO}", [], [(1000, 2000)]),
    ("several", f"{PRE} -p tcp -m multiport --dports 80,443,8000:8010 {TO}", [(80, 80), (443, 443), (8000, 8010)], []),
    ("to one of the addresses", f"{PRE} -d 60.60.60.1/32 -p tcp -m tcp --dport 80 {TO}", [(80, 80)], []),
    ("to a network", f"{PRE} -d 60.60.0.0/16 -p tcp {TO}", ALL, []),
    ("to another address", f"{PRE} -d 60.60.60.9/32 -p tcp -m tcp --dport 80 {TO}", [], []),
    ("from another interface", f"{PRE} -i wg0 -p tcp -m tcp --dport 80 {TO}", [], []),
    ("from all but one interface", f"{PRE} ! -i wg0 -p tcp -m tcp --dport 80 {TO}", [(80, 80)], []),
    ("everything", f"{PRE} -i ext0 {TO}", ALL, ALL),
    ("a whole protocol", f"{PRE} -i ext0 -p udp {TO}", [], ALL),
    ("everything, to one of the addresses", f"{PRE} -d 60.60.60.1/32 {TO}", [], []),
    ("redirected", f"{PRE} -p tcp -m tcp --dport 25 -j REDIRECT --to-ports 2525", [(25, 25)], []),
    ("from somewhere", f"{PRE} -s 192.0.2.0/24 -p tcp -m tcp --dport 22 {TO}", [(22, 22)], []),
    ("from somewhere, all", f"{PRE} -s 192.0.2.0/24 -p tcp {TO}", [], []),
    ("all but a port", f"{PRE} -p tcp -m tcp ! --dport 22 {TO}", [(1, 21), (23, 65535)], []),
    ("all but a port, from somewhere", f"{PRE} -s 192.0.2.0/24 -p tcp -m tcp ! --dport 22 {TO}", [], []),
    ("a port kept out", f"{PRE} -p tcp -m tcp --dport 22 -j ACCEPT\n{PRE} -p tcp {TO}", [(1, 21), (23, 65535)], []),
    ("a port kept out, perhaps", f"{PRE} -s 192.0.2.1 -p tcp -m tcp --dport 22 -j ACCEPT\n{PRE} -p tcp {TO}", ALL, []),
    ("accepted before", f"{PRE} -i ext0 -j ACCEPT\n{PRE} -p tcp -m tcp --dport 80 {TO}", [], []),
    ("marked before", f"{PRE} -j MARK --set-mark 1\n{PRE} -p tcp -m tcp --dport 80 {TO}", [(80, 80)], []),
    ("a chain named by port", f":a - [0:0]\n{PRE} -p tcp -m tcp --dport 80 -j a\n-A a {TO}", [(80, 80)], []),
    ("a chain that narrows", f"{NARROW}\n-A a -p tcp -m tcp --dport 85 {TO}", [(85, 85)], []),
    ("a chain that returns", f":a - [0:0]\n{PRE} -j a\n{PRE} -p udp {TO}\n-A a -j RETURN\n-A a {TO}", [], ALL),
    ("a goto", f":a - [0:0]\n{PRE} -p udp -g a\n{PRE} {TO}\n-A a -p udp -m udp --dport 53 {TO}", ALL, [(53, 53)]),
    ("a chain that nothing leads to", f":a - [0:0]\n-A a -p tcp -m tcp --dport 80 {TO}", [], []),
    ("on the way out", f"-A OUTPUT -p tcp -m tcp --dport 80 {TO}", [], []),
    ("ours", f":igd_wg0 - [0:0]\n{PRE} -j igd_wg0\n-A igd_wg0 -p tcp -m tcp --dport 80 {TO}", [], []),
    ("an instance's", f":igd_wg1 - [0:0]\n{PRE} -j igd_wg1\n-A igd_wg1 -p tcp -m tcp --dport 80 {TO}", [(80, 80)], []),
    ("docker", DOCKER, [(8080, 8080)], [(8081, 8081)]),
    ("not the server", f"{PRE} -m addrtype ! --dst-type LOCAL -p tcp -m tcp --dport 80 {TO}", [], []),
    ("a form of its own", f"{PRE} -p tcp -m tcp --dport http {TO}", [], []),
]  # fmt: skip

NATIVE = [
    ('iifname "ext0" tcp dport { 80, 443 } dnat ip to 10.0.0.9', [(80, 80), (443, 443)], []),
    ("dnat ip to tcp dport map { 80 : 1.1.1.1, 90-99 : 1.1.1.2 }", [(80, 80), (90, 99)], []),
    ("dnat ip to tcp dport map @unread", [], []),
    ("ip daddr 60.60.60.2 udp dport 53 redirect to :5353", [], [(53, 53)]),
    ("ip daddr . tcp dport { 60.60.60.1 . 80, 60.60.60.7 . 81 } dnat ip to 10.0.0.9", [(80, 81)], []),
    ("meta l4proto { tcp, udp } th dport 7000-7009 dnat ip to 10.0.0.9", [(7000, 7009)], [(7000, 7009)]),
    ("fib daddr type local tcp dport vmap { 80 : jump led, 81 : accept }", [(80, 80)], []),
    ('iifname "wg0" dnat ip to 10.0.0.9', [], []),
    ("ip6 daddr 2001:db8::1 tcp dport 80 dnat ip6 to 2001:db8::2", [], []),
    ("ip daddr { 60.60.60.1, 60.60.60.2 } meta l4proto udp dnat ip to 10.0.0.9", [], ALL),
]

ADDRESSES = (EXTERNAL, IPv4Address("60.60.60.2"))


def saved(rules: str) -> str:
    chains, lines = ([line for line in rules.splitlines() if line.startswith(letter)] for letter in (":", "-"))
    head = [":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    return "\n".join(["*nat", *head, *chains, *lines, "COMMIT", ""])


def bounds(found: dict[TransportProtocol, tuple[range, ...]]) -> list[list[tuple[int, int]]]:
    return [[(each.start, each.stop - 1) for each in found.get(protocol, ())] for protocol in TransportProtocol]


@pytest.mark.parametrize(("rules", "tcp", "udp"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_taken(rules: str, tcp: list[tuple[int, int]], udp: list[tuple[int, int]]) -> None:
    assert bounds(taken(parse(saved(rules), "nat"), "PREROUTING", SITE, ADDRESSES)) == [tcp, udp]


@pytest.fixture
def alone(alone: None) -> None:
    run("ip", "link", "set", "lo", "up")


def load_native(rule: str) -> None:
    chains = "chain led {\ndnat ip to 10.0.0.9\n}\nmap unread { type inet_service : ipv4_addr; }"
    base = f"chain pre {{ type nat hook prerouting priority dstnat;\n{rule}\n}}"
    run("nft", "-f", "-", text=f"table inet mine {{\n{chains}\n{base}\n}}")


@pytest.mark.root
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("rule", "tcp", "udp"), NATIVE, ids=[case[0] for case in NATIVE])
def test_taken_by_nft(rule: str, tcp: list[tuple[int, int]], udp: list[tuple[int, int]]) -> None:
    load_native(rule)
    table = parse_native(run("nft", "-j", "-t", "list", "table", "inet", "mine"), "inet mine")
    assert bounds(taken(table.rules, "pre", SITE, ADDRESSES)) == [tcp, udp]


PORTS = st.sampled_from(
    ["", "-m tcp --dport 3", "-m tcp ! --dport 3", "-m tcp --dport 2:5", "-m multiport --dports 4,6"]
)
TARGETS = ["ACCEPT", "RETURN", "LOG", "DNAT --to-destination 10.0.0.9"]


def lines(chain: str, targets: list[str]) -> st.SearchStrategy[list[str]]:
    verdicts = st.sampled_from([f"-j {target}" for target in targets] + ["-g two"] * ("two" in targets))
    rule = st.builds(lambda ports, verdict: f"-A {chain} -i ext0 -p tcp {ports} {verdict}", PORTS, verdicts)
    return st.lists(rule, max_size=4)


def is_led(chains: dict[str, list[str]], name: str, port: int) -> str:
    """Walk as the kernel does, with one packet; give "led", "accepted", or "back" behind the jump."""
    for line in chains[name]:
        asked, verdict = line.split(" -j ") if " -j " in line else line.split(" -g ")
        words = asked.split()
        if "port" in asked:
            named = {str(number) for number in _numbers(words[-1])}
            if (str(port) in named) == ("!" in words):
                continue
        target = verdict.split()[0]
        if target in chains:
            end = is_led(chains, target, port)
            if end != "back" or "-g" in line:
                return end
        elif target != "LOG":
            return {"ACCEPT": "accepted", "RETURN": "back", "DNAT": "led"}[target]
    return "back"


def _numbers(value: str) -> list[int]:
    low, _colon, high = value.partition(":")
    return list(range(int(low), int(high) + 1)) if high else [int(part) for part in value.split(",")]


@given(
    pre=lines("PREROUTING", [*TARGETS, "one", "two"]), one=lines("one", [*TARGETS, "two"]), two=lines("two", TARGETS)
)
def test_where_all_is_certain_it_is_what_the_kernel_does(pre: list[str], one: list[str], two: list[str]) -> None:
    text = "\n".join([":one - [0:0]", ":two - [0:0]", *pre, *one, *two])
    found = taken(parse(saved(text), "nat"), "PREROUTING", SITE, [EXTERNAL]).get(TransportProtocol.TCP, ())
    chains = {"PREROUTING": pre, "one": one, "two": two}
    for port in range(1, 9):
        assert any(port in ports for ports in found) == (is_led(chains, "PREROUTING", port) == "led"), port


def test_chains_that_many_rules_lead_to_are_walked_once() -> None:
    """A ladder of 60 chains with two ways down each has more ways than there are seconds."""
    chains = "\n".join(f":c{n} - [0:0]" for n in range(61))
    jumps = "\n".join(f"-A c{n} -s 1.1.1.1/32 -j c{n + 1}\n-A c{n} -s 2.2.2.2/32 -j c{n + 1}" for n in range(60))
    rules = f"{chains}\n{PRE} -j c0\n{jumps}\n-A c60 -p tcp -m tcp --dport 80 {TO}"
    assert bounds(taken(parse(saved(rules), "nat"), "PREROUTING", SITE, ADDRESSES)) == [[(80, 80)], []]


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_every_rule_set_of_the_host_is_read() -> None:
    operators = OperatorsDnat(SITE)
    operators.refresh([EXTERNAL])
    assert not operators.holds(TransportProtocol.TCP, 80)
    for flavour, port in (("iptables-nft", 80), ("iptables-legacy", 81)):
        run(*shlex.split(f"{flavour} -t nat -A PREROUTING -p tcp --dport {port} {TO}"))
    load_native("tcp dport 82 dnat ip to 10.0.0.9")
    run(
        "nft",
        "-f",
        "-",
        text=run("nft", "list", "table", "inet", "mine").replace("mine", "igd_wg1").replace("82", "83"),
    )
    operators.refresh([EXTERNAL])
    assert [port for port in range(70, 90) if operators.holds(TransportProtocol.TCP, port)] == [80, 81, 82]
    assert not any(operators.holds(TransportProtocol.UDP, port) for port in range(70, 90))
    run("iptables-nft", "-t", "nat", "-F", "PREROUTING")
    run("nft", "delete", "table", "inet", "mine")
    operators.refresh([EXTERNAL])
    assert [port for port in range(70, 90) if operators.holds(TransportProtocol.TCP, port)] == [81]


@pytest.mark.root
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("chain", "asked"), [("prerouting", ""), ("PREROUTING", "ct state new")])
def test_rules_of_nft_under_the_names_of_iptables(chain: str, asked: str) -> None:
    """iptables-nft-save leaves out such a chain, or gives up the whole table for such a rule."""
    base = f"chain {chain} {{ type nat hook prerouting priority dstnat;\n{asked} tcp dport 82 dnat to 10.0.0.9\n}}"
    run("nft", "-f", "-", text=f"table ip nat {{\n{base}\n}}")
    operators = OperatorsDnat(SITE)
    operators.refresh([EXTERNAL])
    assert operators.holds(TransportProtocol.TCP, 82)


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_without_nft_what_cannot_be_read_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_native("tcp dport 82 dnat ip to 10.0.0.9")
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    operators = OperatorsDnat(SITE)
    operators.refresh([EXTERNAL])
    operators.refresh([EXTERNAL])
    assert not operators.holds(TransportProtocol.TCP, 82)
    assert [record.message for record in caplog.records if "nft: not installed" in record.message] == [
        "redirections of the operator's own may be overlooked: nft: not installed"
    ]
