"""Sends random requests of several peers to a gateway whose kernel and store fail at random.

Table, ledger, planner and the lease file are the real ones. After each step the failures stop, what failed is made up
for, and table, kernel and store must be equal.
"""

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

from igd.core.mapping import ControlProtocol, Entry, Key, Pinhole, TransportProtocol
from igd.core.peers import Address, Peer
from igd.core.policies import Policies
from igd.core.policy import Policy, PortRule
from igd.core.request import (
    Mapped,
    MapPort,
    Refusal,
    RenewPinhole,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
    UnmapPinhole,
    UnmapPorts,
)
from igd.core.reserved_ports import Reservation, StaticMapping
from igd.gateway import ChangeRequest
from tests.fuzz.failing import FailingKernel, FailingStore, Trouble
from tests.fuzz.random_requests import ADDRESSES, C2_KEY, C3_KEY, KEEPER_KEY, PEERS, PORTS, random_request
from tests.gateway_harness import EXTERNAL, Clock, GatewayHarness, MemoryStore, map_port, peer

QUOTA = 4
LONGEST_BATCH = 6
"""Requests that are made at once."""

POLICY = Policy(max_mappings=QUOTA, max_lifetime=1000, default_lifetime=300)
STATIC = StaticMapping.parse("tcp 8004 10.100.0.3 8000")
STATIC_KEY = TransportProtocol.TCP, 8004

MOVED = (PEERS[0], peer(C2_KEY, "10.100.0.3/32"), peer(C3_KEY, "fd77::3/128", "10.100.0.4/32"))
KEEPER = peer(KEEPER_KEY, "10.100.0.9/32")
"""A peer whose renewals have the store save what it owes."""


