"""Ending the flows of mappings in the real kernel."""

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import pytest

from igd.core.mapping import Change, Endpoint, Protocol
from igd.firewall import conntrack
from igd.firewall.conntrack import Conntrack, parse
from igd.firewall.netlink import Message, Netlink, NetlinkError, attribute, nested, u8, u32
from igd.firewall.nftables import Nftables
from igd.firewall.rules import MARK
from tests.firewall.reaching import Reached, Transport, caller, entry, listener, reach
from tests.firewall.three_hosts import EXTERNAL, PEER, REMOTE, ThreeHosts, new_namespace, run, three_hosts

pytestmark = pytest.mark.root

NEW, GET = 0x100, 0x101
OTHER_PEER = IPv4Address("10.100.0.3")
OTHER_PUBLIC = IPv4Address("60.60.60.3")


class Made(NamedTuple):
    """A conntrack entry to make: what the remote sent to, and whom it was led to (None: nobody else)."""

    port: int
    inside: Endpoint | None
    address: IPv4Address = EXTERNAL
    protocol: Protocol = Protocol.UDP
    mark: int = MARK

    def message(self, source_port: int) -> Message:
        """Give the message that makes it; no two with the same source port."""
        remote, public, inside = (
            Endpoint(IPv4Address(REMOTE), source_port),
            Endpoint(self.address, self.port),
            self.inside,
        )
        tuples = _tuple(1, self.protocol, remote, public) + _tuple(2, self.protocol, inside or public, remote)
        return Message(NEW, socket.AF_INET, tuples + u32(7, 600) + u32(8, self.mark), flags=0x600)


def _tuple(kind: int, protocol: Protocol, source: Endpoint, to: Endpoint) -> bytes:
    addresses = nested(1, attribute(1, source.address.packed), attribute(2, to.address.packed))
    ports = (attribute(2, struct.pack(">H", source.port)), attribute(3, struct.pack(">H", to.port)))
    return nested(kind, addresses, nested(2, u8(1, protocol), *ports))


OURS = Made(8043, Endpoint(PEER, 80))
LEFT_ALONE_BY_FLUSH = [
    OURS._replace(port=8044),
    OURS._replace(protocol=Protocol.TCP),
    OURS._replace(address=OTHER_PUBLIC),
    OURS._replace(inside=Endpoint(PEER, 81)),
    OURS._replace(inside=Endpoint(OTHER_PEER, 80)),
    OURS._replace(inside=None),
]


@pytest.fixture
def tracker() -> Iterator[Conntrack]:
    """Give a Conntrack in a network namespace of its own; the test is in it too."""
    with new_namespace(), contextlib.closing(Conntrack()) as made:
        yield made


@pytest.fixture
def hosts() -> Iterator[ThreeHosts]:
    """Give a remote, the server, where the test is, and a peer."""
    with three_hosts() as made:
        yield made


def make(flows: Iterable[Made]) -> None:
    messages = [flow.message(source_port) for source_port, flow in enumerate(flows, start=1024)]
    with contextlib.closing(Netlink()) as netlink:
        for start in range(0, len(messages), 100):
            assert netlink.request(messages[start : start + 100]) == []


def there() -> set[tuple[int, int, Endpoint, Endpoint]]:
    with contextlib.closing(Netlink()) as netlink:
        flows = map(parse, netlink.dump(Message(GET, socket.AF_INET)))
        return {(flow.protocol, flow.mark, flow.destination, flow.answering) for flow in flows if flow is not None}


def described(flows: Iterable[Made]) -> set[tuple[int, int, Endpoint, Endpoint]]:
    return {(flow.protocol, flow.mark, to := Endpoint(flow.address, flow.port), flow.inside or to) for flow in flows}


def test_flush_ends_just_what_the_mapping_led(tracker: Conntrack) -> None:
    make([OURS, OURS, *LEFT_ALONE_BY_FLUSH])
    assert tracker.flush([entry(8043, 80).mapping], [EXTERNAL]) == 2
    assert there() == described(LEFT_ALONE_BY_FLUSH)


