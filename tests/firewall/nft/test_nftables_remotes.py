"""Mappings for some remotes only: the kernel lets nobody else in."""

import threading
from dataclasses import replace
from ipaddress import IPv4Network, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igd.core.mapping import Change, Entry, Remote
from igd.firewall.nft import elements as elements_
from igd.firewall.nft.nftables import Nftables
from igd.firewall.nft.remotes import admitted_sources
from tests.firewall.calling import TRANSPORTS, Transport, call, listener
from tests.firewall.entries import entry
from tests.firewall.listings import SITE, elements, held, listing, marks
from tests.firewall.three_hosts import EXTERNAL, REMOTE, ThreeHosts, joined, run

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


def bounds(value: str | int | dict[str, Any]) -> tuple[Any, Any]:
    """Return the first and the last of a part of a key."""
    if not isinstance(value, dict):
        return value, value
    if "range" in value:
        return value["range"][0], value["range"][1]
    network = ip_network(f"{value['prefix']['addr']}/{value['prefix']['len']}")
    return str(network[0]), str(network[-1])


def intervals() -> dict[tuple[Any, ...], tuple[str, int]]:
    """Return what nft says `restricted` holds: endpoint by protocol, port, and the bounds of addresses and ports."""
    found = [(key["elem"]["val"]["concat"], data["concat"]) for key, data in elements("restricted")]
    return {(*key[:2], *bounds(key[2]), *bounds(key[3])): tuple(data) for key, data in found}


def kernel_says(entries: list[Entry]) -> None:
    """Compare both maps with what they should hold."""
    everybody, some = {}, {}
    for mapping in (each.mapping for each in entries):
        key = mapping.protocol.name.lower(), mapping.external_port
        endpoint = str(mapping.internal.address), mapping.internal.port
        for each in admitted_sources(mapping):
            first, last = each
            some[*key, str(first.address), str(last.address), first.port, last.port] = endpoint
        if not admitted_sources(mapping):
            everybody[key] = endpoint
    assert {key: value[:2] for key, value in held().items()} == everybody
    assert intervals() == some


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
    """Return an entry whose intervals the kernel's timeout has just ended; another one is still there."""
    gone = restricted(8043, remote("10.0.0.0/8", 5), remote("10.1.0.0/16"))
    with monkeypatch.context() as patch:
        patch.setattr(elements_, "kernel_timeout", lambda *_: 20)
        backend.replace_all([EXTERNAL], [gone], now=0)
    backend.apply([Change(None, restricted(1, remote("10.0.0.0/8")))], now=0)
    while len(intervals()) > 1:
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


def test_an_end_of_one_interval_alone_is_no_hindrance(backend: Nftables) -> None:
    """Their timeouts begin one after another."""
    whole = restricted(8043, remote("10.0.0.0/8", 5), remote("10.1.0.0/16"))
    backend.replace_all([EXTERNAL], [whole], now=0)
    run("nft", "delete", "element", "inet", "igd_wg0", "restricted", "{ udp . 8043 . 10.1.0.0/16 . 0-65535 }")
    backend.apply([Change(whole, None)], now=0)
    kernel_says([])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nobody_is_sent_away_while_everything_is_replaced(
    hosts: ThreeHosts, gateway: Nftables, transport: Transport
) -> None:
    entries = [restricted(8043, remote(f"{REMOTE}/32"), protocol=transport)]
    gateway.replace_all([EXTERNAL], entries, now=0)
    done = threading.Event()
    replaced = []

    def replacing() -> None:
        while not done.is_set():
            gateway.replace_all([EXTERNAL], entries, now=0)
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
