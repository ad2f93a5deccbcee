"""What a request would change: the operator's rules and the table, asked in the right order."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from igd.core.mapping import AnyMapping, Change, Claim, Endpoint, Pinhole, PortMapping, Remote, TransportProtocol
from igd.core.policy import Policy
from igd.core.request import MapPort, Refusal
from igd.core.table import Table

NEVER = {(TransportProtocol.UDP, 5350), (TransportProtocol.UDP, 5351)}
"""External ports that no mapping ever gets: NAT-PMP's and PCP's own (RFC 6887 §11.3)."""

ROWS = 2
"""How many places are tried for ports in a row: in most there is room, and each try asks for all of them."""


class Planner:
    """Plans what a peer asks for; `taken` tells the external ports that are led elsewhere already."""

    def __init__(
        self, policy: Policy, table: Table, taken: Callable[[TransportProtocol, int], bool], rng: random.Random
    ) -> None:
        self._policy = policy
        self._table = table
        self._taken = taken
        self._rng = rng

    def plan(self, peer: str, request: MapPort, now: float) -> Change | Refusal:
        """Give the change that grants what this peer asks, whose internal address is known to be its own."""
        if request.internal.address.version == 6:
            return self._plan_pinhole(peer, request, now)
        if request.claim.by_internal:
            held = self._table.find_internal(peer, request.protocol, request.internal)
            if held is not None:
                return self._plan_renewal(peer, request, held.mapping.external_port, now)
        how = self._plan_any_port if request.any_port else self._plan_one_port
        return how(peer, request, now)

    def plan_row(self, peer: str, request: MapPort, now: float) -> list[Change] | Refusal:
        """Give the changes that grant `count` ports in a row, or as many of them, from the first on, as can be had.

        Where the first is mapped already, the row lies beside it.
        """
        first = self.plan(peer, request, now)
        if isinstance(first, Refusal):
            return first
        moves = request.any_port and first.before is None and request.internal.address.version == 4
        starts = [first] if not moves or _keeps_parity(request, first.key[1]) else []
        best: list[Change] = []
        for start in itertools.chain(starts, itertools.islice(self._starts(peer, request, now), ROWS if moves else 0)):
            best = max(best, self._grow(peer, request, start, now), key=len)
            if len(best) == request.count or not self._has_room(peer, len(best)):
                break
        return best or Refusal.NO_FREE_PORT

    def _starts(self, peer: str, request: MapPort, now: float) -> Iterator[Change]:
        for port in self._policy.candidates(None, request.internal, request.description, self._rng):
            if _keeps_parity(request, port) and self._may_choose(peer, request, port, now):
                plan = self._plan_port(peer, request, port, now)
                if isinstance(plan, Change):
                    yield plan

    def _grow(self, peer: str, request: MapPort, first: Change, now: float) -> list[Change]:
        """Give the change and those for the ports beside it, up to the first that cannot be had."""
        row, external, internal = [first], first.key[1], request.internal
        new = int(first.before is None)
        for step in range(1, min(request.count, 65536 - external, 65536 - internal.port)):
            beside = Endpoint(internal.address, internal.port + step)
            wanted = replace(request, internal=beside, external_port=external + step, any_port=False)
            plan = self.plan(peer, wanted, now)
            if isinstance(plan, Refusal) or (plan.before is None and not self._has_room(peer, new)):
                break
            row.append(plan)
            new += plan.before is None
        return row

    def _has_room(self, peer: str, planned: int) -> bool:
        return self._table.has_room(peer, self._policy.mappings_per_peer, planned)

    def _plan_pinhole(self, peer: str, request: MapPort, now: float) -> Change | Refusal:
        port, internal, about = request.internal.port, request.internal, _about(peer, request)
        if not request.any_port and request.external_port != port:
            return Refusal.CONFLICT
        if (request.protocol, port) in NEVER or not self._policy.allows(port, internal, request.description):
            return Refusal.FORBIDDEN
        return self._plan_mapping(Pinhole(request.protocol, internal, *about), request, now)

    def _plan_renewal(self, peer: str, request: MapPort, port: int, now: float) -> Change | Refusal:
        if not request.any_port and request.external_port != port:
            return Refusal.CONFLICT
        if not self._policy.allows(port, request.internal, request.description):
            return Refusal.FORBIDDEN
        return self._plan_port(peer, request, port, now)

    def _plan_one_port(self, peer: str, request: MapPort, now: float) -> Change | Refusal:
        assert request.external_port is not None, "only any_port leaves the port open"
        if not self._policy.allows(request.external_port, request.internal, request.description):
            return Refusal.FORBIDDEN
        if request.claim.by_internal and not self._may_choose(peer, request, request.external_port, now):
            return Refusal.CONFLICT
        return self._plan_port(peer, request, request.external_port, now)

    def _plan_any_port(self, peer: str, request: MapPort, now: float) -> Change | Refusal:
        refusal = Refusal.FORBIDDEN
        for port in self._policy.candidates(request.external_port, request.internal, request.description, self._rng):
            if self._may_choose(peer, request, port, now):
                plan = self._plan_port(peer, request, port, now)
                if plan is not Refusal.CONFLICT:
                    return plan
            refusal = Refusal.NO_FREE_PORT
        return refusal

    def _may_choose(self, peer: str, request: MapPort, port: int, now: float) -> bool:
        """The wish may renew what the asker holds; another port must be nobody's, the asker's own included."""
        table, protocol, internal = self._table, request.protocol, request.internal
        if table.offers(protocol, port, peer, internal, now):
            return True
        held = table.find(peer, (protocol, port)) if port == request.external_port else None
        return held is not None and (not request.claim.by_internal or held.mapping.internal == internal)

    def _plan_port(self, peer: str, request: MapPort, port: int, now: float) -> Change | Refusal:
        if (request.protocol, port) in NEVER or self._taken(request.protocol, port):
            return Refusal.CONFLICT
        mapping = PortMapping(request.protocol, port, request.internal, *_about(peer, request))
        return self._plan_mapping(mapping, request, now)

    def _plan_mapping(self, mapping: AnyMapping, request: MapPort, now: float) -> Change | Refusal:
        lease = self._policy.lease(request.lifetime, now)
        quota = self._policy.mappings_per_peer
        return self._table.plan_map(mapping, lease, quota, adds_remotes=request.adds_remotes)


def _keeps_parity(request: MapPort, port: int) -> bool:
    return not request.keeps_parity or port % 2 == request.internal.port % 2


def _about(peer: str, request: MapPort) -> tuple[str, str, tuple[Remote, ...], Claim]:
    return peer, request.description, request.remotes, request.claim
