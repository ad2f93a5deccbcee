"""The way of mapped flows through the operator's own forward chains: the jump of iptables, the rules of nftables."""

import logging

from igd.firewall.forward.iptables_jump import ForwardJump
from igd.firewall.forward.nft_rule import ForwardRule, named
from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6
from igd.firewall.site import Site

_log = logging.getLogger(__name__)


class Forward:
    """Lets mapped flows in where the operator's forward chains would drop them, and where he said so.

    Of a chain of iptables that he named, and of FORWARD where he named none, nothing is touched while mapped flows pass
    anyway. A chain of nftables that he named gets our rules in any case, and iptables' FORWARD is looked after as well:
    every chain is asked about a packet, and each may drop it.
    """

    def __init__(self, site: Site) -> None:
        self._jump = ForwardJump(site)
        self._rule = ForwardRule(site)
        self._said: list[str] = []
        chain = named(site.forward_chain)
        self.tables = {(NFPROTO_IPV4, "filter"), (NFPROTO_IPV6, "filter")} | ({chain[:2]} if chain else set())
        """Family and name of the tables of nftables whose changes ask for another `ensure`."""

    def ensure(self) -> None:
        """Make it so, whatever was there; FirewallError where that fails.

        What still may keep mapped flows out is warned of, once for as long as it lasts.
        """
        self._warn([*self._jump.ensure(), *self._rule.ensure()])

    def remove(self) -> None:
        """Take out everything of ours, in every family and place; one failing does not keep the other."""
        try:
            self._warn(self._jump.remove())
        finally:
            self._rule.remove()

    def _warn(self, complaints: list[str]) -> None:
        for complaint in complaints:
            if complaint not in self._said:
                _log.warning("%s", complaint)
        self._said = complaints
