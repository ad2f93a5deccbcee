"""What another instance on the same public address holds is seen."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from igd.core.mapping import Change, Entry, Remote, TransportProtocol
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import Message
from igd.firewall.nft.nftables import Nftables
from igd.firewall.nft.other_tables import OtherTables
from igd.firewall.operator_rules.xtables import nft_tables
from tests.firewall.entries import entry
from tests.firewall.listings import SITE
from tests.firewall.three_hosts import EXTERNAL, new_namespace, run

pytestmark = pytest.mark.root

ELSEWHERE = IPv4Address("60.60.60.3")
ADDRESSES = (ELSEWHERE, EXTERNAL)


def taken(others: OtherTables, protocol: TransportProtocol, port: int, addresses: Iterable[IPv4Address]) -> bool:
    others.update(nft_tables() or ())
    return others.hold(protocol, port, addresses)


def restricted(port: int) -> Entry:
    plain = entry(port)
    remotes = (Remote(IPv4Network("8.8.0.0/16")), Remote(IPv4Network("9.9.9.9/32"), 5))
    return replace(plain, mapping=replace(plain.mapping, remotes=remotes))


@pytest.fixture
def others() -> Iterator[OtherTables]:
    """Return the view of wg0 in a network namespace of its own; the test is in it too."""
    with new_namespace():
        yield OtherTables("wg0")


@pytest.fixture
def neighbour(others: OtherTables) -> Iterator[Nftables]:
    """Return the backend of wg1."""
    assert others
    with contextlib.closing(Nftables(replace(SITE, wireguard="wg1"))) as made:
        yield made


def test_a_port_of_the_neighbours_is_taken_and_no_other(others: OtherTables, neighbour: Nftables) -> None:
    neighbour.replace_all([EXTERNAL], [entry(8043), restricted(8044), entry(8045, protocol="tcp")], now=0)
    expected = {(TransportProtocol.UDP, 8043), (TransportProtocol.UDP, 8044), (TransportProtocol.TCP, 8045)}
    asked = {(protocol, port) for protocol in TransportProtocol for port in (8042, 8043, 8044, 8045)}
    assert {each for each in asked if taken(others, *each, ADDRESSES)} == expected
    neighbour.apply([Change(entry(8043), None), Change(restricted(8044), None)], now=0)
    assert not taken(others, TransportProtocol.UDP, 8043, ADDRESSES)
    assert not taken(others, TransportProtocol.UDP, 8044, ADDRESSES)


def test_a_port_of_another_address_is_free(others: OtherTables, neighbour: Nftables) -> None:
    neighbour.replace_all([EXTERNAL], [entry(8043)], now=0)
    assert not taken(others, TransportProtocol.UDP, 8043, [ELSEWHERE])
    assert not taken(others, TransportProtocol.UDP, 8043, [])


def test_ones_own_table_and_others_tables_are_not_asked(others: OtherTables) -> None:
    with contextlib.closing(Nftables(SITE)) as own:
        own.replace_all([EXTERNAL], [entry(8043)], now=0)
        run("nft", "-f", "-", text=run("nft", "list", "ruleset").replace("igd_wg0", "operators"))
        assert not taken(others, TransportProtocol.UDP, 8043, ADDRESSES)


@pytest.mark.parametrize(
    "damage", ["", "add table inet igd_wg1", "add table inet igd_wg1; add set inet igd_wg1 x {type mark;}"]
)
def test_where_there_is_nothing_nothing_is_taken(others: OtherTables, damage: str) -> None:
    run("nft", damage)
    assert not taken(others, TransportProtocol.UDP, 8043, ADDRESSES)


def test_an_older_shape_without_restricted_mappings_is_read(others: OtherTables, neighbour: Nftables) -> None:
    neighbour.replace_all([EXTERNAL], [entry(8043)], now=0)
    run("nft", "flush chain inet igd_wg1 prerouting; delete set inet igd_wg1 restricted_ports")
    assert taken(others, TransportProtocol.UDP, 8043, ADDRESSES)
    assert not taken(others, TransportProtocol.UDP, 8044, ADDRESSES)


OLDER = """
table inet igd_wg1 {
	set external {
		type ipv4_addr
		elements = { 60.60.60.1 }
	}

	map mappings {
		type inet_proto . inet_service : ipv4_addr . inet_service
		flags timeout
		elements = { udp . 8043 timeout 2m30s comment "peer" : 10.100.0.2 . 8043 }
	}

	map restricted {
		type inet_proto . inet_service . ipv4_addr . inet_service : ipv4_addr . inet_service
		flags interval,timeout
		elements = { udp . 8044 . 8.8.0.0/16 . 0-65535 timeout 2m30s comment "peer" : 10.100.0.2 . 8044, \
udp . 8044 . 9.9.9.9 . 5 timeout 2m30s comment "peer" : 10.100.0.2 . 8044 }
	}

	chain prerouting {
		type nat hook prerouting priority -80; policy accept;
		ip daddr @external ct mark set ct mark | 0x10000000 dnat ip to meta l4proto . th dport map @mappings
		ip daddr @external ct mark set ct mark | 0x10000000 \
dnat ip to ip protocol . th dport . ip saddr . th sport map @restricted
		ip daddr @external ct mark set ct mark & 0xefffffff
	}
}
"""
"""What an older igd made: the remotes of all mappings in one interval map."""


def test_a_table_that_an_older_igd_made_is_read(others: OtherTables) -> None:
    run("nft", "-f", "-", text=OLDER)
    asked = {(protocol, port) for protocol in TransportProtocol for port in (8042, 8043, 8044, 8045)}
    found = {each for each in asked if taken(others, *each, ADDRESSES)}
    assert found == {(TransportProtocol.UDP, 8043), (TransportProtocol.UDP, 8044)}


def test_ones_own_table_from_before_an_upgrade_is_replaced(neighbour: Nftables) -> None:
    neighbour.replace_all([EXTERNAL], [restricted(8044)], now=0)
    made = run("nft", "-s", "list", "ruleset")
    neighbour.remove_all()
    run("nft", "-f", "-", text=OLDER)
    neighbour.replace_all([EXTERNAL], [restricted(8044)], now=0)
    assert run("nft", "-s", "list", "ruleset") == made


def test_restricted_mappings_are_looked_up_and_not_listed(
    others: OtherTables, neighbour: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers for one port in the same time, however many mappings another instance has."""
    neighbour.replace_all([EXTERNAL], [restricted(8044), restricted(8045)], now=0)
    read: list[bytes] = []
    dump = Netlink.dump

    def recording(netlink: Netlink, message: Message) -> list[bytes]:
        found = dump(netlink, message)
        read.extend(found)
        return found

    monkeypatch.setattr(Netlink, "dump", recording)
    assert taken(others, TransportProtocol.UDP, 8044, ADDRESSES)
    assert not taken(others, TransportProtocol.UDP, 8046, ADDRESSES)
    assert not any(b"remotes_" in each or b"restricted" in each for each in read)


def test_many_restricted_mappings_are_all_looked_at(others: OtherTables, neighbour: Nftables) -> None:
    neighbour.replace_all([EXTERNAL], [restricted(port) for port in range(1, 2000)], now=0)
    assert taken(others, TransportProtocol.UDP, 1, ADDRESSES)
    assert taken(others, TransportProtocol.UDP, 1999, ADDRESSES)
    assert not taken(others, TransportProtocol.UDP, 2000, ADDRESSES)
