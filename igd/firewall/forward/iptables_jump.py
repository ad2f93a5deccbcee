"""Where the operator's FORWARD drops, let our flows in: one chain of ours and one jump to it, made by iptables itself.

    -A FORWARD -m comment --comment "igd wg0" -j igd_wg0        (inserted as the first rule)
    -A igd_wg0 -o wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
    -A igd_wg0 -i wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000 -j ACCEPT

An accept in a table of our own would not do: the other table's drop still drops. First, because firewalls end in a
REJECT. By mark, which only flows of mappings carry and which both directions of a flow share; "--ctstate DNAT" would
also let in redirections of the operator's that he had not accepted. Into and out of the tunnel only: nothing is let
through to another network of the host. By the program, because nftables' own rules inside `ip filter` make iptables-nft
refuse the table, or show it as something else.

Where the operator names another chain (DOCKER-USER), the jump comes first in that one and in no other.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.saved_rules import Rule, Rules, parse
from igd.firewall.operator_rules.verdict import Obstacle, find_obstacle, packets
from igd.firewall.site import OURS, Site, label

_log = logging.getLogger(__name__)

FORWARD = "FORWARD"


@dataclass(frozen=True, slots=True)
class _Flavour:
    """One of iptables' two lives in the kernel, of one IP version; packets pass both, so that either may drop them."""

    name: str
    version: Literal[4, 6]
    might_drop: Callable[[Collection[tuple[int, str]]], bool]  # asked first: a look by iptables-legacy creates tables
    options: tuple[str, ...]

    def look(self) -> Rules | str:
        """Give the table `filter`, or why it cannot be looked at."""
        if xtables.program(f"{self.name}-save") is None:
            return f"{self.name}'s FORWARD cannot be looked at: the program is not installed"
        saved = xtables.saved(self.name, "filter")
        if saved is None:
            return f"{self.name}'s FORWARD cannot be looked at: nftables' own rules are in its table `filter`"
        return parse(saved)

    def edit(self, lines: Iterable[str]) -> None:
        """Carry out all lines as one transaction, or raise FirewallError and none."""
        text = "".join(f"{line}\n" for line in ("*filter", *lines, "COMMIT"))
        xtables.run(f"{self.name}-restore", "--noflush", *self.options, text=text)


_FLAVOURS = (
    _Flavour("iptables-nft", 4, lambda nft: (NFPROTO_IPV4, "filter") in nft, ("-w",)),
    _Flavour("ip6tables-nft", 6, lambda nft: (NFPROTO_IPV6, "filter") in nft, ("-w",)),
    _Flavour("iptables-legacy", 4, lambda _nft: "filter" in xtables.legacy_tables(4), ("-w", "5")),
    _Flavour("ip6tables-legacy", 6, lambda _nft: "filter" in xtables.legacy_tables(6), ("-w", "5")),
)


