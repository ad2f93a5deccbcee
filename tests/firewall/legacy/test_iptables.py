"""The iptables backend in the real kernel: what arrives, what is marked, and that others' rules stay."""

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.legacy.xtables_lock import xtables_lock
from igd.firewall.site import MARK, Site
from tests.firewall.calling import Transport, call_from_remote, caller, listener
from tests.firewall.three_hosts import (
    EXTERNAL,
    PEER,
    PEERS,
    REMOTE,
    ThreeHosts,
    run,
)
from tests.lab import PATIENCE

pytestmark = pytest.mark.root

LEGACY_TABLES = Path("/proc/net/ip_tables_names")
SITE = Site("ext0", "wg0", PEERS, hairpin=False)


def entry(protocol: TransportProtocol, port: int, inside: int | None = None) -> Entry:
    return Entry(PortMapping(protocol, port, Endpoint(PEER, inside or port), "peer"), Lease(expires=60.0))


def opened(entry: Entry) -> Change:
    return Change(None, entry)


def closed(entry: Entry) -> Change:
    return Change(entry, None)


def nat(*arguments: str) -> str:
    return run("iptables-legacy", "-w", "-t", "nat", *arguments)


def saved() -> list[str]:
    """Return the rules of nat as iptables-legacy prints them, without counters and times."""
    return [line for line in run("iptables-legacy-save", "-t", "nat").splitlines() if line.startswith(("-", ":igd"))]


TCP_8043 = entry(TransportProtocol.TCP, 8043)
UDP_8043 = entry(TransportProtocol.UDP, 8043)
HELD = [
    ":igd_wg0 - [0:0]",
    '-A PREROUTING -d 60.60.60.1/32 ! -i wg0 -m comment --comment "igd wg0" -j igd_wg0',
    '-A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x10000000/0x10000000',
    "-A igd_wg0 -p tcp -m tcp --dport 8043 -m comment --comment peer -j DNAT --to-destination 10.100.0.2:8043",
    "-A igd_wg0 -p udp -m udp --dport 8043 -m comment --comment peer -j DNAT --to-destination 10.100.0.2:8043",
    '-A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x0/0x10000000',
]


@pytest.fixture
def backend() -> Iterator[Iptables]:
    backend = Iptables(SITE)
    yield backend
    backend.close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_traffic_arrives_from_its_true_source_and_is_answered(
    hosts: ThreeHosts, backend: Iptables, protocol: Transport
) -> None:
    backend.replace_all([EXTERNAL], [], 0.0)
    with listener(hosts.peer, protocol, 9043) as waiting:
        assert call_from_remote(hosts, protocol, 8043, waiting) is None
        mapping = entry(TransportProtocol[protocol.upper()], 8043, inside=9043)
        run("conntrack", "-F")  # a packet sent too early has made a flow without translation
        backend.apply([opened(mapping)], 0.0)
        assert call_from_remote(hosts, protocol, 8043, waiting) == REMOTE
        backend.apply([closed(mapping)], 0.0)
        run("conntrack", "-F")
        assert call_from_remote(hosts, protocol, 8043, waiting) is None


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_operators_own_redirection_wins(hosts: ThreeHosts, backend: Iptables, protocol: Transport) -> None:
    nat("-A", "PREROUTING", "-p", protocol, "--dport", "8043", "-j", "DNAT", "--to-destination", f"{PEER}:22")
    backend.replace_all([EXTERNAL], [TCP_8043, UDP_8043], 0.0)
    with listener(hosts.peer, protocol, 22) as operators, listener(hosts.peer, protocol, 8043):
        assert call_from_remote(hosts, protocol, 8043, operators) == REMOTE


def test_only_our_flows_carry_the_mark_and_marks_of_others_stay(hosts: ThreeHosts, backend: Iptables) -> None:
    """The operator sets 0x5 on every flow; our bit is added where a mapping translates the flow."""
    run("iptables-legacy", "-w", "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", "0x5/0xff")
    nat("-A", "PREROUTING", "-p", "tcp", "--dport", "8001", "-j", "DNAT", "--to-destination", str(PEER))
    backend.replace_all([EXTERNAL], [TCP_8043, UDP_8043], 0.0)
    flows: list[tuple[Transport, int, int]] = [
        ("tcp", 8043, hosts.peer),
        ("udp", 8043, hosts.peer),
        ("tcp", 8001, hosts.peer),
        ("tcp", 8002, hosts.server),
    ]
    for protocol, port, where in flows:
        with listener(where, protocol, port) as waiting:
            assert call_from_remote(hosts, protocol, port, waiting) == REMOTE
    with (
        listener(hosts.remote, "udp", 8003) as waiting,
        caller(hosts.peer, "udp", 8003, IPv4Address(REMOTE)) as outgoing,
    ):
        outgoing.send(b"hello")
        assert waiting.recv(64) == b"hello", "forwarded, without translation"
    assert marks() == {
        ("tcp", 8043): MARK | 5,
        ("udp", 8043): MARK | 5,
        ("tcp", 8001): 5,
        ("tcp", 8002): 5,
        ("udp", 8003): 5,
    }


