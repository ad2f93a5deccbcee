"""Checks of IPv6, where packets reach peers without translation: forwarding, routes, and neighbour discovery."""

import asyncio
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from igd.core.peers import Address, Network
from igd.host import forwarding
from igd.operator.doctor import kernel_settings
from igd.operator.doctor.check import Colour, Finding, green
from igd.operator.doctor.machine import Machine
from igd.operator.doctor.peer_routes import routes_to_peers
from igd.operator.doctor.samples import addresses_of

_MOST = 8
"""How many networks have a row of their own."""

_PROXIES = {"ndppd", "npd6", "pndpd"}
"""Programs that answer neighbour solicitations for addresses behind this host."""


async def ipv6(machine: Machine) -> Sequence[Finding]:
    """Examine what keeps packets from the internet from the IPv6 addresses of peers, pinholes or not."""
    owned = machine.peers.owned() if machine.peers else ()
    if not any(network.version == 6 for network in owned):
        return []
    off = [Finding.of(Colour.RED, each) for each in (await kernel_settings.settings(machine)).ipv6]
    astray = [row for row in await routes_to_peers(machine, 6) if row.colour is not Colour.GREEN]
    unanswered = await _unanswered(machine)
    if found := [*off, *astray, *unanswered]:
        return found
    if not any(network.is_global for network in owned if network.version == 6):
        return green("forwarded to the peers, who have private addresses only: nobody on the internet reaches those")
    return green(f"forwarded, and routed into {machine.interface}")


async def _unanswered(machine: Machine) -> list[Finding]:
    """Find the peers' addresses that the router in front of this server takes for neighbours, and that nobody answers.

    The router asks for them by neighbour discovery (RFC 4861), which this host answers for its own addresses, and for
    those that it is told to be a proxy for.
    """
    outside = await machine.links.route(forwarding.INTERNET_6)
    if outside in (None, machine.interface):
        return []
    on_link = [each.network for each in await machine.links.addresses(str(outside)) if each.version == 6]
    neighbours = {
        network: address
        for network, address in _sampled(machine)
        if address.is_global and any(address in link for link in on_link if link.prefixlen < link.max_prefixlen)
    }
    if not neighbours or _proxies_run():
        return []
    enabled = 1 in (forwarding.sysctl(6, name, "proxy_ndp") for name in (str(outside), "all"))
    answered = await asyncio.to_thread(_answered, str(outside)) if enabled else set[str]()
    missing = [network for network, address in neighbours.items() if str(address) not in answered]
    return list(_solicited(str(outside), missing, enabled=enabled))


def _sampled(machine: Machine) -> Iterator[tuple[Network, Address]]:
    peers = machine.peers
    for peer in peers.all if peers else ():
        assert peers is not None, "it has a peer"
        yield from ((network, each) for network, each in addresses_of(peers, peer).items() if network.version == 6)


def _solicited(outside: str, missing: Sequence[Network], *, enabled: bool) -> Iterator[Finding]:
    setting = "" if enabled else f"sysctl -w net.ipv6.conf.{outside.replace('.', '/')}.proxy_ndp=1\n"
    for network in missing[:_MOST]:
        text = f"{network} of a peer is in the network of {outside}: the router there looks for it among its neighbours"
        if network.prefixlen == network.max_prefixlen:
            line = f"{setting}ip -6 neighbour add proxy {network.network_address} dev {outside}"
            yield Finding(Colour.RED, f"{text}, and this server does not answer for it", line)
        else:
            yield Finding(Colour.RED, f"{text}; have a prefix routed to this server, or answer for it by ndppd")
    if len(missing) > _MOST:
        yield Finding(Colour.RED, f"so are {len(missing) - _MOST} more networks of peers")


def _answered(outside: str) -> set[str]:
    """Return the addresses that this host answers for on the interface, as a proxy."""
    command = ("ip", "-6", "-json", "neighbour", "show", "proxy", "dev", outside)
    shown = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    return {entry["dst"] for entry in json.loads(shown.stdout or "[]")}


def _proxies_run() -> bool:
    for file in Path("/proc").glob("[0-9]*/comm"):
        try:
            if file.read_text().strip() in _PROXIES:
                return True
        except OSError:  # the process has ended
            continue
    return False
