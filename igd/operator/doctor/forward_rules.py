"""Judges a rule of the operator's that stopped a probe packet in FORWARD: whom it stops, and what opens it."""

from igd.core.obstacle import Obstacle
from igd.firewall.operator_rules.accepts import mapped_flows
from igd.firewall.operator_rules.advice import chain_advice, path
from igd.firewall.operator_rules.frontends import OWNED_BY_FIREWALLD, is_firewalld
from igd.firewall.operator_rules.openings import Openings, find_openings
from igd.firewall.operator_rules.packet import Version, packets
from igd.firewall.operator_rules.rule_sets import Chain, Chains
from igd.firewall.operator_rules.saved_rules import Rule, Rules
from igd.firewall.operator_rules.verdict import End, Road, Walk
from igd.firewall.probing.rule_text import RuleText, rule_text
from igd.firewall.probing.trace import Step
from igd.firewall.site import OURS, Site
from igd.operator.doctor.check import Colour, Finding
from igd.operator.doctor.probe import Sent


class Judge:
    """Judges by the forward chains of this host; `runs`: igd runs, and has let through what it can."""

    def __init__(self, site: Site, version: Version, chains: Chains, *, runs: bool) -> None:
        self._site = site
        self._version = version
        self._runs = runs
        self._chains = [chain for chain in chains.found if version in chain.versions]
        self._unread = chains.unread

    def findings(self) -> list[Finding]:
        """Return what the rules stop, by themselves."""
        unread = [Finding(Colour.YELLOW, f"a part of the firewall cannot be read: {each}") for each in self._unread]
        needed = [(chain, self._openings(chain)) for chain in self._chains]
        stopped = [
            self._blanket(chain, f"mapped flows are stopped at: {'; '.join(found.stopped)}")
            for chain, found in needed
            if found.needed
        ]
        return [*unread, *(finding for finding in stopped if finding.colour is not Colour.GREEN)]

    def stopped_at(self, sent: Sent, step: Step) -> Finding:
        """Return what it means that a packet was stopped at this rule or policy."""
        text = rule_text(step)
        where = f"is stopped at: {text}"
        chain = next((chain for chain in self._chains if _contains(chain, text)), None)
        if chain is None:
            return Finding(Colour.RED, where)
        _walk, road = self._road(_operators(chain), chain.name, sent)
        if text.handle and not _ends_at(road, _rule(chain, text)):
            return Finding(Colour.YELLOW, f"{where}; this rule is for some packets only, and others may pass")
        return self._blanket(chain, where)

    def lost(self, sent: Sent) -> Finding:
        """Return what it means that a packet was lost in FORWARD without a report: iptables-legacy makes none."""
        for chain in (each for each in self._chains if each.program.endswith("-legacy")):
            walk, road = self._road(chain.rules if self._runs else _operators(chain), chain.name, sent)
            if road.end is End.STOPS:
                return self._blanket(chain, f"is stopped at: {walk.where(road)} ({chain.program})")
            if road.ahead:
                texts = "; ".join(rule.text for rule in road.ahead)
                return Finding(Colour.YELLOW, f"is stopped by one of these rules of {chain.program}: {texts}")
        return Finding(Colour.RED, "is dropped in FORWARD, by what nftables does not report")

    def _blanket(self, chain: Chain, where: str) -> Finding:
        """Return what it means that this chain stops every mapped flow."""
        openings = self._openings(chain)
        if chain.program == "nft" and self._site.forward_chain != path(chain):
            advised = next((each for each in chain_advice(self._site, chain) if each.remedy), Obstacle(""))
            setting = f'forward_chain = "{path(chain)}" under [firewall] lets mapped flows through'
            setting += f"; {OWNED_BY_FIREWALLD}" if is_firewalld(chain.rules) else ""
            return Finding(Colour.RED, f"{where}; {setting}", advised.remedy)
        if not self._runs and openings.needed and not openings.still_stopped:
            return Finding(Colour.GREEN, f"{where}; igd lets mapped flows through while it runs")
        return Finding(Colour.RED, "; ".join([where, *openings.warnings()]))

    def _openings(self, chain: Chain) -> Openings:
        named = self._site.forward_chain or ""
        classes = mapped_flows(self._site, [self._version])
        return find_openings(_operators(chain), chain.name, classes, "" if " " in named else named)

    def _road(self, rules: Rules, chain: str, sent: Sent) -> tuple[Walk, Road]:
        """Return the road of the packet's class through a chain of these rules."""
        protocol = sent.flow.protocol.name.lower()
        classes = packets(self._site, self._version)
        walk = Walk(rules, next(each for each in classes if (each.name, each.protocol) == (sent.what, protocol)))
        return walk, walk.through(chain)


def _operators(chain: Chain) -> Rules:
    """Return the operator's rules of this chain's table: while igd does not run, its own may be left from before."""
    return chain.rules.without(lambda rule: rule.target.startswith(OURS))


def _contains(chain: Chain, text: RuleText) -> bool:
    return (chain.program, chain.table) == (text.program, text.table) and text.chain in chain.rules.chains


def _rule(chain: Chain, text: RuleText) -> Rule | None:
    """Return the rule that has this text."""
    rules = chain.rules.chains[text.chain]
    if text.position:
        return rules[text.position - 1] if text.position <= len(rules) else None
    return next((rule for rule in rules if rule.handle == text.handle), None)


def _ends_at(road: Road, rule: Rule | None) -> bool:
    """Return whether the road certainly ends at this rule; one of nft's with several verdicts is several Rules."""
    ends = [step.rule for step in road.steps if step.rule]
    return rule is not None and any(each is rule or (rule.handle and each.handle == rule.handle) for each in ends)
