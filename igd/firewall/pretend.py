"""A backend that remembers and touches nothing: `backend = "pretend"`, and tests of everything above the firewall."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

from igd.core.mapping import Change, Entry, Key
from igd.firewall.backend import FirewallError


class Pretend:
    """A Backend (igd.firewall.backend) that holds what it was told; `fail_next` makes the next change fail once.

    It is as strict as a kernel: closing what is not open, or opening what is, fails and changes nothing.
    """

    def __init__(self) -> None:
        self.addresses: frozenset[IPv4Address] = frozenset()
        self.entries: dict[Key, Entry] = {}
        self.fail_next: FirewallError | None = None
        self.closed = False

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:  # noqa: ARG002 - no leases here
        """Hold exactly `entries`."""
        self._perhaps_fail()
        self.addresses = frozenset(addresses)
        self.entries = {entry.mapping.key: entry for entry in entries}

    def apply(self, changes: Sequence[Change], now: float) -> None:  # noqa: ARG002
        """Carry out all `changes` or none."""
        self._perhaps_fail()
        entries = dict(self.entries)
        for change in changes:
            _apply(entries, change)
        self.entries = entries

    def let_pass(self) -> None:
        """Nothing is in the way."""

    def remove_all(self) -> None:
        """Hold nothing."""
        self._perhaps_fail()
        self.addresses = frozenset()
        self.entries = {}

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def _perhaps_fail(self) -> None:
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
