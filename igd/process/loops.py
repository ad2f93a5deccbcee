"""What has to be done again and again while the gateway serves; each runs until it is cancelled."""

import asyncio
import logging
import time
from collections.abc import Callable

from igd.endpoints.discovery import Discovery
from igd.firewall.backend import FirewallError
from igd.firewall.watch import Watch
from igd.ledger import Ledger
from igd.maintenance import Maintenance
from igd.wire.upnp import ssdp

log = logging.getLogger(__name__)

PEERS_SECONDS = 5.0
"""How often the peers are looked at when nobody asks: a removed peer's mappings end within this."""

ANNOUNCE_SECONDS = ssdp.MAX_AGE / 3
"""How often live peers are told again that the gateway is there: two messages may be lost before one expires."""

SETTLE_SECONDS = 0.1
"""Interfaces and firewalls change in bursts; the last change of a burst is the one to look at."""

LOOK_SECONDS = 2.0
"""How long between two looks at others' rules, which may run programs for seconds."""

REPAIR_SECONDS = 0.5
"""How long another manager of the firewall has its way between two repairs: two that fight should not do it fast."""


async def keep_time(maintenance: Maintenance, ledger: Ledger) -> None:
    """Be the one timer: wake the maintenance when the ledger wants it."""
    changed = asyncio.Event()
    wake: float | None = None

    def look() -> None:
        if ledger.next_wake() != wake:
            changed.set()

    ledger.on_change.append(look)
    while True:
        wake = ledger.next_wake()
        try:
            async with asyncio.timeout(None if wake is None else max(0.0, wake - time.monotonic())):
                await changed.wait()
        except TimeoutError:
            await maintenance.wake()
        changed.clear()


async def keep_peers(maintenance: Maintenance) -> None:
    """End the mappings of peers that were removed."""
    while True:
        await asyncio.sleep(PEERS_SECONDS)
        await maintenance.recheck_peers()


async def keep_announcing(discovery: Discovery) -> None:
    """Tell the peers that the gateway is there."""
    while True:
        try:
            await discovery.announce(ssdp.alive)
        except OSError as error:
            log.warning("not announced: %s", error)
        await asyncio.sleep(ANNOUNCE_SECONDS)


async def keep_rules(ledger: Ledger, watch: Watch, others_changed: asyncio.Event) -> None:
    """Put right what others have done to our part of nftables, and tell of what they have done to theirs.

    Whoever edits the operator's forward chains, as ban lists do all the time, makes us look at the way through them;
    whoever touches our table has it replaced.
    """
    while True:
        heard = watch.read()
        if heard.ours or heard.forward:
            await (ledger.repair() if heard.ours else ledger.let_pass())
            again = watch.read()  # our own edit of FORWARD, if there was one, which may hide somebody else's
            if heard.ours or again.forward:
                authors = ", ".join(sorted({*heard.ours, *heard.forward}))
                log.warning("the firewall was changed by %s: ours is put right", authors)
            if again.ours or again.forward:
                await (ledger.repair() if again.ours else ledger.let_pass())
            await asyncio.sleep(REPAIR_SECONDS)
        if heard.rules:
            others_changed.set()
        await _readable(watch)
        await asyncio.sleep(SETTLE_SECONDS)


async def keep_looking(others_changed: asyncio.Event, look: Callable[[], None]) -> None:
    """Look at others' rules again when they have changed them: it may take seconds, and nothing waits for it."""
    while True:
        await others_changed.wait()
        others_changed.clear()
        await asyncio.to_thread(look)
        await asyncio.sleep(LOOK_SECONDS)


async def keep_legacy_rules(ledger: Ledger, changed: Callable[[], bool], others_changed: asyncio.Event) -> None:
    """Do the same for iptables-legacy, whose changes nobody tells of: `changed` tells them when it is asked."""
    said = ""
    while True:
        await asyncio.sleep(REPAIR_SECONDS)
        trouble, others = "", False
        try:
            others = await ledger.between_changes(changed)
        except FirewallError as error:
            trouble = str(error)
        if trouble and trouble != said:
            log.warning("iptables-legacy's tables cannot be looked at, trying again: %s", trouble)
        said = trouble
        if others:
            log.warning("the firewall was changed by somebody through iptables-legacy: ours is put right")
            await ledger.repair()
            others_changed.set()


async def _readable(watch: Watch) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(watch, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(watch)
