"""Chooses the backend for this machine."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from igd.firewall.backend import FirewallError
from igd.firewall.legacy import python_iptables, xtables_lock
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.saved_rules import parse
from igd.firewall.site import OURS

Backend = Literal["nftables", "iptables", "pretend"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """The rule sets in this network namespace, except igd's own."""

    nf_tables: bool  # the kernel supports it
    nft_rule_sets: bool  # it has tables, which may be iptables-nft's
    legacy_rule_sets: tuple[str, ...]  # the tables of iptables-legacy with rules, or with a policy that drops
    legacy_unseen: str = ""  # why it is not known whether there are any; empty: it is known


class Choice(NamedTuple):
    """A backend's name, and the reason in one sentence for the log."""

    backend: Backend
    reason: str


def choose(
    wanted: Backend | Literal["auto"], facts: Facts, iptables_problem: Callable[[], str] | None = None
) -> Choice:
    """Return the configured backend, or for "auto" the one that fits and can work; raise FirewallError if none can.

    `iptables_problem` returns why the iptables backend cannot work here, or an empty string. It is called only where
    that backend is an option, because finding out is slow.
    """
    problem = iptables_problem or _iptables_problem
    if wanted != "auto":
        if wanted == "iptables" and not python_iptables.installed():
            raise python_iptables.MissingLibraryError
        return Choice(wanted, "the configuration asks for it")
    choice = _fitting(facts)
    reason = problem() if choice.backend == "iptables" else ""
    if not reason:
        return choice
    if not facts.nf_tables:
        raise FirewallError(f"{choice.reason}, and the iptables backend cannot work: {reason}")
    # Nat chains of both kinds can exist together since Linux 4.18; our table (nat chains in family inet) needs 5.2.
    _log.warning("mappings are kept in nftables, beside the rules of iptables-legacy: %s", reason)
    return Choice("nftables", f"{choice.reason}, but the iptables backend cannot work")


def _iptables_problem() -> str:
    return python_iptables.problem() or xtables_lock.problem()


def probe() -> Facts:
    """Read which rule sets this network namespace has, without changing it; raise FirewallError if that fails."""
    unseen = xtables.legacy_unseen()
    if unseen:
        _log.warning("rules of iptables-legacy, if there are any, cannot be seen: %s", unseen)
    tables = xtables.nft_tables()
    return Facts(
        nf_tables=tables is not None,
        nft_rule_sets=any(not name.startswith(OURS) for _family, name in tables or ()),
        legacy_rule_sets=() if unseen else tuple(sorted(filter(_legacy_matters, xtables.legacy_tables()))),
        legacy_unseen=unseen,
    )


def _legacy_matters(table: str) -> bool:
    """Return whether a table of iptables-legacy is in use: listing one creates it, with empty chains."""
    rules = parse(xtables.run("iptables-legacy-save", "-t", table), table)
    foreign = rules.without(lambda rule: rule.chain.startswith(OURS) or rule.target.startswith(OURS))
    return any(foreign.chains.values()) or not set(foreign.policies.values()) <= {"ACCEPT", "-"}


def _fitting(facts: Facts) -> Choice:
    """Return the backend that fits the host's own rules."""
    if not facts.nf_tables:
        return Choice("iptables", "this kernel does not support nf_tables")
    if facts.legacy_unseen:
        return Choice("nftables", "this kernel supports nf_tables")
    if not facts.legacy_rule_sets:
        return Choice("nftables", "this kernel supports nf_tables, and no IPv4 rules of iptables-legacy are in use")
    where = ", ".join(facts.legacy_rule_sets)
    if facts.nft_rule_sets:
        # The nat chains of both have one priority, and the one registered last runs first: a legacy table that we
        # created would override the operator's DNATs in nftables. Our nftables chain has a priority behind both.
        return Choice(
            "nftables",
            f"rules of iptables-legacy ({where}) and others are in use, and only nftables works beside both",
        )
    return Choice("iptables", f"this host's own rules are iptables-legacy's ({where})")
