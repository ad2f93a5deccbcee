"""What the operator's rules do with a packet to this server that nothing on it has asked for."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from igd.core.mapping import TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import rule_sets
from igd.firewall.operator_rules.packet import Packet, arriving
from igd.firewall.operator_rules.verdict import End, Walk
from igd.firewall.site import Site


def obstacle(site: Site, sender: IPv4Address, address: IPv4Address, port: int) -> str | None:
    """Return what may drop a UDP packet of this sender on the internet to an address and port of the server, or None.

    Runs programs, and may block. A rule set that cannot be read may drop it.
    """
    try:
        read = [rule_sets.chains("early"), rule_sets.chains("input")]
    except FirewallError as error:
        return str(error)
    packet = replace(arriving(site, TransportProtocol.UDP, [address]), source=(IPv4Network(sender),), dport=port)
    chains = (chain for each in read for chain in each.found if 4 in chain.versions)
    found = (text for chain in chains for text in _obstacles(chain, packet))
    unread = (reason for each in read for reason in each.unread)
    return next(found, next(unread, None))


def _obstacles(chain: rule_sets.Chain, packet: Packet) -> Iterator[str]:
    """Yield the rules that may drop the packet, and the rule or policy that certainly does."""
    walk = Walk(chain.rules, packet)
    road = walk.through(chain.name)
    yield from (rule.text for rule in road.ahead)
    if road.end is End.STOPS:
        yield walk.where(road)
