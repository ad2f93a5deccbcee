"""Traffic through the iptables backend in the real kernel: remotes, pinholes, hairpin, preserved ports."""

import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.site import MARK, Site
from tests.firewall.calling import SocketAddress, Transport, call, listener
from tests.firewall.three_hosts import (
    EXTERNAL,
    PEER,
    PEER6,
    PEERS,
    REMOTE,
    REMOTE6,
    ThreeHosts,
    joined,
    run,
)
from tests.lab import until

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS)
SERVER_INSIDE = "10.100.0.1"
OTHER_PEER = "10.100.0.3"
BOTH = pytest.mark.parametrize("protocol", ["tcp", "udp"])
MASQUERADE = ("POSTROUTING", "-o", "ext0", "-j", "MASQUERADE")


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    with joined(hosts.peer):
        run("ip", "address", "add", f"{OTHER_PEER}/24", "dev", "eth0")
    return hosts


@contextlib.contextmanager
def backend(site: Site, *entries: Entry) -> Iterator[Iptables]:
    made = Iptables(site)
    made.replace_all([EXTERNAL], entries, 0.0)
    yield made
    made.close()


def mapped(
    protocol: Transport,
    port: int = 8043,
    inside: int = 9043,
    remotes: Sequence[Remote] = (),
    address: IPv4Address = PEER,
) -> Entry:
    mapping = PortMapping(
        TransportProtocol[protocol.upper()], port, Endpoint(address, inside), "peer", "a game", remotes=tuple(remotes)
    )
    return Entry(mapping, Lease(60.0))


def hole(protocol: Transport, port: int = 9043, remotes: Sequence[Remote] = (), address: IPv6Address = PEER6) -> Entry:
    internal = Endpoint(address, port)
    pinhole = Pinhole(TransportProtocol[protocol.upper()], internal, "peer", "a game", remotes=tuple(remotes))
    return Entry(pinhole, Lease(60.0))


def opened(entry: Entry) -> Change:
    return Change(None, entry)


def closed(entry: Entry) -> Change:
    return Change(entry, None)


def nat(*arguments: str) -> None:
    run("iptables-legacy", "-w", "-t", "nat", *arguments)


def filter6(*arguments: str) -> None:
    run("ip6tables-legacy", "-w", *arguments)


def seen(
    protocol: Transport, *, listen: tuple[int, SocketAddress], to: SocketAddress, caller: tuple[int, SocketAddress]
) -> SocketAddress | None:
    """Call from and listen in a namespace, at an address; return the source that was seen, None where rejected."""
    where, (address, port) = listen
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with listener(where, protocol, port, address, family=family) as waiting:
        return call(caller[0], protocol, to, waiting, caller[1])


def from_remote(hosts: ThreeHosts, protocol: Transport, source: SocketAddress = (REMOTE, 0)) -> SocketAddress | None:
    run("conntrack", "-F")  # a packet sent too early has made a flow without translation
    listen = (hosts.peer, ("0.0.0.0", 9043))
    to = (str(EXTERNAL), 8043)
    return seen(protocol, listen=listen, caller=(hosts.remote, source), to=to)


def from_remote6(hosts: ThreeHosts, protocol: Transport, source: SocketAddress = ("::", 0)) -> SocketAddress | None:
    run("conntrack", "-F")
    listen = (hosts.peer, ("::", 9043))
    to = (str(PEER6), 9043)
    return seen(protocol, listen=listen, caller=(hosts.remote, source), to=to)


def marked(*flow: str) -> list[int]:
    """Return the marks of the flows whose line has all these parts."""
    lines = run("conntrack", "-L").splitlines()  # of both IP versions
    found = [re.search(r"mark=(\d+)", line) for line in lines if all(part in line for part in flow)]
    return [int(match[1]) for match in found if match]


# Remotes


