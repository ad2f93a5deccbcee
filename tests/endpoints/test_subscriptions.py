"""Events, with real HTTP between subscribers and the server, and a pretended kernel."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_interface

import pytest
import pytest_asyncio

from igd.core.mapping import Endpoint, TransportProtocol
from igd.core.peers import Address, Peer
from igd.core.places import Places
from igd.core.policy import Policy
from igd.core.request import LinkStatus, MapPort, UnmapPorts
from igd.endpoints import subscriptions as subscribing
from igd.endpoints.notifier import Delivery, Notifier
from igd.endpoints.subscriptions import Subscriptions
from igd.operator.mapping_requests import MappingRequests
from igd.wire.upnp import xml
from igd.wire.upnp.devices import WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION, Service
from igd.wire.upnp.gena import Callback
from igd.wire.upnp.state import STATE
from tests.endpoints.http_client import HANG, ROOT, Answer, exchange, get, http_for
from tests.gateway_harness import C1, C2, PEERS, SERVER, GatewayHarness

PATH = WAN_IP_CONNECTION.event_path


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Event:
    """An event message that a subscriber received."""

    def __init__(self, message: bytes) -> None:
        head, _, body = message.partition(b"\r\n\r\n")
        self.start, *lines = head.decode().split("\r\n")
        self.headers = {name.upper(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
        values = (value for child in xml.parse(body).children for value in child.children)
        self.values = {value.name: value.text for value in values}

    @property
    def seq(self) -> int:
        """The event key."""
        return int(self.headers["SEQ"])


class Subscriber:
    """A control point that answers each event with `answer`."""

    def __init__(
        self, source: IPv4Address = C1, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    ) -> None:
        self.source = source
        self.answer = answer
        self.port = 0
        self.connections = 0
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    async def received(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Receive one event, and answer it."""
        self.connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        self.events.put_nowait(Event(head + await reader.readexactly(length)))
        writer.write(self.answer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Subscriber"]:
        """Receive events in this block."""
        async with await asyncio.start_server(self.received, str(self.source), self.port) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def subscribe(self, *headers: str, path: str = PATH) -> Answer:
        """Subscribe, or send these headers."""
        return await exchange(get(path, *(headers or self.wants()), method="SUBSCRIBE"), source=self.source)

    def wants(self, target: str = "/here?a=b") -> tuple[str, ...]:
        """Return the headers of a new subscription whose events go to this target."""
        return f"CALLBACK: <http://{self.source}:{self.port}{target}>", "NT: upnp:event"

    async def unsubscribe(self, sid: str, path: str = PATH) -> Answer:
        """End a subscription."""
        return await exchange(get(path, f"SID: {sid}", method="UNSUBSCRIBE"), source=self.source)

    async def event(self) -> Event:
        """Return the next event."""
        async with asyncio.timeout(HANG):
            return await self.events.get()


@pytest.fixture
def limits() -> tuple[int, int]:
    return 6, 3


@pytest_asyncio.fixture
async def harness(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GatewayHarness]:
    harness = await GatewayHarness().start()
    events = Subscriptions(harness.gateway, ROOT, Notifier("lo"), Places(*limits))
    monkeypatch.setattr("tests.endpoints.http_client.subscriptions_for", lambda _harness: events)
    server = http_for(harness)
    await server.listen_on([ip_interface(SERVER)])
    harness.events = events  # type: ignore[attr-defined]
    watching = asyncio.create_task(events.watch_host())
    yield harness
    watching.cancel()
    await server.close()
    await events.close()
    await harness.ledger.close()


def map_port(port: int, address: IPv4Address = C1) -> MapPort:
    return MapPort(TransportProtocol.TCP, Endpoint(address, 8080), port, 300)


async def test_4_1_2_a_subscription_begins_with_all_variables(harness: GatewayHarness) -> None:
    async with Subscriber().listening() as subscriber:
        answer = await subscriber.subscribe()
        assert answer.status == 200
        assert answer.headers["TIMEOUT"] == "Second-1800"
        assert "Server" in answer.headers
        assert "Date" in answer.headers
        event = await subscriber.event()
        assert event.start == "NOTIFY /here?a=b HTTP/1.1"
        assert event.headers["HOST"] == f"{C1}:{subscriber.port}"
        assert event.headers["SID"] == answer.headers["SID"]
        assert event.headers["NT"] == "upnp:event"
        assert event.seq == 0
        assert event.values == {
            "PossibleConnectionTypes": "IP_Routed",
            "ConnectionStatus": "Connected",
            "ExternalIPAddress": "60.60.60.1",
            "PortMappingNumberOfEntries": "0",
            "SystemUpdateID": "0",
        }


@pytest.mark.parametrize("service", STATE, ids=lambda service: service.name)
async def test_every_service_has_events(harness: GatewayHarness, service: Service) -> None:
    async with Subscriber().listening() as subscriber:
        assert (await subscriber.subscribe(path=service.event_path)).status == 200
        event = await subscriber.event()
        assert set(event.values) == {row.variable.name for row in STATE[service] if row.evented}


async def test_4_3_changes_follow_and_are_the_peers_own(harness: GatewayHarness) -> None:
    async with Subscriber().listening() as subscriber, Subscriber(C2).listening() as other:
        await subscriber.subscribe()
        await other.subscribe()
        await subscriber.event()
        await other.event()
        await harness.ask(map_port(8043))
        event = await subscriber.event()
        assert (event.seq, event.values) == (1, {"PortMappingNumberOfEntries": "1", "SystemUpdateID": "1"})
        await harness.ask(UnmapPorts(TransportProtocol.TCP, range(8043, 8044)))
        event = await subscriber.event()
        assert (event.seq, event.values) == (2, {"PortMappingNumberOfEntries": "0", "SystemUpdateID": "2"})
        await harness.ask(map_port(8044, C2), C2)
        event = await other.event()
        assert (event.seq, event.values) == (1, {"PortMappingNumberOfEntries": "1", "SystemUpdateID": "1"})
        assert subscriber.events.empty()


async def test_what_all_peers_share_is_sent_when_it_changes(harness: GatewayHarness) -> None:
    async with Subscriber().listening() as subscriber:
        await subscriber.subscribe()
        await subscriber.event()
        harness.gateway.announced = IPv4Address("61.61.61.1")
        harness.events.host_changed()  # type: ignore[attr-defined]
        event = await subscriber.event()
        assert event.values == {"ExternalIPAddress": "61.61.61.1"}
        harness.gateway.announced = None
        harness.events.host_changed()  # type: ignore[attr-defined]
        event = await subscriber.event()
        assert event.values == {"ExternalIPAddress": ""}


async def test_a_change_back_to_what_was_sent_earlier_is_sent(harness: GatewayHarness) -> None:
    """Between the two nobody was subscribed, so that nobody was told of the first change."""
    async with Subscriber().listening() as subscriber:
        sid = (await subscriber.subscribe()).headers["SID"]
        await subscriber.event()
        await announce(harness, "61.61.61.1")
        assert (await subscriber.event()).values == {"ExternalIPAddress": "61.61.61.1"}
        await subscriber.unsubscribe(sid)
        await announce(harness, "62.62.62.1")
        await subscriber.subscribe()
        assert (await subscriber.event()).values["ExternalIPAddress"] == "62.62.62.1"
        await announce(harness, "61.61.61.1")
        assert (await subscriber.event()).values == {"ExternalIPAddress": "61.61.61.1"}


async def test_the_link_is_read_once_for_all_subscriptions(harness: GatewayHarness) -> None:
    """200 of them would keep the gateway busy for as many milliseconds."""
    read, link = 0, harness.gateway.link

    async def count() -> LinkStatus:
        nonlocal read
        read += 1
        return replace(await link(), up=False)

    async with Subscriber().listening() as subscriber:
        for path in (PATH, WAN_COMMON_INTERFACE_CONFIG.event_path, PATH):
            await subscriber.subscribe(path=path)
            await subscriber.event()
        harness.gateway.link = count
        harness.events.host_changed()  # type: ignore[attr-defined]
        values = [tuple((await subscriber.event()).values.items()) for _ in range(3)]
        assert set(values) == {(("ConnectionStatus", "Disconnected"),), (("PhysicalLinkStatus", "Down"),)}
        assert read == 1


async def announce(harness: GatewayHarness, address: str) -> None:
    """Change the external address, and wait until that is noticed."""
    harness.gateway.announced = IPv4Address(address)
    harness.events.host_changed()  # type: ignore[attr-defined]
    async with asyncio.timeout(HANG):
        while harness.events._host_changed.is_set():  # type: ignore[attr-defined] # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_change_during_a_delivery_is_not_lost(harness: GatewayHarness) -> None:
    held = asyncio.Event()

    class Slow(Subscriber):
        async def received(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Hold the first event up."""
            if not self.connections:
                await held.wait()
            await super().received(reader, writer)

    async with Slow().listening() as subscriber:
        await subscriber.subscribe()
        for port in (8043, 8044, 8045):
            await harness.ask(map_port(port))
        held.set()
        first = await subscriber.event()
        assert first.seq == 0
        if first.values["PortMappingNumberOfEntries"] != "3":
            assert (await subscriber.event()).values == {"PortMappingNumberOfEntries": "3", "SystemUpdateID": "3"}


async def test_4_1_3_a_subscription_is_renewed_by_its_peer_only(harness: GatewayHarness) -> None:
    async with Subscriber().listening() as subscriber:
        sid = (await subscriber.subscribe()).headers["SID"]
        harness.clock.now += 1000
        renewed = await subscriber.subscribe(f"SID: {sid}", "TIMEOUT: Second-3600")
        assert (renewed.status, renewed.headers["SID"], renewed.headers["TIMEOUT"]) == (200, sid, "Second-3600")
        assert (await Subscriber(C2).subscribe(f"SID: {sid}")).status == 412
        assert (await subscriber.subscribe(f"SID: {sid}", path=WAN_COMMON_INTERFACE_CONFIG.event_path)).status == 412
        assert (await subscriber.subscribe(f"SID: {sid}", "NT: upnp:event")).status == 400
        assert (await Subscriber(C2).unsubscribe(sid)).status == 412
        assert (await subscriber.unsubscribe(sid)).status == 200
        assert (await subscriber.unsubscribe(sid)).status == 412
        assert (await subscriber.subscribe(f"SID: {sid}")).status == 412


async def test_a_subscription_ends_with_its_time(harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribing, "WAKE_SECONDS", 0.01)
    async with Subscriber().listening() as subscriber:
        sid = (await subscriber.subscribe()).headers["SID"]
        await subscriber.event()
        harness.clock.now += 1801
        async with asyncio.timeout(HANG):
            while len(harness.events):  # type: ignore[attr-defined] # noqa: ASYNC110 - its end has no event
                await asyncio.sleep(0.01)
        assert (await subscriber.subscribe(f"SID: {sid}")).status == 412


@pytest.mark.parametrize("method", ["SUBSCRIBE", "UNSUBSCRIBE"])
async def test_4_1_4_an_expired_subscription_is_unknown(harness: GatewayHarness, method: str) -> None:
    """Even before it is noticed: while the machine was suspended, no timer ran."""
    async with Subscriber().listening() as subscriber:
        sid = (await subscriber.subscribe()).headers["SID"]
        await subscriber.event()
        harness.clock.now += 1800
        answer = await exchange(get(PATH, f"SID: {sid}", method=method), source=C1)
        assert answer.status == 412
        await harness.ask(map_port(8043))
        async with asyncio.timeout(HANG):
            while len(harness.events):  # type: ignore[attr-defined] # noqa: ASYNC110 - its end has no event
                await asyncio.sleep(0.01)
        assert subscriber.connections == 1


async def test_the_next_owner_of_an_address_learns_nothing_of_the_last_one(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mappings of an address that changes hands end, which is a change that its subscription would tell."""
    sent: list[bytes] = []

    async def notify(_notifier: Notifier, _own: Address, _callback: Callback, message: bytes) -> Delivery:
        sent.append(message)
        return Delivery.DONE

    monkeypatch.setattr(Notifier, "notify", notify)
    monkeypatch.setattr(subscribing, "PAUSES", (0.0,))
    await harness.ask(map_port(8043))
    await Subscriber().subscribe("CALLBACK: <http://10.100.0.2/>", "NT: upnp:event")
    async with asyncio.timeout(HANG):
        while not sent:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    c1, c2 = harness.peers.all
    harness.peers.all = (subscribing_peer(c1, c2), subscribing_peer(c2, c1))
    await harness.maintenance.recheck_peers()
    assert not len(harness.ledger.table)
    assert len(harness.events) == 0  # type: ignore[attr-defined]
    assert len(sent) == 1


async def test_subscriptions_of_an_address_that_changes_hands_end(harness: GatewayHarness) -> None:
    """Events show the mappings of the peer that subscribed."""
    async with Subscriber().listening() as subscriber:
        sid = (await subscriber.subscribe()).headers["SID"]
        await subscriber.event()
        c1, c2 = harness.peers.all
        harness.peers.all = (subscribing_peer(c1, c2), subscribing_peer(c2, c1))
        await harness.maintenance.recheck_peers()
        assert len(harness.events) == 0  # type: ignore[attr-defined]
        assert (await subscriber.subscribe(f"SID: {sid}")).status == 412


def subscribing_peer(keeps_key: Peer, has_addresses: Peer) -> Peer:
    return Peer(keeps_key.public_key, has_addresses.allowed_ips)


async def test_a_peer_has_so_many_subscriptions(harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Subscriber().listening() as subscriber, Subscriber(C2).listening() as other:
        for number in range(3):
            assert (await subscriber.subscribe(*subscriber.wants(f"/{number}"))).status == 200
            await subscriber.event()
        assert (await subscriber.subscribe(*subscriber.wants("/3"))).status == 503
        assert (await other.subscribe()).status == 200


async def test_a_subscriber_that_starts_again_replaces_its_subscription_when_no_place_is_left(
    harness: GatewayHarness,
) -> None:
    """One that was killed has ended none of its subscriptions, and nothing has changed that would show it."""
    async with Subscriber().listening() as subscriber, Subscriber().listening() as other:
        kept = (await other.subscribe()).headers["SID"]
        lost = (await subscriber.subscribe()).headers["SID"]
        for _ in range(3):
            assert (await subscriber.subscribe()).status == 200
        for each in (other, *[subscriber] * 4):
            await each.event()
        assert (await subscriber.subscribe(f"SID: {lost}")).status == 412
        assert (await other.subscribe(f"SID: {kept}")).status == 200


async def test_a_subscription_ends_whose_sid_was_not_received(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that resets its connection before the response."""
    monkeypatch.setattr(subscribing, "BEGIN_SECONDS", 0.01)
    events: Subscriptions = harness.events  # type: ignore[attr-defined]
    headers = {"CALLBACK": "<http://10.100.0.2/>", "NT": "upnp:event"}
    events.subscribe(WAN_IP_CONNECTION, harness.peers.all[0], C1, SERVER, headers)
    assert len(events) == 1
    async with asyncio.timeout(HANG):
        while len(events):  # noqa: ASYNC110 - its end has no event
            await asyncio.sleep(0.01)
    assert not harness.gateway.counters["events", "subscriber not reached"]


async def test_a_subscriber_that_is_gone_makes_room(harness: GatewayHarness) -> None:
    async with Subscriber().listening() as gone:
        for _ in range(3):
            await gone.subscribe()
            await gone.event()
    await harness.ask(map_port(8043))
    async with Subscriber().listening() as subscriber, asyncio.timeout(HANG):
        while (await subscriber.subscribe()).status != 200:  # noqa: ASYNC110 - no event tells that one has failed
            await asyncio.sleep(0.01)
        await subscriber.event()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://10.100.0.3:1900/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"",
        b"\0" * 100_000,
        b"HTTP/1.1 200 " + b"x" * 100_000,
    ],
    ids=["redirects", "fails", "closes", "binary", "endless"],
)
async def test_a_failed_event_is_tried_again_with_another_key(
    harness: GatewayHarness, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribing, "PAUSES", (0.0,))
    async with Subscriber(answer=answer).listening() as subscriber:
        await subscriber.subscribe()
        first, subscriber.answer = await subscriber.event(), b"HTTP/1.1 200 OK\r\n\r\n"
        second = await subscriber.event()
        assert (first.seq, second.seq) == (0, 1)
        assert second.values == first.values


def test_a_subscriber_that_never_answers_is_tried_every_half_minute() -> None:
    """Renewed for months: the number of failures has no end."""
    assert [subscribing._pause(failures) for failures in (0, 1, 2, 6, 7, 10**6)] == [0.2, 1.0, 2.0, 30.0, 30.0, 30.0]


async def test_an_event_that_was_not_sent_keeps_its_key(
    harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event of a subscriber that listens a moment later has key 0 (§4.3.2)."""
    monkeypatch.setattr(subscribing, "PAUSES", (0.01,))
    subscriber = Subscriber()
    async with subscriber.listening():
        pass
    await subscriber.subscribe()
    async with asyncio.timeout(HANG):
        while not harness.gateway.counters["events", "subscriber not reached"]:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    async with subscriber.listening():
        assert (await subscriber.event()).seq == 0


async def test_who_may_not_use_upnp_may_not_subscribe(harness: GatewayHarness) -> None:
    async with Subscriber().listening() as subscriber:
        harness.gateway.policies = type(harness.gateway.policies)(Policy(protocols=frozenset()))
        assert (await subscriber.subscribe()).status == 403


async def test_a_subscription_ends_when_its_peer_may_no_longer_use_upnp(harness: GatewayHarness) -> None:
    """The configuration was read again; the peer would be told nothing any more, and hold a place."""
    async with Subscriber().listening() as subscriber:
        await subscriber.subscribe()
        await subscriber.event()
        harness.gateway.policies = type(harness.gateway.policies)(Policy(protocols=frozenset()))
        harness.peers.all = (replace(PEERS[0], name="laptop"), *PEERS[1:])
        await harness.maintenance.follow_policies()
        assert len(harness.events) == 0  # type: ignore[attr-defined]


async def test_the_operator_revokes_a_mapping_and_its_subscribers_hear_of_it(harness: GatewayHarness) -> None:
    async with Subscriber().listening() as subscriber, Subscriber(C2).listening() as other:
        await harness.ask(map_port(8043))
        await subscriber.subscribe()
        await other.subscribe()
        await subscriber.event()
        await other.event()
        wanted = {"protocol": "tcp", "ports": "8043", "to": None, "peer": None}
        assert len((await MappingRequests(harness.gateway).revoke(wanted))["closed"]) == 1
        event = await subscriber.event()
        assert event.values == {"PortMappingNumberOfEntries": "0", "SystemUpdateID": "2"}
        assert other.events.empty()


async def test_an_unknown_source_is_refused(harness: GatewayHarness) -> None:
    assert (await Subscriber(IPv4Address("10.100.0.9")).subscribe("SID: uuid:1")).status == 403