def marks() -> dict[tuple[str, int], int]:
    """Return each flow's conntrack mark by protocol and destination port."""
    pattern = re.compile(r"^(tcp|udp).*?dport=(\d+).*mark=(\d+)")
    found = filter(None, map(pattern.match, run("conntrack", "-L").splitlines()))
    return {(match[1], int(match[2])): int(match[3]) for match in found}


def nothing() -> None:
    """Leave everything as it is."""


def half_of_it() -> None:
    nat("-N", "igd_wg0")
    nat("-A", "igd_wg0", "-p", "tcp", "--dport", "1", "-j", "DNAT", "--to-destination", "10.100.0.9:1")


def jumps_too_many() -> None:
    half_of_it()
    nat("-A", "PREROUTING", "-d", "60.60.60.1", "-j", "igd_wg0")
    nat("-I", "PREROUTING", "-p", "tcp", "-m", "multiport", "--dports", "1,2", "-g", "igd_wg0")
    nat("-A", "PREROUTING", "-d", "60.60.60.9", "-m", "comment", "--comment", "igd wg0", "-j", "igd_wg0")


def somebody_elses() -> None:
    nat("-A", "PREROUTING", "-p", "tcp", "--dport", "22", "-j", "RETURN")
    nat("-N", "igd_wg1")
    nat("-A", "PREROUTING", "-d", "60.60.60.1", "-j", "igd_wg1")


@pytest.mark.parametrize("before", [nothing, half_of_it, jumps_too_many])
@pytest.mark.usefixtures("alone")
def test_replace_all_has_the_same_result_whatever_was_there(backend: Iptables, before: Callable[[], None]) -> None:
    before()
    for _again in range(2):
        backend.replace_all([EXTERNAL], [TCP_8043, UDP_8043], 0.0)
        assert saved() == HELD


@pytest.mark.usefixtures("alone")
def test_replace_all_leaves_others_rules_in_place_and_comes_after_them(backend: Iptables) -> None:
    somebody_elses()
    others = saved()
    backend.replace_all([EXTERNAL], [TCP_8043], 0.0)
    assert [line for line in saved() if "igd_wg0" not in line] == others
    assert [line for line in saved() if "-A PREROUTING" in line].index(HELD[1]) == 1, "another instance's may be behind"
    backend.remove_all()
    assert saved() == others


@pytest.mark.usefixtures("alone")
def test_every_address_gets_a_jump(backend: Iptables) -> None:
    backend.replace_all([EXTERNAL, EXTERNAL + 1, EXTERNAL], [], 0.0)
    jumps = [line.split()[3] for line in saved() if line.startswith("-A PREROUTING")]
    assert jumps == ["60.60.60.1/32", "60.60.60.2/32"]
    backend.replace_all([EXTERNAL + 2], [], 0.0)
    assert [line.split()[3] for line in saved() if line.startswith("-A PREROUTING")] == ["60.60.60.3/32"]


@pytest.mark.usefixtures("alone")
def test_a_batch_is_done_whole(backend: Iptables) -> None:
    moved = entry(TransportProtocol.TCP, 8043, inside=22)
    backend.replace_all([EXTERNAL], [TCP_8043, UDP_8043], 0.0)
    backend.apply([Change(TCP_8043, moved), closed(UDP_8043), opened(entry(TransportProtocol.UDP, 9))], 0.0)
    assert [line for line in saved() if "DNAT" in line] == [
        "-A igd_wg0 -p udp -m udp --dport 9 -m comment --comment peer -j DNAT --to-destination 10.100.0.2:9",
        "-A igd_wg0 -p tcp -m tcp --dport 8043 -m comment --comment peer -j DNAT --to-destination 10.100.0.2:22",
    ]
    assert [line for line in saved() if "igd_wg0 " in line][-1] == HELD[-1], "the mark is taken back at the very end"


@pytest.mark.usefixtures("alone")
def test_a_batch_with_an_impossible_change_changes_nothing(backend: Iptables) -> None:
    backend.replace_all([EXTERNAL], [TCP_8043], 0.0)
    before = saved()
    with pytest.raises(FirewallError, match="igd_wg0"):
        backend.apply([opened(entry(TransportProtocol.UDP, 9)), closed(UDP_8043)], 0.0)
    assert saved() == before
    backend.apply([closed(TCP_8043)], 0.0)  # the failed changes are forgotten
    assert [line for line in saved() if "DNAT" in line] == []


@pytest.mark.parametrize("command", [["-F"], ["-F", "igd_wg0"], ["-D", "igd_wg0", "2"]])
@pytest.mark.usefixtures("alone")
def test_a_foreign_change_is_detected(backend: Iptables, command: list[str]) -> None:
    backend.replace_all([EXTERNAL], [TCP_8043], 0.0)
    nat(*command)
    with pytest.raises(FirewallError):
        backend.apply([Change(TCP_8043, entry(TransportProtocol.TCP, 8043, inside=22))], 0.0)
    backend.replace_all([EXTERNAL], [TCP_8043, UDP_8043], 0.0)
    assert saved() == HELD


