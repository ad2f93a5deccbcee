"""The interface of the firewall backends."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from igd.core.mapping import Change, Entry


class FirewallError(Exception):
    """A request to the kernel failed; assume nothing about how much of it was done."""


class MappingBackend(Protocol):
    """Holds mappings in the kernel.

    Calls come one after another, from one thread that may block. Each call either succeeds as a whole or raises
    FirewallError; after an error the caller makes the kernel equal to its table with `replace_all`.
    """

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries` for packets to `addresses`, in one transaction."""

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out `changes` in one transaction; `now` is the present time on the clock of the leases."""

    def remove_all(self) -> None:
        """Remove everything of ours from the kernel; its absence is not an error."""

    def close(self) -> None:
        """Close sockets and handles; the kernel's state stays as it is."""


class Backend(MappingBackend, Protocol):
    """Everything that the ledger needs from the kernel."""

    def ensure_forward(self) -> bool:
        """Ensure that the operator's forward chains accept mapped flows, after they were changed.

        Return whether rules of ours had to be edited for it.
        """
