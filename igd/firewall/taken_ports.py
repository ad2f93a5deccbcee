"""Which external ports are translated already: by the operator's own rules, or by other instances of igd."""

import logging
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.nft.other_tables import OtherTables
from igd.firewall.operator_rules.operators_dnat import OperatorsDnat
from igd.firewall.operator_rules.xtables import nft_tables
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.site import Site

_log = logging.getLogger(__name__)


class TakenPorts:
    """The external ports that are not free for mappings; `addresses` returns the external addresses."""

    def __init__(self, site: Site, addresses: Callable[[], Iterable[IPv4Address]]) -> None:
        self._addresses = addresses
        self._dnat = OperatorsDnat(site)
        self._others = OtherTables(site.wireguard)
        self._failures = RecurringWarnings(_log, "the operator's own redirections are not known: %s")

    def refresh(self) -> None:
        """Read the operator's rules, and which other instances there are; may block, and runs programs."""
        with self._failures.catching(FirewallError):
            self._dnat.refresh(self._addresses())
            self._others.update(nft_tables() or ())

    def hold(self, protocol: TransportProtocol, port: int) -> bool:
        """Return whether this external port is translated already; FirewallError."""
        return self._dnat.holds(protocol, port) or self._others.hold(protocol, port, self._addresses())
