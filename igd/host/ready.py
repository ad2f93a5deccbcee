"""Waits until the two interfaces that a gateway stands between are there."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd.host.links import Links


@dataclass(frozen=True, slots=True)
class Interfaces:
    """The WireGuard interface, by its index (never reused) and first IPv4 address, and the external interface."""

    index: int
    address: IPv4Address
    external_interface: str


async def wait_for_interfaces(
    links: Links, interface: str, external: str | None, waiting: Callable[[str], None]
) -> Interfaces:
    """Wait until the interface is up with an IPv4 address, and `external` (None: a default route) is known.

    `waiting` is called with what is missing, each time that this changes. OSError.
    """
    reported = None
    async for _ in links.changes(routes=True):
        found = await _look(links, interface, external)
        if isinstance(found, Interfaces):
            return found
        if found != reported:
            waiting(found)
            reported = found
    raise AssertionError("changes never end")


async def _look(links: Links, interface: str, external: str | None) -> Interfaces | str:
    """Return the interfaces, or what is missing."""
    link = await links.state(interface)
    address = await first_address(links, interface)
    if link is None or not link.up or address is None:
        return f"{interface} to be up with an IPv4 address"
    external = external or await links.default_interface()
    if external is None:
        return "an IPv4 default route, or external_interface in the configuration"
    return Interfaces(link.index, address, external)


async def first_address(links: Links, interface: str) -> IPv4Address | None:
    """The first IPv4 address of this interface; OSError."""
    addresses = (address.ip for address in await links.addresses(interface))
    return next((address for address in addresses if isinstance(address, IPv4Address)), None)
