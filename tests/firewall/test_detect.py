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


def facts(*legacy: str, nf_tables: bool = True, nft: bool = False, library: bool = True) -> Facts:
    return Facts(nf_tables=nf_tables, nft_rule_sets=nft, legacy_rule_sets=legacy, python_iptables=library)


CASES: list[tuple[Facts, Backend, str]] = [
    (facts(), "nftables", "no rules of iptables-legacy"),
    (facts(nft=True), "nftables", "no rules of iptables-legacy"),
    (facts("filter", "nat"), "iptables", "filter, nat"),
    (facts("nat", nft=True), "nftables", "works beside both"),
    (facts(nf_tables=False), "iptables", "does not support nf_tables"),
    (facts("nat", nf_tables=False), "iptables", "does not support nf_tables"),
]
WITHOUT_LIBRARY: list[tuple[Facts, str]] = [
    (facts(library=False), "no rules of iptables-legacy"),
    (facts(library=False, nft=True), "no rules of iptables-legacy"),
    (facts("filter", "nat", library=False), r"iptables-legacy's \(filter, nat\), and python-iptables is not installed"),
    (facts("nat", library=False, nft=True), "works beside both"),
]
INSTALL = re.escape(f"{sys.prefix}/bin/pip install 'wg-igd[iptables]'")


@pytest.mark.parametrize(("found", "backend", "reason"), CASES)
def test_auto(found: Facts, backend: Backend, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    choice = choose("auto", found)
    assert choice.backend == backend
    assert re.search(reason, choice.reason)
    assert not caplog.messages


@pytest.mark.parametrize("found", [case[0] for case in CASES])
@pytest.mark.parametrize("wanted", ["nftables", "iptables", "pretend"])
def test_a_configured_backend_is_used(wanted: Backend, found: Facts) -> None:
    assert choose(wanted, found).backend == wanted


@pytest.mark.parametrize(("found", "reason"), WITHOUT_LIBRARY)
def test_auto_without_python_iptables(found: Facts, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """A warning has the command that installs it, only where it would be used."""
    choice = choose("auto", found)
    assert choice.backend == "nftables"
    assert re.search(reason, choice.reason)
    missed = "not installed" in reason
    assert [bool(re.search(INSTALL, message)) for message in caplog.messages] == [True] * missed


@pytest.mark.parametrize("found", [case[0] for case in WITHOUT_LIBRARY])
def test_without_python_iptables_its_backend_is_refused(found: Facts) -> None:
    with pytest.raises(FirewallError, match=rf"extra wg-igd\[iptables\], which is not installed: .*{INSTALL}"):
        choose("iptables", found)
    assert choose("nftables", found).backend == "nftables"


@pytest.mark.parametrize("legacy", [(), ("nat",)])
def test_without_nf_tables_and_without_python_iptables_no_backend_works(legacy: tuple[str, ...]) -> None:
    with pytest.raises(FirewallError, match=INSTALL):
        choose("auto", facts(*legacy, nf_tables=False, library=False))


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
def test_without_its_programs_iptables_legacy_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    run("iptables-legacy", "-w", "-P", "FORWARD", "DROP")
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    assert probe().legacy_rule_sets == ()


class RootsAlone:
    """A file that the service may not read."""

    def read_text(self) -> str:
        """Raise the kernel's error."""
        raise PermissionError


@pytest.mark.parametrize(
    ("modules", "hidden"),
    [("nf_tables 331776 1\n", False), ("iptable_filter 12288 1\nip_tables 32768 1\n", True), (None, True)],
)
def test_unreadable_table_names_are_reported_where_there_may_be_tables(
    *,
    modules: str | None,
    hidden: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only root may read the names of legacy tables; None: a kernel without modules."""
    if modules is not None:
        (tmp_path / "modules").write_text(modules)
    monkeypatch.setattr(xtables, "_MODULES", tmp_path / "modules")
    monkeypatch.setattr(xtables, "_LEGACY_NAMES", RootsAlone())
    assert xtables.legacy_tables() == frozenset()
    assert xtables.legacy_hidden() is hidden


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
