"""NAT-PMP and PCP on their one port, clause by clause: a real endpoint and a real gateway on a pretended kernel."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igd.core.mapping import Endpoint, Key, Pinhole, PortMapping, TransportProtocol
from igd.core.peers import Peers
from igd.core.policy import Policy, PortRule
from igd.core.request import Mapped, MapPort, Unmapped, UnmapPorts
from igd.core.table import HOLD_DOWN, REMOTES
from igd.endpoints import port_control
from igd.endpoints.port_control import PortControl
from igd.firewall.backend import FirewallError
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.natpmp import AddressRequest, AddressResponse, MapRequest, MapResponse
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import Address, Filter, Options, PortSet
from tests.gateway_harness import C1, C1_HOST, C2, EXTERNAL, SERVER, GatewayHarness, peer
from tests.lab import Host

pytestmark = pytest.mark.root

STRANGER = IPv4Address("10.100.0.9")
SERVER6, C1_IPV6, C2_IPV6 = (IPv6Address(f"2001:db8::{number}") for number in (1, 2, 3))
NEW_EXTERNAL = IPv4Address("60.60.60.2")
ANY4, ANY6 = IPv4Address(0), IPv6Address(0)
TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
NONCE, OTHER = b"twelve bytes", b"twelve other"
EPOCH = 77
HOUR = 3600
WEEK = 604800


class Client:
    """A socket of a peer's; what is sent to it is kept until it is asked for."""

    def __init__(self, address: Address, port: int = 0, server: Address = SERVER) -> None:
        self.address = address
        self._server = (str(server), pcp.SERVER_PORT)
        self._socket = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003
        self._socket.bind((str(address), port))

    def send(self, datagram: bytes) -> None:
        """Send to the server."""
        self._socket.sendto(datagram, self._server)

    async def receive(self) -> bytes:
        """Wait for a datagram, which the server has sent from the port that it was asked at."""
        async with asyncio.timeout(5):
            datagram, source = await asyncio.get_running_loop().sock_recvfrom(self._socket, 4096)
        assert source[:2] == self._server
        return datagram

    async def ask(self, datagram: bytes) -> bytes:
        """Send and wait for the answer."""
        self.send(datagram)
        return await self.receive()

    async def by_natpmp(self, request: natpmp.Request) -> natpmp.Response | natpmp.OtherResponse:
        """Ask by NAT-PMP."""
        return natpmp.decode_response(await self.ask(natpmp.encode_request(request)))

    async def map(self, request: MapRequest) -> MapResponse:
        """Ask for a mapping by NAT-PMP."""
        response = await self.by_natpmp(request)
        assert isinstance(response, MapResponse)
        return response

    async def by_pcp(self, request: pcp.Request) -> pcp.Response | pcp.ErrorResponse:
        """Ask by PCP."""
        return pcp.decode_response(await self.ask(pcp.encode_request(request)))

    async def granted(self, request: pcp.Request) -> pcp.Response:
        """Ask by PCP for what is granted."""
        response = await self.by_pcp(request)
        assert isinstance(response, pcp.Response), response
        return response

    async def port(self, request: pcp.Request) -> int:
        """Ask by PCP for a mapping and tell its external port."""
        payload = (await self.granted(request)).payload
        assert isinstance(payload, Map)
        return payload.external_port

    async def result(self, request: pcp.Request) -> int:
        """Ask by PCP and tell how it ended."""
        response = await self.by_pcp(request)
        return 0 if isinstance(response, pcp.Response) else response.result

    def left(self) -> list[bytes]:
        """Give the datagrams that nobody has asked for."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(4096))
        return found

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@pytest.fixture(scope="module", autouse=True)
def ipv6(loopback: Host) -> None:
    for address in (SERVER6, C1_IPV6, C2_IPV6):
        loopback.run("ip", "addr", "add", f"{address}/128", "dev", "lo")


async def started(harness: GatewayHarness | None = None) -> GatewayHarness:
    """Start a harness whose peers have IPv6."""
    harness = harness or GatewayHarness()
    harness.peers.all = (
        peer("c1", "10.100.0.2/32", "192.168.7.0/24", f"{C1_IPV6}/128"),
        peer("c2", "10.100.0.3/32", f"{C2_IPV6}/128"),
    )
    return await harness.start()


@asynccontextmanager
async def serving(harness: GatewayHarness, *, third_party: bool = False) -> AsyncIterator[PortControl]:
    control = PortControl(harness.gateway, lambda: EPOCH, third_party=third_party)
    await control.open("lo", [SERVER, SERVER6])
    try:
        yield control
    finally:
        await control.close()


@pytest.fixture
async def harness() -> GatewayHarness:
    return await started()


@pytest.fixture
async def control(harness: GatewayHarness) -> AsyncIterator[PortControl]:
    async with serving(harness) as control:
        yield control


@pytest.fixture
def c1() -> Iterator[Client]:
    with contextlib.closing(Client(C1)) as client:
        yield client


@pytest.fixture
def c2() -> Iterator[Client]:
    with contextlib.closing(Client(C2)) as client:
        yield client


@pytest.fixture
def c1_ipv6() -> Iterator[Client]:
    with contextlib.closing(Client(C1_IPV6, server=SERVER6)) as client:
        yield client


served = pytest.mark.usefixtures("control")


async def counted(harness: GatewayHarness, what: str, count: int) -> None:
    """Wait until so many datagrams have ended so."""
    async with asyncio.timeout(5):
        while harness.gateway.counters["port control", what] < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


def pmp(port: int, wish: int = 0, lifetime: int = HOUR, protocol: TransportProtocol = TCP) -> MapRequest:
    return MapRequest(protocol, port, wish, lifetime)


def mapping(port: int, wish: int = 0, lifetime: int = HOUR, client: Address = C1, **options: Any) -> pcp.Request:  # noqa: ANN401
    """Give a request for a mapping by PCP; `nonce` and `protocol` are the opcode's, the rest are options."""
    nonce, protocol = options.pop("nonce", NONCE), options.pop("protocol", TCP)
    anywhere = options.pop("external", ANY4 if client.version == 4 else ANY6)
    payload = Map(nonce, protocol, port, wish, anywhere)
    return replace(pcp.Request(lifetime, client, payload), options=Options(**options))


