"""Keeps a chain of ours and jumps to it where the operator's iptables rules stop mapped flows; iptables edits them.

    -A FORWARD -m comment --comment "igd wg0" -j igd_wg0
    -A igd_wg0 ! -i wg0 -o wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000 -j ACCEPT
    -A igd_wg0 -i wg0 ! -o wg0 -m comment --comment "igd wg0" -m connmark --mark 0x10000000/0x10000000 -j ACCEPT

An accept in a table of our own would not help: the drop in another table still drops. A jump stands directly before
the rule that stops every mapped flow, or at the end if the policy does, so that all narrower rules of the operator's
keep their effect (igd.firewall.operator_rules.openings). Where a jump would overtake such a rule for other packets, it
has the conditions of the packets that need it. iptables' programs edit, because native rules inside `ip filter` make
iptables-nft refuse the table, or show them as something else.

In the chain that the operator names (DOCKER-USER), the jump stands in that chain or in those to which it leads.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.accepts import accepts, as_iptables, class_conditions, mapped_flows
from igd.firewall.operator_rules.openings import Opening, Openings, find_openings, outcome
from igd.firewall.operator_rules.packet import Version, used_versions
from igd.firewall.operator_rules.saved_rules import Rule, Rules, parse, position_of
from igd.firewall.site import OURS, Site, label

_log = logging.getLogger(__name__)

FORWARD = "FORWARD"


@dataclass(frozen=True, slots=True)
class _Flavour:
    """One of iptables' programs and its rules in the kernel; a packet passes both kinds, and either may drop it.

    `present` is asked first: a listing by iptables-legacy creates its tables.
    """

    name: str
    version: Version
    present: Callable[[Collection[tuple[int, str]]], bool]
    lock: tuple[str, ...]

    def read(self) -> Rules | str:
        """Return the table `filter`, or why it cannot be read."""
        if xtables.program(f"{self.name}-save") is None:
            return f"{self.name}'s FORWARD cannot be read: the program is not installed"
        saved = xtables.saved(self.name, "filter")
        if saved is None:
            return f"{self.name}'s FORWARD cannot be read: nftables' own rules are in its table `filter`"
        return parse(saved)

    def edit(self, lines: Collection[str]) -> None:
        """Carry out all lines as one transaction, or raise FirewallError and change nothing."""
        text = "".join(f"{line}\n" for line in ("*filter", *lines, "COMMIT"))
        xtables.run(f"{self.name}-restore", "--noflush", *self.lock, text=text)


_NFT_LOCK, _LEGACY_LOCK = ("-w",), ("-w", "5")
"""Wait for the lock, for at most 5 s; the programs of iptables-nft have none."""

_FLAVOURS = (
    _Flavour("iptables-nft", 4, lambda nft: (NFPROTO_IPV4, "filter") in nft, _NFT_LOCK),
    _Flavour("ip6tables-nft", 6, lambda nft: (NFPROTO_IPV6, "filter") in nft, _NFT_LOCK),
    _Flavour("iptables-legacy", 4, lambda _nft: "filter" in xtables.legacy_tables(4), _LEGACY_LOCK),
    _Flavour("ip6tables-legacy", 6, lambda _nft: "filter" in xtables.legacy_tables(6), _LEGACY_LOCK),
)


class ForwardJump:
    """Keeps our jumps in iptables' FORWARD, or in the chain that the operator named, while mapped flows need them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        named = (site.forward_chain or "").split()
        self._named = named[0] if len(named) == 1 else ""
        self._chain = label(site.wireguard)
        self._comment = f"igd {site.wireguard}"
        self.edited = False
        """Whether the last `ensure` edited rules."""

    def ensure(self) -> list[str]:
        """Have the jumps where they are needed, and nowhere else; return what may still stop mapped flows.

        Raise FirewallError if that fails. IPv6 is ignored while no peer has an address of it.
        """
        self.edited = False
        warnings: list[str] = []
        known = {FORWARD}
        for flavour in _present():
            if not used_versions(self._site, [flavour.version]):
                continue
            rules = flavour.read()
            if isinstance(rules, str):
                warnings.append(rules)
                continue
            known |= rules.chains.keys()
            warnings += self._keep(flavour, rules)
        if self._named and self._named not in known:
            warnings.append(
                f'forward_chain = "{self._named}": iptables has no such chain in its table `filter`; '
                "igd's jump is inserted when there is one"
            )
        return warnings

    def remove(self) -> list[str]:
        """Remove chain and jumps, and leave the operator's rules as they are; return what could not be read.

        Their absence is not an error. If one flavour fails, the others are still done before the FirewallError.
        """
        warnings: list[str] = []
        with ExitStack() as all_of_them:
            for flavour in _present():
                all_of_them.callback(self._clear, flavour, warnings)
        return warnings

    def _clear(self, flavour: _Flavour, warnings: list[str]) -> None:
        rules = flavour.read()
        if isinstance(rules, str):
            warnings.append(rules)
        else:
            self._take_out(flavour, rules)

    def _keep(self, flavour: _Flavour, rules: Rules) -> list[str]:
        bare = rules.without(lambda rule: rule.target.startswith(OURS))
        classes = mapped_flows(self._site, [flavour.version])
        found = find_openings(bare, FORWARD, classes, self._named)
        # Another instance may end at any time.
        alone = rules.without(lambda rule: rule.target.startswith(OURS) and rule.target != self._chain)
        if not found.needed:
            self._take_out(flavour, rules)
        elif not self._is_as_found(alone, found) or outcome(alone, FORWARD, classes, found.unjudged) != found.outcome:
            self._put_in(flavour, rules, found)
        return [f"{flavour.name}: {warning}" for warning in self._warnings(found)]

    def _is_as_found(self, rules: Rules, found: Openings) -> bool:
        """Return whether chain and jumps are not more than is needed; whether they are enough, the outcome says."""
        contents = rules.chains.get(self._chain, ())
        return len(contents) == len(self._contents(found)) and len(self._our_jumps(rules)) <= len(found.needed)

    def _put_in(self, flavour: _Flavour, rules: Rules, found: Openings) -> None:
        insertions = self._insertions(rules, found.needed)
        causes = "; ".join(f"{packet} ends at: {where}" for where, packet in found.stopped.items())
        for insertion in insertions:
            _log.info("%s: %s; igd runs: %s %s", flavour.name, causes, flavour.name, insertion)
        self.edited = True
        # The colon creates the chain, or empties it.
        flavour.edit([f":{self._chain} - [0:0]", *self._contents(found), *self._deletions(rules), *insertions])

    def _contents(self, found: Openings) -> list[str]:
        return [
            f"-A {self._chain} {as_iptables(conditions, self._comment)}-j ACCEPT"
            for conditions in accepts(self._site, hairpin=found.hairpin)
        ]

    def _insertions(self, rules: Rules, needed: list[Opening]) -> list[str]:
        """Return the commands that insert the jumps, the last of each chain first: positions do not shift then."""
        ours = {id(rule) for rule in self._our_jumps(rules)}
        commands: list[tuple[int, str]] = []
        for chain, before, only in needed:
            others = [rule for rule in rules.chains[chain] if id(rule) not in ours]
            position = position_of(before, others)
            where = f"-A {chain}" if before is None else f"-I {chain} {position + 1}"
            conditions = as_iptables(class_conditions(self._site, only), "") if only else ""
            commands.append((position, f'{where} {conditions}-m comment --comment "{self._comment}" -j {self._chain}'))
        return [command for _position, command in sorted(commands, key=lambda found: -found[0])]

    def _take_out(self, flavour: _Flavour, rules: Rules) -> None:
        if self._chain not in rules.chains:
            return
        deletions = self._deletions(rules)
        kept_by = [rule.text for rule in _jumps_to(self._chain, rules) if not self._is_our_jump(rule)]
        if kept_by:  # iptables cannot delete it, and what refers to it is the operator's
            if not deletions and not rules.chains[self._chain]:
                return
            _log.warning("%s: chain %s stays, empty, because of: %s", flavour.name, self._chain, kept_by[0])
        _log.info("%s: the jump to %s is removed", flavour.name, self._chain)
        self.edited = True
        flavour.edit([*deletions, f"-F {self._chain}", *([] if kept_by else [f"-X {self._chain}"])])

    def _deletions(self, rules: Rules) -> list[str]:
        return [f"-D {rule.text[3:]}" for rule in self._our_jumps(rules)]

    def _our_jumps(self, rules: Rules) -> list[Rule]:
        return [rule for rule in _jumps_to(self._chain, rules) if self._is_our_jump(rule)]

    def _is_our_jump(self, rule: Rule) -> bool:
        return self._comment in rule.comments

    def _warnings(self, found: Openings) -> list[str]:
        warnings = found.warnings()
        if self._named and not found.one_protocol:
            warnings += [
                f'{packet} ends at: {where}; forward_chain = "{self._named}" does not help there; '
                "without this setting igd finds the place by itself"
                for where, packet in found.still_stopped.items()
            ]
        return warnings


def _present() -> Iterator[_Flavour]:
    nft = xtables.nft_tables() or ()
    return (flavour for flavour in _FLAVOURS if flavour.present(nft))


def _jumps_to(chain: str, rules: Rules) -> list[Rule]:
    return [rule for rules_of_chain in rules.chains.values() for rule in rules_of_chain if rule.target == chain]
