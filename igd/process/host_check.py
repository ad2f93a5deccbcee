"""What a daemon would warn of on this host now, for `igd check`."""

import asyncio

from igd.config import Config
from igd.host.external_address import host_complaints


def host_warnings(interface: str, config: Config) -> list[str]:
    """Return a sentence for each condition of this host that keeps this configuration from working; OSError."""
    return asyncio.run(host_complaints(interface, config.external_interface, config.external_address))
