"""A backend that only remembers, for `backend = "pretend"` and for tests of everything above the firewall."""

from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv4Address

from igd.core.mapping import AnyMapping, Change, Entry, Key
from igd.firewall.backend import FirewallError, Traffic


class Pretend:
    """A Backend (igd.firewall.backend) that keeps the entries in memory; `fail_next` makes the next change fail once.

    As in the kernel, closing a mapping that is not open, or opening one that is, fails and changes nothing.
    """

    def __init__(self) -> None:
        self.addresses: frozenset[IPv4Address] = frozenset()
        self.entries: dict[Key, Entry] = {}
        self.fail_next: FirewallError | None = None
        self.closed = False

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:  # noqa: ARG002 - the signature is Backend's
        """Hold exactly `entries`."""
        self._fail_if_asked()
        self.addresses = frozenset(addresses)
        self.entries = {entry.mapping.key: entry for entry in entries}

    def apply(self, changes: Sequence[Change], now: float) -> None:  # noqa: ARG002 - the signature is Backend's
        """Carry out all `changes` or none."""
        self._fail_if_asked()
        entries = dict(self.entries)
        for change in changes:
            _apply(entries, change)
        self.entries = entries

    def sweep_of(self, changes: Iterable[Change]) -> None:
        """Return None: there are no flows."""

    def follow_peers(self) -> None:
        """Do nothing: no packets are limited."""

    def traffic(self, mappings: Collection[AnyMapping]) -> list[Traffic | None]:
        """Return zeros for the mappings that are held: nothing passes."""
        return [Traffic(0, 0) if mapping.key in self.entries else None for mapping in mappings]

    def ensure_forward(self) -> bool:
        """Do nothing, and return False: no forward chain can drop anything."""
        return False

    def remove_all(self) -> None:
        """Hold nothing."""
        self._fail_if_asked()
        self.addresses = frozenset()
        self.entries = {}

    def close(self) -> None:
        """Record that it was closed."""
        self.closed = True

    def _fail_if_asked(self) -> None:
        failure, self.fail_next = self.fail_next, None
        if failure is not None:
            raise failure


def _apply(entries: dict[Key, Entry], change: Change) -> None:
    if change.before is not None and entries.pop(change.before.mapping.key, None) is None:
        raise FirewallError(f"no such mapping: {change.before.mapping}")
    if change.after is not None:
        if change.after.mapping.key in entries:
            raise FirewallError(f"the port is taken: {change.after.mapping}")
        entries[change.after.mapping.key] = change.after
