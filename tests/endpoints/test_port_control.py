"""NAT-PMP and PCP, clause by clause: a real endpoint and a real gateway with a pretended firewall."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igd.core.mapping import (
    BY_INTERNAL_ENDPOINT,
    Claim,
    ControlProtocol,
    Endpoint,
    Key,
    Pinhole,
    PortMapping,
    TransportProtocol,
)
from igd.core.peers import Peers
from igd.core.policies import Policies
from igd.core.policy import Policy, PortRule
from igd.core.request import Mapped, MapPort, Refusal, Unmapped, UnmapPorts
from igd.core.table import HOLD_DOWN, MAX_REMOTES
from igd.endpoints import port_control, sockets
from igd.endpoints.port_control import PortControl
from igd.firewall.backend import FirewallError
from igd.operator.mapping_requests import MappingRequests
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.natpmp import AddressRequest, MapRequest
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import Address, Filter, Options, PortSet
from tests.gateway_harness import C1, C1_HOST, C2, EXTERNAL, SERVER, GatewayHarness, peer
from tests.lab import PATIENCE, Host, await_ipv6
from tests.wire.pcp import client_codec
from tests.wire.pcp.client_codec import (
    AddressResponse,
    ErrorResponse,
    MapResponse,
    NatpmpResponse,
    PcpResponse,
    Response,
)

pytestmark = pytest.mark.root

STRANGER = IPv4Address("10.100.0.9")
SERVER6, C1_IPV6, C2_IPV6 = (IPv6Address(f"2001:db8::{number}") for number in (1, 2, 3))
NEW_EXTERNAL = IPv4Address("60.60.60.2")
ANY4, ANY6 = IPv4Address(0), IPv6Address(0)
TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
NONCE, OTHER = b"twelve bytes", b"twelve other"
CLAIM = Claim(by_internal=True, nonce=NONCE)
EPOCH = 77
HOUR = 3600
WEEK = 604800


class Client:
    """A peer's socket."""

    def __init__(self, address: Address, port: int = 0, server: Address = SERVER) -> None:
        self.address = address
        self._server = (str(server), pcp.SERVER_PORT)
        self._socket = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 - setblocking has no keyword
        self._socket.bind((str(address), port))

    def send(self, datagram: bytes) -> None:
        """Send to the server."""
        self._socket.sendto(datagram, self._server)

    async def receive(self) -> bytes:
        """Wait for a datagram from the server's address and port."""
        async with asyncio.timeout(PATIENCE):
            datagram, source = await asyncio.get_running_loop().sock_recvfrom(self._socket, 4096)
        assert source[:2] == self._server
        return datagram

    async def exchange(self, datagram: bytes) -> bytes:
        """Send a datagram and wait for the response."""
        self.send(datagram)
        return await self.receive()

    async def by_natpmp(self, request: natpmp.Request) -> NatpmpResponse:
        """Send a NAT-PMP request and return the response."""
        return client_codec.decode_natpmp(await self.exchange(client_codec.encode(request)))

    async def map(self, request: MapRequest) -> MapResponse:
        """Send a NAT-PMP mapping request and return the response."""
        response = await self.by_natpmp(request)
        assert isinstance(response, MapResponse)
        return response

    async def by_pcp(self, request: pcp.Request) -> PcpResponse:
        """Send a PCP request and return the response."""
        return client_codec.decode_pcp(await self.exchange(client_codec.encode(request)))

    async def granted(self, request: pcp.Request) -> Response:
        """Send a PCP request and return the success response."""
        response = await self.by_pcp(request)
        assert isinstance(response, Response), response
        return response

    async def port(self, request: pcp.Request) -> int:
        """Send a PCP mapping request and return the assigned external port."""
        payload = (await self.granted(request)).payload
        assert isinstance(payload, Map)
        return payload.external_port

    async def result(self, request: pcp.Request) -> int:
        """Send a PCP request and return the result code."""
        response = await self.by_pcp(request)
        return 0 if isinstance(response, Response) else response.result

    def unread(self) -> list[bytes]:
        """Return the datagrams that were not received yet."""
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
        loopback.run("ip", "addr", "add", f"{address}/128", "dev", "lo", "nodad")
    with loopback.entered():
        await_ipv6()


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
    control = PortControl("lo", harness.gateway, lambda: EPOCH, third_party=third_party)
    assert await control.listen_on([ip_interface(SERVER), ip_interface(SERVER6)]) == []
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
    """Wait until the counter `what` has reached `count`."""
    async with asyncio.timeout(PATIENCE):
        while harness.gateway.counters["port control", what] < count:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.001)


def pmp(port: int, suggested: int = 0, lifetime: int = HOUR, protocol: TransportProtocol = TCP) -> MapRequest:
    return MapRequest(protocol, port, suggested, lifetime)


def mapping(port: int, suggested: int = 0, lifetime: int = HOUR, client: Address = C1, **options: Any) -> pcp.Request:  # noqa: ANN401 - options of different types
    """Return a PCP mapping request; `nonce`, `protocol` and `external` are MAP's fields, the rest are options."""
    nonce, protocol = options.pop("nonce", NONCE), options.pop("protocol", TCP)
    external = options.pop("external", ANY4 if client.version == 4 else ANY6)
    payload = Map(nonce, protocol, port, suggested, external)
    return replace(pcp.Request(lifetime, client, payload), options=Options(**options))


def upnp(external: int, internal: int, lifetime: int = HOUR) -> MapPort:
    return MapPort(TCP, Endpoint(C1, internal), external, lifetime, "by UPnP")


def remotes_of(harness: GatewayHarness, key: Key) -> list[str]:
    return [str(remote) for remote in harness.table[key].mapping.remotes]


# NAT-PMP: RFC 6886


@served
async def test_natpmp_returns_the_external_address(harness: GatewayHarness, c1: Client) -> None:
    """§3.2."""
    assert await c1.by_natpmp(AddressRequest()) == AddressResponse(0, EPOCH, EXTERNAL)
    await harness.maintenance.set_addresses(None, [])
    assert await c1.by_natpmp(AddressRequest()) == AddressResponse(natpmp.Result.NETWORK_FAILURE, EPOCH, ANY4)
    assert await c1.map(pmp(80)) == MapResponse(TCP, natpmp.Result.NETWORK_FAILURE, EPOCH, 80, 0, 0)


