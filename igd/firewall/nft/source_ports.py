"""From which mapping's external port an internal endpoint sends: of several that lead to it, the oldest's."""

from collections.abc import Iterable
from typing import NamedTuple

from igd.core.mapping import Change, Endpoint, Entry, PortMapping, TransportProtocol

Line = tuple[Entry, ...]
"""The UDP port mappings that lead to one endpoint, oldest first."""


class Plan(NamedTuple):
    """What changes would do: the lines as they would be, and the changes of who stands first in them."""

    lines: dict[Endpoint, Line]
    changes: list[Change]


class SourcePorts:
    """The lines of mappings before each endpoint; a renewal keeps its place, and who leads elsewhere queues up anew."""

    def __init__(self) -> None:
        self._lines: dict[Endpoint, Line] = {}

    def plan(self, changes: Iterable[Change]) -> Plan:
        """Say what these changes would do, and do nothing."""
        lines: dict[Endpoint, Line] = {}
        for change in changes:
            for endpoint in {_leads_to(change.before), _leads_to(change.after)} - {None}:
                assert endpoint is not None, "just taken out"
                line = lines.get(endpoint, self._lines.get(endpoint, ()))
                lines[endpoint] = _changed(line, change, endpoint)
        firsts = [Change(_first(self._lines.get(endpoint, ())), _first(line)) for endpoint, line in lines.items()]
        return Plan(lines, [change for change in firsts if change.before != change.after])

    def accept(self, plan: Plan) -> None:
        """Do what was planned last."""
        for endpoint, line in plan.lines.items():
            self._lines.pop(endpoint, None)
            if line:
                self._lines[endpoint] = line


def _leads_to(entry: Entry | None) -> Endpoint | None:
    if (
        entry is None
        or not isinstance(entry.mapping, PortMapping)
        or entry.mapping.protocol is not TransportProtocol.UDP
    ):
        return None
    return entry.mapping.internal


def _changed(line: Line, change: Change, endpoint: Endpoint) -> Line:
    before, after = change.before, change.after
    if after is None or _leads_to(after) != endpoint:
        return tuple(entry for entry in line if before is None or entry.mapping.key != before.mapping.key)
    if before is None or _leads_to(before) != endpoint:
        return (*line, after)
    return tuple(after if entry.mapping.key == after.mapping.key else entry for entry in line)


def _first(line: Line) -> Entry | None:
    return line[0] if line else None
