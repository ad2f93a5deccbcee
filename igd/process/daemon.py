"""Serves one WireGuard interface until it is removed or a signal arrives; restarts when its address changes."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator

from igd.config import Config
from igd.host.links import Links
from igd.host.ready import first_address, wait_for_interfaces
from igd.process import loops, sd_notify
from igd.process.instance import Instance
from igd.process.parts import Parts, open_parts
from igd.wire.upnp import ssdp

log = logging.getLogger(__name__)

OnReady = Callable[[], None]


def run(instance: Instance, config: Config, on_ready: OnReady | None = None) -> None:
    """Serve until a signal arrives or the interface is removed; call `on_ready` once. FirewallError, OSError."""
    asyncio.run(_serve_until_signalled(instance, config, on_ready))


async def _serve_until_signalled(instance: Instance, config: Config, on_ready: OnReady | None) -> None:
    serving = asyncio.create_task(_serve_until_removed(instance, config, on_ready))
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:  # a second signal must not interrupt the cleanup
            stopped = True
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await serving
    except asyncio.CancelledError:
        if not stopped:
            raise
        log.info("stopped")


async def _serve_until_removed(instance: Instance, config: Config, on_ready: OnReady | None) -> None:
    async with Links() as links:
        while await _serve_once(instance, config, links, on_ready):
            log.info("the address of %s has changed: restarting", instance.interface)
            on_ready = None


async def _serve_once(instance: Instance, config: Config, links: Links, on_ready: OnReady | None) -> bool:
    """Serve until the interface is removed or its address changes; return whether to serve again."""
    external = None if config.external_interface == "auto" else config.external_interface
    interfaces = await wait_for_interfaces(links, instance.interface, external, _report_missing)
    async with contextlib.AsyncExitStack() as stack:
        with garbage_collection_paused():
            parts = await open_parts(stack, instance, config, links, interfaces)
        log.info("ready for the peers of %s at %s", instance.interface, parts.host.url)
        sd_notify.notify("READY=1", f"STATUS=Serving the peers of {instance.interface}")
        if on_ready is not None:
            on_ready()
        return await Daemon(parts).serve()


def _report_missing(missing: str) -> None:
    log.info("waiting for %s", missing)
    sd_notify.notify(f"STATUS=Waiting for {missing}")


@contextlib.contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Collect no garbage in this block, and never traverse the objects that it creates: it would cost a second."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


class Daemon:
    """Runs the tasks that keep the open parts up to date."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._links_changed = asyncio.Event()
        self._rules_changed = asyncio.Event()  # the operator's firewall rules

    async def serve(self) -> bool:
        """Serve until the interface is removed or its address changes; return whether to serve again. OSError."""
        links = asyncio.create_task(self._follow_links())
        tasks = [links, *map(asyncio.create_task, self._endless())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            assert done == {links}, "the other tasks never end"
            return links.result()
        finally:
            sd_notify.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(OSError):  # the interface, and with it every receiver, may be gone
                await self._parts.discovery.announce(ssdp.byebye)

    def _endless(self) -> list[Coroutine[None, None, None]]:
        maintenance, firewall = self._parts.maintenance, self._parts.firewall
        return [
            loops.end_leases(maintenance, firewall.ledger),
            loops.recheck_peers(maintenance),
            loops.announce(self._parts.discovery),
            loops.repair_nftables(firewall.ledger, firewall.watch, self._rules_changed),
            loops.repair_iptables_legacy(firewall.ledger, firewall.legacy_watch.changed, self._rules_changed),
            loops.reread_rules(self._rules_changed, firewall.read_rules),
            self._observe_links(),
        ]

    async def _observe_links(self) -> None:
        async for _ in self._parts.host.links.changes():
            self._links_changed.set()

    async def _follow_links(self) -> bool:
        """Apply new external addresses until the interface is removed (False) or its own address changes (True)."""
        host = self._parts.host
        interface = host.instance.interface
        while True:
            await self._links_changed.wait()
            await asyncio.sleep(loops.SETTLE_SECONDS)
            self._links_changed.clear()
            link = await host.links.state(interface)
            if link is None or link.index != host.interfaces.index:
                log.info("%s is gone", interface)
                return False
            if await first_address(host.links, interface) != host.interfaces.address:
                return True
            if await host.external_address.read():
                await self._readdress()

    async def _readdress(self) -> None:
        parts = self._parts
        addresses = parts.host.external_address.addresses
        await parts.maintenance.set_addresses(*addresses)
        lost = await parts.firewall.ledger.in_worker(parts.epoch.update, addresses.announced)
        self._rules_changed.set()  # the external address decides which of the operator's rules apply
        if parts.port_control is not None:
            parts.port_control.announce(lost=lost)
