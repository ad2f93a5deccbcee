"""The kernel counts what the internet sends through each mapping: all of it, once, and nothing else."""

import contextlib
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Literal

import pytest

from igd.core.mapping import Change, Claim, Endpoint, Entry, Lease, Pinhole, Remote, TransportProtocol
from igd.firewall import nf_tables as nf
from igd.firewall.backend import FirewallError, Traffic
from igd.firewall.kernel import Kernel
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import NFNL_SUBSYS_NFTABLES, NFPROTO_INET, NLM_F_CREATE, nft_message, text, u32
from igd.firewall.nft.nftables import Nftables
from igd.firewall.nft.traffic import table_name
from igd.firewall.site import Site
from tests.firewall.calling import SocketAddress, call, listener
from tests.firewall.entries import entry
from tests.firewall.listings import SITE, listing
from tests.firewall.three_hosts import EXTERNAL, PEER, PEER6, REMOTE, REMOTE6, ThreeHosts, joined, run
from tests.lab import PATIENCE, await_ipv6

pytestmark = pytest.mark.root

Backend = Literal["nftables", "iptables"]
BACKENDS: tuple[Backend, ...] = ("nftables", "iptables")
ON_BOTH = pytest.mark.parametrize("kernel", BACKENDS, indirect=True)
ON_NFTABLES = pytest.mark.parametrize("kernel", ["nftables"], indirect=True)

PORT, OTHER_PORT = 8043, 8044
OTHER6 = "2001:470:60::4"  # the remote's second address
SIZE = 100
HEADERS = {4: 20 + 8, 6: 40 + 8}
TABLE = ("table", "inet", "igd_wg0/traffic")
ANEW = "delete table inet igd_wg0/traffic; add table inet igd_wg0/traffic"


def build(backend: Backend, site: Site = SITE) -> Kernel:
    """Return what the daemon builds."""
    return Kernel(Nftables(site) if backend == "nftables" else Iptables(site), site)


@pytest.fixture
def kernel(request: pytest.FixtureRequest, hosts: ThreeHosts) -> Iterator[Kernel]:
    """Return a backend on the server, where the test is, with a mapping of PORT and a pinhole for it."""
    with contextlib.closing(build(request.param)) as kernel:
        kernel.replace_all([EXTERNAL], [MAPPED, OPENED], now=0)
        yield kernel


def hole(port: int = PORT, *remotes: Remote, claim: bool = False) -> Entry:
    """Return a pinhole as UPnP requests it; with `claim` as PCP does."""
    pinhole = Pinhole(TransportProtocol.UDP, Endpoint(PEER6, port), "peer", "", remotes, Claim(by_internal=claim))
    return Entry(pinhole, Lease(120))


def remote(network: str, port: int = 0) -> Remote:
    return Remote(IPv6Network(network), port)


MAPPED, OPENED = entry(PORT), hole()
EACH_KIND = [hole(1, remote(f"{REMOTE6}/128")), hole(2, remote(f"{REMOTE6}/128", 80)), hole(3, remote("::/0", 80))]


def target(of: Entry) -> SocketAddress:
    """Return where the internet reaches a mapping."""
    mapping = of.mapping
    return str(mapping.internal.address if isinstance(mapping, Pinhole) else EXTERNAL), mapping.external_port


def send(hosts: ThreeHosts, to: Entry, count: int = 1, source: SocketAddress = ("", 0), answers: int = 0) -> None:
    """Have the remote send datagrams through a mapping, and the peer receive all of them and answer some."""
    internal = to.mapping.internal
    family = socket.AF_INET if internal.address.version == 4 else socket.AF_INET6
    with listener(hosts.peer, "udp", internal.port, family=family) as peer:
        with joined(hosts.remote):
            sender = socket.socket(family, socket.SOCK_DGRAM)
        with sender:
            sender.bind(source)
            for _ in range(count):
                sender.sendto(bytes(SIZE), target(to))
            received = [peer.recvfrom(SIZE) for _ in range(count)]
            for data, back in received[:answers]:
                peer.sendto(data, back)
            sender.settimeout(PATIENCE)
            assert all(sender.recv(SIZE) for _ in range(answers))


