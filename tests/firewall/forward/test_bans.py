"""The operator's bans hold before, while and after our rules stand, and others' mapped flows pass."""

import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

import pytest

from igd.firewall.forward.forward import Forward
from tests.firewall.calling import TRANSPORTS, call, listener, swallows
from tests.firewall.forward.test_forward import MAPPED, MARKING, SITE, everything
from tests.firewall.three_hosts import EXTERNAL, PEER6, PEERS, REMOTE, REMOTE6, ThreeHosts, joined, run

pytestmark = pytest.mark.root

Version = Literal[4, 6]
FLAVOURS = ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"]
OTHER = {4: "60.60.60.9", 6: "2001:470:60::9"}
BANNED = {4: REMOTE, 6: REMOTE6}

UFW = """:before - [0:0]
:reject - [0:0]
-A FORWARD -j before
-A FORWARD -j reject
-A before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A reject -j REJECT"""
DOCKER = """:DOCKER - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-FORWARD -o docker0 -j DOCKER
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP"""
INSIDE = """:mine - [0:0]
-A FORWARD -j mine
-A mine -s 198.51.100.7/32 -j DROP
-A mine -j DROP"""

# What it is: FORWARD's policy, its rules, `forward_chain`, and the chain in which bans stand.
FIREWALLS: dict[str, tuple[str, str, str | None, str]] = {
    "accept": ("ACCEPT", "", None, "FORWARD"),
    "drop": ("DROP", "", None, "FORWARD"),
    "a reject": ("ACCEPT", "-A FORWARD -j REJECT", None, "FORWARD"),
    "ufw": ("DROP", UFW, None, "before"),
    "docker": ("DROP", DOCKER, None, "DOCKER-USER"),
    "docker by its users": ("DROP", DOCKER, "DOCKER-USER", "DOCKER-USER"),
    "inside a chain": ("ACCEPT", INSIDE, None, "mine"),
}


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    run("nft", "-f", "-", text=MARKING)
    with joined(hosts.remote):
        run("ip", "address", "add", f"{OTHER[4]}/24", "dev", "eth0")
        run("ip", "address", "add", f"{OTHER[6]}/64", "dev", "eth0", "nodad", "preferred_lft", "0")
    return hosts


@contextmanager
def others_come_in(hosts: ThreeHosts, version: Version) -> Iterator[None]:
    """Assert before and after that somebody who is not banned comes in."""
    assert comes_in(hosts, version, OTHER[version])
    yield
    assert comes_in(hosts, version, OTHER[version])


TO = {4: str(EXTERNAL), 6: str(PEER6)}


def comes_in(hosts: ThreeHosts, version: Version, source: str) -> bool:
    """Return whether calls by TCP and UDP from this address reach the peer."""
    seen = []
    for transport in TRANSPORTS:
        family, at = (socket.AF_INET, "") if version == 4 else (socket.AF_INET6, "::")
        with listener(hosts.peer, transport, MAPPED, at, family=family) as peer:
            seen.append(call(hosts.remote, transport, (TO[version], MAPPED), peer, (source, 0)))
    return [found and found[0] for found in seen] == [source, source]


def is_banned(hosts: ThreeHosts, version: Version) -> bool:
    """Return whether the server drops calls by TCP and UDP from the address that is to be banned."""
    swallowed = [swallows(hosts.server, hosts.remote, transport, (TO[version], MAPPED)) for transport in TRANSPORTS]
    assert len(set(swallowed)) == 1, "one protocol is banned, and the other not"
    return swallowed[0]


