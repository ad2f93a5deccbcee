"""Mappings for some remotes only: the kernel lets nobody else in."""

import socket
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igd.core.mapping import Change, Endpoint, Entry, Lease, Pinhole, Remote, TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.netlink import Netlink
from igd.firewall.nf_tables import NFT_MSG
from igd.firewall.nfnetlink import NFPROTO_INET, Message, nft_message
from igd.firewall.nft import elements as elements_
from igd.firewall.nft.nftables import Nftables
from tests.firewall.calling import TRANSPORTS, Transport, call, listener
from tests.firewall.entries import entry
from tests.firewall.listings import SITE, listing, marks, named_sets
from tests.firewall.three_hosts import EXTERNAL, PEER6, REMOTE, REMOTE6, ThreeHosts, joined, run

pytestmark = pytest.mark.root

OTHER = "60.60.60.4"  # the remote's second address


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    """Return a remote with a second address, the server, where the test is, and a peer."""
    with joined(hosts.remote):
        run("ip", "address", "add", f"{OTHER}/24", "dev", "eth0")
    return hosts


def remote(network: str, port: int = 0) -> Remote:
    return Remote(ip_network(network), port)


def restricted(port: int, *remotes: Remote, protocol: str = "udp", until: float = 120) -> Entry:
    plain = entry(port, protocol=protocol, until=until)
    return replace(plain, mapping=replace(plain.mapping, remotes=remotes))


def held() -> dict[tuple[Any, ...], str]:
    """Return what nft says of port mappings: internal endpoints by set and key; of `restricted_ports` no endpoint."""
    found = {}
    for name, listed in named_sets().items():
        for each in listed if name == "mappings" or name.startswith("remotes_") else ():
            found[name, *each[0]["elem"]["val"]["concat"]] = "{}:{}".format(*each[1]["concat"])
        for each in listed if name == "restricted_ports" else ():
            found[name, *each["elem"]["val"]["concat"]] = ""
    return found


def expected(entry: Entry) -> dict[tuple[Any, ...], str]:
    mapping, port = entry.mapping, (entry.mapping.protocol.name.lower(), entry.mapping.external_port)
    found = {}
    for each in mapping.remotes:
        prefixlen = (each.network.prefixlen + 3) // 4 * 4
        name = f"remotes_{prefixlen}{'_port' if each.port else ''}"
        for part in each.network.subnets(new_prefix=prefixlen):
            source = (str(part.network_address),) if prefixlen else ()
            found[name, *source, *port, *((each.port,) if each.port else ())] = str(mapping.internal)
    if not mapping.remotes or any(str(each) == "0.0.0.0/0" for each in mapping.remotes):
        return {("mappings", *port): str(mapping.internal)}
    return {("restricted_ports", *port): ""} | found


def kernel_says(entries: list[Entry]) -> None:
    """Compare the maps and sets with what they should hold."""
    assert held() == {key: to for entry in entries for key, to in expected(entry).items()}


WHOM = [
    ([remote("60.60.60.2/32")], True, True, False),
    ([remote("60.60.60.2/31")], True, True, False),
    ([remote("60.60.60.0/24")], True, True, True),
    ([remote("60.60.60.2/32", 5000)], True, False, False),
    ([remote("0.0.0.0/0", 5000)], True, False, False),
    ([remote("60.60.60.0/24", 5000), remote("60.60.60.4/32")], True, False, True),
    ([remote("8.8.8.8/32")], False, False, False),
    ([remote("0.0.0.0/1"), remote("128.0.0.0/1")], True, True, True),
    ([remote("0.0.0.0/0", 5002), remote("60.60.60.3/32"), remote("60.60.60.2/32", 5001)], False, True, True),
    # others' remotes of the same prefix length, or of the same first address, admit nobody here
    ([remote("60.60.60.0/32"), remote("60.60.60.128/25", 5000)], False, False, False),
    ([remote("60.60.60.0/31"), remote("60.60.60.2/32", 5002)], False, False, False),
    ([remote("60.60.0.0/16", 5000), remote("60.0.0.0/8", 5001), remote("60.60.60.0/24", 5001)], True, True, False),
    ([remote("60.60.60.0/24"), remote("60.60.60.2/32", 5000), remote("60.60.60.2/32")], True, True, True),
]


