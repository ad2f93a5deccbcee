"""Which of the kernel's settings drop mapped flows; that they do, and that the lines help, the e2e tests prove."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest

from igd.host.forwarding import warnings
from igd.host.links import Links
from tests.lab import Host

pytestmark = pytest.mark.root

PEERS = (IPv4Network("10.100.0.2/32"), IPv6Network("fd00::2/128"))
ADDRESS = IPv4Address("60.60.60.1")


@pytest.fixture(autouse=True)
def network(root: None) -> Iterator[None]:
    """Run the test in a network namespace with ens0 (the way out), ens8.1 and wg0, which forwards."""
    with Host("forwarding") as host, host.entered():
        for name, address in (("ens0", "60.60.60.1/24"), ("ens8.1", "61.61.61.1/24"), ("wg0", "10.100.0.1/24")):
            ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-end")
            ip("address", "add", address, "dev", name)
            for end in (name, f"{name}-end"):
                ip("link", "set", end, "up")
        ip("route", "add", "default", "via", "60.60.60.2")
        ip("route", "add", "2000::/3", "dev", "ens0")
        sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    async with Links() as links:
        yield links


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def sysctl(*settings: str) -> None:
    subprocess.run(["sysctl", "-qw", *settings], check=True)


def settings(sentences: list[str]) -> list[str]:
    """Return the settings at the end of each sentence."""
    return [sentence.rpartition(": sysctl -w ")[2] for sentence in sentences]


async def test_everything_passes(links: Links) -> None:
    assert await warnings(links, "wg0", "ens0", PEERS, [ADDRESS]) == []


@pytest.mark.parametrize(
    ("off", "line"),
    [
        ("net.ipv4.ip_forward=0", "net.ipv4.ip_forward=1"),
        ("net.ipv4.conf.wg0.forwarding=0", "net.ipv4.conf.wg0.forwarding=1"),
        ("net.ipv4.conf.ens0.forwarding=0", "net.ipv4.conf.ens0.forwarding=1"),
        ("net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.ens0.accept_ra=2 net.ipv6.conf.all.forwarding=1"),
    ],
)
async def test_forwarding_that_is_off(links: Links, off: str, line: str) -> None:
    sysctl(off)
    found = await warnings(links, "wg0", "ens0", PEERS, [ADDRESS])
    assert settings(found) == [line]
    sysctl(*line.split())
    assert await warnings(links, "wg0", "ens0", PEERS, [ADDRESS]) == []


async def test_single_interfaces_that_forward_are_enough(links: Links) -> None:
    sysctl("net.ipv4.ip_forward=0", "net.ipv4.conf.wg0.forwarding=1")
    assert settings(await warnings(links, "wg0", "ens0", PEERS, [ADDRESS])) == ["net.ipv4.conf.ens0.forwarding=1"]
    sysctl("net.ipv4.conf.ens0.forwarding=1")
    assert await warnings(links, "wg0", "ens0", PEERS, [ADDRESS]) == []


async def test_ipv6_needs_only_the_setting_for_all_interfaces(links: Links) -> None:
    sysctl("net.ipv6.conf.ens0.forwarding=0", "net.ipv6.conf.wg0.forwarding=0")
    assert await warnings(links, "wg0", "ens0", PEERS, [ADDRESS]) == []


@pytest.mark.skipif(not Path("/proc/sys/net/ipv6/conf/all/force_forwarding").exists(), reason="before Linux 6.17")
async def test_ipv6_that_is_forced_on_single_interfaces(links: Links) -> None:
    sysctl("net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.wg0.force_forwarding=1")
    found = await warnings(links, "wg0", "ens0", PEERS, [ADDRESS])
    assert settings(found) == ["net.ipv6.conf.ens0.force_forwarding=1"]
    sysctl("net.ipv6.conf.ens0.force_forwarding=1")
    assert await warnings(links, "wg0", "ens0", PEERS, [ADDRESS]) == []


@pytest.mark.parametrize("unused", [0, 1])
async def test_a_family_that_no_peer_uses(links: Links, unused: int) -> None:
    sysctl("net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    (sentence,) = await warnings(links, "wg0", "ens0", [PEERS[1 - unused]], [ADDRESS])
    assert f"IPv{PEERS[1 - unused].version} forwarding is off" in sentence
    assert await warnings(links, "wg0", "ens0", [], [ADDRESS]) == []


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
async def test_ipv6_without_a_way_out(links: Links, kind: str) -> None:
    ip("route", "del", "2000::/3")
    ip("-6", "route", "add", kind, "default")
    assert await warnings(links, "wg0", "ens0", PEERS, [ADDRESS]) == []
    sysctl("net.ipv6.conf.all.forwarding=0")
    assert len(await warnings(links, "wg0", "ens0", PEERS, [ADDRESS])) == 1


SECOND = IPv4Address("61.61.61.1")
LOOSE = "net.ipv4.conf.ens8/1.rp_filter=2"


@pytest.mark.parametrize("strict", ["net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.ens8/1.rp_filter=1"])
@pytest.mark.parametrize("external", ["ens8.1", "ens0"])
async def test_a_strict_rp_filter_where_packets_arrive(links: Links, strict: str, external: str) -> None:
    """Packets to an address in the network of ens8.1 arrive there, whatever the way out is."""
    assert await warnings(links, "wg0", external, PEERS, [SECOND]) == []
    sysctl(strict)
    assert settings(await warnings(links, "wg0", external, PEERS, [SECOND])) == [LOOSE]
    sysctl(LOOSE)
    assert await warnings(links, "wg0", external, PEERS, [SECOND]) == []


async def test_an_address_of_the_host_alone_is_reached_by_the_external_interface(links: Links) -> None:
    ip("address", "add", "62.62.62.1/32", "dev", "lo")
    sysctl("net.ipv4.conf.all.rp_filter=1")
    alone = IPv4Address("62.62.62.1")
    assert await warnings(links, "wg0", "ens0", PEERS, [alone]) == []
    assert settings(await warnings(links, "wg0", "ens8.1", PEERS, [alone])) == [LOOSE]


async def test_a_way_back_by_policy_routing_satisfies_a_strict_rp_filter(links: Links) -> None:
    sysctl("net.ipv4.conf.all.rp_filter=1")
    ip("route", "add", "default", "via", "61.61.61.2", "table", "8")
    ip("rule", "add", "from", "61.61.61.1", "table", "8")
    assert await warnings(links, "wg0", "ens8.1", PEERS, [SECOND]) == []


@pytest.mark.parametrize("half", ["0.0.0.0/1", "128.0.0.0/1"])
async def test_half_of_the_internet(links: Links, half: str) -> None:
    """VPN clients route it in two halves, each of which precedes the default route."""
    sysctl("net.ipv4.conf.ens0.rp_filter=1")
    ip("route", "add", half, "via", "61.61.61.2")
    assert settings(await warnings(links, "wg0", "ens0", PEERS, [ADDRESS])) == ["net.ipv4.conf.ens0.rp_filter=2"]


async def test_a_peer_whose_address_is_not_routed_to_the_tunnel(links: Links) -> None:
    peers = (*PEERS, IPv4Network("10.200.0.0/24"))
    assert await warnings(links, "wg0", "ens0", peers, [ADDRESS]) == []
    sysctl("net.ipv4.conf.wg0.rp_filter=1")
    (sentence,) = await warnings(links, "wg0", "ens0", peers, [ADDRESS])
    assert sentence.endswith(": ip route add 10.200.0.0/24 dev wg0")
    ip("route", "add", "10.200.0.0/24", "dev", "wg0")
    assert await warnings(links, "wg0", "ens0", peers, [ADDRESS]) == []


@pytest.mark.parametrize("external", ["", "eth7"])
async def test_without_a_way_out_the_tunnel_is_looked_at(links: Links, external: str) -> None:
    sysctl("net.ipv4.conf.all.rp_filter=1")
    ip("route", "del", "default")
    ip("route", "del", "2000::/3")
    matched = [IPv4Address("62.62.62.1")]
    assert await warnings(links, "wg0", external, PEERS, matched) == []
    sysctl("net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
    assert settings(await warnings(links, "wg0", external, PEERS, matched))[0] == "net.ipv4.ip_forward=1"
