"""Several pinholes of one endpoint, by UPnP for one remote each and by PCP: what closing one of them ends."""

import contextlib
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv6Network
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    BY_INTERNAL_ENDPOINT,
    Change,
    Claim,
    Endpoint,
    Entry,
    Key,
    Lease,
    Pinhole,
    Remote,
    TransportProtocol,
)
from igd.firewall import kernel
from igd.firewall.backend import Backend
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.nft import elements as elements_
from igd.firewall.nft.nftables import Nftables
from igd.firewall.site import GRACE
from tests.firewall.calling import SocketAddress, call, listener
from tests.firewall.listings import SITE, named_sets
from tests.firewall.three_hosts import EXTERNAL, PEER6, REMOTE6, ThreeHosts, joined, run, three_hosts
from tests.lab import PATIENCE, await_ipv6, until

pytestmark = pytest.mark.root

Choice = Literal["nftables", "iptables"]

OTHER6 = "2001:470:60::4"  # the remote's second address
SOURCES: tuple[SocketAddress, ...] = ((REMOTE6, 5000), (REMOTE6, 5001), (OTHER6, 5002))
FIREWALL = """
table ip6 test {
    chain FORWARD {
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        oifname "wg0" ct mark & 0x10000000 == 0x10000000 accept
        iifname "ext0" reject
    }
}
"""


def hole(claim: Claim, port: int, *remotes: Remote, until: float = 120) -> Entry:
    pinhole = Pinhole(TransportProtocol.UDP, Endpoint(PEER6, port), "peer", "hole", remotes, claim)
    return Entry(pinhole, Lease(until))


def remote(network: str, port: int = 0) -> Remote:
    return Remote(IPv6Network(network), port)


R1, R2 = remote(f"{REMOTE6}/128"), remote(f"{OTHER6}/128")


class Case(NamedTuple):
    """Two pinholes of one endpoint, one of which is closed, and which of SOURCES may go on."""

    closed: tuple[Claim, tuple[Remote, ...]]
    left: tuple[Claim, tuple[Remote, ...]]
    go_on: tuple[bool, bool, bool]
    got_in: tuple[bool, bool, bool] = (True, True, True)


UPNP, PCP = BY_EXTERNAL_PORT, BY_INTERNAL_ENDPOINT
CASES = {
    "two remotes": Case((UPNP, (R1,)), (UPNP, (R2,)), (False, False, True)),
    "one remote by both protocols": Case((PCP, (R1,)), (UPNP, (R1,)), (True, True, False), (True, True, False)),
    "and the reverse": Case((UPNP, (R1,)), (PCP, (R1,)), (True, True, False), (True, True, False)),
    "one remote beside any": Case((UPNP, (R1,)), (PCP, ()), (True, True, True)),
    "any beside one remote": Case((PCP, ()), (UPNP, (R1,)), (True, True, False)),
    "a network beside a host": Case((UPNP, (remote("2001:470:60::/64"),)), (UPNP, (R2,)), (False, False, True)),
    "a host beside its port": Case(
        (UPNP, (R1,)), (UPNP, (replace(R1, port=5001),)), (False, True, False), (True, True, False)
    ),
    "two ports of one host": Case(
        (UPNP, (replace(R1, port=5000),)), (UPNP, (replace(R1, port=5001),)), (False, True, False), (True, True, False)
    ),
    "one of PCP's filters": Case((UPNP, (R1,)), (PCP, (R1, R2)), (True, True, True)),
    "any twice": Case((UPNP, (remote("::/0"),)), (PCP, ()), (True, True, True)),
}


@pytest.fixture
def hosts() -> Iterator[ThreeHosts]:
    """Return a remote with two addresses, the server, where the test is and FORWARD refuses, and a peer."""
    with three_hosts() as made:
        with joined(made.remote):
            run("ip", "address", "add", f"{OTHER6}/64", "dev", "eth0", "nodad")
            await_ipv6()
        run("nft", "-f", "-", text=FIREWALL)
        yield made


