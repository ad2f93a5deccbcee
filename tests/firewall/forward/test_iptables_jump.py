"""The jump in the operator's FORWARD, in the real kernel: what gets in, what stays out, and what is left behind."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall.backend import Backend, FirewallError
from igd.firewall.forward.iptables_jump import ForwardJump
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.nft.nftables import Nftables
from igd.firewall.operator_rules import xtables
from igd.firewall.site import Site
from tests.firewall.calling import Transport, call_from_remote, listener
from tests.firewall.three_hosts import EXTERNAL, PEER, PEERS, REMOTE, ThreeHosts, run

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS)
FLAVOURS = pytest.mark.parametrize("flavour", ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"])

JUMP = '-A FORWARD -m comment --comment "igd wg0" -j igd_wg0'
ACCEPTS = [
    f'-A igd_wg0 {way} -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000 -j ACCEPT'
    for way in ("! -i wg0 -o wg0", "-i wg0 ! -o wg0", "-i wg0 -o wg0")
]

# As ufw has it, cut down: answers pass, the rest is rejected by a rule, and the policy drops too.
REJECTING = """*filter
:FORWARD DROP [0:0]
:ufw-before-forward - [0:0]
:ufw-reject-forward - [0:0]
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-reject-forward -j REJECT
COMMIT
"""


BEFORE, REJECT = "-A FORWARD -j ufw-before-forward", "-A FORWARD -j ufw-reject-forward"


def sh(command: str) -> None:
    run(*shlex.split(command))


def rules(flavour: str) -> list[str]:
    """Return the whole rule set of a flavour, without counters of chains and times."""
    lines = run(f"{flavour}-save").splitlines()
    return [line.partition(" [")[0] for line in lines if not line.startswith("#")]


def forward(flavour: str) -> list[str]:
    return [line for line in rules(flavour) if line.startswith("-A FORWARD")]


def legacy_tables() -> tuple[str, str]:
    return Path("/proc/net/ip_tables_names").read_text(), Path("/proc/net/ip6_tables_names").read_text()


@pytest.mark.parametrize("flavour", ["iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize("kind", [Nftables, Iptables])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_mapped_traffic_gets_in_and_nothing_else(
    hosts: ThreeHosts, flavour: str, kind: Callable[[Site], Backend], protocol: Transport
) -> None:
    """The operator's own redirection, which he did not accept, stays shut, and so does the way without any."""
    run(f"{flavour}-restore", text=REJECTING)
    sh(f"{flavour} -t nat -A PREROUTING -p {protocol} --dport 9000 -j DNAT --to-destination {PEER}:9000")
    before = rules(flavour)
    backend, jump = kind(SITE), ForwardJump(SITE)
    mapping = PortMapping(TransportProtocol[protocol.upper()], 8043, Endpoint(PEER, 8043), "peer")
    backend.replace_all([EXTERNAL], [Entry(mapping, Lease(60.0))], 0.0)
    with listener(hosts.peer, protocol, 8043) as mapped, listener(hosts.peer, protocol, 9000) as operators:
        assert call_from_remote(hosts, protocol, 8043, mapped) is None
        jump.ensure()
        assert call_from_remote(hosts, protocol, 8043, mapped) == REMOTE
        assert call_from_remote(hosts, protocol, 9000, operators) is None
        jump.remove()
        assert call_from_remote(hosts, protocol, 8043, mapped) is None
    backend.remove_all()
    backend.close()
    assert rules(flavour) == before


