"""The external address: the one announced to clients, and the one in packets from the internet."""

import logging
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.core.peers import Interface
from igd.host.links import Links

log = logging.getLogger(__name__)


class ExternalAddresses(NamedTuple):
    """`announced` to clients, and `matched` against packets' destinations; they differ behind a 1:1 NAT."""

    announced: IPv4Address | None
    matched: tuple[IPv4Address, ...]


def external_addresses(configured: IPv4Address | None, interface: Iterable[Interface]) -> ExternalAddresses:
    """Choose among the external interface's addresses: the configured one, else the first public one, else the first.

    Only one is matched: an operator with several uses the others for something else.
    """
    own = [address.ip for address in interface if isinstance(address.ip, IPv4Address)]
    if configured in own:
        return ExternalAddresses(configured, (configured,))
    if not own:
        return ExternalAddresses(configured, ())
    first = next((address for address in own if address.is_global), own[0])
    return ExternalAddresses(configured or first, (first,))


class ExternalAddressReader:
    """Reads the way out and keeps the last result: the name of its `interface` ("": none) and its `addresses`.

    `configured_interface` and `configured` are the operator's choice.
    """

    def __init__(self, links: Links, configured_interface: str | None, configured: IPv4Address | None) -> None:
        self._links = links
        self._configured_interface = configured_interface
        self._configured = configured
        self.interface = ""
        self.addresses = ExternalAddresses(None, ())

    async def read(self) -> bool:
        """Update `interface` and `addresses`; return whether one of them has changed. OSError."""
        interface = self._configured_interface or await self._links.default_interface() or ""
        addresses = external_addresses(self._configured, await self._links.addresses(interface))
        if (interface, addresses) == (self.interface, self.addresses):
            return False
        self.interface, self.addresses = interface, addresses
        self._log()
        return True

    def _log(self) -> None:
        announced, matched = self.addresses
        if not matched:
            log.warning("%s is missing or has no IPv4 address: no port can be mapped", self.interface or "the way out")
        elif announced and not announced.is_global:
            log.warning(
                "%s is not a public address: clients will refuse it; behind another NAT, set external_address",
                announced,
            )
        else:
            log.info("external address: %s on %s", announced, self.interface)
