"""An address belongs to the peer that the kernel's longest prefix match selects."""

import bisect
import itertools
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.peers import Address, Peer, Peers

SERVER = ip_interface("10.100.0.1/16")


def peer(name: str, *networks: str) -> Peer:
    return Peer(name, tuple(map(ip_network, networks)))


C1 = peer("c1", "10.100.0.2/32", "fd00::2/128")
C2 = peer("c2", "10.100.0.3/32", "192.168.7.0/24")
ROUTER = peer("router", "10.100.0.0/16")
HOME = peer("home", "10.100.0.2/32", "0.0.0.0/0")


def owner(peers: Peers, address: str) -> str | None:
    found = peers.owner(ip_address(address))
    return found.public_key if found else None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.100.0.2", "c1"),
        ("fd00::2", "c1"),
        ("fd00::3", None),
        ("10.100.0.3", "c2"),
        ("192.168.7.255", "c2"),
        ("192.168.8.1", None),
        ("10.100.9.9", "router"),
        ("10.100.0.1", None),  # the address of the server
        ("60.60.60.1", None),
        ("239.255.255.250", None),
        ("0.0.0.0", None),
        ("127.0.0.1", None),
    ],
)
def test_the_longest_match_owns_an_address_and_no_peer_owns_the_servers(address: str, expected: str | None) -> None:
    assert owner(Peers([ROUTER, C1, C2], [SERVER]), address) == expected


@pytest.mark.parametrize(
    ("address", "expected"), [("10.100.0.2", "all"), ("10.100.77.1", "all"), ("8.8.8.8", None), ("10.100.0.1", None)]
)
def test_a_peer_with_allowed_ips_of_any_address_owns_the_addresses_on_the_link(
    address: str, expected: str | None
) -> None:
    assert owner(Peers([peer("all", "0.0.0.0/0", "::/0")], [SERVER]), address) == expected


@pytest.mark.parametrize("wide", ["0.0.0.0/1", "10.0.0.0/7"])
def test_an_entry_wider_than_any_private_network_identifies_no_peer(wide: str) -> None:
    peers = Peers([peer("half", wide, "128.0.0.0/1", "2000::/3")], [SERVER])
    assert owner(peers, "11.0.0.1") is None
    assert owner(peers, "2001:db8::1") is None
    assert owner(peers, "10.100.0.2") == "half"


def test_a_wide_entry_owns_nothing_if_the_interface_has_a_single_address() -> None:
    peers = Peers([peer("all", "0.0.0.0/0")], [ip_interface("10.100.0.1/32")])
    assert owner(peers, "10.100.0.2") is None


@pytest.mark.parametrize(
    ("peers", "source", "internal", "allowed"),
    [
        ((C1, C2), "10.100.0.2", "10.100.0.2", True),
        ((C1, C2), "10.100.0.2", "10.100.0.3", False),  # of another peer
        ((C1, C2), "10.100.0.3", "192.168.7.20", True),  # a host of a network that the peer routes
        ((C1, C2), "192.168.7.20", "10.100.0.3", True),
        ((C1, C2), "10.100.0.2", "10.100.0.1", False),  # the address of the server
        ((C1, C2), "10.100.0.9", "10.100.0.9", False),  # of no peer
        ((ROUTER, C1), "10.100.0.9", "10.100.0.2", False),  # inside a network of the peer, but of another peer
        ((peer("all", "0.0.0.0/0"),), "10.100.0.2", "10.100.0.2", True),
        ((peer("all", "0.0.0.0/0"),), "10.100.0.2", "10.100.0.3", False),  # a wide entry owns only the source
        ((peer("all", "0.0.0.0/0"),), "10.100.0.2", "8.8.8.8", False),
        ((HOME,), "10.100.0.7", "10.100.0.2", True),  # by the entry of its own address
        ((C1,), "fd00::2", "10.100.0.2", True),
        ((C1,), "10.100.0.2", "fd00::2", True),
    ],
)
def test_a_peer_maps_to_addresses_that_it_owns(
    peers: tuple[Peer, ...], source: str, internal: str, *, allowed: bool
) -> None:
    found = Peers(peers, [SERVER])
    sender = found.owner(ip_address(source))
    public_key = sender.public_key if sender else "nobody"
    assert found.may_map(public_key, ip_address(source), ip_address(internal)) is allowed


def test_a_peer_no_longer_owns_an_address_that_was_removed_from_it() -> None:
    address = IPv4Address("10.100.0.2")
    assert Peers([C1], [SERVER]).still_owns("c1", address)
    assert not Peers([peer("c1"), C2], [SERVER]).still_owns("c1", address)
    assert not Peers([peer("new", "10.100.0.2/32")], [SERVER]).still_owns("c1", address)


def test_the_networks_contain_all_owned_addresses_without_wide_entries() -> None:
    peers = Peers([C1, C2, peer("all", "0.0.0.0/0")], [SERVER])
    assert list(map(str, peers.networks())) == ["10.100.0.0/16", "192.168.7.0/24", "fd00::2/128"]


