"""Which address clients are told, and which address packets to us bear."""

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.core.peers import Interface


class ExternalAddresses(NamedTuple):
    """`announced` is what clients are told, `matched` is what packets to us bear; they differ behind a 1:1 NAT."""

    announced: IPv4Address | None
    matched: tuple[IPv4Address, ...]


def external_addresses(configured: IPv4Address | None, interface: Iterable[Interface]) -> ExternalAddresses:
    """Choose among the external interface's addresses.

    One address is matched, not all that the interface has: an operator with several uses the others for something
    else. The configured one wins, then the first public one, then the first.
    """
    own = [address.ip for address in interface if isinstance(address.ip, IPv4Address)]
    if configured in own:
        return ExternalAddresses(configured, (configured,))
    if not own:
        return ExternalAddresses(configured, ())
    first = next((address for address in own if address.is_global), own[0])
    return ExternalAddresses(configured or first, (first,))