def counted(kernel: Kernel, of: Entry) -> int | None:
    """Return how many packets were counted."""
    (found,) = kernel.traffic([of.mapping])
    return found.packets if found else None


def change(kernel: Kernel, before: Entry | None, after: Entry | None) -> None:
    kernel.apply([Change(before, after)], now=0)


# What is counted


@ON_BOTH
@pytest.mark.parametrize("of", [MAPPED, OPENED], ids=["IPv4", "IPv6"])
def test_every_packet_and_octet_from_the_internet_and_no_answer(hosts: ThreeHosts, kernel: Kernel, of: Entry) -> None:
    assert kernel.traffic([of.mapping]) == [Traffic(0, 0)]
    send(hosts, of, 3, answers=2)
    send(hosts, of, 2, source=("", 5000))  # another flow
    octets = SIZE + HEADERS[of.mapping.internal.address.version]
    assert kernel.traffic([of.mapping]) == [Traffic(5, 5 * octets)]


@ON_BOTH
def test_a_connection_is_more_than_one_packet(hosts: ThreeHosts, kernel: Kernel) -> None:
    tcp = entry(PORT, protocol="tcp")
    change(kernel, None, tcp)
    with listener(hosts.peer, "tcp", PORT) as peer:
        assert call(hosts.remote, "tcp", target(tcp), peer)
    assert (counted(kernel, tcp) or 0) >= 3, "SYN, ACK, data"
    assert counted(kernel, MAPPED) == 0, "the same port of UDP"


@ON_BOTH
def test_ports_that_lead_to_one_endpoint_are_counted_apart(hosts: ThreeHosts, kernel: Kernel) -> None:
    other = entry(OTHER_PORT, PORT)
    change(kernel, None, other)
    send(hosts, MAPPED)
    send(hosts, other, 2)
    assert (counted(kernel, MAPPED), counted(kernel, other)) == (1, 2)


@ON_BOTH
def test_pinholes_for_different_remotes_are_counted_apart(hosts: ThreeHosts, kernel: Kernel) -> None:
    """As UPnP requests them; those of PCP, and those for everybody, count all that comes to their endpoint."""
    with joined(hosts.remote):
        run("ip", "address", "add", f"{OTHER6}/64", "dev", "eth0", "nodad")
        await_ipv6()
    pinholes = [
        hole(OTHER_PORT, remote(f"{REMOTE6}/128")),
        hole(OTHER_PORT, remote(f"{OTHER6}/128", 5000)),
        hole(OTHER_PORT, remote("::/0", 6000)),
        hole(OTHER_PORT, remote(f"{REMOTE6}/128"), claim=True),
    ]
    for each in pinholes:
        change(kernel, None, each)
    for source in ((REMOTE6, 4000), (REMOTE6, 6000), (OTHER6, 5000), (OTHER6, 6000)):
        send(hosts, pinholes[0], source=source)
    assert [counted(kernel, each) for each in pinholes] == [2, 1, 2, 4]
    change(kernel, pinholes[1], None)
    assert [counted(kernel, each) for each in pinholes] == [2, None, 2, 4]
    assert counted(kernel, OPENED) == 0


@ON_BOTH
def test_pinholes_for_networks_share_the_count_of_their_endpoint(hosts: ThreeHosts, kernel: Kernel) -> None:
    near, far = hole(PORT, remote("2001:470:60::/64")), hole(PORT, remote("2001:db8::/32", 80))
    for each in (near, far):
        change(kernel, None, each)
    send(hosts, OPENED)
    change(kernel, OPENED, None)
    send(hosts, near)
    assert [counted(kernel, each) for each in (near, far)] == [2, 2]
    kernel.replace_all([EXTERNAL], [near, far], now=0)
    change(kernel, far, None)
    send(hosts, near)
    assert counted(kernel, near) == 3
    change(kernel, near, None)
    assert counted(kernel, near) is None
    change(kernel, None, near)
    assert counted(kernel, near) == 0


def banned_by_iptables() -> None:
    run("iptables-nft", "-I", "FORWARD", "-s", REMOTE, "-p", "udp", "--sport", "5000", "-j", "DROP")


def dropped_by_a_later_chain() -> None:
    """Let a chain drop that has the lowest priority that administrators give one."""
    chain = "{ type filter hook forward priority 1000; }"
    run(
        "nft",
        f"add table inet late; add chain inet late forward {chain}; add rule inet late forward udp sport 5000 drop",
    )


