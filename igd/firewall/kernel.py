"""The one backend that the daemon builds: mappings, the way through FORWARD, and the flows of connection tracking."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Literal

from igd.core.mapping import AnyMapping, Change, Entry
from igd.firewall import detect
from igd.firewall.backend import Backend, MappingBackend
from igd.firewall.conntrack import Conntrack
from igd.firewall.forward.forward import Forward
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.nfnetlink import NFPROTO_INET
from igd.firewall.nft.nftables import Nftables
from igd.firewall.operator_rules.xtables import nft_tables
from igd.firewall.pretend import Pretend
from igd.firewall.site import Site, label
from igd.firewall.watch import Watch

OwnChange = Callable[[], AbstractContextManager[None]]

LEGACY: tuple[tuple[Literal[4, 6], str], ...] = ((4, "nat"), (6, "nat"), (4, "filter"), (6, "filter"))
"""The tables of iptables-legacy in which something of ours may be, by IP version and name."""


class Kernel:
    """A Backend (igd.firewall.backend) made of three: what leads packets, what lets them pass, and what they left."""

    def __init__(self, mappings: MappingBackend, site: Site) -> None:
        self.mappings = mappings
        self.forward = Forward(site)
        self._conntrack = Conntrack(site.mark)
        self._peers = site.peers
        self._addresses: tuple[IPv4Address, ...] = ()

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries`, see that FORWARD lets them pass, and end the flows of what is no more.

        Also those that went past a mapping while it was not there, and would go on doing so.
        """
        self._addresses = tuple(addresses)
        entries = list(entries)
        self.forward.ensure()
        self.mappings.replace_all(self._addresses, entries, now)
        self._conntrack.flush_stale(entries, self._peers)
        self._conntrack.settle((), [entry.mapping for entry in entries], self._addresses)

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out `changes`; flows that a mapping has lost end, and flows that would keep packets from it too."""
        self.mappings.apply(changes, now)
        self._conntrack.settle(_lost(changes), _new(changes), self._addresses)

    def let_pass(self) -> None:
        """See that FORWARD lets flows pass."""
        self.forward.ensure()

    def remove_all(self) -> None:
        """Take out mappings and all that let them pass, and end their flows; whatever fails, the rest is done."""
        with ExitStack() as stack:
            stack.callback(self._conntrack.flush_stale, (), self._peers)
            stack.callback(self.forward.remove)
            stack.callback(self.mappings.remove_all)

    def close(self) -> None:
        """Close the sockets; the kernel's state stays as it is."""
        self.mappings.close()
        self._conntrack.close()


def _lost(changes: Iterable[Change]) -> list[AnyMapping]:
    """The mappings that are gone, or lead elsewhere now, or others."""
    return [change.before.mapping for change in changes if change.before and not _same_way(change.before, change.after)]


def _new(changes: Iterable[Change]) -> list[AnyMapping]:
    return [change.after.mapping for change in changes if change.after and not _same_way(change.after, change.before)]


def _same_way(one: Entry, other: Entry | None) -> bool:
    if other is None:
        return False
    return (one.mapping.internal, one.mapping.remotes) == (other.mapping.internal, other.mapping.remotes)


_MAPPINGS: dict[detect.Backend, Callable[[Site, OwnChange], MappingBackend]] = {
    "nftables": lambda site, _own_change: Nftables(site),
    "iptables": lambda site, own_change: Iptables(site, own_change=own_change),
}


def build(choice: detect.Backend, site: Site, legacy: LegacyWatch) -> Backend:
    """Build this backend for one site; FirewallError where it cannot work.

    What another backend left behind, because it was killed and then the choice changed, goes first. `legacy` is not to
    take our own changes for others'.
    """
    if choice == "pretend":
        return Pretend()
    for other in _known():
        if other != choice:
            _clear(_MAPPINGS[other](site, legacy.own_change))
    return Kernel(_MAPPINGS[choice](site, legacy.own_change), site)


def watch(backend: Backend, site: Site) -> Watch:
    """Hear of others' changes of nftables; NetlinkError."""
    own = backend.mappings.port if isinstance(backend, Kernel) and isinstance(backend.mappings, Nftables) else 0
    forward = backend.forward.tables if isinstance(backend, Kernel) else set()
    return Watch((NFPROTO_INET, label(site.wireguard)), forward, own)


def remove_everything(interface: str, mark: int, led_to: tuple[IPv4Network | IPv6Network, ...]) -> None:
    """Take everything of ours for this interface out of the kernel, whichever backend it was; FirewallError.

    Its flows too: those with this mark that lead into these networks.
    """
    # The external interface is not asked about: removing does not depend on the way that packets take.
    site = Site("", interface, led_to, mark)
    with ExitStack() as stack:
        for choice in _known():
            stack.callback(_clear, Kernel(_MAPPINGS[choice](site, nullcontext), site))


def _known() -> list[detect.Backend]:
    """The backends that may have left something in this kernel."""
    return [choice for choice in _MAPPINGS if choice != "nftables" or nft_tables() is not None]


def _clear(backend: MappingBackend) -> None:
    try:
        backend.remove_all()
    finally:
        backend.close()
