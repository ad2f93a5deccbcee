"""The endless tasks: what each does, and that a temporary failure does not end them."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Literal, cast

import pytest

from igd.core.mapping import Entry, TransportProtocol
from igd.core.policies import Policies
from igd.firewall.backend import FirewallError
from igd.firewall.pretend import Pretend
from igd.firewall.watch import ForeignChanges, Watch
from igd.log_lines import LineFilter
from igd.process import loops
from igd.process.endpoints import Endpoints
from tests.gateway_harness import GatewayHarness, MemoryStore, entry


async def test_legacy_tables_that_could_not_be_read_are_read_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If one task ends, the gateway ends."""
    monkeypatch.setattr(loops, "REPAIR_SECONDS", 0.0)
    harness = await GatewayHarness().start()
    no = FirewallError("no")
    results: list[FirewallError | set[str]] = [no, no, set(), no, {"nat"}]
    rules_changed = asyncio.Event()

    def changed() -> set[str]:
        result = results.pop(0) if results else set()
        if isinstance(result, FirewallError):
            raise result
        return result

    task = asyncio.create_task(loops.repair_iptables_legacy(harness.ledger, changed, rules_changed))
    await asyncio.wait({task, asyncio.create_task(rules_changed.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert not task.done()
    task.cancel()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [each.rpartition(": ")[2] for each in warnings] == ["no", "no", "igd's part was repaired"]
    await harness.ledger.close()


async def test_a_lease_that_ran_out_during_a_suspend_ends_soon_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of leases counts a suspend, asyncio's timers do not."""
    harness = await GatewayHarness().start(entry(2000, 1000.0 + 3600), entry(2001, 1000.0 + 100_000))
    monkeypatch.setattr(loops, "boottime", harness.clock)
    monkeypatch.setattr(loops, "SUSPEND_SECONDS", 0.01)
    ended = asyncio.Event()
    task = asyncio.create_task(loops.end_leases(harness.maintenance, harness.ledger))
    await asyncio.sleep(0)  # it waits for an hour to pass
    harness.ledger.on_change.append(ended.set)
    harness.clock.now += 86400
    async with asyncio.timeout(60):
        await ended.wait()
    task.cancel()
    await asyncio.wait({task})
    assert list(harness.table) == [(TransportProtocol.TCP, 2001)]
    await harness.ledger.close()


class RecordingStore(MemoryStore):
    """Fails in the first two recordings of the time, and ends a test after four."""

    def __init__(self) -> None:
        super().__init__()
        self.recordings = 0
        self.over = threading.Event()

    def record_time(self) -> None:
        """Raise OSError at first."""
        self.recordings += 1
        if self.recordings <= 2:
            raise OSError("disk full")
        if self.recordings == 4:
            self.over.set()


async def test_a_time_that_could_not_be_recorded_is_recorded_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "CLOCK_SECONDS", 0.0)
    harness = await GatewayHarness(store=(store := RecordingStore())).start()
    task = asyncio.create_task(loops.settle_store(harness.ledger))
    assert await asyncio.to_thread(store.over.wait, 60)
    task.cancel()
    await asyncio.wait({task})
    (record,) = (each for each in caplog.records if each.levelno >= logging.WARNING)  # others come with --verbose
    assert record.getMessage().endswith(": disk full")
    await harness.ledger.close()


async def test_who_sends_more_than_allowed_is_logged_once_a_minute_outside_its_budget(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "DROPPED_SECONDS", 0.0)
    harness = await GatewayHarness(Policies(names={"c1": "laptop"}), rate=5).start()
    gateway = harness.gateway
    for subject, packets in (("c1", 30), (None, 10), ("c2", 5)):
        for _ in range(packets):
            gateway.count(subject)
    gateway.dropped["c1", "connections above another limit"] += 2
    task = asyncio.create_task(loops.report_dropped(gateway))
    async with asyncio.timeout(60):
        while gateway.dropped:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0)
    assert not task.done()
    assert gateway.dropped == {}
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    sent = "sent more than allowed in the last minute, and igd dropped"
    assert [record.getMessage() for record in warnings] == [
        f"peer laptop {sent} 25 requests above requests_per_second = 5, 2 connections above another limit",
        f"unknown sources {sent} 5 requests above requests_per_second = 5",
    ]
    bounded = LineFilter(1, gateway.policies.label, harness.clock)
    assert all(bounded.filter(record) for record in warnings)
    task.cancel()
    await asyncio.wait({task})
    await harness.ledger.close()


class ScriptedWatch:
    """A Watch that returns one scripted result per call, then NOTHING."""

    def __init__(self, *script: ForeignChanges) -> None:
        self._readable, self._end = os.pipe()
        self._script = list(script)
        self.over = asyncio.Event()
        os.write(self._end, b"x")

    def fileno(self) -> int:
        """Return a descriptor that is always readable."""
        return self._readable

    def read(self) -> ForeignChanges:
        """Return the next result."""
        if self._script:
            return self._script.pop(0)
        self.over.set()
        return NOTHING

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._readable)
        os.close(self._end)


