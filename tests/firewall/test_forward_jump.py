"""The jump in the operator's FORWARD, in the real kernel: what gets in, what stays out, and what is left behind."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, Protocol
from igd.firewall import xtables
from igd.firewall.backend import Backend, FirewallError
from igd.firewall.forward_jump import ForwardJump
from igd.firewall.forward_verdict import Passage
from igd.firewall.iptables import Iptables
from igd.firewall.nftables import Nftables
from igd.firewall.rules import MARK
from tests.firewall.three_hosts import EXTERNAL, PEER, PEERS, REMOTE, ThreeHosts, new_namespace, run, three_hosts

pytestmark = pytest.mark.root

PASSAGE = Passage(external="ext0", wireguard="wg0", peers=PEERS, mark=MARK)
FLAVOURS = pytest.mark.parametrize("flavour", ["iptables-nft", "iptables-legacy"])

JUMP = '-A FORWARD -m comment --comment "igd wg0" -j igd_wg0'
ACCEPTS = [
    f'-A igd_wg0 {way} wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000 -j ACCEPT'
    for way in ("-o", "-i")
]

# As ufw has it, cut down: answers pass, the rest is rejected by a rule, and the policy drops too.
REJECTING = """*filter
:FORWARD DROP [0:0]
:ufw-before-forward - [0:0]
:ufw-reject-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


@pytest.fixture
def hosts() -> Iterator[ThreeHosts]:
    with three_hosts() as hosts:
        yield hosts


@pytest.fixture
def alone() -> Iterator[None]:
    with new_namespace():
        yield


def sh(command: str) -> None:
    run(*shlex.split(command))


def rules(flavour: str) -> list[str]:
    """Give the whole rule set of a flavour, without counters of chains and times."""
    lines = run(f"{flavour}-save").splitlines()
    return [line.partition(" [")[0] for line in lines if not line.startswith("#")]


def forward(flavour: str) -> list[str]:
    return [line for line in rules(flavour) if line.startswith("-A FORWARD")]


def legacy_tables() -> str:
    return Path("/proc/net/ip_tables_names").read_text()


@FLAVOURS
@pytest.mark.parametrize("kind", [Nftables, Iptables])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_mapped_traffic_gets_in_and_nothing_else(
    hosts: ThreeHosts, flavour: str, kind: Callable[[str], Backend], protocol: str
) -> None:
    """The operator's own redirection, which he did not accept, stays shut, and so does the way without any."""
    run(f"{flavour}-restore", text=REJECTING)
    sh(f"{flavour} -t nat -A PREROUTING -p {protocol} --dport 9000 -j DNAT --to-destination {PEER}:9000")
    before = rules(flavour)
    backend, jump = kind("wg0"), ForwardJump(PASSAGE)
    mapping = PortMapping(Protocol[protocol.upper()], 8043, Endpoint(PEER, 8043), "peer")
    backend.replace_all([EXTERNAL], [Entry(mapping, Lease(60.0))], 0.0)
    with hosts.listening(protocol, 8043) as mapped, hosts.listening(protocol, 9000) as operators:
        assert hosts.talk(protocol, 8043, mapped, patience=0.1) is None
        jump.ensure()
        assert hosts.talk(protocol, 8043, mapped) == REMOTE
        assert hosts.talk(protocol, 9000, operators, patience=0.1) is None
        jump.remove()
        assert hosts.talk(protocol, 8043, mapped, patience=0.1) is None
    backend.remove_all()
    backend.close()
    assert rules(flavour) == before


def test_a_packet_passes_both_flavours_so_both_get_the_jump(hosts: ThreeHosts) -> None:
    backend, jump = Nftables("wg0"), ForwardJump(PASSAGE)
    mapping = PortMapping(Protocol.TCP, 8043, Endpoint(PEER, 8043), "peer")
    backend.replace_all([EXTERNAL], [Entry(mapping, Lease(60.0))], 0.0)
    for flavour in ("iptables-nft", "iptables-legacy"):
        run(f"{flavour}-restore", text=REJECTING)
    jump.ensure()
    with hosts.listening("tcp", 8043) as mapped:
        assert hosts.talk("tcp", 8043, mapped) == REMOTE
    backend.close()


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_the_jump_comes_first_and_once(flavour: str) -> None:
    run(f"{flavour}-restore", text=REJECTING)
    before = rules(flavour)
    jump = ForwardJump(PASSAGE)
    for _again in range(2):
        jump.ensure()
        assert forward(flavour)[0] == JUMP
        assert [line for line in rules(flavour) if "igd" in line] == [":igd_wg0 -", JUMP, *ACCEPTS]
    for _again in range(2):
        jump.remove()
        assert rules(flavour) == before


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_standing_jump_is_left_alone(flavour: str) -> None:
    """The counters would be gone if the chain were made anew."""
    run(f"{flavour}-restore", text=REJECTING)
    jump = ForwardJump(PASSAGE)
    jump.ensure()
    saved = run(f"{flavour}-save", "-c", "-t", "filter")
    run(f"{flavour}-restore", "-c", text=saved.replace("[0:0] -A igd_wg0", "[7:420] -A igd_wg0"))
    jump.ensure()
    assert "[7:420] -A igd_wg0" in run(f"{flavour}-save", "-c", "-t", "filter")


