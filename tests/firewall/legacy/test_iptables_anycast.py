"""The chains for PCP's anycast addresses in iptables-legacy; test_anycast.py tests them with traffic."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, Pinhole, TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.legacy.python_iptables import library
from igd.firewall.site import Site
from tests.firewall.listings import SITE
from tests.firewall.three_hosts import EXTERNAL, PEER6, new_namespace, run

pytestmark = pytest.mark.root

ANYCAST = replace(SITE, hairpin=False, anycast=True)
NAMES6 = Path("/proc/net/ip6_tables_names")
HOLE = Entry(Pinhole(TransportProtocol.TCP, Endpoint(PEER6, 22), "peer", "ssh"), Lease(60.0))

JUMP = '-A PREROUTING -d 192.0.0.9/32 -i wg0 -m comment --comment "igd wg0" -j igd_wg0/pcp'
JUMP6 = '-A PREROUTING -d 2001:1::1/128 -i wg0 -m comment --comment "igd wg0" -j igd_wg0/pcp'
REDIRECT = '-A igd_wg0/pcp -p udp -m udp --dport 5351 -m comment --comment "igd wg0" -j REDIRECT'


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Run each test in a network namespace of its own."""
    with new_namespace():
        yield


@contextlib.contextmanager
def backend(site: Site = ANYCAST, *entries: Entry) -> Iterator[Iptables]:
    with contextlib.closing(Iptables(site)) as made:
        made.replace_all([EXTERNAL], entries, 0.0)
        yield made


def rules(program: str = "iptables-legacy") -> list[str]:
    return [line for line in run(f"{program}-save", "-t", "nat").splitlines() if line.startswith("-")]


def rules6() -> list[str]:
    """Return IPv6's rules without creating the table."""
    return rules("ip6tables-legacy") if NAMES6.read_text() else []


def about_anycast(lines: list[str]) -> list[str]:
    return [line for line in lines if "pcp" in line]


def test_each_ip_version_has_a_chain_after_the_operators_rules_until_removal() -> None:
    operators = "-A PREROUTING -p udp -j RETURN"
    for program in ("iptables-legacy", "ip6tables-legacy"):
        run(program, "-t", "nat", *operators.split())
    with backend() as made:
        for _again in range(2):
            made.replace_all([EXTERNAL], [], 0.0)
            assert about_anycast(rules()) == [JUMP, REDIRECT]
            assert rules6() == [operators, JUMP6, REDIRECT]
        assert rules()[0] == operators
        made.remove_all()
        assert (rules(), rules6()) == ([operators], [operators])
    assert "igd" not in run("iptables-legacy-save", "-t", "nat") + run("ip6tables-legacy-save", "-t", "nat")


def test_pinholes_come_and_go_beside_it() -> None:
    with backend() as made:
        before = rules6()
        made.apply([Change(None, HOLE)], 0.0)
        assert about_anycast(rules6()) == [JUMP6, REDIRECT]
        assert len(rules6()) == 4
        made.apply([Change(HOLE, None)], 0.0)
        assert rules6() == before
    with backend(ANYCAST, HOLE):
        assert len(rules6()) == 4


def test_without_the_option_it_goes_and_without_ipv6_peers_there_is_none_of_ipv6() -> None:
    with backend(replace(ANYCAST, peers=SITE.peers[:1])):
        assert about_anycast(rules()) == [JUMP, REDIRECT]
        assert NAMES6.read_text() == ""
    with backend():
        assert rules6() == [JUMP6, REDIRECT]
    with backend(replace(ANYCAST, anycast=False)):
        assert about_anycast(rules()) == []
        assert rules6() == []


def test_a_kernel_without_nat_for_ipv6_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a kernel returns for `nat` the error of a table that does not exist."""
    monkeypatch.setattr(library().Table6, "NAT", "absent")
    with backend() as made:
        made.replace_all([EXTERNAL], [], 0.0)
        assert about_anycast(rules()) == [JUMP, REDIRECT]
        (logged,) = caplog.messages
        assert "IPv6 anycast address" in logged
        assert "can't initialize absent" in logged
        with pytest.raises(FirewallError, match="can't initialize absent"):
            made.replace_all([EXTERNAL], [HOLE], 0.0)
        made.remove_all()
        assert rules() == []
        monkeypatch.undo()
        made.replace_all([EXTERNAL], [], 0.0)
        assert rules6() == [JUMP6, REDIRECT]