def upnp(external: int, internal: int, lifetime: int = HOUR) -> MapPort:
    return MapPort(TCP, Endpoint(C1, internal), external, lifetime, "by UPnP")


def remotes_of(harness: GatewayHarness, key: Key) -> list[str]:
    return [str(remote) for remote in harness.table[key].mapping.remotes]


# NAT-PMP: RFC 6886


@served
async def test_natpmp_tells_the_external_address(harness: GatewayHarness, c1: Client) -> None:
    """§3.2."""
    assert await c1.by_natpmp(AddressRequest()) == AddressResponse(0, EPOCH, EXTERNAL)
    await harness.maintenance.set_addresses(None, [])
    assert await c1.by_natpmp(AddressRequest()) == AddressResponse(natpmp.Result.NETWORK_FAILURE, EPOCH, ANY4)
    assert await c1.map(pmp(80)) == MapResponse(TCP, natpmp.Result.NETWORK_FAILURE, EPOCH, 80, 0, 0)


@served
async def test_natpmp_maps_to_the_address_that_asks(harness: GatewayHarness, c1: Client) -> None:
    """§3.3: the packet says what is mapped, and where to."""
    assert await c1.map(pmp(5000, 6000)) == MapResponse(TCP, 0, EPOCH, 5000, 6000, HOUR)
    assert harness.table[TCP, 6000].mapping == PortMapping(TCP, 6000, Endpoint(C1, 5000), "c1", "NAT-PMP", (), b"")
    assert harness.all_equal()


@served
async def test_natpmp_without_a_wish_gets_the_internal_port_or_another(c1: Client, c2: Client) -> None:
    """§3.3."""
    assert (await c1.map(pmp(5000))).external_port == 5000
    assert (await c2.map(pmp(5000))).external_port not in {0, 5000}
    assert (await c2.map(pmp(5001, 80))).external_port >= 1024, "where the wish is not allowed"


@served
async def test_natpmp_gets_another_port_where_its_wish_is_taken(c1: Client, c2: Client) -> None:
    """§3.3."""
    await c1.map(pmp(5000, 6000))
    other = await c2.map(pmp(5000, 6000))
    assert other.result == 0
    assert other.external_port not in {0, 6000}


@served
@pytest.mark.parametrize("wish", [0, 6000, 7000])
async def test_natpmp_gets_the_mapping_that_is_there(harness: GatewayHarness, c1: Client, wish: int) -> None:
    """§3.3: whatever is suggested, and whichever of both has made it."""
    await c1.map(pmp(5000, 6000))
    await c1.granted(mapping(5001, 6001))
    harness.clock.now += 600
    for port in (5000, 5001):
        assert await c1.map(pmp(port, wish)) == MapResponse(TCP, 0, EPOCH, port, port + 1000, HOUR)
    assert len(harness.table) == 2


@served
async def test_natpmp_keeps_the_companion_port_for_the_same_client(c1: Client, c2: Client) -> None:
    """§3.3."""
    await c1.map(pmp(5000, 6000))
    assert (await c2.map(pmp(5000, 6000, protocol=UDP))).external_port != 6000
    assert (await c1.map(pmp(5000, 6000, protocol=UDP))).external_port == 6000


@served
@pytest.mark.parametrize(("asked", "granted"), [(60, 60), (7200, 7200), (2**32 - 1, WEEK)])
async def test_natpmp_lifetimes_are_bounded(c1: Client, asked: int, granted: int) -> None:
    """§3.3: the granted one may be less."""
    assert (await c1.map(pmp(5000, lifetime=asked))).lifetime == granted


@served
async def test_natpmps_mappings_end_with_their_lifetime(harness: GatewayHarness, c1: Client) -> None:
    """§3.3."""
    await c1.map(pmp(5000, lifetime=60))
    harness.clock.now += 61
    await harness.maintenance.wake()
    assert harness.table == {}
    assert harness.all_equal()


@served
@pytest.mark.parametrize("wish", [0, 5000, 9999])
async def test_natpmp_deletes_one(harness: GatewayHarness, c1: Client, wish: int) -> None:
    """§3.4: the suggested port is ignored; nothing there is a success."""
    for protocol in TransportProtocol:
        await c1.map(pmp(5000, protocol=protocol))
    for _ in range(2):
        assert await c1.map(pmp(5000, wish, 0)) == MapResponse(TCP, 0, EPOCH, 5000, 0, 0)
        assert list(harness.table) == [(UDP, 5000)]
    assert harness.all_equal()


@served
async def test_natpmp_deletes_all_of_a_protocol(harness: GatewayHarness, c1: Client, c2: Client) -> None:
    """§3.4: the client's own; what UPnP has opened is none of its business."""
    for port in (5000, 5001):
        await c1.map(pmp(port))
    await c1.granted(mapping(5002))
    await c1.map(pmp(5003, protocol=UDP))
    await c2.map(pmp(5004))
    await harness.ask(upnp(5005, 5005))
    for _ in range(2):
        assert await c1.map(pmp(0, 0, 0)) == MapResponse(TCP, 0, EPOCH, 0, 0, 0)
        assert sorted(harness.table) == [(TCP, 5004), (TCP, 5005), (UDP, 5003)]


@served
async def test_natpmp_maps_no_port_called_0(harness: GatewayHarness, c1: Client) -> None:
    """§3.4: that is all ports, and for deleting."""
    assert await c1.map(pmp(0, 6000)) == MapResponse(TCP, natpmp.Result.NOT_AUTHORIZED, EPOCH, 0, 0, 0)
    assert harness.table == {}


