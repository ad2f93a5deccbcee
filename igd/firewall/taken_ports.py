"""What else is in this kernel's firewall: it is not ours, so it is looked at, told of, and given way to."""

import logging
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from igd.core.mapping import TransportProtocol
from igd.firewall.backend import FirewallError
from igd.firewall.nft.other_tables import OtherTables
from igd.firewall.operator_rules.advice import Address, Port, advice
from igd.firewall.operator_rules.operators_dnat import OperatorsDnat
from igd.firewall.operator_rules.xtables import nft_tables
from igd.firewall.site import Site

_log = logging.getLogger(__name__)


class TakenPorts:
    """The operator's own rules and the other instances for other interfaces.

    `addresses` gives the external addresses. `ports` are those of the server that peers talk to, `own` its addresses
    inside the tunnel.
    """

    def __init__(
        self, site: Site, addresses: Callable[[], Iterable[IPv4Address]], ports: Iterable[Port], own: Iterable[Address]
    ) -> None:
        self._site = site
        self._addresses = addresses
        self._ports = tuple(ports)
        self._own = tuple(own)
        self._dnat = OperatorsDnat(site)
        self._others = OtherTables(site.wireguard) if nft_tables() is not None else None
        self._said: list[str] = []

    def look(self) -> None:
        """Look at the operator's rules in both respects; may block, and runs programs."""
        self.look_for_ports()
        self.advise()

    def advise(self) -> None:
        """Warn of what peers may miss because of the operator's rules, once for as long as it lasts."""
        sentences = advice(self._site, self._ports, self._own)
        for sentence in sentences:
            if sentence not in self._said:
                _log.warning("%s", sentence)
        self._said = sentences

    def look_for_ports(self) -> None:
        """Look for external ports that are led elsewhere."""
        try:
            self._dnat.refresh(self._addresses())
            if self._others is not None:
                self._others.update(nft_tables() or ())
        except FirewallError as error:
            _log.warning("the operator's own redirections are not known: %s", error)

    def hold(self, protocol: TransportProtocol, port: int) -> bool:
        """Tell whether this external port is led elsewhere already; FirewallError."""
        if self._dnat.holds(protocol, port):
            return True
        return self._others is not None and self._others.hold(protocol, port, self._addresses())

    def close(self) -> None:
        """Close the socket."""
        if self._others is not None:
            self._others.close()
