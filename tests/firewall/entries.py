"""Entries as tests of the backends want them."""

from ipaddress import IPv4Address

from igd.core.mapping import Endpoint, Entry, Lease, PortMapping, TransportProtocol
from tests.firewall.three_hosts import PEER


def entry(
    port: int, inside: int | None = None, protocol: str = "udp", *, peer: IPv4Address = PEER, until: float = 120
) -> Entry:
    """Return an entry that maps the port to port `inside` of `peer`, or to the same one."""
    internal = Endpoint(peer, inside or port)
    return Entry(PortMapping(TransportProtocol[protocol.upper()], port, internal, "peer"), Lease(until))