async def test_natpmps_failures_have_no_port_and_no_lifetime(c1: Client) -> None:
    """§3.5."""
    rules = (PortRule.parse("allow 6000-6001 0.0.0.0/0 5000-5001"),)
    harness = await started(GatewayHarness(Policy(rules, mappings_per_peer=1)))
    async with serving(harness):
        assert await c1.map(pmp(80, 80)) == MapResponse(TCP, natpmp.Result.NOT_AUTHORIZED, EPOCH, 80, 0, 0)
        assert (await c1.map(pmp(5000))).result == 0
        assert await c1.map(pmp(5001)) == MapResponse(TCP, natpmp.Result.OUT_OF_RESOURCES, EPOCH, 5001, 0, 0)
        harness.backend.fail_next = FirewallError("no kernel")
        assert await c1.map(pmp(5000)) == MapResponse(TCP, natpmp.Result.OUT_OF_RESOURCES, EPOCH, 5000, 0, 0)


@served
async def test_natpmp_is_told_of_an_opcode_that_is_none(c1: Client) -> None:
    """§3.5: the request comes back, with the top bit and code 5; what has the top bit is no request."""
    c1.send(bytes.fromhex("0081 0000 0000 0000 00000000"))
    answer = await c1.ask(bytes.fromhex("0003 0000 1388 1770 00000e10"))
    assert answer == bytes.fromhex("0083 0005 1388 1770 00000e10")
    assert c1.left() == []


@served
@pytest.mark.parametrize("version", [1, 3, 255])
async def test_another_version_is_told_of_pcps(c1: Client, version: int) -> None:
    """RFC 6887 §9: whoever knows neither of both is answered in PCP's words."""
    answer = pcp.decode_response(await c1.ask(bytes((version, 1)) + bytes(10)))
    assert isinstance(answer, pcp.ErrorResponse)
    assert answer.result == pcp.Result.UNSUPP_VERSION


@served
async def test_natpmp_over_ipv6_is_another_version(c1_ipv6: Client) -> None:
    """It has no IPv6; RFC 6887 §9."""
    answer = pcp.decode_response(await c1_ipv6.ask(natpmp.encode_request(pmp(5000))))
    assert isinstance(answer, pcp.ErrorResponse)
    assert answer.result == pcp.Result.UNSUPP_VERSION


# PCP: RFC 6887


@served
async def test_pcp_maps(harness: GatewayHarness, c1: Client) -> None:
    """§11.3, §11.4; §8.5: the epoch is in each answer."""
    granted = await c1.granted(mapping(5000, 6000))
    assert granted == pcp.Response(HOUR, EPOCH, Map(NONCE, TCP, 5000, 6000, EXTERNAL))
    assert harness.table[TCP, 6000].mapping == PortMapping(TCP, 6000, Endpoint(C1, 5000), "c1", "PCP", (), NONCE)
    assert harness.all_equal()


@served
async def test_pcp_gets_the_mapping_that_is_there(harness: GatewayHarness, c1: Client) -> None:
    """§11.3: whatever is suggested, and whichever of both has made it."""
    await c1.granted(mapping(5000, 6000))
    await c1.map(pmp(5001, 6001))
    for port, wish in ((5000, 0), (5000, 7000), (5001, 0), (5001, 7000)):
        assert await c1.port(mapping(port, wish)) == port + 1000
    assert len(harness.table) == 2


@served
async def test_pcps_nonce_guards_the_mapping(harness: GatewayHarness, c1: Client) -> None:
    """§11.3: another nonce neither renews it nor deletes it."""
    await c1.granted(mapping(5000))
    before = harness.table
    for lifetime in (0, 2 * HOUR):
        asked = mapping(5000, lifetime=lifetime, nonce=OTHER)
        refused = pcp.ErrorResponse(pcp.Result.NOT_AUTHORIZED, pcp.LONG, EPOCH, 1, asked.payload)
        assert await c1.by_pcp(asked) == refused
    assert await c1.result(mapping(0, lifetime=0, nonce=OTHER)) == pcp.Result.NOT_AUTHORIZED
    assert harness.table == before


@served
async def test_pcps_nonce_comes_to_what_natpmp_or_upnp_has_opened(c1: Client, harness: GatewayHarness) -> None:
    """§11.3 guards what has a nonce: who comes first gives it."""
    await c1.map(pmp(5000))
    await harness.ask(upnp(5001, 5001))
    for port in (5000, 5001):
        assert await c1.port(mapping(port)) == port
        assert await c1.result(mapping(port, nonce=OTHER)) == pcp.Result.NOT_AUTHORIZED
        assert await c1.result(mapping(port)) == 0


@served
@pytest.mark.parametrize(
    ("protocol", "port", "lifetime", "result"),
    [
        (0, 0, HOUR, pcp.Result.UNSUPP_PROTOCOL),
        (0, 5000, HOUR, pcp.Result.MALFORMED_REQUEST),
        (0, 5000, 0, pcp.Result.MALFORMED_REQUEST),
        (1, 5000, HOUR, pcp.Result.UNSUPP_PROTOCOL),
        (1, 0, HOUR, pcp.Result.UNSUPP_PROTOCOL),
        (132, 5000, HOUR, pcp.Result.UNSUPP_PROTOCOL),
        (132, 5000, 0, pcp.Result.UNSUPP_PROTOCOL),
        (6, 0, HOUR, pcp.Result.UNSUPP_PROTOCOL),
    ],
)
async def test_pcp_maps_tcp_and_udp_alone(  # noqa: PLR0913, PLR0917 - a row of the table
    harness: GatewayHarness, c1: Client, protocol: int, port: int, lifetime: int, result: pcp.Result
) -> None:
    """§11.3."""
    assert await c1.result(mapping(port, 6000, lifetime, protocol=protocol)) == result
    assert harness.table == {}


