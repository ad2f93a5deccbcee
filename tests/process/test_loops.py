"""What goes wrong once must not end what has to be done again and again."""

import asyncio
import logging
import os
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import cast

import pytest

from igd.core.mapping import Entry
from igd.firewall.backend import FirewallError
from igd.firewall.pretend import Pretend
from igd.firewall.watch import ForeignChanges, Watch
from igd.process import loops
from tests.gateway_harness import GatewayHarness


async def test_legacy_tables_that_cannot_be_looked_at_for_a_while_are_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of one task is the end of the gateway."""
    monkeypatch.setattr(loops, "REPAIR_SECONDS", 0.0)
    harness = await GatewayHarness().start()
    looks: list[FirewallError | bool] = [FirewallError("no"), FirewallError("no"), False, FirewallError("no"), True]
    looked = asyncio.Event()

    def changed() -> bool:
        look = looks.pop(0) if looks else False
        if isinstance(look, FirewallError):
            raise look
        return look

    keeping = asyncio.create_task(loops.keep_legacy_rules(harness.ledger, changed, looked))
    await asyncio.wait({keeping, asyncio.create_task(looked.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert not keeping.done()
    keeping.cancel()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [each.rpartition(": ")[2] for each in warnings] == ["no", "no", "ours is put right"]
    await harness.ledger.close()


class ScriptedWatch:
    """A Watch that hears one thing each time it is asked, and nothing at last."""

    def __init__(self, *script: ForeignChanges) -> None:
        self._readable, self._end = os.pipe()
        self._script = list(script)
        self.over = asyncio.Event()
        os.write(self._end, b"x")

    def fileno(self) -> int:
        """What is always readable."""
        return self._readable

    def read(self) -> ForeignChanges:
        """Tell what is next."""
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


class CountingKernel(Pretend):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def let_pass(self) -> None:
        """Count."""
        self.asked.append("let_pass")

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Count."""
        self.asked.append("replace_all")
        super().replace_all(addresses, entries, now)


@pytest.mark.parametrize(
    ("script", "asked", "looks", "warned"),
    [
        ([NOTHING], [], False, 0),
        ([ELSEWHERE], [], True, 0),
        ([FORWARD, NOTHING], ["let_pass"], True, 0),  # a ban list: nothing had to be done
        ([FORWARD, FORWARD], ["let_pass", "let_pass"], True, 1),  # our jump was gone: the second is our own edit
        ([OURS, NOTHING], ["replace_all"], False, 1),
        ([OURS, FORWARD], ["replace_all", "let_pass"], False, 1),
        ([OURS, OURS], ["replace_all", "replace_all"], False, 1),
        ([OURS, NOTHING, FORWARD, NOTHING], ["replace_all", "let_pass"], True, 1),
    ],
)
async def test_as_little_is_done_as_has_to_be(  # noqa: PLR0913, PLR0917
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: list[ForeignChanges],
    asked: list[str],
    looks: bool,  # noqa: FBT001
    warned: int,
) -> None:
    monkeypatch.setattr(loops, "REPAIR_SECONDS", 0.0)
    monkeypatch.setattr(loops, "SETTLE_SECONDS", 0.0)
    harness = await GatewayHarness(backend=(kernel := CountingKernel())).start()
    kernel.asked.clear()
    watch, others_changed = ScriptedWatch(*script), asyncio.Event()
    keeping = asyncio.create_task(loops.keep_rules(harness.ledger, cast("Watch", watch), others_changed))
    async with asyncio.timeout(5):
        await watch.over.wait()
    keeping.cancel()
    await asyncio.wait({keeping})
    watch.close()
    assert kernel.asked == asked
    assert others_changed.is_set() is looks
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == warned
    await harness.ledger.close()


async def test_others_rules_are_looked_at_once_however_often_they_changed_meanwhile() -> None:
    loop, looks, others_changed = asyncio.get_running_loop(), asyncio.Queue[None](), asyncio.Event()
    keeping = asyncio.create_task(loops.keep_looking(others_changed, lambda: _tell(loop, looks)))
    others_changed.set()
    async with asyncio.timeout(5):
        await looks.get()
    for _ in range(3):
        others_changed.set()
    assert looks.empty(), "not before some time has passed"
    keeping.cancel()
    await asyncio.wait({keeping})


def _tell(loop: asyncio.AbstractEventLoop, looks: asyncio.Queue[None]) -> None:
    loop.call_soon_threadsafe(looks.put_nowait, None)
