"""The lines that operators are told: where nothing is wrong none, and where one is followed the packets pass."""

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from igd.core.mapping import TransportProtocol
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.advice import advice, forward_advice, input_advice
from igd.firewall.operator_rules.nft_rules import parse
from igd.firewall.operator_rules.rule_sets import Chain
from igd.firewall.site import Site
from tests.firewall.calling import Transport, call, call_from_remote, listener, swallows
from tests.firewall.mapped_flows import MAPPED, PORT
from tests.firewall.three_hosts import EXTERNAL, PEERS, REMOTE, ThreeHosts, run
from tests.lab.host import Host

SITE = Site("ext0", "wg0", PEERS)
PORTS = [(TransportProtocol.UDP, 1900), (TransportProtocol.UDP, 5351), (TransportProtocol.TCP, 2869)]
OWN = (IPv4Address("10.100.0.1"), IPv6Address("2001:470:100::1"))
FIREWALLD = Path(__file__).parents[2] / "captures" / "firewalld"

IPTABLES = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""

# Debian's workstation.nft, with the log of the manual's, and its own drop
WORKSTATION = """
table inet filter {
    chain input {
        type filter hook input priority filter;
        iif lo accept
        ct state established,related accept
        tcp dport { 22, 80, 443 } ct state new accept
        meta nfproto ipv6 icmpv6 type { destination-unreachable, nd-router-advert, nd-neighbor-solicit } accept
        ip6 saddr fe80::/10 icmpv6 type { 130, 131, 132 } accept
        log prefix "input" limit rate 3/minute
        counter drop
    }
}
"""

SERVER = """
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iifname "wg0" oifname "ext0" accept
    }
}
"""


def lines_of(sentence: str) -> list[str]:
    """Return the commands in a sentence, as an operator would copy them."""
    return re.split(r" and (?=ip|ufw|firewall-cmd|nft )", re.split(r"lets them in: |by hand: ", sentence)[-1])


def gets_in(hosts: ThreeHosts, protocol: TransportProtocol, port: int) -> bool:
    """Return whether the server accepts what the peer sends to it, and does not drop it."""
    transport: Transport = "tcp" if protocol is TransportProtocol.TCP else "udp"
    to = ("10.100.0.1", port)
    if swallows(hosts.server, hosts.peer, transport, to):
        return False
    with listener(hosts.server, transport, port) as waiting:
        return call(hosts.peer, transport, to, waiting) is not None


@pytest.mark.root
@pytest.mark.parametrize(
    ("load", "remedy"),
    [
        (("iptables-nft-restore", IPTABLES), "iptables-nft -A INPUT -i wg0 -p udp --dport 1900 -j ACCEPT"),
        (("ip6tables-nft-restore", IPTABLES), "ip6tables-nft -A INPUT -i wg0 -p udp --dport 1900 -j ACCEPT"),
        (("iptables-legacy-restore", IPTABLES), "iptables-legacy -A INPUT -i wg0 -p udp --dport 1900 -j ACCEPT"),
        (("ip6tables-legacy-restore", IPTABLES), "ip6tables-legacy -A INPUT -i wg0 -p udp --dport 1900 -j ACCEPT"),
        (("nft -f -", WORKSTATION), 'nft insert rule inet filter input position N iifname "wg0" udp dport 1900 accept'),
    ],
)
def test_what_is_dropped_gets_in_by_the_line(hosts: ThreeHosts, load: tuple[str, str], remedy: str) -> None:
    run(*load[0].split(), text=load[1])
    sentences = advice(SITE, PORTS, OWN)
    assert len(sentences) == len(PORTS)
    assert remedy in [re.sub(r"position \d+", "position N", line) for line in lines_of(sentences[0])]
    if not remedy.startswith("ip6"):
        assert not any(gets_in(hosts, *port) for port in PORTS)
    for sentence in sentences:
        for line in lines_of(sentence):
            run("sh", "-c", line)
    assert advice(SITE, PORTS, OWN) == []
    assert all(gets_in(hosts, *port) for port in PORTS)


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(
    "rules",
    [
        "",
        "-A INPUT -i wg0 -j ACCEPT",
        "-A INPUT -s 10.100.0.0/24 -j ACCEPT",
        "-A INPUT -i wg0 -d 10.100.0.1 -j ACCEPT\n-A INPUT -d 239.255.255.250/32 -p udp --dport 1900 -j ACCEPT",
        "-A INPUT -i wg0 -p udp -m multiport --dports 1900,5351 -j ACCEPT\n-A INPUT -p tcp --dport 2869 -j ACCEPT",
        "-A INPUT ! -i ext0 -j ACCEPT",
    ],
)
def test_of_what_gets_in_nothing_is_said(rules: str) -> None:
    policy = "DROP" if rules else "ACCEPT"
    run("iptables-nft-restore", text=f"*filter\n:INPUT {policy} [0:0]\n{rules}\nCOMMIT\n")
    assert advice(SITE, PORTS, OWN) == []


