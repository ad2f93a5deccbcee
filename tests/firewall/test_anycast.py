"""PCP's anycast addresses (RFC 7723), with either backend: peers reach the server by them, and nobody else does."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from igd.firewall.backend import Backend
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.nft.nftables import Nftables
from igd.firewall.site import Site
from tests.firewall.calling import Transport, call, listener
from tests.firewall.entries import entry
from tests.firewall.listings import SITE, marks
from tests.firewall.three_hosts import EXTERNAL, PEER, PEER6, REMOTE, REMOTE6, ThreeHosts, joined, run
from tests.lab import PATIENCE, await_ipv6

PORT = 5351
ANYCAST = replace(SITE, anycast=True)


@dataclass(frozen=True)
class Family:
    """An IP version: the anycast address, the hosts', the server's second one, and what is first of two."""

    kind: socket.AddressFamily
    anycast: str
    server: str
    second: str
    first: str
    outside: str  # the server's, towards the remote
    peer: str
    remote: str


IPV4 = Family(socket.AF_INET, "192.0.0.9", "10.100.0.1", "10.99.0.1/24", "10.100.0.1", str(EXTERNAL), str(PEER), REMOTE)
IPV6 = Family(
    socket.AF_INET6,
    "2001:1::1",
    "2001:470:100::1",
    "2001:470:99::1/64",
    "2001:470:99::1",
    "2001:470:60::1",
    str(PEER6),
    REMOTE6,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.parametrize("kind", [Nftables, Iptables]),
    pytest.mark.parametrize("family", [IPV4, IPV6], ids=["IPv4", "IPv6"]),
]


@contextlib.contextmanager
def standing(kind: Callable[[Site], Backend], site: Site) -> Iterator[Backend]:
    """Return a backend with a mapping that would take the packets, were it asked."""
    with contextlib.closing(kind(site)) as made:
        made.replace_all([EXTERNAL], [entry(PORT)], 0.0)
        yield made


def daemon(family: Family, address: str) -> socket.socket:
    """Return a socket of the server as the daemon has one."""
    made = socket.socket(family.kind, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wg0")
    made.bind((address, PORT))
    return made


def stranger(family: Family, where: int, transport: Transport, port: int) -> socket.socket:
    """Return a socket of the host `where` at the anycast address, as if that were its own."""
    with joined(where):
        run("ip", "link", "set", "lo", "up")
        nodad = ["nodad"] if family.kind == socket.AF_INET6 else []  # without it, it cannot be used at once
        run("ip", "address", "add", family.anycast, "dev", "lo", *nodad)
        await_ipv6()
        made = socket.socket(family.kind, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.bind((family.anycast, port))
    if transport == "tcp":
        made.listen()
    return made


@pytest.mark.parametrize("hairpin", [True, False])
def test_peers_reach_the_server_and_are_answered_from_there(
    hosts: ThreeHosts,
    family: Family,
    kind: Callable[[Site], Backend],
    hairpin: bool,
) -> None:
    """The caller is connected: an answer from another address would be lost."""
    with standing(kind, replace(ANYCAST, hairpin=hairpin)), daemon(family, family.server) as server:
        for _again in range(2):
            to = (family.anycast, PORT)
            assert call(hosts.peer, "udp", to, server, (family.peer, 5000)) == (family.peer, 5000)
    assert marks("ipv4" if family is IPV4 else "ipv6") == {PORT: 0}


@pytest.mark.parametrize(
    ("site", "transport", "port"),
    [(ANYCAST, "udp", PORT - 1), (ANYCAST, "tcp", PORT), (SITE, "udp", PORT)],
    ids=["another port", "TCP", "without the option"],
)
def test_nothing_else_of_theirs_is_taken(
    hosts: ThreeHosts, family: Family, kind: Callable[[Site], Backend], site: Site, transport: Transport, port: int
) -> None:
    """Somebody on the internet gets it, as if the addresses were his."""
    run("ip", "route", "add", family.anycast, "via", family.remote)
    with joined(hosts.remote):
        run("ip", "route", "replace", family.peer, "via", family.outside)
    with standing(kind, site), stranger(family, hosts.remote, transport, port) as remote:
        source = (family.peer, 5000)
        assert call(hosts.peer, transport, (family.anycast, port), remote, source) == source


def test_the_same_port_of_others_stays_theirs(
    hosts: ThreeHosts, family: Family, kind: Callable[[Site], Backend]
) -> None:
    with joined(hosts.remote):
        run("ip", "route", "replace", family.peer, "via", family.outside)
    with standing(kind, ANYCAST), listener(hosts.remote, "udp", PORT, family=family.kind) as remote:
        source = (family.peer, 5000)
        assert call(hosts.peer, "udp", (family.remote, PORT), remote, source) == source


def test_what_comes_from_the_internet_is_not_taken(
    hosts: ThreeHosts, family: Family, kind: Callable[[Site], Backend]
) -> None:
    """A peer gets it, as if the addresses were his."""
    run("ip", "route", "add", family.anycast, "via", family.peer)
    with joined(hosts.remote):
        run("ip", "route", "add", family.anycast, "via", family.outside)
    with standing(kind, ANYCAST), stranger(family, hosts.peer, "udp", PORT) as peer:
        source = (family.remote, 5000)
        assert call(hosts.remote, "udp", (family.anycast, PORT), peer, source) == source


def test_of_several_addresses_the_kernels_first_is_the_servers(
    hosts: ThreeHosts, family: Family, kind: Callable[[Site], Backend]
) -> None:
    """The same as whoever asks rtnetlink is told first; what was added last, in IPv6."""
    nodad = ["nodad"] * (family is IPV6)
    run("ip", "address", "add", family.second, "dev", "wg0", *nodad)
    await_ipv6()
    shown = json.loads(run("ip", "-j", "address", "show", "dev", "wg0", "scope", "global"))[0]["addr_info"]
    first = next(each["local"] for each in shown if each["family"] == ("inet" if family is IPV4 else "inet6"))
    assert first == family.first
    with standing(kind, ANYCAST), daemon(family, first) as server:
        assert call(hosts.peer, "udp", (family.anycast, PORT), server, (family.peer, 5000)) == (family.peer, 5000)
