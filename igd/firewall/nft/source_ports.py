"""Which mapping's external port an internal endpoint sends from: that of the oldest of its mappings."""

from collections.abc import Iterable
from typing import NamedTuple

from igd.core.mapping import Change, Endpoint, Entry, PortMapping, TransportProtocol

Candidates = tuple[Entry, ...]
"""The UDP port mappings to one internal endpoint, oldest first; the endpoint sends from the first one's port."""


class Selection(NamedTuple):
    """What changes of mappings would cause: the new candidates of each endpoint, and the changes of the first ones."""

    candidates: dict[Endpoint, Candidates]
    changes: list[Change]


class SourcePorts:
    """The candidates of each internal endpoint.

    A renewal keeps its place. A mapping that moves to another endpoint becomes that one's youngest candidate.
    """

    def __init__(self) -> None:
        self._candidates: dict[Endpoint, Candidates] = {}

    def select(self, changes: Iterable[Change]) -> Selection:
        """Return the candidates and translations after these changes, without storing them."""
        candidates: dict[Endpoint, Candidates] = {}
        for change in changes:
            for endpoint in filter(None, {_udp_endpoint(change.before), _udp_endpoint(change.after)}):
                present = candidates.get(endpoint, self._candidates.get(endpoint, ()))
                candidates[endpoint] = _changed(present, change, endpoint)
        firsts = [
            Change(_first(self._candidates.get(endpoint, ())), _first(new)) for endpoint, new in candidates.items()
        ]
        return Selection(candidates, [change for change in firsts if change.before != change.after])

    def accept(self, selection: Selection) -> None:
        """Apply the last selection."""
        for endpoint, candidates in selection.candidates.items():
            self._candidates.pop(endpoint, None)
            if candidates:
                self._candidates[endpoint] = candidates


def _udp_endpoint(entry: Entry | None) -> Endpoint | None:
    """Return the internal endpoint of a UDP port mapping; None for all others."""
    if entry is None or not isinstance(entry.mapping, PortMapping):
        return None
    return entry.mapping.internal if entry.mapping.protocol is TransportProtocol.UDP else None


def _changed(candidates: Candidates, change: Change, endpoint: Endpoint) -> Candidates:
    before, after = change.before, change.after
    if after is None or _udp_endpoint(after) != endpoint:
        return tuple(entry for entry in candidates if before is None or entry.mapping.key != before.mapping.key)
    if before is None or _udp_endpoint(before) != endpoint:
        return (*candidates, after)
    return tuple(after if entry.mapping.key == after.mapping.key else entry for entry in candidates)


def _first(candidates: Candidates) -> Entry | None:
    return candidates[0] if candidates else None