@served
async def test_natpmp_maps_to_the_source_address(harness: GatewayHarness, c1: Client) -> None:
    """§3.3: the internal address is the source of the packet."""
    assert await c1.map(pmp(5000, 6000)) == MapResponse(TCP, 0, EPOCH, 5000, 6000, HOUR)
    assert harness.table[TCP, 6000].mapping == PortMapping(
        TCP, 6000, Endpoint(C1, 5000), "c1", "NAT-PMP", (), BY_INTERNAL_ENDPOINT
    )
    assert harness.all_equal()


@served
async def test_natpmp_without_a_suggested_port_gets_the_internal_port_or_another(c1: Client, c2: Client) -> None:
    """§3.3."""
    assert (await c1.map(pmp(5000))).external_port == 5000
    assert (await c2.map(pmp(5000))).external_port not in {0, 5000}
    assert (await c2.map(pmp(5001, 80))).external_port >= 1024, "the suggested port is forbidden"


@served
async def test_natpmp_gets_another_port_if_the_suggested_one_is_taken(c1: Client, c2: Client) -> None:
    """§3.3."""
    await c1.map(pmp(5000, 6000))
    other = await c2.map(pmp(5000, 6000))
    assert other.result == 0
    assert other.external_port not in {0, 6000}


@served
@pytest.mark.parametrize("suggested", [0, 6000, 7000])
async def test_natpmp_renews_the_existing_mapping(harness: GatewayHarness, c1: Client, suggested: int) -> None:
    """§3.3: whatever port is suggested, and whichever protocol made the mapping."""
    await c1.map(pmp(5000, 6000))
    await c1.granted(mapping(5001, 6001))
    harness.clock.now += 600
    for port in (5000, 5001):
        assert await c1.map(pmp(port, suggested)) == MapResponse(TCP, 0, EPOCH, port, port + 1000, HOUR)
    assert len(harness.table) == 2


@served
async def test_natpmp_keeps_the_companion_port_for_the_same_client(c1: Client, c2: Client) -> None:
    """§3.3."""
    await c1.map(pmp(5000, 6000))
    assert (await c2.map(pmp(5000, 6000, protocol=UDP))).external_port != 6000
    assert (await c1.map(pmp(5000, 6000, protocol=UDP))).external_port == 6000


@served
@pytest.mark.parametrize(("requested", "granted"), [(60, 60), (7200, 7200), (2**32 - 1, WEEK)])
async def test_natpmp_lifetimes_are_bounded(c1: Client, requested: int, granted: int) -> None:
    """§3.3: a shorter lifetime may be granted."""
    assert (await c1.map(pmp(5000, lifetime=requested))).lifetime == granted


@served
async def test_natpmp_mappings_end_with_their_lifetime(harness: GatewayHarness, c1: Client) -> None:
    """§3.3."""
    await c1.map(pmp(5000, lifetime=60))
    harness.clock.now += 61
    await harness.maintenance.wake()
    assert harness.table == {}
    assert harness.all_equal()


@served
@pytest.mark.parametrize("suggested", [0, 5000, 9999])
async def test_natpmp_deletes_one(harness: GatewayHarness, c1: Client, suggested: int) -> None:
    """§3.4: the suggested port is ignored; a deletion without a mapping succeeds."""
    for protocol in TransportProtocol:
        await c1.map(pmp(5000, protocol=protocol))
    for _ in range(2):
        assert await c1.map(pmp(5000, suggested, 0)) == MapResponse(TCP, 0, EPOCH, 5000, 0, 0)
        assert list(harness.table) == [(UDP, 5000)]
    assert harness.all_equal()


@served
async def test_natpmp_deletes_all_of_a_protocol(harness: GatewayHarness, c1: Client, c2: Client) -> None:
    """§3.4: only the client's own, and none that UPnP made."""
    for port in (5000, 5001):
        await c1.map(pmp(port))
    await c1.granted(mapping(5002))
    await c1.map(pmp(5003, protocol=UDP))
    await c2.map(pmp(5004))
    await harness.ask(upnp(5005, 5005))
    for _ in range(2):
        assert await c1.map(pmp(0, 0, 0)) == MapResponse(TCP, 0, EPOCH, 0, 0, 0)
        assert sorted(harness.table) == [(TCP, 5004), (TCP, 5005), (UDP, 5003)]


# NAT-PMP with internal port 0: a port of the gateway's choice


async def chosen(client: Client, protocol: TransportProtocol = UDP, suggested: int = 0, lifetime: int = 60) -> int:
    """Request a port with internal port 0, as gluetun and natpmpc do, and return it."""
    response = await client.map(MapRequest(protocol, 0, suggested, lifetime))
    assert response == MapResponse(protocol, 0, EPOCH, 0, response.external_port, lifetime)
    return response.external_port


@served
async def test_natpmp_internal_port_0_gets_one_port_for_both_protocols(harness: GatewayHarness, c1: Client) -> None:
    response = await c1.exchange(bytes.fromhex("0001 0000 0000 0000 0000003c"))
    port = int.from_bytes(response[10:12])
    assert port >= 1024
    assert response.hex() == f"00810000{EPOCH:08x}0000{port:04x}0000003c"
    response = await c1.exchange(bytes.fromhex("0002 0000 0000 0000 0000003c"))
    assert response.hex() == f"00820000{EPOCH:08x}0000{port:04x}0000003c"
    assert {entry.mapping.internal for entry in harness.table.values()} == {Endpoint(C1, port)}
    assert harness.table.keys() == {(UDP, port), (TCP, port)}
    assert harness.all_equal()


@served
async def test_natpmp_internal_port_0_is_renewed(harness: GatewayHarness, c1: Client) -> None:
    ports = [await chosen(c1, protocol) for protocol in (UDP, TCP)]
    port = ports[0]
    for protocol in (UDP, TCP):
        for internal, suggested in ((0, 0), (0, 1), (0, port), (port, port), (port, 0)):
            harness.clock.now += 45
            response = await c1.map(MapRequest(protocol, internal, suggested, 60))
            assert response == MapResponse(protocol, 0, EPOCH, internal, port, 60)
            await c1.map(MapRequest(protocol.companion, 0, 0, 60))
            await harness.maintenance.wake()
    assert harness.table.keys() == {(UDP, port), (TCP, port)}
    harness.clock.now += 61
    await harness.maintenance.wake()
    assert harness.table == {}


