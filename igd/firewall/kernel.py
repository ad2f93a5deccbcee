"""The one backend that the daemon builds: mappings, the jump in FORWARD, and the flows of connection tracking."""

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address

from igd.core.mapping import Change, Entry, PortMapping
from igd.firewall import detect
from igd.firewall.backend import Backend
from igd.firewall.conntrack import EVERYWHERE, Conntrack
from igd.firewall.forward_jump import ForwardJump
from igd.firewall.forward_verdict import Passage
from igd.firewall.iptables import Iptables
from igd.firewall.netlink import NFPROTO_INET, NFPROTO_IPV4
from igd.firewall.nftables import Nftables
from igd.firewall.pretend import Pretend
from igd.firewall.rules import MARK, OURS, label
from igd.firewall.watch import Watch
from igd.firewall.xtables import nft_tables


class Kernel:
    """A Backend (igd.firewall.backend) made of three: what leads packets, what lets them pass, and what they left."""

    def __init__(self, mappings: Backend, passage: Passage) -> None:
        self.mappings = mappings
        self._jump = ForwardJump(passage)
        self._conntrack = Conntrack(passage.mark)
        self._peers = passage.peers
        self._addresses: tuple[IPv4Address, ...] = ()

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries`, see that FORWARD lets them pass, and end the flows of what is no more.

        Also those that went past a mapping while it was not there, and would go on doing so.
        """
        self._addresses = tuple(addresses)
        entries = list(entries)
        self._jump.ensure()
        self.mappings.replace_all(self._addresses, entries, now)
        self._conntrack.flush_stale(entries, self._peers)
        self._conntrack.flush_unmapped([entry.mapping for entry in entries], self._addresses)

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out `changes`; flows that a mapping has lost end, and flows that would keep packets from it too."""
        self.mappings.apply(changes, now)
        self._conntrack.flush(_lost(changes), self._addresses)
        self._conntrack.flush_unmapped(_new(changes), self._addresses)

    def remove_all(self) -> None:
        """Take out jump and mappings, and end their flows."""
        self.mappings.remove_all()
        self._jump.remove()
        self._conntrack.flush_stale((), self._peers)

    def close(self) -> None:
        """Close the sockets; the kernel's state stays as it is."""
        self.mappings.close()
        self._conntrack.close()


def _lost(changes: Iterable[Change]) -> list[PortMapping]:
    """The mappings that are gone, or lead elsewhere now."""
    return [
        change.before.mapping
        for change in changes
        if change.before and (change.after is None or change.after.mapping.internal != change.before.mapping.internal)
    ]


def _new(changes: Iterable[Change]) -> list[PortMapping]:
    return [change.after.mapping for change in changes if change.after and change.before is None]


_MAPPINGS: dict[detect.Backend, Callable[[str, int], Backend]] = {"nftables": Nftables, "iptables": Iptables}


def build(choice: detect.Backend, passage: Passage) -> Backend:
    """Build this backend for one WireGuard interface; FirewallError where it cannot work.

    What another backend left behind, because it was killed and then the choice changed, goes first.
    """
    if choice == "pretend":
        return Pretend()
    for other in _known():
        if other != choice:
            _clear(_mappings(other, passage))
    return Kernel(_mappings(choice, passage), passage)


def watch(backend: Backend, interface: str) -> Watch:
    """Hear of others' changes to our table, and to the FORWARD of iptables-nft; NetlinkError."""
    own = backend.mappings.port if isinstance(backend, Kernel) and isinstance(backend.mappings, Nftables) else 0
    return Watch({(NFPROTO_INET, label(interface)), (NFPROTO_IPV4, "filter")}, own)


def remove_everything(interface: str) -> None:
    """Take everything of ours for this interface out of the kernel, whichever backend it was; FirewallError.

    Its flows too, unless another instance is there: all have one mark, and whose a flow is cannot be told any more.
    """
    others = any(name.startswith(OURS) and name != label(interface) for _, name in nft_tables() or ())
    # The external interface is not asked about: removing does not depend on the way that packets take.
    passage = Passage("", interface, () if others else EVERYWHERE, MARK)
    for choice in _known():
        _clear(Kernel(_mappings(choice, passage), passage))


def _known() -> list[detect.Backend]:
    """The backends that may have left something in this kernel."""
    return [choice for choice in _MAPPINGS if choice != "nftables" or nft_tables() is not None]


def _mappings(choice: detect.Backend, passage: Passage) -> Backend:
    return _MAPPINGS[choice](passage.wireguard, passage.mark)


def _clear(backend: Backend) -> None:
    try:
        backend.remove_all()
    finally:
        backend.close()
