"""Whatever peers request of pinholes, by either protocol and while plans wait: each has a UniqueID of its own."""

import random
from ipaddress import IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import (
    BY_EXTERNAL_PORT,
    Change,
    Claim,
    Endpoint,
    Key,
    Lease,
    Pinhole,
    Remote,
    TransportProtocol,
)
from igd.core.planner import Planner
from igd.core.policy import Policy
from igd.core.request import MapPort, Refusal, RenewPinhole, UnmapInternal, UnmapPinhole
from igd.core.table import Table

TCP = TransportProtocol.TCP
NOW = 1000.0
HOSTS = {"c1": IPv6Address("2001:db8::2"), "c2": IPv6Address("2001:db8::3")}
PCP = Claim(by_internal=True, nonce=b"n" * 12)
R1, R2 = (Remote(IPv6Network(f"2001:db8:1::{host}/128")) for host in (1, 2))

remotes = st.sampled_from([(), (R1,), (R2,)])
peers = st.sampled_from(sorted(HOSTS))
steps = st.one_of(
    st.tuples(st.just("map"), peers, st.integers(5000, 5002), remotes, st.booleans(), st.integers(1, 900)),
    st.tuples(st.sampled_from(["renew", "unmap"]), peers, st.integers(0, 4), st.integers(1, 900)),
    st.tuples(st.just("pcp unmap"), peers, st.integers(5000, 5002)),
    st.tuples(st.sampled_from(["accept", "release"])),
)


class Pinholes:
    """A table of pinholes, and the plans that wait: at most one of each peer."""

    def __init__(self, seed: int) -> None:
        self.table = Table()
        self.waiting: dict[str, list[Change]] = {}
        self._rng = random.Random(seed)
        self.known: dict[Key, int] = {}  # the UniqueID of each open pinhole

    def take(self, step: tuple[object, ...]) -> None:
        """Plan what a peer requests, or accept or release what waits."""
        match step:
            case "map", str(peer), int(port), tuple(admitted), bool(by_pcp), int(lifetime):
                claim = PCP if by_pcp else BY_EXTERNAL_PORT
                internal = Endpoint(HOSTS[peer], port)
                request = MapPort(TCP, internal, port, lifetime, remotes=admitted, claim=claim)
                self._plan(peer, self._planned(peer, request))
            case "renew", str(peer), int(index), int(lifetime):
                found = self._unique_id(index)
                plan = self.table.plan_renew_pinhole(peer, RenewPinhole(found, lifetime), Lease(NOW + lifetime))
                self._plan(peer, plan if isinstance(plan, Refusal) else [plan])
            case "unmap", str(peer), int(index), int():
                self._plan(peer, self.table.plan_unmap_pinhole(peer, UnmapPinhole(self._unique_id(index))))
            case "pcp unmap", str(peer), int(port):
                request_ = UnmapInternal(TCP, HOSTS[peer], port, PCP)
                self._plan(peer, self.table.plan_unmap_internal(peer, request_))
            case ("accept",):
                for changes in self.waiting.values():
                    self._accept(changes)
                self.waiting = {}
            case ("release",):
                for changes in self.waiting.values():
                    self.table.release(changes)
                self.waiting = {}

    def _planned(self, peer: str, request: MapPort) -> list[Change] | Refusal:
        return Planner(Policy(), self.table, lambda *_: False, self._rng, peer, request, NOW).plan_port_set()

    def _plan(self, peer: str, plan: list[Change] | Refusal) -> None:
        if peer not in self.waiting and not isinstance(plan, Refusal):
            assert {change.peer for change in plan} <= {peer}
            self.table.reserve(plan)
            self.waiting[peer] = plan

    def _unique_id(self, index: int) -> int:
        """Return the UniqueID of one of the open pinholes, of either peer's."""
        numbers = list(self.known.values())
        return numbers[index] if index < len(numbers) else 0

    def _accept(self, changes: list[Change]) -> None:
        for change in changes:
            before, after = change.before, change.after
            if after is None:
                del self.known[change.key]
                continue
            assert isinstance(after.mapping, Pinhole)
            assert self.known.setdefault(change.key, after.mapping.unique_id) == after.mapping.unique_id
            if before is not None and before.mapping.claim.by_internal:
                assert after.mapping.claim.by_internal
                assert after.lease.expires >= before.lease.expires
        self.table.accept(changes, NOW)

    def check(self) -> None:
        """Compare the table with the model, and UniqueIDs of open and planned pinholes with each other."""
        held = {entry.mapping.key: entry.mapping for entry in self.table}
        planned = [each.after.mapping for changes in self.waiting.values() for each in changes if each.after]
        numbers: dict[int, set[Key]] = {}
        for mapping in (*held.values(), *planned):
            assert isinstance(mapping, Pinhole)
            numbers.setdefault(mapping.unique_id, set()).add(mapping.key)
        assert {number: {self.table.unique_ids.key(number)} for number in numbers} == numbers
        assert len(self.table.unique_ids) == len(numbers)
        for key, number in self.known.items():
            owner = held[key].peer
            found = self.table.find_pinhole(owner, number)
            assert found is not None
            assert found.mapping == held[key]
            assert all(self.table.find_pinhole(other, number) is None for other in HOSTS if other != owner)
        assert self.known.keys() == held.keys()


@given(st.lists(steps, max_size=20), st.integers(0, 3))
def test_each_has_a_unique_id_of_its_own_that_stays(script: list[tuple[object, ...]], seed: int) -> None:
    pinholes = Pinholes(seed)
    for step in script:
        pinholes.take(step)
        pinholes.check()
