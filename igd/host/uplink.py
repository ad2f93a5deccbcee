"""The way out: where the kernel would send a packet to the internet. The kernel is asked; nothing is sent."""

import errno
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from igd.core.peers import Address
from igd.host.forwarding import sysctl
from igd.host.links import NO_ROUTE, Links, Route

INTERNET = tuple(map(IPv4Address, ("198.41.0.4", "193.0.14.129", "202.12.27.33")))
"""Three addresses of different networks: the root name servers a, k and m. Operators have no special routes to them, as
they do to public resolvers, and one that has a special route is outvoted."""

_GONE = NO_ROUTE | {errno.ENODEV}

_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the route itself, with its own preferred source address


NO_WAY_OUT = Route(0, None)


@dataclass(frozen=True, slots=True)
class _Answer:
    destination: IPv4Address
    sender: IPv4Address | None  # None: the host itself
    route: Route


async def find_way_out(links: Links, tunnel: str, peers: Iterable[Address], current: int = 0) -> Route:
    """Return the way of packets that arrive from `peers` in the tunnel and leave for the internet, or NO_WAY_OUT.

    The operator's policy routing for the peers counts. Where the kernel cannot tell, return the way of the host's own
    packets. OSError.

    With several equal routes (multipath) `current`, the index of the interface in use, is kept if it is one.
    """
    index = await _index(links, tunnel)
    senders = await _senders(links, tunnel, peers) if index else [None]
    pairs = zip(INTERNET, itertools.cycle(senders), strict=False)
    answers = [await _ask(links, index, tunnel, destination, sender) for destination, sender in pairs]
    votes = Counter(answer.route.index for answer in answers)
    elected = max(votes, key=lambda each: (votes[each], each != 0, each == current))
    answer = next(answer for answer in answers if answer.route.index == elected)
    return Route(elected, await _source(links, index, answer)) if elected else NO_WAY_OUT


async def way_through(links: Links, index: int) -> Route:
    """Return the way out through this interface, whatever the routes. OSError."""
    try:
        return Route(index, (await links.look_up(INTERNET[0], oif=index)).source)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return Route(index, None)


async def _index(links: Links, tunnel: str) -> int:
    link = await links.state(tunnel)
    return link.index if link else 0


async def _senders(links: Links, tunnel: str, peers: Iterable[Address]) -> Sequence[IPv4Address | None]:
    """Return addresses of peers that are routed into the tunnel, or one that a peer might have; [None] without IPv4."""
    networks = [each for each in await links.addresses(tunnel) if isinstance(each, IPv4Interface)]
    own = {each.ip for each in networks}
    candidates = sorted(each for each in peers if isinstance(each, IPv4Address) and each not in own)[: len(INTERNET)]
    might = [host for each in networks for host in itertools.islice(each.network.hosts(), 2) if host not in own]
    for some in (candidates, might[:1]):
        if routed := [each for each in some if await links.route(each) == tunnel]:
            return routed
    return [None]


async def _ask(links: Links, index: int, tunnel: str, destination: IPv4Address, sender: IPv4Address | None) -> _Answer:
    try:
        if sender is not None and sysctl(4, tunnel, "forwarding"):  # else it says that there is no route
            route = await links.look_up(destination, iif=index, src=str(sender))
        else:
            sender, route = None, await links.look_up(destination)
    except OSError as error:
        if error.errno == errno.EXDEV and sender is not None:  # rp_filter would drop the peer's packets
            return await _ask(links, index, tunnel, destination, None)
        if error.errno not in _GONE:
            raise
        route = NO_WAY_OUT
    return _Answer(destination, sender, route)


async def _source(links: Links, index: int, answer: _Answer) -> IPv4Address | None:
    """Return the source address that the route names, else the one that the kernel chooses on this interface."""
    if answer.sender is None:
        return answer.route.source
    try:
        named = await links.look_up(answer.destination, iif=index, src=str(answer.sender), flags=_FIB_MATCH)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return None  # it has just changed
    return named.source or (await way_through(links, answer.route.index)).source