class Session:
    """A gateway in trouble; `folder` has its lease file. `outcomes` counts the replies."""

    def __init__(self, seed: str, folder: Path) -> None:
        self.outcomes: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._trouble = Trouble(random.Random(f"{seed} trouble"))
        self._path = folder / "leases.sqlite"
        self._clock = Clock()
        self._harness, self._store = self._opened()

    def _opened(self) -> tuple[GatewayHarness, FailingStore]:
        c2 = replace(POLICY, static=(STATIC,), reserved=(Reservation.parse("udp 8000-8001"),), idle_after=200)
        c3 = replace(POLICY, rules=(PortRule.parse("allow 8000-8003 0.0.0.0/0 1-65535"),), routed_hosts=False)
        policies = Policies(POLICY, {C2_KEY: c2, C3_KEY: c3})
        store, kernel = FailingStore(self._path, self._clock, self._trouble), FailingKernel(self._trouble)
        # The harness wants of a store no more than this one has.
        harness = GatewayHarness(policies, kernel, cast("MemoryStore", store), rate=10**9, clock=self._clock)
        harness.peers.all = (*PEERS, KEEPER)
        return harness, store

    async def run(self, count: int) -> None:
        """Make `count` requests; AssertionError for what must not be, and whatever a request raises."""
        await self._start()
        try:
            while self.outcomes.total() < count:
                self._trouble.probability = self._rng.choice([0, 0, 0.05, 0.3, 1])
                await self._make_requests()
                await self._disturb()
                self._trouble.probability = 0.0
                await self._settle()
                await self._check()
                if self._rng.random() < 0.01:
                    await self._restart()
        finally:
            await self._stop()

    async def _start(self) -> None:
        await self._harness.maintenance.start(self._store.load(), EXTERNAL, [EXTERNAL])

    async def _stop(self) -> None:
        await self._harness.ledger.close()
        self._store.close()

    async def _restart(self) -> None:
        """Close the lease file, and begin with what it has."""
        old, before = self._harness, _lasting(self._harness.table)
        await self._stop()
        self._harness, self._store = self._opened()
        self._harness.peers.all, self._harness.peers.shadowed = old.peers.all, old.peers.shadowed
        await self._start()
        assert _lasting(self._harness.table) == before
        await self._settle()
        await self._check()

    async def _make_requests(self) -> None:
        unique_ids = [each.unique_id for each in _pinholes(self._harness.table)]
        made = [random_request(self._rng, unique_ids) for _ in range(self._rng.choice([1, 1, LONGEST_BATCH]))]
        before = self._harness.table
        replies = await asyncio.gather(*(self._ask(source, request) for source, request in made))
        if len(made) == 1:
            self._check_reply(made[0][1], replies[0], before)

    async def _ask(self, source: Address, request: Request) -> Reply:
        self._harness.link_trouble = self._rng.choice([OSError("no link"), None])
        admitted = await self._harness.admit(source)
        reply: Reply = admitted if isinstance(admitted, Refusal) else Refusal.NOT_A_PEER
        if isinstance(admitted, Peer):
            protocol = self._rng.choice(list(ControlProtocol))
            reply = await self._harness.gateway.ask(admitted, source, request, protocol)
        self.outcomes[reply.name if isinstance(reply, Refusal) else type(request).__name__] += 1
        return reply

    def _check_reply(self, request: Request, reply: Reply, before: dict[Key, Entry]) -> None:
        """Assert that the only request was carried out if it was granted, and otherwise has changed nothing."""
        table = self._harness.table
        match request, reply:
            case MapPort(), Mapped(mapping, _, number):
                assert table[mapping.key].mapping == mapping
                assert len(table) <= len(before) + number
            case RenewPinhole(unique_id), Mapped(mapping):
                assert isinstance(mapping, Pinhole)
                assert unique_id == mapping.unique_id
                assert {key: entry.mapping for key, entry in table.items()} == {
                    key: entry.mapping for key, entry in before.items()
                }
            case ((UnmapPorts() | UnmapInternal() | UnmapPinhole()), Unmapped(mappings)):
                assert before.keys() - table.keys() == {mapping.key for mapping in mappings}
            case _:
                assert table == before
                assert isinstance(reply, Refusal) or not isinstance(request, ChangeRequest)

    async def _disturb(self) -> None:
        """Let time pass, or peers, routes and addresses change, while the trouble lasts."""
        harness, rng = self._harness, self._rng
        with contextlib.suppress(OSError):
            match rng.randrange(15):
                case 0 | 1 | 2:
                    self._clock.now += rng.choice([0.5, 30, 90, 400])
                    await harness.maintenance.wake()
                case 3:
                    harness.peers.all = (*rng.choice([PEERS, MOVED, PEERS[:1]]), KEEPER)
                    await harness.maintenance.recheck_peers()
                case 13 | 14:
                    harness.peers.all = (*PEERS, KEEPER)
                case 4:
                    harness.peers.shadowed = {rng.choice(ADDRESSES[:7])} if rng.random() < 0.3 else set()
                    harness.maintenance._checked = None  # as recheck_routes does, which then waits in real time
                    await harness.maintenance.recheck_peers()
                case 5 if rng.random() < 0.2:
                    matched = rng.choice([[EXTERNAL], []])
                    await harness.maintenance.set_addresses(EXTERNAL, matched)
                case 6:
                    harness.servers_own = {(TransportProtocol.TCP, rng.choice(PORTS))}
                case 7:
                    now = self._clock()
                    harness.peers.shaken = {each.public_key: now - rng.choice([1, 500]) for each in PEERS}
                case 8 if rng.random() < 0.2:
                    await harness.ledger.repair()
                case _:
                    pass

    async def _settle(self) -> None:
        """Make up for what has failed: a second passes, and the keeper's renewal has the store save what it owes."""
        harness = self._harness
        harness.peers.trouble = None
        self._clock.now += 1.5
        if not harness.ledger.addresses:
            await harness.maintenance.set_addresses(EXTERNAL, [EXTERNAL])  # it replaces all that the kernel has
        await harness.maintenance.recheck_peers()
        self._clock.now += 1.5
        await harness.maintenance.recheck_peers()
        await harness.maintenance.wake()
        reply = await harness.ask(map_port(50000, KEEPER.addresses[0]), KEEPER.addresses[0])  # type: ignore[arg-type]
        assert isinstance(reply, Mapped), reply

    async def _check(self) -> None:
        """Assert that table, kernel and store are equal, and that the table holds what it may hold."""
        harness, now = self._harness, self._clock()
        table, peers = harness.table, await harness.peers.peers()
        assert {key: entry for key, entry in table.items() if not entry.suspended} == harness.backend.entries
        assert _lasting(table) == _lasting(self._store.entries)
        numbers = {each.unique_id: each.key for each in _pinholes(table)}
        assert len(numbers) == len(_pinholes(table)) == len(harness.ledger.table.unique_ids)
        assert {each: harness.ledger.table.unique_ids.key(each) for each in numbers} == numbers
        held = Counter(entry.mapping.peer for entry in table.values() if not entry.lease.static)
        for entry in table.values():
            mapping, policy = entry.mapping, harness.gateway.policies.of(entry.mapping.peer)
            assert held[mapping.peer] <= policy.max_mappings
            assert peers.still_owns(mapping.peer, mapping.internal.address)
            assert mapping.internal.address not in harness.peers.shadowed
            assert policy.allows(mapping.protocol, mapping.external_port, mapping.internal, mapping.description)
            assert entry.lease.static or now < entry.lease.expires <= now + policy.max_lifetime
        address = STATIC.internal.address
        stands = peers.still_owns(C2_KEY, address) and harness.peers.reaches(address)
        if STATIC_KEY not in harness.servers_own:
            assert stands == (STATIC_KEY in table and table[STATIC_KEY].lease.static)


def _pinholes(table: dict[Key, Entry]) -> list[Pinhole]:
    return [entry.mapping for entry in table.values() if isinstance(entry.mapping, Pinhole)]


def _lasting(table: dict[Key, Entry]) -> dict[Key, object]:
    """Return what the store keeps up to date: all but the expiry of an endless lease, which a start extends."""
    return {
        key: (entry.mapping, entry.lease.endless or entry.lease.expires)
        for key, entry in table.items()
        if not entry.lease.static
    }
