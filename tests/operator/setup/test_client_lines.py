"""Which lines a peer gets for its own file, and how it is named."""

import ipaddress

import pytest

from igd.core.peers import Interface, Peer
from igd.operator.setup.client_lines import UnknownPeerError, as_text, find, variants
from tests.operator.test_wg_quick import KEY, OTHER

SERVER = ipaddress.IPv4Address("60.60.60.1")
OWN: tuple[Interface, ...] = tuple(map(ipaddress.ip_interface, ("10.100.0.1/24", "2001:470:100::1/64", "fe80::1/64")))


def peer(*allowed_ips: str, name: str = "laptop", key: str = KEY) -> Peer:
    return Peer(key, tuple(map(ipaddress.ip_network, allowed_ips)), name)


LAPTOP, PHONE = peer("10.100.0.2/32", "2001:470:100::2/128"), peer("10.100.0.3/32", name="Phone", key=OTHER)


@pytest.mark.parametrize("wanted", ["laptop", "Laptop", KEY, KEY[:4], "10.100.0.2", "2001:470:100::2"])
def test_a_peer_is_named_by_name_key_or_address(wanted: str) -> None:
    assert find([PHONE, LAPTOP], wanted) == LAPTOP


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("tablet", r"tablet names no peer; there are: Phone \(10.100.0.3\); laptop \(10.100.0.2, 2001:470:100::2\)"),
        (KEY[:2], "names no peer"),
        ("", "names no peer"),
    ],
)
def test_an_unknown_peer_is_an_error_that_names_those_that_there_are(wanted: str, reason: str) -> None:
    with pytest.raises(UnknownPeerError, match=reason):
        find([PHONE, LAPTOP], wanted)


def test_a_name_that_two_peers_have_is_an_error() -> None:
    with pytest.raises(UnknownPeerError, match="laptop names several peers"):
        find([LAPTOP, peer("10.100.0.4/32", key=OTHER)], "laptop")


@pytest.mark.parametrize(
    ("allowed_ips", "own", "address"),
    [
        (("10.100.0.2/32", "2001:470:100::2/128"), OWN, "10.100.0.2/24, 2001:470:100::2/64"),
        (("10.100.0.2/32",), (ipaddress.ip_interface("10.100.0.1/32"),), "10.100.0.2/32"),
        (("10.9.0.2/32",), OWN, "10.9.0.2/32"),
        (("10.100.0.2/32", "192.168.7.0/24"), OWN, "10.100.0.2/24"),
    ],
    ids=["both versions", "the server has no network", "outside the server's network", "with a network behind it"],
)
def test_the_address_has_the_prefix_length_of_the_tunnels_network(
    allowed_ips: tuple[str, ...], own: tuple[Interface, ...], address: str
) -> None:
    for variant in variants(peer(*allowed_ips), own, SERVER):
        assert f"Address = {address}" in [line.text for line in variant.interface]


def test_a_peer_without_ipv4_gets_no_lines_for_it() -> None:
    (only,) = variants(peer("2001:470:100::2/128"), OWN, SERVER)
    assert [line.text for line in only.interface] == [
        "Address = 2001:470:100::2/64",
        "PostUp = ip link set %i multicast on",
    ]


def test_a_peer_without_an_address_of_its_own_gets_a_word_to_fill_in() -> None:
    texts = [line.text for variant in variants(peer("0.0.0.0/0"), OWN, None) for line in variant.interface]
    assert texts == ["Address = ADDRESS/24", "PostUp = ip link set %i multicast on"]


def test_an_unknown_server_is_a_word_to_fill_in() -> None:
    texts = as_text(variants(LAPTOP, OWN, None))
    assert "PostUp = ip route add SERVER $(" in texts


def test_every_setting_that_is_no_undo_has_its_reason_above_it() -> None:
    lines = as_text(variants(LAPTOP, OWN, SERVER)).splitlines()
    settings = [number for number, line in enumerate(lines) if " = " in line and not line.startswith(("#", "PostDown"))]
    assert settings
    assert all(lines[number - 1].startswith("# ") for number in settings)