def test_flush_does_not_need_the_mark(tracker: Conntrack) -> None:
    """Operators overwrite marks."""
    make([OURS._replace(mark=0)])
    assert tracker.flush([entry(8043, 80).mapping], [OTHER_PUBLIC, EXTERNAL]) == 1


@pytest.mark.parametrize("extra", [0, 1, 50])
def test_flush_takes_any_number_of_mappings(tracker: Conntrack, extra: int) -> None:
    make([OURS, OURS, *LEFT_ALONE_BY_FLUSH])
    mappings = [entry(8043, 80).mapping, *(entry(9000 + number).mapping for number in range(extra))]
    assert tracker.flush(mappings, [EXTERNAL]) == 2
    assert there() == described(LEFT_ALONE_BY_FLUSH)


def test_flush_takes_a_port_that_changed_hands_twice(tracker: Conntrack) -> None:
    make([OURS, *LEFT_ALONE_BY_FLUSH])
    mappings = [entry(8043, 80).mapping, entry(8043, 81).mapping]
    assert tracker.flush(mappings, [EXTERNAL]) == 2


def test_flush_unmapped_ends_what_no_redirection_leads_elsewhere(tracker: Conntrack) -> None:
    direct = Made(8043, None, mark=0)
    left_alone = [OURS, direct._replace(port=8044), direct._replace(address=OTHER_PUBLIC)]
    tcp = direct._replace(protocol=Protocol.TCP)
    make([direct, tcp, *left_alone])
    mappings = [entry(8043, 80).mapping, entry(8043, 80, "tcp").mapping]
    assert tracker.flush_unmapped(mappings, [EXTERNAL]) == 1
    assert there() == described([tcp, *left_alone])


def test_flush_stale_ends_what_is_marked_and_not_kept(tracker: Conntrack) -> None:
    kept = [OURS, OURS._replace(protocol=Protocol.TCP), OURS._replace(mark=MARK | 5)]
    not_ours = [OURS._replace(port=1, mark=mark) for mark in (0, 1, MARK >> 1)]
    stale = [OURS._replace(port=1), OURS._replace(inside=Endpoint(OTHER_PEER, 80), mark=MARK | 1)]
    make([*kept, *not_ours, *stale])
    run("conntrack", "-I", "-p", "icmp", "-s", REMOTE, "-d", str(EXTERNAL), "--icmp-type", "8", "--icmp-code", "0",
        "--icmp-id", "7", "-t", "60")  # fmt: skip
    assert tracker.flush_stale([entry(8043, 80), entry(8043, 80, "tcp"), entry(2)]) == len(stale)
    assert there() == described([*kept, *not_ours])


def test_flows_into_other_networks_are_other_instances(tracker: Conntrack) -> None:
    elsewhere = OURS._replace(port=1, inside=Endpoint(IPv4Address("10.200.0.2"), 80))
    make([OURS, elsewhere])
    assert tracker.flush_stale([], [IPv4Network("10.100.0.0/16")]) == 1
    assert there() == described([elsewhere])


def test_another_mark_bit_is_anothers(tracker: Conntrack) -> None:
    make([OURS])
    with contextlib.closing(Conntrack(mark=0x40)) as other:
        assert other.flush_stale([]) == 0
    assert tracker.flush_stale([]) == 1


@pytest.mark.parametrize("flag", [0, 1 << 31], ids=["ignores filters", "refuses filters"])
def test_a_kernel_without_filters_ends_the_same_flows(
    tracker: Conntrack, monkeypatch: pytest.MonkeyPatch, flag: int
) -> None:
    """A filter without flags lets everything through, and one with a flag unknown to the kernel is refused."""
    for name in ("FILTER_IP_DST", "FILTER_PROTO_NUM", "FILTER_PROTO_DST_PORT"):
        monkeypatch.setattr(conntrack, name, flag)
    make([OURS, OURS, *LEFT_ALONE_BY_FLUSH])
    assert tracker.flush([entry(8043, 80).mapping], [EXTERNAL]) == 2
    assert there() == described(LEFT_ALONE_BY_FLUSH)


