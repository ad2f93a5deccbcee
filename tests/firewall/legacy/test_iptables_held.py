"""The contents of iptables-legacy's tables with every option, and their repair after every kind of failure."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.legacy.python_iptables import library
from igd.firewall.site import Site
from tests.firewall.capabilities import without_net_admin
from tests.firewall.three_hosts import EXTERNAL, PEER, PEER6, PEERS, new_namespace, run

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS, preserve_source_port=True)
NAMES6 = Path("/proc/net/ip6_tables_names")
NETWORK4, NETWORK6 = Remote(IPv4Network("192.0.2.0/24")), Remote(IPv6Network("2001:db8::/32"), 53)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with new_namespace():
        yield


@pytest.fixture
def backend() -> Iterator[Iptables]:
    backend = Iptables(SITE)
    yield backend
    backend.close()


def entry(port: int, remotes: tuple[Remote, ...] = (), description: str = "a game") -> Entry:
    mapping = PortMapping(TransportProtocol.UDP, port, Endpoint(PEER, 9043), "yAnz5TF+lXXJ", description, remotes)
    return Entry(mapping, Lease(60.0))


def hole(port: int, remotes: tuple[Remote, ...] = ()) -> Entry:
    return Entry(Pinhole(TransportProtocol.TCP, Endpoint(PEER6, port), "yAnz5TF+lXXJ", "ssh", remotes), Lease(60.0))


def opened(entry: Entry) -> Change:
    return Change(None, entry)


def closed(entry: Entry) -> Change:
    return Change(entry, None)


def nat(*arguments: str) -> None:
    run("iptables-legacy", "-w", "-t", "nat", *arguments)


def nat6(*arguments: str) -> None:
    run("ip6tables-legacy", "-w", "-t", "nat", *arguments)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("-", ":igd"))]


def saved() -> list[str]:
    return lines(run("iptables-legacy-save", "-t", "nat"))


def saved6() -> list[str]:
    return lines(run("ip6tables-legacy-save", "-t", "nat")) if "nat" in NAMES6.read_text() else []


ENTRIES = [entry(8043), entry(8044, (NETWORK4,)), hole(22), hole(23, (NETWORK6, replace(NETWORK6, port=0)))]
HELD = [
    ":igd_wg0 - [0:0]",
    ":igd_wg0/out - [0:0]",
    '-A PREROUTING -d 60.60.60.1/32 -m comment --comment "igd wg0" -j igd_wg0',
    '-A POSTROUTING -m comment --comment "igd wg0" -j igd_wg0/out',
    "-A POSTROUTING -o ext0 -j MASQUERADE",
    '-A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x10000000/0x10000000',
    (
        '-A igd_wg0 -p udp -m udp --dport 8043 -m comment --comment "yAnz5TF+, a game"'
        " -j DNAT --to-destination 10.100.0.2:9043"
    ),
    (
        '-A igd_wg0 -s 192.0.2.0/24 -p udp -m udp --dport 8044 -m comment --comment "yAnz5TF+, a game"'
        " -j DNAT --to-destination 10.100.0.2:9043"
    ),
    '-A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x0/0x10000000',
    (
        '-A igd_wg0/out -s 10.100.0.0/24 -o wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000'
        " -j MASQUERADE"
    ),
    (
        '-A igd_wg0/out -s 10.100.0.2/32 -o ext0 -p udp -m udp --sport 9043 -m comment --comment "yAnz5TF+"'
        " -j SNAT --to-source 60.60.60.1:8043"
    ),
    (
        '-A igd_wg0/out -s 10.100.0.2/32 -o ext0 -p udp -m udp --sport 9043 -m comment --comment "yAnz5TF+"'
        " -j SNAT --to-source 60.60.60.1:8044"
    ),
]
HELD6 = [
    ":igd_wg0 - [0:0]",
    '-A PREROUTING -m comment --comment "igd wg0" -j igd_wg0',
    (
        '-A igd_wg0 -d 2001:470:100::2/128 -p tcp -m tcp --dport 22 -m comment --comment "yAnz5TF+, ssh"'
        " -j CONNMARK --set-xmark 0x10000000/0x10000000"
    ),
    (
        "-A igd_wg0 -s 2001:db8::/32 -d 2001:470:100::2/128 -p tcp -m tcp --sport 53 --dport 23"
        ' -m comment --comment "yAnz5TF+, ssh" -j CONNMARK --set-xmark 0x10000000/0x10000000'
    ),
    (
        "-A igd_wg0 -s 2001:db8::/32 -d 2001:470:100::2/128 -p tcp -m tcp --dport 23"
        ' -m comment --comment "yAnz5TF+, ssh" -j CONNMARK --set-xmark 0x10000000/0x10000000'
    ),
]


def operator() -> None:
    nat("-A", "POSTROUTING", "-o", "ext0", "-j", "MASQUERADE")


def assert_held() -> None:
    assert saved() == HELD
    assert saved6() == HELD6


def test_a_saved_table_loads_again(backend: Iptables) -> None:
    operator()
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    assert_held()
    texts = [run(f"{program}-save", "-t", "nat") for program in ("iptables-legacy", "ip6tables-legacy")]
    nat("-F")
    nat6("-F")
    for program, text in zip(("iptables-legacy", "ip6tables-legacy"), texts, strict=True):
        run(f"{program}-restore", "-w", "5", text=text)
    assert_held()
    backend.apply([closed(each) for each in ENTRIES], 0.0)  # the loaded rules equal ours
    assert len(saved()) == len(HELD) - 4
    assert saved6() == []


def test_the_logged_commands_have_the_same_effect(backend: Iptables, caplog: pytest.LogCaptureFixture) -> None:
    """In another namespace, the commands alone build the same tables, and clear them."""
    caplog.set_level("INFO")
    nasty = entry(8045, description="$(touch /tmp/oops) `id` \"quoted\" \\ 'single' !! é")
    operator()
    backend.replace_all([EXTERNAL], [], 0.0)
    start = run("iptables-legacy-save", "-t", "nat")
    backend.apply([opened(each) for each in (*ENTRIES, nasty)], 0.0)
    held = saved(), saved6()
    backend.apply([closed(nasty), *(closed(each) for each in ENTRIES)], 0.0)
    end = saved(), saved6()
    commands = [record.getMessage() for record in caplog.records]
    half = next(number for number, line in enumerate(commands) if " -D " in line)
    with new_namespace():
        run("iptables-legacy-restore", text=start)
        run("sh", "-e", "-c", "\n".join(commands[:half]))
        assert (saved(), saved6()) == held
        run("sh", "-e", "-c", "\n".join(commands[half:]))
        assert (saved(), saved6()) == end
    assert not Path("/tmp/oops").exists()  # noqa: S108 - only looked for


def test_a_comment_of_every_length_and_letter_fits(backend: Iptables) -> None:
    descriptions = ["!", "--", "-j DROP", "#", "x" * 400, "".join(map(chr, range(300)))]
    entries = [entry(8043 + number, description=text) for number, text in enumerate(descriptions)]
    backend.replace_all([EXTERNAL], entries, 0.0)
    before = saved()
    nat("-F")
    backend.replace_all([EXTERNAL], [], 0.0)
    backend.apply([opened(each) for each in reversed(entries)], 0.0)
    assert sorted(saved()) == sorted(before)
    backend.apply([closed(each) for each in entries], 0.0)
    assert not any("DNAT" in line for line in saved())


def test_ipv6_is_touched_only_while_there_are_pinholes(backend: Iptables) -> None:
    backend.replace_all([EXTERNAL], [entry(8043)], 0.0)
    backend.apply([opened(entry(8044))], 0.0)
    backend.remove_all()
    assert NAMES6.read_text() == ""
    backend.replace_all([EXTERNAL], [], 0.0)
    backend.apply([opened(hole(22))], 0.0)
    backend.apply([opened(hole(23))], 0.0)
    assert NAMES6.read_text() == "nat\n"
    backend.apply([closed(hole(22))], 0.0)
    assert len(saved6()) == 3
    backend.apply([closed(hole(23))], 0.0)
    assert saved6() == []
    backend.apply([opened(hole(24)), closed(hole(24)), opened(hole(25))], 0.0)
    assert len(saved6()) == 3
    backend.replace_all([EXTERNAL], [], 0.0)
    assert saved6() == []
    backend.replace_all([EXTERNAL], [hole(22)], 0.0)
    backend.remove_all()
    assert (saved(), saved6()) == ([], [])


def test_others_ipv6_rules_stay(backend: Iptables) -> None:
    nat6("-A", "PREROUTING", "-p", "tcp", "-j", "RETURN")
    before = saved6()
    backend.replace_all([EXTERNAL], [hole(22)], 0.0)
    assert saved6()[1:3] == [before[0], HELD6[1]]
    backend.apply([closed(hole(22))], 0.0)
    assert saved6() == before


@pytest.mark.parametrize(("preserve", "place"), [(True, 0), (False, 1)])
def test_the_jump_comes_first_only_where_it_must(preserve: bool, place: int) -> None:
    operator()
    backend = Iptables(replace(SITE, preserve_source_port=preserve))
    for _again in range(2):
        backend.replace_all([EXTERNAL], [], 0.0)
        assert [line.endswith("-j igd_wg0/out") for line in saved() if "-A POSTROUTING" in line].index(True) == place
        assert sum(line.startswith("-A POSTROUTING") for line in saved()) == 2
    backend.close()


def test_without_hairpin_no_jump_is_for_peers() -> None:
    """-C compares the interface masks: a mask of one bit for each letter would be printed alike."""
    backend = Iptables(replace(SITE, hairpin=False))
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    assert [line.partition(" -m ")[0] for line in (*saved(), *saved6()) if "-A PREROUTING" in line] == [
        "-A PREROUTING -d 60.60.60.1/32 ! -i wg0",
        "-A PREROUTING ! -i wg0",
    ]
    jump = "! -i wg0 -m comment --comment".split()
    nat("-C", "PREROUTING", "-d", "60.60.60.1", *jump, "igd wg0", "-j", "igd_wg0")
    nat6("-C", "PREROUTING", *jump, "igd wg0", "-j", "igd_wg0")
    backend.close()


def test_options_that_are_no_longer_wanted_leave_nothing() -> None:
    operator()
    before = saved()
    for site in (SITE, replace(SITE, hairpin=False, preserve_source_port=False)):
        backend = Iptables(site)
        backend.replace_all([EXTERNAL], [entry(8043)], 0.0)
        backend.close()
    assert [line for line in saved() if "POSTROUTING" in line or "out" in line] == before
    backend = Iptables(replace(SITE, hairpin=False, preserve_source_port=False))
    backend.remove_all()
    assert saved() == before


def test_two_instances_do_not_touch_each_other(backend: Iptables) -> None:
    other = Iptables(replace(SITE, wireguard="wg0-out"))
    other.replace_all([EXTERNAL], [entry(1), hole(1)], 0.0)
    before = saved(), saved6()
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    backend.remove_all()
    assert (saved(), saved6()) == before
    other.close()


# In the middle


def gone4() -> None:
    nat("-F")
    nat("-X")


def gone6() -> None:
    nat6("-F")
    nat6("-X")


def rule_gone4() -> None:
    nat("-D", "igd_wg0", "2")


def rule_gone6() -> None:
    nat6("-D", "igd_wg0", "1")


def source_gone() -> None:
    nat("-F", "igd_wg0/out")


BOTH_OPEN = [opened(entry(9001)), opened(hole(9001))]
BOTH_CLOSE = [closed(ENTRIES[0]), closed(ENTRIES[2])]


@pytest.mark.parametrize(
    ("deed", "changes"),
    [
        (gone4, BOTH_OPEN),
        (gone6, BOTH_OPEN),
        (gone4, BOTH_CLOSE),
        (gone6, BOTH_CLOSE),
        (rule_gone4, BOTH_CLOSE),
        (rule_gone6, BOTH_CLOSE),
        (source_gone, BOTH_CLOSE),
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_a_foreign_deletion_is_detected_before_anything_is_written(
    backend: Iptables, deed: Callable[[], None], changes: list[Change], turn: int
) -> None:
    operator()
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    deed()
    before = saved(), saved6()
    with pytest.raises(FirewallError, match="igd_wg0"):
        backend.apply(changes[::turn], 0.0)
    assert (saved(), saved6()) == before
    nat("-F", "POSTROUTING")
    operator()
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    assert_held()
    backend.apply(changes, 0.0)


def test_without_cap_net_admin_nothing_changes(backend: Iptables) -> None:
    operator()
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    calls: list[Callable[[], None]] = [
        lambda: backend.apply(BOTH_OPEN, 0.0),
        lambda: backend.replace_all([EXTERNAL], [], 0.0),
        backend.remove_all,
    ]
    for call in calls:
        with without_net_admin(), pytest.raises(FirewallError, match=r"Permission denied|not permitted"):
            call()
    assert_held()
    backend.apply(BOTH_OPEN, 0.0)
    assert len(saved()) == len(HELD) + 2


def test_a_kernel_without_nat_for_ipv6_refuses_pinholes_only(
    backend: Iptables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a kernel returns for `nat` the error of a table that does not exist."""
    monkeypatch.setattr(library().Table6, "NAT", "absent")
    operator()
    backend.replace_all([EXTERNAL], ENTRIES[:1], 0.0)
    before = saved()
    for batch in ([opened(hole(22))], BOTH_OPEN):
        with pytest.raises(FirewallError, match="can't initialize absent"):
            backend.apply(batch, 0.0)
        assert saved() == before
    backend.apply([opened(ENTRIES[1])], 0.0)
    assert len(saved()) == len(HELD)
    with pytest.raises(FirewallError):
        backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    assert saved() == HELD, "the mappings are held all the same"
    backend.remove_all()
    monkeypatch.undo()
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    assert_held()


def test_a_program_that_takes_no_lock_between_the_two_writes(
    backend: Iptables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first table is written, the second refused (EAGAIN); the caller's replace_all repairs both."""
    operator()
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    commit, calls, another = library().Table.commit, itertools.count(), tmp_path / "another.lock"

    def interrupted(table: object) -> None:
        if next(calls) == 1:
            command = ["ip6tables-legacy", "-t", "nat", "-A", "OUTPUT", "-j", "RETURN"]
            subprocess.run(command, env={**os.environ, "XTABLES_LOCKFILE": str(another)}, check=True)
        commit(table)

    monkeypatch.setattr(library().Table, "commit", interrupted)
    with pytest.raises(FirewallError, match="can't commit"):
        backend.apply(BOTH_OPEN, 0.0)
    monkeypatch.undo()
    assert (len(saved()), len(saved6())) == (len(HELD) + 2, len(HELD6) + 1), "the first is done, the second is not"
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    nat6("-F", "OUTPUT")
    assert_held()