@ON_BOTH
@pytest.mark.parametrize("ban", [banned_by_iptables, dropped_by_a_later_chain])
def test_what_the_operator_drops_is_not_counted(hosts: ThreeHosts, kernel: Kernel, ban: Callable[[], None]) -> None:
    send(hosts, MAPPED, 2, source=("", 5000))
    ban()
    with pytest.raises(TimeoutError):
        send_unanswered(hosts, MAPPED, ("", 5000))
    send(hosts, MAPPED)
    assert counted(kernel, MAPPED) == 3


def send_unanswered(hosts: ThreeHosts, to: Entry, source: SocketAddress) -> None:
    """Send one datagram, and raise TimeoutError if it is not at the peer when the one behind it is."""
    with listener(hosts.peer, "udp", to.mapping.internal.port) as peer, joined(hosts.remote):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(source)
            sender.sendto(bytes(SIZE), target(to))
        peer.settimeout(0.05)  # what is forwarded has arrived when sendto returns
        peer.recv(SIZE)


@ON_BOTH
def test_a_peer_that_uses_its_own_mapping_is_not_the_internet(hosts: ThreeHosts, kernel: Kernel) -> None:
    with listener(hosts.peer, "udp", PORT) as peer:
        seen = call(hosts.peer, "udp", target(MAPPED), peer)
        assert seen, "hairpin works"
        assert seen[0] == "10.100.0.1"
    assert counted(kernel, MAPPED) == 0
    send(hosts, MAPPED)
    assert counted(kernel, MAPPED) == 1


@ON_BOTH
def test_what_the_peer_began_is_not_counted(hosts: ThreeHosts, kernel: Kernel) -> None:
    """Its own connections from the mapped port have no mark."""
    with listener(hosts.remote, "udp", 7000, family=socket.AF_INET6) as outside:
        source = (str(PEER6), PORT)
        assert call(hosts.peer, "udp", (REMOTE6, 7000), outside, source) == source
    assert counted(kernel, OPENED) == 0


@ON_NFTABLES
def test_what_connection_tracking_does_not_know_is_not_counted(hosts: ThreeHosts, kernel: Kernel) -> None:
    """Nothing tells whether it belongs to the mapping: its operator exempts it from all of this."""
    run("nft", "add table ip6 raw")
    run("nft", "add chain ip6 raw prerouting { type filter hook prerouting priority raw; }")
    run("nft", "add rule ip6 raw prerouting udp sport 5000 notrack")
    send(hosts, OPENED, source=("::", 5000))
    assert counted(kernel, OPENED) == 0
    send(hosts, OPENED)
    assert counted(kernel, OPENED) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_masqueraded_into_the_tunnel_is_counted_once(hosts: ThreeHosts, backend: Backend) -> None:
    site = replace(SITE, masqueraded=(IPv4Network(f"{PEER}/32"),))
    with contextlib.closing(build(backend, site)) as kernel:
        kernel.replace_all([EXTERNAL], [MAPPED], now=0)
        send(hosts, MAPPED, 3, answers=1)
        assert counted(kernel, MAPPED) == 3


# For how long


@ON_BOTH
@pytest.mark.parametrize("of", [MAPPED, OPENED], ids=["IPv4", "IPv6"])
def test_a_count_lasts_as_long_as_its_mapping(hosts: ThreeHosts, kernel: Kernel, of: Entry) -> None:
    send(hosts, of, 3)
    renewed = replace(of, lease=Lease(500), mapping=replace(of.mapping, description="renewed"))
    change(kernel, of, renewed)
    assert counted(kernel, of) == 3, "renewed"
    kernel.replace_all([EXTERNAL], [renewed, entry(1024)], now=0)
    assert counted(kernel, of) == 3, "repaired"
    kernel.close()
    with contextlib.closing(build("nftables" if isinstance(kernel.mappings, Nftables) else "iptables")) as after:
        after.replace_all([EXTERNAL], [renewed], now=0)
        assert counted(after, of) == 3, "killed"
        send(hosts, of)
        assert counted(after, of) == 4
        change(after, renewed, None)
        assert counted(after, of) is None
        change(after, None, renewed)
        assert counted(after, of) == 0, "a new one"
        send(hosts, of)
        assert counted(after, of) == 1


