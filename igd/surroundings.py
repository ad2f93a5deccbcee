"""The links that a gateway stands between: waits until they are there."""

import logging
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd import systemd
from igd.host.links import Links

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The WireGuard interface, by its index (which no other ever has) and first IPv4 address, and the way out."""

    index: int
    address: IPv4Address
    external_interface: str


async def wait_for_surroundings(links: Links, interface: str, external: str | None) -> Surroundings:
    """Wait until the interface is up with an IPv4 address, and `external` (None: a default route) is known; OSError."""
    said = None
    async for _ in links.changes(routes=True):
        found = await _look_around(links, interface, external)
        if isinstance(found, Surroundings):
            return found
        if found != said:
            log.info("waiting for %s", found)
            systemd.notify(f"STATUS=Waiting for {found}")
            said = found
    raise AssertionError("changes never end")


async def _look_around(links: Links, interface: str, external: str | None) -> Surroundings | str:
    """Find the links, or say what is missing."""
    link = await links.state(interface)
    address = await first_address(links, interface)
    if link is None or not link.up or address is None:
        return f"{interface} to be up with an IPv4 address"
    external = external or await links.default_interface()
    if external is None:
        return "an IPv4 default route, or external_interface in the configuration"
    return Surroundings(link.index, address, external)


async def first_address(links: Links, interface: str) -> IPv4Address | None:
    """The first IPv4 address of this interface; OSError."""
    addresses = (address.ip for address in await links.addresses(interface))
    return next((address for address in addresses if isinstance(address, IPv4Address)), None)
