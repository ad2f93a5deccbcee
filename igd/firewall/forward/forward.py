"""Makes the operator's own forward chains accept mapped flows: by a jump in iptables, by rules in nftables."""

import logging

from igd.firewall.forward.iptables_jump import ForwardJump
from igd.firewall.forward.nft_rule import ForwardRule, named
from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.site import Site

_log = logging.getLogger(__name__)


class Forward:
    """Makes forward chains accept mapped flows where they stop every one of them, behind all narrower rules.

    iptables' FORWARD gets our jump, in the chain that `forward_chain` names if it is one of iptables'. An nftables
    chain that it names gets our rules; iptables' FORWARD is then checked as well, because a packet passes every chain,
    and each may drop it.
    """

    def __init__(self, site: Site) -> None:
        self._jump = ForwardJump(site)
        self._rule = ForwardRule(site)
        self._warnings = RecurringWarnings(_log)
        chain = named(site.forward_chain)
        self.tables = {(NFPROTO_IPV4, "filter"), (NFPROTO_IPV6, "filter")} | ({chain[:2]} if chain else set())
        """Family and name of the nftables tables after whose changes `ensure` must run again."""

    def ensure(self) -> bool:
        """Make the chains accept mapped flows, or raise FirewallError; warn of rules that may still drop them.

        Return whether rules of ours were edited.
        """
        self._warnings.log([*self._jump.ensure(), *self._rule.ensure()])
        return self._jump.edited or self._rule.edited

    def remove(self) -> None:
        """Remove our jump and rules from every chain; if one step fails, the other is still carried out."""
        try:
            for warning in self._jump.remove():  # not by RecurringWarnings: the causes of earlier ones do not end here
                _log.warning("%s", warning)
        finally:
            self._rule.remove()
