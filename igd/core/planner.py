"""Plans the changes that grant a request: policy and table decide, and external ports are chosen."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from igd.core.mapping import AnyMapping, Change, Claim, Endpoint, Pinhole, PortMapping, Remote, TransportProtocol
from igd.core.policy import Policy
from igd.core.request import MapPort, Refusal
from igd.core.reserved_ports import NEVER_MAPPED
from igd.core.table import Table

MORE_STARTS = 2
"""How many other first ports are tried for a port set. Few suffice: most have enough free ports after them."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans what one peer requests at one moment; the peer must own the internal address.

    `policy` is that peer's; `taken` returns whether an external port is already translated by another rule, or reserved
    for another peer.
    """

    policy: Policy
    table: Table
    taken: Callable[[TransportProtocol, int], bool]
    rng: random.Random
    peer: str
    request: MapPort
    now: float
    unique_ids: set[int] = field(default_factory=set)  # chosen for pinholes of this plan

    def plan(self) -> Change | Refusal:
        """Return the change that maps the first port of the request."""
        request = self.request
        if request.internal.address.version == 6:
            return self._plan_pinhole()
        if request.internal.port == 0:
            return self._plan_same_port()
        if request.claim.by_internal:
            held = self.table.find_internal(self.peer, request.protocol, request.internal)
            if held is not None:
                return self._plan_renewal(held.mapping.external_port)
        return self._plan_any_port() if request.any_port else self._plan_one_port()

    def plan_port_set(self) -> list[Change] | Refusal:
        """Return the changes that map `count` consecutive ports, or as many of them as can be had from the first on.

        If the first port is mapped already, the others are placed after its external port.
        """
        request, first = self.request, self.plan()
        if isinstance(first, Refusal):
            return first
        movable = request.any_port and first.before is None and request.internal.address.version == 4
        starts = [first] if not movable or self._keeps_parity(first.key[1]) else []
        best: list[Change] = []
        for start in itertools.chain(starts, itertools.islice(self._starts(), MORE_STARTS if movable else 0)):
            best = max(best, self._extend(start), key=len)
            if len(best) == request.count or not self._has_room(len(best)):
                break
        return best or Refusal.NO_FREE_PORT

    def _starts(self) -> Iterator[Change]:
        for port in self._candidates():
            if self._keeps_parity(port) and self._may_choose(port):
                plan = self._plan_port(port)
                if isinstance(plan, Change):
                    yield plan

    def _extend(self, first: Change) -> list[Change]:
        """Return `first` and the changes for the ports after it, up to the first that is refused."""
        plans, external, internal = [first], first.key[1], self.request.internal
        new, remotes = int(first.before is None), first.added_remotes
        for step in range(1, min(self.request.count, 65536 - external, 65536 - internal.port)):
            after = Endpoint(internal.address, internal.port + step)
            request = replace(self.request, internal=after, external_port=external + step, any_port=False)
            plan = replace(self, request=request).plan()
            if isinstance(plan, Refusal) or (plan.before is None and not self._has_room(new)):
                break
            remotes += plan.added_remotes
            if not self._has_room_for_remotes(remotes):
                break
            plans.append(plan)
            new += plan.before is None
        return plans

    def _plan_pinhole(self) -> Change | Refusal:
        protocol, internal, wanted = self.request.protocol, self.request.internal, self.request.external_port
        if not self.request.any_port and wanted != internal.port:
            return Refusal.CONFLICT
        if (protocol, internal.port) in NEVER_MAPPED or not self._allows(internal.port):
            return Refusal.FORBIDDEN
        pinhole = Pinhole(protocol, internal, *self._attributes)
        held = self.table.find(self.peer, pinhole.key)
        if held is not None and isinstance(held.mapping, Pinhole):
            return self._plan_mapping(replace(pinhole, unique_id=held.mapping.unique_id))
        unique_id = self.table.unique_ids.free(self.rng, self.unique_ids)
        if unique_id is None:
            return Refusal.NO_FREE_PORT
        self.unique_ids.add(unique_id)
        return self._plan_mapping(replace(pinhole, unique_id=unique_id))

    def _plan_renewal(self, port: int) -> Change | Refusal:
        if not self.request.any_port and self.request.external_port != port:
            return Refusal.CONFLICT
        return self._plan_port(port) if self._allows(port) else Refusal.FORBIDDEN

    def _plan_one_port(self) -> Change | Refusal:
        port = self.request.external_port
        assert port is not None, "the port may be None only with any_port"
        if not self._allows(port):
            return Refusal.FORBIDDEN
        if self.request.claim.by_internal and not self._may_choose(port):
            return Refusal.CONFLICT
        return self._plan_port(port)

    def _plan_any_port(self) -> Change | Refusal:
        refusal = Refusal.FORBIDDEN
        for port in self._preferred_ports():
            if self._may_choose(port):
                plan = self._plan_port(port)
                if plan is not Refusal.CONFLICT:
                    return plan
            refusal = Refusal.NO_FREE_PORT
        return refusal

    def _preferred_ports(self) -> Iterator[int]:
        """Yield the allowed ports: the suggested one, then those that lead to the same endpoint already, then any."""
        request = self.request
        if request.external_port is not None and self._allows(request.external_port):
            yield request.external_port
        if not request.claim.by_internal:
            held = (each for each in self._held() if each.protocol is request.protocol)
            same = (each.external_port for each in held if each.internal == request.internal)
            yield from filter(self._allows, same)
        yield from self._candidates()

    def _plan_same_port(self) -> Change | Refusal:
        """Map one port, the same inside and outside, that this host can have for the other protocol as well."""
        for port in self._same_ports():
            internal = Endpoint(self.request.internal.address, port)
            request = replace(self.request, internal=internal, external_port=port, any_port=False)
            plan = replace(self, request=request).plan()
            if isinstance(plan, Change) or plan not in {Refusal.CONFLICT, Refusal.FORBIDDEN}:
                return plan
        return Refusal.NO_FREE_PORT if any(self._candidates()) else Refusal.FORBIDDEN

    def _same_ports(self) -> Iterator[int]:
        """Yield the host's own port first, then the suggested one, then its port of the other protocol, then any."""
        address, suggested = self.request.internal.address, self.request.external_port
        held = [each for each in self._held() if each.internal.address == address]
        own = [each for each in held if each.protocol is self.request.protocol]
        chosen = [each.external_port for each in own if each.reserves_companion]
        companions = [each.external_port for each in held if each.reserves_companion and each not in own]
        if suggested is not None and any(each.external_port == each.internal.port == suggested for each in own):
            yield suggested
        yield from chosen
        if suggested is not None and (suggested in companions or self._is_free_for_both(suggested)):
            yield suggested
        yield from companions
        yield from filter(self._is_free_for_both, self._candidates())

    def _is_free_for_both(self, port: int) -> bool:
        internal = self.request.internal
        return all(
            (protocol, port) not in NEVER_MAPPED
            and self._is_offered(protocol, port, internal)
            and not self.taken(protocol, port)
            for protocol in TransportProtocol
        )

    def _held(self) -> Iterator[PortMapping]:
        """Yield the peer's port mappings, oldest first."""
        for entry in self.table.of_peer(self.peer):
            if isinstance(entry.mapping, PortMapping):
                yield entry.mapping

    def _plan_port(self, port: int) -> Change | Refusal:
        protocol = self.request.protocol
        if (protocol, port) in NEVER_MAPPED or self.taken(protocol, port):
            return Refusal.CONFLICT
        return self._plan_mapping(PortMapping(protocol, port, self.request.internal, *self._attributes))

    def _plan_mapping(self, mapping: AnyMapping) -> Change | Refusal:
        lease, quota = self.policy.lease(self.request.lifetime, self.now), self.policy.max_mappings
        owned = self.policy.reserves(mapping.protocol, mapping.external_port)
        plan = self.table.plan_map(mapping, lease, quota, adds_remotes=self.request.adds_remotes, owned=owned)
        if isinstance(plan, Change) and not self._has_room_for_remotes(plan.added_remotes):
            return Refusal.TOO_MANY_REMOTES
        return plan

    @property
    def _attributes(self) -> tuple[str, str, tuple[Remote, ...], Claim]:
        return self.peer, self.request.description, self.request.remotes, self.request.claim

    def _candidates(self) -> Iterator[int]:
        request = self.request
        return self.policy.candidates(request.protocol, request.internal, request.description, self.rng)

    def _allows(self, port: int) -> bool:
        request = self.request
        return self.policy.allows(request.protocol, port, request.internal, request.description)

    def _has_room(self, planned: int) -> bool:
        return self.table.has_room(self.peer, self.policy.max_mappings, planned)

    def _has_room_for_remotes(self, added: int) -> bool:
        return self.table.has_room_for_remotes(self.peer, self.policy.max_mappings, added)

    def _keeps_parity(self, port: int) -> bool:
        return not self.request.keeps_parity or port % 2 == self.request.internal.port % 2

    def _may_choose(self, port: int) -> bool:
        """The port must be free, or lead to the same endpoint, and for UPnP from the same remote hosts."""
        request = self.request
        if self._is_offered(request.protocol, port, request.internal):
            return True
        held = self.table.find(self.peer, (request.protocol, port))
        return (
            held is not None
            and held.mapping.internal == request.internal
            and (request.claim.by_internal or held.mapping.remotes == request.remotes)
        )

    def _is_offered(self, protocol: TransportProtocol, port: int, internal: Endpoint) -> bool:
        """Return whether the gateway may choose this port: one that is reserved for the peer, unless it is mapped."""
        if self.policy.reserves(protocol, port):
            return not self.table.holds((protocol, port))
        return self.table.offers(protocol, port, self.peer, internal, self.now)