@pytest.mark.parametrize("loaded", [False, True], ids=["made", "saved and loaded"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_those_alone_get_in(
    hosts: ThreeHosts,
    gateway: Nftables,
    transport: Transport,
    loaded: bool,
) -> None:
    entries = [restricted(8000 + n, *remotes, protocol=transport) for n, (remotes, *_) in enumerate(WHOM)]
    gateway.replace_all([EXTERNAL], entries, now=0)
    if loaded:
        saved, before = run("nft", "list", "ruleset"), listing()
        gateway.remove_all()
        run("nft", "-f", "-", text=saved)
        assert listing() == before
    sources = ((REMOTE, 5000), (REMOTE, 5001), (OTHER, 5002))
    for port, (_remotes, *welcome) in enumerate(WHOM, start=8000):
        with listener(hosts.peer, transport, port) as peer:
            for source, wanted in zip(sources, welcome, strict=True):
                seen = call(hosts.remote, transport, (str(EXTERNAL), port), peer, source)
                assert seen == (source if wanted else None), (port, source)
    assert set(marks().values()) <= {0, SITE.mark}


def test_who_does_not_get_in_leaves_no_mark(hosts: ThreeHosts, gateway: Nftables) -> None:
    gateway.replace_all([EXTERNAL], [restricted(8043, remote("8.8.8.8/32"))], now=0)
    with listener(hosts.server, "udp", 8044) as own, listener(hosts.peer, "udp", 8043) as peer:
        assert call(hosts.remote, "udp", (str(EXTERNAL), 8043), peer) is None
        assert call(hosts.remote, "udp", (str(EXTERNAL), 8044), own) is not None
    assert marks() == {8043: 0, 8044: 0}


NETWORKS = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "10.0.0.0/9", "10.128.0.0/9", "0.0.0.0/0", "0.0.0.0/1"]
REMOTES = st.lists(
    st.builds(Remote, st.sampled_from(NETWORKS).map(IPv4Network), st.sampled_from([0, 0, 5, 6])), max_size=4
).map(tuple)
STEPS = st.lists(st.lists(st.tuples(st.integers(1, 3), st.none() | REMOTES), max_size=3), max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.dictionaries(st.integers(1, 3), REMOTES), steps=STEPS)
def test_whatever_changes_come_both_maps_are_what_they_say(
    backend: Nftables, start: dict[int, tuple[Remote, ...]], steps: list[list[tuple[int, tuple[Remote, ...] | None]]]
) -> None:
    """A step is one call; each change in it names a port and who may come in there from then on, if anybody."""
    model = {port: restricted(port, *remotes) for port, remotes in start.items()}
    backend.replace_all([EXTERNAL], model.values(), now=0)
    kernel_says([*model.values()])
    for step in steps:
        changes = []
        for port, remotes in step:
            after = None if remotes is None else restricted(port, *remotes)
            changes.append(Change(model.pop(port, None), after))
            if after is not None:
                model[port] = after
        backend.apply(changes, now=0)
        kernel_says([*model.values()])


@pytest.fixture
def short_lived(backend: Nftables, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """Return an entry whose elements the kernel's timeout has just ended; another one is still there."""
    gone = restricted(8043, remote("10.0.0.0/8", 5), remote("10.1.0.0/16"))
    with monkeypatch.context() as patch:
        patch.setattr(elements_, "kernel_timeout", lambda *_: 20)
        backend.replace_all([EXTERNAL], [gone], now=0)
    backend.apply([Change(None, restricted(1, remote("10.0.0.0/8")))], now=0)
    while len(held()) > 2:
        pass
    return gone


@pytest.mark.parametrize("after", [None, entry(8043), restricted(8043, remote("10.0.0.0/8"))])
def test_what_the_kernel_ended_by_itself_can_be_changed(
    backend: Nftables, short_lived: Entry, after: Entry | None
) -> None:
    other = restricted(1, remote("10.0.0.0/8"))
    backend.apply([Change(other, None), Change(short_lived, after)], now=0)
    kernel_says([after] if after else [])


def test_what_the_kernel_ended_by_itself_can_be_renewed(backend: Nftables, short_lived: Entry) -> None:
    backend.apply([Change(short_lived, short_lived)], now=0)
    kernel_says([short_lived, restricted(1, remote("10.0.0.0/8"))])


@pytest.mark.parametrize(("name", "key"), [("remotes_16", "10.1.0.0 . udp . 8043"), ("restricted_ports", "udp . 8043")])
def test_an_end_of_one_element_alone_is_no_hindrance(backend: Nftables, name: str, key: str) -> None:
    """Their timeouts begin one after another."""
    whole = restricted(8043, remote("10.0.0.0/8", 5), remote("10.1.0.0/16"))
    backend.replace_all([EXTERNAL], [whole], now=0)
    run("nft", "delete", "element", "inet", "igd_wg0", name, f"{{ {key} }}")
    backend.apply([Change(whole, None)], now=0)
    kernel_says([])


def networks_around(address: str) -> list[tuple[Remote, bool]]:
    """Return, for each prefix length, the network of the address and the one beside it, and whether it is in there."""
    whole = ip_network(address)
    found = []
    for prefixlen in range(whole.max_prefixlen + 1):
        own = whole.supernet(new_prefix=prefixlen)
        beside = [each for each in (own.supernet().subnets() if prefixlen else ()) if each != own]
        found += [(Remote(own), True), *((Remote(each), False) for each in beside)]
    return found


@pytest.mark.parametrize("source_port", [5000, 5001])
def test_every_prefix_length_admits_its_network_alone(hosts: ThreeHosts, gateway: Nftables, source_port: int) -> None:
    rows = [(replace(each, port=5000), inside and source_port == 5000) for each, inside in networks_around(REMOTE)]
    rows += [each for each in networks_around(REMOTE) if each[0].network.prefixlen]
    entries = [entry_from(8000 + number, 80, each) for number, (each, _inside) in enumerate(rows)]
    gateway.replace_all([EXTERNAL], entries, now=0)
    with listener(hosts.peer, "udp", 80) as peer:
        for port, (each, welcome) in enumerate(rows, start=8000):
            seen = call(hosts.remote, "udp", (str(EXTERNAL), port), peer, (REMOTE, source_port))
            assert (seen is not None) == welcome, each


def entry_from(port: int, inside: int, *remotes: Remote) -> Entry:
    plain = entry(port, inside)
    return replace(plain, mapping=replace(plain.mapping, remotes=remotes))


FIREWALL = """
table ip6 filter {
    chain FORWARD {
        type filter hook forward priority filter; policy accept;
        oifname "wg0" ct mark & 0x10000000 == 0 reject
    }
}
"""


@pytest.mark.parametrize("source_port", [5000, 5001])
def test_every_prefix_length_of_pinholes_admits_its_network_alone(
    hosts: ThreeHosts, gateway: Nftables, source_port: int
) -> None:
    run("nft", "-f", "-", text=FIREWALL)
    rows = [(replace(each, port=5000), inside and source_port == 5000) for each, inside in networks_around(REMOTE6)]
    rows += [each for each in networks_around(REMOTE6) if each[0].network.prefixlen]
    entries = [pinhole(8000 + number, each) for number, (each, _inside) in enumerate(rows)]
    gateway.replace_all([EXTERNAL], entries, now=0)
    for port, (each, welcome) in enumerate(rows, start=8000):
        with listener(hosts.peer, "udp", port, family=socket.AF_INET6) as peer:
            seen = call(hosts.remote, "udp", (str(PEER6), port), peer, (REMOTE6, source_port))
            assert (seen is not None) == welcome, each


def pinhole(port: int, *remotes: Remote) -> Entry:
    return Entry(Pinhole(TransportProtocol.UDP, Endpoint(PEER6, port), "peer", "hole", remotes), Lease(120))


def test_a_saved_listing_with_every_prefix_length_loads_again(backend: Nftables) -> None:
    of_each = [each for each, _inside in networks_around(REMOTE) if each.network.prefixlen]
    ports = [replace(each, port=5) for each, _inside in networks_around(REMOTE)]
    of_each6 = [each for each, _inside in networks_around(REMOTE6) if each.network.prefixlen]
    ports6 = [replace(each, port=5) for each, _inside in networks_around(REMOTE6)]
    backend.replace_all([EXTERNAL], [restricted(7, *of_each, *ports), pinhole(7, *of_each6, *ports6)], now=0)
    before = listing()
    assert before.count(" map @remotes_") == 8 + 9
    assert before.count(" @pinhole_remotes_") == 32 + 33
    backend.remove_all()
    run("nft", "-f", "-", text=before)
    assert listing() == before
    backend.replace_all([EXTERNAL], [], now=0)  # what nft made is no other shape for us
    assert "remotes_" not in listing().replace("from_remotes", "")


SIXTEEN = [remote(f"198.51.100.{number}/32") for number in range(16)]


def many(count: int, start: int = 1000) -> list[Entry]:
    return [restricted(port, *SIXTEEN) for port in range(start, start + count)]


def dumped(kind: NFT_MSG) -> int:
    with closing(Netlink()) as netlink:
        return len(netlink.dump(nft_message(kind, NFPROTO_INET)))


def test_a_change_of_filters_costs_the_same_with_any_number_of_others(
    backend: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages and elements of one change, and what the kernel examines or copies at each commit."""
    sizes: list[tuple[list[int], int]] = []
    transact = Netlink.transact

    def recording(netlink: Netlink, subsystem: int, messages: Sequence[Message]) -> None:
        sizes.append(([message.kind for message in messages], sum(len(message.payload) for message in messages)))
        transact(netlink, subsystem, messages)

    costs = []
    for count in (1, 1000):
        backend.replace_all([EXTERNAL], many(count), now=0)
        before, after = restricted(7, *SIXTEEN), restricted(7, *SIXTEEN[:8], *(replace(e, port=5) for e in SIXTEEN[8:]))
        backend.apply([Change(None, after)], now=0)  # creates the sets of the kinds that it needs
        backend.apply([Change(after, before)], now=0)
        with monkeypatch.context() as patch:
            patch.setattr(Netlink, "transact", recording)
            backend.apply([Change(before, after)], now=0)
        # chains, rules and interval sets are examined or copied as a whole
        costs.append((sizes.pop(), dumped(NFT_MSG.GETCHAIN), dumped(NFT_MSG.GETRULE), dumped(NFT_MSG.GETSET)))
        declared = run("nft", "-t", "list", "ruleset")
        assert "flags timeout" in declared
        assert "interval" not in declared
        assert "verdict" not in declared
    assert costs[0] == costs[1]
    (kinds, _size), *_rest = costs[0]
    assert len(kinds) == 17 + 3  # a deletion for each element; the additions, a message for each set


def test_sets_of_remotes_come_when_they_are_needed_and_go_when_everything_is_replaced(backend: Nftables) -> None:
    def names() -> set[str]:
        return {name for name in named_sets() if "remotes_" in name}

    first, second = restricted(1, remote("10.0.0.0/8")), restricted(2, remote("10.0.0.0/8", 5), remote("10.0.0.0/11"))
    backend.replace_all([EXTERNAL], [], now=0)
    assert names() == set()
    backend.apply([Change(None, first)], now=0)
    assert names() == {"remotes_8"}
    backend.apply([Change(first, None), Change(None, second), Change(None, pinhole(3, REMOTE6_64))], now=0)
    kernel_says([second])
    assert names() == {"remotes_8", "remotes_8_port", "remotes_12", "pinhole_remotes_64"}
    backend.replace_all([EXTERNAL], [second], now=0)
    assert names() == {"remotes_8_port", "remotes_12"}
    fresh = listing()
    backend.remove_all()
    backend.replace_all([EXTERNAL], [second], now=0)
    assert sorted(listing().splitlines()) == sorted(fresh.splitlines())
    backend.apply([Change(second, None), Change(None, first)], now=0)
    kernel_says([first])


REMOTE6_64 = Remote(IPv6Network("2001:db8::/64"))


def test_filters_that_are_added_one_by_one_are_all_there(backend: Nftables) -> None:
    backend.replace_all([EXTERNAL], [], now=0)
    before = None
    for count in range(1, 17):
        lengths = [Remote(IPv4Network((IPv4Address("10.0.0.0"), 8 + number))) for number in range(count)]
        after = restricted(8043, *lengths)
        backend.apply([Change(before, after)], now=0)
        kernel_says([after])
        before = after


def test_after_a_change_that_failed_everything_is_made_again(backend: Nftables) -> None:
    """The sets of remotes that the failed change would have created are created by the next."""
    backend.replace_all([EXTERNAL], [restricted(1, remote("10.0.0.0/8"))], now=0)
    added = restricted(2, remote("10.0.0.0/12"))
    with pytest.raises(FirewallError):
        backend.apply([Change(None, added), Change(None, entry_from(1, 99, remote("10.0.0.0/8")))], now=0)
    backend.apply([Change(None, added)], now=0)
    kernel_says([restricted(1, remote("10.0.0.0/8")), added])


def test_a_set_of_remotes_that_others_deleted_is_an_error_and_then_repaired(backend: Nftables) -> None:
    entries = [restricted(1, remote("10.0.0.0/8"))]
    backend.replace_all([EXTERNAL], entries, now=0)
    run("nft", "flush chain inet igd_wg0 from_remotes; delete map inet igd_wg0 remotes_8")
    with pytest.raises(FirewallError):
        backend.apply([Change(None, restricted(2, remote("10.0.0.0/8")))], now=0)
    backend.replace_all([EXTERNAL], entries, now=0)
    kernel_says(entries)
    assert "map @remotes_8" in listing()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nobody_is_sent_away_while_everything_is_replaced(
    hosts: ThreeHosts, gateway: Nftables, transport: Transport
) -> None:
    entries = [restricted(8043, remote(f"{REMOTE}/32"), protocol=transport)]
    gateway.replace_all([EXTERNAL], entries, now=0)
    done = threading.Event()
    replaced = []

    def replacing() -> None:
        other = restricted(8044, remote("10.0.0.0/8"))  # its set comes and goes with it
        while not done.is_set():
            gateway.replace_all([EXTERNAL], entries, now=0)
            gateway.apply([Change(None, other)], now=0)
            gateway.apply([Change(entries[0], entries[0])], now=0)
            replaced.append(True)

    thread = threading.Thread(target=replacing)
    with listener(hosts.peer, transport, 8043) as peer:
        thread.start()
        try:
            calls = 0
            while calls < 200 or len(replaced) <= 10:
                calls += 1
                assert call(hosts.remote, transport, (str(EXTERNAL), 8043), peer) is not None
        finally:
            done.set()
            thread.join()
