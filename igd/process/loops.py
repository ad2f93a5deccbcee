"""The tasks that run for as long as the gateway serves; each runs until it is cancelled."""

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection

from igd import log_lines
from igd.firewall.backend import FirewallError
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.watch import Watch
from igd.gateway import Gateway
from igd.host.clock import boottime
from igd.host.readable import wait_until_readable
from igd.ledger import Ledger
from igd.log_lines import ONCE, UNKNOWN_SOURCES
from igd.maintenance import Maintenance
from igd.process.endpoints import Endpoints
from igd.wire.upnp import ssdp

log = logging.getLogger(__name__)

PEERS_SECONDS = 1.0
"""How often the peers are read: WireGuard reports no changes of them. One reading takes a millisecond."""

SUSPEND_SECONDS = 5.0
"""How soon after a suspend leases end that have run out meanwhile: asyncio's timers do not count suspend."""

CLOCK_SECONDS = 5.0
"""How often the wall clock is compared with the clock of leases: a reboot later than this after it was set converts
leases correctly. As often is saved what is owed to the store."""

LEFT_OUT_SECONDS = 10.0
"""How often the log says how many lines were left out."""

DROPPED_SECONDS = 60.0
"""How often the log says which peers sent more than their limits."""

ANNOUNCE_SECONDS = ssdp.MAX_AGE / 3
"""How often the gateway is announced: a client may miss two announcements before the last one expires."""

GREET_SECONDS = 10.0
"""How soon a peer gets an announcement that had no session at the last one. WireGuard reports no handshakes."""

SETTLE_SECONDS = 0.1
"""Firewalls change in bursts; this long after the first change the burst is over."""

READ_SECONDS = 2.0
"""The pause between two readings of the operator's rules, which may run programs for seconds."""

REPAIR_SECONDS = 0.5
"""The pause between two repairs, so that two programs that undo each other's changes do not do so at full speed."""


async def end_leases(maintenance: Maintenance, ledger: Ledger) -> None:
    """Wake the maintenance when a lease expires or a retry is due."""
    changed = asyncio.Event()
    ledger.on_change.append(changed.set)
    while True:
        wake = ledger.next_wake()
        if wake is not None and wake <= boottime():
            await maintenance.wake()
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if wake is None else min(wake - boottime(), SUSPEND_SECONDS)):
                await changed.wait()
        changed.clear()


async def settle_store(ledger: Ledger) -> None:
    """Have saved what a full disk did not take, and the time when the wall clock was set."""
    while True:
        await asyncio.sleep(CLOCK_SECONDS)
        await ledger.settle_store()


async def report_left_out() -> None:
    """Log how many lines were left out, periodically and at the end."""
    try:
        while True:
            await asyncio.sleep(LEFT_OUT_SECONDS)
            log_lines.report_left_out()
    finally:
        log_lines.report_left_out()


async def report_dropped(gateway: Gateway) -> None:
    """Log which peers sent more than their limits, one line a minute for each; these lines are in nobody's budget."""
    while True:
        await asyncio.sleep(DROPPED_SECONDS)
        dropped, gateway.dropped = gateway.dropped, Counter()
        by_subject: defaultdict[str | None, list[str]] = defaultdict(list)
        for (subject, what), count in dropped.most_common():
            by_subject[subject].append(f"{count} {what}")
        for subject, counts in by_subject.items():
            source = UNKNOWN_SOURCES if subject is None else f"peer {gateway.policies.label(subject)}"
            text = "%s sent more than allowed in the last minute, and igd dropped %s"
            log.warning(text, source, ", ".join(counts), extra=ONCE)


async def recheck_peers(maintenance: Maintenance) -> None:
    """End the mappings of peers that were removed, and of addresses that they have lost."""
    failures = RecurringWarnings(log, "the peers cannot be read, their mappings are not checked: %s")
    before: list[str] = []
    while True:
        await asyncio.sleep(PEERS_SECONDS)
        failed = []
        try:
            await maintenance.recheck_peers()
        except OSError as error:
            failed = [str(error)]
        # once means nothing: it also fails while the interface is being removed
        failures.log(each for each in failed if each in before)
        before = failed


async def announce(endpoints: Endpoints) -> None:
    """Announce the gateway to the peers by SSDP: periodically, to late peers, and when its addresses have changed."""
    loop = asyncio.get_running_loop()
    failures = RecurringWarnings(log, "the gateway was not announced, trying again: %s")
    due = loop.time()
    endpoints.changed.clear()
    while True:
        with failures.catching(OSError):
            if endpoints.changed.is_set():
                endpoints.changed.clear()
                due = loop.time()  # if this fails, the next round announces everything
                await endpoints.advertise_change()
                due = loop.time() + ANNOUNCE_SECONDS
            elif loop.time() >= due:
                await endpoints.advertise(ssdp.alive)
                due = loop.time() + ANNOUNCE_SECONDS
            else:
                await endpoints.greet()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(endpoints.changed.wait(), GREET_SECONDS)


async def repair_nftables(ledger: Ledger, watch: Watch, rules_changed: asyncio.Event) -> None:
    """Undo other programs' changes to igd's part of nftables, and report changes to the operator's rules.

    After a change to the operator's forward chains, which ban lists make all the time, only the way through them is
    checked. After a change to igd's table, the whole table is replaced.
    """
    while True:
        changes = watch.read()
        if changes.ours or changes.forward:
            authors = {*changes.ours, *changes.forward}
            repaired = await _repair(ledger, mappings=bool(changes.ours))
            later = watch.read()  # includes our own edit of FORWARD, if any, which may hide another program's
            if later.ours or later.forward:
                authors |= set() if repaired else {*later.ours, *later.forward}
                repaired |= await _repair(ledger, mappings=bool(later.ours))
            if repaired:
                log.warning("the firewall was changed by %s: igd's part was repaired", ", ".join(sorted(authors)))
            await asyncio.sleep(REPAIR_SECONDS)
        if changes.rules:
            rules_changed.set()
        await wait_until_readable(watch.fileno())
        await asyncio.sleep(SETTLE_SECONDS)


async def _repair(ledger: Ledger, *, mappings: bool) -> bool:
    """Repair the mappings and the way through the forward chains, or only the latter; return whether it was edited."""
    if not mappings:
        return await ledger.ensure_forward()
    await ledger.repair()
    return True


async def repair_iptables_legacy(
    ledger: Ledger, changed: Callable[[], Collection[str]], rules_changed: asyncio.Event
) -> None:
    """Undo other programs' changes to igd's part of iptables-legacy.

    It reports no changes, so `changed` compares its tables, and returns the names of those that differ. After a change
    of `filter` alone, which ban lists make all the time, only the way through FORWARD is checked.
    """
    failures = RecurringWarnings(log, "iptables-legacy's tables cannot be read, trying again: %s")
    while True:
        await asyncio.sleep(REPAIR_SECONDS)
        found: Collection[str] = ()
        with failures.catching(FirewallError):
            found = await ledger.in_worker(changed)
        if found:
            if await _repair(ledger, mappings="nat" in found):
                author = "another program through iptables-legacy"
                log.warning("the firewall was changed by %s: igd's part was repaired", author)
            rules_changed.set()


async def reread_rules(rules_changed: asyncio.Event, read: Callable[[], bool]) -> None:
    """Read the operator's rules again after they have changed, in a thread of its own: this may take seconds.

    `read` returns whether to read them once more.
    """
    while True:
        await rules_changed.wait()
        rules_changed.clear()
        if await asyncio.to_thread(read):
            rules_changed.set()
        await asyncio.sleep(READ_SECONDS)
