"""The choice of the backend for every combination of facts, and the facts in a real kernel."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall import backend as firewall
from igd.firewall.backend import FirewallError
from igd.firewall.detect import Backend, Facts, choose, probe
from igd.firewall.forward.iptables_jump import ForwardJump
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.nft.nftables import Nftables
from igd.firewall.operator_rules import xtables
from igd.firewall.site import Site
from tests.firewall.calling import call_from_remote, listener
from tests.firewall.three_hosts import EXTERNAL, PEER, PEERS, REMOTE, run, three_hosts


def facts(*legacy: str, nf_tables: bool = True, nft: bool = False, unseen: str = "") -> Facts:
    return Facts(nf_tables=nf_tables, nft_rule_sets=nft, legacy_rule_sets=legacy, legacy_unseen=unseen)


def never() -> str:
    """Fail: finding out whether the iptables backend works is slow."""
    raise AssertionError


CASES: list[tuple[Facts, Backend, str]] = [
    (facts(), "nftables", "no IPv4 rules of iptables-legacy"),
    (facts(nft=True), "nftables", "no IPv4 rules of iptables-legacy"),
    (facts("filter", "nat"), "iptables", "filter, nat"),
    (facts("nat", nft=True), "nftables", "works beside both"),
    (facts(unseen="there are tables"), "nftables", "this kernel supports nf_tables$"),
    (facts(nft=True, unseen="there are tables"), "nftables", "this kernel supports nf_tables$"),
    (facts(nf_tables=False), "iptables", "does not support nf_tables"),
    (facts("nat", nf_tables=False), "iptables", "does not support nf_tables"),
]
FOR_NFTABLES = [(found, reason) for found, backend, reason in CASES if backend == "nftables"]
INSTALL = re.escape(f"{sys.prefix}/bin/pip install 'wg-igd[iptables]'")


@pytest.mark.parametrize(("found", "backend", "reason"), CASES)
def test_auto(found: Facts, backend: Backend, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    choice = choose("auto", found, lambda: "")
    assert choice.backend == backend
    assert re.search(reason, choice.reason)
    assert not caplog.messages


@pytest.mark.parametrize(("found", "reason"), FOR_NFTABLES)
def test_auto_asks_for_the_iptables_backend_only_where_it_fits(found: Facts, reason: str) -> None:
    assert choose("auto", found, never).backend == "nftables"


@pytest.mark.parametrize("found", [case[0] for case in CASES])
@pytest.mark.parametrize("wanted", ["nftables", "iptables", "pretend"])
def test_a_configured_backend_is_used(wanted: Backend, found: Facts) -> None:
    assert choose(wanted, found, never).backend == wanted


def test_auto_uses_nftables_where_the_iptables_backend_cannot_work(caplog: pytest.LogCaptureFixture) -> None:
    choice = choose("auto", facts("filter", "nat"), lambda: "python-iptables is broken: mend it")
    assert choice == (
        "nftables",
        "this host's own rules are iptables-legacy's (filter, nat), but the iptables backend cannot work",
    )
    (message,) = caplog.messages
    assert message.endswith(", beside the rules of iptables-legacy: python-iptables is broken: mend it")


@pytest.mark.parametrize("legacy", [(), ("nat",)])
def test_where_no_backend_can_work_the_error_says_why_of_each(legacy: tuple[str, ...]) -> None:
    with pytest.raises(FirewallError, match=r"does not support nf_tables, and .* cannot work: it is broken$"):
        choose("auto", facts(*legacy, nf_tables=False), lambda: "it is broken")


def test_without_python_iptables(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The command that installs it is in the warning or the error, where it would be used."""
    monkeypatch.setitem(sys.modules, "iptc", None)
    assert choose("auto", facts("filter")).backend == "nftables"
    (message,) = caplog.messages
    assert re.search(f"{INSTALL}$", message)
    missing = rf"extra wg-igd\[iptables\], which is not installed: .*{INSTALL}"
    with pytest.raises(FirewallError, match=missing):
        choose("iptables", facts())
    with pytest.raises(FirewallError, match=missing):
        choose("auto", facts(nf_tables=False))


