"""Which backend fits this machine, and why."""

import logging
from dataclasses import dataclass
from typing import Literal, NamedTuple

from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.saved_rules import Rules, parse
from igd.firewall.site import OURS

Backend = Literal["nftables", "iptables", "pretend"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What this network namespace looks like, apart from what is ours."""

    nf_tables: bool  # the kernel speaks it
    nft_rule_sets: bool  # somebody has tables in it, iptables-nft among them
    legacy_rule_sets: tuple[
        str, ...
    ]  # the tables of iptables-legacy in which somebody has rules, or a policy that drops


class Choice(NamedTuple):
    """A backend's name, and one sentence for the log."""

    backend: Backend
    reason: str


def choose(wanted: Backend | Literal["auto"], facts: Facts) -> Choice:
    """Give the backend that is wanted, or for "auto" the one that fits."""
    if wanted != "auto":
        return Choice(wanted, "the configuration asks for it")
    return _TABLE[facts.nf_tables, facts.nft_rule_sets, bool(facts.legacy_rule_sets)](facts)


def probe() -> Facts:
    """Look at this network namespace and leave it as it is; raise FirewallError where it cannot be read."""
    if xtables.legacy_hidden():
        _log.warning("rules of iptables-legacy, if there are any, cannot be seen: see systemd/iptables-legacy.conf")
    tables = xtables.nft_tables()
    return Facts(
        nf_tables=tables is not None,
        nft_rule_sets=any(not name.startswith(OURS) for _family, name in tables or ()),
        legacy_rule_sets=tuple(sorted(filter(_legacy_matters, xtables.legacy_tables()))),
    )


def _legacy_matters(table: str) -> bool:
    """Say whether a table of iptables-legacy holds more than a stray look at it leaves behind: empty chains."""
    if xtables.program("iptables-legacy-save") is None:
        return False  # whoever lists rules on this host sees those of nftables alone
    rules = parse(xtables.run("iptables-legacy-save", "-t", table), table)
    return _holds_something(rules.without(lambda chain: chain.startswith(OURS)))


def _holds_something(rules: Rules) -> bool:
    return any(rules.chains.values()) or not set(rules.policies.values()) <= {"ACCEPT", "-"}


def _without_nf_tables(_facts: Facts) -> Choice:
    return Choice("iptables", "this kernel does not speak nf_tables")


def _nftables(_facts: Facts) -> Choice:
    return Choice("nftables", "this kernel speaks nf_tables, and no rules of iptables-legacy are in use")


def _mixed(facts: Facts) -> Choice:
    # The nat chains of both run at one priority, the later registered first: a legacy table that we created would take
    # packets away from DNATs of the operator's in nftables. Ours in nftables has a priority behind both.
    where = ", ".join(facts.legacy_rule_sets)
    return Choice(
        "nftables", f"rules of iptables-legacy ({where}) and others are in use, and only nftables fits with both"
    )


def _legacy(facts: Facts) -> Choice:
    return Choice("iptables", f"this host's own rules are iptables-legacy's ({', '.join(facts.legacy_rule_sets)})")


# (the kernel speaks nf_tables, somebody's tables are in it, iptables-legacy is in use)
_TABLE = {
    (False, False, False): _without_nf_tables,
    (False, False, True): _without_nf_tables,
    (False, True, False): _without_nf_tables,
    (False, True, True): _without_nf_tables,
    (True, False, False): _nftables,
    (True, False, True): _legacy,
    (True, True, False): _nftables,
    (True, True, True): _mixed,
}