@served
@pytest.mark.parametrize("port", [5350, 5351])
async def test_the_ports_of_these_protocols_are_never_mapped(harness: GatewayHarness, c1: Client, port: int) -> None:
    """§11.3."""
    assert await c1.port(mapping(5000, port, protocol=UDP)) not in {0, port}
    assert (await c1.map(pmp(5001, port, protocol=UDP))).external_port not in {0, port}
    only = mapping(5002, port, protocol=UDP, prefer_failure=True)
    assert await c1.result(only) == pcp.Result.CANNOT_PROVIDE_EXTERNAL
    assert (UDP, port) not in harness.table


async def test_pcp_is_told_of_the_quota(c1: Client) -> None:
    """§7.4: for a short while."""
    async with serving(await started(GatewayHarness(Policy(mappings_per_peer=2)))):
        for port in (5000, 5001):
            await c1.granted(mapping(port))
        asked = mapping(5002)
        assert await c1.by_pcp(asked) == pcp.ErrorResponse(10, pcp.SHORT, EPOCH, 1, asked.payload)
        assert await c1.result(mapping(5001)) == 0


@served
async def test_pcp_without_an_external_address_is_told_of_the_network(harness: GatewayHarness, c1: Client) -> None:
    """§7.4."""
    await harness.maintenance.set_addresses(None, [])
    assert await c1.result(mapping(5000)) == pcp.Result.NETWORK_FAILURE


async def test_pcp_is_told_what_is_forbidden_and_what_has_run_out(c1: Client) -> None:
    """§7.4: CANNOT_PROVIDE_EXTERNAL is for those alone who ask for a port or none."""
    harness = await started(GatewayHarness(Policy((PortRule.parse("allow 6000-6000 0.0.0.0/0 5000-5001"),))))
    async with serving(harness):
        assert await c1.result(mapping(80, 80)) == pcp.Result.NOT_AUTHORIZED
        await c1.granted(mapping(5000))
        assert await c1.result(mapping(5001)) == pcp.Result.NO_RESOURCES
        harness.servers_own.add((TCP, 6000))
        assert await c1.result(mapping(5000)) == pcp.Result.NO_RESOURCES
        assert await c1.result(mapping(5000, 6000, prefer_failure=True)) == pcp.Result.CANNOT_PROVIDE_EXTERNAL


@served
@pytest.mark.parametrize(("asked", "granted"), [(1, 120), (120, 120), (HOUR, HOUR), (86400, 86400), (2**32 - 1, 86400)])
async def test_pcps_lifetimes_are_bounded(c1: Client, asked: int, granted: int) -> None:
    """§15."""
    assert (await c1.granted(mapping(5000, lifetime=asked))).lifetime == granted


@served
@pytest.mark.parametrize("lifetimes", [(HOUR, 86400), (86400, HOUR)])
async def test_pcps_renewals_only_lengthen(c1: Client, lifetimes: tuple[int, int]) -> None:
    """§11.3, §15: granted is what is told, and may be more than what was asked."""
    for lifetime in lifetimes:
        granted = await c1.granted(mapping(5000, lifetime=lifetime))
    assert granted.lifetime == 86400


@served
async def test_pcp_deletes_one(harness: GatewayHarness, c1: Client) -> None:
    """§15.1: nothing there is a success."""
    await c1.granted(mapping(5000, 6000))
    await c1.granted(mapping(5001))
    asked = mapping(5000, 6000, 0)
    for _ in range(2):
        assert await c1.by_pcp(asked) == pcp.Response(0, EPOCH, asked.payload)
        assert list(harness.table) == [(TCP, 5001)]
    assert harness.all_equal()


@served
@pytest.mark.parametrize(
    ("protocol", "left"),
    [
        (0, [(TCP, 5003), (TCP, 5004)]),
        (UDP, [(TCP, 5000), (TCP, 5001), (TCP, 5003), (TCP, 5004)]),
        (TCP, [(TCP, 5003), (TCP, 5004), (UDP, 5002)]),
    ],
)
async def test_pcp_deletes_all(
    harness: GatewayHarness, c1: Client, c2: Client, protocol: int, left: list[tuple[TransportProtocol, int]]
) -> None:
    """§15.1: of the asking address, with this nonce or none."""
    await c1.granted(mapping(5000))
    await c1.map(pmp(5001))
    await c1.granted(mapping(5002, protocol=UDP))
    await c1.granted(mapping(5003, nonce=OTHER))
    await c2.granted(mapping(5004, client=C2))
    for _ in range(2):
        assert await c1.result(mapping(0, lifetime=0, protocol=protocol)) in {0, pcp.Result.NOT_AUTHORIZED}
        assert sorted(harness.table) == left


@served
async def test_a_closed_port_is_held_for_its_former_holder(harness: GatewayHarness, c1: Client, c2: Client) -> None:
    """§15."""
    await c1.granted(mapping(5000, 6000))
    await c1.granted(mapping(5000, 6000, 0))
    other = mapping(5000, 6000, client=C2)
    assert await c2.result(replace(other, options=Options(prefer_failure=True))) == 11
    assert await c2.port(other) != 6000
    assert await c1.port(mapping(5000, 6000)) == 6000
    await c1.granted(mapping(5000, 6000, 0))
    harness.clock.now += HOLD_DOWN
    assert await c2.port(mapping(5001, 6000, client=C2)) == 6000


# §13.1, THIRD_PARTY


@served
@pytest.mark.parametrize("lifetime", [0, HOUR])
async def test_third_parties_are_off(harness: GatewayHarness, c1: Client, lifetime: int) -> None:
    assert await c1.result(mapping(5000, lifetime=lifetime, third_party=C1_HOST)) == pcp.Result.UNSUPP_OPTION
    assert harness.table == {}


