"""The operator's rule behind a step of a traced packet, in the words of the program that edits it."""

import re
from typing import NamedTuple

from igd.firewall.backend import FirewallError
from igd.firewall.nfnetlink import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.rule_sets import IPTABLES_TABLES
from igd.firewall.operator_rules.saved_rules import parse
from igd.firewall.probing.trace import Step

_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_NETDEV: "netdev", NFPROTO_IPV6: "ip6"}
_PROGRAMS = {NFPROTO_IPV4: "iptables-nft", NFPROTO_IPV6: "ip6tables-nft"}

_LISTED = re.compile(r"^\t\t(.*) # handle (\d+)$", re.MULTILINE)
_POLICY = re.compile(r"^\t\ttype .* policy (\w+);", re.MULTILINE)


class RuleText(NamedTuple):
    """A rule or a policy: the program that edits it (iptables-nft, nft), its table, its chain and its text.

    `table` is iptables' name of it ("filter"), or nft's with the family before it. `position` counts iptables' rules
    of the chain from 1, `handle` is nft's number; 0 for a policy.
    """

    program: str
    table: str
    chain: str
    position: int
    handle: int
    text: str

    def __str__(self) -> str:
        where = f"table {self.table}" if self.program != "nft" else f"{self.table} {self.chain}"
        return f"{self.text} ({self.program}, {where})"


def rule_text(step: Step) -> RuleText:
    """Return the rule or policy of this step, as it is now; its text is empty if it has gone."""
    family = _FAMILIES.get(step.family, "bridge")
    try:
        listed = xtables.run("nft", "-a", "list", "chain", family, step.table, step.chain)
    except FirewallError:  # the chain has gone, or nft cannot list what it contains
        listed = ""
    rules = {int(handle): text for text, handle in _LISTED.findall(listed)}
    if step.family in _PROGRAMS and step.table in IPTABLES_TABLES:
        found = _of_iptables(step, list(rules))
        if found is not None:
            return found
    table = f"{family} {step.table}"
    if step.handle:
        return RuleText("nft", table, step.chain, 0, step.handle, rules.get(step.handle, f"rule {step.handle}"))
    policy = _POLICY.search(listed)
    return RuleText("nft", table, step.chain, 0, 0, f"policy {policy[1] if policy else 'drop'} of {step.chain}")


def _of_iptables(step: Step, handles: list[int]) -> RuleText | None:
    """Return the rule as iptables-save prints it; None if the table has rules that iptables cannot show."""
    program = _PROGRAMS[step.family]
    saved = xtables.saved(program, step.table) if xtables.program(f"{program}-save") else None
    rules = parse(saved, step.table) if saved is not None else None
    if rules is None or step.chain not in rules.chains:
        return None
    if not step.handle:
        text = f"policy {rules.policies.get(step.chain, 'DROP')} of {step.chain}"
        return RuleText(program, step.table, step.chain, 0, 0, text)
    chain = rules.chains[step.chain]
    if len(chain) != len(handles) or step.handle not in handles:
        return None
    position = handles.index(step.handle)
    return RuleText(program, step.table, step.chain, position + 1, step.handle, chain[position].text)
