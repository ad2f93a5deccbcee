"""Mappings of silent peers are suspended: the kernel does not hold them, and their ports are kept for them."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from igd.core.mapping import Change, Entry, PortMapping
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.gateway import Gateway

log = logging.getLogger(__name__)

Impose = Callable[[Iterable[Entry], Callable[[Entry], Change | None], str], Awaitable[bool]]


class SilentPeers:
    """Suspends the mappings of peers without a handshake for `idle_after` (Policy), and resumes them.

    Until a peer has a handshake, the time counts from the start of the gateway. `impose` is Maintenance's.
    """

    def __init__(self, gateway: Gateway, impose: Impose) -> None:
        self._gateway = gateway
        self._impose = impose
        self._started = gateway.clock()
        self._warnings = RecurringWarnings(log)

    async def recheck(self) -> None:
        """Suspend the mappings of peers that have become silent, and resume those of peers that are back.

        Raise OSError or FirewallError if that is not known.
        """
        policies, table = self._gateway.policies, self._gateway.ledger.table
        is_on = any(policy.idle_after for policy in (policies.default, *policies.by_peer.values()))
        if not is_on and not any(entry.suspended for entry in table):
            return
        handshakes = await self._gateway.peers.handshakes()
        now = self._gateway.clock()

        def is_silent(peer: str) -> bool:
            idle_after = self._gateway.policies.of(peer).idle_after
            return 0 < idle_after < now - handshakes.get(peer, self._started)

        silent = {entry.mapping.peer for entry in self._gateway.ledger.table if is_silent(entry.mapping.peer)}

        await self._impose(
            [each for each in self._gateway.ledger.table if not each.suspended and each.mapping.peer in silent],
            lambda entry: None if entry.suspended else Change(entry, replace(entry, suspended=True)),
            "suspended, the peer is silent",
        )
        back = [each for each in self._gateway.ledger.table if each.suspended and each.mapping.peer not in silent]
        taken = {entry.mapping.key for entry in back if self._is_taken(entry)}
        self._warnings.log(
            f"{self._gateway.policies.label(entry.mapping.peer)} is back, and its mapping {entry.mapping} stays"
            " suspended: the server, a rule of its firewall, or another igd uses the port"
            for entry in back
            if entry.mapping.key in taken
        )
        await self._impose(
            [each for each in back if each.mapping.key not in taken],
            lambda entry: (
                Change(entry, replace(entry, suspended=False))
                if entry.suspended and entry.mapping.key not in taken
                else None
            ),
            "resumed, the peer is back",
        )

    def _is_taken(self, entry: Entry) -> bool:
        """Return whether something else uses the port by now: the kernel did not hold it."""
        return isinstance(entry.mapping, PortMapping) and self._gateway.taken(*entry.mapping.key)