PROBES: list[tuple[str, list[str], Facts]] = [
    ("nothing", [], facts()),
    ("a stray look", ["iptables-legacy -w -L"], facts()),
    (
        "legacy",
        ["iptables-legacy -w -A FORWARD -o wg0 -j ACCEPT", "iptables-legacy -w -t nat -N mine"],
        facts("filter"),
    ),
    (
        "legacy policy",
        ["iptables-legacy -w -P FORWARD DROP"],
        facts("filter"),
    ),
    (
        "iptables-nft",
        ["iptables-nft -P FORWARD DROP"],
        facts(nft=True),
    ),
    ("nft", ["nft add table inet mine"], facts(nft=True)),
]


@pytest.mark.root
@pytest.mark.parametrize(("commands", "expected"), [case[1:] for case in PROBES], ids=[case[0] for case in PROBES])
@pytest.mark.usefixtures("alone")
def test_probe(commands: list[str], expected: Facts) -> None:
    for command in commands:
        run(*shlex.split(command))
    before = everything()
    assert probe() == expected
    assert everything() == before


def everything() -> tuple[str, str]:
    return run("nft", "list", "ruleset"), Path("/proc/net/ip_tables_names").read_text()


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_what_is_ours_does_not_count() -> None:
    """The remains of a killed daemon must not change the choice of the next."""
    run("iptables-legacy", "-w", "-P", "FORWARD", "DROP")
    ForwardJump(Site("ext0", "wg0", PEERS)).ensure()
    run("iptables-legacy", "-w", "-P", "FORWARD", "ACCEPT")
    for backend in (Nftables(Site("ext0", "wg0", PEERS)), Iptables(Site("ext0", "wg1", PEERS))):
        backend.replace_all([EXTERNAL], [], 0.0)
        backend.close()
    assert probe() == facts()


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_without_its_programs_rules_of_iptables_legacy_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run("iptables-legacy", "-w", "-P", "FORWARD", "DROP")
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    assert probe() == facts(unseen="there are tables (filter), and iptables-legacy-save is not installed")


class RootsAlone:
    """A file that the service may not read."""

    def read_text(self) -> str:
        """Raise the kernel's error."""
        raise PermissionError


@pytest.mark.parametrize(
    ("modules", "unseen"),
    [("nf_tables 331776 1\n", False), ("iptable_filter 12288 1\nip_tables 32768 1\n", True), (None, True)],
)
def test_unreadable_table_names_are_reported_where_there_may_be_tables(
    *,
    modules: str | None,
    unseen: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only root may read the names of legacy tables; None: a kernel without modules."""
    if modules is not None:
        (tmp_path / "modules").write_text(modules)
    monkeypatch.setattr(xtables, "_MODULES", tmp_path / "modules")
    monkeypatch.setattr(xtables, "_LEGACY_NAMES", RootsAlone())
    monkeypatch.setattr(xtables, "nft_tables", list)
    assert xtables.legacy_tables() == frozenset()
    found = probe()
    assert bool(found.legacy_unseen) is unseen
    assert [message.endswith(" is not readable; see systemd/iptables-legacy.conf") for message in caplog.messages] == (
        [True] * unseen
    )
    assert ("no IPv4 rules" in choose("auto", found, never).reason) is not unseen, "the two must not contradict"


@pytest.mark.root
@pytest.mark.parametrize(("kind", "winner"), [(Nftables, 22), (Iptables, 8043)])
def test_beside_rules_of_nftables_only_nftables_lets_the_operators_redirections_win(
    kind: Callable[[Site], firewall.Backend], winner: int
) -> None:
    """Of two nat chains with one priority the later comes first: so a host with rules of both kinds gets nftables."""
    with three_hosts() as hosts, listener(hosts.peer, "udp", winner) as waiting:
        run(
            "iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "-j", "DNAT", "--to-destination", f"{PEER}:22"
        )
        mapping = PortMapping(TransportProtocol.UDP, 8043, Endpoint(PEER, 8043), "peer")
        backend = kind(Site("ext0", "wg0", PEERS))
        backend.replace_all([EXTERNAL], [Entry(mapping, Lease(60.0))], 0.0)
        assert call_from_remote(hosts, "udp", 8043, waiting) == REMOTE
        backend.close()
