"""Traffic through the iptables backend in the real kernel: remotes, pinholes, hairpin, preserved ports."""

import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from igd.core.mapping import Change, Endpoint, Entry, Lease, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.site import MARK, Site
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
    three_hosts,
)

pytestmark = pytest.mark.root

SITE = Site("ext0", "wg0", PEERS)
SERVER_INSIDE = "10.100.0.1"
OTHER_PEER = "10.100.0.3"
BOTH = pytest.mark.parametrize("protocol", ["tcp", "udp"])
MASQUERADE = ("POSTROUTING", "-o", "ext0", "-j", "MASQUERADE")
LOST = 0.3  # seconds after which an answer is not to be expected any more

Address = tuple[str, int]


@pytest.fixture
def hosts() -> Iterator[ThreeHosts]:
    with three_hosts() as hosts:
        with joined(hosts.peer):
            run("ip", "address", "add", f"{OTHER_PEER}/24", "dev", "eth0")
        yield hosts


@contextlib.contextmanager
def backend(site: Site, *entries: Entry) -> Iterator[Iptables]:
    made = Iptables(site)
    made.replace_all([EXTERNAL], entries, 0.0)
    yield made
    made.close()


def mapped(
    protocol: str, port: int = 8043, inside: int = 9043, remotes: Sequence[Remote] = (), address: IPv4Address = PEER
) -> Entry:
    mapping = PortMapping(
        TransportProtocol[protocol.upper()], port, Endpoint(address, inside), "peer", "a game", remotes=tuple(remotes)
    )
    return Entry(mapping, Lease(60.0))


def hole(protocol: str, port: int = 9043, remotes: Sequence[Remote] = ()) -> Entry:
    pinhole = Pinhole(
        TransportProtocol[protocol.upper()], Endpoint(PEER6, port), "peer", "a game", remotes=tuple(remotes)
    )
    return Entry(pinhole, Lease(60.0))


def opened(entry: Entry) -> Change:
    return Change(None, entry)


def closed(entry: Entry) -> Change:
    return Change(entry, None)


def nat(*arguments: str) -> None:
    run("iptables-legacy", "-w", "-t", "nat", *arguments)


def filter6(*arguments: str) -> None:
    run("ip6tables-legacy", "-w", *arguments)


def new_socket(where: int, protocol: str, at: Address) -> socket.socket:
    with joined(where):
        family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(at)
    made.settimeout(5)
    return made


def seen(
    protocol: str, *, listen: tuple[int, Address], call: tuple[int, Address], to: Address, patience: float = 5
) -> Address | None:
    """Call and listen, each in a namespace at an address; return the source that was seen, None for a lost call."""
    with new_socket(listen[0], protocol, listen[1]) as listener, new_socket(call[0], protocol, call[1]) as caller:
        caller.settimeout(patience)
        listener.settimeout(patience)
        with contextlib.suppress(TimeoutError, ConnectionError):
            return _over_tcp(caller, listener, to) if protocol == "tcp" else _over_udp(caller, listener, to)
        return None


def _over_tcp(caller: socket.socket, listener: socket.socket, to: Address) -> Address:
    listener.listen()
    caller.connect(to)
    answering, source = listener.accept()
    with answering:
        answering.sendall(b"hello")
        assert caller.recv(64) == b"hello"
    return source[0], source[1]


def _over_udp(caller: socket.socket, listener: socket.socket, to: Address) -> Address:
    caller.connect(to)
    caller.send(b"hello")
    _, source = listener.recvfrom(64)
    listener.sendto(b"hello yourself", source)
    assert caller.recv(64) == b"hello yourself"
    return source[0], source[1]


def from_remote(hosts: ThreeHosts, protocol: str, source: Address = (REMOTE, 0), patience: float = 5) -> Address | None:
    run("conntrack", "-F")  # a packet sent too early has made a flow without translation
    listen = (hosts.peer, ("0.0.0.0", 9043))
    to = (str(EXTERNAL), 8043)
    return seen(protocol, listen=listen, call=(hosts.remote, source), to=to, patience=patience)


def from_remote6(hosts: ThreeHosts, protocol: str, source: Address = ("::", 0), patience: float = 5) -> Address | None:
    run("conntrack", "-F")
    listen = (hosts.peer, ("::", 9043))
    to = (str(PEER6), 9043)
    return seen(protocol, listen=listen, call=(hosts.remote, source), to=to, patience=patience)


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
    hosts: ThreeHosts, protocol: str, remotes: list[Remote], *, let_in: bool
) -> None:
    with backend(SITE, mapped(protocol, remotes=remotes)):
        source = (REMOTE, 5000)
        patience = 5 if let_in else LOST
        assert from_remote(hosts, protocol, source, patience) == (source if let_in else None)


