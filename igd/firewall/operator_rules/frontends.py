"""Recognises the rules of ufw and of firewalld, and reads from them how an interface is configured. Pure."""

import re

from igd.firewall.operator_rules.conditions import Truth, matches
from igd.firewall.operator_rules.packet import Packet
from igd.firewall.operator_rules.saved_rules import Rules

# firewalld 2 has chains *_POLICIES, firewalld 1 chains *_ZONES between *_POLICIES_pre and *_POLICIES_post.
_DISPATCH = r"(filter_|nat_)?{}_(ZONES|POLICIES)"
_ZONE = re.compile(r"(?:filter_|nat_)?(?:IN|POST)_(?!policy_)(.+)")

OWNED_BY_FIREWALLD = "firewalld 2 must first let others edit its table: NftablesTableOwner=no in firewalld.conf"


def is_ufw(rules: Rules) -> bool:
    """Return whether ufw has made this table."""
    return not {"ufw-user-input", "ufw6-user-input"}.isdisjoint(rules.chains)


def is_firewalld(rules: Rules) -> bool:
    """Return whether firewalld has made this table."""
    return any(re.fullmatch(_DISPATCH.format("(INPUT|POSTROUTING)"), name) for name in rules.chains)


def firewalld_zone(rules: Rules, hook: str, packet: Packet) -> str | None:
    """Return the zone to which firewalld assigns this packet at the hook "INPUT" or "POSTROUTING"."""
    dispatch = re.compile(_DISPATCH.format(hook))
    for rule in (rule for name in rules.chains if dispatch.fullmatch(name) for rule in rules.chains[name]):
        zone = _ZONE.fullmatch(rule.target)
        if zone and matches(rule.conditions, packet) is Truth.YES:
            return zone[1]
    return None