NOTHING = ForeignChanges([], [], rules=False)
ELSEWHERE = ForeignChanges([], [], rules=True)
FORWARD = ForeignChanges([], ["iptables-nft"], rules=True)
OURS = ForeignChanges(["nft"], [], rules=False)


class RecordingKernel(Pretend):
    """Records the calls; `edits` are what the first calls of `ensure_forward` return."""

    def __init__(self, *edits: bool) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._edits = list(edits)

    def ensure_forward(self) -> bool:
        """Record the call."""
        self.calls.append("ensure_forward")
        return bool(self._edits) and self._edits.pop(0)

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Record the call."""
        self.calls.append("replace_all")
        super().replace_all(addresses, entries, now)


@pytest.mark.parametrize(
    ("script", "edits", "calls", "reported", "authors"),
    [
        ([NOTHING], [], [], False, []),
        ([ELSEWHERE], [], [], True, []),
        ([FORWARD, NOTHING], [], ["ensure_forward"], True, []),  # a ban list: no repair was necessary
        ([FORWARD, FORWARD], [], ["ensure_forward", "ensure_forward"], True, []),  # and it goes on
        # our jump was missing: the second is our own edit
        ([FORWARD, FORWARD], [True], ["ensure_forward", "ensure_forward"], True, ["iptables-nft"]),
        ([FORWARD, FORWARD], [False, True], ["ensure_forward", "ensure_forward"], True, ["iptables-nft"]),
        ([FORWARD, OURS], [], ["ensure_forward", "replace_all"], True, ["iptables-nft, nft"]),
        ([OURS, NOTHING], [], ["replace_all"], False, ["nft"]),
        ([OURS, FORWARD], [], ["replace_all", "ensure_forward"], False, ["nft"]),
        ([OURS, OURS], [], ["replace_all", "replace_all"], False, ["nft"]),
        ([OURS, NOTHING, FORWARD, NOTHING], [], ["replace_all", "ensure_forward"], True, ["nft"]),
    ],
)
async def test_only_necessary_repairs_are_made(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: list[ForeignChanges],
    edits: list[bool],
    calls: list[str],
    reported: bool,
    authors: list[str],
) -> None:
    monkeypatch.setattr(loops, "REPAIR_SECONDS", 0.0)
    monkeypatch.setattr(loops, "SETTLE_SECONDS", 0.0)
    harness = await GatewayHarness(backend=(kernel := RecordingKernel(*edits))).start()
    kernel.calls.clear()
    watch, rules_changed = ScriptedWatch(*script), asyncio.Event()
    task = asyncio.create_task(loops.repair_nftables(harness.ledger, cast("Watch", watch), rules_changed))
    async with asyncio.timeout(60):
        await watch.over.wait()
    task.cancel()
    await asyncio.wait({task})
    watch.close()
    assert kernel.calls == calls
    assert rules_changed.is_set() is reported
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"the firewall was changed by {each}: igd's part was repaired" for each in authors]
    await harness.ledger.close()


@pytest.mark.parametrize(
    ("tables", "edits", "calls", "warnings"),
    [
        ({"filter"}, [], ["ensure_forward"], 0),  # a ban list
        ({"filter"}, [True], ["ensure_forward"], 1),
        ({"nat"}, [], ["replace_all"], 1),
        ({"filter", "nat"}, [], ["replace_all"], 1),
    ],
)
async def test_bans_in_iptables_legacy_do_not_repair_the_mappings(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tables: set[str],
    edits: list[bool],
    calls: list[str],
    warnings: int,
) -> None:
    monkeypatch.setattr(loops, "REPAIR_SECONDS", 0.0)
    harness = await GatewayHarness(backend=(kernel := RecordingKernel(*edits))).start()
    kernel.calls.clear()
    changes, rules_changed = [tables], asyncio.Event()
    task = asyncio.create_task(
        loops.repair_iptables_legacy(harness.ledger, lambda: changes.pop() if changes else set(), rules_changed)
    )
    async with asyncio.timeout(60):
        await rules_changed.wait()
    task.cancel()
    await asyncio.wait({task})
    assert kernel.calls == calls
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == warnings
    await harness.ledger.close()


class ObservedEvent(asyncio.Event):
    """Sets `awaited` when a task waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = asyncio.Event()

    async def wait(self) -> Literal[True]:
        """Wait, and report it unless the event is set already."""
        if not self.is_set():
            self.awaited.set()
        return await super().wait()