async def test_third_parties_are_a_peers_own_where_they_are_on(harness: GatewayHarness, c1: Client, c2: Client) -> None:
    async with serving(harness, third_party=True):
        asked = mapping(5000, third_party=C1_HOST)
        assert (await c1.granted(asked)).options == asked.options
        assert harness.table[TCP, 5000].mapping.internal == Endpoint(C1_HOST, 5000)
        for foreign in (C2, SERVER, EXTERNAL, STRANGER, C2_IPV6):
            assert await c1.result(mapping(5001, third_party=foreign)) == pcp.Result.NOT_AUTHORIZED
        assert await c2.result(mapping(5000, client=C2, third_party=C1_HOST)) == pcp.Result.NOT_AUTHORIZED
        assert await c1.result(mapping(5001, third_party=C1)) == pcp.Result.MALFORMED_REQUEST
        assert await c2.result(mapping(5000, lifetime=0, client=C2, third_party=C1_HOST)) == pcp.Result.NOT_AUTHORIZED
        assert list(harness.table) == [(TCP, 5000)]
        assert await c1.result(mapping(5000, lifetime=0, third_party=C1_HOST)) == 0
        assert harness.table == {}


# §13.2, PREFER_FAILURE


@served
async def test_this_port_or_none(harness: GatewayHarness, c1: Client, c2: Client) -> None:
    await c2.granted(mapping(5000, 6000, client=C2))
    taken = mapping(5000, 6000, prefer_failure=True)
    assert await c1.by_pcp(taken) == pcp.ErrorResponse(11, pcp.SHORT, EPOCH, 1, taken.payload)
    assert await c1.result(mapping(5000, 0, prefer_failure=True)) == pcp.Result.MALFORMED_OPTION
    assert await c1.result(mapping(5000, 6001, prefer_failure=True, external=C1)) == 11
    free = mapping(5000, 6001, prefer_failure=True, external=EXTERNAL)
    granted = await c1.granted(free)
    assert granted.payload == free.payload
    assert granted.options == free.options
    assert await c1.result(mapping(5000, 6002, prefer_failure=True)) == 11, "it has another already"
    harness.servers_own.add((TCP, 6003))
    assert await c1.result(mapping(5003, 6003, prefer_failure=True)) == 11


# §13.3, FILTER


def remote(number: int, prefix_length: int = 128, port: int = 0) -> Filter:
    return Filter(prefix_length, port, IPv4Address(f"198.51.100.{number}"))


@served
async def test_filters_are_added_until_all_are_removed(harness: GatewayHarness, c1: Client) -> None:
    key = (TCP, 5000)
    asked = mapping(5000, filters=(remote(1), remote(0, 120, 443)))
    assert (await c1.granted(asked)).options == asked.options
    two = ["198.51.100.1/32", "198.51.100.0/24 port 443"]
    assert remotes_of(harness, key) == two
    await c1.granted(mapping(5000))
    assert remotes_of(harness, key) == two
    await c1.granted(mapping(5000, filters=(remote(2),)))
    assert remotes_of(harness, key) == [*two, "198.51.100.2/32"]
    await c1.granted(mapping(5000, filters=(remote(0, 0), remote(3))))
    assert remotes_of(harness, key) == ["198.51.100.3/32"]
    await c1.granted(mapping(5000, filters=(remote(0, 0),)))
    assert remotes_of(harness, key) == []
    assert harness.all_equal()


@served
async def test_too_many_filters(harness: GatewayHarness, c1: Client) -> None:
    most = tuple(map(remote, range(REMOTES)))
    assert await c1.result(mapping(5000, filters=(*most, remote(99)))) == pcp.Result.EXCESSIVE_REMOTE_PEERS
    assert harness.table == {}
    assert await c1.result(mapping(5000, filters=most)) == 0
    asked = mapping(5000, filters=(remote(99),))
    assert await c1.by_pcp(asked) == pcp.ErrorResponse(13, pcp.LONG, EPOCH, 1, asked.payload)
    assert len(remotes_of(harness, (TCP, 5000))) == REMOTES


@served
async def test_filters_that_make_no_sense(harness: GatewayHarness, c1: Client) -> None:
    for bad in (Filter(128, 0, C2_IPV6), remote(1, 95), remote(1, 1)):
        assert await c1.result(mapping(5000, filters=(bad,))) == pcp.Result.MALFORMED_OPTION
    assert await c1.result(mapping(5000, lifetime=0, filters=(remote(1),))) == pcp.Result.MALFORMED_OPTION
    assert harness.table == {}


# The rest of PCP


@served
async def test_an_announcement_can_be_asked_for(c1: Client, c1_ipv6: Client) -> None:
    """§14.1.1, §14.1.2."""
    for client in (c1, c1_ipv6):
        assert await client.by_pcp(pcp.Request(0, client.address, Announce())) == pcp.Response(0, EPOCH, Announce())


def flow(**fields: Any) -> bytes:  # noqa: ANN401
    """Give a request with the opcode PEER (§12.1): MAP's fields, and the remote peer's port and address."""
    asked = pcp.encode_request(mapping(5000, **fields))
    remote = bytes.fromhex("01bb 0000 00000000000000000000ffff c6336401")
    return asked[:1] + b"\x02" + asked[2:60] + remote + asked[60:]


@served
@pytest.mark.parametrize(
    "datagram",
    [flow(), flow()[:24], flow()[:60], flow(filters=(Filter(128, 0, EXTERNAL),)), flow(protocol=0)],
    ids=["whole", "a head only", "as long as a map", "with a filter", "of all protocols"],
)
async def test_peer_is_no_opcode_of_ours(harness: GatewayHarness, c1: Client, datagram: bytes) -> None:
    """§12; §8.2: that comes before all that is wrong inside."""
    refused = pcp.ErrorResponse(pcp.Result.UNSUPP_OPCODE, pcp.LONG, EPOCH, 2, None)
    assert pcp.decode_response(await c1.ask(datagram)) == refused
    assert harness.table == {}


@served
async def test_an_address_behind_a_nat_of_its_own_is_told(c1: Client) -> None:
    """§8.2."""
    assert await c1.result(mapping(5000, client=C2)) == pcp.Result.ADDRESS_MISMATCH


