"""Our rules in the nftables chain that `forward_chain` names: position, recognition, repair and removal."""

import os
import re
import shlex
import subprocess
from dataclasses import replace

import pytest

from igd.firewall.backend import FirewallError
from igd.firewall.forward import nft_rule
from igd.firewall.forward.nft_rule import ForwardRule, NftChain, named
from igd.firewall.nfnetlink import NFPROTO_INET, NFPROTO_IPV6
from igd.firewall.operator_rules import xtables
from igd.firewall.site import Site
from tests.firewall.three_hosts import PEERS, run

SITE = Site("ext0", "wg0", PEERS, forward_chain="inet filter forward")
OTHER = replace(SITE, wireguard="wg1")
UNNAMED = replace(SITE, forward_chain=None)

FIREWALL = """
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept comment "igd wg0"
        iifname "eth7" counter packets 7 bytes 420 drop comment "mine"
    }
    chain early { }
}
"""


def accepts(interface: str = "wg0", mark: int = 0x1000_0000) -> list[str]:
    ways = (("!= ", ""), ("", "!= "), ("", ""))
    return [
        f'iifname {come}"{interface}" oifname {go}"{interface}" ct mark & {mark:#010x} == {mark:#010x} accept '
        f'comment "igd {interface}"'
        for come, go in ways
    ]


@pytest.fixture
def firewall(alone: None) -> str:
    """Load the operator's rules; return them as nft prints them."""
    run("nft", "-f", "-", text=FIREWALL)
    return ruleset()


def nft(command: str) -> None:
    run("nft", *shlex.split(command))


def ruleset() -> str:
    return run("nft", "list", "ruleset")


