"""What the iptables backend left behind is removed without python-iptables, and nothing else is."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, Pinhole, PortMapping, TransportProtocol
from igd.firewall import kernel
from igd.firewall.backend import FirewallError
from igd.firewall.legacy import table
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.operator_rules import xtables
from igd.firewall.site import MARK, Site
from tests.firewall.three_hosts import EXTERNAL, PEER, PEER6, PEERS, new_namespace, run

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS, anycast=True, preserve_source_port=True)
ENTRIES = [
    Entry(PortMapping(TransportProtocol.UDP, 8043, Endpoint(PEER, 9043), "peer", 'a "game"'), Lease(60.0)),
    Entry(Pinhole(TransportProtocol.TCP, Endpoint(PEER6, 22), "peer"), Lease(60.0)),
]
NAMES = Path("/proc/net/ip_tables_names")


def by_the_start_of_nftables() -> None:
    kernel.build("nftables", SITE, LegacyWatch(kernel.LEGACY)).close()


def by_igd_stop() -> None:
    kernel.remove_everything("wg0", MARK, PEERS)


BOTH = pytest.mark.parametrize("removing", [by_the_start_of_nftables, by_igd_stop])
Removing = Callable[[], None]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with new_namespace():
        yield


def leave_behind(site: Site) -> None:
    backend = Iptables(site)
    backend.replace_all([EXTERNAL], ENTRIES, 0.0)
    backend.close()


def lose_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iptc", None)
    monkeypatch.delattr(table, "library")


def rules() -> list[str]:
    """Give both `nat` tables without counters and comments."""
    lines = [run(f"{program}-save", "-t", "nat") for program in ("iptables-legacy", "ip6tables-legacy")]
    return [line.partition(" [")[0] for text in lines for line in text.splitlines() if line[0] != "#"]


def operators_rules() -> None:
    for program in ("iptables-legacy", "ip6tables-legacy"):
        run(program, "-w", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "80", "-j", "REDIRECT")
        run(program, "-w", "-t", "nat", "-A", "POSTROUTING", "-o", "ext0", "-j", "MASQUERADE")


@BOTH
def test_all_of_this_instance_goes_and_all_else_stays(removing: Removing, monkeypatch: pytest.MonkeyPatch) -> None:
    operators_rules()
    leave_behind(replace(SITE, wireguard="wg0-out"))
    before = rules()
    leave_behind(SITE)
    assert len(rules()) > len(before)
    lose_library(monkeypatch)
    removing()
    assert rules() == before


@BOTH
def test_a_chain_that_the_operator_uses_stays_empty(
    removing: Removing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leave_behind(SITE)
    run("iptables-legacy", "-w", "-t", "nat", "-A", "OUTPUT", "-j", "igd_wg0")
    lose_library(monkeypatch)
    removing()
    assert [line for line in rules() if "igd" in line] == [":igd_wg0 -", "-A OUTPUT -j igd_wg0"]
    assert "iptables-legacy: chain igd_wg0 stays, empty: a rule jumps to it" in caplog.messages


@BOTH
def test_where_nothing_is_left_no_program_runs(removing: Removing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on a host whose operator has such rules, nor on one without."""
    lose_library(monkeypatch)
    removing()
    assert NAMES.read_text() == ""
    operators_rules()
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    removing()


@BOTH
def test_without_the_programs_what_is_left_is_an_error(removing: Removing, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_behind(SITE)
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    with pytest.raises(FirewallError, match="iptables-legacy-save: not installed"):
        removing()
