"""Removes our chains from iptables-legacy's `nat` by iptables' own programs: it works without python-iptables."""

import logging
from collections.abc import Mapping

from igd.firewall.legacy.chain import NAT, PROGRAMS, Version
from igd.firewall.legacy.watch import rules_in_kernel
from igd.firewall.legacy.xtables_lock import LOCK_TIMEOUT
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.saved_rules import parse

_log = logging.getLogger(__name__)


def is_there(version: Version, chains: Mapping[str, str]) -> bool:
    """Return whether one of these chains is in `nat`; the table is not created. Raise FirewallError."""
    if NAT not in xtables.legacy_tables(version):
        return False
    rules = rules_in_kernel(version, NAT)
    return any(b"%b\0" % chain.encode() in rules for chain in chains)  # the name stands at the head of the chain


def remove(version: Version, chains: Mapping[str, str]) -> None:
    """Delete these chains, and the jumps to them from the hook that is given for each; raise FirewallError.

    A chain to which another rule jumps stays, empty.
    """
    program = PROGRAMS[version]
    rules = parse(xtables.run(f"{program}-save", "-t", NAT), NAT)
    present = [chain for chain in chains if chain in rules.chains]
    jumps = [rule for each in rules.chains.values() for rule in each if rule.target in present]
    kept = {jump.target for jump in jumps if jump.chain != chains[jump.target]}
    for chain in kept:
        _log.warning("%s: chain %s stays, empty: a rule jumps to it", program, chain)
    lines = [
        *(f"-D {jump.text.removeprefix('-A ')}" for jump in jumps if jump.chain == chains[jump.target]),
        *(f"-F {chain}" for chain in present),
        *(f"-X {chain}" for chain in present if chain not in kept),
    ]
    text = "".join(f"{line}\n" for line in (f"*{NAT}", *lines, "COMMIT"))
    xtables.run(f"{program}-restore", "--noflush", "-w", f"{LOCK_TIMEOUT:.0f}", text=text)