# Rules of INPUT that do not concern every peer or packet: no advice, and the advised line stays behind them.
NARROW = [
    "-s 198.51.100.7/32 -j DROP",
    "-s 10.100.0.7/32 -j DROP",
    "-i wg0 -m mac --mac-source 02:00:00:00:00:09 -j DROP",
    "-p tcp --syn -m connlimit --connlimit-above 30 -j REJECT",
    "-p udp -m hashlimit --hashlimit-above 9/sec --hashlimit-name x -j DROP",
    "-p tcp --dport 25 -j DROP",
    "-i ext0 -j DROP",
]


@pytest.mark.root
@pytest.mark.parametrize("rule", NARROW)
def test_a_narrow_rule_is_no_reason_for_advice_and_keeps_its_effect(hosts: ThreeHosts, rule: str) -> None:
    run("sh", "-c", f"iptables-nft -A INPUT {rule}")
    assert advice(SITE, PORTS, OWN) == []
    run("sh", "-c", "iptables-nft -A INPUT -i wg0 -s 10.100.0.2 -j DROP; iptables-nft -A INPUT -j DROP")
    before = run("iptables-nft", "-S", "INPUT").splitlines()
    sentences = advice(SITE, PORTS, OWN)
    assert len(sentences) == len(PORTS)
    for sentence in sentences:
        for line in lines_of(sentence):
            run("sh", "-c", line)
    assert advice(SITE, PORTS, OWN) == []
    after = run("iptables-nft", "-S", "INPUT").splitlines()
    assert [line for line in after if line in before] == before
    assert after[: len(before) - 1] == before[:-1]
    assert not any(gets_in(hosts, *port) for port in PORTS), "the peer is in quarantine"


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_a_rule_of_input_that_cannot_be_judged_is_named() -> None:
    run("iptables-nft", *"-A INPUT -i wg0 -m policy --dir in --pol none -p tcp -j DROP".split())
    (sentence,) = advice(SITE, PORTS, OWN)
    assert sentence.startswith("a rule that igd cannot judge may keep peers from TCP 2869 of this server: -A INPUT ")


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_the_line_for_a_chain_of_nftables_stays_behind_narrow_rules() -> None:
    """Also inside a chain to which the base chain leads, and before a drop of everything."""
    rules = "ip saddr 198.51.100.7 drop\n%s"
    base = "chain forward { type filter hook forward priority filter; policy accept; jump mine; }"
    run("nft", "-f", "-", text=f"table inet filter {{ chain mine {{ {rules % 'drop'}\n }}\n{base}\n}}")
    (sentence,) = advice(SITE, PORTS, OWN)
    for line in lines_of(sentence):
        run("sh", "-c", line)
    assert advice(SITE, PORTS, OWN) == []
    listed = [line.strip() for line in run("nft", "list", "chain", "inet", "filter", "mine").splitlines()]
    assert listed[2] == "ip saddr 198.51.100.7 drop"
    assert listed[-3] == "drop"


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize("own", OWN)
def test_a_search_to_the_group_must_get_in_as_well(own: IPv4Address | IPv6Address) -> None:
    program = {4: "iptables-nft-restore", 6: "ip6tables-nft-restore"}[own.version]
    run(program, text=f"*filter\n:INPUT DROP [0:0]\n-A INPUT -i wg0 -d {own} -j ACCEPT\nCOMMIT\n")
    (sentence,) = advice(SITE, PORTS, OWN)
    assert "UDP 1900" in sentence
    assert "policy DROP of INPUT" in sentence


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_ipv6_is_of_no_interest_where_no_peer_has_it() -> None:
    run("ip6tables-nft-restore", text=IPTABLES)
    assert advice(Site("ext0", "wg0", PEERS[:1]), PORTS) == []
    assert len(advice(SITE, PORTS)) == len(PORTS)


