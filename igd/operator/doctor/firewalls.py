"""Checks of the operator's firewall: which programs manage it, what stands before mapped flows, and igd's backend."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence

from igd.core.mapping import abridged
from igd.firewall import detect
from igd.firewall.backend import FirewallError
from igd.firewall.legacy import python_iptables
from igd.firewall.operator_rules import rule_sets
from igd.firewall.operator_rules.advice import firewalld_zones
from igd.firewall.operator_rules.conditions import Truth
from igd.firewall.operator_rules.frontends import is_firewalld, is_ufw
from igd.firewall.operator_rules.packet import packets, used_versions
from igd.firewall.operator_rules.rule_sets import Chain
from igd.firewall.operator_rules.saved_rules import Rules
from igd.firewall.operator_rules.verdict import Walk
from igd.firewall.site import OURS, Site
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine

_SHOWN = 3  # rules in one line

_Recognises = Callable[[Rules], bool]


async def firewalls(machine: Machine) -> Sequence[Finding]:
    """Examine which programs manage forward chains, and which of their rules stand before mapped flows."""
    return await asyncio.to_thread(_examine, machine.site)


def _examine(site: Site) -> Sequence[Finding]:
    read = rule_sets.chains("forward")
    found = [Finding(Colour.YELLOW, f"a part of it cannot be read: {reason}") for reason in read.unread]
    found += [
        Finding.of(Colour.YELLOW, obstacle)
        for chain in read.found
        if chain.program == "nft"
        for obstacle in firewalld_zones(site, chain)
    ]
    return [*(found or green(_managed(read.found))), *_missing_chain(site, read.found), *_ahead(site, read.found)]


def _managed(chains: Sequence[Chain]) -> str:
    names = dict.fromkeys(name for chain in chains for name in _managing(chain))
    programs = ", ".join(dict.fromkeys(chain.program for chain in chains))
    of = f" ({', '.join(names)})" if names else ""
    return (
        f"FORWARD has rules or a policy of {programs}{of}" if programs else "there are no rules for what is forwarded"
    )


def _missing_chain(site: Site, chains: Iterable[Chain]) -> Iterator[Finding]:
    """Yield a finding if the chain that `forward_chain` names does not exist."""
    named = site.forward_chain
    if named is None or any(named in _names(chain) for chain in chains):
        return
    text = f'forward_chain = "{named}": there is no such chain; igd waits for it, and mapped flows may be stopped'
    yield Finding(Colour.YELLOW, text)


def _names(chain: Chain) -> Iterator[str]:
    """Yield the names by which `forward_chain` may call the chains of this table."""
    prefix = f"{chain.table} " if chain.program == "nft" else ""
    yield from (f"{prefix}{name}" for name in chain.rules.chains)


def _managing(chain: Chain) -> Iterator[str]:
    """Yield the programs whose chains are in this table."""
    yield from (name for name, manages in _MANAGERS if manages(chain.rules))


def _has(*prefixes: str) -> _Recognises:
    return lambda rules: any(name.startswith(prefixes) for name in rules.chains)


_MANAGERS: tuple[tuple[str, _Recognises], ...] = (
    ("ufw", is_ufw),
    ("firewalld", is_firewalld),
    ("docker", _has("DOCKER")),
    ("fail2ban", _has("f2b-")),
    ("crowdsec", _has("crowdsec", "CROWDSEC")),
)


def _ahead(site: Site, chains: Iterable[Chain]) -> list[Finding]:
    """Find the rules for some sources, peers or ports that stand before the place where mapped flows are accepted."""
    ahead: dict[str, Truth] = {}
    for chain in chains:
        rules = chain.rules.without(lambda rule: rule.target.startswith(OURS))
        for packet in (each for version in used_versions(site, chain.versions) for each in packets(site, version)):
            road = Walk(rules, packet).through(chain.name)
            ahead |= {rule.text: truth for rule, truth in road.ahead.items()}
    unknown = [text for text, truth in ahead.items() if truth is Truth.UNKNOWN]
    narrow = [text for text, truth in ahead.items() if truth is Truth.NARROW]
    if unknown:
        text = "igd cannot judge these rules, and leaves them in effect: they may stop mapped flows"
        return [Finding(Colour.YELLOW, f"{text}: {abridged(unknown, _SHOWN)}")]
    if narrow:
        return green(f"rules that stop some mapped flows keep their effect: {abridged(narrow, _SHOWN)}")
    return []


async def backend(machine: Machine) -> Sequence[Finding]:
    """Examine whether the configured backend, or the one that fits, can work here."""
    if machine.status is not None:
        return green(str(machine.status.get("backend")))
    facts = await asyncio.to_thread(detect.probe)
    try:
        choice = await asyncio.to_thread(detect.choose, machine.config.firewall.backend, facts)
    except python_iptables.MissingLibraryError as error:
        return [Finding(Colour.RED, str(error).rpartition(": ")[0], python_iptables.INSTALL)]
    except FirewallError as error:
        return [Finding(Colour.RED, str(error))]
    return green(f"{choice.backend}: {choice.reason}")
