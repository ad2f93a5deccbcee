"""What peers send to the gateway above their rates is dropped before it reaches a socket, and nothing else is."""

import contextlib
import itertools
import re
import select
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_interface, ip_network

import pytest

from igd.core.mapping import TransportProtocol
from igd.core.peers import Peer, Peers
from igd.firewall import nf_tables as nf
from igd.firewall.backend import FirewallError
from igd.firewall.kernel import Kernel
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import NFNL_SUBSYS_NFTABLES, NFPROTO_INET, NLM_F_CREATE, nft_message, text, u32
from igd.firewall.nft.nftables import Nftables
from igd.firewall.nft.request_rate import MARGIN, RequestRateTable, table_name
from igd.firewall.pretend import Pretend
from igd.firewall.site import RequestRate, Site
from igd.firewall.watch import Watch
from tests.firewall.entries import entry
from tests.firewall.listings import SITE, listing
from tests.firewall.three_hosts import EXTERNAL, REMOTE, REMOTE6, ThreeHosts, joined, new_namespace, run
from tests.lab import PATIENCE

pytestmark = pytest.mark.root

TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
SERVER, SERVER6 = "10.100.0.1", "2001:470:100::1"
FIRST, SECOND, UNKNOWN, ALSO_UNKNOWN = "10.100.0.2", "10.100.0.3", "10.100.0.4", "10.9.0.4"
FIRST6, SECOND6 = "2001:470:100::2", "2001:470:100::3"
ROUTED = "10.77.0.0/16"
PORTS = ((TCP, 2869), (UDP, 1900), (UDP, 5351))
RATE = 2
MOST = 2 * RATE * MARGIN
"""More than a burst, and what the rate adds while it is sent."""

MANY = 100

ONE = Peer("first+key/with=", (ip_network(f"{FIRST}/32"), ip_network(f"{FIRST6}/128"), ip_network(ROUTED)))
TWO = Peer("second/key+and", (ip_network(f"{SECOND}/32"), ip_network(f"{SECOND6}/128")))


def limited(*peers: Peer, interface: str = "wg0", per_second: int = RATE) -> Site:
    """Return a site that limits these peers."""
    own = [ip_interface(f"{SERVER}/24"), ip_interface(f"{SERVER6}/64")]
    return replace(SITE, wireguard=interface, request_rate=RequestRate(per_second, PORTS, Peers(peers, own)))


@pytest.fixture
def table(hosts: ThreeHosts) -> Iterator[RequestRateTable]:
    """Return the table of the server, where the test is; its peers and unknown sources are addresses of one host."""
    with joined(hosts.peer):
        for address in (SECOND, UNKNOWN, ALSO_UNKNOWN):
            run("ip", "address", "add", f"{address}/32", "dev", "eth0")
        run("ip", "address", "add", f"{SECOND6}/128", "dev", "eth0", "nodad")
        run("ip", "route", "add", "local", ROUTED, "dev", "lo")
    with contextlib.closing(RequestRateTable(limited(ONE, TWO))) as table:
        table.replace()
        yield table


