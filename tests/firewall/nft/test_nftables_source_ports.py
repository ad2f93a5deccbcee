"""With preserve_source_port: what peers send by UDP from a mapped port leaves from the external port."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from itertools import count

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, PortMapping, Remote, TransportProtocol
from igd.firewall.nft import elements as elements_
from igd.firewall.nft.nftables import Nftables
from tests.firewall.calling import SocketAddress, Transport, call, listener
from tests.firewall.entries import entry
from tests.firewall.listings import SITE, elements, listing
from tests.firewall.three_hosts import EXTERNAL, PEER, REMOTE, ThreeHosts, run

pytestmark = pytest.mark.root

PRESERVING = replace(SITE, preserve_source_port=True)
PUBLIC = str(EXTERNAL)
INSIDE = 3074

# One that keeps source ports would hide what is ours
MASQUERADE = "-t", "nat", "-A", "POSTROUTING", "-o", "ext0", "-j", "MASQUERADE", "--random"

_next_port = count(9000)


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    """Return a remote, the server, where the test is and the operator masquerades, and a peer."""
    run("iptables-nft", *MASQUERADE)
    return hosts


@pytest.fixture
def gateway(hosts: ThreeHosts) -> Iterator[Nftables]:
    """Return a backend on the server."""
    assert hosts
    with contextlib.closing(Nftables(PRESERVING)) as made:
        yield made


def leaves_from(hosts: ThreeHosts, inside: int = INSIDE, transport: Transport = "udp") -> SocketAddress:
    """Call from a port of the peer, each time another port of the remote, and give the source that it sees."""
    port = next(_next_port)
    with listener(hosts.remote, transport, port) as remote:
        seen = call(hosts.peer, transport, (REMOTE, port), remote, (str(PEER), inside))
    assert seen is not None
    return seen


def outbound() -> dict[int, tuple[str, int, int]]:
    """Return address, port and timeout that the peer's ports have outside."""
    found = elements("outbound")
    return {key["elem"]["val"]["concat"][1]: (*data["concat"], key["elem"]["timeout"]) for key, data in found}


@pytest.mark.parametrize("loaded", [False, True], ids=["made", "saved and loaded"])
def test_what_leaves_a_mapped_port_leaves_from_the_external_one(
    hosts: ThreeHosts,
    gateway: Nftables,
    loaded: bool,
) -> None:
    gateway.replace_all([EXTERNAL], [entry(8043, INSIDE), entry(8044, INSIDE + 2, "tcp")], now=0)
    if loaded:
        saved, before = run("nft", "list", "ruleset"), listing()
        run("nft", "flush", "ruleset")
        run("nft", "-f", "-", text=saved)
        assert listing() == before
    assert leaves_from(hosts) == leaves_from(hosts) == (PUBLIC, 8043)
    others = [leaves_from(hosts, INSIDE, "tcp"), leaves_from(hosts, INSIDE + 1), leaves_from(hosts, INSIDE + 2, "tcp")]
    assert {address for address, _port in others} == {PUBLIC}  # as the operator has it
    assert not {port for _address, port in others} & {8043, 8044}


def test_without_the_option_the_operators_line_decides(hosts: ThreeHosts) -> None:
    with contextlib.closing(Nftables(SITE)) as gateway:
        gateway.replace_all([EXTERNAL], [entry(8043, INSIDE)], now=0)
        assert leaves_from(hosts)[1] != 8043
        assert outbound() == {}


def test_who_answers_comes_in_by_the_mapping_and_by_the_flow(hosts: ThreeHosts, gateway: Nftables) -> None:
    gateway.replace_all([EXTERNAL], [entry(8043, INSIDE)], now=0)
    with listener(hosts.peer, "udp", INSIDE) as peer:
        assert call(hosts.remote, "udp", (PUBLIC, 8043), peer, (REMOTE, 5000)) == (REMOTE, 5000)
    assert leaves_from(hosts) == (PUBLIC, 8043)
    with listener(hosts.peer, "udp", INSIDE) as peer:
        assert call(hosts.remote, "udp", (PUBLIC, 8043), peer, (REMOTE, 5001)) == (REMOTE, 5001)


def test_a_restricted_mapping_counts_as_well(hosts: ThreeHosts, gateway: Nftables) -> None:
    """Its remotes are those who may call; whom the peer calls is the peer's affair, and the port is its own."""
    mapping = PortMapping(
        TransportProtocol.UDP, 8043, Endpoint(PEER, INSIDE), "peer", remotes=(Remote(IPv4Network("8.8.8.8/32")),)
    )
    gateway.replace_all([EXTERNAL], [Entry(mapping, Lease(120))], now=0)
    assert leaves_from(hosts) == (PUBLIC, 8043)


def test_of_several_the_oldest_counts_and_when_it_goes_the_next(hosts: ThreeHosts, gateway: Nftables) -> None:
    entries = [entry(port, INSIDE) for port in (8043, 8044, 8045)]
    gateway.replace_all([EXTERNAL], entries[:2], now=0)
    gateway.apply([Change(None, entries[2])], now=0)
    assert leaves_from(hosts) == (PUBLIC, 8043)
    gateway.apply([Change(entries[0], None)], now=0)
    assert leaves_from(hosts) == (PUBLIC, 8044)
    longer = replace(entries[1], lease=Lease(1000))
    gateway.apply([Change(entries[1], longer), Change(None, entries[0])], now=0)
    assert outbound() == {INSIDE: (PUBLIC, 8044, 1030)}
    elsewhere = entry(8044, 99)
    gateway.apply([Change(longer, elsewhere)], now=0)
    assert outbound() == {INSIDE: (PUBLIC, 8045, 150), 99: (PUBLIC, 8044, 150)}
    gateway.apply([Change(elsewhere, None), Change(entries[2], None), Change(entries[0], None)], now=0)
    assert outbound() == {}


def test_what_the_kernel_ended_by_itself_can_be_changed(gateway: Nftables, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [entry(8043, INSIDE), entry(8044, INSIDE)]
    with monkeypatch.context() as patch:
        patch.setattr(elements_, "kernel_timeout", lambda *_: 20)
        gateway.replace_all([EXTERNAL], entries, now=0)
    while outbound():
        pass
    gateway.apply([Change(entries[0], None), Change(entries[1], entries[1])], now=0)
    assert outbound() == {INSIDE: (PUBLIC, 8044, 150)}


def test_a_failure_leaves_the_order_as_it_was(gateway: Nftables) -> None:
    old, new = entry(8043, INSIDE), entry(8044, INSIDE)
    gateway.replace_all([EXTERNAL], [old, new], now=0)
    with pytest.raises(Exception, match="EEXIST"):
        gateway.apply([Change(old, None), Change(None, entry(8044, 99))], now=0)
    assert outbound() == {INSIDE: (PUBLIC, 8043, 150)}
    gateway.apply([Change(old, None)], now=0)
    assert outbound() == {INSIDE: (PUBLIC, 8044, 150)}


def test_without_an_external_address_there_is_nothing_to_send_from(gateway: Nftables) -> None:
    old = entry(8043, INSIDE)
    gateway.replace_all([], [old], now=0)
    gateway.apply([Change(old, old), Change(None, entry(8044, 99))], now=0)
    assert outbound() == {}
