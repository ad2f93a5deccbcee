"""Connects what asks STUN servers with the mappings and the operator's rules."""

import contextlib
import random
from collections.abc import Iterator
from functools import partial

from igd.config import Config
from igd.core.mapping import TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import unrequested
from igd.firewall.site import Site
from igd.firewall.taken_ports import TakenPorts
from igd.gateway import Gateway
from igd.host.nat_in_front import NatTest
from igd.host.stun import StunClient
from igd.host.stun_address import Pace, StunAddress

PACE = Pace()


def stun_address(config: Config, gateway: Gateway, site: Site, taken_ports: TakenPorts) -> StunAddress | None:
    """Return what asks the configured STUN servers, or None if the external address comes from elsewhere."""
    if config.external_address != "stun" or not config.stun_servers:
        return None
    rng = random.SystemRandom()

    def is_mapped(port: int) -> bool:
        mapped = gateway.ledger.table.holds((TransportProtocol.UDP, port))
        with contextlib.suppress(FirewallError):  # then our own table has to do
            return mapped or taken_ports.hold(TransportProtocol.UDP, port)
        return mapped

    def unused_ports() -> Iterator[int]:
        """Yield ports that peers may map now; none while it is not known which are taken."""
        with contextlib.suppress(FirewallError):
            for port in gateway.policies.any_candidates(rng):
                if not is_mapped(port) and not gateway.taken(TransportProtocol.UDP, port):
                    yield port

    def count_malformed() -> None:
        gateway.counters["stun", "malformed"] += 1

    client = StunClient(config.stun_servers, is_mapped, count_malformed)
    return StunAddress(client, NatTest(client, unused_ports, partial(unrequested.obstacle, site)), rng, PACE)
