"""Whose packets leave without another source address, judged from the rules of POSTROUTING; the e2e tests prove it."""

from ipaddress import IPv4Network, ip_interface, ip_network

import pytest

from igd.core.peers import Peer, Peers
from igd.firewall.operator_rules import nft_rules, saved_rules, xtables
from igd.firewall.operator_rules.advice import Advisor
from igd.firewall.operator_rules.rule_sets import Chain
from igd.firewall.operator_rules.source_nat import missing, untranslated
from igd.firewall.site import Site
from tests.firewall.three_hosts import run

NETWORK = IPv4Network("10.100.0.0/24")
SITE = Site("ext0", "wg0", (NETWORK,))


def peers(*allowed_ips: str, address: str = "10.100.0.1/24") -> Peers:
    each = (Peer(f"c{number}", tuple(map(ip_network, text.split()))) for number, text in enumerate(allowed_ips))
    return Peers(each, [ip_interface(address)])


TWO = peers("10.100.0.2/32 fd00::2/128", "10.100.0.3/32")


def iptables(*rules: str) -> list[Chain]:
    chains = dict.fromkeys((rule.split()[0] for rule in rules), "-") | {"POSTROUTING": "ACCEPT"}
    heads = [f":{name} {policy} [0:0]" for name, policy in chains.items()]
    saved = "\n".join(["*nat", *heads, *(f"-A {rule}" for rule in rules), "COMMIT"])
    return [Chain("iptables-nft", "nat", "POSTROUTING", (4,), saved_rules.parse(saved, "nat"))]


@pytest.mark.parametrize(
    "rules",
    [
        ["POSTROUTING -o ext0 -j MASQUERADE"],
        ["POSTROUTING -j MASQUERADE"],
        ["POSTROUTING -o ext+ -j MASQUERADE"],
        ["POSTROUTING ! -o wg0 -j MASQUERADE"],
        ["POSTROUTING -s 10.100.0.0/24 -o ext0 -j MASQUERADE"],
        ["POSTROUTING -s 10.100.0.0/24 ! -d 10.100.0.0/24 -j MASQUERADE"],
        ["POSTROUTING -s 10.0.0.0/8 -o ext0 -j SNAT --to-source 60.60.60.1"],
        ["POSTROUTING ! -s 60.60.60.1/32 -o ext0 -j MASQUERADE"],
        ["POSTROUTING -s 10.100.0.2/32 -j MASQUERADE", "POSTROUTING -s 10.100.0.3/32 -j SNAT --to-source 60.60.60.3"],
        ["POSTROUTING -s 10.100.0.0/24 -j NETMAP --to 60.60.61.0/24"],
        ["POSTROUTING -o ext0 -j vpn", "vpn -s 10.100.0.0/24 -j MASQUERADE"],
        ["POSTROUTING -o ext0 -g vpn", "vpn -d 10.0.0.0/8 -j RETURN", "vpn -j MASQUERADE"],
        ["POSTROUTING -o ext0 -j vpn", "POSTROUTING -j MASQUERADE", "vpn -j RETURN"],
        ["POSTROUTING -d 10.0.0.0/8 -j ACCEPT", "POSTROUTING -o ext0 -j MASQUERADE"],
        ["POSTROUTING -j CONNMARK --restore-mark", "POSTROUTING -j LOG", "POSTROUTING -o ext0 -j MASQUERADE"],
        # possibly
        ["POSTROUTING -m set --match-set vpn src -j MASQUERADE"],
        ["POSTROUTING -m mark --mark 0x1 -j MASQUERADE"],
        ["POSTROUTING -m mark --mark 0x1 -j ACCEPT", "POSTROUTING -j MASQUERADE"],
        ["POSTROUTING -o ext0 -j FULLCONENAT"],
    ],
)
def test_nothing_is_missing(rules: list[str]) -> None:
    assert untranslated("wg0", "ext0", iptables(*rules), TWO) == []


@pytest.mark.parametrize(
    "rules",
    [
        [],
        ["POSTROUTING -o ext1 -j MASQUERADE"],
        ["POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"],
        ["POSTROUTING -s 10.200.0.0/16 -o ext0 -j MASQUERADE"],
        ["POSTROUTING -d 192.168.8.0/24 -j MASQUERADE"],
        ["POSTROUTING ! -s 10.0.0.0/8 -j MASQUERADE"],
        ["POSTROUTING -p udp -j MASQUERADE"],
        ["POSTROUTING -m conntrack --ctstate ESTABLISHED -j MASQUERADE"],
        ["POSTROUTING -s 10.100.0.0/16 -j ACCEPT", "POSTROUTING -o ext0 -j MASQUERADE"],
        ["POSTROUTING -g vpn", "POSTROUTING -j MASQUERADE", "vpn -s 10.200.0.0/16 -j MASQUERADE"],
        ["POSTROUTING -j vpn", "vpn -s 10.0.0.0/8 -j RETURN", "vpn -j MASQUERADE"],
        ["vpn -j MASQUERADE"],
        ["POSTROUTING -j igd_wg1/out", "igd_wg1/out -j MASQUERADE"],
    ],
)
def test_the_network_of_all_peers_is_missing(rules: list[str]) -> None:
    assert untranslated("wg0", "ext0", iptables(*rules), TWO) == [NETWORK]


def test_a_rule_for_one_peer_does_not_cover_another() -> None:
    narrow = iptables("POSTROUTING -s 10.100.0.2/32 -j MASQUERADE")
    assert untranslated("wg0", "ext0", narrow, TWO) == [IPv4Network("10.100.0.3/32")]
    half = iptables("POSTROUTING -s 10.100.0.0/25 -j MASQUERADE")
    assert untranslated("wg0", "ext0", half, TWO) == []
    assert untranslated("wg0", "ext0", half, peers("10.100.0.0/24")) == [NETWORK]
    assert untranslated("wg0", "ext0", half, peers("10.100.0.2/32", "10.100.0.200/32")) == [
        IPv4Network("10.100.0.200/32")
    ]


