"""What the clock and the host bring: leases run out, peers go, addresses change, and the store is taken over."""

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from igd.core.mapping import Change, Entry, Lease, PortMapping, TransportProtocol
from igd.core.peers import Peer, Peers
from igd.core.policy import Policy
from igd.firewall.backend import FirewallError
from igd.gateway import LIVE_SECONDS, Gateway, PeerSource
from igd.ledger import Ledger

log = logging.getLogger(__name__)


class Maintenance:
    """Keeps what a gateway has granted true to the clock and to the host; parts as of Gateway.

    A failure of the kernel or of the peers' source is logged, and what it kept from being done is done later.
    """

    def __init__(  # noqa: PLR0913 - it looks after all of them
        self,
        *,
        gateway: Gateway,
        policy: Policy,
        ledger: Ledger,
        peers: PeerSource,
        clock: Callable[[], float],
        taken: Callable[[TransportProtocol, int], bool],
    ) -> None:
        self._gateway = gateway
        self._policy = policy
        self._ledger = ledger
        self._peers = peers
        self._clock = clock
        self._taken = taken
        self._settled: tuple[Peer, ...] | None = None  # with these peers, all that is mapped is somebody's
        ledger.on_change.append(self._unsettle)

    async def start(
        self, stored: Iterable[Entry], announced: IPv4Address | None, matched: Iterable[IPv4Address]
    ) -> None:
        """Take over what the store holds, as far as it is still allowed; FirewallError or OSError: it cannot."""
        self._gateway.announced = announced
        peers = await self._peers.peers()
        keep: list[Entry] = []
        drop: list[Entry] = []
        for entry in stored:
            (keep if self._may_stay(entry, peers) else drop).append(entry)
        # The operator may have shortened what is granted, and a wall clock that was set back lengthens leases.
        latest = self._clock() + self._policy.max_lifetime
        keep = [
            replace(entry, lease=replace(entry.lease, expires=latest)) if entry.lease.expires > latest else entry
            for entry in keep
        ]
        if drop:
            log.info("not taken over, out of time or not allowed: %s", ", ".join(str(entry.mapping) for entry in drop))
        await self._ledger.take_over(keep, drop, matched)
        self._settled = peers.all

    def _may_stay(self, entry: Entry, peers: Peers) -> bool:
        mapping = entry.mapping
        return (
            (entry.lease.endless or entry.lease.expires > self._clock())  # on the endless ones `wake` decides
            and _owned(peers, entry)
            and not (isinstance(mapping, PortMapping) and self._taken(*mapping.key))
            and self._policy.allows(mapping.external_port, mapping.internal, mapping.description)
        )

    async def set_addresses(self, announced: IPv4Address | None, matched: Iterable[IPv4Address]) -> None:
        """Take new external addresses: what clients are told, and what packets to us really carry."""
        self._gateway.announced = announced
        await asyncio.shield(self._ledger.readdress(matched))

    async def wake(self) -> None:
        """End or renew the leases that have run out, and mend what could not be mended before."""
        await asyncio.shield(self._wake())

    async def _wake(self) -> None:
        await self._ledger.mend()
        expired = self._ledger.table.expired(self._clock())
        handshakes: Mapping[str, float] | None = {}
        trouble: OSError | None = None
        if any(entry.lease.endless for entry in expired):
            try:
                handshakes = await self._peers.handshakes()
            except OSError as error:
                handshakes, trouble = None, error
        await self._impose(expired, lambda entry: self._when_expired(entry, handshakes), "their leases have run out")
        if trouble is not None:
            self._put_off(trouble)

    def _when_expired(self, entry: Entry, handshakes: Mapping[str, float] | None) -> Change | None:
        """An endless lease is renewed from its peer's last handshake, where that can be read; a silent peer's ends."""
        now = self._clock()
        if entry.lease.expires > now or (entry.lease.endless and handshakes is None):
            return None
        if not entry.lease.endless or handshakes is None or entry.mapping.peer not in handshakes:
            return Change(entry, None)
        # A peer that talks shakes hands only every two minutes; a wall clock that was set back puts handshakes into the
        # future.
        handshake = min(handshakes[entry.mapping.peer], now)
        lease = Lease(handshake + max(self._policy.default_lifetime, LIVE_SECONDS), endless=True)
        return Change(entry, replace(entry, lease=lease) if lease.expires > now else None)

    async def recheck_peers(self) -> None:
        """Close the mappings whose peers are gone or no longer own the internal address."""
        await asyncio.shield(self._recheck_peers())

    async def _recheck_peers(self) -> None:
        try:
            peers = await self._peers.peers()
        except OSError as error:
            log.error("the peers cannot be read: %s", error)  # noqa: TRY400 - it says all
            return
        if peers.all == self._settled:
            return
        owns = functools.cache(peers.still_owns)  # there are many mappings, but few hosts
        strays = [each for each in self._ledger.table if not owns(each.mapping.peer, each.mapping.internal.address)]
        self._settled = peers.all
        closing = lambda entry: None if _owned(peers, entry) else Change(entry, None)  # noqa: E731 - it has no name
        if not await self._impose(strays, closing, "nobody's now"):
            self._unsettle()

    def _unsettle(self) -> None:
        self._settled = None

    async def _impose(self, entries: Iterable[Entry], judge: Callable[[Entry], Change | None], why: str) -> bool:
        """Change entries of these entries' peers as `judge` says, each peer's in its turn; all go into few writes.

        False where that failed for a peer.
        """
        peers = {entry.mapping.peer for entry in entries}
        outcomes = await asyncio.gather(*(self._impose_on(peer, judge, why) for peer in peers))
        errors = [error for error in outcomes if error is not None]
        for error in errors:
            self._put_off(error)
        return not errors

    async def _impose_on(
        self, peer: str, judge: Callable[[Entry], Change | None], why: str
    ) -> FirewallError | OSError | None:
        try:
            async with self._ledger.turn(peer):
                judged = map(judge, self._ledger.table.of_peer(peer))
                changes = [change for change in judged if change is not None]
                await self._ledger.impose(changes)
        except (FirewallError, OSError) as error:
            return error
        closed = [str(change.before.mapping) for change in changes if change.before and change.after is None]
        if closed:
            log.info("closed, %s: %s", why, ", ".join(closed))
        return None

    def _put_off(self, error: Exception) -> None:
        log.error("leases could not be ended: %s", error)
        self._ledger.retry_later()


def _owned(peers: Peers, entry: Entry) -> bool:
    return peers.still_owns(entry.mapping.peer, entry.mapping.internal.address)