def test_a_refused_remote_leaves_no_mark(hosts: ThreeHosts) -> None:
    with backend(SITE, mapped("udp", remotes=[Remote(IPv4Network("60.60.60.3/32"))])):
        assert from_remote(hosts, "udp", patience=LOST) is None
        assert set(marked("dport=8043")) == {0}


def test_remotes_can_be_changed(hosts: ThreeHosts) -> None:
    everybody, others = mapped("tcp"), mapped("tcp", remotes=[Remote(IPv4Network("60.60.60.3/32"))])
    with backend(SITE, everybody) as made:
        made.apply([Change(everybody, others)], 0.0)
        assert from_remote(hosts, "tcp", patience=LOST) is None
        made.apply([Change(others, everybody)], 0.0)
        assert from_remote(hosts, "tcp") is not None


# Pinholes


@BOTH
def test_a_pinhole_opens_a_firewall_that_lets_the_mark_through(hosts: ThreeHosts, protocol: str) -> None:
    filter6("-P", "FORWARD", "DROP")
    filter6("-A", "FORWARD", "-m", "connmark", "--mark", f"{MARK:#x}/{MARK:#x}", "-j", "ACCEPT")
    pinhole = hole(protocol)
    with backend(SITE) as made:
        assert from_remote6(hosts, protocol, patience=LOST) is None
        made.apply([opened(pinhole)], 0.0)
        source = from_remote6(hosts, protocol)
        assert source is not None
        assert source[0] == REMOTE6
        made.apply([closed(pinhole)], 0.0)
        assert from_remote6(hosts, protocol, patience=LOST) is None


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
    hosts: ThreeHosts, protocol: str, remotes: list[Remote], mark: int
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
def test_peers_reach_themselves_and_each_other(hosts: ThreeHosts, protocol: str, source: str) -> None:
    """A peer that routes only the server's address into its tunnel could not answer another peer's address."""
    nat("-A", *MASQUERADE)
    with backend(SITE, mapped(protocol)):
        listen, call = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (source, 0))
        found = seen(protocol, listen=listen, call=call, to=(str(EXTERNAL), 8043))
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
        listen, call = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (str(PEER), 0))
        found = seen("udp", listen=listen, call=call, to=(str(EXTERNAL), 8043))
        assert found is not None
        assert found[0] == "10.100.0.77"


@BOTH
def test_without_hairpin_peers_are_not_translated(hosts: ThreeHosts, protocol: str) -> None:
    with backend(replace(SITE, hairpin=False), mapped(protocol)):
        listen, call = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (str(PEER), 0))
        assert seen(protocol, listen=listen, call=call, to=(str(EXTERNAL), 8043), patience=LOST) is None
        assert set(marked("dport=8043")) <= {0}
        assert from_remote(hosts, protocol) is not None


def test_pinholes_too_are_not_for_peers_without_hairpin(hosts: ThreeHosts) -> None:
    with backend(replace(SITE, hairpin=False), hole("udp", port=9)):
        with new_socket(hosts.peer, "udp", ("::", 0)) as caller:
            run("ip", "-6", "route", "add", "2001:470:100::9/128", "dev", "ext0")
            caller.sendto(b"to another peer, were there one", (str(PEER6 + 7), 9))
        assert set(marked("dport=9")) <= {0}


def test_another_mark_does_as_well(hosts: ThreeHosts) -> None:
    with backend(replace(SITE, mark=0x40), mapped("udp"), hole("udp")):
        assert from_remote6(hosts, "udp") is not None
        assert marked("dport=9043") == [0x40]
        listen, call = (hosts.peer, ("0.0.0.0", 9043)), (hosts.peer, (str(PEER), 0))
        assert seen("udp", listen=listen, call=call, to=(str(EXTERNAL), 8043)) is not None
        assert marked("dport=8043") == [0x40]


# Preserved ports


def sent(hosts: ThreeHosts, protocol: str = "udp", source: Address = (str(PEER), 9043)) -> Address | None:
    run("conntrack", "-F")
    return seen(protocol, listen=(hosts.remote, ("0.0.0.0", 5000)), call=(hosts.peer, source), to=(REMOTE, 5000))


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
        new_socket(hosts.peer, "udp", (str(PEER), 9043)) as inside,
        new_socket(hosts.remote, "udp", (REMOTE, 5000)) as first,
        new_socket(hosts.remote, "udp", (REMOTE, 5001)) as second,
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