class ForwardJump:
    """Keeps our jump in iptables' FORWARD, or the chain that the operator named, where mapped flows need it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        named = (site.forward_chain or "").split()
        self._place = named[0] if len(named) == 1 else FORWARD
        self._chain = label(site.wireguard)
        self._comment = f"igd {site.wireguard}"
        comment = f'-m comment --comment "{self._comment}"'
        self._jump = f"{comment} -j {self._chain}"
        accept = f"{site.wireguard} {comment} -m connmark --mark {site.mark:#x}/{site.mark:#x} -j ACCEPT"
        # The colon creates the chain, or empties it.
        self._contents = [f":{self._chain} - [0:0]", *(f"-A {self._chain} {way} {accept}" for way in ("-o", "-i"))]

    def ensure(self) -> list[str]:
        """Have the jump exactly where it is needed, whatever was there; give what still may keep mapped flows out.

        Raise FirewallError where that fails. IPv6 is left alone while no peer has an address of it.
        """
        complaints: list[str] = []
        known = {FORWARD}
        for flavour in _present():
            if flavour.version == 6 and all(network.version == 4 for network in self._site.peers):
                continue
            rules = flavour.look()
            if isinstance(rules, str):
                complaints.append(rules)
                continue
            known |= rules.chains.keys()
            complaints += self._keep(flavour, rules)
        if self._place not in known:
            complaints.append(
                f'forward_chain = "{self._place}": iptables has no such chain in its table `filter`; '
                "the jump goes in when there is one"
            )
        return complaints

    def remove(self) -> list[str]:
        """Take chain and jump out and leave the operator's rules as they are; give what could not be looked at.

        Nothing there is not an error; where one flavour fails, the others are still done before the FirewallError.
        """
        complaints: list[str] = []
        with ExitStack() as all_of_them:
            for flavour in _present():
                all_of_them.callback(self._clear, flavour, complaints)
        return complaints

    def _clear(self, flavour: _Flavour, complaints: list[str]) -> None:
        rules = flavour.look()
        if isinstance(rules, str):
            complaints.append(rules)
        else:
            self._take_out(flavour, rules)

    def _keep(self, flavour: _Flavour, rules: Rules) -> list[str]:
        obstacle = self._obstacle(flavour, rules.without(lambda chain: chain.startswith(OURS)))
        if obstacle is None or self._place not in rules.chains:
            self._take_out(flavour, rules)
            return self._complaints(flavour, rules, obstacle)
        # Another instance may end at any time.
        alone = rules.without(lambda chain: chain.startswith(OURS) and chain != self._chain)
        if not self._is_in_place(flavour, alone):
            _log.info("%s: %s; so: %s -I %s 1 %s", flavour.name, obstacle, flavour.name, self._place, self._jump)
            self._put_in(flavour, rules)
            alone = self._with_jump_in(self._place, rules)
        return self._complaints(flavour, rules, self._obstacle(flavour, alone))

    def _is_in_place(self, flavour: _Flavour, alone: Rules) -> bool:
        """Whether there is nothing to better; a jump that does not help where the operator wants it is left in peace.

        Not "is it the first rule of all": two instances would push each other aside for ever.
        """
        ours = self._our_jumps(alone)
        if any(jump.chain != self._place for jump in ours):
            return False
        if self._obstacle(flavour, alone) is None:
            return True
        is_first = len(ours) == 1 and alone.chains[self._place][0] == ours[0]
        return is_first and self._obstacle(flavour, alone, self._chain) is None

    def _put_in(self, flavour: _Flavour, rules: Rules) -> None:
        flavour.edit([*self._contents, *self._deletions(rules), f"-I {self._place} 1 {self._jump}"])

    def _take_out(self, flavour: _Flavour, rules: Rules) -> None:
        if self._chain not in rules.chains:
            return
        deletions = self._deletions(rules)
        kept_by = [rule.text for rule in _jumps_to(self._chain, rules) if not self._is_our_jump(rule)]
        if kept_by:  # iptables cannot delete it, and what refers to it is the operator's
            if not deletions and not rules.chains[self._chain]:
                return
            _log.warning("%s: chain %s stays, empty, because of: %s", flavour.name, self._chain, kept_by[0])
        _log.info("%s: the jump to %s goes", flavour.name, self._chain)
        flavour.edit([*deletions, f"-F {self._chain}", *([] if kept_by else [f"-X {self._chain}"])])

    def _deletions(self, rules: Rules) -> list[str]:
        return [f"-D {rule.text[3:]}" for rule in self._our_jumps(rules)]

    def _our_jumps(self, rules: Rules) -> list[Rule]:
        return [rule for rule in _jumps_to(self._chain, rules) if self._is_our_jump(rule)]

    def _is_our_jump(self, rule: Rule) -> bool:
        return self._comment in rule.comments

    def _obstacle(self, flavour: _Flavour, rules: Rules, chain: str = FORWARD) -> Obstacle | None:
        return find_obstacle(rules, packets(self._site, flavour.version), chain)

    def _complaints(self, flavour: _Flavour, rules: Rules, obstacle: Obstacle | None) -> list[str]:
        """Say what would help, as far as one setting can."""
        if obstacle is None:
            return []
        where = obstacle.where.split()
        candidates = (where[1] if where[0] == "-A" else FORWARD, FORWARD)
        for chain in candidates:
            if self._obstacle(flavour, self._with_jump_in(chain, rules)) is None:
                return [f'{flavour.name}: {obstacle}; what would help: forward_chain = "{chain}"']
        return [f"{flavour.name}: {obstacle}"]

    def _with_jump_in(self, chain: str, rules: Rules) -> Rules:
        """Give the rules as they would be with our jump first in `chain`, and without any other instance's."""
        ours = parse("\n".join(["*filter", *self._contents, f"-A {chain} {self._jump}"]))
        bare = rules.without(lambda name: name.startswith(OURS))
        chains = {**bare.chains, **ours.chains, chain: ours.chains[chain] + bare.chains.get(chain, [])}
        return Rules(bare.policies | ours.policies, chains)


def _present() -> Iterator[_Flavour]:
    nft = xtables.nft_tables() or ()
    return (flavour for flavour in _FLAVOURS if flavour.might_drop(nft))


def _jumps_to(chain: str, rules: Rules) -> list[Rule]:
    return [rule for rules_of_chain in rules.chains.values() for rule in rules_of_chain if rule.target == chain]
