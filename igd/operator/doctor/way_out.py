"""Checks of the way out and of the external address, at which the internet reaches this server."""

import random
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address

from igd.firewall.operator_rules import unrequested
from igd.host.nat_in_front import CANNOT_TELL, CARRIER_GRADE_NAT, NOBODY_REACHES, NatTest
from igd.host.stun import NoAnswer, StunClient, Timing
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.remedies import set_in_configuration

_PATIENCE = Timing(requests=3, last=2, resolve=3.0)
"""A person waits: 2.5 seconds of silence of each server are an answer."""

_STUN = ["stun.cloudflare.com", "stun.l.google.com:19302"]


async def way_out(machine: Machine) -> Sequence[Finding]:
    """Examine whether packets of peers can leave for the internet, and by which interface."""
    external, wanted = machine.external, machine.config.external_interface
    if external.interface:
        return green(f"to the internet by {external.interface}")
    text = next(iter(external.warnings), "no way to the internet")
    if wanted != "auto":
        return [Finding(Colour.RED, text, _way_by(machine, wanted))]
    if external.default_interface == machine.interface:
        text = f"the default route leads into {machine.interface} itself"
        cause = "a peer has AllowedIPs 0.0.0.0/0, to which wg-quick adds routes; give each peer only its own addresses"
        return [Finding(Colour.RED, f"{text}: ports cannot be mapped; {cause}")]
    return [Finding(Colour.RED, text)]


def _way_by(machine: Machine, wanted: str) -> str:
    """Return the line that brings the configured interface up, or names one that leads to the internet."""
    if wanted in {name for _, name in socket.if_nameindex()}:
        return f"ip link set dev {wanted} up"
    return set_in_configuration(machine, external_interface="auto") if machine.external.default_interface else ""


async def external_address(machine: Machine) -> Sequence[Finding]:
    """Examine the address that is announced to clients, and whether a NAT in front of this server has it."""
    external = machine.external
    matched = next(iter(external.addresses.matched), None)
    if not external.interface and matched is None:
        return []  # there is no way out, which is a row of its own
    if matched is None:
        return [Finding(Colour.RED, f"{external.interface} has no IPv4 address: ports cannot be mapped, pinholes can")]
    if machine.config.external_address == "stun":
        return await _by_stun(machine, matched)
    announced = external.addresses.announced
    if announced is None or not announced.is_global:
        return [_private(machine, announced or matched)]
    if announced != matched and matched.is_global:
        text = f"no interface has external_address {announced}, of which clients are told: igd maps {matched} instead"
        return [Finding(Colour.RED, text, set_in_configuration(machine, external_address="auto"))]
    return green(f"{announced}" if announced == matched else f"{announced}, by a 1:1 NAT in front of {matched}")


def _private(machine: Machine, address: IPv4Address) -> Finding:
    if address in CARRIER_GRADE_NAT:
        text = f"{address} is an address of the provider's own NAT (CGNAT, RFC 6598): nobody reaches ports behind it"
        return Finding(Colour.RED, f"{text}; ask the provider for a public address")
    text = f"{address} is not a public address, and clients refuse it: this server is behind another NAT"
    advice = "this asks public STUN servers for the address; the NAT must also forward the ports to this server"
    remedy = set_in_configuration(machine, external_address="stun", stun_servers=_STUN)
    return Finding(Colour.RED, f"{text}; {advice}", remedy)


async def _by_stun(machine: Machine, matched: IPv4Address) -> Sequence[Finding]:
    """Take the answers that the running daemon has, or ask the servers."""
    if machine.status is None:
        return [await _ask_servers(machine, matched)]
    announced, nat = machine.status.get("external_address"), machine.status.get("nat")
    if announced is None:
        return [Finding(Colour.RED, "no STUN server has answered igd: clients are told no external address")]
    if nat is None:
        return [Finding(Colour.YELLOW, f"{announced}; igd is finding out whether the NAT in front forwards ports")]
    return [_judged(str(announced), str(nat))]


async def _ask_servers(machine: Machine, matched: IPv4Address) -> Finding:
    def ports() -> Iterator[int]:
        return machine.config.policies.any_candidates(random.SystemRandom())

    client = StunClient(machine.config.stun_servers or (), lambda _port: False, lambda: None, _PATIENCE)
    test = NatTest(client, ports, partial(unrequested.obstacle, machine.site), _PATIENCE)
    try:
        answer = await client.ask(machine.external.interface, matched)
    except NoAnswer as failure:
        return Finding(Colour.RED, f"no STUN server answers: {failure}")
    verdict = await test.judge(machine.external.interface, answer)
    return _judged(str(answer.mapped.address), verdict.text)


def _judged(announced: str, nat: str) -> Finding:
    colour = Colour.YELLOW if nat.startswith(CANNOT_TELL) else Colour.RED if NOBODY_REACHES in nat else Colour.GREEN
    return Finding(colour, f"{announced}: {nat}")