@served
async def test_natpmp_internal_port_0_for_two_hosts_at_once(c1: Client, c2: Client) -> None:
    for client in (c1, c2):
        client.send(client_codec.encode(MapRequest(UDP, 0, 0, 60)))
    answers = [client_codec.decode_natpmp(await client.receive()) for client in (c1, c2)]
    ports = [answer.external_port for answer in answers if isinstance(answer, MapResponse)]
    assert len(set(ports)) == 2
    assert [await chosen(client, TCP) for client in (c2, c1)] == ports[::-1]


@served
async def test_natpmp_internal_port_0_is_reserved_for_the_other_protocol(
    harness: GatewayHarness, c1: Client, c2: Client
) -> None:
    port = await chosen(c1)
    assert await harness.ask(replace(upnp(port, port), internal=Endpoint(C2, port)), C2) is Refusal.CONFLICT
    assert (await c2.map(pmp(port))).external_port not in {0, port}
    assert await chosen(c2, TCP, port) != port
    assert await chosen(c1, TCP, port) == port


@served
@pytest.mark.parametrize("all_", [False, True])
async def test_natpmp_internal_port_0_is_deleted(harness: GatewayHarness, c1: Client, all_: bool) -> None:
    port = await chosen(c1)
    assert await chosen(c1, TCP) == port
    internal = 0 if all_ else port
    assert await c1.map(pmp(internal, 0, 0)) == MapResponse(TCP, 0, EPOCH, internal, 0, 0)
    assert harness.table.keys() == {(UDP, port)}
    assert await chosen(c1, TCP) == port, "the port of the other protocol"


@served
async def test_natpmp_internal_port_0_beside_a_client_that_maps_the_port_itself(
    harness: GatewayHarness, c1: Client
) -> None:
    """A torrent client is told to listen at the port, and maps it by UPnP and PCP."""
    port = await chosen(c1, TCP)
    assert isinstance(await harness.ask(replace(upnp(port, port), description="torrent")), Mapped)
    assert await c1.port(mapping(port)) == port
    assert (await c1.map(MapRequest(TCP, 0, 1, 60))).external_port == port
    assert (await c1.map(MapRequest(UDP, 0, 1, 60))).external_port == port


async def test_natpmp_errors_have_no_port_and_no_lifetime(c1: Client) -> None:
    """§3.5."""
    rules = (PortRule.parse("allow 6000-6001 0.0.0.0/0 5000-5001"),)
    harness = await started(GatewayHarness(Policy(rules, max_mappings=1)))
    async with serving(harness):
        assert await c1.map(pmp(80, 80)) == MapResponse(TCP, natpmp.Result.NOT_AUTHORIZED, EPOCH, 80, 0, 0)
        assert (await c1.map(pmp(5000))).result == 0
        assert await c1.map(pmp(5001)) == MapResponse(TCP, natpmp.Result.OUT_OF_RESOURCES, EPOCH, 5001, 0, 0)
        harness.backend.fail_next = FirewallError("no kernel")
        assert await c1.map(pmp(5000)) == MapResponse(TCP, natpmp.Result.OUT_OF_RESOURCES, EPOCH, 5000, 0, 0)


@served
async def test_natpmp_responds_to_an_unknown_opcode(c1: Client) -> None:
    """§3.5: with a copy of the request, the top bit and code 5; a datagram with the top bit is dropped."""
    c1.send(bytes.fromhex("0081 0000 0000 0000 00000000"))
    response = await c1.exchange(bytes.fromhex("0003 0000 1388 1770 00000e10"))
    assert response == bytes.fromhex("0083 0005 1388 1770 00000e10")
    assert c1.unread() == []


@served
@pytest.mark.parametrize("version", [1, 3, 255])
async def test_another_version_gets_an_error_of_pcp(c1: Client, version: int) -> None:
    """RFC 6887 §9: a version that neither protocol has gets PCP's UNSUPP_VERSION."""
    response = client_codec.decode_pcp(await c1.exchange(bytes((version, 1)) + bytes(10)))
    assert isinstance(response, ErrorResponse)
    assert response.result == pcp.Result.UNSUPP_VERSION


@served
async def test_natpmp_over_ipv6_is_an_unsupported_version(c1_ipv6: Client) -> None:
    """NAT-PMP has no IPv6 (RFC 6887 §9)."""
    response = client_codec.decode_pcp(await c1_ipv6.exchange(client_codec.encode(pmp(5000))))
    assert isinstance(response, ErrorResponse)
    assert response.result == pcp.Result.UNSUPP_VERSION


# PCP: RFC 6887


@served
async def test_pcp_maps(harness: GatewayHarness, c1: Client) -> None:
    """§11.3, §11.4; §8.5: each response has the epoch."""
    granted = await c1.granted(mapping(5000, 6000))
    assert granted == Response(HOUR, EPOCH, Map(NONCE, TCP, 5000, 6000, EXTERNAL))
    assert harness.table[TCP, 6000].mapping == PortMapping(TCP, 6000, Endpoint(C1, 5000), "c1", "PCP", (), CLAIM)
    assert harness.all_equal()


@served
async def test_pcp_renews_the_existing_mapping(harness: GatewayHarness, c1: Client) -> None:
    """§11.3: whatever port is suggested, and whichever protocol made the mapping."""
    await c1.granted(mapping(5000, 6000))
    await c1.map(pmp(5001, 6001))
    for port, suggested in ((5000, 0), (5000, 7000), (5001, 0), (5001, 7000)):
        assert await c1.port(mapping(port, suggested)) == port + 1000
    assert len(harness.table) == 2


@served
async def test_the_nonce_guards_the_mapping(harness: GatewayHarness, c1: Client) -> None:
    """§11.3: another nonce neither renews nor deletes it."""
    await c1.granted(mapping(5000))
    before = harness.table
    for lifetime in (0, 2 * HOUR):
        request = mapping(5000, lifetime=lifetime, nonce=OTHER)
        error = ErrorResponse(pcp.Result.NOT_AUTHORIZED, pcp.LONG_LIFETIME, EPOCH, 1, request.payload)
        assert await c1.by_pcp(request) == error
    assert await c1.result(mapping(0, lifetime=0, nonce=OTHER)) == pcp.Result.NOT_AUTHORIZED
    assert harness.table == before


