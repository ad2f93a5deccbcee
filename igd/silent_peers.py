"""Mappings of silent peers are suspended: the kernel does not hold them, and their ports are kept for them."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from igd.core.mapping import Change, Entry
from igd.gateway import Gateway

Impose = Callable[[Iterable[Entry], Callable[[Entry], Change | None], str], Awaitable[bool]]


class SilentPeers:
    """Suspends the mappings of peers without a handshake for `idle_after` (Policy), and resumes them.

    Until a peer has a handshake, the time counts from the start of the gateway. `impose` is Maintenance's.
    """

    def __init__(self, gateway: Gateway, impose: Impose) -> None:
        self._gateway = gateway
        self._impose = impose
        policies = gateway.policies
        self._is_off = not any(policy.idle_after for policy in (policies.default, *policies.by_peer.values()))
        self._started = gateway.clock()

    async def recheck(self) -> None:
        """Suspend the mappings of peers that have become silent, and resume those of peers that are back; OSError."""
        if self._is_off:
            return
        handshakes = await self._gateway.peers.handshakes()
        now = self._gateway.clock()

        def is_silent(peer: str) -> bool:
            idle_after = self._gateway.policies.of(peer).idle_after
            return 0 < idle_after < now - handshakes.get(peer, self._started)

        silent = {entry.mapping.peer for entry in self._gateway.ledger.table if is_silent(entry.mapping.peer)}

        def change(entry: Entry) -> Change | None:
            suspended = entry.mapping.peer in silent
            return None if entry.suspended == suspended else Change(entry, replace(entry, suspended=suspended))

        entries = [entry for entry in self._gateway.ledger.table if change(entry)]
        await self._impose((each for each in entries if each.suspended), change, "resumed, the peer is back")
        await self._impose((each for each in entries if not each.suspended), change, "suspended, the peer is silent")
