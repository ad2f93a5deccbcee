"""Where the operator's FORWARD drops, let our flows in: one chain of ours and one jump to it, made by iptables itself.

    -A FORWARD -m comment --comment "igd wg0" -j igd_wg0        (inserted as the first rule)
    -A igd_wg0 -o wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
    -A igd_wg0 -i wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000 -j ACCEPT

An accept in a table of our own would not do: the other table's drop still drops. First, because firewalls end in a
REJECT. By mark, which only flows of mappings carry and which both directions of a flow share; "--ctstate DNAT" would
also let in redirections of the operator's that he had not accepted. Into and out of the tunnel only: nothing is let
through to another network of the host. By the program, because nftables' own rules inside `ip filter` make iptables-nft
refuse the table, or show it as something else.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from igd.firewall import xtables
from igd.firewall.forward_verdict import Passage, find_obstacle
from igd.firewall.netlink import NFPROTO_IPV4
from igd.firewall.rules import OURS, label
from igd.firewall.saved_rules import Rule, Rules, parse

_log = logging.getLogger(__name__)

_INCOMPATIBLE = "is incompatible, use 'nft' tool"  # iptables-nft-save, about nftables' own rules in its tables


@dataclass(frozen=True, slots=True)
class _Flavour:
    """One of iptables' two lives in the kernel; packets pass both, so that either may drop them."""

    name: str
    might_drop: Callable[[], bool]  # asked first: iptables-legacy creates the table that it is asked about
    options: tuple[str, ...]

    def read(self) -> str:
        return xtables.run(f"{self.name}-save", "-t", "filter")

    def edit(self, lines: Iterable[str]) -> None:
        """Carry out all lines as one transaction, or raise FirewallError and none."""
        text = "".join(f"{line}\n" for line in ("*filter", *lines, "COMMIT"))
        xtables.run(f"{self.name}-restore", "--noflush", *self.options, text=text)


_FLAVOURS = (
    _Flavour("iptables-nft", lambda: (NFPROTO_IPV4, "filter") in (xtables.nft_tables() or ()), ("-w",)),
    _Flavour("iptables-legacy", lambda: "filter" in xtables.legacy_tables(), ("-w", "5")),
)


class ForwardJump:
    """Keeps our jump in the operator's FORWARD where mapped flows would not get through without, and nowhere else."""

    def __init__(self, passage: Passage) -> None:
        interface = passage.wireguard
        self._passage = passage
        self._chain = label(interface)
        comment = f'-m comment --comment "igd {interface}"'
        self._comment = f"igd {interface}"
        self._jump = f"{comment} -j {self._chain}"
        self._accepts = [
            f"{way} {passage.wireguard} {comment} -m connmark --mark {passage.mark:#x}/{passage.mark:#x} -j ACCEPT"
            for way in ("-o", "-i")
        ]

    def ensure(self) -> None:
        """Have the jump exactly where it is needed, whatever was there; raise FirewallError where that fails."""
        for flavour, rules in self._editable():
            obstacle = self._obstacle(rules.without(lambda chain: chain.startswith(OURS)))
            if obstacle is None:
                self._take_out(flavour, rules)
            # Not "is it first": two instances would push each other aside for ever.
            elif self._obstacle(rules.without(self._is_of_another_instance)) is not None:
                _log.info("%s: %s; so: %s -I FORWARD 1 %s", flavour.name, obstacle, flavour.name, self._jump)
                self._put_in(flavour, rules)

    def remove(self) -> None:
        """Take chain and jump out and leave the operator's rules as they are; nothing there is not an error."""
        for flavour, rules in self._editable():
            self._take_out(flavour, rules)

    def _put_in(self, flavour: _Flavour, rules: Rules) -> None:
        chain = [f":{self._chain} - [0:0]", *(f"-A {self._chain} {accept}" for accept in self._accepts)]
        # The colon makes the chain, or empties it.
        flavour.edit([*chain, *self._deletions(rules), f"-I FORWARD 1 {self._jump}"])

    def _take_out(self, flavour: _Flavour, rules: Rules) -> None:
        if self._chain not in rules.chains:
            return
        kept_by = [rule.text for rule in _jumps_to(self._chain, rules) if not self._is_our_jump(rule)]
        if kept_by:  # iptables cannot delete it, and what refers to it is the operator's
            _log.warning("%s: chain %s stays, empty, because of: %s", flavour.name, self._chain, kept_by[0])
        _log.info("%s: the jump to %s goes", flavour.name, self._chain)
        flavour.edit([*self._deletions(rules), f"-F {self._chain}", *([] if kept_by else [f"-X {self._chain}"])])

    def _deletions(self, rules: Rules) -> list[str]:
        return [f"-D {rule.text[3:]}" for rule in _jumps_to(self._chain, rules) if self._is_our_jump(rule)]

    def _is_our_jump(self, rule: Rule) -> bool:
        return rule.chain == "FORWARD" and self._comment in rule.comments

    def _is_of_another_instance(self, chain: str) -> bool:
        return chain.startswith(OURS) and chain != self._chain

    def _obstacle(self, rules: Rules) -> object | None:
        return find_obstacle(rules, self._passage.packets())

    def _editable(self) -> Iterable[tuple[_Flavour, Rules]]:
        """Give the filter tables that are there and can be read and edited; say what cannot be."""
        for flavour in _FLAVOURS:
            if not flavour.might_drop():
                continue
            if xtables.program(f"{flavour.name}-save") is None:
                _log.warning("%s's FORWARD cannot be looked at: the program is not installed", flavour.name)
                continue
            saved = flavour.read()
            if _INCOMPATIBLE in saved:
                _log.warning("%s's FORWARD cannot be looked at: nftables' own rules are in `ip filter`", flavour.name)
                continue
            yield flavour, parse(saved)


def _jumps_to(chain: str, rules: Rules) -> list[Rule]:
    return [rule for rules_of_chain in rules.chains.values() for rule in rules_of_chain if rule.target == chain]
