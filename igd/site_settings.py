"""The firewall's site and the served ports, as they follow from the configuration and the host."""

from collections.abc import Iterable

from igd.config import Config
from igd.core.mapping import TransportProtocol
from igd.core.peers import Address, Peers
from igd.firewall.site import RequestRate, Site
from igd.wire.pcp import messages as pcp
from igd.wire.upnp import ssdp

Port = tuple[TransportProtocol, int]


def ports(config: Config) -> list[Port]:
    """Return the ports of the server that peers send to."""
    served = [(TransportProtocol.UDP, ssdp.PORT), (TransportProtocol.TCP, config.http_port)]
    return served + ([(TransportProtocol.UDP, pcp.SERVER_PORT)] if config.port_control.enabled else [])


def site(config: Config, wireguard: str, external: str, peers: Peers, mapped: Iterable[Address] = ()) -> Site:
    """Return the site between these two interfaces; `mapped` are addresses with mappings, whoever owns them now."""
    return Site(
        external,
        wireguard,
        peers.networks(mapped),
        **config.firewall.model_dump(exclude={"backend"}),
        masqueraded=config.policies.masqueraded(peers),
        anycast=config.port_control.enabled and config.port_control.anycast,
        request_rate=RequestRate(config.limits.requests_per_second, tuple(ports(config)), peers),
    )