@served
async def test_the_first_nonce_guards_a_mapping_of_natpmp_or_upnp(c1: Client, harness: GatewayHarness) -> None:
    """§11.3: the first PCP request for it sets its nonce."""
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
async def test_pcp_maps_tcp_and_udp_only(
    harness: GatewayHarness, c1: Client, protocol: int, port: int, lifetime: int, result: pcp.Result
) -> None:
    """§11.3."""
    assert await c1.result(mapping(port, 6000, lifetime, protocol=protocol)) == result
    assert harness.table == {}


@served
@pytest.mark.parametrize("port", [5350, 5351])
async def test_ports_5350_and_5351_are_never_mapped(harness: GatewayHarness, c1: Client, port: int) -> None:
    """§11.3."""
    assert await c1.port(mapping(5000, port, protocol=UDP)) not in {0, port}
    assert (await c1.map(pmp(5001, port, protocol=UDP))).external_port not in {0, port}
    only = mapping(5002, port, protocol=UDP, prefer_failure=True)
    assert await c1.result(only) == pcp.Result.CANNOT_PROVIDE_EXTERNAL
    assert (UDP, port) not in harness.table


async def test_pcp_beyond_the_quota_gets_user_ex_quota(c1: Client) -> None:
    """§7.4: a short lifetime error."""
    async with serving(await started(GatewayHarness(Policy(max_mappings=2)))):
        for port in (5000, 5001):
            await c1.granted(mapping(port))
        request = mapping(5002)
        assert await c1.by_pcp(request) == ErrorResponse(10, pcp.SHORT_LIFETIME, EPOCH, 1, request.payload)
        assert await c1.result(mapping(5001)) == 0


@served
async def test_pcp_without_an_external_address_gets_network_failure(harness: GatewayHarness, c1: Client) -> None:
    """§7.4."""
    await harness.maintenance.set_addresses(None, [])
    assert await c1.result(mapping(5000)) == pcp.Result.NETWORK_FAILURE


async def test_pcp_results_for_forbidden_and_exhausted_ports(c1: Client) -> None:
    """§7.4: CANNOT_PROVIDE_EXTERNAL is only for requests with PREFER_FAILURE."""
    harness = await started(GatewayHarness(Policy((PortRule.parse("allow 6000-6000 0.0.0.0/0 5000-5001"),))))
    async with serving(harness):
        assert await c1.result(mapping(80, 80)) == pcp.Result.NOT_AUTHORIZED
        await c1.granted(mapping(5000))
        assert await c1.result(mapping(5001)) == pcp.Result.NO_RESOURCES
        harness.servers_own.add((TCP, 6000))
        assert await c1.result(mapping(5000)) == pcp.Result.NO_RESOURCES
        assert await c1.result(mapping(5000, 6000, prefer_failure=True)) == pcp.Result.CANNOT_PROVIDE_EXTERNAL


@served
@pytest.mark.parametrize(
    ("requested", "granted"), [(1, 120), (120, 120), (HOUR, HOUR), (86400, 86400), (2**32 - 1, 86400)]
)
async def test_pcp_lifetimes_are_bounded(c1: Client, requested: int, granted: int) -> None:
    """§15."""
    assert (await c1.granted(mapping(5000, lifetime=requested))).lifetime == granted


@served
@pytest.mark.parametrize("lifetimes", [(HOUR, 86400), (86400, HOUR)])
async def test_pcp_renewals_never_shorten(c1: Client, lifetimes: tuple[int, int]) -> None:
    """§11.3, §15: the response has the granted lifetime, which may be longer than the requested one."""
    for lifetime in lifetimes:
        granted = await c1.granted(mapping(5000, lifetime=lifetime))
    assert granted.lifetime == 86400


@served
async def test_pcp_deletes_one(harness: GatewayHarness, c1: Client) -> None:
    """§15.1: a deletion without a mapping succeeds."""
    await c1.granted(mapping(5000, 6000))
    await c1.granted(mapping(5001))
    request = mapping(5000, 6000, 0)
    for _ in range(2):
        assert await c1.by_pcp(request) == Response(0, EPOCH, request.payload)
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
    """§15.1: of the source address, with this nonce or none."""
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
async def test_third_party_is_off_by_default(harness: GatewayHarness, c1: Client, lifetime: int) -> None:
    assert await c1.result(mapping(5000, lifetime=lifetime, third_party=C1_HOST)) == pcp.Result.UNSUPP_OPTION
    assert harness.table == {}


async def test_third_party_is_limited_to_the_peers_own_addresses(
    harness: GatewayHarness, c1: Client, c2: Client
) -> None:
    async with serving(harness, third_party=True):
        request = mapping(5000, third_party=C1_HOST)
        assert (await c1.granted(request)).options == request.options
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
async def test_prefer_failure_gets_the_suggested_port_or_an_error(
    harness: GatewayHarness, c1: Client, c2: Client
) -> None:
    await c2.granted(mapping(5000, 6000, client=C2))
    taken = mapping(5000, 6000, prefer_failure=True)
    assert await c1.by_pcp(taken) == ErrorResponse(11, pcp.SHORT_LIFETIME, EPOCH, 1, taken.payload)
    assert await c1.result(mapping(5000, 0, prefer_failure=True)) == pcp.Result.MALFORMED_OPTION
    assert await c1.result(mapping(5000, 6001, prefer_failure=True, external=C1)) == 11
    free = mapping(5000, 6001, prefer_failure=True, external=EXTERNAL)
    granted = await c1.granted(free)
    assert granted.payload == free.payload
    assert granted.options == free.options
    assert await c1.result(mapping(5000, 6002, prefer_failure=True)) == 11, "its mapping has another port"
    harness.servers_own.add((TCP, 6003))
    assert await c1.result(mapping(5003, 6003, prefer_failure=True)) == 11


# §13.3, FILTER


def remote(number: int, prefix_length: int = 128, port: int = 0) -> Filter:
    return Filter(prefix_length, port, IPv4Address(f"198.51.100.{number}"))