@contextlib.contextmanager
def receiver(address: str, port: int, namespace: int = 0) -> Iterator[socket.socket]:
    """Receive datagrams on the server, or in another namespace."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with joined(namespace) if namespace else contextlib.nullcontext():
        receiving = socket.socket(family, socket.SOCK_DGRAM)
    with receiving:
        receiving.bind((address, port))
        receiving.setblocking(False)  # noqa: FBT003 - the parameter has no name
        yield receiving


def send(namespace: int, to: tuple[str, int], *sources: str, count: int = MANY) -> None:
    """Send datagrams, from these addresses in turn."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with contextlib.ExitStack() as stack:
        senders = []
        for source in sources:
            with joined(namespace):
                senders.append(stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
            senders[-1].bind((source, 0))
        for sender in itertools.islice(itertools.cycle(senders), count):
            sender.sendto(b"request", to)


def received(receiving: socket.socket) -> int:
    """Count what has been received; packets cross the namespaces before `send` returns."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while receiving.recv(100):
            count += 1
    return count


def test_nft_shows_the_table_as_it_is_documented(alone: None) -> None:
    with contextlib.closing(RequestRateTable(limited(ONE, TWO, per_second=200))) as table:
        table.replace()
        shown = run("nft", "list", "ruleset")
    for name in ("unknown_sources", "peer_first-key/with", "peer_second/key-and"):
        assert f"\tlimit {name} {{\n\t\trate over 400/second burst 400 packets\n" in shown
    ranges = "; ".join(re.sub(r"\s+", " ", each.strip()) for each in re.findall(r"elements = \{([^}]*)\}", shown))
    assert ranges == (
        "tcp . 2869, udp . 1900, udp . 5351; "
        '0.0.0.0-10.76.255.255 : "unknown_sources", 10.77.0.0/16 : "peer_first-key/with", '
        '10.78.0.0-10.100.0.1 : "unknown_sources", 10.100.0.2 : "peer_first-key/with", '
        '10.100.0.3 : "peer_second/key-and", 10.100.0.4-255.255.255.255 : "unknown_sources"; '
        '::-2001:470:100::1 : "unknown_sources", 2001:470:100::2 : "peer_first-key/with", '
        '2001:470:100::3 : "peer_second/key-and", '
        '2001:470:100::4-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff : "unknown_sources"'
    )
    rules = shown.replace("tcp flags != syn / fin,syn,rst,ack", "tcp flags & (fin | syn | rst | ack) != syn")
    assert [
        line.strip() for line in rules.partition("chain input {")[2].splitlines() if line.strip() not in {"", "}"}
    ] == [
        "type filter hook input priority filter - 10; policy accept;",
        'iifname != "wg0" return',
        "meta l4proto . th dport != @served return",
        "tcp flags & (fin | syn | rst | ack) != syn return",
        "fib daddr . iif type unicast return",
        "limit name ip saddr map @ipv4_limits drop",
        "limit name ip6 saddr map @ipv6_limits drop",
    ]


@pytest.mark.parametrize("per_second", [1, 1_000_000])
@pytest.mark.parametrize("interface", ["wg0", "wg-home", "wg0.100", "a@b+c!{}#", "wg*"])
@pytest.mark.parametrize("peers", [(), (ONE, TWO), (Peer("all", (ip_network("0.0.0.0/0"), ip_network("::/0"))),)])
def test_a_saved_listing_loads_again(alone: None, interface: str, per_second: int, peers: Sequence[Peer]) -> None:
    with contextlib.closing(RequestRateTable(limited(*peers, interface=interface, per_second=per_second))) as table:
        table.replace()
        before = listing()
        table.remove()
        assert listing() == ""
        run("nft", "-f", "-", text=before)
        assert listing() == before
        table.replace()
        assert listing() == before


@pytest.mark.parametrize("port", [1900, 5351])
@pytest.mark.parametrize(
    ("server", "flood", "other"),
    [
        (SERVER, [FIRST], SECOND),
        (SERVER, [FIRST, "10.77.0.1", "10.77.200.9"], SECOND),  # a peer with many addresses has one limit
        (SERVER, [UNKNOWN, ALSO_UNKNOWN], FIRST),  # and so have all unknown sources
        (SERVER6, [FIRST6], SECOND6),
    ],
)
def test_a_peer_above_its_rate_costs_no_other_a_packet(
    hosts: ThreeHosts, table: RequestRateTable, port: int, server: str, flood: list[str], other: str
) -> None:
    with receiver(server, port) as receiving:
        send(hosts.peer, (server, port), *flood)
        assert RATE * MARGIN <= received(receiving) <= MOST
        send(hosts.peer, (server, port), other, count=RATE)
        assert received(receiving) == RATE


def test_a_peer_has_one_limit_for_all_ports_and_ip_versions(hosts: ThreeHosts, table: RequestRateTable) -> None:
    send(hosts.peer, (SERVER6, 1900), FIRST6, count=10 * MANY)
    with receiver(SERVER, 5351) as receiving:
        send(hosts.peer, (SERVER, 5351), FIRST)
        assert received(receiving) <= MOST // 2


def test_new_connections_are_limited_and_open_ones_are_not(hosts: ThreeHosts, table: RequestRateTable) -> None:
    with socket.create_server((SERVER, 2869), backlog=MANY) as server, contextlib.ExitStack() as stack:
        callers = []
        for _ in range(MANY):
            with joined(hosts.peer):
                callers.append(stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)))
            callers[-1].bind((FIRST, 0))
            callers[-1].setblocking(False)  # noqa: FBT003 - the parameter has no name
            callers[-1].connect_ex((SERVER, 2869))
        accepted = []
        while select.select([server], [], [], 0)[0]:
            accepted.append(stack.enter_context(server.accept()[0]))
        assert RATE * MARGIN <= len(accepted) <= MOST
        caller = next(each for each in callers if each.getsockname() == accepted[0].getpeername())
        for _ in range(MANY):
            caller.send(b"x")
            assert accepted[0].recv(1) == b"x"
        with joined(hosts.peer):
            other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        other.settimeout(PATIENCE)
        other.bind((SECOND, 0))
        other.connect((SERVER, 2869))


def test_packets_that_are_not_for_the_gateway_pass(hosts: ThreeHosts, table: RequestRateTable) -> None:
    send(hosts.peer, (SERVER, 1900), FIRST)  # above the rate from now on
    for to in ((SERVER, 1901), (str(EXTERNAL), 1900)):  # another service of the server, at either address
        with receiver(*to) as receiving:
            send(hosts.peer, to, FIRST)
            assert received(receiving) == MANY
    with receiver(REMOTE, 1900, hosts.remote) as receiving:  # a service on the internet
        send(hosts.peer, (REMOTE, 1900), FIRST)
        assert received(receiving) == MANY
    with receiver(SERVER, 1900) as receiving:  # by another interface, whatever the source
        with joined(hosts.remote):
            run("ip", "address", "add", f"{FIRST}/32", "dev", "lo")
            run("ip", "route", "add", SERVER, "via", str(EXTERNAL))
        send(hosts.remote, (SERVER, 1900), REMOTE)
        assert received(receiving) == MANY


def test_answers_to_the_server_pass(hosts: ThreeHosts, table: RequestRateTable) -> None:
    """A peer's service that the server calls from a port that it serves itself: its SYN+ACK is no new connection."""
    send(hosts.peer, (SERVER, 1900), FIRST)
    with joined(hosts.peer):
        service = socket.create_server((FIRST, 80))
    with service, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as calling:
        calling.settimeout(PATIENCE)
        calling.bind((SERVER, 2869))
        calling.connect((FIRST, 80))


def test_multicast_searches_count(hosts: ThreeHosts, table: RequestRateTable) -> None:
    group, index = "239.255.255.250", socket.if_nametoindex("wg0")
    with receiver(group, 1900) as receiving:
        membership = struct.pack("=4s4si", socket.inet_aton(group), bytes(4), index)
        receiving.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        send(hosts.peer, (group, 1900), FIRST)
        assert RATE * MARGIN <= received(receiving) <= MOST


def test_dropped_packets_leave_no_flows(hosts: ThreeHosts, table: RequestRateTable) -> None:
    run(
        "nft",
        "add table ip t; add chain ip t any { type filter hook input priority 0; }; add rule ip t any ct state new",
    )
    with receiver(SERVER, 1900):
        for _ in range(MANY):
            send(hosts.peer, (SERVER, 1900), FIRST, count=1)  # each from another port
        assert RATE * MARGIN <= run("conntrack", "-L").count("sport=1900") <= MOST


def test_two_instances_do_not_disturb_each_other(hosts: ThreeHosts, table: RequestRateTable) -> None:
    """ext0 plays another WireGuard interface, whose peer has the address REMOTE."""
    other = limited(Peer("remote", (ip_network(f"{REMOTE}/32"), ip_network(f"{REMOTE6}/128"))), interface="ext0")
    with contextlib.closing(RequestRateTable(other)) as second:
        second.replace()
        send(hosts.peer, (SERVER, 1900), FIRST)
        with receiver(str(EXTERNAL), 1900) as receiving:
            send(hosts.remote, (str(EXTERNAL), 1900), REMOTE, count=RATE)
            assert received(receiving) == RATE
            send(hosts.remote, (str(EXTERNAL), 1900), REMOTE)
            assert received(receiving) <= MOST
        second.remove()
        assert run("nft", "list", "tables").splitlines() == [f"table inet {table_name('wg0')}"]


def test_an_interface_whose_name_nft_cannot_write_is_not_limited(hosts: ThreeHosts) -> None:
    with contextlib.closing(RequestRateTable(limited(ONE, interface='wg0"'))) as table:
        table.replace()
        with receiver(SERVER, 1900) as receiving:
            send(hosts.peer, (SERVER, 1900), FIRST)
            assert received(receiving) == MANY


def test_peers_are_followed_without_a_change_of_the_mappings(hosts: ThreeHosts) -> None:
    site = limited(ONE)
    assert site.request_rate is not None
    with contextlib.closing(Kernel(Nftables(site), site)) as kernel:
        kernel.replace_all([EXTERNAL], [entry(8043)], now=0)
        with contextlib.closing(Watch([(NFPROTO_INET, "igd_wg0")], (), ())) as watch:
            site.request_rate = replace(site.request_rate, peers=Peers([TWO], []))
            kernel.follow_peers()
            assert watch.read().ours == []
        assert re.findall(r"limit (\S+) \{", listing()) == ["unknown_sources", "peer_second/key-and"]
        kernel.remove_all()
        assert "igd_wg0/rate" not in listing()


def test_without_the_limits_mappings_are_held_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Another program owns the table's name here; a kernel without these expressions fails likewise."""
    site = limited(ONE)
    with new_namespace(), contextlib.closing(Netlink()) as stranger:
        name = text(nf.NFTA_TABLE.NAME, table_name("wg0"))
        owned = nft_message(
            nf.NFT_MSG.NEWTABLE, NFPROTO_INET, name, u32(nf.NFTA_TABLE.FLAGS, nf.NFT_TABLE_F.OWNER), flags=NLM_F_CREATE
        )
        stranger.transact(NFNL_SUBSYS_NFTABLES, [owned])
        with contextlib.closing(Kernel(Nftables(site), site)) as kernel:
            for _ in range(2):
                kernel.replace_all([IPv4Address("60.60.60.1")], [entry(8043)], now=0)
            assert "8043" in run("nft", "list", "table", "inet", "igd_wg0")
    (record,) = caplog.records
    assert record.getMessage().startswith("what peers send above their rate is dropped by igd alone: netfilter: EPERM")


def test_a_kernel_without_nf_tables_has_no_table_to_remove(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FirewallError("no nf_tables")

    site = limited(ONE)
    with contextlib.closing(Kernel(Pretend(), site)) as kernel:
        monkeypatch.setattr(RequestRateTable, "_transact", fail)
        monkeypatch.setattr("igd.firewall.kernel.nft_tables", lambda: None)
        kernel.follow_peers()
        kernel.remove_all()


def test_an_own_table_is_closed_to_others_and_taken_over_from_an_owner_that_is_gone(alone: None) -> None:
    site = replace(limited(ONE), own_table=True)
    for _ in range(2):
        with contextlib.closing(RequestRateTable(site)) as table:
            for _again in range(2):
                table.replace()
            done = subprocess.run(
                ["nft", "flush chain inet igd_wg0/rate input"], capture_output=True, text=True, check=False
            )
            assert "Operation not permitted" in done.stderr
    with contextlib.closing(RequestRateTable(limited())) as table:
        table.remove()
    assert listing() == ""