@ON_BOTH
def test_a_mapping_that_leads_elsewhere_begins_anew(hosts: ThreeHosts, kernel: Kernel) -> None:
    send(hosts, MAPPED, 3)
    filtered = replace(MAPPED, mapping=replace(MAPPED.mapping, remotes=(Remote(IPv4Network(f"{REMOTE}/32")),)))
    change(kernel, MAPPED, filtered)
    assert counted(kernel, filtered) == 3
    moved = entry(PORT, OTHER_PORT)
    change(kernel, filtered, moved)
    assert counted(kernel, moved) == 0


@pytest.mark.parametrize("damage", ["flush chain inet igd_wg0/traffic received", "flush table inet igd_wg0/traffic"])
@ON_BOTH
def test_a_table_without_its_rules_is_repaired_and_keeps_its_counts(
    hosts: ThreeHosts, kernel: Kernel, damage: str
) -> None:
    send(hosts, MAPPED, 3)
    run("nft", damage)
    send(hosts, MAPPED)
    kernel.replace_all([EXTERNAL], [MAPPED, OPENED], now=0)
    send(hosts, MAPPED)
    assert counted(kernel, MAPPED) == 4


@pytest.mark.parametrize(
    "damage",
    [
        "delete table inet igd_wg0/traffic",
        "flush ruleset",
        "flush set inet igd_wg0/traffic port_mappings",
        f"{ANEW}; add set inet igd_wg0/traffic port_mappings {{ type inet_service; }}",
        f"{ANEW}; add chain inet igd_wg0/traffic forward {{ type filter hook forward priority 0; policy drop; }}",
    ],
)
@ON_NFTABLES
def test_what_others_have_lost_is_counted_anew(hosts: ThreeHosts, kernel: Kernel, damage: str) -> None:
    before = listing()
    send(hosts, MAPPED, 3)
    run("nft", damage)
    kernel.replace_all([EXTERNAL], [MAPPED, OPENED], now=0)
    assert sorted(listing().splitlines()) == sorted(before.splitlines())
    send(hosts, MAPPED)
    assert counted(kernel, MAPPED) == 1


@ON_NFTABLES
def test_elements_that_others_add_or_delete_break_no_change(hosts: ThreeHosts, kernel: Kernel) -> None:
    run("nft", "delete element inet igd_wg0/traffic port_mappings { udp . 8043 }")
    run("nft", "add element inet igd_wg0/traffic port_mappings { udp . 9 }")
    change(kernel, MAPPED, None)
    change(kernel, None, entry(9))
    kernel.replace_all([EXTERNAL], [MAPPED], now=0)
    assert (counted(kernel, MAPPED), counted(kernel, entry(9))) == (0, None)


@ON_BOTH
def test_a_saved_ruleset_is_loaded_with_its_counts(hosts: ThreeHosts, kernel: Kernel) -> None:
    for each in EACH_KIND:
        change(kernel, None, each)
    send(hosts, MAPPED, 3)
    saved = run("nft", "list", *TABLE)
    run("nft", "delete", *TABLE)
    run("nft", "-f", "-", text=saved)
    assert sorted(run("nft", "list", *TABLE).splitlines()) == sorted(saved.splitlines())
    assert counted(kernel, MAPPED) == 3
    send(hosts, MAPPED)
    kernel.replace_all([EXTERNAL], [MAPPED, OPENED], now=0)
    assert counted(kernel, MAPPED) == 4


# Beside others