@served
async def test_libtorrent_gets_its_60_octets(c1: Client) -> None:
    for asked in (mapping(5000), mapping(5000, lifetime=0), mapping(5000, protocol=1)):
        assert len(await c1.ask(pcp.encode_request(asked))) == 60


@served
async def test_by_ipv6_a_pinhole_is_opened(harness: GatewayHarness, c1_ipv6: Client) -> None:
    """§11.4: outside, it has the address and the port that it has inside; §15.1: and it is deleted as any mapping."""
    wished = mapping(5000, 6000, client=C1_IPV6)
    assert await c1_ipv6.granted(wished) == pcp.Response(HOUR, EPOCH, Map(NONCE, TCP, 5000, 5000, C1_IPV6))
    expected = Pinhole(TCP, Endpoint(C1_IPV6, 5000), "c1", "PCP", (), NONCE)
    assert harness.table == {expected.key: harness.table[expected.key]}
    assert harness.table[expected.key].mapping == expected
    assert await c1_ipv6.result(replace(wished, options=Options(prefer_failure=True))) == 11
    assert await c1_ipv6.result(mapping(5000, client=C1_IPV6, nonce=OTHER)) == pcp.Result.NOT_AUTHORIZED
    filtered = mapping(5000, client=C1_IPV6, filters=(Filter(64, 0, C2_IPV6),))
    await c1_ipv6.granted(filtered)
    assert remotes_of(harness, expected.key) == ["2001:db8::/64"]
    four = mapping(5000, client=C1_IPV6, filters=(remote(1),))
    assert await c1_ipv6.result(four) == pcp.Result.MALFORMED_OPTION
    assert await c1_ipv6.result(mapping(5351, client=C1_IPV6, protocol=UDP)) == pcp.Result.NOT_AUTHORIZED
    assert await c1_ipv6.result(mapping(5000, 0, 0, C1_IPV6)) == 0
    assert harness.table == {}


# PORT_SET: RFC 7753


@served
async def test_a_row_of_ports(harness: GatewayHarness, c1: Client) -> None:
    """RFC 7753 §4.2; §4.4: it is renewed as it was asked for."""
    asked = mapping(5000, 7001, port_set=PortSet(8, 5000, parity=True))
    for _ in range(2):
        granted = await c1.granted(asked)
        assert isinstance(granted.payload, Map)
        first = granted.payload.external_port
        assert first % 2 == 0
        assert granted.options == asked.options
        assert {key[1]: entry.mapping.internal.port for key, entry in harness.table.items()} == {
            first + step: 5000 + step for step in range(8)
        }
    assert harness.all_equal()


@served
async def test_a_row_that_is_shorter_than_asked_for(harness: GatewayHarness, c1: Client) -> None:
    """RFC 7753 §4.2: the size is what was granted; one port is no row."""
    short = await c1.granted(mapping(65530, port_set=PortSet(65535, 65530)))
    assert short.options.port_set == PortSet(6, 65530)
    assert len(harness.table) == 6
    one = await c1.granted(mapping(5000, port_set=PortSet(1, 5000)))
    assert one.options.port_set is None
    both = mapping(5001, 6000, prefer_failure=True, port_set=PortSet(2, 5001))
    assert await c1.result(both) == pcp.Result.MALFORMED_OPTION


@served
async def test_a_row_lives_as_long_as_its_shortest_mapping(harness: GatewayHarness, c1: Client) -> None:
    """RFC 7753 §4.4: it has one lifetime."""
    await harness.ask(upnp(5000, 5000, 2 * HOUR))
    granted = await c1.granted(mapping(5000, port_set=PortSet(2, 5000)))
    assert granted.lifetime == HOUR


@served
async def test_a_row_of_pinholes(harness: GatewayHarness, c1_ipv6: Client) -> None:
    granted = await c1_ipv6.granted(mapping(5000, client=C1_IPV6, port_set=PortSet(4, 5000)))
    assert granted.options.port_set == PortSet(4, 5000)
    assert sorted(harness.table) == [(TCP, port, C1_IPV6) for port in range(5000, 5004)]


@served
async def test_a_row_is_deleted_as_a_whole(harness: GatewayHarness, c1: Client) -> None:
    """RFC 7753 §4.4."""
    await c1.granted(mapping(5000, port_set=PortSet(8, 5000)))
    assert await c1.result(mapping(5000, lifetime=0, port_set=PortSet(8, 5000))) == 0
    assert harness.table == {}


# Several protocols at once


@served
@pytest.mark.parametrize("closed_by_upnp", [False, True])
async def test_one_program_that_asks_both_ways_has_one_mapping(
    harness: GatewayHarness, c1: Client, *, closed_by_upnp: bool
) -> None:
    """Libtorrent asks UPnP and PCP at once for the same, and closes both."""
    shared, granted = await asyncio.gather(harness.ask(upnp(6881, 6881)), c1.granted(mapping(6881, 6881)))
    assert isinstance(shared, Mapped)
    assert granted == pcp.Response(HOUR, EPOCH, Map(NONCE, TCP, 6881, 6881, EXTERNAL))
    assert list(harness.table) == [(TCP, 6881)]
    if closed_by_upnp:
        assert isinstance(await harness.ask(UnmapPorts(TCP, 6881, 6881)), Unmapped)
    assert await c1.result(mapping(6881, 6881, 0)) == 0
    assert harness.table == {}
    assert harness.all_equal()


@served
async def test_one_listener_that_is_asked_for_at_two_ports_has_two_mappings(
    harness: GatewayHarness, c1: Client
) -> None:
    """Syncthing asks NAT-PMP for one external port and UPnP for another, for the same listener."""
    await harness.ask(upnp(31000, 22000))
    assert (await c1.map(pmp(22000, 32000))).external_port == 32000
    assert (await c1.map(pmp(22000, 32000))).external_port == 32000
    await harness.ask(upnp(31000, 22000))
    assert sorted(harness.table) == [(TCP, 31000), (TCP, 32000)]
    await c1.map(pmp(22000, 0, 0))
    assert list(harness.table) == [(TCP, 31000)]


