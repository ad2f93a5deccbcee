"""The static mappings of the configuration: they stand while their peer owns the internal address."""

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from igd.core.unique_ids import UNIQUE_IDS, UniqueIds
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
        self._wanted: Mapping[Key, tuple[StaticMapping, AnyMapping]] = {}
        self.follow_policies()
        self._warnings = RecurringWarnings(log)
        self.problems: list[str] = []

    def follow_policies(self) -> None:
        """Open the static mappings of the gateway's present policies from now on, and no others."""
        self._wanted = {
            mapping.key: (static, mapping)
            for key, policy in self._gateway.policies.by_peer.items()
            for static, mapping in ((each, _mapping(key, each)) for each in policy.static)
        }

    def wants(self, mapping: AnyMapping) -> bool:
        """Return whether a static mapping that stands is as the configuration has it."""
        wanted = self._wanted.get(mapping.key)
        return wanted is not None and (wanted[1].peer, wanted[1].internal) == (mapping.peer, mapping.internal)

    def at_start(self, peers: Peers, stored: Iterable[Entry]) -> list[Entry]:
        """Return the entries that can stand at the start; `stored` ones are about to be in the table."""
        held = {entry.mapping.key: entry for entry in stored}
        pinholes = (entry.mapping for entry in held.values() if isinstance(entry.mapping, Pinhole))
        return list(_with_unique_ids(self.standing(peers), held.get, UniqueIds(pinholes)))

    def standing(self, peers: Peers) -> list[Entry]:
        """Return the entries that are not in the table and can stand; log which others cannot, and why.

        Pinholes have no UniqueID yet.
        """
        found, problems = [], []
        for key, (static, mapping) in self._wanted.items():
            held = self._ledger.table.find(mapping.peer, key)
            if held is not None and held.lease.static:
                continue
            obstacle = self._obstacle(mapping, peers)
            if obstacle is None:
                found.append(Entry(mapping, STATIC))
            else:
                peer = self._gateway.policies.label(mapping.peer)
                problems.append(f'static mapping "{static}" of {peer} does not stand: {obstacle}')
        self._warnings.log(problems)
        self.problems = problems
        return found

    async def open(self, peers: Peers) -> None:
        """Open those that can stand; FirewallError or OSError if that fails."""
        by_peer: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self.standing(peers) if self._wanted or self.problems else ():
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

        def held(key: Key) -> Entry | None:
            return table.find(entries[0].mapping.peer, key)

        for entry in _with_unique_ids(entries, held, table.unique_ids):
            before = held(entry.mapping.key)
            if before is not None or not table.holds(entry.mapping.key):
                yield Change(before, entry)

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
        if isinstance(mapping, Pinhole) and self._ledger.table.unique_ids.are_used_up:
            return f"there are {len(UNIQUE_IDS)} pinholes, and UPnP cannot number more"
        return None


def _mapping(peer: str, static: StaticMapping) -> AnyMapping:
    """Return the mapping; NAT-PMP and PCP find it by its internal endpoint, UPnP by its external port."""
    about = (peer, DESCRIPTION, (), BY_INTERNAL_ENDPOINT)
    if static.pinhole_address is None:
        return PortMapping(static.protocol, static.external_port, static.internal, *about)
    return Pinhole(static.protocol, static.internal, *about)


def _with_unique_ids(
    entries: Iterable[Entry], held: Callable[[Key], Entry | None], unique_ids: UniqueIds
) -> Iterator[Entry]:
    """Yield the entries, pinholes with a UniqueID: that of the one that is `held`, or one that depends on the pinhole.

    Static mappings are not stored: so a client that knows the UniqueID finds the pinhole after a restart as well. A
    pinhole for which none is free is left out.
    """
    chosen: set[int] = set()
    for entry in entries:
        mapping = entry.mapping
        if isinstance(mapping, PortMapping):
            yield entry
            continue
        before = held(mapping.key)
        by_pinhole = random.Random(str(mapping))  # noqa: S311 - it need not be unpredictable
        unique_id = (
            before.mapping.unique_id
            if before is not None and isinstance(before.mapping, Pinhole)
            else unique_ids.free(by_pinhole, chosen)
        )
        if unique_id is not None:
            chosen.add(unique_id)
            yield replace(entry, mapping=replace(mapping, unique_id=unique_id))