@pytest.mark.usefixtures("alone")
def test_renewals_do_not_touch_the_kernel(backend: Iptables) -> None:
    renewed = Entry(TCP_8043.mapping, Lease(expires=120.0))
    backend.apply([Change(TCP_8043, renewed)], 0.0)
    assert LEGACY_TABLES.read_text() == ""


@pytest.mark.usefixtures("alone")
def test_removal_creates_no_table_and_mappings_create_nat_only(backend: Iptables) -> None:
    """While a legacy table exists, every iptables-nft command prints a warning."""
    backend.remove_all()
    assert LEGACY_TABLES.read_text() == ""
    backend.replace_all([EXTERNAL], [TCP_8043], 0.0)
    backend.remove_all()
    backend.remove_all()
    assert LEGACY_TABLES.read_text() == "nat\n"
    assert saved() == []


@pytest.mark.usefixtures("alone")
def test_the_library_is_loaded_only_to_change_something() -> None:
    """The import runs programs and loads kernel modules, which a host of another backend must be spared."""
    lines = (
        "import sys",
        "from igd.firewall.site import Site",
        "from igd.firewall.legacy import iptables, watch",
        "backend = iptables.Iptables(Site('ext0', 'wg0', ()))",
        "backend.remove_all()",
        "backend.close()",
        "assert not watch.LegacyWatch([(4, 'nat')]).changed()",
        "assert 'iptc' not in sys.modules",
    )
    run(sys.executable, "-W", "error", "-c", "\n".join(lines))


@pytest.mark.usefixtures("alone")
def test_a_rule_of_the_operators_that_uses_our_chain_keeps_it_alive(
    backend: Iptables, caplog: pytest.LogCaptureFixture
) -> None:
    backend.replace_all([EXTERNAL], [TCP_8043], 0.0)
    nat("-A", "OUTPUT", "-j", "igd_wg0")
    backend.remove_all()
    assert saved() == [":igd_wg0 - [0:0]", "-A OUTPUT -j igd_wg0"]
    assert "chain igd_wg0 stays" in caplog.text


@pytest.mark.usefixtures("alone")
def test_no_update_is_lost_beside_a_busy_operator(backend: Iptables) -> None:
    """Without the lock, or without a new read before each change, one of the two loses rules here."""
    count = 60
    backend.replace_all([EXTERNAL], [], 0.0)
    command = "iptables-legacy -w -t nat -A PREROUTING -p tcp --dport $n -j RETURN"
    script = f"for n in $(seq {count}); do {command} || exit 1; done"
    with subprocess.Popen(["sh", "-c", script]) as operator:
        ours = 0
        while operator.poll() is None or ours < count:
            backend.apply([opened(entry(TransportProtocol.TCP, 1024 + ours))], 0.0)
            ours += 1
        assert operator.returncode == 0
    assert sum("-j RETURN" in line for line in saved()) == count
    assert sum("-j DNAT" in line for line in saved()) == ours


def assert_locked_out() -> None:
    """Exit status 4 is RESOURCE_PROBLEM; without -w 1 the program would wait for ever."""
    command = ["iptables-legacy", "-w", "1", "-t", "nat", "-L"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "xtables lock" in done.stderr


@pytest.mark.usefixtures("alone")
def test_the_lock_is_that_of_iptables_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XTABLES_LOCKFILE")
    with xtables_lock(timeout=PATIENCE):
        assert_locked_out()


@pytest.mark.usefixtures("alone")
def test_the_lock_file_can_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    with xtables_lock(timeout=0):
        assert_locked_out()


@pytest.mark.usefixtures("alone")
def test_a_lock_that_stays_held_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    backend = Iptables(SITE, lock_timeout=0.05)
    held = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(FirewallError, match="another process holds iptables' lock"):
        backend.replace_all([EXTERNAL], [], 0.0)
    os.close(held)
    backend.replace_all([EXTERNAL], [TCP_8043, UDP_8043], 0.0)
    assert saved() == HELD
    backend.close()


@pytest.mark.usefixtures("alone")
def test_a_lock_that_cannot_be_opened_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", "/nonexistent/lock")
    with pytest.raises(FirewallError, match="/nonexistent/lock: No such file or directory"):
        Iptables(SITE).replace_all([EXTERNAL], [], 0.0)


@pytest.mark.usefixtures("alone")
def test_a_new_backend_takes_over_what_an_earlier_one_left(backend: Iptables) -> None:
    earlier = Iptables(SITE)
    earlier.replace_all([EXTERNAL], [TCP_8043, UDP_8043], 0.0)
    earlier.close()
    backend.apply([closed(UDP_8043)], 0.0)
    assert saved() == [line for line in HELD if "udp" not in line]


@pytest.mark.usefixtures("alone")
def test_the_mark_is_the_operators_choice() -> None:
    backend = Iptables(replace(SITE, mark=0x40))
    backend.replace_all([EXTERNAL], [], 0.0)
    assert [line.split()[-1] for line in saved() if "CONNMARK" in line] == ["0x40/0x40", "0x0/0x40"]
    backend.close()
