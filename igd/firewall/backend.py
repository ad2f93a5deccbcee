"""The verbs that every firewall backend has."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from igd.core.mapping import Change, Entry


class FirewallError(Exception):
    """The kernel did not do what was asked; nothing of the failed call may be relied on."""


class MappingBackend(Protocol):
    """What holds mappings in the kernel.

    Calls come one after another, from one thread that may block. Each either does all that it says or raises
    FirewallError; after an error the caller makes the kernel equal to its table with `replace_all`.
    """

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries` for packets to `addresses`, whatever was there of ours before, in one transaction."""

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out `changes` in one transaction; `now` is the moment on the clock of the leases."""

    def remove_all(self) -> None:
        """Take everything of ours out of the kernel; nothing there is not an error."""

    def close(self) -> None:
        """Give back sockets and handles; the kernel's state stays as it is."""


class Backend(MappingBackend, Protocol):
    """All that the ledger needs of the kernel."""

    def let_pass(self) -> None:
        """See that the operator's forward chains let through what is held, after somebody has changed them."""
