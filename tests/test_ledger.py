"""Table, kernel and store stay equal after failures and cancelled requests."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igd.core.mapping import Change, Endpoint, Entry, Lease, PortMapping, TransportProtocol
from igd.core.request import MapPort, Refusal, Reply, Request, UnmapPorts
from igd.firewall.backend import FirewallError
from igd.firewall.pretend import Pretend
from igd.ledger import RETRY_SECONDS, Ledger
from tests.gateway_harness import C1, C2, EXTERNAL, PEERS, Clock, GatewayHarness, MemoryStore, map_port, peer

OTHER = IPv4Address("60.60.60.2")


def entry(port: int, expires: float = 2000.0) -> Entry:
    return Entry(PortMapping(TransportProtocol.TCP, port, Endpoint(C1, 8080), "c1"), Lease(expires))


class Trouble:
    """Makes the calls fail for which `ahead` has True; further calls succeed."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.ahead: list[bool] = []

    def __call__(self) -> None:
        """Raise the error if this call is to fail."""
        if self.ahead and self.ahead.pop(0):
            raise self._error


class FailingKernel(Pretend):
    """A kernel whose failed calls leave an undefined state: the change made, or no mappings at all."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble = Trouble(FirewallError("no"))
        self.replaced = 0

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Leave no mappings on failure."""
        self.replaced += 1
        super().replace_all((), (), now)
        self.trouble()
        super().replace_all(addresses, entries, now)

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Leave the change made on failure."""
        super().apply(changes, now)
        self.trouble()


class RecordingStore(MemoryStore):
    """Remembers all changes that it has saved."""

    def __init__(self, perhaps_fail: Callable[[], None]) -> None:
        super().__init__(perhaps_fail)
        self.saved: list[Change] = []

    def save(self, changes: Sequence[Change]) -> None:
        """Save the changes."""
        super().save(changes)
        self.saved += changes


class Failing(GatewayHarness):
    """A harness whose kernel and disk fail on request."""

    def __init__(self) -> None:
        self.kernel, self.disk = FailingKernel(), Trouble(OSError("disk full"))
        self.recorder = RecordingStore(self.disk)
        super().__init__(backend=self.kernel, store=self.recorder)

    async def recover(self) -> None:
        """Run the timer as the daemon does, until nothing is left to retry."""
        for _ in range(10):
            wake = self.ledger.next_wake()
            if wake is None or wake > self.clock.now + RETRY_SECONDS:
                return
            assert wake > self.clock.now, "the timer would wake without pause"
            self.clock.now = wake
            await self.maintenance.wake()
        raise AssertionError("the retries do not end")


NO, YES = True, False  # whether a call of kernel or disk fails


OPEN, RENEW, MOVE = map_port(2000), map_port(1024, lifetime=4000), map_port(1024, internal_port=9000)
CLOSE = UnmapPorts(TransportProtocol.TCP, range(1024, 1025))


@pytest.mark.parametrize(
    ("request_", "kernel", "disk"),
    [
        *(
            (request, kernel, ())
            for request in (OPEN, RENEW, MOVE, CLOSE)
            for kernel in (
                (NO,),
                (NO, NO),  # the repair fails too, until the next change
                (NO, NO, NO, NO),
            )
        ),
        *(
            (request, kernel, (NO,))
            for request in (OPEN, MOVE)
            for kernel in (
                (),  # the kernel succeeds, the disk fails
                (YES, NO),
                (YES, NO, NO, NO),
            )
        ),
        (CLOSE, (NO,), (NO,)),
        (CLOSE, (NO,), (YES, NO)),  # undoing the save fails too
        (CLOSE, (NO, NO, NO), (YES, NO, NO, NO)),
    ],
)
async def test_a_failure_refuses_the_request_and_leaves_all_equal(
    request_: MapPort | UnmapPorts, kernel: tuple[bool, ...], disk: tuple[bool, ...]
) -> None:
    harness = Failing()
    await harness.start()
    await harness.ask(map_port(1024))
    before = harness.table
    harness.kernel.trouble.ahead, harness.disk.ahead = list(kernel), list(disk)
    assert await harness.ask(request_) == Refusal.SYSTEM_FAILURE
    assert harness.table == before
    await harness.recover()
    assert harness.backend.entries == before
    harness.kernel.trouble.ahead, harness.disk.ahead = [], []
    assert not isinstance(await harness.ask(map_port(3000)), Refusal)
    assert harness.all_equal()


steps = st.one_of(
    st.builds(
        map_port,
        st.integers(1024, 1027),
        st.sampled_from([C1, C2]),
        lifetime=st.sampled_from([0, 60, 300]),
        any_port=st.booleans(),
    ),
    st.builds(
        UnmapPorts,
        st.just(TransportProtocol.TCP),
        st.builds(range, st.integers(1024, 1026), st.integers(1026, 1028)).filter(len),
    ),
    st.floats(0.0, 200.0),
    st.sampled_from([PEERS, PEERS[:1], ()]),
    st.sampled_from([EXTERNAL, OTHER]),
)
failures = st.lists(st.booleans(), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(steps, failures, failures), max_size=15))
def test_all_are_equal_after_any_failures(script: list[tuple[object, list[bool], list[bool]]]) -> None:
    asyncio.run(_play(script))


async def _play(script: list[tuple[object, list[bool], list[bool]]]) -> None:
    harness = Failing()
    await harness.start()
    address = EXTERNAL
    for step, harness.kernel.trouble.ahead, harness.disk.ahead in script:
        before = harness.table
        match step:
            case MapPort() | UnmapPorts():
                if not harness.peers.all:
                    continue
                source = step.internal.address if isinstance(step, MapPort) else C1
                if source == C2 and len(harness.peers.all) == 1:
                    continue
                reply = await harness.ask(step, source)
                if isinstance(reply, Refusal):
                    assert harness.table == before
                else:
                    assert harness.backend.entries == harness.table
            case float():
                harness.clock.now += step
                await harness.maintenance.wake()
            case tuple():
                harness.peers.all = step
                await harness.maintenance.recheck_peers()
            case IPv4Address():
                address = step
                await harness.maintenance.set_addresses(step, [step])
    harness.kernel.trouble.ahead, harness.disk.ahead = [], []
    await harness.maintenance.recheck_peers()
    await harness.maintenance.wake()
    assert harness.backend.entries == harness.table
    assert harness.backend.addresses == {address}
    harness.peers.all = PEERS
    assert not isinstance(await harness.ask(map_port(5000)), Refusal)
    assert harness.all_equal()
    await harness.ledger.close()


class SlowKernel(Pretend):
    """Starts a change, and completes it once `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Signal `begun`, wait for `go`, and apply."""
        self.begun.set()
        assert self.go.wait(10)
        super().apply(changes, now)


@pytest.mark.parametrize("task", ["ask", "wake", "recheck"])
async def test_a_cancelled_task_leaves_all_equal(task: str) -> None:
    kernel = SlowKernel()
    harness = GatewayHarness(backend=kernel)
    await harness.start(entry(1024, expires=1010.0))
    harness.clock.now = 1010.0
    if task == "recheck":
        harness.peers.all = PEERS[1:]
    start = {
        "ask": lambda: harness.ask(map_port(2000)),
        "wake": harness.maintenance.wake,
        "recheck": harness.maintenance.recheck_peers,
    }[task]
    asking = asyncio.ensure_future(start())
    await asyncio.to_thread(kernel.begun.wait, 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    kernel.go.set()
    await harness.ledger.set_addresses([EXTERNAL])  # waits for the change in progress
    assert harness.all_equal()
    assert len(harness.table) == (2 if task == "ask" else 0)
    await harness.ledger.close()


class CountingKernel(SlowKernel):
    """Records the ports of each transaction; rejects transactions with the port `bad`."""

    def __init__(self, bad: int | None = None) -> None:
        super().__init__()
        self.bad = bad
        self.batches: list[list[int]] = []

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Record the transaction, and apply or reject it as a whole."""
        self.batches.append([key[1] for change in changes for key in [change.key]])
        if any(port == self.bad for port in self.batches[-1]):
            raise FirewallError("no")
        super().apply(changes, now)


def crowd(size: int) -> dict[str, IPv4Address]:
    return {f"p{n}": IPv4Address("10.100.1.0") + n for n in range(size)}


async def ask_together(harness: GatewayHarness, kernel: CountingKernel, peers: dict[str, IPv4Address]) -> list[Reply]:
    """Start the first peer's change, and let those of the others wait behind it."""
    harness.peers.all = tuple(peer(name, f"{address}/32") for name, address in peers.items())
    requests = [
        asyncio.ensure_future(harness.ask(map_port(2000 + n, address), address))
        for n, address in enumerate(peers.values())
    ]
    await asyncio.to_thread(kernel.begun.wait, 10)
    kernel.go.set()
    return await asyncio.gather(*requests)


async def test_changes_that_wait_share_a_transaction() -> None:
    kernel = CountingKernel()
    harness = GatewayHarness(backend=kernel)
    await harness.start()
    replies = await ask_together(harness, kernel, crowd(6))
    assert not any(isinstance(reply, Refusal) for reply in replies)
    assert [len(batch) for batch in kernel.batches] == [1, 5]
    assert harness.all_equal()


async def test_a_rejected_change_does_not_refuse_others_of_its_transaction() -> None:
    kernel = CountingKernel(bad=2003)
    harness = GatewayHarness(backend=kernel)
    await harness.start()
    replies = await ask_together(harness, kernel, crowd(6))
    assert [isinstance(reply, Refusal) for reply in replies] == [False, False, False, True, False, False]
    assert kernel.batches == [[2000], [2001, 2002, 2003, 2004, 2005], [2001], [2002], [2003], [2004], [2005]]
    assert harness.all_equal()
    kernel.bad = None
    assert not isinstance(await harness.ask(map_port(2003, crowd(1)["p0"]), crowd(1)["p0"]), Refusal), (
        "the port is free"
    )


async def test_a_port_of_a_change_in_progress_is_a_conflict() -> None:
    kernel = CountingKernel()
    harness = GatewayHarness(backend=kernel)
    await harness.start()
    first = asyncio.ensure_future(harness.ask(map_port(2000)))
    await asyncio.to_thread(kernel.begun.wait, 10)
    assert await harness.ask(map_port(2000, C2), C2) == Refusal.CONFLICT
    assert harness.table == {}, "a change in progress is not visible"
    kernel.go.set()
    assert not isinstance(await first, Refusal)


async def test_changes_of_one_peer_are_made_in_the_order_of_its_requests() -> None:
    kernel = CountingKernel()
    harness = GatewayHarness(backend=kernel)
    await harness.start()
    script: list[Request] = [
        map_port(2000),
        map_port(2000, lifetime=600),
        UnmapPorts(TransportProtocol.TCP, range(2000, 2001)),
    ]
    asking = [asyncio.ensure_future(harness.ask(step)) for step in script]
    await asyncio.to_thread(kernel.begun.wait, 10)
    kernel.go.set()
    assert not any(isinstance(reply, Refusal) for reply in await asyncio.gather(*asking))
    assert harness.table == harness.backend.entries == {}


async def test_an_unexpected_exception_of_the_backend_is_repaired_too() -> None:
    harness = Failing()
    await harness.start()
    harness.kernel.trouble = Trouble(ZeroDivisionError("a bug"))
    harness.kernel.trouble.ahead = [NO]
    with pytest.raises(ZeroDivisionError):
        await harness.ask(map_port(2000))
    assert harness.all_equal()
    assert harness.table == {}


async def test_an_unexpected_exception_in_a_repair_leaves_no_port_reserved() -> None:
    harness = Failing()
    await harness.start()
    harness.kernel.trouble = Trouble(ZeroDivisionError("a bug"))
    harness.kernel.trouble.ahead = [NO, NO]
    with pytest.raises(ZeroDivisionError):
        await harness.ask(map_port(2000))
    assert not isinstance(await harness.ask(map_port(2000)), Refusal)
    assert harness.all_equal()


async def test_a_change_that_cannot_be_saved_is_undone_without_replacing_the_kernel_state() -> None:
    harness = Failing()
    await harness.start()
    harness.kernel.replaced = 0
    harness.disk.ahead = [NO]
    assert await harness.ask(map_port(2000)) == Refusal.SYSTEM_FAILURE
    assert harness.kernel.replaced == 0
    assert harness.backend.entries == {}


async def test_a_full_disk_does_not_keep_ports_open() -> None:
    harness = Failing()
    await harness.start(entry(1024, expires=1010.0), entry(1025, expires=5000.0))
    harness.clock.now = 1010.0
    harness.disk.ahead = [NO, NO, NO]
    await harness.maintenance.wake()
    assert list(harness.backend.entries) == list(harness.table) == [(TransportProtocol.TCP, 1025)]
    harness.peers.all = PEERS[1:]
    await harness.maintenance.recheck_peers()
    assert harness.backend.entries == harness.table == {}
    assert len(harness.store.entries) == 2
    harness.disk.ahead, harness.peers.all = [], PEERS
    await harness.ask(map_port(2000))
    assert harness.all_equal()


@pytest.mark.parametrize(("request_", "left"), [(RENEW, [(1024, 5000.0)]), (CLOSE, [])])
@pytest.mark.parametrize("paid", ["timer", "change", "stop"])
async def test_what_renews_or_closes_is_granted_on_a_full_disk_and_saved_later(
    request_: Request, left: list[tuple[int, float]], paid: str
) -> None:
    harness = Failing()
    await harness.start()
    await harness.ask(map_port(1024))
    before = harness.table
    harness.disk.ahead = [NO] * 9
    assert not isinstance(await harness.ask(request_), Refusal)
    found = [(held.mapping.external_port, held.lease.expires) for held in harness.table.values()]
    assert found == left
    assert harness.backend.entries == harness.table
    assert harness.store.entries == before
    await harness.ledger.settle_store()
    assert await harness.ask(OPEN) == Refusal.SYSTEM_FAILURE
    harness.disk.ahead = []
    match paid:
        case "timer":
            await harness.ledger.settle_store()
        case "change":
            await harness.ask(OPEN)
        case "stop":
            await harness.ledger.close()
    assert harness.store.entries == harness.table


async def test_of_each_mapping_only_the_last_state_is_owed_to_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory and the time of the next save are bounded by the mappings, and the log by the times that it was full."""
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    monkeypatch.setattr(logging.getLogger("igd.ledger"), "handlers", [handler])
    caplog.set_level(logging.INFO, "igd.ledger")
    harness = Failing()
    await harness.start()
    await harness.ask(map_port(1024))
    await harness.ask(map_port(1025))
    for _ in range(2):
        logged.clear()
        harness.disk.ahead = [NO] * 1000
        for lifetime in range(600, 700):
            assert not isinstance(await harness.ask(map_port(1024, lifetime=lifetime)), Refusal)
        await harness.ask(UnmapPorts(TransportProtocol.TCP, range(1025, 1026)))
        assert await harness.ask(map_port(1025)) == Refusal.SYSTEM_FAILURE
        harness.disk.ahead = []
        harness.recorder.saved.clear()
        await harness.ledger.settle_store()
        assert sorted(change.key[1] for change in harness.recorder.saved) == [1024, 1025]
        assert harness.all_equal()
        assert [record.levelname for record in logged] == ["ERROR", "INFO"]
        await harness.ask(map_port(1025))


async def test_a_stop_names_the_closed_ports_that_a_full_disk_will_open_again(caplog: pytest.LogCaptureFixture) -> None:
    """Not those that are open, whose renewal was not saved, and not those that have expired."""
    harness = Failing()
    await harness.start(entry(1025, expires=1010.0), *(entry(port) for port in range(3000, 3010)))
    for port in (1024, 1026, 1027):
        await harness.ask(map_port(port))
    harness.disk.ahead = [NO] * 1000
    harness.clock.now = 1010.0
    await harness.maintenance.wake()
    await harness.ask(UnmapPorts(TransportProtocol.TCP, range(1024, 1025)))
    await harness.ask(map_port(1026, lifetime=600))
    await harness.ask(UnmapPorts(TransportProtocol.TCP, range(3000, 3010)))
    caplog.clear()
    await harness.ledger.close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith("the next start opens again what was closed, because that could not be saved: TCP 1024 -> ")
    assert line.endswith(" and 3 more; disk full")
    assert not any(f"TCP {port} " in line for port in (1025, 1026, 1027))


@pytest.mark.parametrize("room", ["always", "at the stop"])
async def test_a_stop_that_saves_all_warns_of_nothing(caplog: pytest.LogCaptureFixture, room: str) -> None:
    harness = Failing()
    await harness.start()
    await harness.ask(map_port(1024))
    harness.disk.ahead = [NO] if room == "at the stop" else []
    await harness.ask(CLOSE)
    assert bool(harness.ledger.warnings) == (room == "at the stop")
    caplog.clear()
    await harness.ledger.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert harness.ledger.warnings == []


async def test_a_port_that_is_closed_on_a_full_disk_and_mapped_again_later_is_saved_once() -> None:
    harness = Failing()
    await harness.start()
    await harness.ask(map_port(1024))
    harness.disk.ahead = [NO]
    await harness.ask(CLOSE)
    await harness.ask(map_port(1024, C2), C2)
    assert harness.all_equal()
    await harness.ledger.settle_store()
    assert harness.all_equal()


async def test_a_renewal_is_not_refused_with_the_new_mappings_of_its_transaction() -> None:
    kernel, disk = CountingKernel(), Trouble(OSError("disk full"))
    harness = GatewayHarness(backend=kernel, store=MemoryStore(disk))
    harness.peers.all = (peer("p1", f"{crowd(2)['p1']}/32"),)
    internal = Endpoint(crowd(2)["p1"], 8043)
    await harness.start(Entry(PortMapping(TransportProtocol.TCP, 2001, internal, "p1"), Lease(2000.0)))
    disk.ahead = [NO] * 9
    replies = await ask_together(harness, kernel, crowd(3))
    assert [isinstance(reply, Refusal) for reply in replies] == [True, False, True]
    assert [2001, 2002] in kernel.batches
    assert harness.backend.entries == harness.table


async def test_closing_is_saved_first_and_opening_last() -> None:
    harness = GatewayHarness()
    order: list[str] = []
    harness.store.perhaps_fail = lambda: order.append("store")

    class Recording(Pretend):
        def apply(self, changes: Sequence[Change], now: float) -> None:
            order.append("kernel")
            super().apply(changes, now)

    harness = GatewayHarness(backend=Recording(), store=harness.store)
    await harness.start()
    order.clear()
    await harness.ask(map_port(2000))
    await harness.ask(map_port(2000, lifetime=600))
    await harness.ask(UnmapPorts(TransportProtocol.TCP, range(2000, 2001)))
    assert order == ["kernel", "store", "kernel", "store", "store", "kernel"]


async def test_listeners_are_notified_of_every_change() -> None:
    ledger = Ledger(Pretend(), MemoryStore(), Clock())
    wakes: list[float | None] = []
    ledger.on_change.append(lambda: wakes.append(ledger.next_wake()))
    async with ledger.peer_lock("c1"):
        await ledger.commit([Change(None, entry(1, 1500.0))])
        await ledger.commit([Change(entry(1, 1500.0), None)])
        await ledger.commit([], imposed=True)
    assert wakes == [1500.0, None]
    ledger.retry_later()
    assert wakes == [1500.0, None, 1000.0 + RETRY_SECONDS]
    await ledger.close()


async def test_close_empties_the_kernel_and_keeps_the_store() -> None:
    harness = await GatewayHarness().start(entry(1024))
    assert harness.backend.entries
    await harness.ledger.close()
    assert harness.backend.entries == {}
    assert harness.backend.closed
    assert len(harness.store.entries) == 1


async def test_the_backend_is_closed_even_if_it_cannot_be_emptied() -> None:
    harness = await GatewayHarness().start(entry(1024))
    harness.backend.fail_next = FirewallError("no")
    with pytest.raises(FirewallError):
        await harness.ledger.close()
    assert harness.backend.closed
