"""What the operator's rules do with a packet to this server that nothing on it has asked for."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from igd.core.mapping import TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import rule_sets
from igd.firewall.operator_rules.packet import arriving
from igd.firewall.operator_rules.verdict import find_obstacle
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
    found = (find_obstacle(chain.rules, [packet], chain.name) for chain in chains)
    unread = (reason for each in read for reason in each.unread)
    return next((each.where for each in found if each), next(unread, None))
