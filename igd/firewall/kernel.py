"""The backend that the daemon builds: it combines mappings, the forward chains and connection tracking."""

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Literal

from igd.core.mapping import AnyMapping, Change, Endpoint, Entry, Remote
from igd.firewall import detect
from igd.firewall.backend import Backend, MappingBackend, Traffic
from igd.firewall.conntrack import Conntrack, Translation, endings, translations
from igd.firewall.forward.forward import Forward
from igd.firewall.legacy.iptables import Iptables
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import NFPROTO_INET
from igd.firewall.nft import request_rate, traffic
from igd.firewall.nft.nftables import Nftables
from igd.firewall.nft.request_rate import RequestRateTable
from igd.firewall.nft.traffic import TrafficTable
from igd.firewall.open_pinholes import OpenPinholes
from igd.firewall.operator_rules.xtables import nft_tables
from igd.firewall.pretend import Pretend
from igd.firewall.site import Site, label
from igd.firewall.sweeps import Sweeps
from igd.firewall.watch import Watch

OwnChange = Callable[[], AbstractContextManager[None]]

LEGACY: tuple[tuple[Literal[4, 6], str], ...] = ((4, "nat"), (6, "nat"), (4, "filter"), (6, "filter"))
"""The tables of iptables-legacy that may contain rules of ours, by IP version and name."""


class Kernel:
    """A Backend (igd.firewall.backend): translates packets, has forward chains accept them, and ends their flows.

    It also limits what peers send to the gateway itself.
    """

    def __init__(self, mappings: MappingBackend, site: Site) -> None:
        self.mappings = mappings
        self.forward = Forward(site)
        self._pinholes = OpenPinholes()
        self._conntrack = Conntrack(site.mark)
        self._sweeping = Conntrack(site.mark, self._pinholes)  # used by the thread of the sweeps
        self._sweeps = Sweeps(self._sweeping.end)
        self._request_rate = RequestRateTable(site)
        self._netlink = mappings.netlink if isinstance(mappings, Nftables) else Netlink()
        self._traffic = TrafficTable(site, self._netlink)
        if isinstance(mappings, Nftables):
            mappings.beside = self._traffic.changed
        self._site = site
        self._addresses: tuple[IPv4Address, ...] = ()

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries`, ensure that forward chains accept them, and end the flows of all other mappings.

        Also end the untranslated flows that would keep packets from the mappings, and the flows to PCP's anycast
        addresses.
        """
        self._addresses = tuple(addresses)
        entries = list(entries)
        self.forward.ensure()
        self.mappings.replace_all(self._addresses, entries, now)
        self._pinholes.replace(entries)
        self._conntrack.flush_stale(entries, self._site.peers)
        self._conntrack.end(endings((), [entry.mapping for entry in entries], self._addresses))
        if self._site.anycast:
            self._conntrack.end_anycast()
        self._request_rate.replace()
        self._traffic.replace(entry.mapping for entry in entries)

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out `changes`; then sweep the flows of lost mappings, and those that keep packets from new ones."""
        self._sweeps.require_room()
        self.mappings.apply(changes, now)
        self._pinholes.change(changes)
        if not isinstance(self.mappings, Nftables):
            self._traffic.apply(changes)
        moved = _moved(changes)
        lost = [change.before.mapping for change in moved if change.before]
        self._sweeps.add(endings(lost, [change.after.mapping for change in moved if change.after], self._addresses))

    def sweep_of(self, changes: Iterable[Change]) -> Future[None] | None:
        """Return what is done after the next attempt to sweep flows like those of mappings to open, or None."""
        opened = [change.after.mapping for change in _moved(changes) if change.after]
        return self._sweeps.of(set[Translation]().union(*(translations(one, self._addresses) for one in opened)))

    def follow_peers(self) -> None:
        """Limit the rates of the site's present peers; a failure is logged."""
        self._request_rate.replace()

    def traffic(self, mappings: Collection[AnyMapping]) -> list[Traffic | None]:
        """Return what the internet has sent through each of these mappings; FirewallError."""
        return self._traffic.read(mappings)

    def ensure_forward(self) -> bool:
        """Ensure that forward chains accept mapped flows; return whether rules of ours were edited."""
        return self.forward.ensure()

    def remove_all(self) -> None:
        """Remove the mappings and our forward rules, and end the flows; if one step fails, the others still run."""
        with ExitStack() as stack:
            stack.callback(self._conntrack.flush_stale, (), self._site.peers)
            stack.callback(self._sweeps.finish)
            stack.callback(self.forward.remove)
            stack.callback(self.mappings.remove_all)
            if nft_tables() is not None:
                stack.callback(self._request_rate.remove)
                stack.callback(self._traffic.remove)

    def close(self) -> None:
        """Close the sockets; the kernel's state stays as it is."""
        self.mappings.close()
        self._sweeps.close()
        self._sweeping.close()
        self._conntrack.close()
        self._request_rate.close()
        self._netlink.close()

    @property
    def ports(self) -> tuple[int, ...]:
        """The addresses of the netlink sockets that edit our tables in nftables."""
        return self._netlink.port, self._request_rate.port


def _moved(changes: Iterable[Change]) -> list[Change]:
    return [change for change in changes if _endpoints(change.before) != _endpoints(change.after)]


def _endpoints(entry: Entry | None) -> tuple[Endpoint, tuple[Remote, ...]] | None:
    """Return the endpoints between which a mapping's flows pass; a change of other fields does not end them."""
    return (entry.mapping.internal, entry.mapping.remotes) if entry else None


def _mappings(choice: detect.Backend, site: Site, own_change: OwnChange = nullcontext) -> MappingBackend:
    return Nftables(site) if choice == "nftables" else Iptables(site, own_change=own_change)


def build(choice: detect.Backend, site: Site, legacy: LegacyWatch) -> Backend:
    """Build this backend for one site; FirewallError if it cannot work.

    First remove what an earlier run with another backend left because it was killed. `legacy` is told
    of igd's own changes, so that it does not report them.
    """
    if choice == "pretend":
        return Pretend()
    for other in _supported():
        if other != choice:
            _remove_and_close(_mappings(other, site, legacy.own_change))
    return Kernel(_mappings(choice, site, legacy.own_change), site)


def watch(backend: Backend, site: Site) -> Watch:
    """Return a watch for other programs' changes of nftables; NetlinkError."""
    ours = [(NFPROTO_INET, name(site.wireguard)) for name in (label, request_rate.table_name, traffic.table_name)]
    if not isinstance(backend, Kernel):
        return Watch(ours, (), ())
    return Watch(ours, backend.forward.tables, backend.ports)


def remove_everything(interface: str, mark: int, destinations: tuple[IPv4Network | IPv6Network, ...]) -> None:
    """Remove everything of ours for this interface from the kernel, for every backend; FirewallError.

    Also end the flows with this mark into the networks `destinations`.
    """
    # Removal does not depend on the external interface.
    site = Site("", interface, destinations, mark)
    with ExitStack() as stack:
        for choice in _supported():
            stack.callback(_remove_and_close, Kernel(_mappings(choice, site), site))


def _supported() -> list[detect.Backend]:
    """Return the backends that this kernel supports, whose rules an earlier run may have left."""
    return ["iptables"] if nft_tables() is None else ["nftables", "iptables"]


def _remove_and_close(backend: MappingBackend) -> None:
    try:
        backend.remove_all()
    finally:
        backend.close()
