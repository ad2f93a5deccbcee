"""Checks that mapped flows pass between the internet and peers: by packets, or by the rules where none can be sent."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from igd.core.mapping import abridged
from igd.core.peers import Peers
from igd.firewall import conntrack
from igd.firewall.backend import FirewallError
from igd.firewall.operator_rules import rule_sets
from igd.firewall.operator_rules.packet import Version
from igd.firewall.probing.flow import ProbeFlow
from igd.firewall.probing.passage import Reached
from igd.operator.doctor import ipv6, kernel_settings, marks
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.forward_rules import Judge
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.peer_routes import routes_to_peers
from igd.operator.doctor.probe import Sent, probe
from igd.operator.doctor.probe_flows import mapped_flows, probed_peers

_SHOWN = 4  # peers in one line


async def forward_path(machine: Machine) -> Sequence[Finding]:
    """Examine whether mapped flows and those of pinholes pass between the internet and the first peers."""
    if machine.peers is None or not machine.external.interface:
        return []
    others = [await check(machine) for check in _OF_ROUTING]
    explained = any(finding.colour is Colour.RED for findings in others for finding in findings)
    return await asyncio.to_thread(_examine, machine, machine.peers, explained=explained)


_OF_ROUTING = (
    kernel_settings.ipv4_forwarding,
    kernel_settings.reverse_path,
    partial(routes_to_peers, version=4),
    ipv6.ipv6,
)
"""The checks that explain why the kernel does not forward a packet, and have the lines that help."""


def _examine(machine: Machine, peers: Peers, *, explained: bool) -> Sequence[Finding]:
    runs = machine.status is not None
    chains = rule_sets.chains("forward")
    judges = {version: Judge(machine.site, version, chains, runs=runs) for version in _VERSIONS}
    sent, unsent = _probe(machine, peers)
    found = marks.lost(sent, machine.site.mark)
    stopped: dict[_Stop, list[Sent]] = {}
    for each in (each for each in sent if not each.passed and each.passage.marked is not False):
        if not (explained and each.passage.reached in _ROUTED_ELSEWHERE and each.passage.stop is None):
            cause = _Stop(_stopped(judges[each.flow.version], each), each.what, each.way)
            stopped.setdefault(cause, []).append(each)
    found += [_finding(stop, of, peers) for stop, of in stopped.items()]
    lost = {each.flow for each in sent if not each.passed or each.passage.marked is False}
    if passed := [each for each in sent if each.flow not in lost]:
        who = _peers(passed, peers)
        found += green(f"{len(passed)} probe packets passed between {machine.external.interface} and {who}")
    remedies = {finding.remedy for finding in found if finding.remedy}
    for version, reason in unsent.items():
        by_rules = judges[version].findings() or green(_UNSENT.format(version=version, reason=reason))
        found += [finding for finding in by_rules if finding.remedy not in remedies]
    return found


def _probe(machine: Machine, peers: Peers) -> tuple[list[Sent], dict[Version, str]]:
    """Probe the IP versions that peers have; return the packets, and why none were sent of an IP version."""
    flows: list[ProbeFlow] = []
    unsent: dict[Version, str] = {}
    for version in _VERSIONS:
        of_version = mapped_flows(machine, version, [address for _, address in probed_peers(peers, version)])
        if of_version and not conntrack.is_in_use(version):
            unsent[version] = "connection tracking is not in use, and a probe would switch it on"
        else:
            flows += of_version
    try:
        return probe(machine.site, flows), unsent
    except (OSError, FirewallError) as error:
        return [], unsent | {flow.version: str(error) for flow in flows}


_VERSIONS: tuple[Version, ...] = (4, 6)
_UNSENT = "by the rules, mapped flows of IPv{version} pass; no probe packet was sent: {reason}"


class _Stop(NamedTuple):
    """Why packets were stopped, and which packets of their flows."""

    finding: Finding
    what: str
    way: str


def _finding(stop: _Stop, stopped: Sequence[Sent], peers: Peers) -> Finding:
    """Return the finding that packets of one or both protocols, of one or more peers, were stopped."""
    colour, text, remedy = stop.finding
    protocols = " and ".join(dict.fromkeys(sent.flow.protocol.name for sent in stopped))
    return Finding(colour, f"{stop.what} ({protocols} {stop.way}) {text}: {_peers(stopped, peers)}", remedy)


def _peers(sent: Iterable[Sent], peers: Peers) -> str:
    """Name the peers that these packets are from or for."""
    addresses = dict.fromkeys(each.flow.led_to.address for each in sent if each.flow.led_to)
    return abridged([f"{peers.owner(address)} ({address})" for address in addresses], _SHOWN)


def _stopped(judge: Judge, sent: Sent) -> Finding:
    """Return why a packet did not get where it should."""
    if sent.passage.stop is not None:
        return judge.stopped_at(sent, sent.passage.stop)
    if sent.passage.reached is Reached.ROUTED:
        return judge.lost(sent)
    return Finding(Colour.RED, _LOST[sent.passage.reached].format(arrived_on=sent.arrived_on, leaves_by=sent.leaves_by))


_ROUTING = (
    "is dropped before FORWARD, by a setting of the kernel, a route or policy rule, or a rule of iptables-legacy in "
    "raw or mangle"
)
_WRONG_WAY = "does not leave by {leaves_by}: see `ip route` and `ip rule`"
_LOST = {
    Reached.NOTHING: "is dropped where it arrives on {arrived_on}, by nft (ingress), tc or XDP",
    Reached.ARRIVAL: _ROUTING,
    Reached.TRANSLATION: _ROUTING,
    Reached.FORWARDED: "is dropped behind FORWARD, in POSTROUTING",
    Reached.RECEIVED: "is taken by the server itself: an address of a peer is the server's own",
    Reached.WRONG_WAY: _WRONG_WAY,
    Reached.INTERNET: _WRONG_WAY,
    Reached.TUNNEL: _WRONG_WAY,
}

_ROUTED_ELSEWHERE = _LOST.keys() - {Reached.NOTHING, Reached.FORWARDED}
