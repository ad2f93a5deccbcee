"""What has to be done again and again while the gateway serves; each runs until it is cancelled."""

import asyncio
import logging
import time
from collections.abc import Callable

from igd.caretaker import Caretaker
from igd.endpoints.discovery import Discovery
from igd.firewall.backend import FirewallError
from igd.firewall.watch import Watch
from igd.ledger import Ledger
from igd.wire import ssdp

log = logging.getLogger(__name__)

PEERS_SECONDS = 5.0
"""How often the peers are looked at when nobody asks: a removed peer's mappings end within this."""

ANNOUNCE_SECONDS = ssdp.MAX_AGE / 3
"""How often live peers are told again that the gateway is there: two messages may be lost before one expires."""

SETTLE_SECONDS = 0.1
"""Interfaces and firewalls change in bursts; the last change of a burst is the one to look at."""

REPAIR_SECONDS = 0.5
"""How long another manager of the firewall has its way between two repairs: two that fight should not do it fast."""


async def keep_time(caretaker: Caretaker, ledger: Ledger) -> None:
    """Be the one timer: wake the caretaker when the ledger wants it."""
    changed = asyncio.Event()
    ledger.on_change.append(changed.set)
    while True:
        wake = ledger.next_wake()
        try:
            async with asyncio.timeout(None if wake is None else max(0.0, wake - time.monotonic())):
                await changed.wait()
        except TimeoutError:
            await caretaker.wake()
        changed.clear()


async def keep_peers(caretaker: Caretaker) -> None:
    """End the mappings of peers that were removed."""
    while True:
        await asyncio.sleep(PEERS_SECONDS)
        await caretaker.recheck_peers()


async def keep_announcing(discovery: Discovery) -> None:
    """Tell the peers that the gateway is there."""
    while True:
        try:
            await discovery.announce(ssdp.alive)
        except OSError as error:
            log.warning("not announced: %s", error)
        await asyncio.sleep(ANNOUNCE_SECONDS)


async def keep_rules(ledger: Ledger, watch: Watch, look: Callable[[], None]) -> None:
    """Put right what others have done to our part of nftables; `look` at theirs again when they changed it."""
    await _look_again(ledger, watch)
    while True:
        await _readable(watch)
        await asyncio.sleep(SETTLE_SECONDS)
        heard = watch.heard()
        if heard.authors:
            log.warning("the firewall was changed by %s: putting ours right", ", ".join(sorted(set(heard.authors))))
            await ledger.repair()
            await _look_again(ledger, watch)
        if heard.anything:
            await asyncio.to_thread(look)
            await asyncio.sleep(REPAIR_SECONDS)


async def keep_legacy_rules(ledger: Ledger, changed: Callable[[], bool], look: Callable[[], None]) -> None:
    """Do the same for iptables-legacy, whose changes nobody tells of: `changed` tells them when it is asked."""
    while True:
        await asyncio.sleep(REPAIR_SECONDS)
        try:
            others = await ledger.between_changes(changed)
        except FirewallError as error:
            log.warning("iptables-legacy's tables cannot be looked at: %s", error)
            return
        if others:
            log.warning("the firewall was changed by somebody through iptables-legacy: putting ours right")
            await ledger.repair()
            await asyncio.to_thread(look)


async def _look_again(ledger: Ledger, watch: Watch) -> None:
    """After putting things right: what was heard meanwhile is our own edit of FORWARD, but may hide somebody else's."""
    if watch.heard().authors:
        await ledger.repair()


async def _readable(watch: Watch) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(watch, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(watch)