async def test_the_operators_rules_are_read_once_after_several_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes during a reading cause one more, after the pause."""
    monkeypatch.setattr(loops, "READ_SECONDS", 0.2)
    readings: list[float] = []
    rules_changed, reading, changed_again = ObservedEvent(), threading.Event(), threading.Event()

    def read() -> bool:
        readings.append(time.monotonic())
        reading.set()
        return not changed_again.wait(60)

    task = asyncio.create_task(loops.reread_rules(rules_changed, read))
    async with asyncio.timeout(60):
        rules_changed.set()
        assert await asyncio.to_thread(reading.wait, 60)
        for _ in range(3):
            rules_changed.set()
        changed_again.set()
        await rules_changed.awaited.wait()
    task.cancel()
    await asyncio.wait({task})
    first, second = readings
    assert second - first >= 0.2


async def test_the_operators_rules_are_read_once_more_where_a_reading_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "READ_SECONDS", 0.0)
    answers = [False, True, True]
    rules_changed = ObservedEvent()
    rules_changed.set()
    task = asyncio.create_task(loops.reread_rules(rules_changed, answers.pop))
    async with asyncio.timeout(60):
        await rules_changed.awaited.wait()
    assert answers == []
    task.cancel()
    await asyncio.wait({task})


class PretendEndpoints:
    """What loops.announce uses of Endpoints: records what is announced, in a queue, and raises `trouble`."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.announced: asyncio.Queue[str] = asyncio.Queue()
        self.trouble: OSError | None = None

    def _announce(self, what: str) -> None:
        self.announced.put_nowait(what)
        if self.trouble:
            raise self.trouble

    async def advertise(self, message: Callable[..., bytes]) -> None:
        """Record it."""
        self._announce(message.__name__)

    async def advertise_change(self) -> None:
        """Record it."""
        self._announce("change")

    async def greet(self) -> None:
        """Record it."""
        self._announce("greet")

    async def next(self) -> str:
        """Wait for an announcement."""
        async with asyncio.timeout(60):
            return await self.announced.get()


async def test_start_changes_and_late_peers_are_announced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failure everything is announced again."""
    monkeypatch.setattr(loops, "GREET_SECONDS", 0.01)
    endpoints = PretendEndpoints()
    endpoints.changed.set()  # by the start
    task = asyncio.create_task(loops.announce(cast(Endpoints, endpoints)))
    assert [await endpoints.next() for _ in range(3)] == ["alive", "greet", "greet"]
    endpoints.changed.set()
    while (found := await endpoints.next()) == "greet":
        pass
    assert [found, await endpoints.next()] == ["change", "greet"]
    endpoints.trouble = OSError("no such device")
    endpoints.changed.set()
    while (found := await endpoints.next()) == "greet":
        pass
    assert [found, await endpoints.next(), await endpoints.next()] == ["change", "alive", "alive"]
    endpoints.trouble = None
    while (found := await endpoints.next()) == "alive":
        pass
    assert [found, task.done()] == ["greet", False]
    task.cancel()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["the gateway was not announced, trying again: no such device"]
