"""Searches of peers are answered from port 1900, and start and stop are announced to live peers."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, ip_interface
from uuid import UUID

import pytest

from igd.core.mapping import ControlProtocol, Endpoint
from igd.core.peers import Address, Peer
from igd.core.policies import Policies
from igd.core.policy import Policy
from igd.core.request import Refusal
from igd.endpoints import discovery, sockets
from igd.endpoints.discovery import Discovery
from igd.wire.upnp import ssdp
from tests.gateway_harness import C1, C2, SERVER, GatewayHarness

pytestmark = pytest.mark.root

STRANGER = IPv4Address("10.100.0.9")
ROOT = UUID("0d5f4e7c-5b2e-4c35-9b0d-2f6f2f1c0001")
ADVERTISER = ssdp.Advertiser(ROOT, "Linux UPnP/1.1 igd/0.1", 7, 9)
GROUP = "239.255.255.250"
HANG = 60
"""Seconds that only a hang exceeds, on any machine."""
HOUR = 3600
GATEWAY_1 = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
GATEWAY_2 = "urn:schemas-upnp-org:device:InternetGatewayDevice:2"


class Client:
    """A peer's socket; the kernel keeps what it receives until `receive` reads it."""

    def __init__(self, address: IPv4Address, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        self._socket.bind((str(address), port))

    def send(self, data: bytes, destination: str = str(SERVER)) -> None:
        """Send to port 1900."""
        self._socket.sendto(data, (destination, ssdp.PORT))

    async def receive(self) -> tuple[str, tuple[str, int]]:
        """Wait for a datagram."""
        async with asyncio.timeout(HANG):
            data, source = await asyncio.get_running_loop().sock_recvfrom(self._socket, 4096)
        return data.decode(), source

    def left(self) -> int:
        """Read and count the datagrams that were not received yet."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(4096):
                count += 1
        return count

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def discovery_for(harness: GatewayHarness) -> Discovery:
    return Discovery("lo", harness.gateway, ADVERTISER, lambda _peer, own: Endpoint(own, 2869), random.Random(1))


async def listen(server: Discovery, *addresses: Address) -> None:
    """Let it serve on these addresses."""
    assert await server.listen_on([ip_interface(address) for address in addresses]) == []


@pytest.fixture
async def harness() -> GatewayHarness:
    return await GatewayHarness().start()


@pytest.fixture
async def server(harness: GatewayHarness) -> AsyncIterator[Discovery]:
    server = discovery_for(harness)
    await listen(server, SERVER)
    yield server
    await server.close()


@pytest.fixture
def client() -> Iterator[Client]:
    with contextlib.closing(Client(C1)) as client:
        yield client


def search(target: str, mx: int | None = None) -> bytes:
    lines = ["M-SEARCH * HTTP/1.1", f"HOST: {GROUP}:1900", 'MAN: "ssdp:discover"', f"ST: {target}"]
    return ("\r\n".join(lines if mx is None else [*lines, f"MX: {mx}"]) + "\r\n\r\n").encode()


def target_of(answer: str) -> str:
    return answer.partition("\r\nST: ")[2].partition("\r\n")[0]


async def counted(harness: GatewayHarness, outcome: str, count: int = 1) -> None:
    """Wait until `count` searches have had this outcome."""
    async with asyncio.timeout(HANG):
        while harness.gateway.counters["ssdp", outcome] < count:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.001)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("target", [GATEWAY_1, GATEWAY_2, "upnp:rootdevice", f"uuid:{ROOT}"])
@pytest.mark.parametrize(("destination", "mx"), [(str(SERVER), None), (str(SERVER), 3), (GROUP, 2)])
async def test_a_search_is_answered_to_its_sender_from_port_1900(
    client: Client, target: str, destination: str, mx: int | None
) -> None:
    client.send(search(target, mx), destination)
    answer, source = await client.receive()
    assert source == (str(SERVER), 1900)
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert f"\r\nST: {target}\r\n" in answer
    assert client.left() == 0


@pytest.mark.usefixtures("server")
async def test_a_search_for_everything_gets_everything(client: Client) -> None:
    client.send(search("ssdp:all"))
    targets = [target_of((await client.receive())[0]) for _ in ssdp.adverts(ROOT)]
    assert targets == [advert.target for advert in ssdp.adverts(ROOT)]
    assert client.left() == 0


async def test_a_unicast_search_is_answered_at_once(
    harness: GatewayHarness, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "SPREAD_SECONDS", HOUR)
    monkeypatch.setattr(ssdp, "LONGEST_MX", HOUR)
    server = discovery_for(harness)
    await listen(server, SERVER)
    client.send(search(GATEWAY_1, HOUR))
    await client.receive()
    await server.close()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("address", [STRANGER, SERVER])
async def test_an_unknown_source_gets_no_answer(harness: GatewayHarness, address: IPv4Address) -> None:
    with contextlib.closing(Client(address)) as stranger:
        for destination in (str(SERVER), GROUP):
            stranger.send(search(GATEWAY_1, 1), destination)
        await counted(harness, "refused", 2)
        assert stranger.left() == 0
    assert harness.gateway.counters["ssdp", "answered"] == 0


@pytest.mark.usefixtures("server")
async def test_malformed_and_other_messages_are_not_answered(harness: GatewayHarness, client: Client) -> None:
    for junk in (b"", b"\xff\0", b"M-SEARCH * HTTP/1.1\r\n\r\n", search("").replace(b"ST: ", b"ST")):
        client.send(junk)
    await counted(harness, "malformed", 4)
    client.send(search("urn:schemas-upnp-org:device:MediaServer:1"))
    client.send(b"NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\n\r\n")
    client.send(search(GATEWAY_1))
    assert GATEWAY_1 in (await client.receive())[0]
    assert client.left() == 0
    assert harness.gateway.counters["ssdp", "answered"] == 1


@pytest.mark.usefixtures("server")
async def test_searches_above_the_rate_limit_are_not_answered(client: Client) -> None:
    harness = await GatewayHarness(rate=3).start()
    server = discovery_for(harness)
    await listen(server, C2)
    for _ in range(10):
        client.send(search(GATEWAY_1), str(C2))
    await counted(harness, "dropped", 7)
    for _ in range(3):
        await client.receive()
    assert client.left() == 0
    await server.close()


async def test_waiting_answers_are_limited_by_peer_and_dropped_at_the_end(
    harness: GatewayHarness, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "SPREAD_SECONDS", HOUR)
    monkeypatch.setattr(ssdp, "LONGEST_MX", HOUR)
    monkeypatch.setattr(sockets, "PENDING", 3)
    server = discovery_for(harness)
    await listen(server, SERVER)
    for _ in range(10):
        client.send(search(GATEWAY_1, HOUR), GROUP)
    await counted(harness, "dropped", 7)
    await counted(harness, "answered", 3)
    with contextlib.closing(Client(C2)) as other:
        other.send(search(GATEWAY_1))
        await other.receive()
    async with asyncio.timeout(HANG):
        await server.close()
    assert client.left() == 0


@pytest.mark.usefixtures("server")
async def test_nothing_is_read_of_what_an_unknown_source_sends(harness: GatewayHarness) -> None:
    with contextlib.closing(Client(STRANGER)) as stranger:
        stranger.send(b"junk")
        await counted(harness, "refused")
    assert harness.gateway.counters["ssdp", "malformed"] == 0


async def test_nothing_is_read_of_what_a_peer_sends_above_its_rate(client: Client) -> None:
    harness = await GatewayHarness(rate=3).start()
    server = discovery_for(harness)
    await listen(server, SERVER)
    for _ in range(3):
        client.send(b"junk")
    await counted(harness, "malformed", 3)
    for _ in range(100):
        client.send(b"junk")
    await counted(harness, "dropped", 100)
    assert harness.gateway.counters["ssdp", "malformed"] == 3
    await server.close()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("size", [sockets.LARGEST + 1, 65_507])
async def test_a_search_that_is_too_large_is_dropped(harness: GatewayHarness, client: Client, size: int) -> None:
    large = search(GATEWAY_1).removesuffix(b"\r\n") + b"X: "
    client.send(large.ljust(size, b"x"))
    await counted(harness, "too large")
    client.send(large.ljust(sockets.LARGEST, b"x"))
    await client.receive()
    assert client.left() == 0


async def test_windows_and_xbox_find_version_1(server: Discovery, client: Client) -> None:
    expected = [advert.target for advert in ssdp.adverts(ROOT) if advert.since == 1]
    client.send(search("ssdp:all").removesuffix(b"\r\n") + b"USER-AGENT: FDSSDP\r\n\r\n")
    assert [target_of((await client.receive())[0]) for _ in expected] == expected
    client.send(search(GATEWAY_2))
    assert target_of((await client.receive())[0]) == GATEWAY_2


NO_UPNP = Policies(by_peer={"c2": Policy(protocols=frozenset({ControlProtocol.PCP, ControlProtocol.NAT_PMP}))})


async def test_a_peer_that_may_not_use_upnp_gets_no_answers_and_no_announcements(client: Client) -> None:
    harness = await GatewayHarness(NO_UPNP).start()
    server = discovery_for(harness)
    await listen(server, SERVER)
    harness.peers.shaken = {"c1": harness.clock.now, "c2": harness.clock.now}
    with contextlib.closing(Client(C1, 1900)) as allowed, contextlib.closing(Client(C2, 1900)) as forbidden:
        forbidden.send(search("ssdp:all"))
        forbidden.send(search(GATEWAY_1, 0), GROUP)
        await counted(harness, "forbidden", 2)
        await server.greet()
        await server.announce(ssdp.alive)
        await server.announce_change(8)
        client.send(search(GATEWAY_1))
        await client.receive()
        assert allowed.left() == 4 * len(ssdp.adverts(ROOT))
        assert forbidden.left() == 0
    await server.close()


async def test_a_change_is_announced_with_the_old_bootid_before_the_new_one_is_used(
    harness: GatewayHarness, server: Discovery, client: Client
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    with contextlib.closing(Client(C1, 1900)) as live:
        await server.announce_change(8)
        for nts, boot_id in (("update", 7), ("alive", 8)):
            for advert in ssdp.adverts(ROOT):
                announced, _ = await live.receive()
                assert f"\r\nNT: {advert.target}\r\nNTS: ssdp:{nts}\r\n" in announced
                assert f"\r\nBOOTID.UPNP.ORG: {boot_id}\r\n" in announced
                assert ("\r\nNEXTBOOTID.UPNP.ORG: 8\r\n" in announced) == (nts == "update")
        assert live.left() == 0
    client.send(search(GATEWAY_1))
    assert "\r\nBOOTID.UPNP.ORG: 8\r\n" in (await client.receive())[0]


async def test_a_new_bootid_is_used_although_it_could_not_be_announced(
    harness: GatewayHarness, server: Discovery, client: Client
) -> None:
    harness.peers.trouble = OSError("no such device")
    with pytest.raises(OSError, match="no such device"):
        await server.announce_change(8)
    harness.peers.trouble = None
    client.send(search(GATEWAY_1))
    assert "\r\nBOOTID.UPNP.ORG: 8\r\n" in (await client.receive())[0]


async def test_a_peer_that_comes_alive_is_greeted_once(harness: GatewayHarness, server: Discovery) -> None:
    everything = len(ssdp.adverts(ROOT))
    with contextlib.closing(Client(C1, 1900)) as early, contextlib.closing(Client(C2, 1900)) as late:
        harness.peers.shaken = {"c1": harness.clock.now}
        await server.announce(ssdp.alive)
        for _ in range(3):
            harness.peers.shaken["c2"] = harness.clock.now
            await server.greet()
        assert (early.left(), late.left()) == (everything, everything)
        harness.clock.now += 1000  # both sessions end
        await server.greet()
        harness.peers.shaken["c2"] = harness.clock.now
        await server.greet()
        assert (early.left(), late.left()) == (0, everything)


async def test_two_hundred_searches_for_everything_at_once(harness: GatewayHarness, server: Discovery) -> None:
    """Each is answered completely or dropped, and another peer gets its answer."""
    with contextlib.closing(Client(C1)) as many, contextlib.closing(Client(C2)) as other:
        for _ in range(200):
            many.send(search("ssdp:all", 1), GROUP)
        other.send(search(GATEWAY_1))
        await other.receive()
        async with asyncio.timeout(HANG):
            while server._tasks:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.001)
        answered, dropped = (harness.gateway.counters["ssdp", outcome] for outcome in ("answered", "dropped"))
        assert answered - 1 + dropped == 200
        assert answered - 1 >= sockets.PENDING


@pytest.mark.parametrize(("message", "nts"), [(ssdp.alive, "ssdp:alive"), (ssdp.byebye, "ssdp:byebye")])
async def test_announcements_are_sent_to_live_peers_only(
    harness: GatewayHarness, server: Discovery, message: discovery.Message, nts: str
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now, "c2": harness.clock.now - 10000}
    with contextlib.closing(Client(C1, 1900)) as live, contextlib.closing(Client(C2, 1900)) as silent:
        await server.announce(message)
        for advert in ssdp.adverts(ROOT):
            announced, source = await live.receive()
            assert announced.startswith("NOTIFY * HTTP/1.1\r\n")
            assert f"\r\nNT: {advert.target}\r\nNTS: {nts}\r\n" in announced
            assert source == (str(SERVER), 1900)
        assert live.left() == silent.left() == 0


async def test_a_peer_that_does_not_listen_for_announcements_is_no_error(
    harness: GatewayHarness, server: Discovery
) -> None:
    harness.peers.shaken = {"c1": harness.clock.now}
    for _ in range(3):
        await server.announce(ssdp.alive)  # the port is closed: the kernel reports "port unreachable"
    harness.peers.trouble = OSError("no such device")
    with pytest.raises(OSError, match="no such device"):
        await server.announce(ssdp.alive)


async def test_an_address_that_goes_takes_its_answers_along_and_no_others(
    harness: GatewayHarness, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = discovery_for(harness)
    await listen(server, SERVER, C2)
    identify, going_on = harness.gateway.identify, asyncio.Event()

    async def identify_later(source: Address) -> Peer | Refusal:
        await going_on.wait()
        return await identify(source)

    monkeypatch.setattr(harness.gateway, "identify", identify_later)
    for address in (SERVER, C2):
        client.send(search(GATEWAY_1), str(address))
    async with asyncio.timeout(HANG):
        while len(server._tasks) < 2:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)
    await listen(server, SERVER)
    going_on.set()
    await counted(harness, "answered", 2)
    answer, source = await client.receive()
    assert source == (str(SERVER), 1900)
    assert f"\r\nLOCATION: http://{SERVER}:2869/1/device.xml\r\n" in answer
    await server.close()
    assert client.left() == 0
    assert caplog.records == []


async def test_nothing_is_advertised_where_http_is_not_served(harness: GatewayHarness, client: Client) -> None:
    server = Discovery("lo", harness.gateway, ADVERTISER, lambda _peer, _own: None, random.Random(1))
    await listen(server, SERVER)
    harness.peers.shaken = {"c1": harness.clock.now}
    client.send(search(GATEWAY_1))
    client.send(b"junk")
    await counted(harness, "malformed")
    await counted(harness, "answered")
    with contextlib.closing(Client(C1, 1900)) as live:
        await server.announce(ssdp.alive)
        await server.close()
        assert live.left() == client.left() == 0


async def test_a_missing_interface_is_an_error(harness: GatewayHarness) -> None:
    server = Discovery("none", harness.gateway, ADVERTISER, lambda _peer, _own: None, random.Random(1))
    with pytest.raises(OSError, match="No such device"):
        await server.listen_on([ip_interface(SERVER)])
    await server.close()


async def test_closing_releases_the_port(harness: GatewayHarness) -> None:
    for _ in range(2):
        server = discovery_for(harness)
        await listen(server, SERVER)
        await server.close()
        await asyncio.sleep(0)