def test_a_packet_passes_both_flavours_so_both_get_the_jump(hosts: ThreeHosts) -> None:
    backend, jump = Nftables(SITE), ForwardJump(SITE)
    mapping = PortMapping(TransportProtocol.TCP, 8043, Endpoint(PEER, 8043), "peer")
    backend.replace_all([EXTERNAL], [Entry(mapping, Lease(60.0))], 0.0)
    for flavour in ("iptables-nft", "iptables-legacy"):
        run(f"{flavour}-restore", text=REJECTING)
    jump.ensure()
    with listener(hosts.peer, "tcp", 8043) as mapped:
        assert call_from_remote(hosts, "tcp", 8043, mapped) == REMOTE
    backend.close()


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_the_jump_comes_once_and_before_what_stops_everything(flavour: str) -> None:
    run(f"{flavour}-restore", text=REJECTING)
    before = rules(flavour)
    jump = ForwardJump(SITE)
    for _again in range(2):
        jump.ensure()
        assert forward(flavour) == [BEFORE, JUMP, REJECT]
        assert [line for line in rules(flavour) if "igd" in line] == [":igd_wg0 -", JUMP, *ACCEPTS]
    for _again in range(2):
        jump.remove()
        assert rules(flavour) == before


# Not ip6tables-nft, whose restore forgets counters (1.8.9).
@pytest.mark.parametrize("flavour", ["iptables-nft", "iptables-legacy", "ip6tables-legacy"])
@pytest.mark.usefixtures("alone")
def test_a_standing_jump_is_left_alone(flavour: str) -> None:
    """The counters would be gone if the chain were made anew."""
    run(f"{flavour}-restore", text=REJECTING)
    jump = ForwardJump(SITE)
    jump.ensure()
    saved = run(f"{flavour}-save", "-c", "-t", "filter")
    run(f"{flavour}-restore", "-c", text=saved.replace("[0:0] -A igd_wg0", "[7:420] -A igd_wg0"))
    jump.ensure()
    assert "[7:420] -A igd_wg0" in run(f"{flavour}-save", "-c", "-t", "filter")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["-i wg0 -j ACCEPT", "-o wg0 -j ACCEPT"],
        ["-i eth7 -j DROP"],
        ["-m mac --mac-source 02:00:00:00:00:09 -j DROP", "-o wg0 -p tcp --dport 8000 -j REJECT"],
        ["-i wg0 -o wg0 -j DROP"],
        [
            "-p tcp --syn -m connlimit --connlimit-above 30 -j REJECT",
            "-m hashlimit --hashlimit-name a --hashlimit-above 1/s -j DROP",
        ],
        ["-p udp -j DROP"],
    ],
    ids=["none", "walkthrough", "others", "narrow", "isolation", "limits", "one protocol"],
)
@pytest.mark.usefixtures("alone")
def test_where_traffic_passes_nothing_is_touched(lines: list[str]) -> None:
    for line in lines:
        sh(f"iptables-nft -A FORWARD {line}")
        sh(f"ip6tables-nft -A FORWARD {line}")
    before = run("nft", "list", "ruleset")
    jump = ForwardJump(SITE)
    jump.ensure()
    jump.remove()
    assert run("nft", "list", "ruleset") == before
    assert legacy_tables() == ("", "")


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_jump_that_is_no_longer_needed_goes(flavour: str) -> None:
    sh(f"{flavour} -P FORWARD DROP")
    ForwardJump(SITE).ensure()
    sh(f"{flavour} -P FORWARD ACCEPT")
    before = [line for line in rules(flavour) if "igd" not in line]
    ForwardJump(SITE).ensure()
    assert rules(flavour) == before


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_jump_that_was_removed_or_overtaken_comes_again(flavour: str) -> None:
    jump = ForwardJump(SITE)
    run(f"{flavour}-restore", text=REJECTING)
    jump.ensure()
    run(f"{flavour}-restore", text=REJECTING)  # the operator loads the rules anew, which removes ours
    jump.ensure()
    assert forward(flavour) == [BEFORE, JUMP, REJECT]
    sh(f"{flavour} -I FORWARD -i ext0 -j DROP")
    jump.ensure()
    assert forward(flavour) == [JUMP, "-A FORWARD -i ext0 -j DROP", BEFORE, REJECT]


