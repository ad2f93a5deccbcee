"""Who is told of changes, and of what: the subscriptions of the peers (UPnP Device Architecture 1.1 §4)."""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from igd.core.mapping import Change, ControlProtocol
from igd.core.peers import Address, Peer, Peers
from igd.core.places import Places
from igd.core.request import GetLinkStatus, LinkStatus, Refusal, Reply, Request
from igd.endpoints.notifier import Delivery, Notifier
from igd.gateway import Gateway
from igd.wire.upnp import gena
from igd.wire.upnp.devices import Service
from igd.wire.upnp.requests import Parties
from igd.wire.upnp.state import STATE

log = logging.getLogger(__name__)

MODERATION_SECONDS = 0.2
"""The pause between two events of one subscription: what changes meanwhile is one event."""

HOST_SECONDS = 0.2
"""The pause between two readings of what all peers share: the way out may change thousands of times a second."""

SENT_AT_ONCE = 8
"""How many events are sent before requests get their turn, when all subscribers are told of a change."""

PAUSES = (MODERATION_SECONDS, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the next event after so many failures in a row, and after more of them."""

BEGIN_SECONDS = 15.0
"""When a subscription ends whose subscriber has not got the SID; its connection lasts ten seconds at most."""

WAKE_SECONDS = 60.0
"""How soon a subscription ends that has run out while the machine was suspended, when asyncio's timers stand still."""


@dataclass(eq=False)
class Subscription:
    """One subscription. `seq` is the key of its next event, and `sent` the values that the subscriber has."""

    service: Service
    peer: Peer
    source: Address
    own: Address
    callbacks: tuple[gena.Callback, ...]
    expires: float
    sid: str = field(default_factory=lambda: f"uuid:{uuid4()}")
    seq: int = 0
    sent: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    begun: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def may_replace(self, earlier: "Subscription") -> bool:
        """Return whether an earlier one's subscriber does not answer, did not get its SID, or has started again."""
        same = earlier.service is self.service and earlier.callbacks == self.callbacks
        return same or not earlier.begun or earlier.failures > 0

    def begin(self) -> None:
        """Have the initial event sent: the subscriber has got the SID."""
        self.begun = True
        self.changed.set()


class Subscriptions:
    """The subscriptions of all peers: as many as `places` allows. Each has a task, which waits for nobody else.

    Peers see their own mappings: the values of an event are those of the peer that subscribed, as the gateway answers
    its requests.
    """

    def __init__(self, gateway: Gateway, root: UUID, notifier: Notifier, places: Places[Subscription]) -> None:
        self._gateway = gateway
        self._root = root
        self._notifier = notifier
        self._places = places
        self._by_sid: dict[str, Subscription] = {}
        self._host_changed = asyncio.Event()
        self._host: tuple[object, ...] = ()  # what all subscribers have, as far as is known
        self._link: LinkStatus | None = None  # at the last change of the host
        gateway.ledger.on_accepted.append(self._mappings_changed)
        gateway.on_new_peers.append(self._follow)

    def __len__(self) -> int:
        return len(self._by_sid)

    def limit(self, subscriptions: int, per_peer: int) -> None:
        """Keep so many from now on, of all peers and of one; those that there are stay."""
        self._places.resize(subscriptions, per_peer)

    # Requests

    def subscribe(
        self, service: Service, peer: Peer, source: Address, own: Address, headers: gena.Headers
    ) -> Subscription:
        """Begin or renew a subscription of a peer, whose request arrived at the address `own`; GenaError.

        A new one gets its first event after `begin`.
        """
        wanted = gena.decode_subscribe(headers, source)
        if not self._gateway.policies.may_use(peer.public_key, ControlProtocol.UPNP):
            raise gena.GenaError(403, Refusal.PROTOCOL_FORBIDDEN.value)
        expires = self._gateway.clock() + wanted.seconds
        if isinstance(wanted, gena.Renew):
            renewed = self._find(wanted.sid, service, peer)
            renewed.expires = expires
            self._count("renewed")
            return renewed
        subscription = Subscription(service, peer, source, own, wanted.callbacks, expires)
        self._place(subscription)
        subscription.task = asyncio.create_task(self._serve(subscription))
        self._by_sid[subscription.sid] = subscription
        self._count("subscribed")
        return subscription

    def unsubscribe(self, service: Service, peer: Peer, headers: gena.Headers) -> None:
        """End a subscription of a peer; GenaError."""
        self._end(self._find(gena.decode_unsubscribe(headers), service, peer))
        self._count("unsubscribed")

    def seconds_left(self, subscription: Subscription) -> int:
        """Return how long a subscription lasts from now on."""
        return round(subscription.expires - self._gateway.clock())

    def _find(self, sid: str, service: Service, peer: Peer) -> Subscription:
        found = self._by_sid.get(sid)
        known = found is not None and found.service is service and found.peer.public_key == peer.public_key
        if found is None or not known or self._has_expired(found):
            raise gena.GenaError(412, "no subscription has this SID")
        return found

    def _has_expired(self, subscription: Subscription) -> bool:
        return subscription.expires <= self._gateway.clock()

    def _place(self, subscription: Subscription) -> None:
        """Give a new subscription a place: if need be, that of one that nobody seems to use any more; GenaError."""
        key = subscription.peer.public_key
        if not self._places.is_open_to(key):
            own = (each for each in self._by_sid.values() if each.peer.public_key == key)
            if (oldest := next(filter(subscription.may_replace, own), None)) is not None:
                self._end(oldest)
        if not self._places.is_open_to(key):
            self._gateway.dropped[key, "subscriptions above subscriptions_per_peer or subscriptions"] += 1
            raise gena.GenaError(503, "too many subscriptions")
        displaced = self._places.take(key, subscription)
        if displaced is not None:
            self._end(displaced)

    # Changes

    def host_changed(self) -> None:
        """Tell all subscribers what has changed in the external address or the external interface."""
        self._host_changed.set()

    async def watch_host(self) -> None:
        """Read what all peers share when it may have changed; never ends."""
        while True:
            await self._host_changed.wait()
            self._host_changed.clear()
            self._link = await self._read_link()
            announced = self._gateway.announced if self._gateway.ledger.addresses else None
            found = announced, self._link and self._link.up
            if found != self._host:
                self._host = found
                for number, each in enumerate(list(self._by_sid.values())):
                    self._mark([each])
                    if number % SENT_AT_ONCE == 0:
                        await asyncio.sleep(0)
            await asyncio.sleep(HOST_SECONDS)

    async def _read_link(self) -> LinkStatus | None:
        try:
            return await self._gateway.link()
        except OSError as error:
            log.debug("the state of the external interface cannot be read: %s", error)
            return None

    def _mappings_changed(self, changes: Sequence[Change]) -> None:
        peers = {change.peer for change in changes}
        self._mark(each for each in self._by_sid.values() if each.peer.public_key in peers)

    def _mark(self, subscriptions: Iterable[Subscription]) -> None:
        for each in subscriptions:
            if each.begun:
                each.changed.set()

    async def _follow(self, peers: Peers) -> None:
        """End the subscriptions of addresses that their peer does not own any more: events show a peer's mappings.

        Also end those of peers that may no longer use UPnP: the configuration may have been read again.
        """
        for each in list(self._by_sid.values()):
            key, policies = each.peer.public_key, self._gateway.policies
            if not (peers.still_owns(key, each.source) and policies.may_use(key, ControlProtocol.UPNP)):
                self._end(each)

    # Events

    async def _serve(self, subscription: Subscription) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_SECONDS):
                    await subscription.changed.wait()
            while subscription.begun and (left := subscription.expires - self._gateway.clock()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, WAKE_SECONDS)):
                        await subscription.changed.wait()
                if subscription.changed.is_set() and not self._has_expired(subscription):
                    subscription.changed.clear()
                    await self._send_changes(subscription)
                    await asyncio.sleep(_pause(subscription.failures))
            self._count("expired")
        finally:
            self._end(subscription)

    async def _send_changes(self, subscription: Subscription) -> None:
        """Send the variables whose values the subscriber does not have; a failure is tried again.

        Nothing is sent to an address that is no longer the peer's: `_follow` may end the subscription a moment later.
        """
        if not self._gateway.peers.last_read.still_owns(subscription.peer.public_key, subscription.source):
            return
        values = await self._values(subscription)
        news = {name: value for name, value in values.items() if subscription.sent.get(name) != value}
        if not news:
            return
        self._host = ()  # the subscriber may get what `watch_host` has not read
        body = gena.encode_event(news)
        outcome = Delivery.NOT_SENT
        for callback in subscription.callbacks:
            message = gena.encode_notify(callback, subscription.sid, subscription.seq, body)
            outcome = await self._notifier.notify(subscription.own, callback, message)
            if outcome is not Delivery.NOT_SENT:
                break
        self._count(outcome.value)
        if outcome is not Delivery.NOT_SENT:
            subscription.seq = gena.next_seq(subscription.seq)
        if outcome is Delivery.DONE:
            subscription.sent |= news
            subscription.failures = 0
        else:
            subscription.failures += 1
            subscription.changed.set()

    async def _values(self, subscription: Subscription) -> dict[str, str]:
        """Return the evented variables, without those that cannot be read at the moment.

        The link is read once for all subscriptions: it takes longer than all else.
        """
        peer, source = subscription.peer, subscription.source
        replies: dict[Request | None, Reply | None] = {None: None}
        if self._link is not None:
            replies[GetLinkStatus()] = self._link
        values = {}
        for row in STATE[subscription.service]:
            if row.evented:
                if row.request is not None and row.request not in replies:
                    replies[row.request] = await self._gateway.ask(peer, source, row.request, ControlProtocol.UPNP)
                text = row.text(replies[row.request], Parties(source, self._root))
                if text is not None:
                    values[row.variable.name] = text
        return values

    def _end(self, subscription: Subscription) -> None:
        self._by_sid.pop(subscription.sid, None)
        self._places.release(subscription.peer.public_key, subscription)
        if subscription.task is not None and subscription.task is not asyncio.current_task():
            subscription.task.cancel()

    def _count(self, outcome: str) -> None:
        self._gateway.counters["events", outcome] += 1

    async def close(self) -> None:
        """End all subscriptions, and deliveries under way."""
        tasks = [each.task for each in self._by_sid.values() if each.task]
        for each in list(self._by_sid.values()):
            self._end(each)
        await asyncio.gather(*tasks, return_exceptions=True)


def _pause(failures: int) -> float:
    return PAUSES[min(failures, len(PAUSES) - 1)]