@contextlib.contextmanager
def _backend(choice: Choice) -> Iterator[Backend]:
    with contextlib.closing(kernel.build(choice, SITE, LegacyWatch(kernel.LEGACY))) as backend:
        yield backend


def _who_gets_in(hosts: ThreeHosts, port: int) -> tuple[bool, ...]:
    """Call from each of SOURCES, in the flow that there is or in a new one."""
    with listener(hosts.peer, "udp", port, family=socket.AF_INET6) as peer:
        return tuple(call(hosts.remote, "udp", (str(PEER6), port), peer, source) == source for source in SOURCES)


def _flows(port: int) -> dict[SocketAddress, str]:
    """Return the id of each flow to this port of the peer's, by its source."""
    listed = run("conntrack", "-L", "-f", "ipv6", "-p", "udp", "-o", "id", "--orig-port-dst", str(port))
    found = re.findall(r"src=(\S+) dst=\S+ sport=(\d+) .*id=(\d+)", listed)
    return {(address, int(source_port)): number for address, source_port, number in found}


Close = Callable[[Backend, list[Entry], list[Entry]], None]


def _by_changes(backend: Backend, closed: list[Entry], _left: list[Entry]) -> None:
    changes = [Change(entry, None) for entry in closed]
    backend.apply(changes, now=0)
    sweep = backend.sweep_of([change.undone() for change in changes])
    if sweep is not None:
        sweep.result(PATIENCE)


def _by_a_restart(backend: Backend, _closed: list[Entry], left: list[Entry]) -> None:
    backend.replace_all([EXTERNAL], left, now=0)


@pytest.mark.parametrize("close", [_by_changes, _by_a_restart])
@pytest.mark.parametrize("choice", ["nftables", "iptables"])
def test_closing_one_ends_what_no_other_admits(hosts: ThreeHosts, choice: Choice, close: Close) -> None:
    ports = dict(enumerate(CASES.values(), start=8000))
    closed = [hole(case.closed[0], port, *case.closed[1]) for port, case in ports.items()]
    left = [hole(case.left[0], port, *case.left[1]) for port, case in ports.items()]
    with _backend(choice) as backend:
        backend.replace_all([EXTERNAL], [], now=0)
        backend.apply([Change(None, entry) for entry in (*closed, *left)], now=0)
        for port, case in ports.items():
            assert _who_gets_in(hosts, port) == case.got_in, case
        before = {port: _flows(port) for port in ports}
        backend.replace_all([EXTERNAL], [*closed, *left], now=0)
        assert {port: _flows(port) for port in ports} == before, "both are kept"
        close(backend, closed, left)
        for port, case in ports.items():
            going_on = {source for source, goes_on in zip(SOURCES, case.go_on, strict=True) if goes_on}
            kept = {source: number for source, number in before[port].items() if source in going_on}
            assert kept.keys() == going_on, case
            assert _flows(port) == kept, case
            assert _who_gets_in(hosts, port) == case.go_on, case
        close(backend, left, [])
        for port in ports:
            assert _flows(port) == {}
            assert _who_gets_in(hosts, port) == (False, False, False)
        backend.remove_all()


@pytest.mark.parametrize("choice", ["nftables", "iptables"])
def test_a_batch_that_closes_one_and_opens_another_of_the_same_remote(hosts: ThreeHosts, choice: Choice) -> None:
    upnp, pcp = hole(UPNP, 8043, R1), hole(PCP, 8043, R1)
    with _backend(choice) as backend:
        backend.replace_all([EXTERNAL], [upnp], now=0)
        before = _flows(8043) if _who_gets_in(hosts, 8043)[0] else None
        for batch in ([Change(upnp, None), Change(None, pcp)], [Change(None, upnp), Change(pcp, None)]):
            backend.apply(batch, now=0)
            sweep = backend.sweep_of([Change(None, upnp)])
            if sweep is not None:
                sweep.result(PATIENCE)
            assert _flows(8043) == before
            assert _who_gets_in(hosts, 8043) == (True, True, False)
        backend.remove_all()