@served
async def test_no_protocol_shortens_what_another_was_granted(harness: GatewayHarness, c1: Client) -> None:
    await harness.ask(upnp(5000, 5000, 0))
    before = harness.table[TCP, 5000].lease
    assert (await c1.granted(mapping(5000, lifetime=120))).lifetime == 86400, "as much as PCP can tell"
    assert (await c1.map(pmp(5000, lifetime=60))).lifetime == WEEK
    assert harness.table[TCP, 5000].lease == before
    await c1.granted(mapping(5001, lifetime=2 * HOUR))
    await c1.map(pmp(5001, lifetime=60))
    await harness.ask(upnp(5001, 5001, HOUR))
    assert harness.table[TCP, 5001].lease.remaining(harness.clock.now) == 2 * HOUR


# Who is answered, how often, and with how much


ONE_OF_EACH = [
    natpmp.encode_request(AddressRequest()),
    natpmp.encode_request(pmp(5000)),
    natpmp.encode_request(pmp(0)),
    *(
        pcp.encode_request(pcp.Request(HOUR, STRANGER, payload))
        for payload in (
            Announce(),
            Map(NONCE, 6, 5000, 0, ANY4),
            Map(NONCE, 1, 5000, 0, ANY4),
        )
    ),
]


@served
@pytest.mark.parametrize("datagram", ONE_OF_EACH)
async def test_who_is_no_peer_is_not_authorized(harness: GatewayHarness, datagram: bytes) -> None:
    with contextlib.closing(Client(STRANGER)) as stranger:
        answer = await stranger.ask(datagram)
    told = natpmp.decode_response(answer) if natpmp.is_natpmp(datagram) else pcp.decode_response(answer)
    assert isinstance(told, (AddressResponse, MapResponse, pcp.ErrorResponse))
    assert told.result == 2, "which is NOT_AUTHORIZED in both"
    assert harness.table == {}


@served
async def test_while_the_peers_cannot_be_read_clients_are_told_to_come_again(
    harness: GatewayHarness, c1: Client
) -> None:
    harness.peers.trouble = OSError("no such device")
    assert (await c1.map(pmp(5000))).result == natpmp.Result.OUT_OF_RESOURCES
    assert await c1.result(mapping(5000)) == pcp.Result.NO_RESOURCES


async def test_who_asks_too_often_hears_nothing(c1: Client, c2: Client) -> None:
    harness = await started(GatewayHarness(rate=3))
    async with serving(harness):
        for number in range(10):
            c1.send(natpmp.encode_request(pmp(5000 + number)))
        await counted(harness, "dropped", 7)
        for _ in range(3):
            await c1.receive()
        assert c1.left() == []
        assert len(harness.table) == 3
        assert (await c2.map(pmp(5000, 6000))).result == 0, "another peer is not concerned"


async def test_requests_under_way_are_bounded(c1: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_control, "PENDING", 3)
    harness = await started()
    opened, peers = asyncio.Event(), harness.peers.peers

    async def slow() -> Peers:
        await opened.wait()
        return await peers()

    monkeypatch.setattr(harness.peers, "peers", slow)
    async with serving(harness):
        for _ in range(5):
            c1.send(natpmp.encode_request(AddressRequest()))
        await counted(harness, "dropped", 2)
        opened.set()
        for _ in range(3):
            await c1.receive()
        assert (await c1.by_natpmp(AddressRequest())) == AddressResponse(0, EPOCH, EXTERNAL)
        assert c1.left() == []


