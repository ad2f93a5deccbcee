"""What a daemon would warn of on this host now, for `igd check`."""

import asyncio
import time

from igd.config import Config
from igd.core.peers import Peers
from igd.firewall.operator_rules import source_nat
from igd.host import clock, forwarding
from igd.host.external_address import ExternalAddressReader
from igd.host.links import Links
from igd.host.wireguard import WireGuard


def host_warnings(interface: str, config: Config) -> list[str]:
    """Return a sentence for each condition of this host that keeps this configuration from working; OSError.

    Conditions that concern peers are examined if the interface exists, which takes the right to read its peers.
    """
    return asyncio.run(_warnings(interface, config))


async def _warnings(interface: str, config: Config) -> list[str]:
    async with Links() as links:
        peers = await _peers(links, interface)
        external = ExternalAddressReader(links, interface, config.external_interface, config.external_address)
        await external.read(peers.addresses)
        matched = external.addresses.matched
        settings = await forwarding.warnings(links, interface, external.interface, peers.owned(), matched)
    missing = source_nat.missing(interface, external.default_interface, peers) or []
    return [*external.warnings, *settings, *missing]


async def _peers(links: Links, interface: str) -> Peers:
    if await links.state(interface) is None:
        return Peers([], [])
    wireguard = WireGuard(interface, clock=clock.boottime, wall_clock=time.time)
    wireguard.addresses = await links.addresses(interface)
    return await wireguard.peers()