@served
async def test_filters_are_added_until_they_are_removed(harness: GatewayHarness, c1: Client) -> None:
    key = (TCP, 5000)
    request = mapping(5000, filters=(remote(1), remote(0, 120, 443)))
    assert (await c1.granted(request)).options == request.options
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
async def test_too_many_filters_get_excessive_remote_peers(harness: GatewayHarness, c1: Client) -> None:
    most = tuple(map(remote, range(MAX_REMOTES)))
    assert await c1.result(mapping(5000, filters=(*most, remote(99)))) == pcp.Result.EXCESSIVE_REMOTE_PEERS
    assert harness.table == {}
    assert await c1.result(mapping(5000, filters=most)) == 0
    request = mapping(5000, filters=(remote(99),))
    assert await c1.by_pcp(request) == ErrorResponse(13, pcp.LONG_LIFETIME, EPOCH, 1, request.payload)
    assert len(remotes_of(harness, (TCP, 5000))) == MAX_REMOTES


@served
async def test_invalid_filters_get_malformed_option(harness: GatewayHarness, c1: Client) -> None:
    for invalid in (Filter(128, 0, C2_IPV6), remote(1, 95), remote(1, 1)):
        assert await c1.result(mapping(5000, filters=(invalid,))) == pcp.Result.MALFORMED_OPTION
    assert await c1.result(mapping(5000, lifetime=0, filters=(remote(1),))) == pcp.Result.MALFORMED_OPTION
    assert harness.table == {}


# Other clauses of PCP


@served
async def test_announce_gets_a_response(c1: Client, c1_ipv6: Client) -> None:
    """§14.1.1, §14.1.2."""
    for client in (c1, c1_ipv6):
        assert await client.by_pcp(pcp.Request(0, client.address, Announce())) == Response(0, EPOCH, Announce())


def peer_request(**fields: Any) -> bytes:  # noqa: ANN401 - options of different types
    """Return a request with the opcode PEER (§12.1): MAP's fields, and the remote peer's port and address."""
    request = client_codec.encode(mapping(5000, **fields))
    remote = bytes.fromhex("01bb 0000 00000000000000000000ffff c6336401")
    return request[:1] + b"\x02" + request[2:60] + remote + request[60:]


@served
@pytest.mark.parametrize(
    "datagram",
    [
        peer_request(),
        peer_request()[:24],
        peer_request()[:60],
        peer_request(filters=(Filter(128, 0, EXTERNAL),)),
        peer_request(protocol=0),
    ],
    ids=["whole", "only a header", "of the size of MAP", "with a filter", "of all protocols"],
)
async def test_peer_is_an_unsupported_opcode(harness: GatewayHarness, c1: Client, datagram: bytes) -> None:
    """§12; §8.2: the opcode is checked before the payload and the options."""
    error = ErrorResponse(pcp.Result.UNSUPP_OPCODE, pcp.LONG_LIFETIME, EPOCH, 2, None)
    assert client_codec.decode_pcp(await c1.exchange(datagram)) == error
    assert harness.table == {}


@served
async def test_another_client_address_gets_address_mismatch(c1: Client) -> None:
    """§8.2: the client is behind a NAT of its own."""
    assert await c1.result(mapping(5000, client=C2)) == pcp.Result.ADDRESS_MISMATCH


@served
async def test_responses_to_libtorrent_have_60_octets(c1: Client) -> None:
    """Libtorrent requires them of errors too."""
    for request in (mapping(5000), mapping(5000, lifetime=0), mapping(5000, protocol=1)):
        assert len(await c1.exchange(client_codec.encode(request))) == 60


@served
async def test_pcp_over_ipv6_opens_a_pinhole(harness: GatewayHarness, c1_ipv6: Client) -> None:
    """§11.4: its external address and port are the internal ones; §15.1: it is deleted like a port mapping."""
    request = mapping(5000, 6000, client=C1_IPV6)
    assert await c1_ipv6.granted(request) == Response(HOUR, EPOCH, Map(NONCE, TCP, 5000, 5000, C1_IPV6))
    expected = Pinhole(TCP, Endpoint(C1_IPV6, 5000), "c1", "PCP", (), CLAIM)
    assert harness.table == {expected.key: harness.table[expected.key]}
    opened = harness.table[expected.key].mapping
    assert isinstance(opened, Pinhole)
    assert replace(opened, unique_id=0) == expected
    assert await c1_ipv6.result(replace(request, options=Options(prefer_failure=True))) == 11
    assert await c1_ipv6.result(mapping(5000, client=C1_IPV6, nonce=OTHER)) == pcp.Result.NOT_AUTHORIZED
    filtered = mapping(5000, client=C1_IPV6, filters=(Filter(64, 0, C2_IPV6),))
    await c1_ipv6.granted(filtered)
    assert remotes_of(harness, expected.key) == ["2001:db8::/64"]
    ipv4_filter = mapping(5000, client=C1_IPV6, filters=(remote(1),))
    assert await c1_ipv6.result(ipv4_filter) == pcp.Result.MALFORMED_OPTION
    assert await c1_ipv6.result(mapping(5351, client=C1_IPV6, protocol=UDP)) == pcp.Result.NOT_AUTHORIZED
    assert await c1_ipv6.result(mapping(5000, 0, 0, C1_IPV6)) == 0
    assert harness.table == {}


# PORT_SET: RFC 7753


@served
async def test_a_port_set(harness: GatewayHarness, c1: Client) -> None:
    """RFC 7753 §4.2; §4.4: the same request renews it."""
    request = mapping(5000, 7001, port_set=PortSet(8, 5000, parity=True))
    for _ in range(2):
        granted = await c1.granted(request)
        assert isinstance(granted.payload, Map)
        first = granted.payload.external_port
        assert first % 2 == 0
        assert granted.options == request.options
        assert {key[1]: entry.mapping.internal.port for key, entry in harness.table.items()} == {
            first + step: 5000 + step for step in range(8)
        }
    assert harness.all_equal()


@served
async def test_a_port_set_smaller_than_requested(harness: GatewayHarness, c1: Client) -> None:
    """RFC 7753 §4.2: the size is the granted one; one port is not a set."""
    smaller = await c1.granted(mapping(65530, port_set=PortSet(65535, 65530)))
    assert smaller.options.port_set == PortSet(6, 65530)
    assert len(harness.table) == 6
    one = await c1.granted(mapping(5000, port_set=PortSet(1, 5000)))
    assert one.options.port_set is None
    both = mapping(5001, 6000, prefer_failure=True, port_set=PortSet(2, 5001))
    assert await c1.result(both) == pcp.Result.MALFORMED_OPTION