async def test_requests_under_way_end_with_us(c1: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = await started()
    asked, never = asyncio.Event(), asyncio.Event()

    async def endless() -> Peers:
        asked.set()
        await never.wait()
        raise AssertionError("never")

    monkeypatch.setattr(harness.peers, "peers", endless)
    async with serving(harness):
        c1.send(natpmp.encode_request(AddressRequest()))
        async with asyncio.timeout(5):
            await asked.wait()
    assert c1.left() == []


@served
async def test_two_sockets_of_one_address_hear_what_each_asked_for(c1: Client) -> None:
    with contextlib.closing(Client(C1)) as another:
        c1.send(natpmp.encode_request(pmp(5000)))
        assert (await another.map(pmp(5001))).internal_port == 5001
        first = natpmp.decode_response(await c1.receive())
        assert isinstance(first, MapResponse)
        assert first.internal_port == 5000
        assert c1.left() == another.left() == []


async def test_a_port_that_is_taken_is_named() -> None:
    harness = await started()
    async with serving(harness):
        with pytest.raises(OSError, match=r"UDP 10\.100\.0\.1 port 5351: Address already in use"):
            await PortControl(harness.gateway, lambda: EPOCH, third_party=False).open("lo", [SERVER])


SOUND = [
    *ONE_OF_EACH,
    pcp.encode_request(mapping(5000, 6000)),
    pcp.encode_request(mapping(5000, 6000, 0)),
    pcp.encode_request(mapping(5001, 6001, filters=(remote(1), remote(0, 0)), port_set=PortSet(3, 5001))),
    pcp.encode_request(mapping(5002, 6002, third_party=C1_HOST, prefer_failure=True)),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    datagram = bytearray(draw(st.sampled_from(SOUND)))
    for _ in range(draw(st.integers(0, 3))):
        datagram[draw(st.integers(0, len(datagram) - 1))] = draw(st.integers(0, 255))
    return bytes(datagram[: draw(st.integers(0, 200))])


junk = st.one_of(st.binary(max_size=1300), mutated(), st.builds(bytes.__add__, st.sampled_from(SOUND), st.binary()))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(junk, max_size=30))
def test_whatever_comes_the_endpoint_lives_and_does_not_amplify(datagrams: list[bytes]) -> None:
    asyncio.run(pelted(datagrams))


async def pelted(datagrams: list[bytes]) -> None:
    """Send all this, then something sound; nothing may have raised, nor any answer be longer than is allowed."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    harness = await started()
    async with serving(harness, third_party=True) as control:
        with contextlib.closing(Client(C1)) as client:
            for datagram in datagrams:
                client.send(datagram)
            with contextlib.closing(Client(C2)) as last:
                assert await last.by_natpmp(AddressRequest()) == AddressResponse(0, EPOCH, EXTERNAL)
            async with asyncio.timeout(5):
                while control._tasks:  # noqa: SLF001, ASYNC110 - nobody tells
                    await asyncio.sleep(0)
            answers = client.left()
    gc.collect()  # what a task has raised is told when it is forgotten
    assert troubles == []
    assert len(answers) <= len(datagrams)
    longest = [min(pcp.LONGEST_MESSAGE, max(24, len(datagram) + 3)) for datagram in datagrams]
    assert sum(map(len, answers)) <= sum(longest)
    assert harness.all_equal()
    await harness.ledger.close()


# What nobody asks for


@pytest.fixture
def ear() -> Iterator[Client]:
    """Hear what c1 is told unasked."""
    with contextlib.closing(Client(C1, pcp.CLIENT_PORT)) as client:
        yield client


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Do not wait between announcements, but say how long that would have been."""
    found: list[float] = []
    sleep = asyncio.sleep

    async def at_once(seconds: float) -> None:
        if seconds >= port_control.FIRST_INTERVAL:
            found.append(seconds)
            seconds = 0
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", at_once)
    return found


def address_of(datagram: bytes) -> IPv4Address:
    told = natpmp.decode_response(datagram)
    assert isinstance(told, AddressResponse)
    assert told.result == 0
    return told.address


RESTARTED = pcp.encode_response(pcp.Response(0, EPOCH, Announce()))


async def test_live_peers_hear_ten_times_where_and_since_when_we_are(
    harness: GatewayHarness, control: PortControl, ear: Client, pauses: list[float]
) -> None:
    """RFC 6886 §3.2.1, RFC 6887 §14.1.3: a quarter of a second, and then twice as long each time."""
    harness.peers.shaken = {"c1": harness.clock.now, "c2": harness.clock.now - 10000}
    with contextlib.closing(Client(C2, pcp.CLIENT_PORT)) as silent:
        control.announce(lost=True)
        for _ in range(10):
            assert await ear.receive() == RESTARTED
            assert address_of(await ear.receive()) == EXTERNAL
        async with asyncio.timeout(5):
            while len(pauses) < 10:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
        assert pauses == [0.25 * 2**number for number in range(10)]
        assert ear.left() == silent.left() == []


async def test_a_new_address_is_announced_and_told_to_those_who_have_mappings(
    harness: GatewayHarness, control: PortControl, c1: Client, c1_ipv6: Client, ear: Client
) -> None:
    """RFC 6887 §14.2: by the answer to the request that was made with this nonce; NAT-PMP's and UPnP's have none."""
    await c1.granted(mapping(5000, 6000))
    await c1.map(pmp(5001))
    await harness.ask(upnp(5002, 5002))
    await c1_ipv6.granted(mapping(5003, client=C1_IPV6))
    harness.clock.now += 600
    harness.peers.shaken = {"c1": harness.clock.now}
    await harness.maintenance.set_addresses(NEW_EXTERNAL, [NEW_EXTERNAL])
    with contextlib.closing(Client(C1_IPV6, pcp.CLIENT_PORT, SERVER6)) as ear6:
        control.announce(lost=True)
        assert await ear.receive() == RESTARTED
        assert address_of(await ear.receive()) == NEW_EXTERNAL
        told = Map(NONCE, TCP, 5000, 6000, NEW_EXTERNAL)
        assert pcp.decode_response(await ear.receive()) == pcp.Response(HOUR - 600, EPOCH, told)
        assert await ear6.receive() == RESTARTED
        pinhole = Map(NONCE, TCP, 5003, 5003, C1_IPV6)
        assert pcp.decode_response(await ear6.receive()) == pcp.Response(HOUR - 600, EPOCH, pinhole)
        assert ear.left() == []


async def test_who_has_lost_nothing_does_not_make_clients_ask_again(
    harness: GatewayHarness, control: PortControl, ear: Client
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    control.announce(lost=False)
    assert address_of(await ear.receive()) == EXTERNAL
    assert ear.left() == []


async def test_an_address_that_is_lost_is_not_announced(
    harness: GatewayHarness, control: PortControl, ear: Client
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    await harness.maintenance.set_addresses(None, [])
    control.announce(lost=True)
    assert await ear.receive() == RESTARTED
    assert ear.left() == []


async def test_a_second_announcement_takes_the_place_of_the_first(
    harness: GatewayHarness, control: PortControl, ear: Client, pauses: list[float]
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    control.announce(lost=True)
    assert await ear.receive() == RESTARTED
    control.announce(lost=True)
    async with asyncio.timeout(5):
        while pauses.count(0.25 * 2**9) < 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
    assert pauses.count(0.25 * 2**9) == 1
    assert len(ear.left()) >= 20


async def test_trouble_with_an_announcement_does_not_end_the_others(
    harness: GatewayHarness, control: PortControl, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    harness.peers.trouble = OSError("no such device")
    control.announce(lost=True)
    async with asyncio.timeout(5):
        while not pauses:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
    harness.peers.trouble = None
    assert "not announced: no such device" in caplog.text
    with contextlib.closing(Client(C1, pcp.CLIENT_PORT)) as ear:
        assert await ear.receive() == RESTARTED


async def test_an_announcement_that_nobody_hears_is_no_trouble(
    harness: GatewayHarness, control: PortControl, c1: Client, pauses: list[float]
) -> None:
    """The kernel answers with "port unreachable"."""
    harness.peers.shaken = {"c1": harness.clock.now}
    control.announce(lost=True)
    async with asyncio.timeout(5):
        while len(pauses) < 5:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
    assert (await c1.map(pmp(5000))).result == 0