@pytest.mark.parametrize(
    "lines", [[], ["-i wg0 -j ACCEPT", "-o wg0 -j ACCEPT"], ["-i eth7 -j DROP"]], ids=["none", "walkthrough", "others"]
)
@pytest.mark.usefixtures("alone")
def test_where_traffic_passes_nothing_is_touched(lines: list[str]) -> None:
    for line in lines:
        sh(f"iptables-nft -A FORWARD {line}")
    before = run("nft", "list", "ruleset")
    jump = ForwardJump(PASSAGE)
    jump.ensure()
    jump.remove()
    assert run("nft", "list", "ruleset") == before
    assert legacy_tables() == ""


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_jump_that_is_no_longer_needed_goes(flavour: str) -> None:
    sh(f"{flavour} -P FORWARD DROP")
    ForwardJump(PASSAGE).ensure()
    sh(f"{flavour} -P FORWARD ACCEPT")
    before = [line for line in rules(flavour) if "igd" not in line]
    ForwardJump(PASSAGE).ensure()
    assert rules(flavour) == before


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_jump_that_was_taken_out_or_overtaken_comes_first_again(flavour: str) -> None:
    jump = ForwardJump(PASSAGE)
    run(f"{flavour}-restore", text=REJECTING)
    jump.ensure()
    run(f"{flavour}-restore", text=REJECTING)  # the operator loads his rules anew, and takes ours away
    jump.ensure()
    assert forward(flavour)[0] == JUMP
    sh(f"{flavour} -I FORWARD -i ext0 -j DROP")
    jump.ensure()
    assert forward(flavour)[:2] == [JUMP, "-A FORWARD -i ext0 -j DROP"]
    assert rules(flavour).count(JUMP) == 1


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_chain_that_somebody_changed_is_made_anew(flavour: str) -> None:
    jump = ForwardJump(PASSAGE)
    run(f"{flavour}-restore", text=REJECTING)
    jump.ensure()
    sh(f"{flavour} -F igd_wg0")
    sh(f"{flavour} -A igd_wg0 -p icmp -j ACCEPT")
    jump.ensure()
    assert [line for line in rules(flavour) if line.startswith("-A igd")] == ACCEPTS


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_two_instances_do_not_push_each_other_aside(flavour: str) -> None:
    """Each has its own chain, and does without the other's: it may end at any time."""
    run(f"{flavour}-restore", text=REJECTING)
    before = rules(flavour)
    first = ForwardJump(PASSAGE)
    second = ForwardJump(Passage(external="ext0", wireguard="wg1", peers=PEERS, mark=MARK))
    first.ensure()
    second.ensure()
    both = rules(flavour)
    assert [line[-7:] for line in forward(flavour)][:2] == ["igd_wg1", "igd_wg0"]
    first.ensure()
    second.ensure()
    assert rules(flavour) == both
    second.remove()
    assert forward(flavour)[0] == JUMP
    first.remove()
    assert rules(flavour) == before


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_jump_of_the_operators_own_is_his(flavour: str, caplog: pytest.LogCaptureFixture) -> None:
    """He may lead to our chain from where he likes; the chain then stays, empty, when we go."""
    jump = ForwardJump(PASSAGE)
    sh(f"{flavour} -P FORWARD DROP")
    jump.ensure()
    sh(f"{flavour} -N mine")
    sh(f"{flavour} -A mine -j igd_wg0")
    jump.remove()
    assert [line for line in rules(flavour) if "igd" in line] == [":igd_wg0 -", "-A mine -j igd_wg0"]
    assert "chain igd_wg0 stays, empty, because of: -A mine -j igd_wg0" in caplog.text


@pytest.mark.usefixtures("alone")
def test_a_jump_of_the_operators_own_that_does_it_is_enough() -> None:
    jump = ForwardJump(PASSAGE)
    sh("iptables-nft -P FORWARD DROP")
    jump.ensure()
    sh("iptables-nft -A FORWARD -j igd_wg0")
    run("iptables-nft", "-D", "FORWARD", "-m", "comment", "--comment", "igd wg0", "-j", "igd_wg0")
    jump.ensure()
    assert forward("iptables-nft") == ["-A FORWARD -j igd_wg0"]


@pytest.mark.usefixtures("alone")
def test_rules_of_nftables_itself_in_the_table_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    sh("nft add table ip filter")
    sh("nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'")
    sh("nft 'add rule ip filter FORWARD ct status dnat accept'")
    before = run("nft", "list", "ruleset")
    jump = ForwardJump(PASSAGE)
    jump.ensure()
    jump.remove()
    assert run("nft", "list", "ruleset") == before
    assert "nftables' own rules are in `ip filter`" in caplog.text


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_without_its_programs_a_flavour_is_left_alone(
    flavour: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sh(f"{flavour} -P FORWARD DROP")
    before = rules(flavour)
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    ForwardJump(PASSAGE).ensure()
    assert rules(flavour) == before
    assert f"{flavour}'s FORWARD cannot be looked at: the program is not installed" in caplog.text


@pytest.mark.usefixtures("alone")
def test_without_programs_and_without_tables_there_is_nothing_to_say(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    ForwardJump(PASSAGE).ensure()
    assert caplog.text == ""


@pytest.mark.usefixtures("alone")
def test_what_the_program_refuses_is_an_error_in_its_words() -> None:
    """A chain's name may have 28 characters."""
    sh("iptables-nft -P FORWARD DROP")
    before = rules("iptables-nft")
    with pytest.raises(FirewallError, match=r"iptables-nft-restore: .*chain name"):
        ForwardJump(replace(PASSAGE, wireguard="w" * 30)).ensure()
    assert rules("iptables-nft") == before
