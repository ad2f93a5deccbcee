"""Routes of real namespaces, and which addresses WireGuard finds routed elsewhere."""

import math
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from igd.core.peers import Address
from igd.host.routes import RTN_LOCAL, RTN_UNICAST, Route, is_up, routes
from igd.host.wireguard import WireGuard
from tests.firewall.three_hosts import new_namespace, run
from tests.lab import await_ipv6, until

pytestmark = pytest.mark.root

C1, C1_IPV6 = ip_address("10.100.0.2"), ip_address("2001:db8:100::2")


@pytest.fixture(autouse=True)
def namespace(root: None) -> Iterator[None]:
    """Enter a namespace with a tunnel, another tunnel and a way out; routes need no real WireGuard."""
    with new_namespace():
        run("ip", "link", "set", "lo", "up")
        for name in ("wg0", "wg1", "ens0"):
            run(*f"ip link add {name} type veth peer name {name}-end".split())
            run(*f"ip link set {name}-end up".split())
            run(*f"ip link set {name} up".split())
        ip(
            "addr add 10.100.0.1/24 dev wg0",
            "addr add 2001:db8:100::1/64 dev wg0",
            "addr add 60.60.60.1/24 dev ens0",
            "addr add 2001:db8:60::1/64 dev ens0",
            "route add default via 60.60.60.2",
            "route add default via 2001:db8:60::2",
        )
        await_ipv6()
        yield


@pytest.fixture
def wireguard() -> WireGuard:
    wireguard = WireGuard("wg0", clock=time.monotonic, wall_clock=time.time)
    wireguard.addresses = (ip_interface("10.100.0.1/24"), ip_interface("2001:db8:100::1/64"))
    return wireguard


def ip(*commands: str) -> None:
    for command in commands:
        run("ip", *(("-6",) if "2001" in command else ()), *command.split())


def test_the_route_of_each_address() -> None:
    asked = ["10.100.0.2", "10.100.0.1", "9.9.9.9", "2001:db8:100::2", "2001:db8:100::1", "2001:db8:9::9"]
    found = routes(map(ip_address, asked))
    assert [str(address) for address in found] == asked
    wg0, ens0 = (Route(RTN_UNICAST, socket.if_nametoindex(name)) for name in ("wg0", "ens0"))
    assert list(found.values())[0::3] == [wg0] * 2
    assert [route and route.kind for route in list(found.values())[1::3]] == [RTN_LOCAL] * 2
    assert list(found.values())[2::3] == [ens0] * 2
    ip("route del default", "route del default via 2001:db8:60::2")
    assert set(routes(map(ip_address, ("9.9.9.9", "2001:db8:9::9"))).values()) == {None}
    assert routes([]) == {}


def test_more_addresses_than_answers_fit_into_a_buffer() -> None:
    many: list[Address] = [ip_address(f"10.{number >> 8}.{number & 255}.9") for number in range(3000)]
    assert list(routes(many)) == many


MOVES = {
    "through another interface": "route add {0} dev ens0",
    "through a gateway": "route add {0} via {1}",
    "through another tunnel": "route add {0} dev wg1",
    "by a rule": "rule add to {0} lookup 100",
    "an address of another interface": "addr add {0} dev ens0",
    "an address of the loopback interface": "addr add {0} dev lo",
    "an address of the tunnel's own interface": "addr add {0} dev wg0",
    "blackhole": "route add blackhole {0}",
    "unreachable": "route add unreachable {0}",
    "prohibit": "route add prohibit {0}",
    "by a wider network behind a rule": "rule add pref 10 lookup 100",
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize(("address", "gateway"), [(C1, "60.60.60.2"), (C1_IPV6, "2001:db8:60::2")], ids=["4", "6"])
def test_an_address_whose_route_has_moved_is_elsewhere(
    wireguard: WireGuard, address: Address, gateway: str, move: str
) -> None:
    family = "-4" if address.version == 4 else "-6"
    run("ip", family, "route", "add", "default", "via", gateway, "table", "100")
    assert wireguard.routed_elsewhere([address]) == []
    assert wireguard.reaches(address)
    run("ip", family, *move.format(f"{address}/{address.max_prefixlen}", gateway).split())
    until(lambda: wireguard.routed_elsewhere([address]) == [address])  # the kernel adds routes of IPv6 addresses later
    assert not wireguard.reaches(address)


def test_broadcast_addresses_of_the_tunnel_are_not_reached(wireguard: WireGuard) -> None:
    """Its network may become another one, which has another."""
    first, second = ip_address("10.100.0.255"), ip_address("10.100.0.127")
    assert [wireguard.reaches(address) for address in (first, second)] == [False, True]
    assert wireguard.routed_elsewhere([first, second]) == [first]
    ip("addr add 10.100.0.65/26 broadcast + dev wg0")
    assert not wireguard.reaches(second)
    assert wireguard.routed_elsewhere([first, second]) == [first, second]


def test_the_anycast_address_of_the_routers_in_the_tunnel_is_not_reached(wireguard: WireGuard) -> None:
    """A host that forwards IPv6 has it (RFC 4291 §2.6.1)."""
    anycast = ip_address("2001:db8:100::")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1", encoding="ascii")
    until(lambda: not wireguard.reaches(anycast))
    assert wireguard.routed_elsewhere([anycast]) == [anycast]


def test_only_the_moved_one_of_several_addresses_is_elsewhere(wireguard: WireGuard) -> None:
    ip("route add 10.100.0.3 dev wg1")
    several = [ip_address(f"10.100.0.{number}") for number in range(2, 200)]
    assert wireguard.routed_elsewhere(several) == [ip_address("10.100.0.3")]


def test_an_address_without_any_route_is_not_elsewhere(wireguard: WireGuard) -> None:
    ip("route del default", "route del default via 2001:db8:60::2", "route flush dev wg0", "-6 route flush dev wg0")
    assert wireguard.routed_elsewhere([C1, C1_IPV6]) == []
    assert not wireguard.reaches(C1)


def test_no_address_is_elsewhere_while_the_interface_is_down(wireguard: WireGuard) -> None:
    """The kernel removes the routes, so that packets to the peers would take the default route."""
    ip("link set wg0 down", "addr add 10.100.0.3/32 dev lo")
    assert not is_up("wg0")
    moved = ip_address("10.100.0.3")
    assert wireguard.routed_elsewhere([C1, C1_IPV6, moved]) == ()
    ip("link set wg0 up")
    assert wireguard.routed_elsewhere([C1, moved]) == [moved]


def test_an_interface_that_lost_its_ipv6_address_in_a_flap_keeps_its_peers(wireguard: WireGuard) -> None:
    """The kernel removes IPv6 addresses with the link, and with them the route, but not IPv4 addresses."""
    ip("link set wg0 down", "link set wg0 up")
    wireguard.addresses = (ip_interface("10.100.0.1/24"), ip_interface("fe80::1/64"))
    assert wireguard.routed_elsewhere([C1, C1_IPV6]) == []
    ip(f"addr add {C1_IPV6}/128 dev lo")
    until(lambda: wireguard.routed_elsewhere([C1, C1_IPV6]) == [C1_IPV6])  # the kernel adds the route later


def test_an_interface_that_does_not_exist_is_an_error() -> None:
    wireguard = WireGuard("none", clock=lambda: math.inf, wall_clock=lambda: math.inf)
    with pytest.raises(OSError, match="No such device"):
        wireguard.routed_elsewhere([C1])
    with pytest.raises(OSError, match="no interface"):
        wireguard.reaches(C1)
