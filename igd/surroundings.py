"""The links that a gateway stands between: waits until they are there, and knows the address outside."""

import logging
from dataclasses import dataclass
from ipaddress import IPv4Address

from igd import systemd
from igd.host.external_address import ExternalAddresses, external_addresses
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


class Outside:
    """The external addresses, as they were when they were last read; `configured` is what the operator says."""

    def __init__(self, links: Links, interface: str, configured: IPv4Address | None) -> None:
        self._links = links
        self._interface = interface
        self._configured = configured
        self.addresses = ExternalAddresses(None, ())

    async def read(self) -> bool:
        """Read them anew, and say whether they have changed; OSError."""
        found = external_addresses(self._configured, await self._links.addresses(self._interface))
        if found == self.addresses:
            return False
        self.addresses = found
        if not found.matched:
            log.warning("%s is missing or has no IPv4 address: nothing can be mapped", self._interface)
        elif found.announced and not found.announced.is_global:
            log.warning(
                "%s is not a public address: clients will refuse it; behind another NAT set external_address",
                found.announced,
            )
        else:
            log.info("external address: %s", found.announced)
        return True
