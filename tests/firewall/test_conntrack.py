"""Ending the flows of mappings in the real kernel."""

import contextlib
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

import pytest

from igd.core.mapping import AnyMapping, Endpoint, Entry, Lease, Pinhole, Remote, TransportProtocol
from igd.firewall import conntrack
from igd.firewall.conntrack import Conntrack, Flow, Translation, endings, parse
from igd.firewall.netlink import Netlink, NetlinkError
from igd.firewall.nfnetlink import Message, attribute, attributes, nested, u8, u32
from igd.firewall.site import MARK
from tests.firewall.calling import caller, listener
from tests.firewall.entries import entry
from tests.firewall.three_hosts import (
    EXTERNAL,
    PEER,
    PEER6,
    REMOTE,
    ThreeHosts,
    joined,
    new_namespace,
    run,
)
from tests.lab import PATIENCE, await_ipv6

pytestmark = pytest.mark.root

NEW, GET = 0x100, 0x101
OTHER_PEER, OTHER_PEER6 = IPv4Address("10.100.0.3"), IPv6Address("2001:470:100::3")
OTHER_PUBLIC = IPv4Address("60.60.60.3")
REMOTES: dict[int, IPv4Address | IPv6Address] = {4: IPv4Address(REMOTE), 6: IPv6Address("2001:db8::1")}

# What to change in igd.firewall.conntrack, so that this kernel answers as those do: it refuses flags that it does not
# know, and passes over attributes that it does not know.
KERNELS: dict[str, dict[str, int]] = {
    "from 6.11": {},
    "from 5.8": {"FILTER_SOURCE": 1 << 31},  # used in deletes only
    "before 5.8": {"CTA_FILTER": 60},
}


class Made(NamedTuple):
    """A conntrack entry to make: what the remote sent to, and whom it was led to (None: nobody else)."""

    port: int
    inside: Endpoint | None
    address: IPv4Address | IPv6Address = EXTERNAL
    protocol: TransportProtocol = TransportProtocol.UDP
    mark: int = MARK

    @property
    def translation(self) -> Translation:
        """The translation of the flow."""
        outside = Endpoint(self.address, self.port)
        return Translation(self.protocol, outside, self.inside or outside)

    def message(self, source_port: int) -> Message:
        """Return the message that makes it; no two with the same source port."""
        remote = Endpoint(REMOTES[self.address.version], source_port)
        protocol, outside, inside = self.translation
        tuples = _tuple(1, protocol, remote, outside) + _tuple(2, protocol, inside, remote)
        family = socket.AF_INET if self.address.version == 4 else socket.AF_INET6
        return Message(NEW, family, tuples + u32(7, 600) + u32(8, self.mark), flags=0x600)


def _tuple(kind: int, protocol: int, source: Endpoint, to: Endpoint) -> bytes:
    kinds = (1, 2) if to.address.version == 4 else (3, 4)
    ends = zip(kinds, (source, to), strict=True)
    addresses = nested(1, *(attribute(number, end.address.packed) for number, end in ends))
    ports = (attribute(2, struct.pack(">H", source.port)), attribute(3, struct.pack(">H", to.port)))
    return nested(kind, addresses, nested(2, u8(1, protocol), *ports))


def pinhole(port: int, protocol: str = "udp", *, peer: IPv6Address = PEER6) -> Entry:
    return Entry(Pinhole(TransportProtocol[protocol.upper()], Endpoint(peer, port), "peer"), Lease(120))


