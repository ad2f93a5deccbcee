"""Checks which peers take packets of the internet out of the tunnel, and which have a split tunnel."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address

from igd.core.peers import Peer, Peers
from igd.host import clock
from igd.operator.doctor import echo
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.remedies import set_for_peer

_SESSION_SECONDS = 180.0
"""A peer with an older handshake has no session (REJECT_AFTER_TIME), and is probably away."""

_MOST = 64
"""How many peers are asked at once."""


async def reachable_peers(machine: Machine) -> Sequence[Finding]:
    """Ask each peer with a session for an echo, as the server and as somebody on the internet."""
    own = next((each.ip for each in machine.addresses if isinstance(each.ip, IPv4Address)), None)
    if machine.peers is None or own is None or not machine.peers.all:
        return []
    recent = clock.boottime() - _SESSION_SECONDS
    sessions = {key for key, moment in (await machine.wireguard.handshakes()).items() if moment >= recent}
    asked = dict(list(_asked(machine, machine.peers, sessions).items())[:_MOST])
    if not asked:
        return green(f"nobody to ask: {len(sessions)} of {len(machine.peers.all)} peers have a session")
    answered = await asyncio.to_thread(echo.answering, machine.interface, (own, echo.OUTSIDE), list(asked))
    split = [
        peer
        for address, peer in asked.items()
        if (own, address) in answered and (echo.OUTSIDE, address) not in answered
    ]
    reached = sum((echo.OUTSIDE, address) in answered for address in asked)
    unknown = len(asked) - reached - len(split)
    note = f", and {unknown} answer no echo at all" if unknown else ""
    return [_split(machine, peer) for peer in split] or green(
        f"{reached} of {len(asked)} connected peers answer a packet of the internet{note}"
    )


def _asked(machine: Machine, peers: Peers, sessions: set[str]) -> dict[IPv4Address, Peer]:
    """Return the peers with a session by their address, without those that get the server's address to see."""
    masqueraded = machine.config.policies.masqueraded(peers)
    return {
        address: peer
        for peer in peers.all
        if peer.public_key in sessions
        for address in peer.addresses[:1]
        if isinstance(address, IPv4Address) and not any(address in network for network in masqueraded)
    }


def _split(machine: Machine, peer: Peer) -> Finding:
    text = f"peer {peer} answers this server and no packet of the internet, so that its mapped ports may be dead"
    cause = "its own AllowedIPs (split tunnel) or its firewall drop it"
    effect = "this gives packets of mapped ports the server's address (its searches by multicast may fail, too)"
    return Finding(
        Colour.YELLOW, f"{text}; {cause}; {effect}", set_for_peer(machine, peer, "masquerade_inbound", value=True)
    )