@pytest.mark.root
def test_ufw() -> None:
    with Host("ufw") as host:
        host.run("ufw", "--force", "reset")  # the machine's own rules
        host.run("ufw", "--force", "enable")
        with host.entered():
            sentences = advice(SITE, PORTS, OWN)
        assert [lines_of(sentence) for sentence in sentences] == [
            [f"ufw allow in on wg0 to any port {port} proto {protocol.name.lower()}"] for protocol, port in PORTS
        ]
        for sentence in sentences:
            for line in lines_of(sentence):
                host.run("sh", "-c", line)
        with host.entered():
            assert advice(SITE, PORTS, OWN) == []


def firewalld(capture: str) -> list[Chain]:
    table = parse((FIREWALLD / f"{capture}.json").read_text(), "inet firewalld")
    return [Chain("nft", table.name, "filter_INPUT", (4, 6), table.rules)]


def test_firewalld_with_peers_and_the_internet_in_one_zone() -> None:
    """Not --add-port, which would open it to the internet too."""
    (sentence,) = map(str, input_advice(SITE, firewalld("shared"), [PORTS[0]], OWN))
    rich = 'firewall-cmd --permanent --zone=public --add-rich-rule=\'rule family="{}" source address="{}" {}\''
    port = 'port port="1900" protocol="udp" accept'
    assert lines_of(sentence) == [
        f"{rich.format('ipv4', '10.100.0.0/24', port)} && firewall-cmd --reload",
        f"{rich.format('ipv6', '2001:470:100::/64', port)} && firewall-cmd --reload",
    ]
    assert input_advice(SITE, firewalld("shared-followed"), [PORTS[0], PORTS[2]], OWN) == []


@pytest.mark.parametrize("capture", ["own-zone", "own-zone-2"])
def test_firewalld_with_a_zone_for_peers(capture: str) -> None:
    sentences = list(map(str, input_advice(SITE, firewalld(capture), PORTS[1:], OWN)))
    assert [lines_of(sentence) for sentence in sentences] == [
        ["firewall-cmd --permanent --zone=internal --add-port=5351/udp && firewall-cmd --reload"],
        ["firewall-cmd --permanent --zone=internal --add-port=2869/tcp && firewall-cmd --reload"],
    ]
    assert (input_advice(SITE, firewalld(capture), PORTS[:1], OWN) == []) is (capture == "own-zone")


@pytest.mark.root
def test_mapped_flows_pass_by_the_line(hosts: ThreeHosts) -> None:
    run("nft", "-f", "-", text=MAPPED + SERVER)
    (sentence,) = advice(SITE, PORTS, OWN)
    assert 'forward_chain = "inet filter forward"' in sentence
    with listener(hosts.peer, "udp", PORT) as waiting:
        assert swallows(hosts.server, hosts.remote, "udp", (str(EXTERNAL), PORT))
        for line in lines_of(sentence):
            assert line.startswith('nft \'add rule inet filter forward iifname != "wg0" oifname "wg0" ct mark & ')
            run("sh", "-c", line)
        assert advice(SITE, PORTS, OWN) == []
        assert call_from_remote(hosts, "udp", PORT, waiting) == REMOTE
    with listener(hosts.peer, "tcp", PORT) as waiting:
        assert call_from_remote(hosts, "tcp", PORT, waiting) == REMOTE


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_of_a_chain_that_the_configuration_names_nothing_is_said() -> None:
    run("nft", "-f", "-", text=SERVER)
    named = Site("ext0", "wg0", PEERS, forward_chain="inet filter forward")
    assert advice(named, PORTS) == []
    run("nft", "-f", "-", text=SERVER.replace("inet filter", "ip other"))
    (sentence,) = advice(named, PORTS)
    assert 'forward_chain = "ip other forward"' in sentence


def test_of_iptables_forward_nothing_is_said() -> None:
    """There we put in a jump ourselves."""
    (chain,) = firewalld("shared")
    assert forward_advice(SITE, [chain._replace(program="iptables-nft", name="filter_FORWARD")]) == []
    assert len(forward_advice(SITE, [chain._replace(name="filter_FORWARD")])) == 1


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_without_nft(monkeypatch: pytest.MonkeyPatch) -> None:
    run("nft", "-f", "-", text=WORKSTATION)
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    (sentence,) = advice(SITE, PORTS)
    assert "nft: not installed" in sentence