def uninstall(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Hide these programs, with iptables' -save and -restore, from igd."""
    find = xtables.program
    monkeypatch.setattr(xtables, "program", lambda name: None if name.startswith(names) else find(name))


def chain(name: str = "inet filter forward", *, handles: bool = False) -> list[str]:
    """Return the rules of a chain."""
    lines = run("nft", *(["-a"] if handles else []), "list", "chain", *name.split()).splitlines()
    return [line.strip() for line in lines[2:-2] if not line.strip().startswith("type ")]


@pytest.mark.parametrize(
    ("forward_chain", "meant"),
    [
        (None, None),
        ("DOCKER-USER", None),
        ("inet filter forward", NftChain(NFPROTO_INET, "filter", "forward")),
        ("ip6 my/table in.out", NftChain(NFPROTO_IPV6, "my/table", "in.out")),
    ],
)
def test_what_is_named(forward_chain: str | None, meant: NftChain | None) -> None:
    assert named(forward_chain) == meant


@pytest.mark.parametrize("forward_chain", ["filter forward", "bridge filter forward", "inet filter forward x"])
def test_what_names_no_chain(forward_chain: str) -> None:
    with pytest.raises(FirewallError, match=f'forward_chain = "{forward_chain}": neither'):
        ForwardRule(replace(SITE, forward_chain=forward_chain))


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_our_rules_come_last_and_once() -> None:
    operators = chain()
    for _run in range(2):  # the second is that of a process after a kill -9
        rule = ForwardRule(SITE)
        for _again in range(2):
            assert rule.ensure() == []
            assert chain() == [*operators, *accepts()]


@pytest.mark.root
def test_they_go_as_they_came(firewall: str) -> None:
    """Another process, without `forward_chain`, deletes them; the operator's rule with the same comment stays."""
    ForwardRule(SITE).ensure()
    assert ruleset() != firewall
    for _again in range(2):
        ForwardRule(UNNAMED).remove()
        assert ruleset() == firewall


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_what_stands_is_left_alone() -> None:
    ForwardRule(SITE).ensure()
    before = chain(handles=True)
    ForwardRule(SITE).ensure()
    assert chain(handles=True) == before


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_a_form_that_is_not_recognised_is_inserted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a release of nft that prints them in another way would have them inserted twice a second."""
    monkeypatch.setattr(nft_rule, "_OURS", re.compile("no such form"))
    rule = ForwardRule(SITE)
    for _again in range(3):
        (warning,) = rule.ensure()
        assert "in an unknown form" in warning
    assert chain()[2:] == accepts()


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
@pytest.mark.parametrize(
    "meanwhile",
    [
        "add rule inet filter forward ip saddr 198.51.100.7 drop",
        "flush chain inet filter forward",
        "insert rule inet filter forward ip saddr 198.51.100.7 drop",
    ],
)
def test_what_others_do_at_the_same_moment_is_no_unknown_form(monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    """A ban daemon edits the chain between our edit and the listing after it."""
    ban, run_program = "ip saddr 198.51.100.7 drop", xtables.run

    def edited_by_another(name: str, *arguments: str, text: str = "") -> str:
        printed = run_program(name, *arguments, text=text)
        if arguments[:1] == ("-f",):
            nft(meanwhile)
        return printed

    rule = ForwardRule(SITE)
    monkeypatch.setattr(xtables, "run", edited_by_another)
    assert rule.ensure() == []
    monkeypatch.undo()
    assert rule.ensure() == []
    assert chain()[-3:] == accepts()
    nft(f"add rule inet filter forward {ban}")
    rule.ensure()
    assert chain()[-4:] == [ban, *accepts()]


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_a_saved_rule_set_loads_and_is_recognised() -> None:
    ForwardRule(SITE).ensure()
    saved = ruleset()
    run("nft", "-f", "-", text="flush ruleset\n" + saved)
    assert ruleset() == saved
    before = chain(handles=True)
    ForwardRule(SITE).ensure()
    assert chain(handles=True) == before


SPOILED = {
    "not ahead": ["add rule inet filter forward ip saddr 198.51.100.7 drop"],
    "emptied": ["flush chain inet filter forward"],
    "doubled": [
        "add rule inet filter forward oifname wg0 ct mark and 0x10000000 == 0x10000000 accept comment '\"igd wg0\"'"
    ],
    "another mark": [
        "flush chain inet filter forward",
        "insert rule inet filter forward iifname wg0 ct mark and 0x2 == 0x2 accept comment '\"igd wg0\"'",
        "insert rule inet filter forward oifname wg0 ct mark and 0x2 == 0x2 accept comment '\"igd wg0\"'",
    ],
    "elsewhere": [
        "flush chain inet filter forward",
        "add rule inet filter early oifname wg0 ct mark and 0x10000000 == 0x10000000 accept comment '\"igd wg0\"'",
    ],
}


@pytest.mark.root
@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.usefixtures("firewall")
def test_what_is_not_right_is_put_right(how: str) -> None:
    ForwardRule(SITE).ensure()
    for command in SPOILED[how]:
        nft(command)
    ForwardRule(SITE).ensure()
    assert chain()[-3:] == accepts()
    assert (
        ruleset().count('accept comment "igd wg0"') - ruleset().count('established,related accept comment "igd wg0"')
        == 3
    )
    assert chain("inet filter early") == []


@pytest.mark.root
def test_another_chain_or_none_is_named_now(firewall: str) -> None:
    ForwardRule(SITE).ensure()
    ForwardRule(replace(SITE, forward_chain="inet filter early")).ensure()
    assert chain("inet filter early") == accepts()
    ForwardRule(UNNAMED).ensure()
    assert ruleset() == firewall


@pytest.mark.root
def test_two_instances_do_not_push_each_other_aside(firewall: str) -> None:
    first, second = ForwardRule(SITE), ForwardRule(OTHER)
    first.ensure()
    second.ensure()
    both = chain(handles=True)
    first.ensure()
    second.ensure()
    assert chain(handles=True) == both
    nft("add rule inet filter forward ip saddr 198.51.100.7 drop")
    for _again in range(2):
        first.ensure()
        second.ensure()
        assert chain()[2:] == ["ip saddr 198.51.100.7 drop", *accepts(), *accepts("wg1")]
    nft("delete rule inet filter forward handle " + chain(handles=True)[2].rpartition(" ")[2])
    first.remove()
    assert chain()[2:] == accepts("wg1")
    second.remove()
    assert ruleset() == firewall


@pytest.mark.root
@pytest.mark.parametrize("family", ["ip", "ip6", "inet"])
@pytest.mark.usefixtures("alone")
def test_a_chain_that_is_not_there_is_a_warning_and_used_when_it_comes(family: str) -> None:
    rule = ForwardRule(replace(SITE, forward_chain=f"{family} mine forward", mark=0x200))
    missing = [
        f'forward_chain = "{family} mine forward": nftables has no such chain; our rules are inserted when there is one'
    ]
    assert rule.ensure() == missing
    nft(f"add table {family} mine")
    assert rule.ensure() == missing
    nft(f"add chain {family} mine forward")
    assert rule.ensure() == []
    assert chain(f"{family} mine forward") == accepts(mark=0x200)


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_a_table_that_a_program_owns_is_a_warning() -> None:
    """As firewalld's table may be: the kernel lets no other program edit it, not even to delete rules of ours in it."""
    table = f"table inet filter {{ flags owner; chain forward {{ {'; '.join(accepts())}; }}; }}"
    with subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdin
        assert owner.stdout
        owner.stdin.write(f"{table}\nlist tables\n")
        owner.stdin.flush()
        assert any(line == "table inet filter\n" for line in owner.stdout)
        before = ruleset()
        assert before.count("igd wg0") == 3
        rule = ForwardRule(SITE)
        assert [warning.partition(";")[0] for warning in rule.ensure()] == [
            'forward_chain = "inet filter forward": only the program that owns this table can edit it'
        ]
        rule.remove()
        assert ruleset() == before


IPTABLES = {"iptables-nft": "ip", "ip6tables-nft": "ip6"}


@pytest.mark.root
@pytest.mark.parametrize("flavour", IPTABLES)
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("name", ["FORWARD", "DOCKER-USER"])
@pytest.mark.usefixtures("alone")
def test_chains_of_iptables_are_refused_and_left_alone(
    *, flavour: str, installed: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(flavour, "-N", "DOCKER-USER")
    run(flavour, "-A", "FORWARD", "-m", "comment", "--comment", "igd wg0", "-j", "DOCKER-USER")
    before = ruleset()
    if not installed:
        uninstall(monkeypatch, *IPTABLES)
    rule = ForwardRule(replace(SITE, forward_chain=f"{IPTABLES[flavour]} filter {name}"))
    with pytest.raises(FirewallError, match=f'is {flavour}\'s, .*; write: forward_chain = "{name}"$'):
        rule.ensure()
    rule.remove()
    assert ruleset() == before


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "installed", "operators"),
    [
        ("forward", True, "iifname eth7 drop"),
        ("forward", False, "iifname eth7 drop"),
        ("FORWARD", True, "ct state established accept"),  # as iptables-restore-translate writes it
    ],
)
@pytest.mark.usefixtures("alone")
def test_a_table_that_is_only_called_like_iptables_is_the_operators(
    *, name: str, installed: bool, operators: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft("add table ip filter")
    nft(f"add chain ip filter {name} '{{ type filter hook forward priority 0; policy drop; }}'")
    nft(f"add rule ip filter {name} {operators}")
    if not installed:
        uninstall(monkeypatch, *IPTABLES)
    before = ruleset()
    rule = ForwardRule(replace(SITE, forward_chain=f"ip filter {name}"))
    assert rule.ensure() == []
    assert rule.ensure() == []
    assert chain(f"ip filter {name}")[1:] == accepts()
    rule.remove()
    assert ruleset() == before


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_native_rules_beside_iptables_chains_do_not_disturb_iptables() -> None:
    """The operator has a base chain of their own in iptables-nft's table, which iptables-nft ignores."""
    run("iptables-nft", "-A", "FORWARD", "-i", "eth7", "-j", "DROP")
    nft("add chain ip filter mine '{ type filter hook forward priority 1; policy drop; }'")
    before = run("iptables-nft", "-S")
    ForwardRule(replace(SITE, forward_chain="ip filter mine")).ensure()
    assert run("iptables-nft", "-S") == before
    assert chain("ip filter mine") == accepts()


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_rules_of_iptables_with_our_comment_are_not_ours() -> None:
    """iptables-nft stores comments as nft does."""
    way = "-o wg0 -m comment --comment".split()
    run("iptables-nft", "-A", "FORWARD", *way, "igd wg0", "-m", "connmark", "--mark", "1/1", "-j", "ACCEPT")
    before = ruleset()
    ForwardRule(UNNAMED).ensure()
    ForwardRule(UNNAMED).remove()
    assert ruleset() == before


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_a_transaction_that_nft_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program deletes our rules between the listing and the transaction that deletes them too."""
    ForwardRule(replace(SITE, forward_chain="inet filter early")).ensure()
    before = chain()

    def run_late(name: str, *arguments: str, text: str = "") -> str:
        if text:
            nft("flush chain inet filter early")
        return xtables_run(name, *arguments, text=text)

    xtables_run = xtables.run
    monkeypatch.setattr(xtables, "run", run_late)
    with pytest.raises(FirewallError, match=r"^nft: .*No such file or directory"):
        ForwardRule(SITE).ensure()
    assert chain() == before


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_without_nft_its_absence_is_a_warning_and_nothing_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    ForwardRule(SITE).ensure()
    before = ruleset()
    uninstall(monkeypatch, "nft")
    missing = "nft: not installed; without it our rules in inet filter forward can neither be inserted nor deleted"
    assert ForwardRule(SITE).ensure() == [missing]
    assert ForwardRule(UNNAMED).ensure() == [missing]
    with pytest.raises(FirewallError, match=r"^nft: not installed$"):
        ForwardRule(UNNAMED).remove()
    assert ruleset() == before


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_without_nft_and_without_rules_of_ours_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if chains of iptables contain our comment, as they do with our jump."""
    way = "-o wg0 -m comment --comment".split()
    run("iptables-nft", "-A", "FORWARD", *way, "igd wg0", "-m", "connmark", "--mark", "1/1", "-j", "ACCEPT")
    uninstall(monkeypatch, "nft")
    rule = ForwardRule(UNNAMED)
    assert rule.ensure() == []
    rule.remove()


@pytest.mark.root
@pytest.mark.parametrize("interface", ["wg\xe9", "wg\\", "$wg", "#wg", "wg;", "{wg", "wg'0", "-wg", "w\x01"])
@pytest.mark.usefixtures("firewall")
def test_odd_names_of_interfaces(interface: str) -> None:
    rule = ForwardRule(replace(SITE, wireguard=interface))
    assert rule.ensure() == []
    before = listed_bytes()
    assert all(os.fsencode(line) in before for line in accepts(interface))
    assert rule.ensure() == []
    assert listed_bytes() == before
    rule.remove()
    assert b"igd " + os.fsencode(interface) not in listed_bytes()


def chain_bytes() -> list[bytes]:
    listed = subprocess.run("nft list chain inet filter forward".split(), check=True, capture_output=True).stdout
    return [line.strip() for line in listed.splitlines()[2:-2]]


def listed_bytes() -> bytes:
    return subprocess.run(["nft", "-a", "list", "ruleset"], check=True, capture_output=True).stdout


@pytest.mark.root
@pytest.mark.parametrize("interface", ['wg"0', "wg*"])
def test_names_that_nft_cannot_write_are_complained_of(firewall: str, interface: str) -> None:
    rule = ForwardRule(replace(SITE, wireguard=interface))
    (warning,) = rule.ensure()
    assert warning.endswith(f"nft cannot write the name {interface}")
    rule.remove()
    assert ruleset() == firewall


# What the operator's chain ends in, and what stays ahead of ours.
LAWS = {
    "policy accept": ("accept", ["ip saddr 198.51.100.7 drop", "ip saddr @banned drop"], [], None),
    "policy drop": ("drop", ["ip saddr @banned drop", "tcp dport 8000 reject"], [], 2),
    "a reject": ("accept", ["ip saddr @banned drop"], ["reject", "ip saddr 9.9.9.9 drop"], 1),
    "two protocols": (
        "accept",
        ["ct state invalid drop"],
        ["tcp dport 1-65535 reject with tcp reset", "udp dport 1-65535 drop"],
        1,
    ),
    "isolation": ("accept", ['iifname "wg0" oifname "wg0" drop'], [], None),
    "one protocol": ("accept", ["meta l4proto udp drop"], [], None),
    "a chain": ("accept", ["ip saddr @banned drop"], ["jump everything"], 1),
}


@pytest.mark.root
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.usefixtures("alone")
def test_the_place(law: str) -> None:
    """Nowhere where nothing stops every mapped flow; else before what does, and behind all that is narrow."""
    policy, ahead, behind, position = LAWS[law]
    body = "\n".join([*ahead, *behind])
    run(
        "nft",
        "-f",
        "-",
        text=f"""table inet filter {{
        set banned {{ type ipv4_addr; }}
        chain everything {{ drop; }}
        chain forward {{ type filter hook forward priority filter; policy {policy};\n{body}\n}}
    }}""",
    )
    before = ruleset()
    rule = ForwardRule(SITE)
    for _again in range(2):
        assert [warning for warning in rule.ensure() if law != "one protocol"] == []
        listed = chain(handles=True)
        ours = [index for index, line in enumerate(listed) if "igd wg0" in line]
        assert ours == ([] if position is None else [position, position + 1, position + 2])
    nft("insert rule inet filter forward ip saddr 198.51.100.9 drop")
    rule.ensure()
    assert chain(handles=True)[1:] == listed
    nft("add rule inet filter forward ip saddr 198.51.100.10 drop")
    rule.ensure()
    assert ("igd wg0" in chain()[-1]) is (policy == "drop")
    rule.remove()
    assert [
        line for line in ruleset().splitlines() if "198.51.100" not in line or " 198.51.100.7 " in line
    ] == before.splitlines()


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_a_ban_inside_the_chain_that_stops_everything_stays_ahead() -> None:
    run(
        "nft",
        "-f",
        "-",
        text="""table inet filter {
        chain mine { ip saddr 198.51.100.7 drop; log; drop; }
        chain forward { type filter hook forward priority filter; jump mine; }
    }""",
    )
    before = ruleset()
    rule = ForwardRule(SITE)
    for _again in range(2):
        assert rule.ensure() == []
        assert chain("inet filter mine") == ["ip saddr 198.51.100.7 drop", "log", *accepts(), "drop"]
        assert chain() == ["jump mine"]
    ForwardRule(UNNAMED).remove()
    assert ruleset() == before


@pytest.mark.root
@pytest.mark.parametrize(
    ("rules", "position"),
    [([], 0), (["ip saddr 9.9.9.9 drop"], 1), (["ip saddr 9.9.9.9 drop", "return"], 1), (["accept"], 0), (["drop"], 0)],
)
@pytest.mark.usefixtures("firewall")
def test_a_chain_that_is_no_base_chain_always_has_our_rules(rules: list[str], position: int) -> None:
    for line in rules:
        nft(f"add rule inet filter early {line}")
    rule = ForwardRule(replace(SITE, forward_chain="inet filter early"))
    for _again in range(2):
        assert rule.ensure() == []
        # Behind an accept, packets between peers pass anyway.
        ours = accepts()[: 2 if rules == ["accept"] else 3]
        assert chain("inet filter early") == [*rules[:position], *ours, *rules[position:]]
    nft("insert rule inet filter early ip saddr 198.51.100.9 drop")
    rule.ensure()
    assert chain("inet filter early")[1:] == [*rules[:position], *ours, *rules[position:]]


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_a_rule_that_cannot_be_judged_is_named() -> None:
    nft("insert rule inet filter forward ip saddr != 198.51.100.0/24 drop")
    rule = ForwardRule(SITE)
    (warning,) = rule.ensure()
    assert warning.endswith("may stop mapped flows: inet filter forward: ip saddr != 198.51.100.0/24 drop")
    assert chain()[-3:] == accepts()


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_others_rules_in_bytes_that_are_not_utf_8() -> None:
    latin = b'insert rule inet filter forward iifname "eth\xfc" drop comment "f\xfcr mich"\n'
    subprocess.run(["nft", "-f", "-"], input=latin, check=True)
    rule = ForwardRule(SITE)
    for _again in range(2):
        nft("add rule inet filter forward ip saddr 198.51.100.7 drop")
        (warning,) = rule.ensure()
        assert chain_bytes()[-3:] == [line.encode() for line in accepts()]
        assert "cannot be judged, so ours stand at its end: nft: " in warning
        listed = listed_bytes()
        assert listed.index(accepts()[0].encode()) > listed.index(b"f\xfcr mich")
        assert listed.count(b'accept comment "igd wg0"') == 4  # with the operator's


@pytest.mark.root
@pytest.mark.usefixtures("firewall")
def test_the_highest_bit_as_mark() -> None:
    """Nft 1.0.6 prints its comparison as a prefix."""
    highest = replace(SITE, mark=0x8000_0000)
    ForwardRule(highest).ensure()
    before = chain(handles=True)
    assert len(before) == 5
    ForwardRule(highest).ensure()
    assert chain(handles=True) == before
    ForwardRule(UNNAMED).remove()
    assert len(chain()) == 2