def test_the_filter_is_the_kernels(tracker: Conntrack) -> None:
    """What verification here would hide: that the kernel hands out nothing but what was asked for."""
    make([OURS, OURS, *LEFT_ALONE_BY_FLUSH])
    for criteria, expected in (
        (conntrack._to_port((Protocol.UDP, 8044)), 1),  # noqa: SLF001
        (conntrack._to_address(OTHER_PUBLIC), 1),  # noqa: SLF001
        (b"", 8),
    ):
        assert len(tracker._dump(criteria)) == expected  # noqa: SLF001


def test_a_flow_that_ends_by_itself_meanwhile_is_no_error(tracker: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting it twice is deleting what has gone."""
    dump = tracker._dump  # noqa: SLF001
    monkeypatch.setattr(tracker, "_dump", lambda criteria: dump(criteria) * 2)
    make([OURS, OURS])
    tracker.flush([entry(8043, 80).mapping], [EXTERNAL])
    assert there() == set()


def test_any_other_refusal_is_an_error(tracker: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    make([OURS])
    monkeypatch.setattr(conntrack, "DELETE", 77)
    with pytest.raises(NetlinkError) as caught:
        tracker.flush([entry(8043, 80).mapping], [EXTERNAL])
    assert caught.value.errno == errno.EINVAL


def test_twenty_thousand_flows(tracker: Conntrack) -> None:
    make([OURS, *(OURS._replace(port=10_000 + number) for number in range(20_000))])
    assert tracker.flush([entry(8043, 80).mapping], [EXTERNAL]) == 1
    assert tracker.flush_stale([]) == 20_000
    assert there() == set()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_closed_ports_flow_no_longer_reaches_the_peer(hosts: ThreeHosts, transport: Transport) -> None:
    """What the remote goes on sending comes to the server itself: its own socket, or for TCP a reset."""
    one = entry(8043, protocol=transport)
    with contextlib.closing(Nftables("wg0")) as gateway, contextlib.closing(Conntrack()) as tracker:
        gateway.replace_all([EXTERNAL], [one], now=0)
        with listener(hosts.peer, transport, 8043) as peer, caller(hosts.remote, transport, 8043) as remote:
            remote.send(b"hello")
            end = peer.accept()[0] if transport == "tcp" else peer.dup()
            assert end.recv(64) == b"hello"
            gateway.apply([Change(one, None)], now=0)
            remote.send(b"still here")  # without a flush, the flow goes on
            assert end.recv(64) == b"still here"
            assert tracker.flush([one.mapping], [EXTERNAL]) == 1
            with listener(hosts.server, transport, 8043) as own:
                remote.send(b"and now?")
                if transport == "udp":
                    assert own.recv(64) == b"and now?"
                else:
                    with pytest.raises(ConnectionResetError):
                        remote.recv(64)
            end.close()


def test_a_remote_that_was_already_sending_reaches_a_new_mapping(hosts: ThreeHosts) -> None:
    one = entry(8043)
    with contextlib.closing(Nftables("wg0")) as gateway, contextlib.closing(Conntrack()) as tracker:
        gateway.replace_all([EXTERNAL], [], now=0)
        with listener(hosts.peer, "udp", 8043) as peer, caller(hosts.remote, "udp", 8043) as remote:
            for _time in range(2):
                remote.send(b"anybody?")
                with pytest.raises(ConnectionRefusedError):  # after the addition too
                    remote.recv(64)
                gateway.apply([Change(None, one), Change(one, one)], now=0)
            assert tracker.flush_unmapped([one.mapping], [EXTERNAL]) == 1
            remote.send(b"hello")
            assert peer.recv(64) == b"hello"
            assert reach(hosts, "udp", {"peer": peer}, 8043) == Reached("peer", REMOTE)


def test_the_flows_of_a_mapping_are_kept_over_a_restart(hosts: ThreeHosts) -> None:
    one = entry(8043, 80, "tcp")
    with contextlib.closing(Nftables("wg0")) as gateway, contextlib.closing(Conntrack()) as tracker:
        gateway.replace_all([EXTERNAL], [one], now=0)
        with listener(hosts.peer, "tcp", 80) as peer, caller(hosts.remote, "tcp", 8043):
            peer.accept()[0].close()
            assert tracker.flush_stale([one]) == 0
            assert tracker.flush_stale([]) == 1