OURS = Made(8043, Endpoint(PEER, 80))
OURS6 = Made(8043, None, PEER6)
LOST: list[AnyMapping] = [entry(8043, 80).mapping, pinhole(8043).mapping]
LEFT_ALONE = [
    OURS._replace(port=8044),
    OURS._replace(protocol=TransportProtocol.TCP),
    OURS._replace(address=OTHER_PUBLIC),
    OURS._replace(inside=Endpoint(PEER, 81)),
    OURS._replace(inside=Endpoint(OTHER_PEER, 80)),
    OURS._replace(inside=None),
    OURS._replace(port=9043, mark=0),  # the operator's own redirection to the same endpoint
    OURS6._replace(port=8044),
    OURS6._replace(protocol=TransportProtocol.TCP),
    OURS6._replace(address=OTHER_PEER6),
    OURS6._replace(inside=Endpoint(OTHER_PEER6, 8043)),
    OURS6._replace(address=OTHER_PEER6, inside=Endpoint(PEER6, 8043)),
    OURS6._replace(mark=0),  # was let in before there was a pinhole
    OURS6._replace(mark=MARK >> 1),
]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test as if on each kind of kernel."""
    for name, value in KERNELS[request.param].items():
        monkeypatch.setattr(conntrack, name, value)
    return str(request.param)


every_kernel = pytest.mark.usefixtures("kernel")


@pytest.fixture
def tracker() -> Iterator[Conntrack]:
    """Return a Conntrack in a network namespace of its own; the test is in it too."""
    with new_namespace(), contextlib.closing(Conntrack(MARK)) as made:
        yield made


@pytest.fixture
def hosts(hosts: ThreeHosts) -> ThreeHosts:
    """Return a remote, the server, where the test is, and a peer, who has the other peer's addresses as well."""
    with joined(hosts.peer):
        run("ip", "address", "add", f"{OTHER_PEER}/24", "dev", "eth0")
        run("ip", "address", "add", f"{OTHER_PEER6}/64", "dev", "eth0", "nodad")
        await_ipv6()
    return hosts


def make(flows: Iterable[Made]) -> None:
    messages = [flow.message(source_port) for source_port, flow in enumerate(flows, start=1024)]
    with contextlib.closing(Netlink()) as netlink:
        for start in range(0, len(messages), 100):
            assert netlink.request(messages[start : start + 100]) == []


def flows_there() -> list[Flow]:
    with contextlib.closing(Netlink()) as netlink:
        return [flow for flow in map(parse, netlink.dump(Message(GET, socket.AF_UNSPEC))) if flow is not None]


def there() -> set[tuple[Translation, int]]:
    return {(flow.translation, flow.mark) for flow in flows_there()}


def described(flows: Iterable[Made]) -> set[tuple[Translation, int]]:
    return {(flow.translation, flow.mark) for flow in flows}


def test_end_flows_ends_just_what_the_lost_mappings_let_in(tracker: Conntrack, kernel: str) -> None:
    make([OURS, OURS6, OURS, OURS6, *LEFT_ALONE])
    assert len(flows_there()) == 4 + len(LEFT_ALONE)
    tracker.end(endings(LOST, [], [EXTERNAL]))
    assert there() == described(LEFT_ALONE)
    sweeps = [int(number) for number in platform.release().split(".")[:2]] >= [6, 11]
    assert tracker._deletes_by_filter == (sweeps and kernel == "from 6.11")


@every_kernel
def test_end_flows_again_ends_as_much(tracker: Conntrack) -> None:
    """A kernel's refusal is remembered."""
    for _time in range(2):
        make([OURS, OURS6])
        tracker.end(endings(LOST, [], [EXTERNAL]))
        assert there() == set()


@every_kernel
def test_a_port_mappings_flows_need_no_mark(tracker: Conntrack) -> None:
    """Operators overwrite marks."""
    make([OURS._replace(mark=0)])
    tracker.end(endings(LOST, [], [OTHER_PUBLIC, EXTERNAL]))
    assert there() == set()


@every_kernel
@pytest.mark.parametrize("extra", [1, 20, 50])
def test_end_flows_takes_any_number_of_mappings(tracker: Conntrack, extra: int) -> None:
    make([OURS, OURS6, *LEFT_ALONE])
    more = [one.mapping for number in range(extra) for one in (entry(9100 + number), pinhole(9100 + number))]
    tracker.end(endings(LOST + more, [], [EXTERNAL]))
    assert there() == described(LEFT_ALONE)


