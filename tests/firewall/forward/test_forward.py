"""Marked flows, and no others, pass forward chains that drop: with real packets of both IP versions."""

import socket
from dataclasses import replace
from typing import Literal

import pytest

from igd.firewall.forward.forward import Forward
from igd.firewall.nfnetlink import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
from igd.firewall.operator_rules import xtables
from igd.firewall.site import Site
from tests.firewall.calling import Transport, call, listener
from tests.firewall.three_hosts import (
    EXTERNAL,
    PEER,
    PEER6,
    PEERS,
    ThreeHosts,
    run,
)

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS)
MAPPED, OTHER = 8043, 9000

# What the backends do for mappings and pinholes, and a redirection by the operator that no rule accepts
MARKING = f"""
table inet marking {{
    chain mapped {{
        type nat hook prerouting priority dstnat;
        meta nfproto ipv4 iifname "ext0" th dport {MAPPED} ct mark set ct mark | 0x10000000 dnat ip to {PEER}
        meta nfproto ipv6 iifname "ext0" th dport {MAPPED} ct mark set ct mark | 0x10000000
        meta nfproto ipv4 iifname "ext0" th dport {OTHER} dnat ip to {PEER}
    }}
}}
"""

REJECTING = """*filter
:FORWARD DROP [0:0]
:before - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j before
-A FORWARD -j DOCKER-USER
-A FORWARD -j REJECT
-A before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""


def native(family: str) -> str:
    return f"""table {family} mine {{
        chain forward {{ type filter hook forward priority filter; policy drop; jump later; reject; }}
        chain later {{ ct state invalid drop; }}
    }}"""


def load(firewalls: list[str]) -> None:
    """Load the dropping rules of each of these: iptables' programs, or families of nftables."""
    for each in firewalls:
        if "tables" in each:
            run(f"{each}-restore", text=REJECTING)
        else:
            run("nft", "-f", "-", text=native(each))


def everything() -> list[str]:
    """Return all rules of nftables and iptables-legacy, without counters."""
    saved = run("nft", "-s", "list", "ruleset")
    if not xtables.legacy_tables(4):
        return [saved]
    legacy = "".join(run(f"{name}-save", "-t", "filter") for name in LEGACY).splitlines()
    return [saved, *(line.partition(" [")[0] for line in legacy if not line.startswith("#"))]


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    run("nft", "-f", "-", text=MARKING)
    return hosts


def passes(hosts: ThreeHosts, version: Literal[4, 6], protocol: Transport, port: int) -> bool:
    """Return whether a call from the remote to the port reaches the peer, and its answer the remote, or is rejected."""
    to, at = (str(EXTERNAL), "") if version == 4 else (str(PEER6), "::")
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with listener(hosts.peer, protocol, port, at, family=family) as peer:
        return call(hosts.remote, protocol, (to, port), peer) is not None


IPTABLES = ["iptables-nft", "ip6tables-nft"]
LEGACY = ["iptables-legacy", "ip6tables-legacy"]

# What drops, and `forward_chain`
FIREWALLS: list[tuple[list[str], str | None]] = [
    (IPTABLES, None),
    (LEGACY, None),
    (IPTABLES + LEGACY, None),
    (IPTABLES, "DOCKER-USER"),
    (LEGACY, "DOCKER-USER"),
    (["inet"], "inet mine forward"),
    (["inet"], "inet mine later"),
    (["inet", *IPTABLES], "inet mine forward"),
]


@pytest.mark.parametrize(("firewalls", "forward_chain"), FIREWALLS)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_marked_flows_get_in_and_nothing_else(
    hosts: ThreeHosts,
    firewalls: list[str],
    forward_chain: str | None,
    protocol: Transport,
    caplog: pytest.LogCaptureFixture,
) -> None:
    load(firewalls)
    before = everything()
    forward = Forward(replace(SITE, forward_chain=forward_chain))
    assert not passes(hosts, 4, protocol, MAPPED)
    assert not passes(hosts, 6, protocol, MAPPED)
    forward.ensure()
    assert passes(hosts, 4, protocol, MAPPED)
    assert passes(hosts, 6, protocol, MAPPED)
    assert not passes(hosts, 4, protocol, OTHER)
    assert not passes(hosts, 6, protocol, OTHER)
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    Forward(SITE).remove()  # another process, without `forward_chain`
    assert not passes(hosts, 4, protocol, MAPPED)
    assert not passes(hosts, 6, protocol, MAPPED)
    assert everything() == before


@pytest.mark.parametrize(("family", "version"), [("ip", 4), ("ip6", 6)])
def test_a_native_chain_of_one_family(hosts: ThreeHosts, family: str, version: Literal[4, 6]) -> None:
    load([family])
    assert not passes(hosts, version, "udp", MAPPED)
    Forward(replace(SITE, forward_chain=f"{family} mine forward")).ensure()
    assert passes(hosts, version, "udp", MAPPED)


@pytest.mark.usefixtures("alone")
def test_a_warning_is_logged_once_for_as_long_as_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    forward = Forward(replace(SITE, forward_chain="inet mine forward"))
    for _again in range(2):
        forward.ensure()
    assert len(caplog.records) == 1
    load(["inet"])
    forward.ensure()
    run("nft", "flush", "ruleset")
    forward.ensure()
    assert [record.getMessage() for record in caplog.records] == 2 * [
        'forward_chain = "inet mine forward": nftables has no such chain; our rules are inserted when there is one'
    ]


@pytest.mark.parametrize(
    ("forward_chain", "more"), [(None, set()), ("DOCKER-USER", set()), ("ip6 mine forward", {(NFPROTO_IPV6, "mine")})]
)
def test_the_tables_that_matter(forward_chain: str | None, more: set[tuple[int, str]]) -> None:
    forward = Forward(replace(SITE, forward_chain=forward_chain))
    assert forward.tables == {(NFPROTO_IPV4, "filter"), (NFPROTO_IPV6, "filter")} | more
    assert (NFPROTO_INET, "filter") in Forward(replace(SITE, forward_chain="inet filter forward")).tables


@pytest.mark.usefixtures("alone")
def test_on_a_host_with_nothing_nothing_is_made_or_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_arguments: str, **_text: str) -> str:
        raise AssertionError(f"{name} was run")

    monkeypatch.setattr(xtables, "run", refuse)
    for chain in (None, "DOCKER-USER", "inet filter forward"):
        forward = Forward(replace(SITE, forward_chain=chain))
        forward.ensure()
        forward.remove()
    assert run("nft", "list", "ruleset") == ""
    assert xtables.legacy_tables(4) | xtables.legacy_tables(6) == frozenset()
