"""Waits until both interfaces of a gateway, the WireGuard and the external one, are ready."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd.host.links import Links


@dataclass(frozen=True, slots=True)
class Interfaces:
    """The WireGuard interface's index (never reused) and first IPv4 address, and the external interface's name."""

    index: int
    address: IPv4Address
    external_interface: str


async def wait_for_interfaces(
    links: Links, interface: str, external: str | None, report_missing: Callable[[str], None]
) -> Interfaces:
    """Wait until the interface is up with an IPv4 address, and until there is a default route if `external` is None.

    `report_missing` is called with a description of what is missing, whenever it changes. OSError.
    """
    reported = None
    async for _ in links.changes(routes=True):
        found = await _interfaces(links, interface, external)
        if isinstance(found, Interfaces):
            return found
        if found != reported:
            report_missing(found)
            reported = found
    raise AssertionError("changes never end")


async def _interfaces(links: Links, interface: str, external: str | None) -> Interfaces | str:
    """Return the interfaces, or a description of what is missing."""
    link = await links.state(interface)
    address = await first_address(links, interface)
    if link is None or not link.up or address is None:
        return f"{interface} to be up with an IPv4 address"
    external = external or await links.default_interface()
    if external is None:
        return "an IPv4 default route, or external_interface in the configuration"
    return Interfaces(link.index, address, external)


async def first_address(links: Links, interface: str) -> IPv4Address | None:
    """Return the first IPv4 address of this interface, or None; OSError."""
    addresses = (address.ip for address in await links.addresses(interface))
    return next((address for address in addresses if isinstance(address, IPv4Address)), None)