@served
async def test_a_port_set_has_the_lifetime_of_its_shortest_mapping(harness: GatewayHarness, c1: Client) -> None:
    """RFC 7753 §4.4: a port set has one lifetime."""
    await harness.ask(upnp(5000, 5000, 2 * HOUR))
    granted = await c1.granted(mapping(5000, port_set=PortSet(2, 5000)))
    assert granted.lifetime == HOUR


@served
async def test_a_port_set_of_pinholes(harness: GatewayHarness, c1_ipv6: Client) -> None:
    granted = await c1_ipv6.granted(mapping(5000, client=C1_IPV6, port_set=PortSet(4, 5000)))
    assert granted.options.port_set == PortSet(4, 5000)
    assert sorted(harness.table) == [(TCP, port, C1_IPV6) for port in range(5000, 5004)]


@served
async def test_a_port_set_is_deleted_as_a_whole(harness: GatewayHarness, c1: Client) -> None:
    """RFC 7753 §4.4."""
    await c1.granted(mapping(5000, port_set=PortSet(8, 5000)))
    assert await c1.result(mapping(5000, lifetime=0, port_set=PortSet(8, 5000))) == 0
    assert harness.table == {}


# Several protocols at the same time


@served
@pytest.mark.parametrize("closed_by_upnp", [False, True])
async def test_upnp_and_pcp_requests_for_the_same_port_share_a_mapping(
    harness: GatewayHarness, c1: Client, *, closed_by_upnp: bool
) -> None:
    """Libtorrent requests the same mapping by UPnP and PCP at the same time, and deletes both."""
    shared, granted = await asyncio.gather(harness.ask(upnp(6881, 6881)), c1.granted(mapping(6881, 6881)))
    assert isinstance(shared, Mapped)
    assert granted == Response(HOUR, EPOCH, Map(NONCE, TCP, 6881, 6881, EXTERNAL))
    assert list(harness.table) == [(TCP, 6881)]
    if closed_by_upnp:
        assert isinstance(await harness.ask(UnmapPorts(TCP, range(6881, 6882))), Unmapped)
    assert await c1.result(mapping(6881, 6881, 0)) == 0
    assert harness.table == {}
    assert harness.all_equal()


@served
async def test_two_external_ports_for_one_listener_are_two_mappings(harness: GatewayHarness, c1: Client) -> None:
    """Syncthing requests one external port by NAT-PMP and another by UPnP, for the same listener."""
    await harness.ask(upnp(31000, 22000))
    assert (await c1.map(pmp(22000, 32000))).external_port == 32000
    assert (await c1.map(pmp(22000, 32000))).external_port == 32000
    await harness.ask(upnp(31000, 22000))
    assert sorted(harness.table) == [(TCP, 31000), (TCP, 32000)]
    await c1.map(pmp(22000, 0, 0))
    assert list(harness.table) == [(TCP, 31000)]


@served
async def test_no_protocol_shortens_the_lease_of_another(harness: GatewayHarness, c1: Client) -> None:
    await harness.ask(upnp(5000, 5000, 0))
    before = harness.table[TCP, 5000].lease
    assert (await c1.granted(mapping(5000, lifetime=120))).lifetime == 86400, "the longest lifetime of PCP"
    assert (await c1.map(pmp(5000, lifetime=60))).lifetime == WEEK
    assert harness.table[TCP, 5000].lease == before
    await c1.granted(mapping(5001, lifetime=2 * HOUR))
    await c1.map(pmp(5001, lifetime=60))
    await harness.ask(upnp(5001, 5001, HOUR))
    assert harness.table[TCP, 5001].lease.remaining(harness.clock.now) == 2 * HOUR


# Access, rate limits and amplification


ONE_OF_EACH = [
    client_codec.encode(AddressRequest()),
    client_codec.encode(pmp(5000)),
    client_codec.encode(pmp(0)),
    *(
        client_codec.encode(pcp.Request(HOUR, STRANGER, payload))
        for payload in (
            Announce(),
            Map(NONCE, 6, 5000, 0, ANY4),
            Map(NONCE, 1, 5000, 0, ANY4),
        )
    ),
]


@served
@pytest.mark.parametrize("datagram", ONE_OF_EACH)
async def test_a_source_that_is_not_a_peer_is_not_authorized(harness: GatewayHarness, datagram: bytes) -> None:
    with contextlib.closing(Client(STRANGER)) as stranger:
        received = await stranger.exchange(datagram)
    response = client_codec.decode_natpmp(received) if natpmp.is_natpmp(datagram) else client_codec.decode_pcp(received)
    assert isinstance(response, (AddressResponse, MapResponse, ErrorResponse))
    assert response.result == 2, "NOT_AUTHORIZED in both protocols"
    assert harness.table == {}


@served
async def test_requests_while_peers_cannot_be_read_get_no_resources(harness: GatewayHarness, c1: Client) -> None:
    harness.peers.trouble = OSError("no such device")
    assert (await c1.map(pmp(5000))).result == natpmp.Result.OUT_OF_RESOURCES
    assert await c1.result(mapping(5000)) == pcp.Result.NO_RESOURCES


async def test_requests_beyond_the_rate_limit_are_dropped(c1: Client, c2: Client) -> None:
    harness = await started(GatewayHarness(rate=3))
    async with serving(harness):
        for number in range(10):
            c1.send(client_codec.encode(pmp(5000 + number)))
        await counted(harness, "dropped", 7)
        for _ in range(3):
            await c1.receive()
        assert c1.unread() == []
        assert len(harness.table) == 3
        assert harness.gateway.dropped == {("c1", "requests above requests_per_second = 3"): 7}
        assert (await c2.map(pmp(5000, 6000))).result == 0, "another peer is not limited"


