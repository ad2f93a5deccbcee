"""The interface of the firewall backends."""

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

from igd.core.mapping import AnyMapping, Change, Entry


class FirewallError(Exception):
    """A request to the kernel failed; assume nothing about how much of it was done."""


class Traffic(NamedTuple):
    """What passed; the counts are of 64 bits. A packet that the kernel has assembled from several is one."""

    packets: int
    octets: int


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
    """Everything that the ledger needs from the kernel.

    When `replace_all` or `apply` returns, packets of new flows pass just as the entries say. `replace_all` has also
    ended the flows that passed before and no longer may. After `apply` they are swept (igd.firewall.sweeps), and so are
    those that keep a remote's packets from a new UDP mapping. That takes at most two walks through the kernel's
    connections and a pause as long as the first, however many changes other peers make: 0.1 s for 100,000 connections,
    or 3 s if all of them lead through mappings. If the kernel refuses, it is logged and tried again each second.
    """

    def sweep_of(self, changes: Iterable[Change]) -> Future[None] | None:
        """Return what is done when flows like those of mappings that `changes` open have been swept, or None.

        A mapping that is closed and opened again must not lose its new flows to the sweep of its earlier ones, so its
        owner waits for that. May be called from any thread.
        """

    def follow_peers(self) -> None:
        """Limit the rates of the site's present peers; a failure is logged."""

    def traffic(self, mappings: Collection[AnyMapping]) -> list[Traffic | None]:
        """Return what the internet has sent through each of these mappings since the kernel holds it; FirewallError.

        None of a mapping that it does not hold. Takes 15 microseconds for each.
        """

    def ensure_forward(self) -> bool:
        """Ensure that the operator's forward chains accept mapped flows, after they were changed.

        Return whether rules of ours had to be edited for it.
        """
