"""Pinholes: the first packet of a flow to one gets the mark by which FORWARD lets it pass; nothing is translated."""

import contextlib
import socket
from dataclasses import replace
from ipaddress import IPv6Network

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, Pinhole, Remote, TransportProtocol
from igd.firewall.nft import elements as elements_
from igd.firewall.nft.nftables import Nftables
from tests.firewall.calling import TRANSPORTS, SocketAddress, Transport, call, listener
from tests.firewall.listings import SITE, elements, listing, marks
from tests.firewall.three_hosts import EXTERNAL, PEER6, REMOTE6, ThreeHosts, joined, run
from tests.lab import await_ipv6

pytestmark = pytest.mark.root

OTHER6 = "2001:470:60::4"  # the remote's second address

FIREWALL = """
table ip6 filter {
    chain FORWARD {
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        oifname "wg0" ct mark & 0x10000000 == 0x10000000 accept
        iifname "ext0" meta l4proto tcp reject with tcp reset
        iifname "ext0" reject
    }
}
"""


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    """Return a remote with two addresses, the server, where the test is and FORWARD refuses, and a peer."""
    with joined(hosts.remote):
        run("ip", "address", "add", f"{OTHER6}/64", "dev", "eth0", "nodad")
        await_ipv6()
    run("nft", "-f", "-", text=FIREWALL)
    return hosts


def pinhole(port: int, transport: str = "udp", *remotes: Remote, until: float = 120) -> Entry:
    internal = Endpoint(PEER6, port)
    return Entry(Pinhole(TransportProtocol[transport.upper()], internal, "peer", "hole", remotes), Lease(until))


def remote(network: str, port: int = 0) -> Remote:
    return Remote(IPv6Network(network), port)


def reached(
    hosts: ThreeHosts, transport: Transport, port: int, source: SocketAddress = (REMOTE6, 0)
) -> SocketAddress | None:
    with listener(hosts.peer, transport, port, family=socket.AF_INET6) as peer:
        return call(hosts.remote, transport, (str(PEER6), port), peer, source)


@pytest.mark.parametrize("loaded", [False, True], ids=["made", "saved and loaded"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_may_come_in_reaches_the_peer(
    hosts: ThreeHosts,
    gateway: Nftables,
    transport: Transport,
    loaded: bool,
) -> None:
    some = [remote("2001:470:60::/64", 5000), remote(f"{OTHER6}/128")]
    entries = [pinhole(8043, transport), pinhole(8044, transport, *some), pinhole(8045, transport, remote("::/1"))]
    gateway.replace_all([EXTERNAL], [*entries, pinhole(8046, transport, remote("8000::/1"))], now=0)
    if loaded:
        saved, before = run("nft", "list", "ruleset"), listing()
        gateway.remove_all()
        run("nft", "flush", "ruleset")
        run("nft", "-f", "-", text=saved)
        assert sorted(listing().splitlines()) == sorted(before.splitlines())
    remotes = [(REMOTE6, 5000), (REMOTE6, 5001), (OTHER6, 5002)]
    welcome = {8043: remotes, 8044: [remotes[0], remotes[2]], 8045: remotes, 8046: [], 8047: []}
    for port, expected in welcome.items():
        for source in remotes:
            assert reached(hosts, transport, port, source) == (source if source in expected else None), (port, source)


def test_the_other_protocol_stays_closed(hosts: ThreeHosts, gateway: Nftables) -> None:
    gateway.replace_all([EXTERNAL], [pinhole(8043, "udp")], now=0)
    assert reached(hosts, "tcp", 8043) is None


def test_flows_through_pinholes_alone_carry_the_mark_and_other_bits_stay(hosts: ThreeHosts) -> None:
    run("nft", "flush", "ruleset")
    run("ip6tables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", "0x5/0x5")
    with contextlib.closing(Nftables(replace(SITE, mark=0x40))) as gateway:
        gateway.replace_all([EXTERNAL], [pinhole(8043), pinhole(8044, "udp", remote("::/1"))], now=0)
        for port in (8043, 8044, 8045):
            assert reached(hosts, "udp", port) is not None
    assert marks("ipv6") == {8043: 0x45, 8044: 0x45, 8045: 0x5}


def test_a_flow_that_was_there_before_is_not_marked(hosts: ThreeHosts, gateway: Nftables) -> None:
    """Only a flow's first packet comes to the chain, in IPv6 as in IPv4."""
    gateway.replace_all([EXTERNAL], [], now=0)
    run("nft", "delete", "table", "ip6", "filter")
    source = (REMOTE6, 5000)
    assert reached(hosts, "udp", 8043, source) is not None
    gateway.apply([Change(None, pinhole(8043))], now=0)
    assert reached(hosts, "udp", 8043, source) is not None
    assert marks("ipv6") == {8043: 0}


def test_a_service_of_the_servers_is_not_hidden(hosts: ThreeHosts, gateway: Nftables) -> None:
    gateway.replace_all([EXTERNAL], [pinhole(8043)], now=0)
    own = "2001:470:60::1"
    with listener(hosts.server, "udp", 8043, family=socket.AF_INET6) as server:
        assert call(hosts.remote, "udp", (own, 8043), server, (REMOTE6, 5000)) == (REMOTE6, 5000)


def timeouts() -> dict[int, int]:
    """Return the timeout of each pinhole, restricted or not, by port."""
    found = [*elements("pinholes", "set"), *elements("restricted_pinholes", "set")]
    return {each["elem"]["val"]["concat"][2]: each["elem"]["timeout"] for each in found}


def test_they_come_and_go_and_are_renewed(backend: Nftables) -> None:
    plain, some = pinhole(1), pinhole(2, "tcp", remote("2001:db8::/32"))
    backend.replace_all([EXTERNAL], [plain], now=0)
    backend.apply([Change(None, some)], now=0)
    assert timeouts() == {1: 150, 2: 150}
    longer = [replace(each, lease=Lease(1000)) for each in (plain, some)]
    backend.apply([Change(plain, longer[0]), Change(some, longer[1])], now=0)
    assert timeouts() == {1: 1030, 2: 1030}
    closed = pinhole(1, "udp", remote("2001:db8::/32"))
    backend.apply([Change(longer[0], closed), Change(longer[1], None)], now=0)
    assert elements("pinholes", "set") == []
    assert timeouts() == {1: 150}
    backend.apply([Change(closed, None)], now=0)
    assert timeouts() == {}


@pytest.mark.parametrize("remotes", [(), (remote("2001:db8::/32"),)], ids=["plain", "restricted"])
def test_what_the_kernel_ended_by_itself_can_be_renewed(
    backend: Nftables, monkeypatch: pytest.MonkeyPatch, remotes: tuple[Remote, ...]
) -> None:
    short_lived = pinhole(1, "udp", *remotes)
    with monkeypatch.context() as patch:
        patch.setattr(elements_, "kernel_timeout", lambda *_: 20)
        backend.replace_all([EXTERNAL], [short_lived], now=0)
    while timeouts():
        pass
    backend.apply([Change(short_lived, short_lived)], now=0)
    assert timeouts() == {1: 150}