async def test_requests_under_way_are_limited_by_peer(
    loopback: Host, c1: Client, c2: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its addresses a peer sends from, it has the same places."""
    monkeypatch.setattr(sockets, "PENDING", 3)
    loopback.run("ip", "addr", "replace", f"{C1_HOST}/32", "dev", "lo")
    harness = await started()
    opened, peers = asyncio.Event(), harness.peers.peers

    async def slow() -> Peers:
        await opened.wait()
        return await peers()

    monkeypatch.setattr(harness.peers, "peers", slow)
    async with serving(harness):
        with contextlib.closing(Client(C1_HOST)) as behind_c1:
            for client in (c1, c1, c1, c1, behind_c1, behind_c1, c2):
                client.send(client_codec.encode(AddressRequest()))
            await counted(harness, "dropped", 3)
            assert list(harness.gateway.dropped.values()) == [3]
            assert {subject for subject, _ in harness.gateway.dropped} == {"c1"}
            opened.set()
            for client in (c1, c1, c1, c2):
                await client.receive()
            assert behind_c1.unread() == []
        assert (await c1.by_natpmp(AddressRequest())) == AddressResponse(0, EPOCH, EXTERNAL)
        assert c1.unread() == []


@served
async def test_a_pcp_request_that_is_too_long_is_malformed_and_a_giant_one_is_dropped(
    harness: GatewayHarness, c1: Client
) -> None:
    """§8.2: more than 1,100 octets are an error; the response has no more of them."""
    request = client_codec.encode(mapping(5000))
    for size in (1104, sockets.LARGEST):
        response = await c1.exchange(request.ljust(size, b"\0"))
        assert len(response) == pcp.MAX_MESSAGE_SIZE
        assert response[3] == pcp.Result.MALFORMED_REQUEST
    for size in (sockets.LARGEST + 1, 65_507):
        c1.send(request.ljust(size, b"\0"))
    await counted(harness, "too large", 2)
    assert c1.unread() == []


async def test_close_cancels_requests_under_way(c1: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = await started()
    started_reading, never = asyncio.Event(), asyncio.Event()

    async def endless() -> Peers:
        started_reading.set()
        await never.wait()
        raise AssertionError("never")

    monkeypatch.setattr(harness.peers, "peers", endless)
    async with serving(harness):
        c1.send(client_codec.encode(AddressRequest()))
        async with asyncio.timeout(PATIENCE):
            await started_reading.wait()
    assert c1.unread() == []


@served
async def test_each_socket_of_a_client_gets_the_response_to_its_request(c1: Client) -> None:
    with contextlib.closing(Client(C1)) as another:
        c1.send(client_codec.encode(pmp(5000)))
        assert (await another.map(pmp(5001))).internal_port == 5001
        first = client_codec.decode_natpmp(await c1.receive())
        assert isinstance(first, MapResponse)
        assert first.internal_port == 5000
        assert c1.unread() == another.unread() == []


async def test_an_error_names_the_port_in_use() -> None:
    harness = await started()
    async with serving(harness):
        second = PortControl("lo", harness.gateway, lambda: EPOCH, third_party=False)
        with pytest.raises(OSError, match=r"UDP 10\.100\.0\.1:5351: Address already in use"):
            await second.listen_on([ip_interface(SERVER)])


VALID = [
    *ONE_OF_EACH,
    client_codec.encode(mapping(5000, 6000)),
    client_codec.encode(mapping(5000, 6000, 0)),
    client_codec.encode(mapping(5001, 6001, filters=(remote(1), remote(0, 0)), port_set=PortSet(3, 5001))),
    client_codec.encode(mapping(5002, 6002, third_party=C1_HOST, prefer_failure=True)),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    datagram = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        datagram[draw(st.integers(0, len(datagram) - 1))] = draw(st.integers(0, 255))
    return bytes(datagram[: draw(st.integers(0, 200))])


datagrams = st.one_of(
    st.binary(max_size=1300), mutated(), st.builds(bytes.__add__, st.sampled_from(VALID), st.binary())
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(datagrams, max_size=30))
def test_any_datagrams_are_handled_without_amplification(sent: list[bytes]) -> None:
    asyncio.run(fuzzed(sent))


async def fuzzed(sent: list[bytes]) -> None:
    """Send these, then a valid request; nothing may raise, and the responses must not be too long."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    harness = await started()
    async with serving(harness, third_party=True) as control:
        with contextlib.closing(Client(C1)) as client:
            for datagram in sent:
                client.send(datagram)
            with contextlib.closing(Client(C2)) as last:
                assert await last.by_natpmp(AddressRequest()) == AddressResponse(0, EPOCH, EXTERNAL)
            async with asyncio.timeout(PATIENCE):
                while control._tasks:  # noqa: ASYNC110 - the end of a request has no event
                    await asyncio.sleep(0)
            responses = client.unread()
    gc.collect()  # a task's exception is reported when the task is collected
    assert errors == []
    assert len(responses) <= len(sent)
    longest = [min(pcp.MAX_MESSAGE_SIZE, max(24, len(datagram) + 3)) for datagram in sent]
    assert sum(map(len, responses)) <= sum(longest)
    assert harness.all_equal()
    await harness.ledger.close()


# Announcements


@pytest.fixture
def listener() -> Iterator[Client]:
    """Receive the announcements to c1."""
    with contextlib.closing(Client(C1, pcp.CLIENT_PORT)) as client:
        yield client


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Do not wait between announcements; return the durations."""
    durations: list[float] = []
    sleep = asyncio.sleep

    async def no_wait(seconds: float) -> None:
        if seconds >= port_control.FIRST_INTERVAL:
            durations.append(seconds)
            seconds = 0
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", no_wait)
    return durations


def address_of(datagram: bytes) -> IPv4Address:
    response = client_codec.decode_natpmp(datagram)
    assert isinstance(response, AddressResponse)
    assert response.result == 0
    return response.address


RESTARTED = pcp.encode_response(0, EPOCH, Announce())


async def test_live_peers_get_ten_announcements(
    harness: GatewayHarness, control: PortControl, listener: Client, pauses: list[float]
) -> None:
    """RFC 6886 §3.2.1, RFC 6887 §14.1.3: at intervals of 250 ms, doubled each time."""
    harness.peers.shaken = {"c1": harness.clock.now, "c2": harness.clock.now - 10000}
    with contextlib.closing(Client(C2, pcp.CLIENT_PORT)) as no_session:
        control.announce(lost=True)
        for _ in range(10):
            assert await listener.receive() == RESTARTED
            assert address_of(await listener.receive()) == EXTERNAL
        async with asyncio.timeout(PATIENCE):
            while len(pauses) < 10:  # noqa: ASYNC110 - a list has no event
                await asyncio.sleep(0)
        assert pauses == [0.25 * 2**number for number in range(10)]
        assert listener.unread() == no_session.unread() == []


@pytest.mark.parametrize("protocol", ControlProtocol)
async def test_a_peer_gets_announcements_of_the_protocols_that_it_may_use(
    protocol: ControlProtocol, pauses: list[float]
) -> None:
    policies = Policies(by_peer={"c1": Policy(protocols=frozenset({protocol}))})
    harness = await GatewayHarness(policies).start()
    control = PortControl("lo", harness.gateway, lambda: EPOCH, third_party=False)
    await control.listen_on([ip_interface(SERVER)])
    harness.peers.shaken = {"c1": harness.clock.now}
    with contextlib.closing(Client(C1, pcp.CLIENT_PORT)) as client:
        control.announce(lost=True)
        async with asyncio.timeout(PATIENCE):
            while len(pauses) < 10:  # noqa: ASYNC110 - a list has no event
                await asyncio.sleep(0)
        found = client.unread()
    assert [each == RESTARTED for each in found] == {
        ControlProtocol.UPNP: [],
        ControlProtocol.NAT_PMP: [False] * 10,
        ControlProtocol.PCP: [True] * 10,
    }[protocol]
    await control.close()
    await harness.ledger.close()


async def test_a_new_address_is_announced_and_updates_mappings(
    harness: GatewayHarness, control: PortControl, c1: Client, c1_ipv6: Client, listener: Client
) -> None:
    """RFC 6887 §14.2: PCP's mappings are updated; those of NAT-PMP and UPnP have no nonce."""
    await c1.granted(mapping(5000, 6000))
    await c1.map(pmp(5001))
    await harness.ask(upnp(5002, 5002))
    await c1_ipv6.granted(mapping(5003, client=C1_IPV6))
    harness.clock.now += 600
    harness.peers.shaken = {"c1": harness.clock.now}
    await harness.maintenance.set_addresses(NEW_EXTERNAL, [NEW_EXTERNAL])
    with contextlib.closing(Client(C1_IPV6, pcp.CLIENT_PORT, SERVER6)) as listener6:
        control.announce(lost=True)
        assert await listener.receive() == RESTARTED
        assert address_of(await listener.receive()) == NEW_EXTERNAL
        updated = Map(NONCE, TCP, 5000, 6000, NEW_EXTERNAL)
        assert client_codec.decode_pcp(await listener.receive()) == Response(HOUR - 600, EPOCH, updated)
        assert await listener6.receive() == RESTARTED
        pinhole = Map(NONCE, TCP, 5003, 5003, C1_IPV6)
        assert client_codec.decode_pcp(await listener6.receive()) == Response(HOUR - 600, EPOCH, pinhole)
        assert listener.unread() == []


async def test_a_restart_is_announced_only_if_mappings_were_lost(
    harness: GatewayHarness, control: PortControl, listener: Client
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    control.announce(lost=False)
    assert address_of(await listener.receive()) == EXTERNAL
    assert listener.unread() == []


async def test_no_external_address_is_not_announced(
    harness: GatewayHarness, control: PortControl, listener: Client
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    await harness.maintenance.set_addresses(None, [])
    control.announce(lost=True)
    assert await listener.receive() == RESTARTED
    assert listener.unread() == []


async def test_a_second_announcement_replaces_the_first(
    harness: GatewayHarness, control: PortControl, listener: Client, pauses: list[float]
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    control.announce(lost=True)
    assert await listener.receive() == RESTARTED
    control.announce(lost=True)
    async with asyncio.timeout(PATIENCE):
        while pauses.count(0.25 * 2**9) < 1:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0)
    assert pauses.count(0.25 * 2**9) == 1
    assert len(listener.unread()) >= 20


async def test_an_announcement_that_fails_does_not_end_the_others(
    harness: GatewayHarness, control: PortControl, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    harness.peers.trouble = OSError("no such device")
    control.announce(lost=True)
    async with asyncio.timeout(PATIENCE):
        while not pauses:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0)
    harness.peers.trouble = None
    assert "announcements to peers were not sent: no such device" in caplog.text
    with contextlib.closing(Client(C1, pcp.CLIENT_PORT)) as listener:
        assert await listener.receive() == RESTARTED


async def test_an_announcement_to_a_closed_port_is_not_an_error(
    harness: GatewayHarness, control: PortControl, c1: Client, pauses: list[float]
) -> None:
    """The client answers with ICMP "port unreachable"."""
    harness.peers.shaken = {"c1": harness.clock.now}
    control.announce(lost=True)
    async with asyncio.timeout(PATIENCE):
        while len(pauses) < 5:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0)
    assert (await c1.map(pmp(5000))).result == 0


# What the operator closes


@pytest.mark.usefixtures("control")
async def test_a_client_is_told_four_times_that_its_mapping_was_closed(
    harness: GatewayHarness, c1: Client, listener: Client, pauses: list[float]
) -> None:
    """RFC 6887 §14.2: as an unsolicited response, with the client's nonce and a lifetime of 0."""
    granted = await c1.granted(mapping(5000))
    revoke = MappingRequests(harness.gateway).revoke
    await revoke({"protocol": "tcp", "ports": "1-65535", "to": None, "peer": None})
    for _ in port_control.CLOSED_SECONDS:
        response = client_codec.decode_pcp(await listener.receive())
        assert isinstance(response, Response)
        assert (response.lifetime, response.payload) == (0, granted.payload)
    assert pauses == list(port_control.CLOSED_SECONDS[1:])
    assert listener.unread() == []


@pytest.mark.usefixtures("control")
async def test_a_client_that_maps_again_hears_no_more_of_the_former_mapping(
    harness: GatewayHarness, c1: Client, listener: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_control, "CLOSED_SECONDS", (0.0, 0.25))
    await c1.granted(mapping(5000))
    await MappingRequests(harness.gateway).revoke({"protocol": None, "ports": None, "to": str(C1), "peer": None})
    await listener.receive()
    await c1.granted(mapping(5000))
    await asyncio.sleep(1.0)  # nothing tells that nothing is sent
    assert listener.unread() == []


@pytest.mark.usefixtures("control")
async def test_natpmp_clients_are_not_told_what_they_could_not_understand(
    harness: GatewayHarness, c1: Client, listener: Client, pauses: list[float]
) -> None:
    assert (await c1.map(pmp(5000))).result == 0
    closed = await MappingRequests(harness.gateway).revoke({"protocol": None, "ports": None, "to": str(C1), "peer": ""})
    assert len(closed["closed"]) == 1
    assert (await c1.map(pmp(5001))).result == 0
    assert (listener.unread(), pauses) == ([], [])