# few bits, so that networks overlap
v4 = st.builds(
    lambda low, length: IPv4Network((0x0A640000 | low, length), strict=False),
    st.integers(0, 255),
    st.integers(22, 32),
)
v6 = st.builds(
    lambda low, length: IPv6Network((0xFD << 120 | low, length), strict=False),
    st.integers(0, 255),
    st.integers(118, 128),
)
addresses = st.integers(0, 0x3FF).map(lambda low: IPv4Address(0x0A640000 + low)) | st.integers(0, 0x3FF).map(
    lambda low: ip_address(0xFD << 120 | low)
)


@given(st.dictionaries(v4 | v6, st.integers(0, 4)), addresses)
def test_owner_equals_a_linear_search(allowed_ips: dict[IPv4Network | IPv6Network, int], address: Address) -> None:
    """WireGuard has each network once, so that a dictionary from networks to peers describes it."""
    peers = [Peer(str(n), tuple(net for net, who in allowed_ips.items() if who == n)) for n in range(5)]
    matching = [net for net in allowed_ips if net.version == address.version and address in net]
    expected = str(allowed_ips[max(matching, key=lambda net: net.prefixlen)]) if matching else None
    found = Peers(peers, [ip_interface("192.0.2.1/24")]).owner(address)
    assert (found.public_key if found else None) == expected


def test_the_networks_that_peers_own() -> None:
    """Those of the interface only for an entry wider than any private network."""
    assert Peers([C1, C2], [SERVER]).owned() == tuple(
        map(ip_network, ("10.100.0.2/31", "192.168.7.0/24", "fd00::2/128"))
    )
    assert Peers([peer("all", "0.0.0.0/0", "::/0")], [SERVER]).owned() == (SERVER.network,)
    assert Peers([peer("none")], [SERVER]).owned() == ()


def test_a_peer_is_called_by_its_name_and_else_by_the_start_of_its_key() -> None:
    assert str(Peer("GLiBCyzMu7qF7JbIWShcKmJ4d3rcVnEUQDZV6LYKYDw=", ())) == "GLiBCyzM"
    assert str(Peer("GLiBCyzMu7qF7JbIWShcKmJ4d3rcVnEUQDZV6LYKYDw=", (), "laptop")) == "laptop"


@pytest.mark.parametrize(
    ("address", "is_routed"),
    [
        ("10.100.0.2", False),
        ("10.7.0.2", False),
        ("192.168.7.20", True),
        ("10.100.9.9", False),
        ("10.100.0.77", False),
        ("172.16.0.1", False),
        ("2001:db8::2", False),
        ("2001:db8:1::5", True),
    ],
)
def test_hosts_of_the_networks_behind_a_peer(address: str, *, is_routed: bool) -> None:
    """A peer's own addresses are its single ones, wherever they are, and those in the interface's networks."""
    mine = ["10.100.0.2/32", "10.7.0.2/32", "192.168.7.0/24", "10.100.9.0/24", "2001:db8::2/128", "2001:db8:1::/64"]
    peers = Peers(
        [Peer("a", tuple(map(ip_network, mine))), Peer("b", (ip_network("0.0.0.0/0"),))],
        [ip_interface("10.100.0.1/16")],
    )
    assert peers.is_routed_host(ip_address(address)) is is_routed


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=6), st.data())
def test_ranges_contain_every_address_with_its_owner(entries: list[tuple[int, int, int]], data: st.DataObject) -> None:
    networks = [(number, ip_network((address, length), strict=False)) for number, address, length in entries]
    listed = [Peer(f"peer{each}", tuple(net for number, net in networks if number == each)) for each in range(3)]
    peers = Peers(listed, [ip_interface("10.100.0.1/16")])
    ranges = peers.ranges(4)
    starts = [int(first) for first, _ in ranges]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert all(one is not other for (_, one), (_, other) in itertools.pairwise(ranges))
    edges = [int(edge) for _, net in networks for edge in (net.network_address, net.broadcast_address)]
    near = [edge + step for edge in edges for step in (-1, 0, 1) if 0 <= edge + step < 2**32]
    for number in [*near, data.draw(st.integers(0, 2**32 - 1)), int(ip_address("10.100.0.1"))]:
        assert ranges[bisect.bisect(starts, number) - 1][1] is peers.owner(IPv4Address(number))


def test_ranges_of_ipv6() -> None:
    peer = Peer("one", (ip_network("2001:db8::2/128"), ip_network("10.100.0.2/32"), ip_network("ffff::/16")))
    ranges = Peers([peer], [ip_interface("2001:db8::1/64")]).ranges(6)
    assert [str(first) for first, _ in ranges] == ["::", "2001:db8::2", "2001:db8::3"]
    assert [owner for _, owner in ranges] == [None, peer, None]
