"""The static mappings of the configuration: they stand while their peer owns the internal address."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from igd.core.mapping import (
    BY_INTERNAL_ENDPOINT,
    STATIC,
    AnyMapping,
    Change,
    Entry,
    Key,
    Pinhole,
    PortMapping,
)
from igd.core.peers import Peers
from igd.core.reserved_ports import StaticMapping
from igd.core.unicast import is_unicast
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.gateway import Gateway
from igd.log_lines import of_peer

log = logging.getLogger(__name__)

DESCRIPTION = "static"


class StaticMappings:
    """Opens the static mappings of a gateway as soon as they can stand.

    What can no longer stand is closed with its peer's other mappings (igd.maintenance). `problems` has a sentence for
    each that did not stand when this was last looked at.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._ledger = gateway.ledger
        self._wanted: Mapping[Key, tuple[StaticMapping, AnyMapping]] = {
            mapping.key: (static, mapping)
            for key, policy in gateway.policies.by_peer.items()
            for static, mapping in ((each, _mapping(key, each)) for each in policy.static)
        }
        self._warnings = RecurringWarnings(log)
        self.problems: list[str] = []

    def standing(self, peers: Peers, stored: Iterable[Entry] = ()) -> list[Entry]:
        """Return the entries that are not in the table and can stand; log which others cannot, and why.

        `stored` entries are about to be in the table.
        """
        found, problems = [], []
        unique_ids: dict[int, Key] = {
            entry.mapping.unique_id: entry.mapping.key for entry in stored if isinstance(entry.mapping, Pinhole)
        }
        for key, (static, mapping) in self._wanted.items():
            held = self._ledger.table.find(mapping.peer, key)
            if held is not None and held.lease.static:
                continue
            placed = self._with_unique_id(mapping, held, unique_ids)
            obstacle = self._obstacle(mapping, peers) if placed else "all UniqueIDs of pinholes are in use"
            if placed and obstacle is None:
                found.append(Entry(placed, STATIC))
            else:
                peer = self._gateway.policies.label(mapping.peer)
                problems.append(f'static mapping "{static}" of {peer} does not stand: {obstacle}')
        self._warnings.log(problems)
        self.problems = problems
        return found

    async def open(self, peers: Peers) -> None:
        """Open those that can stand; FirewallError or OSError if that fails."""
        by_peer: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self.standing(peers) if self._wanted else ():
            by_peer[entry.mapping.peer].append(entry)
        for peer, entries in by_peer.items():
            async with self._ledger.peer_lock(peer):
                changes = list(self._changes(entries))
                await self._ledger.commit(changes, imposed=True)
            opened = ", ".join(str(change.after.mapping) for change in changes if change.after)
            if opened:
                log.info("opened, static: %s (%s)", opened, self._gateway.policies.label(peer), extra=of_peer(peer))

    def _changes(self, entries: list[Entry]) -> Iterator[Change]:
        """Yield the changes that open these entries of one peer, in place of what it had mapped itself."""
        table = self._ledger.table
        for entry in entries:
            key = entry.mapping.key
            held = table.find(entry.mapping.peer, key)
            if held is not None or not table.holds(key):
                yield Change(held, entry)

    def _with_unique_id(self, mapping: AnyMapping, held: Entry | None, used: dict[int, Key]) -> AnyMapping | None:
        """Return the mapping, a pinhole with the UniqueID of the one that it replaces, or a free one; None if none is.

        `used` are chosen already, for these keys.
        """
        if not isinstance(mapping, Pinhole):
            return mapping
        present = held.mapping.unique_id if held and isinstance(held.mapping, Pinhole) else None
        own = (each for each, key in used.items() if key == mapping.key)
        free = present or next(own, None) or self._ledger.table.free_unique_id(self._gateway.rng, used)
        if free is None:
            return None
        used[free] = mapping.key
        return replace(mapping, unique_id=free)

    def _obstacle(self, mapping: AnyMapping, peers: Peers) -> str | None:
        address = mapping.internal.address
        if not peers.still_owns(mapping.peer, address):
            return f"{address} is not in the peer's AllowedIPs"
        if not is_unicast(address):
            return f"{address} is not the address of one host"
        if not self._gateway.peers.reaches(address):
            return f"packets to {address} do not leave through the tunnel"
        if isinstance(mapping, PortMapping) and self._gateway.taken(*mapping.key):
            return "the server, a rule of its firewall, or another igd uses the port"
        return None


def _mapping(peer: str, static: StaticMapping) -> AnyMapping:
    """Return the mapping; NAT-PMP and PCP find it by its internal endpoint, UPnP by its external port."""
    about = (peer, DESCRIPTION, (), BY_INTERNAL_ENDPOINT)
    if static.pinhole_address is None:
        return PortMapping(static.protocol, static.external_port, static.internal, *about)
    return Pinhole(static.protocol, static.internal, *about)
