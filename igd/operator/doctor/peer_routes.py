"""Checks whether the kernel sends packets to the peers' addresses into the tunnel (`ip route get`)."""

import socket
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Literal

from igd.core.peers import Network, Peer
from igd.host.links import NO_ROUTE, RT_TABLE_MAIN
from igd.host.routes import RTN_BLACKHOLE, RTN_LOCAL, RTN_PROHIBIT, RTN_UNICAST, RTN_UNREACHABLE, Route, routes
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.samples import addresses_of

_DROPPING = {RTN_BLACKHOLE: "blackhole", RTN_UNREACHABLE: "unreachable", RTN_PROHIBIT: "prohibit"}

_LOOKUP_TABLE = 0x1000  # RTM_F_LOOKUP_TABLE: return the table that has the route, and not always the main one

_MOST = 8
"""How many networks have a row of their own."""


async def routes_to_peers(machine: Machine, version: Literal[4, 6]) -> Sequence[Finding]:
    """Examine the networks of all peers, by an address in each: who is routed elsewhere cannot receive."""
    peers = machine.peers
    if peers is None:
        return []
    samples = {
        network: (peer, address)
        for peer in peers.all
        for network, address in addresses_of(peers, peer).items()
        if network.version == version
    }
    if not samples:
        return []
    tunnel = Route(RTN_UNICAST, socket.if_nametoindex(machine.interface))
    found = routes(address for _, address in samples.values())
    astray = [
        (network, peer, found[address]) for network, (peer, address) in samples.items() if found[address] != tunnel
    ]
    named = f"IPv{version} packets to {len(samples)} networks of peers go into {machine.interface}"
    return [row async for row in _rows(machine, astray)] or green(named)


async def _rows(machine: Machine, astray: Collection[tuple[Network, Peer, Route | None]]) -> AsyncIterator[Finding]:
    for network, peer, route in list(astray)[:_MOST]:
        where, mendable = _where(route)
        line = f"ip route replace {network} dev {machine.name}{await _table(machine, network)}" if mendable else ""
        yield Finding(Colour.RED, f"packets to {network} of peer {peer} {where}: nothing reaches it", line)
    if len(astray) > _MOST:
        yield Finding(Colour.RED, f"so do packets to {len(astray) - _MOST} more networks of peers")


async def _table(machine: Machine, network: Network) -> str:
    """Return the word for the table from which the kernel takes the route, where it is not the main one."""
    try:
        table = (await machine.links.look_up(network[0], flags=_LOOKUP_TABLE)).table
    except OSError as error:
        if error.errno not in NO_ROUTE:
            raise
        return ""
    return "" if table == RT_TABLE_MAIN else f" table {table}"


def _where(route: Route | None) -> tuple[str, bool]:
    """Return where packets go instead, and whether a route to the tunnel mends it."""
    if route is None:
        return "have no route", True
    if route.kind == RTN_LOCAL:
        return "go to this server itself, which has the address, too", False
    if route.kind in _DROPPING:
        return f"are dropped by a route ({_DROPPING[route.kind]})", True
    return f"leave by {socket.if_indextoname(route.interface)}", True