def banned(flavour: str) -> str:
    return "-s 2001:db8::7/128" if flavour.startswith("ip6") else "-s 198.51.100.7/32"


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_bans_that_come_and_go_stay_ahead(flavour: str) -> None:
    """A ban in front changes nothing, so nothing is edited; the jump moves behind one at the end."""
    sh(f"{flavour} -P FORWARD DROP")
    jump = ForwardJump(SITE)
    jump.ensure()
    ban = f"FORWARD {banned(flavour)} -j DROP"
    for _again in range(2):
        sh(f"{flavour} -I {ban}")
        before = jumps_with_handles(flavour)
        jump.ensure()
        assert forward(flavour) == [f"-A {ban}", JUMP]
        assert jumps_with_handles(flavour) == before
        sh(f"{flavour} -A {ban.replace('DROP', 'REJECT')}")
        jump.ensure()
        assert [line.partition(" --reject")[0] for line in forward(flavour)] == [
            f"-A {ban}",
            f"-A {ban.replace('DROP', 'REJECT')}",
            JUMP,
        ]
        sh(f"{flavour} -D {ban.replace('DROP', 'REJECT')}")
        sh(f"{flavour} -A {ban}")  # twice: that the first is deleted must not open anything
        jump.ensure()
        assert forward(flavour) == [f"-A {ban}", f"-A {ban}", JUMP]
        sh(f"{flavour} -D {ban}")
        sh(f"{flavour} -D {ban}")
        before = jumps_with_handles(flavour)
        jump.ensure()
        assert forward(flavour) == [JUMP]
        assert jumps_with_handles(flavour) == before


CHAINS = """*filter
:FORWARD ACCEPT [0:0]
:IN - [0:0]
:OUT - [0:0]
-A FORWARD -i ext0 -j IN
-A FORWARD -o ext0 -j OUT
-A IN -m mac --mac-source 02:00:00:00:00:09 -j DROP
-A IN -j DROP
-A OUT -p tcp -m tcp --dport 25 -j REJECT
-A OUT -j DROP
COMMIT
"""


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_two_chains_that_stop_different_packets_get_a_jump_each(flavour: str) -> None:
    run(f"{flavour}-restore", text=CHAINS)
    before = rules(flavour)
    jump = ForwardJump(SITE)
    for _again in range(2):
        assert jump.ensure() == []
        lines = [line for line in rules(flavour) if line.startswith(("-A IN", "-A OUT"))]
        assert lines[1:3] == [JUMP.replace("FORWARD", "IN"), "-A IN -j DROP"]
        assert lines[4:] == [JUMP.replace("FORWARD", "OUT"), "-A OUT -j DROP"]
    jump.remove()
    assert rules(flavour) == before


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_jump_that_would_overtake_a_ban_for_other_packets_has_their_conditions(flavour: str) -> None:
    ban = f"-A FORWARD {banned(flavour)} -j DROP"
    for line in ("-A FORWARD -p tcp -j REJECT", ban, "-A FORWARD -p udp -j DROP"):
        sh(f"{flavour} {line}")
    jump = ForwardJump(SITE)
    for _again in range(2):
        assert jump.ensure() == []
        lines = forward(flavour)
        assert lines.index(ban) == len(lines) - 3
        assert lines[-2:] == [JUMP, "-A FORWARD -p udp -j DROP"]
        assert all(" -p tcp -m conntrack --ctstate " in line for line in lines if "igd_wg0" in line and line != JUMP)
        handles = jumps_with_handles(flavour)
    assert jump.ensure() == []
    assert jumps_with_handles(flavour) == handles


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_isolation_of_peers_holds(flavour: str) -> None:
    sh(f"{flavour} -A FORWARD -i ext0 -j DROP")
    sh(f"{flavour} -A FORWARD -i wg0 -o wg0 -j DROP")
    ForwardJump(SITE).ensure()
    assert forward(flavour)[0] == JUMP
    assert [line for line in rules(flavour) if line.startswith("-A igd")] == ACCEPTS[:2]
    sh(f"{flavour} -D FORWARD -i wg0 -o wg0 -j DROP")
    sh(f"{flavour} -P FORWARD DROP")
    sh(f"{flavour} -D FORWARD -i ext0 -j DROP")
    ForwardJump(SITE).ensure()
    assert [line for line in rules(flavour) if line.startswith("-A igd")] == ACCEPTS


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_chain_that_somebody_changed_is_made_anew(flavour: str) -> None:
    jump = ForwardJump(SITE)
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
    first = ForwardJump(SITE)
    second = ForwardJump(Site("ext0", "wg1", PEERS))
    first.ensure()
    second.ensure()
    both = rules(flavour)
    assert [line[-7:] for line in forward(flavour)][1:3] == ["igd_wg0", "igd_wg1"]
    first.ensure()
    second.ensure()
    assert rules(flavour) == both
    sh(f"{flavour} -I FORWARD {banned(flavour)} -j DROP")
    sh(f"{flavour} -I FORWARD 4 {banned(flavour)} -j REJECT")  # between the jumps
    for _again in range(2):
        first.ensure()
        second.ensure()
        assert [line[-7:] for line in forward(flavour)][-3:-1] == ["igd_wg1", "igd_wg0"]
    sh(f"{flavour} -D FORWARD 3")
    sh(f"{flavour} -D FORWARD 1")
    second.remove()
    assert forward(flavour) == [BEFORE, JUMP, REJECT]
    first.remove()
    assert rules(flavour) == before


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_jump_of_the_operators_own_is_his(flavour: str, caplog: pytest.LogCaptureFixture) -> None:
    """He may lead to our chain from where he likes; the chain then stays, empty, when we go."""
    jump = ForwardJump(SITE)
    sh(f"{flavour} -P FORWARD DROP")
    jump.ensure()
    sh(f"{flavour} -N mine")
    sh(f"{flavour} -A mine -j igd_wg0")
    jump.remove()
    assert [line for line in rules(flavour) if "igd" in line] == [":igd_wg0 -", "-A mine -j igd_wg0"]
    assert "chain igd_wg0 stays, empty, because of: -A mine -j igd_wg0" in caplog.text
    caplog.clear()
    jump.remove()  # and it is not emptied again and again, which the watch would hear
    assert caplog.text == ""


