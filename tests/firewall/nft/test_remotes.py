"""Remotes made disjoint, against brute force."""

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import Endpoint, PortMapping, Remote, TransportProtocol
from igd.firewall.nft.remotes import SourceRange, admitted_sources, disjoint

BASE = IPv4Network("10.0.0.0/28")
PORTS = (1, 2, 65535)


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network:
    """Return BASE or a part of it."""
    prefix = draw(st.integers(BASE.prefixlen, 32))
    return IPv4Network((int(BASE[draw(st.integers(0, 15))]), prefix), strict=False)


REMOTES = st.lists(st.builds(Remote, networks(), st.sampled_from([0, 0, *PORTS[:2]])), max_size=8)


@given(REMOTES)
def test_the_same_pairs_are_held_each_once(remotes: list[Remote]) -> None:
    wanted = {(address, port) for remote in remotes for address in remote.network for port in remote_ports(remote)}
    found = Counter(
        (address, port)
        for each in disjoint(remotes)
        for address in BASE
        for port in PORTS
        if int(each.first.address) <= int(address) <= int(each.last.address)
        and each.first.port <= port <= each.last.port
    )
    assert found.keys() == wanted
    assert set(found.values()) <= {1}


def remote_ports(remote: Remote) -> tuple[int, ...]:
    return (remote.port,) if remote.port else PORTS


@given(REMOTES)
def test_sources_are_few(remotes: list[Remote]) -> None:
    """One remote for any port cuts each of the others in two at most; networks would be cut into dozens."""
    wide = sum(not remote.port for remote in remotes)
    ports = {remote.port for remote in remotes} - {0}
    assert len(list(disjoint(remotes))) <= len(remotes) + wide * len(ports)


def test_ipv6_as_well() -> None:
    wide = Remote(IPv6Network("2001:db8:4000::/34"))
    around = Remote(IPv6Network("2001:db8::/32"), 5)
    inside = Remote(IPv6Network("2001:db8:4000::1/128"), 7)
    first, last = around.network[0], around.network[-1]
    assert list(disjoint([around, wide, inside])) == [
        SourceRange(Endpoint(wide.network[0], 0), Endpoint(wide.network[-1], 65535)),
        SourceRange(Endpoint(first, 5), Endpoint(wide.network[0] - 1, 5)),
        SourceRange(Endpoint(wide.network[-1] + 1, 5), Endpoint(last, 5)),
    ]


def mapping(*remotes: Remote) -> PortMapping:
    return PortMapping(TransportProtocol.UDP, 7, Endpoint(IPv4Address("10.100.0.2"), 7), "peer", remotes=remotes)


def test_who_lets_in_everybody_restricts_nothing() -> None:
    everywhere = IPv4Network("0.0.0.0/0")
    assert admitted_sources(mapping()) == ()
    assert admitted_sources(mapping(Remote(BASE, 5), Remote(everywhere))) == ()
    assert admitted_sources(mapping(Remote(everywhere, 5))) == (
        SourceRange(Endpoint(everywhere[0], 5), Endpoint(everywhere[-1], 5)),
    )
    assert admitted_sources(mapping(Remote(BASE))) == (SourceRange(Endpoint(BASE[0], 0), Endpoint(BASE[-1], 65535)),)
