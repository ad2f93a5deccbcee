"""What happens to mappings when the configuration is read again while they stand: as at a restart, without its gap."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace

from igd.core.mapping import AnyMapping, Change, Entry, PortMapping
from igd.core.peers import Peers
from igd.core.policies import Policies
from igd.gateway import Gateway
from igd.static_mappings import StaticMappings
from igd.turns import pieces

log = logging.getLogger(__name__)

CHECKED_AT_ONCE = 32
"""How many mappings are checked before requests get their turn: half a millisecond."""

Impose = Callable[[Iterable[Entry], Callable[[Entry], Change | None], str], Awaitable[bool]]


def objections(entry: Entry, peers: Peers, policies: Policies) -> Iterator[str]:
    """Yield the reasons for which the policies do not allow a mapping that a client requested."""
    mapping, policy = entry.mapping, policies.of(entry.mapping.peer)
    if isinstance(mapping, PortMapping) and policies.withholds(mapping.peer, *mapping.key):
        yield "the port is reserved for another peer"
    if not policy.allows(mapping.protocol, mapping.external_port, mapping.internal, mapping.description):
        yield "the rules do not allow it"
    if mapping.claim.protocol not in policy.protocols:
        yield "the peer may no longer use the protocol"
    if not policy.routed_hosts and peers.is_routed_host(mapping.internal.address):
        yield "the peer may not map to hosts behind it"


class PolicyChanges:
    """Makes the mappings of a gateway fit its policies after these have changed. `impose` is Maintenance's.

    What a restart would not resume is closed, leases above the longest one are shortened, and static mappings that are
    no longer wanted are closed. A lower quota closes nothing. `closed` has what was closed since `begin`.
    """

    def __init__(self, gateway: Gateway, static: StaticMappings, impose: Impose) -> None:
        self.closed: list[AnyMapping] = []
        self._gateway = gateway
        self._static = static
        self._impose = impose
        self._is_due = False
        self._lock = asyncio.Lock()

    def begin(self) -> None:
        """Have `make_fit` apply the gateway's present policies."""
        self._static.follow_policies()
        self.closed = []
        self._is_due = True

    async def make_fit(self, peers: Peers) -> None:
        """Apply the policies to all mappings, unless that was done since `begin`; the next call does what fails."""
        async with self._lock:
            if not self._is_due:
                return
            await self._gateway.changes_so_far()  # they may have been decided by the former policies
            table, done = self._gateway.ledger.table, True
            excluded: dict[str, list[Entry]] = {}  # by reason
            long: list[Entry] = []
            for piece in pieces(list(table), CHECKED_AT_ONCE):
                async with self._gateway.turns:
                    long += filter(self._shortened, piece)
                    for entry in piece:
                        if (reason := self._objection(entry, peers)) is not None:
                            excluded.setdefault(reason, []).append(entry)
            for reason, entries in excluded.items():
                done &= await self._impose(entries, self._closing(reason, peers), f"closed, {reason}")
            done &= await self._impose(long, self._shortened, "shortened")
            self._is_due = not done
            every = [entry.mapping for entries in excluded.values() for entry in entries]
            closed = [mapping for mapping in every if table.find(mapping.peer, mapping.key) is None]
            self.closed += closed
            self._gateway.report_revoked(closed)

    def _closing(self, reason: str, peers: Peers) -> Callable[[Entry], Change | None]:
        return lambda entry: Change(entry, None) if self._objection(entry, peers) == reason else None

    def _objection(self, entry: Entry, peers: Peers) -> str | None:
        if entry.lease.static:
            return None if self._static.wants(entry.mapping) else "it is not static any more"
        return next(objections(entry, peers, self._gateway.policies), None)

    def _shortened(self, entry: Entry) -> Change | None:
        """Return the change to the longest lease of the peer, or None if the lease is no longer than that."""
        latest = self._gateway.clock() + self._gateway.policies.of(entry.mapping.peer).max_lifetime
        if entry.lease.static or entry.lease.expires <= latest:
            return None
        return Change(entry, replace(entry, lease=replace(entry.lease, expires=latest)))
