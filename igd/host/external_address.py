"""The external address: the one announced to clients, and the one in packets from the internet."""

import logging
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

from igd.core.peers import Address
from igd.host.links import BorneAddress, Links, Route
from igd.host.uplink import NO_WAY_OUT, find_way_out, way_through

log = logging.getLogger(__name__)

_ADDRESS_LINES = 'external_address = "YOUR.PUBLIC.ADDRESS" or external_address = "stun"'


class ExternalAddresses(NamedTuple):
    """`announced` to clients, and `matched` against packets' destinations; they differ behind a 1:1 NAT."""

    announced: IPv4Address | None
    matched: tuple[IPv4Address, ...]


class AddressSource(Protocol):
    """Obtains the announced address from outside this host."""

    address: IPv4Address | None

    def ask_from(self, interface: str, source: IPv4Address | None) -> None:
        """Ask from this interface and address from now on; None: there is nothing to ask from."""


def external_addresses(
    configured: IPv4Address | None, present: Collection[IPv4Address], own: Sequence[IPv4Address]
) -> ExternalAddresses:
    """Choose the addresses; `present` are those of all interfaces, `own` those of the way out, the best one first.

    The configured address is matched on whichever interface has it. Else it is the first public one, else the first.
    Only one is matched: an operator with several uses the others for something else.
    """
    if configured in present:
        return ExternalAddresses(configured, (configured,) if configured else ())
    if not own:
        return ExternalAddresses(None, ())
    first = next((address for address in own if address.is_global), own[0])
    return ExternalAddresses(configured or first, (first,))


class ExternalAddressReader:
    """Follows the way out of the peers of the interface `tunnel`.

    `external_interface` and `external_address` are the configuration's, "auto" and "stun" included. The last result is
    the name of the `interface` ("" while there is no way out), the `addresses`, and `warnings`: one sentence for each
    thing that keeps ports from being mapped. Connections that peers open leave by `default_interface`, even if another
    interface is configured.
    """

    def __init__(self, links: Links, tunnel: str, external_interface: str, external_address: IPv4Address | str) -> None:
        self._links = links
        self._tunnel = tunnel
        self.configure(external_interface, external_address)
        self._index = 0
        self.stun: AddressSource | None = None  # with external_address = "stun"
        self.interface = self.default_interface = ""
        self.addresses = ExternalAddresses(None, ())
        self.warnings: list[str] = []

    def configure(self, external_interface: str, external_address: IPv4Address | str) -> None:
        """Use these values of the configuration from the next `read` on."""
        self._configured = external_interface if external_interface != "auto" else None
        self._address = external_address if isinstance(external_address, IPv4Address) else None
        self._automatic = external_address == "auto"

    async def read(self, peers: Iterable[Address] = ()) -> bool:
        """Update the result; `peers` are addresses of peers. Return whether interface or addresses changed. OSError."""
        before = self.interface, self.default_interface, self.addresses
        present = await self._links.ipv4_addresses()
        way = await self._way_out(peers)
        self._index, self.interface = way.index, _name(way.index)
        source = way.source if self._may_use(way.source, present) else None
        own = [each for each in present if each.index == way.index or each.ip == source]
        own.sort(key=lambda each: (not each.usable, each.ip != source))
        self.addresses = external_addresses(self._address, {each.ip for each in present}, [each.ip for each in own])
        if self.stun is not None:
            source = next(iter(self.addresses.matched), None)
            self.stun.ask_from(self.interface, source)
            self.addresses = self.addresses._replace(announced=self.stun.address if source else None)
        self.warnings = list(self._find_warnings(present))
        return before != (self.interface, self.default_interface, self.addresses)

    async def _way_out(self, peers: Iterable[Address]) -> Route:
        """Return the way out; its index is 0 while there is none."""
        default = await find_way_out(self._links, self._tunnel, peers, self._index)
        self.default_interface = _name(default.index)
        if self._configured is None:
            return NO_WAY_OUT if self.default_interface == self._tunnel else default
        link = await self._links.state(self._configured)
        return await way_through(self._links, link.index) if link and link.up else NO_WAY_OUT

    def _may_use(self, source: IPv4Address | None, present: Iterable[BorneAddress]) -> bool:
        """Return whether the way out may use this address; one that it has itself, it may.

        The way out without an address (PPP, WireGuard) borrows one. If its interface is configured, only a loopback
        interface lends: the address of another way out does not lead here.
        """
        lenders = {_name(each.index) for each in present if each.ip == source}
        allowed = {self.interface, "lo"} if self._configured is not None else lenders - {self._tunnel}
        return bool(lenders & allowed)

    def _find_warnings(self, present: Iterable[BorneAddress]) -> Iterator[str]:
        matched = next(iter(self.addresses.matched), None)
        if not self.interface:
            effect = "mapped flows get no answers" if matched else "ports cannot be mapped, pinholes can"
            yield f"{self._missing_interface()}: {effect}"
        elif matched is None:
            yield f"{self.interface} has no IPv4 address: ports cannot be mapped, pinholes can"
        if matched is None:
            return
        if self._automatic and not matched.is_global:
            where = f"{self.interface} has no public address, only {matched}: clients will refuse it"
            yield f"{where}; if this server is behind a 1:1 NAT, write {_ADDRESS_LINES} (with stun_servers)"
        elif self._address not in {None, matched} and matched.is_global:
            known = ", ".join(str(each.ip) for each in present if each.ip.is_global)
            yield f"no interface has external_address {self._address} (there are: {known}): {matched} is mapped instead"

    def _missing_interface(self) -> str:
        if self._configured is None:
            return "no IPv4 default route"
        names = [name for _, name in socket.if_nameindex()]
        if self._configured in names:
            return f"external_interface {self._configured} is down"
        others = ", ".join(name for name in names if name not in {"lo", self._tunnel})
        return f"external_interface {self._configured} does not exist (there are: {others})"


def _name(index: int) -> str:
    """Return the present name of an interface; empty if it does not exist."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