def test_a_network_behind_a_peer_may_have_a_way_out_of_its_own() -> None:
    rules = iptables("POSTROUTING -s 10.100.0.0/24 -o ext0 -j MASQUERADE")
    assert untranslated("wg0", "ext0", rules, peers("10.100.0.2/32 192.168.7.0/24")) == []
    assert untranslated("wg0", "ext0", rules, peers("10.100.0.2/32", "192.168.7.0/24")) == [
        IPv4Network("192.168.7.0/24")
    ]


def test_a_lone_peer_with_any_address_has_those_of_the_interface() -> None:
    assert untranslated("wg0", "ext0", iptables(), peers("0.0.0.0/0")) == [NETWORK]


@pytest.mark.parametrize(
    "known",
    [peers(), peers("fd00::2/128"), peers("44.4.4.2/32", address="44.4.4.1/24"), peers("::/0", address="fd00::1/64")],
)
def test_without_private_ipv4_addresses_nothing_is_missing(known: Peers) -> None:
    assert untranslated("wg0", "ext0", iptables(), known) == []


def test_the_shared_address_space_is_private() -> None:
    network = IPv4Network("100.64.0.0/24")
    assert untranslated("wg0", "ext0", iptables(), peers("100.64.0.2/32", address="100.64.0.1/24")) == [network]


TABLE = """
table inet mine {
    set vpn { type ipv4_addr; }
    chain vpn {
        masquerade
    }
    chain out {
        type nat hook postrouting priority srcnat;
        %s
    }
}
"""


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(
    ("rule", "enough"),
    [
        ('oifname "ext0" masquerade', True),
        ("ip saddr 10.100.0.0/24 ip daddr != 10.100.0.0/24 masquerade", True),
        ("ip saddr { 10.100.0.2, 10.100.0.3 } snat ip to 60.60.60.1", True),
        ('iifname "wg0" oifname "ext0" counter masquerade random', True),
        ("snat ip to ip saddr map { 10.100.0.0/24 : 60.60.60.1 }", True),
        ("ip saddr @vpn masquerade", True),
        ('oifname vmap { "ext0" : jump vpn, "ext1" : accept }', True),
        ('oifname "ext1" masquerade', False),
        ("ip saddr 10.100.0.2 masquerade", False),
        ("ip daddr 10.0.0.0/8 masquerade", False),
        ('oifname vmap { "ext1" : jump vpn, "ext0" : accept }', False),
        ("meta nfproto ipv6 masquerade", False),
    ],
)
def test_rules_of_nftables(rule: str, enough: bool) -> None:
    run("nft", "-f", "-", text=TABLE % rule)
    listed = run("nft", "-j", "list", "table", "inet", "mine")
    chains = [Chain("nft", "inet mine", "out", (4, 6), nft_rules.parse(listed, "inet mine").rules)]
    assert (untranslated("wg0", "ext0", chains, TWO) == []) is enough
    assert (missing("wg0", "ext0", TWO) == []) is enough


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_nothing_is_certain_of_rules_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    run("nft", "-f", "-", text=TABLE % "counter")
    assert len(missing("wg0", "ext0", TWO) or ()) == 1
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    assert missing("wg0", "ext0", TWO) is None


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize("way_out", ["", "wg0"])
def test_without_a_way_out_nothing_is_missing(way_out: str) -> None:
    assert len(missing("wg0", "ext0", TWO) or ()) == 1
    assert missing("wg0", way_out, TWO) == []


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize("first", ["iptables-nft", "iptables-legacy"])
def test_translated_by_any_of_two_rule_sets(first: str) -> None:
    run(first, "-t", "nat", "-A", "POSTROUTING", "-s", "172.17.0.0/16", "-j", "MASQUERADE")
    (sentence,) = map(str, missing("wg0", "ext0", TWO) or ())
    assert sentence.endswith(f"{first} -t nat -A POSTROUTING -s 10.100.0.0/24 -o ext0 -j MASQUERADE")
    run("nft", "-f", "-", text=TABLE % 'oifname "ext0" masquerade')
    assert missing("wg0", "ext0", TWO) == []


@pytest.mark.root
@pytest.mark.usefixtures("hosts")
def test_missing_rules_are_a_warning_when_they_are_missing_twice(caplog: pytest.LogCaptureFixture) -> None:
    """A firewall that reloads has none for a moment."""
    caplog.set_level("INFO")

    def logged() -> list[str]:
        found = [f"{record.levelname} {record.getMessage()[:24]}" for record in caplog.records]
        caplog.clear()
        return found

    advisor = Advisor(SITE, [], tuple, lambda: list(map(str, missing("wg0", "ext0", TWO) or ())))
    rule = "-t nat -A POSTROUTING -o ext0 -j MASQUERADE"
    assert not advisor.advise(), "nothing reloads when igd starts"
    assert logged() == ["WARNING no rule translates the s"]
    run("iptables-nft", *rule.split())
    assert not advisor.advise()
    assert logged() == ["INFO no longer: no rule trans"]
    for _ in range(2):
        run("iptables-nft", "-t", "nat", "-F")
        assert advisor.advise()
        run("iptables-nft", *rule.split())
        assert not advisor.advise()
        assert logged() == []
    run("iptables-nft", "-t", "nat", "-F")
    assert advisor.advise()
    assert not advisor.advise()
    assert logged() == ["WARNING no rule translates the s"]