@pytest.mark.parametrize("firewall", FIREWALLS)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_banned_source_stays_out_and_others_come_in(hosts: ThreeHosts, flavour: str, firewall: str) -> None:
    policy, rules, forward_chain, chain = FIREWALLS[firewall]
    version: Version = 6 if flavour.startswith("ip6") else 4
    rules = rules.replace("198.51.100.7/32", "2001:db8::7/128") if version == 6 else rules
    run(f"{flavour}-restore", text=f"*filter\n:FORWARD {policy} [0:0]\n{rules}\nCOMMIT\n")
    forward = Forward(replace(SITE, forward_chain=forward_chain))
    ban = f"{chain} -s {BANNED[version]} -j DROP"

    def operator(what: str) -> None:
        run(flavour, *shlex.split(what))
        forward.ensure()  # as the daemon does after a change

    before = everything()
    run(flavour, *f"-I {ban}".split())  # before igd starts
    forward.ensure()
    with others_come_in(hosts, version):
        assert is_banned(hosts, version)
    operator(f"-D {ban}")
    assert comes_in(hosts, version, BANNED[version])
    operator(f"-I {ban}")
    with others_come_in(hosts, version):
        assert is_banned(hosts, version)
    Forward(replace(SITE, forward_chain=forward_chain)).ensure()  # after kill -9
    assert is_banned(hosts, version)
    operator(f"-D {ban}")
    if firewall in {"accept", "drop", "ufw", "docker", "docker by its users"}:
        operator(f"-A {ban}")
        with others_come_in(hosts, version):
            assert is_banned(hosts, version)
        operator(f"-D {ban}")
    operator(f"-I {ban}")
    forward.remove()
    assert is_banned(hosts, version)
    run(flavour, *f"-D {ban}".split())
    assert everything() == before


NATIVE = {
    "accept": "policy accept; ",
    "drop": "policy drop; ",
    "a reject": "policy accept; ip6 saddr 2001:db8::1 drop; reject; ",
    "a chain": "policy accept; jump last; ",
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("firewall", NATIVE)
@pytest.mark.parametrize("where", ["insert", "add"])
def test_a_ban_in_a_chain_of_nftables_holds(hosts: ThreeHosts, firewall: str, version: Version, where: str) -> None:
    if where == "add" and firewall not in ("accept", "drop"):
        where = "insert"  # behind a reject of everything it would not have any effect
    run(
        "nft",
        "-f",
        "-",
        text=f"""table inet mine {{
        chain last {{ drop; }}
        chain forward {{ type filter hook forward priority filter; {NATIVE[firewall]} }}
    }}""",
    )
    family = "ip" if version == 4 else "ip6"
    ban = f"rule inet mine forward {family} saddr {BANNED[version]} drop"
    before = everything()
    forward = Forward(replace(SITE, forward_chain="inet mine forward"))
    forward.ensure()
    assert comes_in(hosts, version, BANNED[version])
    run("nft", *f"{where} {ban}".split())
    forward.ensure()
    with others_come_in(hosts, version):
        assert is_banned(hosts, version)
    forward.remove()
    run("nft", *f"{where} {ban}".split())
    Forward(replace(SITE, forward_chain="inet mine forward")).ensure()
    with others_come_in(hosts, version):
        assert is_banned(hosts, version)
    Forward(SITE).remove()
    listed = [line for line in everything()[0].splitlines() if BANNED[version] not in line]
    assert listed == before[0].splitlines()


@pytest.mark.parametrize("flavour", ["iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize("peers", [PEERS, (IPv4Network("10.100.0.2/32"), *PEERS[1:])], ids=["many", "one"])
def test_a_peer_in_quarantine_is_not_reached(
    hosts: ThreeHosts, flavour: str, peers: tuple[IPv4Network | IPv6Network, ...]
) -> None:
    for rule in ("-d 10.100.0.2 -j DROP", "-s 10.100.0.2 -j DROP"):
        run(f"{flavour}-restore", text=f"*filter\n:FORWARD DROP [0:0]\n-A FORWARD {rule}\nCOMMIT\n")
        Forward(replace(SITE, peers=peers)).ensure()
        if "-d" in rule:
            assert is_banned(hosts, 4)
        else:  # the call comes in, and nothing goes out
            for transport in TRANSPORTS:
                with listener(hosts.peer, transport, MAPPED), joined(hosts.server):
                    assert not swallows(hosts.server, hosts.remote, transport, (str(EXTERNAL), MAPPED))
                    assert swallows(hosts.server, hosts.peer, transport, (REMOTE, 9000))