@every_kernel
def test_nothing_to_settle_is_nothing_to_do(tracker: Conntrack) -> None:
    make([OURS, OURS6, *LEFT_ALONE])
    tracker.end(endings([], [], [EXTERNAL]))
    tracker.end(endings([entry(8043, 80).mapping], [], []))
    tracker.end(endings([], [pinhole(8043).mapping], [EXTERNAL]))
    assert there() == described([OURS, OURS6, *LEFT_ALONE])


def test_without_filtered_deletes_nothing_to_end_is_no_dump(
    tracker: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump takes 12 ms, and most changes are renewals."""
    monkeypatch.setattr(tracker, "_deletes_by_filter", False)
    monkeypatch.setattr(tracker, "_dump", None)
    tracker.end(endings([], [entry(8043, 80, "tcp").mapping], [EXTERNAL]))


@every_kernel
def test_a_port_that_changed_hands_twice(tracker: Conntrack) -> None:
    make([OURS, *LEFT_ALONE])
    tracker.end(endings([entry(8043, 80).mapping, entry(8043, 81).mapping], [], [EXTERNAL]))
    assert there() == described(flow for flow in LEFT_ALONE if flow != OURS._replace(inside=Endpoint(PEER, 81)))


@every_kernel
def test_narrowed_remotes_end_the_flows_of_all(tracker: Conntrack) -> None:
    """Of those who still may come in too; their next packet gets a new one."""
    make([OURS, OURS6, *LEFT_ALONE])
    nobody = [Remote(IPv4Network("192.0.2.0/24")), Remote(IPv6Network("2001:db8:1::/48"))]
    tracker.end(endings([replace(one, remotes=(who,)) for one, who in zip(LOST, nobody, strict=True)], [], [EXTERNAL]))
    assert there() == described(LEFT_ALONE)


@every_kernel
def test_a_new_mapping_ends_what_no_redirection_leads_elsewhere(tracker: Conntrack) -> None:
    past = Made(8043, None, mark=0)
    left_alone = [OURS, past._replace(port=8044), past._replace(address=OTHER_PUBLIC), OURS._replace(mark=0), OURS6]
    tcp = past._replace(protocol=TransportProtocol.TCP)
    make([past, past._replace(mark=1), tcp, *left_alone])
    new: list[AnyMapping] = [entry(8043, 80).mapping, entry(8043, 80, "tcp").mapping, pinhole(8043).mapping]
    tracker.end(endings([], new, [EXTERNAL]))
    assert there() == described([tcp, *left_alone])


@every_kernel
def test_a_mapping_that_leads_elsewhere_now_is_lost_and_new(tracker: Conntrack) -> None:
    other = OURS._replace(port=8044)
    make([OURS, Made(8043, None, mark=0), other])
    tracker.end(endings([entry(8043, 80).mapping], [entry(8043, 81).mapping], [EXTERNAL]))
    assert there() == described([other])


@every_kernel
def test_flush_stale_ends_what_is_marked_and_not_kept(tracker: Conntrack) -> None:
    kept = [OURS, OURS._replace(protocol=TransportProtocol.TCP), OURS._replace(mark=MARK | 5), OURS6]
    not_ours = [one._replace(port=1, mark=mark) for mark in (0, 1, MARK >> 1) for one in (OURS, OURS6)]
    stale = [
        OURS._replace(port=1),
        OURS._replace(inside=Endpoint(OTHER_PEER, 80), mark=MARK | 1),
        OURS6._replace(port=1),
        OURS6._replace(address=OTHER_PEER6),
    ]
    make([*kept, *not_ours, *stale])
    run("conntrack", "-I", "-p", "icmp", "-s", REMOTE, "-d", str(EXTERNAL), "--icmp-type", "8", "--icmp-code", "0",
        "--icmp-id", "7", "-t", "60")  # fmt: skip
    tracker.flush_stale([entry(8043, 80), entry(8043, 80, "tcp"), entry(2), pinhole(8043)])
    assert there() == described([*kept, *not_ours])


@pytest.mark.parametrize(
    ("network", "port", "stays"),
    [
        ("60.60.60.0/24", 0, True),
        ("60.60.60.0/24", 1024, True),  # the first port that make() takes
        ("60.60.60.0/24", 1025, False),
        ("192.0.2.0/24", 0, False),
    ],
)
def test_flush_stale_asks_who_may_come_in(tracker: Conntrack, network: str, port: int, *, stays: bool) -> None:
    make([OURS])
    one = entry(8043, 80)
    elsewhere = Remote(IPv4Network("198.51.100.0/24"))
    remotes = (elsewhere, Remote(IPv4Network(network), port))
    tracker.flush_stale([replace(one, mapping=replace(one.mapping, remotes=remotes))])
    assert there() == described([OURS] if stays else [])


def test_flows_into_other_networks_are_other_instances(tracker: Conntrack) -> None:
    elsewhere = OURS._replace(port=1, inside=Endpoint(IPv4Address("10.200.0.2"), 80))
    elsewhere6 = OURS6._replace(address=IPv6Address("2001:470:200::2"))
    make([OURS, OURS6, elsewhere, elsewhere6])
    tracker.flush_stale([], [IPv4Network("10.100.0.0/16"), IPv6Network("2001:470:100::/64")])
    assert there() == described([elsewhere, elsewhere6])


def test_another_mark_bit_is_anothers(tracker: Conntrack) -> None:
    make([OURS, OURS6])
    with contextlib.closing(Conntrack(mark=0x40)) as other:
        other.flush_stale([])
        other.end(endings([pinhole(8043).mapping], [], []))
        assert there() == described([OURS, OURS6])
    tracker.flush_stale([])
    assert there() == set()


def test_the_criteria_are_the_kernels(tracker: Conntrack) -> None:
    """The kernel returns nothing but what was requested, which a check in our code would hide."""
    make([OURS, OURS, OURS6, *LEFT_ALONE])
    udp = TransportProtocol.UDP
    for family, criteria, expected in (
        (socket.AF_INET, conntrack._with_translation(OURS.translation), 2),
        (socket.AF_INET, conntrack._with_translation(LEFT_ALONE[0].translation), 1),
        (socket.AF_INET, conntrack._to(Translation(udp, Endpoint(OTHER_PUBLIC, 8043), Endpoint(PEER, 1))), 1),
        (socket.AF_INET, conntrack._to_address(OTHER_PUBLIC), 1),
        (socket.AF_INET6, conntrack._to(OURS6._replace(port=8044).translation), 1),
        (socket.AF_INET6, conntrack._with_mark(MARK >> 1), 1),
        (socket.AF_UNSPEC, b"", 3 + len(LEFT_ALONE)),
    ):
        assert len(list(tracker._dump(family, criteria))) == expected


def test_flows_are_recognised_by_the_layout_that_the_kernel_uses(tracker: Conntrack) -> None:
    """Decoding each of 100,000 flows would take seconds."""
    made = [OURS, OURS6, *LEFT_ALONE]
    make(made)
    for payload in tracker._dump(socket.AF_UNSPEC, b""):
        flow = parse(payload)
        assert flow
        layout = conntrack._layout(4 if payload[0] == socket.AF_INET else 16)
        assert layout.match(payload)
        for one in made:
            assert conntrack._have([one.translation])(payload) == (one.translation == flow.translation)


@pytest.mark.parametrize("source", ["6.0.3.0", "8.0.2.0", "52.0.1.128"])
def test_a_remote_whose_address_looks_like_a_header_hides_nothing(tracker: Conntrack, source: str) -> None:
    run("conntrack", "-I", "-p", "udp", "-s", source, "-d", str(EXTERNAL), "--sport", "1536", "--dport", "8043",
        "-r", str(PEER), "-q", source, "--reply-port-src", "80", "--reply-port-dst", "1536", "-t", "60")  # fmt: skip
    (payload,) = tracker._dump(socket.AF_INET, b"")
    assert conntrack._have([OURS.translation])(payload)


def test_a_flow_of_another_layout_is_recognised_too(tracker: Conntrack) -> None:
    """One whose original tuple has a zone."""
    message = OURS.message(1024)
    tuples = attributes(message.payload)
    zoned = nested(1, tuples[1], attribute(3, struct.pack(">H", 5))) + nested(2, tuples[2]) + u32(7, 600)
    with contextlib.closing(Netlink()) as netlink:
        assert netlink.request([replace(message, payload=zoned)]) == []
    (payload,) = tracker._dump(socket.AF_INET, b"")
    assert not conntrack._layout(4).match(payload)
    assert conntrack._have([OURS.translation])(payload)
    assert not conntrack._have([OURS._replace(port=8044).translation])(payload)


@every_kernel
@pytest.mark.parametrize("many", [5, 1000])
def test_any_number_of_changes_is_one_dump_for_each_ip_version(
    tracker: Conntrack, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """So a peer that changes its mappings as fast as it may costs no more than one walk at a time."""
    families: list[int] = []
    dump = tracker._dump

    def counted(family: int, criteria: bytes) -> Iterator[bytes]:
        families.append(family)
        return dump(family, criteria)

    monkeypatch.setattr(tracker, "_dump", counted)
    monkeypatch.setattr(tracker, "_delete_by_filter", None)
    more = [one.mapping for number in range(many) for one in (entry(9100 + number), pinhole(9100 + number))]
    tracker.end(endings(more, [entry(8043, 80).mapping], [EXTERNAL]))
    assert families == [socket.AF_INET, socket.AF_INET6]


def test_a_sweep_whose_filter_is_not_known_ends_nothing(tracker: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody's flows are lost where an older kernel is."""
    monkeypatch.setattr(conntrack, "CTA_FILTER", 60)
    make([OURS, OURS6, *LEFT_ALONE])
    assert not tracker._delete_by_filter([OURS.translation])
    assert there() == described([OURS, OURS6, *LEFT_ALONE])


def test_a_flow_that_ends_by_itself_meanwhile_is_no_error(tracker: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting it twice is deleting what has gone."""
    dump = tracker._dump
    monkeypatch.setattr(tracker, "_deletes_by_filter", False)
    monkeypatch.setattr(tracker, "_dump", lambda family, criteria: list(dump(family, criteria)) * 2)
    make([OURS, OURS, OURS6])
    tracker.end(endings(LOST, [], [EXTERNAL]))
    assert there() == set()


def test_a_refusal_for_another_reason_is_an_error(tracker: Conntrack) -> None:
    os.seteuid(65534)  # nobody
    try:
        with pytest.raises(NetlinkError) as caught:
            tracker.end(endings(LOST, [], [EXTERNAL]))
    finally:
        os.seteuid(0)
    assert caught.value.errno == errno.EPERM
    assert tracker._deletes_by_filter


def test_a_refusal_to_end_what_was_found_is_an_error(tracker: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "IPCTNL_MSG_CT_DELETE", 77)
    make([OURS])
    with pytest.raises(NetlinkError) as caught:
        tracker.end(endings(LOST, [], [EXTERNAL]))
    assert caught.value.errno == errno.EINVAL


def test_twenty_thousand_flows(tracker: Conntrack) -> None:
    others = [
        one._replace(port=port, inside=Endpoint(one.translation.reply_src.address, port))
        for port in range(10_000, 20_000)
        for one in (OURS, OURS6)
    ]
    make([OURS, OURS6, *others])
    tracker.end(endings(LOST, [], [EXTERNAL]))
    assert there() == described(others)
    tracker.flush_stale([])
    assert there() == set()


# With real packets, and rules such as the backends make: flows go on after them.

DNAT = """
table ip test {{
    chain arriving {{
        type nat hook prerouting priority -100
        udp dport 9043 dnat to {peer}:80
        ip protocol {{ tcp, udp }} ct mark set ct mark | {mark}
        tcp dport 8043 dnat to {peer}:80
        udp dport {{ 8043, 8044 }} dnat to {peer}:80
        udp dport 8045 dnat to {other}:80
        ct mark set 0
    }}
    chain leaving {{
        type nat hook postrouting priority 100
        ct state new  # where no rule asks for flows, the kernel tracks none
        {masquerade}
    }}
}}
"""
LET_IN = """
table ip6 test {{
    chain forward {{
        type filter hook forward priority 0
        policy drop
        ct state established accept
        udp sport 5555 accept
        ct mark set ct mark | {mark}
        ip6 daddr {{ {peer}, {other} }} udp dport 8043 accept
        ip6 daddr {peer} udp dport 8044 accept
    }}
}}
"""


def rules(text: str, **values: object) -> None:
    run("nft", "-f", "-", text=text.format(mark=MARK, **values))


@every_kernel
@pytest.mark.parametrize("masquerade", ["", "oifname wg0 masquerade"], ids=["", "source translated too"])
def test_only_a_lost_mappings_packets_no_longer_arrive(hosts: ThreeHosts, masquerade: str) -> None:
    """Later packets of the remote come to the server's own socket.

    8044 is another mapping to the same endpoint, 8045 one to another peer, and 9043 the operator's own redirection.
    """
    rules(DNAT, peer=PEER, other=OTHER_PEER, masquerade=masquerade)
    ports = (8043, 8044, 8045, 9043)
    with contextlib.ExitStack() as stack:
        peer, own = (stack.enter_context(one) for one in (listener(hosts.peer, "udp", 80), _udp(hosts.server, 8043)))
        remotes = [(stack.enter_context(caller(hosts.remote, "udp", port)), b"%d" % port) for port in ports]
        tracker = stack.enter_context(contextlib.closing(Conntrack(MARK)))
        for remote, text in remotes:
            remote.send(text)
            assert peer.recv(64) == text
        run("nft", "flush", "chain", "ip", "test", "arriving")
        for remote, text in remotes:
            remote.send(text)  # without end_flows, all go on
            assert peer.recv(64) == text
        tracker.end(endings([entry(8043, 80).mapping], [], [EXTERNAL]))
        for remote, text in remotes:
            remote.send(text)
            assert (own if text == b"8043" else peer).recv(64) == text


@every_kernel
def test_only_a_lost_pinholes_packets_no_longer_arrive(hosts: ThreeHosts) -> None:
    """8044 is another pinhole of the peer, and who sends from 5555 was let in without one."""
    rules(LET_IN, peer=PEER6, other=OTHER_PEER6)
    lost, *others = ways = [(PEER6, 8043, 0), (PEER6, 8043, 5555), (PEER6, 8044, 0), (OTHER_PEER6, 8043, 0)]
    with contextlib.ExitStack() as stack:
        peers = {to: stack.enter_context(_udp(hosts.peer, to[1], to[0])) for to in {way[:2] for way in ways}}
        remotes = {way: stack.enter_context(_udp(hosts.remote, way[2])) for way in ways}
        tracker = stack.enter_context(contextlib.closing(Conntrack(MARK)))
        for way, remote in remotes.items():
            remote.connect((str(way[0]), way[1]))
            remote.send(b"hello")
            peers[way[:2]].sendto(b"answer", peers[way[:2]].recvfrom(64)[1])
            assert remote.recv(64) == b"answer"
        run("nft", "flush chain ip6 test forward; add rule ip6 test forward ct state established accept")
        for way, remote in remotes.items():
            remote.send(b"%d" % way[2])  # without end_flows, all go on
            assert peers[way[:2]].recv(64) == b"%d" % way[2]
        tracker.end(endings([pinhole(8043).mapping], [], [EXTERNAL]))
        remotes[lost].send(b"lost")
        for way in others:
            remotes[way].send(b"%d" % way[2])
            assert peers[way[:2]].recv(64) == b"%d" % way[2]


@every_kernel
def test_a_closed_ports_connection_is_reset(hosts: ThreeHosts) -> None:
    """Later packets of the remote come to the server itself."""
    rules(DNAT, peer=PEER, other=OTHER_PEER, masquerade="")
    with contextlib.closing(Conntrack(MARK)) as tracker, _connection(hosts) as (remote, end):
        run("nft", "flush", "chain", "ip", "test", "arriving")
        remote.send(b"still here")
        assert end.recv(64) == b"still here"
        tracker.end(endings([entry(8043, 80, "tcp").mapping], [], [EXTERNAL]))
        remote.send(b"and now?")
        with pytest.raises(ConnectionResetError):
            remote.recv(64)


@every_kernel
def test_who_may_still_come_in_keeps_his_connection(hosts: ThreeHosts) -> None:
    """When remotes are narrowed, all flows end; the next packet's way is the old one."""
    rules(DNAT, peer=PEER, other=OTHER_PEER, masquerade="")
    with contextlib.closing(Conntrack(MARK)) as tracker, _connection(hosts) as (remote, end):
        tracker.end(endings([entry(8043, 80, "tcp").mapping], [entry(8043, 80, "tcp").mapping], [EXTERNAL]))
        assert there() == set()
        remote.send(b"still here")
        assert end.recv(64) == b"still here"
        end.send(b"so am I")
        assert remote.recv(64) == b"so am I"


@every_kernel
def test_a_remote_that_was_already_sending_reaches_a_new_mapping(hosts: ThreeHosts) -> None:
    rules(DNAT, peer=PEER, other=OTHER_PEER, masquerade="")
    run("nft", "flush", "chain", "ip", "test", "arriving")
    with contextlib.ExitStack() as stack:
        tracker = stack.enter_context(contextlib.closing(Conntrack(MARK)))
        peer = stack.enter_context(listener(hosts.peer, "udp", 80))
        remote = stack.enter_context(caller(hosts.remote, "udp", 8043))
        for _time in range(2):
            remote.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):  # after the addition too
                remote.recv(64)
            run("nft", f"add rule ip test arriving udp dport 8043 dnat to {PEER}:80")
        tracker.end(endings([], [entry(8043, 80).mapping], [EXTERNAL]))
        remote.send(b"hello")
        assert peer.recv(64) == b"hello"


def test_the_flows_of_a_mapping_are_kept_over_a_restart(hosts: ThreeHosts) -> None:
    rules(DNAT, peer=PEER, other=OTHER_PEER, masquerade="")
    with contextlib.closing(Conntrack(MARK)) as tracker, _connection(hosts):
        tracker.flush_stale([entry(8043, 80, "tcp")])
        assert len(there()) == 1
        tracker.flush_stale([])
        assert there() == set()


def _udp(where: int, port: int, address: IPv6Address | str = "::") -> socket.socket:
    """Return an IPv6 socket, which takes IPv4 as well."""
    with joined(where):
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    made.bind((str(address), port))
    return made


@contextlib.contextmanager
def _connection(hosts: ThreeHosts) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a TCP connection from the remote through port 8043 to the peer's port 80."""
    with listener(hosts.peer, "tcp", 80) as waiting, caller(hosts.remote, "tcp", 8043) as remote:
        end, _source = waiting.accept()
        with end:
            end.settimeout(PATIENCE)
            yield remote, end
