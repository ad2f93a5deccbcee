"""Which backend is chosen, for every combination of facts, and what the facts are in a real kernel."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.firewall import backend as firewall
from igd.firewall.detect import Backend, Facts, choose, probe
from igd.firewall.forward.iptables_jump import ForwardJump
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.nft.nftables import Nftables
from igd.firewall.operator_rules import xtables
from igd.firewall.site import Site
from tests.firewall.three_hosts import EXTERNAL, PEER, PEERS, REMOTE, new_namespace, run, three_hosts

CASES: list[tuple[Facts, Backend, str]] = [
    (Facts(nf_tables=True, nft_rule_sets=False, legacy_rule_sets=()), "nftables", "no rules of iptables-legacy"),
    (Facts(nf_tables=True, nft_rule_sets=True, legacy_rule_sets=()), "nftables", "no rules of iptables-legacy"),
    (Facts(nf_tables=True, nft_rule_sets=False, legacy_rule_sets=("filter", "nat")), "iptables", "filter, nat"),
    (Facts(nf_tables=True, nft_rule_sets=True, legacy_rule_sets=("nat",)), "nftables", "works beside both"),
    (Facts(nf_tables=False, nft_rule_sets=False, legacy_rule_sets=()), "iptables", "does not support nf_tables"),
    (Facts(nf_tables=False, nft_rule_sets=False, legacy_rule_sets=("nat",)), "iptables", "does not support nf_tables"),
]


@pytest.mark.parametrize(("facts", "backend", "reason"), CASES)
def test_auto(facts: Facts, backend: Backend, reason: str) -> None:
    choice = choose("auto", facts)
    assert choice.backend == backend
    assert re.search(reason, choice.reason)


@pytest.mark.parametrize("facts", [case[0] for case in CASES])
@pytest.mark.parametrize("wanted", ["nftables", "iptables", "pretend"])
def test_the_operators_wish_is_followed(wanted: Backend, facts: Facts) -> None:
    assert choose(wanted, facts).backend == wanted


@pytest.fixture
def alone() -> Iterator[None]:
    with new_namespace():
        yield


PROBES: list[tuple[str, list[str], Facts]] = [
    ("nothing", [], Facts(nf_tables=True, nft_rule_sets=False, legacy_rule_sets=())),
    ("a stray look", ["iptables-legacy -w -L"], Facts(nf_tables=True, nft_rule_sets=False, legacy_rule_sets=())),
    (
        "legacy",
        ["iptables-legacy -w -A FORWARD -o wg0 -j ACCEPT", "iptables-legacy -w -t nat -N mine"],
        Facts(nf_tables=True, nft_rule_sets=False, legacy_rule_sets=("filter",)),
    ),
    (
        "legacy policy",
        ["iptables-legacy -w -P FORWARD DROP"],
        Facts(nf_tables=True, nft_rule_sets=False, legacy_rule_sets=("filter",)),
    ),
    (
        "iptables-nft",
        ["iptables-nft -P FORWARD DROP"],
        Facts(nf_tables=True, nft_rule_sets=True, legacy_rule_sets=()),
    ),
    ("nft", ["nft add table inet mine"], Facts(nf_tables=True, nft_rule_sets=True, legacy_rule_sets=())),
]


@pytest.mark.root
@pytest.mark.parametrize(("commands", "facts"), [case[1:] for case in PROBES], ids=[case[0] for case in PROBES])
@pytest.mark.usefixtures("alone")
def test_probe(commands: list[str], facts: Facts) -> None:
    for command in commands:
        run(*shlex.split(command))
    before = everything()
    assert probe() == facts
    assert everything() == before


def everything() -> tuple[str, str]:
    return run("nft", "list", "ruleset"), Path("/proc/net/ip_tables_names").read_text()


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_what_is_ours_says_nothing_about_the_host() -> None:
    """What a killed daemon left must not change the choice of the next."""
    run("iptables-legacy", "-w", "-P", "FORWARD", "DROP")
    ForwardJump(Site("ext0", "wg0", PEERS)).ensure()
    run("iptables-legacy", "-w", "-P", "FORWARD", "ACCEPT")
    for backend in (Nftables(Site("ext0", "wg0", PEERS)), Iptables(Site("ext0", "wg1", PEERS))):
        backend.replace_all([EXTERNAL], [], 0.0)
        backend.close()
    assert probe() == Facts(nf_tables=True, nft_rule_sets=False, legacy_rule_sets=())


@pytest.mark.root
@pytest.mark.usefixtures("alone")
def test_without_its_programs_iptables_legacy_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    run("iptables-legacy", "-w", "-P", "FORWARD", "DROP")
    monkeypatch.setattr(xtables, "_PATH", "/nonexistent")
    assert probe().legacy_rule_sets == ()


class RootsAlone:
    """A file as an unprivileged service finds it."""

    def read_text(self) -> str:
        """Refuse, as the kernel does."""
        raise PermissionError


@pytest.mark.parametrize(
    ("modules", "hidden"),
    [("nf_tables 331776 1\n", False), ("iptable_filter 12288 1\nip_tables 32768 1\n", True), (None, True)],
)
def test_what_cannot_be_read_is_known_where_it_may_matter(
    *,
    modules: str | None,
    hidden: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file with the names of legacy tables is root's alone; None: a kernel without modules."""
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
    """Of nat chains at one priority the later made comes first: why a host with rules of both kinds gets nftables."""
    with three_hosts() as hosts, hosts.listening("udp", winner) as listener:
        run(
            "iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "-j", "DNAT", "--to-destination", f"{PEER}:22"
        )
        mapping = PortMapping(TransportProtocol.UDP, 8043, Endpoint(PEER, 8043), "peer")
        backend = kind(Site("ext0", "wg0", PEERS))
        backend.replace_all([EXTERNAL], [Entry(mapping, Lease(60.0))], 0.0)
        assert hosts.talk("udp", 8043, listener) == REMOTE
        backend.close()