@BOTH
@pytest.mark.parametrize(
    ("remotes", "let_in"),
    [
        ([Remote(IPv4Network("60.60.60.2/32"))], True),
        ([Remote(IPv4Network("60.60.60.0/24"))], True),
        ([Remote(IPv4Network("0.0.0.0/0"))], True),
        ([Remote(IPv4Network("60.60.60.3/32"))], False),
        ([Remote(IPv4Network("60.60.60.3/32")), Remote(IPv4Network("60.60.60.2/31"))], True),
        ([Remote(IPv4Network("60.60.60.2/32"), 5000)], True),
        ([Remote(IPv4Network("60.60.60.2/32"), 5001)], False),
        ([Remote(IPv4Network("0.0.0.0/0"), 5000)], True),
        ([Remote(IPv4Network("60.60.60.2/32"), 5001), Remote(IPv4Network("60.60.60.2/32"), 5000)], True),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_only_the_remotes_are_translated(
    hosts: ThreeHosts, protocol: Transport, remotes: list[Remote], *, let_in: bool
) -> None:
    with backend(SITE, mapped(protocol, remotes=remotes)):
        source = (REMOTE, 5000)
        assert from_remote(hosts, protocol, source) == (source if let_in else None)


def test_a_refused_remote_leaves_no_mark(hosts: ThreeHosts) -> None:
    with backend(SITE, mapped("udp", remotes=[Remote(IPv4Network("60.60.60.3/32"))])):
        assert from_remote(hosts, "udp") is None
        assert set(marked("dport=8043")) == {0}


def test_remotes_can_be_changed(hosts: ThreeHosts) -> None:
    everybody, others = mapped("tcp"), mapped("tcp", remotes=[Remote(IPv4Network("60.60.60.3/32"))])
    with backend(SITE, everybody) as made:
        made.apply([Change(everybody, others)], 0.0)
        assert from_remote(hosts, "tcp") is None
        made.apply([Change(others, everybody)], 0.0)
        assert from_remote(hosts, "tcp") is not None


# Pinholes


@BOTH
def test_a_pinhole_opens_a_firewall_that_lets_the_mark_through(hosts: ThreeHosts, protocol: Transport) -> None:
    filter6("-A", "FORWARD", "-m", "connmark", "--mark", f"{MARK:#x}/{MARK:#x}", "-j", "ACCEPT")
    filter6("-A", "FORWARD", "-j", "REJECT")
    pinhole = hole(protocol)
    with backend(SITE) as made:
        assert from_remote6(hosts, protocol) is None
        made.apply([opened(pinhole)], 0.0)
        source = from_remote6(hosts, protocol)
        assert source is not None
        assert source[0] == REMOTE6
        made.apply([closed(pinhole)], 0.0)
        assert from_remote6(hosts, protocol) is None


@pytest.mark.parametrize(
    ("remotes", "mark"),
    [
        ([], MARK),
        ([Remote(IPv6Network(f"{REMOTE6}/128"), 5000)], MARK),
        ([Remote(IPv6Network("2001:470:60::/64"))], MARK),
        ([Remote(IPv6Network("::/0"), 5000)], MARK),
        ([Remote(IPv6Network(f"{REMOTE6}/128"), 5001)], 0),
        ([Remote(IPv6Network("2001:470:61::/64")), Remote(IPv6Network("2001:470:62::/64"))], 0),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, list) else hex(value),
)
@BOTH
def test_flows_of_a_pinhole_and_no_others_are_marked(
    hosts: ThreeHosts, protocol: Transport, remotes: list[Remote], mark: int
) -> None:
    """Nothing is dropped here, so that there is a flow in either case."""
    with backend(SITE, hole(protocol, remotes=remotes)):
        assert from_remote6(hosts, protocol, (REMOTE6, 5000)) == (REMOTE6, 5000)
        assert marked("dport=9043") == [mark]


def test_a_pinhole_is_for_one_port_one_protocol_and_one_address(hosts: ThreeHosts) -> None:
    with backend(SITE, hole("tcp", port=9042), hole("udp"), hole("tcp", port=9044)):
        assert from_remote6(hosts, "tcp") is not None
        assert marked("dport=9043") == [0]


# Hairpin


@BOTH
@pytest.mark.parametrize("source", [str(PEER), OTHER_PEER])
def test_peers_reach_themselves_and_each_other(hosts: ThreeHosts, protocol: Transport, source: str) -> None:
    """A peer that routes only the server's address into its tunnel could not answer another peer's address."""
    nat("-A", *MASQUERADE)
    with backend(SITE, mapped(protocol)):
        listen, caller = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (source, 0))
        found = seen(protocol, listen=listen, caller=caller, to=(str(EXTERNAL), 8043))
        assert found is not None
        assert found[0] == SERVER_INSIDE
        arrived = from_remote(hosts, protocol)
        assert arrived is not None
        assert arrived[0] == REMOTE, "a remote on the internet keeps its address"


def test_the_operators_rules_for_the_tunnel_take_precedence(hosts: ThreeHosts) -> None:
    """Our rules come after the operator's: what those translate or exempt is not masqueraded by ours."""
    nat("-A", "POSTROUTING", "-s", "10.100.0.0/24", "-j", "SNAT", "--to-source", "10.100.0.77")
    with joined(hosts.server):
        run("ip", "address", "add", "10.100.0.77/24", "dev", "wg0")
    with backend(SITE, mapped("udp")):
        listen, caller = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (str(PEER), 0))
        found = seen("udp", listen=listen, caller=caller, to=(str(EXTERNAL), 8043))
        assert found is not None
        assert found[0] == "10.100.0.77"


