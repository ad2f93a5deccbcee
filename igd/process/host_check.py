"""What a daemon would warn of on this host now, for `igd check`."""

import asyncio
import time

from igd.config import Config
from igd.config_peers import without_peer
from igd.core.peers import Peers
from igd.firewall.operator_rules import source_nat
from igd.host import clock, forwarding
from igd.host.external_address import ExternalAddressReader
from igd.host.links import Links
from igd.host.wireguard import WireGuard


def host_warnings(interface: str, config: Config) -> list[str]:
    """Return a sentence for each condition of this host that keeps this configuration from working; OSError.

    Conditions that concern peers are examined if the interface exists, which takes the right to read its peers.
    ConfigError if a section is for the interface itself.
    """
    return asyncio.run(_warnings(interface, config))


async def _warnings(interface: str, config: Config) -> list[str]:
    async with Links() as links:
        present = await _peers(links, interface, config)
        peers = present or Peers([], [])
        external = ExternalAddressReader(links, interface, config.external_interface, config.external_address)
        await external.read(peers.addresses)
        matched = external.addresses.matched
        settings = await forwarding.warnings(links, interface, external.interface, peers.owned(), matched)
    missing = source_nat.missing(interface, external.default_interface, peers) or []
    absent = without_peer(config.policies, interface, present) if present else []
    return [*external.warnings, *settings, *map(str, missing), *absent]


async def _peers(links: Links, interface: str, config: Config) -> Peers | None:
    """Return the peers of the interface, or None if there is no such interface."""
    if await links.state(interface) is None:
        return None
    wireguard = WireGuard(interface, clock=clock.boottime, wall_clock=time.time)
    config.reject_own_key(interface, await wireguard.public_key())
    wireguard.addresses = await links.addresses(interface)
    return await wireguard.peers()
