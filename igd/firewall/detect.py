"""Chooses the backend for this machine."""

import logging
from dataclasses import dataclass
from typing import Literal, NamedTuple

from igd.firewall.legacy import python_iptables
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.saved_rules import parse
from igd.firewall.site import OURS

Backend = Literal["nftables", "iptables", "pretend"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """The rule sets in this network namespace, except igd's own, and the library for the iptables backend."""

    nf_tables: bool  # the kernel supports it
    nft_rule_sets: bool  # it has tables, which may be iptables-nft's
    legacy_rule_sets: tuple[str, ...]  # the tables of iptables-legacy with rules, or with a policy that drops
    python_iptables: bool  # it is installed


class Choice(NamedTuple):
    """A backend's name, and the reason in one sentence for the log."""

    backend: Backend
    reason: str


def choose(wanted: Backend | Literal["auto"], facts: Facts) -> Choice:
    """Return the configured backend, or for "auto" the one that fits; raise FirewallError if its library is missing."""
    choice = _fitting(facts) if wanted == "auto" else Choice(wanted, "the configuration asks for it")
    if choice.backend == "iptables" and not facts.python_iptables:
        raise python_iptables.MissingLibraryError
    return choice


def probe() -> Facts:
    """Read which rule sets this network namespace has, without changing it; raise FirewallError if that fails."""
    if xtables.legacy_hidden():
        _log.warning("rules of iptables-legacy, if there are any, cannot be seen: see systemd/iptables-legacy.conf")
    tables = xtables.nft_tables()
    return Facts(
        nf_tables=tables is not None,
        nft_rule_sets=any(not name.startswith(OURS) for _family, name in tables or ()),
        legacy_rule_sets=tuple(sorted(filter(_legacy_matters, xtables.legacy_tables()))),
        python_iptables=python_iptables.installed(),
    )


def _legacy_matters(table: str) -> bool:
    """Return whether a table of iptables-legacy is in use: listing one creates it, with empty chains."""
    if xtables.program("iptables-legacy-save") is None:
        return False  # every program that lists rules on this host shows only those of nftables
    rules = parse(xtables.run("iptables-legacy-save", "-t", table), table)
    foreign = rules.without(lambda chain: chain.startswith(OURS))
    return any(foreign.chains.values()) or not set(foreign.policies.values()) <= {"ACCEPT", "-"}


def _fitting(facts: Facts) -> Choice:
    """Return the backend that fits the host's own rules."""
    if not facts.nf_tables:
        return Choice("iptables", "this kernel does not support nf_tables")
    if not facts.legacy_rule_sets:
        return Choice("nftables", "this kernel supports nf_tables, and no rules of iptables-legacy are in use")
    where = ", ".join(facts.legacy_rule_sets)
    if facts.nft_rule_sets:
        # The nat chains of both have one priority, and the one registered last runs first: a legacy table that we
        # created would override the operator's DNATs in nftables. Our nftables chain has a priority behind both.
        return Choice(
            "nftables",
            f"rules of iptables-legacy ({where}) and others are in use, and only nftables works beside both",
        )
    host = f"this host's own rules are iptables-legacy's ({where})"
    if facts.python_iptables:
        return Choice("iptables", host)
    # Nat chains of both kinds can exist together since Linux 4.18; our table (nat chains in family inet) needs 5.2.
    _log.warning(
        "%s, and python-iptables is not installed: mappings are kept in nftables, beside those rules."
        " To have the iptables backend: %s",
        host,
        python_iptables.INSTALL,
    )
    return Choice("nftables", f"{host}, and python-iptables is not installed")