@BOTH
def test_without_hairpin_peers_are_not_translated(hosts: ThreeHosts, protocol: Transport) -> None:
    with backend(replace(SITE, hairpin=False), mapped(protocol)):
        listen, caller = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (str(PEER), 0))
        assert seen(protocol, listen=listen, caller=caller, to=(str(EXTERNAL), 8043)) is None
        assert set(marked("dport=8043")) <= {0}
        assert from_remote(hosts, protocol) is not None


@pytest.mark.parametrize(("hairpin", "mark"), [(True, MARK), (False, 0)])
def test_pinholes_too_are_not_for_peers_without_hairpin(hosts: ThreeHosts, mark: int, *, hairpin: bool) -> None:
    other = PEER6 + 7  # another peer's, were there one
    with backend(replace(SITE, hairpin=hairpin), hole("udp", port=9, address=other)):
        run("ip", "route", "add", f"{other}/128", "dev", "ext0")
        with joined(hosts.peer):
            run("ip", "route", "add", f"{other}/128", "via", "2001:470:100::1")
        with listener(hosts.peer, "udp", 0, "::", family=socket.AF_INET6) as calling:
            calling.sendto(b"hello", (str(other), 9))
        until(lambda: marked("dport=9") == [mark])


def test_another_mark_does_as_well(hosts: ThreeHosts) -> None:
    with backend(replace(SITE, mark=0x40), mapped("udp"), hole("udp")):
        assert from_remote6(hosts, "udp") is not None
        assert marked("dport=9043") == [0x40]
        listen, caller = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (str(PEER), 0))
        assert seen("udp", listen=listen, caller=caller, to=(str(EXTERNAL), 8043)) is not None
        assert marked("dport=8043") == [0x40]


# Preserved ports


def sent(
    hosts: ThreeHosts, protocol: Transport = "udp", source: SocketAddress = (str(PEER), 9043)
) -> SocketAddress | None:
    run("conntrack", "-F")
    return seen(protocol, listen=(hosts.remote, ("0.0.0.0", 5000)), caller=(hosts.peer, source), to=(REMOTE, 5000))


PRESERVING = replace(SITE, preserve_source_port=True)


def test_a_mapped_endpoint_sends_from_its_external_port(hosts: ThreeHosts) -> None:
    nat("-A", *MASQUERADE)
    with backend(PRESERVING, mapped("udp")):
        assert sent(hosts) == (str(EXTERNAL), 8043)
        others = sent(hosts, source=(str(PEER), 9044)), sent(hosts, source=(OTHER_PEER, 9043))
        assert others == ((str(EXTERNAL), 9044), (str(EXTERNAL), 9043))
    with backend(SITE, mapped("udp")):
        assert sent(hosts) == (str(EXTERNAL), 9043)


def test_tcp_source_ports_are_not_preserved(hosts: ThreeHosts) -> None:
    nat("-A", *MASQUERADE)
    with backend(PRESERVING, mapped("tcp")):
        assert sent(hosts, "tcp") == (str(EXTERNAL), 9043)


def test_a_preserved_port_receives_answers(hosts: ThreeHosts) -> None:
    """A remote can answer to the source that it saw, and so can others."""
    nat("-A", *MASQUERADE)
    with (
        backend(PRESERVING, mapped("udp")),
        listener(hosts.peer, "udp", 9043, str(PEER)) as inside,
        listener(hosts.remote, "udp", 5000, REMOTE) as first,
        listener(hosts.remote, "udp", 5001, REMOTE) as second,
    ):
        inside.sendto(b"hello", (REMOTE, 5000))
        data, public = first.recvfrom(64)
        assert (data, public) == (b"hello", (str(EXTERNAL), 8043))
        for each in (first, second):
            each.sendto(b"answer", public)
            assert inside.recvfrom(64) == (b"answer", each.getsockname())


def test_of_several_mappings_the_oldest_counts(hosts: ThreeHosts) -> None:
    oldest, middle, youngest = mapped("udp", 8050), mapped("udp", 8043), mapped("udp", 8047)
    nat("-A", *MASQUERADE)
    with backend(PRESERVING, oldest) as made:
        made.apply([opened(middle)], 0.0)
        made.apply([opened(youngest)], 0.0)
        assert sent(hosts) == (str(EXTERNAL), 8050)
        renamed = replace(oldest, mapping=replace(oldest.mapping, description="still the same"))
        made.apply([Change(oldest, renamed)], 0.0)
        assert sent(hosts) == (str(EXTERNAL), 8050)
        made.apply([closed(renamed)], 0.0)
        assert sent(hosts) == (str(EXTERNAL), 8043)
        made.replace_all([EXTERNAL], [youngest, middle], 0.0)
        assert sent(hosts) == (str(EXTERNAL), 8047)
