"""Checks that peers reach igd's own ports through the firewall: by packets from a peer's address, and by the rules."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from igd.core.obstacle import Obstacle
from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import rule_sets
from igd.firewall.operator_rules.advice import input_advice
from igd.firewall.probing.flow import ProbeFlow
from igd.firewall.probing.rule_text import rule_text
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.probe import Sent, probe
from igd.operator.doctor.probe_flows import probed_peers, requests
from igd.site_settings import Port

_VERSIONS = (4, 6)


async def server_ports(machine: Machine) -> Sequence[Finding]:
    """Examine the ports that igd serves, whether it runs or not."""
    if machine.peers is None:
        return []
    return await asyncio.to_thread(_examine, machine)


def _examine(machine: Machine) -> Sequence[Finding]:
    chains = rule_sets.chains("input")
    own = [each.ip for each in machine.addresses]
    found = [Finding(Colour.YELLOW, f"a part of the firewall cannot be read: {each}") for each in chains.unread]
    closed: set[Port] = set()
    for port in machine.ports:
        for obstacle in input_advice(machine.site, chains.found, [port], own):
            found.append(_by_the_rules(obstacle))
            closed.add(port)
    try:
        sent = probe(machine.site, list(_flows(machine)))
    except (OSError, FirewallError) as error:
        return found or green(f"by the rules, peers reach {_named(machine.ports)}; no probe packet was sent: {error}")
    found += _stopped(each for each in sent if not each.passed and _port(each) not in closed)
    return found or green(f"{len(sent)} probe packets of a peer passed to {_named(machine.ports)}")


def _flows(machine: Machine) -> Iterator[ProbeFlow]:
    for version in _VERSIONS:
        for _, address in probed_peers(machine.peers, version)[:1] if machine.peers else ():
            yield from requests(machine, address)


def _by_the_rules(obstacle: Obstacle) -> Finding:
    """Return the finding of a rule that stops all peers, or if nothing opens it, of one that may."""
    return Finding.of(Colour.RED if obstacle.remedy else Colour.YELLOW, obstacle)


def _stopped(lost: Iterable[Sent]) -> Iterator[Finding]:
    """Yield one finding for each cause; a rule that stopped the packet of one peer may be for this peer alone."""
    causes: dict[tuple[Colour, str], list[Sent]] = {}
    for sent in lost:
        stop = sent.passage.stop
        cause = (
            (Colour.YELLOW, f"is stopped at: {rule_text(stop)}")
            if stop
            else (Colour.RED, "is dropped by a setting of the kernel, a route, or a rule of iptables-legacy")
        )
        causes.setdefault(cause, []).append(sent)
    for (colour, text), of in causes.items():
        yield Finding(colour, f"a request of peer {of[0].flow.sender.address} to {_named(map(_port, of))} {text}")


def _port(sent: Sent) -> Port:
    return sent.flow.protocol, sent.flow.sent_to.port


def _named(ports: Iterable[Port]) -> str:
    return ", ".join(dict.fromkeys(f"{protocol.name} {number}" for protocol, number in ports))