# The elements of nftables


REMOTES = st.sampled_from([(), (R1,), (R2,), (R1, R2), (remote("2001:470:60::/64"),), (replace(R1, port=5),)])
HOLES = st.tuples(st.sampled_from([UPNP, PCP]), st.integers(1, 2), REMOTES, st.sampled_from([60, 600, 6000]))
HELD = st.lists(HOLES, max_size=5).map(lambda found: {each.mapping.key: each for each in _entries(found)})
STEPS = st.lists(st.lists(st.tuples(HOLES, st.booleans()), max_size=4), max_size=5)


def _entries(found: Iterable[tuple[Claim, int, tuple[Remote, ...], float]]) -> list[Entry]:
    return [
        hole(claim, port, *(remotes[:1] if claim == UPNP else remotes), until=until)
        for claim, port, remotes, until in found
    ]


def _listed() -> dict[tuple[Any, ...], int]:
    """Return the timeout of each element of pinholes, by set and key."""
    named = {name: listed for name, listed in named_sets().items() if "pinhole" in name}
    found = ((name, each["elem"]) for name, listed in named.items() for each in listed)
    return {(name, *elem["val"]["concat"]): elem["timeout"] for name, elem in found}


def _expected(entries: Iterable[Entry]) -> dict[tuple[Any, ...], int]:
    longest: dict[tuple[Any, ...], int] = {}
    for entry in entries:
        mapping, timeout = entry.mapping, int(entry.lease.expires) + GRACE
        key = str(mapping.internal.address), "udp", mapping.internal.port
        keys: list[tuple[Any, ...]] = [("restricted_pinholes" if mapping.remotes else "pinholes", *key)]
        for each in mapping.remotes:
            network, port = each.network, (each.port,) if each.port else ()
            name = f"pinhole_remotes_{network.prefixlen}{'_port' if port else ''}"
            keys.append((name, str(network.network_address), *key, *port))
        for place in keys:
            longest[place] = max(longest.get(place, 0), timeout)
    return longest


@pytest.fixture
def nftables(alone: None) -> Iterator[Nftables]:
    """Return a backend in a network namespace of its own, in which the test is too."""
    with contextlib.closing(Nftables(SITE)) as made:
        yield made


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=HELD, steps=STEPS)
def test_an_element_is_held_until_the_last_pinhole_that_needs_it_goes(
    nftables: Nftables, start: dict[Key, Entry], steps: list[list[tuple[Any, bool]]]
) -> None:
    """A step is one call; each change in it opens, renews or closes a pinhole."""
    nftables.replace_all([EXTERNAL], start.values(), now=0)
    model = dict(start)
    assert _listed() == _expected(model.values())
    for step in steps:
        changes = []
        for found, opens in step:
            (entry,) = _entries([found])
            before, after = model.pop(entry.mapping.key, None), entry if opens else None
            changes += [Change(before, after)] if before or after else []
            if after is not None:
                model[entry.mapping.key] = after
        nftables.apply(changes, now=0)
        assert _listed() == _expected(model.values())


def test_what_the_kernel_ended_by_itself_is_held_again_for_the_other(
    nftables: Nftables, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = hole(UPNP, 1, R1), hole(PCP, 1, R1, R2)
    with monkeypatch.context() as patch:
        patch.setattr(elements_, "kernel_timeout", lambda *_: 20)
        nftables.replace_all([EXTERNAL], [one, other], now=0)
    until(lambda: not _listed(), 0.01)
    nftables.apply([Change(one, None)], now=0)
    assert _listed().keys() == _expected([one]).keys()
    nftables.apply([Change(other, None)], now=0)
    assert _listed() == {}
