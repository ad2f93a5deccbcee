"""A real gateway with a pretended kernel, for the tests of the gateway and of the endpoints."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import IPv4Address, ip_interface, ip_network

from igd.core.mapping import Change, Endpoint, Entry, Key, Lease, PortMapping, TransportProtocol
from igd.core.peers import Address, Peer, Peers
from igd.core.policies import Policies
from igd.core.policy import Policy, PortRule
from igd.core.rate_limit import RateLimit
from igd.core.request import LinkStatus, ListMappings, MappingList, MapPort, Refusal, Reply, Request
from igd.core.table import HoldDown
from igd.firewall.pretend import Pretend
from igd.gateway import Gateway
from igd.ledger import Ledger
from igd.maintenance import Maintenance

EXTERNAL = IPv4Address("60.60.60.1")
C1, C2 = IPv4Address("10.100.0.2"), IPv4Address("10.100.0.3")
C1_HOST = IPv4Address("192.168.7.20")
WEEK = 604800
KEY = (TransportProtocol.TCP, 8043)
SERVER = IPv4Address("10.100.0.1")
_OWN = [ip_interface(f"{SERVER}/16")]
LINK = LinkStatus(
    up=True,
    bits_per_second=10**9,
    bytes_sent=1,
    bytes_received=2,
    packets_sent=3,
    packets_received=4,
    uptime=5,
)


def peer(name: str, *networks: str) -> Peer:
    return Peer(name, tuple(map(ip_network, networks)))


PEERS = (peer("c1", "10.100.0.2/32", "192.168.7.0/24"), peer("c2", "10.100.0.3/32"))


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


class PretendPeers:
    """An igd.gateway.PeerSource whose answers a test sets; while `trouble` is set, it is raised instead.

    After `remember`, the earlier peers are returned to callers for whom they are new enough. `readings` counts the
    callers for whom peers of up to a second ago were not.
    """

    def __init__(self, clock: Clock, *peers: Peer) -> None:
        self.all = peers
        self.readings = 0
        self._clock = clock
        self._earlier: tuple[float, Peers] | None = None
        self._last = Peers(peers, _OWN)
        self.shaken: dict[str, float] = {}
        self.trouble: OSError | None = None
        self.shadowed: set[Address] = set()

    def remember(self, *peers: Peer) -> None:
        """Let the last reading, a moment ago, have found these peers."""
        self._earlier = self._clock(), Peers(peers, _OWN)
        self._clock.now += 0.001

    def reaches(self, address: Address) -> bool:
        """Return whether no network of the server shadows `address`."""
        return address not in self.shadowed

    def routed_elsewhere(self, addresses: Collection[Address]) -> Collection[Address]:
        """Return those of `addresses` that a network of the server shadows."""
        return self.shadowed.intersection(addresses)

    @property
    def last_read(self) -> Peers:
        """The peers as they were last returned, or remembered."""
        return self._earlier[1] if self._earlier else self._last

    async def peers(self, max_age: float = 1.0) -> Peers:
        """Return the peers, as the same object until a test changes them."""
        if self.trouble:
            raise self.trouble
        if self._earlier and self._earlier[0] >= self._clock() - max_age:
            return self._earlier[1]
        self._earlier = None
        self.readings += max_age < 1.0
        if self._last.all != self.all:
            self._last = Peers(self.all, _OWN)
        return self._last

    async def handshakes(self) -> Mapping[str, float]:
        """Return the handshakes."""
        if self.trouble:
            raise self.trouble
        return self.shaken


class MemoryStore:
    """An igd.ledger.Store in a dictionary; `perhaps_fail` is called before each save."""

    def __init__(self, perhaps_fail: Callable[[], None] = lambda: None) -> None:
        self.entries: dict[Key, Entry] = {}
        self.perhaps_fail = perhaps_fail

    def hold_downs(self) -> list[HoldDown]:
        """Return none: they do not survive."""
        return []

    def record_time(self) -> None:
        """Record nothing: it does not survive a reboot."""

    def save(self, changes: Sequence[Change]) -> None:
        """Save the changes."""
        self.perhaps_fail()
        for change in changes:
            if change.after:
                self.entries[change.after.mapping.key] = change.after
            elif change.before:
                self.entries.pop(change.before.mapping.key, None)


class GatewayHarness:
    """A gateway and its parts, accessible to tests."""

    def __init__(
        self,
        policy: Policy | Policies | None = None,
        backend: Pretend | None = None,
        store: MemoryStore | None = None,
        rate: int = 10_000,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.peers = PretendPeers(self.clock, *PEERS)
        self.backend = backend or Pretend()
        self.store = store or MemoryStore()
        self.ledger = Ledger(self.backend, self.store, self.clock)
        self.servers_own: set[Key] = set()
        self.link_trouble: OSError | None = None
        self.gateway = Gateway(
            policies=policy if isinstance(policy, Policies) else Policies(policy or Policy()),
            rate_limit=RateLimit(rate),
            ledger=self.ledger,
            peers=self.peers,
            link=self.link,
            clock=self.clock,
            rng=random.Random(1),
            taken=self.taken,
            idle_seconds={TransportProtocol.TCP: 432_000, TransportProtocol.UDP: 120}.__getitem__,
        )
        self.maintenance = Maintenance(self.gateway)

    def taken(self, protocol: TransportProtocol, port: int) -> bool:
        """Return whether the server itself uses this port."""
        return (protocol, port) in self.servers_own

    async def link(self) -> LinkStatus:
        """Return LINK, or raise `link_trouble`."""
        if self.link_trouble:
            raise self.link_trouble
        return LINK

    async def start(self, *stored: Entry) -> "GatewayHarness":
        """Start with the stored entries."""
        self.store.entries |= {entry.mapping.key: entry for entry in stored}
        await self.maintenance.start(stored, EXTERNAL, [EXTERNAL])
        return self

    async def admit(self, source: Address) -> Peer | Refusal:
        """Count a packet and identify its sender, as an endpoint does."""
        if not self.gateway.count(self.gateway.subject(source)):
            return Refusal.TOO_MANY_REQUESTS
        return await self.gateway.identify(source)

    async def ask(self, request: Request, source: Address = C1) -> Reply:
        """Admit and ask, as an endpoint does."""
        admitted = await self.admit(source)
        assert isinstance(admitted, Peer)
        return await self.gateway.ask(admitted, source, request)

    @property
    def table(self) -> dict[Key, Entry]:
        """The entries of the table by key."""
        return {entry.mapping.key: entry for entry in self.ledger.table}

    def all_equal(self) -> bool:
        """Return whether table, kernel and store have the same entries."""
        return self.table == self.backend.entries == self.store.entries


def map_port(
    port: int | None = 8043,
    internal: IPv4Address = C1,
    *,
    internal_port: int = 8043,
    lifetime: int = 300,
    any_port: bool = False,
    description: str = "",
) -> MapPort:
    """Return a request, which is granted with the default arguments."""
    return MapPort(TransportProtocol.TCP, Endpoint(internal, internal_port), port, lifetime, description, any_port)


def entry(port: int, expires: float = 2000.0, *, endless: bool = False, internal: IPv4Address = C1) -> Entry:
    """Return an entry for a port, held by the peer at `internal`."""
    owner = "c2" if internal == C2 else "c1"
    return Entry(PortMapping(TransportProtocol.TCP, port, Endpoint(internal, 8080), owner), Lease(expires, endless))


def policy(*rules: str, max_lifetime: int = WEEK, default_lifetime: int = WEEK, quota: int = 64) -> Policy:
    """Return a policy with these rules; lifetimes in seconds."""
    return Policy(
        tuple(map(PortRule.parse, rules)),
        max_lifetime=max_lifetime,
        default_lifetime=default_lifetime,
        max_mappings=quota,
    )


async def ports(harness: GatewayHarness, source: IPv4Address = C1) -> list[int]:
    """Return the external ports that the gateway lists for `source`."""
    listed = await harness.ask(ListMappings(), source)
    assert isinstance(listed, MappingList)
    return [mapped.mapping.external_port for mapped in listed.mappings]
