"""Peers that call the public address reach each other, and themselves, or are not led at all."""

import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from igd.firewall.nft.nftables import Nftables
from tests.firewall.calling import TRANSPORTS, Transport, call, listener
from tests.firewall.entries import entry
from tests.firewall.listings import SITE, marks
from tests.firewall.three_hosts import EXTERNAL, PEER, REMOTE, ThreeHosts, joined, run

pytestmark = pytest.mark.root

PUBLIC = str(EXTERNAL)
ANOTHER = "10.100.0.3"  # as if of another peer, whose packets to the first would not take the tunnel
SERVER = "10.100.0.1"


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    """Return a remote, the server, where the test is, and a peer with two addresses."""
    with joined(hosts.peer):
        run("ip", "address", "add", f"{ANOTHER}/24", "dev", "eth0")
    return hosts


@pytest.mark.parametrize("mark", [SITE.mark, 0x40])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_peers_are_led_and_the_answers_come_back_through_the_server(
    hosts: ThreeHosts, transport: Transport, mark: int
) -> None:
    with contextlib.closing(Nftables(replace(SITE, mark=mark))) as gateway:
        gateway.replace_all([EXTERNAL], [entry(8043, 80, transport)], now=0)
        with listener(hosts.peer, transport, 80) as peer:
            for source in (str(PEER), ANOTHER):
                seen = call(hosts.peer, transport, (PUBLIC, 8043), peer, (source, 5000))
                assert seen is not None
                assert seen[0] == SERVER


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_comes_from_the_internet_is_seen_as_who_he_is(hosts: ThreeHosts, transport: Transport) -> None:
    with contextlib.closing(Nftables(SITE)) as gateway:
        gateway.replace_all([EXTERNAL], [entry(8043, 80, transport)], now=0)
        with listener(hosts.peer, transport, 80) as peer:
            assert call(hosts.remote, transport, (PUBLIC, 8043), peer, (REMOTE, 5000)) == (REMOTE, 5000)


def test_what_is_not_ours_keeps_its_source(hosts: ThreeHosts) -> None:
    """A redirection of the operator's, from the tunnel into the tunnel."""
    run("iptables-nft", *"-t nat -A PREROUTING -p udp --dport 8044 -j DNAT --to 10.100.0.2:80".split())
    with contextlib.closing(Nftables(SITE)) as gateway, listener(hosts.peer, "udp", 80) as peer:
        gateway.replace_all([EXTERNAL], [entry(8043, 80)], now=0)
        with joined(hosts.peer):  # to which its own address comes from outside
            Path("/proc/sys/net/ipv4/conf/eth0/accept_local").write_text("1")
            calling = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with calling:
            calling.bind((ANOTHER, 5000))
            calling.sendto(b"hello", (PUBLIC, 8044))
            assert peer.recvfrom(64) == (b"hello", (ANOTHER, 5000))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_without_hairpin_the_server_itself_answers_peers(hosts: ThreeHosts, transport: Transport) -> None:
    with contextlib.closing(Nftables(replace(SITE, hairpin=False))) as gateway:
        gateway.replace_all([EXTERNAL], [entry(8043, protocol=transport)], now=0)
        with listener(hosts.peer, transport, 8043) as peer:
            assert call(hosts.peer, transport, (PUBLIC, 8043), peer, (ANOTHER, 0)) is None
            assert call(hosts.remote, transport, (PUBLIC, 8043), peer, (REMOTE, 5000)) == (REMOTE, 5000)
        assert set(marks().values()) <= {0, SITE.mark}
