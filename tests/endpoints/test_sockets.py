"""One socket for each address: which are opened and closed, which failures end the start, and what reaches a peer."""

import asyncio
import contextlib
import errno
import socket
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from igd.core.peers import Address, Interface
from igd.endpoints.sockets import AddressSockets, UdpServer, _DatagramSocket, peer_address
from tests.gateway_harness import C1, SERVER, GatewayHarness
from tests.lab import PATIENCE

pytestmark = pytest.mark.root

FIRST, SECOND, OTHER_NETWORK = map(ip_interface, ("10.100.0.1/24", "10.100.0.9/24", "10.200.0.1/24"))
WIDE = ip_interface("10.0.0.9/8")
IPV6, IPV6_OTHER = map(ip_interface, ("2001:db8::1/64", "2001:db8:9::1/64"))
GROUP, GROUP6 = ip_address("239.255.255.250"), ip_address("ff02::c")


class Opened:
    """A socket that records whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        """Close it."""
        self.closed = True


class Opener:
    """Opens sockets, except on the addresses in `errors`."""

    def __init__(self, errors: dict[str, int] | None = None) -> None:
        self.errors = errors or {}

    async def __call__(self, address: Address) -> Opened:
        """Open one."""
        if str(address) in self.errors:
            raise OSError(self.errors[str(address)], f"TCP {address}: refused")
        return Opened()


async def test_a_socket_lives_as_long_as_its_address() -> None:
    sockets = AddressSockets(Opener())
    assert await sockets.follow([FIRST, IPV6]) == []
    first, ipv6 = sockets.at(FIRST.ip), sockets.at(IPV6.ip)
    assert first
    assert ipv6
    await sockets.follow([SECOND, IPV6])
    assert first.closed
    assert sockets.at(FIRST.ip) is None
    assert sockets.at(IPV6.ip) is ipv6
    assert not ipv6.closed
    sockets.close()
    assert ipv6.closed
    assert sockets.addresses() == []


async def test_a_changed_prefix_keeps_the_socket() -> None:
    sockets = AddressSockets(Opener())
    await sockets.follow([FIRST])
    opened = sockets.at(FIRST.ip)
    await sockets.follow([ip_interface("10.100.0.1/16"), FIRST])
    assert sockets.at(FIRST.ip) is opened
    assert sockets.addresses() == [FIRST.ip]


async def test_a_group_is_served_while_an_address_of_its_version_is() -> None:
    sockets = AddressSockets(Opener())
    for served, groups in (([FIRST], [GROUP]), ([FIRST, IPV6], [GROUP, GROUP6]), ([IPV6], [GROUP6]), ([], [])):
        await sockets.follow(served, (GROUP, GROUP6))
        assert [group for group in (GROUP, GROUP6) if sockets.at(group)] == groups
        assert sockets.addresses() == [each.ip for each in served]


@pytest.mark.parametrize(
    ("addresses", "errors"),
    [
        ([FIRST], {"10.100.0.1": errno.EADDRINUSE}),
        ([FIRST, SECOND], {"10.100.0.1": errno.EADDRINUSE, "10.100.0.9": errno.EADDRINUSE}),
        ([FIRST, IPV6], {"10.100.0.1": errno.EADDRINUSE}),
        ([IPV6], {"2001:db8::1": errno.EADDRINUSE}),
        ([FIRST], {"10.100.0.1": errno.EPERM}),
    ],
)
async def test_a_start_at_which_no_peer_can_be_served_fails(addresses: list[Interface], errors: dict[str, int]) -> None:
    sockets = AddressSockets(Opener(errors))
    with pytest.raises(OSError, match=f"TCP {addresses[0].ip}: refused"):
        await sockets.follow(addresses)


@pytest.mark.parametrize(
    ("addresses", "errors"),
    [
        ([FIRST, SECOND], {"10.100.0.1": errno.EADDRINUSE}),
        ([FIRST, IPV6], {"2001:db8::1": errno.EADDRINUSE}),
        ([IPV6], {"2001:db8::1": errno.EADDRNOTAVAIL}),  # tentative
        ([FIRST], {"239.255.255.250": errno.EADDRINUSE}),
    ],
)
async def test_any_other_failure_is_reported_until_it_is_over(
    addresses: list[Interface], errors: dict[str, int]
) -> None:
    opener = Opener(dict(errors))
    sockets = AddressSockets(opener)
    (failed,) = errors
    for _again in range(2):
        reported = await sockets.follow(addresses, [GROUP])
        assert reported == [f"peers are not served at TCP {failed}: refused; trying again"]
    opener.errors.clear()
    assert await sockets.follow(addresses, [GROUP]) == []
    assert sockets.at(ip_address(failed))


async def test_after_the_start_no_failure_is_an_error() -> None:
    opener = Opener()
    sockets = AddressSockets(opener)
    await sockets.follow([])
    opener.errors["10.100.0.1"] = errno.EADDRINUSE
    assert len(await sockets.follow([FIRST])) == 1


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        ("10.100.0.2", FIRST),
        ("10.200.0.2", OTHER_NETWORK),
        ("10.9.0.2", WIDE),
        ("192.168.7.20", WIDE),  # in no network: the first in the kernel's order
        ("2001:db8:9::2", IPV6_OTHER),
        ("2001:db8:7::2", IPV6),
        ("fe80::2", IPV6),
    ],
)
async def test_a_peer_is_reached_from_its_own_network(peer: str, own: Interface) -> None:
    sockets = AddressSockets(Opener())
    await sockets.follow([WIDE, FIRST, SECOND, OTHER_NETWORK, IPV6, IPV6_OTHER])
    assert sockets.nearest(ip_address(peer)) == own.ip


async def test_a_peer_is_not_reached_from_where_no_socket_is() -> None:
    sockets = AddressSockets(Opener({"10.100.0.1": errno.EADDRINUSE}))
    await sockets.follow([FIRST, OTHER_NETWORK])
    assert sockets.nearest(ip_address("10.100.0.2")) == OTHER_NETWORK.ip
    assert sockets.nearest(ip_address("2001:db8::2")) is None


@pytest.mark.parametrize("host", ["fe80::2%wg0", "fe80::2", "10.100.0.2"])
def test_the_scope_of_a_source_is_not_part_of_its_address(host: str) -> None:
    assert peer_address((host, 5000)) == ip_address(host.partition("%")[0])


class Recorder(UdpServer):
    """Records in `turns` how many datagrams it received in each turn of the event loop that had any."""

    def __init__(self, harness: GatewayHarness) -> None:
        super().__init__("recorder", "lo", 9000, harness.gateway)
        self.turns: list[int] = []
        self._received = 0

    def received(self, *_datagram: object, **_named: object) -> None:
        """Count a datagram, and have the turn recorded when it is over."""
        if not self._received:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._received += 1

    def _end_turn(self) -> None:
        self.turns.append(self._received)
        self._received = 0

    async def _respond(self, *_datagram: object, **_named: object) -> None:
        raise AssertionError("nothing is responded to")


class BusySocket(socket.socket):
    """A socket whose send buffer is full until `room` is set; its receiver is itself."""

    room = False

    def sendto(self, *arguments: Any) -> int:  # noqa: ANN401 - as socket.socket
        """Send a datagram, or raise BlockingIOError."""
        if not self.room:
            raise BlockingIOError
        return super().sendto(*arguments)


async def test_datagrams_wait_for_room_in_the_send_buffer() -> None:
    received: list[bytes] = []
    busy = BusySocket(socket.AF_INET, socket.SOCK_DGRAM)
    busy.bind((str(C1), 0))
    own = _DatagramSocket(busy, lambda datagram, _source: received.append(datagram))
    for number in range(3):
        own.send(bytes([number]), busy.getsockname())
    await asyncio.sleep(0.01)  # the loop calls the writer again and again
    assert received == []
    busy.room = True
    async with asyncio.timeout(PATIENCE):
        while len(received) < 3:  # noqa: ASYNC110 - a datagram has no event
            await asyncio.sleep(0)
        own.send(b"later", busy.getsockname())
        while len(received) < 4:  # noqa: ASYNC110 - a datagram has no event
            await asyncio.sleep(0)
    assert received == [b"\0", b"\1", b"\2", b"later"]
    own.close()


async def test_all_datagrams_that_wait_are_read_in_one_turn() -> None:
    recorder = Recorder(await GatewayHarness().start())
    assert await recorder.listen_on([ip_interface(SERVER)]) == []
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.bind((str(C1), 0))
        for _ in range(100):
            sender.sendto(b"", (str(SERVER), 9000))
        async with asyncio.timeout(PATIENCE):
            while not recorder.turns:  # noqa: ASYNC110 - a turn has no event
                await asyncio.sleep(0)
    assert recorder.turns == [100]
    await recorder.close()