@ON_BOTH
def test_another_instance_counts_its_own(hosts: ThreeHosts, kernel: Kernel) -> None:
    other = entry(OTHER_PORT, peer=IPv4Address("10.101.0.2"))
    with contextlib.closing(build("nftables", replace(SITE, wireguard="wg1"))) as wg1:
        wg1.replace_all([EXTERNAL], [other], now=0)
        send(hosts, MAPPED, 2)
        assert (counted(kernel, MAPPED), counted(wg1, other)) == (2, 0)
        wg1.remove_all()
    assert counted(kernel, MAPPED) == 2
    kernel.remove_all()
    assert "igd_wg" not in listing()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_own_table_is_closed_to_others_and_taken_over(hosts: ThreeHosts, backend: Backend) -> None:
    site = replace(SITE, own_table=True)
    for expected in (0, 1):
        with contextlib.closing(build(backend, site)) as kernel:
            kernel.replace_all([EXTERNAL], [MAPPED], now=0)
            done = subprocess.run(["nft", "delete", *TABLE], capture_output=True, text=True, check=False)
            assert "Operation not permitted" in done.stderr
            assert counted(kernel, MAPPED) == expected
            change(kernel, None, entry(9))
            assert counted(kernel, entry(9)) == 0
            send(hosts, MAPPED)
    with contextlib.closing(build(backend)) as kernel:
        kernel.remove_all()
        assert listing() == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_can_be_counted_mappings_are_held_all_the_same(
    hosts: ThreeHosts, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program owns the table's name here; a kernel without nf_tables fails likewise."""
    with contextlib.closing(Netlink()) as stranger, contextlib.closing(build(backend)) as kernel:
        name = text(nf.NFTA_TABLE.NAME, table_name("wg0"))
        owned = nft_message(
            nf.NFT_MSG.NEWTABLE, NFPROTO_INET, name, u32(nf.NFTA_TABLE.FLAGS, nf.NFT_TABLE_F.OWNER), flags=NLM_F_CREATE
        )
        stranger.transact(NFNL_SUBSYS_NFTABLES, [owned])
        for _ in range(2):
            kernel.replace_all([EXTERNAL], [MAPPED], now=0)
        change(kernel, None, entry(OTHER_PORT))
        send(hosts, entry(OTHER_PORT))
        with pytest.raises(FirewallError, match="does not count"):
            kernel.traffic([MAPPED.mapping])
        change(kernel, entry(OTHER_PORT), None)
    (record,) = caplog.records
    assert record.getMessage().startswith("what passes through mappings is not counted: netfilter: EPERM")


def test_nft_shows_the_table_as_it_is_documented(alone: None) -> None:
    with contextlib.closing(build("nftables")) as kernel:
        kernel.replace_all([EXTERNAL], [MAPPED, OPENED, *EACH_KIND], now=0)
        shown = re.sub(r"\s+elements = \{[^}]*\}", "", run("nft", "-s", "list", *TABLE))
    assert re.sub(r"\s+", " ", shown).strip() == re.sub(
        r"\s+",
        " ",
        """table inet igd_wg0/traffic {
            set port_mappings { type inet_proto . inet_service counter }
            set pinholes { type ipv6_addr . inet_proto . inet_service counter }
            set pinholes_from { type ipv6_addr . ipv6_addr . inet_proto . inet_service counter }
            set pinholes_from_port { type ipv6_addr . ipv6_addr . inet_proto . inet_service . inet_service counter }
            set pinholes_from_any_port { type ipv6_addr . inet_proto . inet_service . inet_service counter }
            chain received {
                meta nfproto ipv4 meta l4proto tcp meta l4proto . ct original proto-dst @port_mappings
                meta nfproto ipv4 meta l4proto udp meta l4proto . ct original proto-dst @port_mappings
                ip6 daddr . meta l4proto . th dport @pinholes
                ip6 saddr . ip6 daddr . meta l4proto . th dport @pinholes_from
                ip6 saddr . ip6 daddr . meta l4proto . th dport . th sport @pinholes_from_port
                ip6 daddr . meta l4proto . th dport . th sport @pinholes_from_any_port
            }
            chain forward {
                type filter hook forward priority 2147483647; policy accept;
                ct mark & 0x10000000 != 0x00000000 iifname != "wg0" jump received
            }
        }""",
    )


@ON_NFTABLES
def test_many_are_read_at_once_in_their_order(hosts: ThreeHosts, kernel: Kernel) -> None:
    some = [entry(port) for port in range(2000, 2300)]
    kernel.replace_all([EXTERNAL], [*some, OPENED], now=0)
    send(hosts, some[7], 2)
    found = kernel.traffic([each.mapping for each in (*some, MAPPED, OPENED)])
    assert [each and each.packets for each in found] == [0] * 7 + [2] + [0] * 292 + [None, 0]
    assert kernel.traffic([]) == []