@pytest.mark.usefixtures("alone")
def test_a_jump_of_the_operators_own_that_does_it_is_enough() -> None:
    jump = ForwardJump(SITE)
    sh("iptables-nft -P FORWARD DROP")
    jump.ensure()
    sh("iptables-nft -A FORWARD -j igd_wg0")
    run("iptables-nft", "-D", "FORWARD", "-m", "comment", "--comment", "igd wg0", "-j", "igd_wg0")
    jump.ensure()
    assert forward("iptables-nft") == ["-A FORWARD -j igd_wg0"]


@pytest.mark.usefixtures("alone")
def test_rules_of_nftables_itself_in_the_table_are_left_alone() -> None:
    sh("nft add table ip filter")
    sh("nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'")
    sh("nft 'add rule ip filter FORWARD ct status dnat accept'")
    before = run("nft", "list", "ruleset")
    jump = ForwardJump(SITE)
    warning = "iptables-nft's FORWARD cannot be read: nftables' own rules are in its table `filter`"
    assert jump.ensure() == [warning]
    assert jump.remove() == [warning]
    assert run("nft", "list", "ruleset") == before


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_without_its_programs_a_flavour_is_left_alone(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sh(f"{flavour} -P FORWARD DROP")
    before = rules(flavour)
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    warning = f"{flavour}'s FORWARD cannot be read: the program is not installed"
    assert ForwardJump(SITE).ensure() == [warning]
    assert ForwardJump(SITE).remove() == [warning]
    assert rules(flavour) == before


@pytest.mark.usefixtures("alone")
def test_without_programs_and_without_tables_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    assert ForwardJump(SITE).ensure() == []


@pytest.mark.usefixtures("alone")
def test_what_the_program_refuses_is_an_error_in_its_words() -> None:
    """A chain's name may have 28 characters."""
    sh("iptables-nft -P FORWARD DROP")
    before = rules("iptables-nft")
    with pytest.raises(FirewallError, match=r"iptables-nft-restore: .*chain name"):
        ForwardJump(replace(SITE, wireguard="w" * 30)).ensure()
    assert rules("iptables-nft") == before


COUNTED = """*filter
:INPUT ACCEPT [5:300]
:FORWARD DROP [6:360]
:OUTPUT ACCEPT [7:420]
:DOCKER-USER - [0:0]
[3:180] -A FORWARD -m comment --comment "mine \\"and\\" igd wg0's" -j DOCKER-USER
[4:240] -A FORWARD -p tcp -m tcp --dport 22 -m comment --comment "igd wg0" -j ACCEPT
[9:540] -A DOCKER-USER -i eth7 -j DROP
COMMIT
"""


@pytest.mark.parametrize("flavour", ["iptables-nft", "iptables-legacy", "ip6tables-legacy"])
@pytest.mark.parametrize("place", [None, "DOCKER-USER"])
@pytest.mark.usefixtures("alone")
def test_the_operators_rules_keep_their_comments_and_counters(flavour: str, place: str | None) -> None:
    """Also one that bears our comment, but does not lead to our chain."""
    run(f"{flavour}-restore", "-c", text=COUNTED)
    before = counted(flavour)
    assert "[9:540] -A DOCKER-USER -i eth7 -j DROP" in before
    jump = ForwardJump(replace(SITE, forward_chain=place))
    jump.ensure()
    assert set(before) < set(counted(flavour))
    jump.remove()
    assert counted(flavour) == before


def counted(flavour: str) -> list[str]:
    """Return the rule set with its counters; of policies iptables-legacy itself forgets them with every edit."""
    lines = run(f"{flavour}-save", "-c").splitlines()
    kept = " [" if flavour.endswith("legacy") else "\n"
    return [line.partition(kept)[0] if line.startswith(":") else line for line in lines if not line.startswith("#")]


# As docker has it, cut down.
DOCKER = """*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
COMMIT
"""
IN_DOCKER_USER = JUMP.replace("FORWARD", "DOCKER-USER")


def jumps(flavour: str) -> list[str]:
    return [line for line in rules(flavour) if line.endswith("-j igd_wg0")]


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_the_chain_that_the_operator_names_gets_the_jump_and_no_other(flavour: str) -> None:
    run(f"{flavour}-restore", text=DOCKER)
    ban = f"-A DOCKER-USER {banned(flavour)} -j DROP"
    for line in (ban, "-A DOCKER-USER -i ext0 -j DROP"):
        sh(f"{flavour} {line}")
    before = rules(flavour)
    ForwardJump(SITE).ensure()
    jump = ForwardJump(replace(SITE, forward_chain="DOCKER-USER"))
    for _again in range(2):
        assert jump.ensure() == []
        assert jumps(flavour) == [IN_DOCKER_USER]
        lines = [line for line in rules(flavour) if line.startswith("-A DOCKER-USER")]
        assert lines == [ban, IN_DOCKER_USER, "-A DOCKER-USER -i ext0 -j DROP"]
    ForwardJump(SITE).remove()  # which does not know where it is
    assert rules(flavour) == before


@FLAVOURS
@pytest.mark.usefixtures("alone")
def test_a_named_chain_that_is_not_there_is_a_warning_and_used_when_it_comes(flavour: str) -> None:
    jump = ForwardJump(replace(SITE, forward_chain="DOCKER-USER"))
    missing = 'forward_chain = "DOCKER-USER": iptables has no such chain in its table `filter`'
    assert [warning.partition(";")[0] for warning in jump.ensure()] == [missing]
    sh(f"{flavour} -P FORWARD DROP")
    before = rules(flavour)
    dropped, not_there = jump.ensure()
    assert 'ends at: policy DROP of FORWARD; forward_chain = "DOCKER-USER" does not help there' in dropped
    assert not_there.startswith(missing)
    assert rules(flavour) == before
    run(f"{flavour}-restore", text=DOCKER)
    assert jump.ensure() == []
    assert jumps(flavour) == [IN_DOCKER_USER]


# Rules in front of or beside the chain in which the operator wants the jump, and what is left.
IN_THE_WAY = [
    (["-I FORWARD -i ext0 -j DROP"], "-A FORWARD -i ext0 -j DROP"),
    (["-N early", "-A early -i ext0 -j DROP", "-I FORWARD -j early"], "-A early -i ext0 -j DROP"),
    (["-D FORWARD -j DOCKER-USER"], "policy DROP of FORWARD"),
]


@FLAVOURS
@pytest.mark.parametrize(("lines", "obstacle"), IN_THE_WAY)
@pytest.mark.usefixtures("alone")
def test_a_drop_before_the_named_chain_is_a_warning(flavour: str, lines: list[str], obstacle: str) -> None:
    """And the jump, which cannot help, is not inserted again and again."""
    run(f"{flavour}-restore", text=DOCKER)
    for line in lines:
        sh(f"{flavour} {line}")
    jump = ForwardJump(replace(SITE, forward_chain="DOCKER-USER"))
    (warning,) = jump.ensure()
    assert warning.startswith(f"{flavour}: ")
    assert f'{obstacle}; forward_chain = "DOCKER-USER" does not help there; without' in warning
    generation = jumps_with_handles(flavour)
    assert jump.ensure() == [warning]
    assert jumps_with_handles(flavour) == generation
    assert ForwardJump(SITE).ensure() == []


def jumps_with_handles(flavour: str) -> str:
    if flavour.endswith("legacy"):  # which has no handles
        return "\n".join(rules(flavour))
    return run("nft", "-a", "list", "table", "ip6" if flavour.startswith("ip6") else "ip", "filter")


@pytest.mark.usefixtures("alone")
def test_ipv6_is_left_alone_while_no_peer_has_it() -> None:
    for flavour in ("ip6tables-nft", "ip6tables-legacy"):
        sh(f"{flavour} -P FORWARD DROP")
        before = rules(flavour)
        ForwardJump(replace(SITE, peers=PEERS[:1])).ensure()
        assert rules(flavour) == before


PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"


def put_in(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


# What stands in for iptables-nft-restore; REAL is the real one.
FAILING = {
    "killed in the middle": 'head -n 2 | REAL "$@" 2> /dev/null; kill -9 $$',
    "killed before": "kill -9 $$",
    "complaining": "echo no such luck >&2; exit 2",
    "endless": "exec sleep 60",
}


@pytest.mark.parametrize("what", FAILING)
@pytest.mark.usefixtures("alone")
def test_a_failing_program_leaves_the_rules_as_they_were(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("iptables-nft-restore", text=REJECTING)
    before = rules("iptables-nft")
    put_in(tmp_path / "iptables-nft-restore", FAILING[what].replace("REAL", "/usr/sbin/iptables-nft-restore"))
    monkeypatch.setattr(xtables, "_PATH", f"{tmp_path}:{PROGRAMS}")
    if what == "endless":
        monkeypatch.setattr(xtables, "_TIMEOUT", 3)
    with pytest.raises(FirewallError, match="iptables-nft-restore"):
        ForwardJump(SITE).ensure()
    assert rules("iptables-nft") == before
    monkeypatch.setattr(xtables, "_PATH", PROGRAMS)
    ForwardJump(SITE).ensure()
    between = rules("iptables-nft")
    monkeypatch.setattr(xtables, "_PATH", f"{tmp_path}:{PROGRAMS}")
    with pytest.raises(FirewallError, match="iptables-nft-restore"):
        ForwardJump(SITE).remove()
    assert rules("iptables-nft") == between


@pytest.mark.usefixtures("alone")
def test_a_failing_flavour_does_not_keep_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flavours = ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy")
    for flavour in flavours:
        sh(f"{flavour} -P FORWARD DROP")
    ForwardJump(SITE).ensure()
    assert [len(jumps(flavour)) for flavour in flavours] == [1, 1, 1, 1]
    put_in(tmp_path / "ip6tables-nft-restore", "exit 1")
    monkeypatch.setattr(xtables, "_PATH", f"{tmp_path}:{PROGRAMS}")
    with pytest.raises(FirewallError, match="ip6tables-nft-restore"):
        ForwardJump(SITE).remove()
    assert [len(jumps(flavour)) for flavour in flavours] == [0, 1, 0, 0]
