"""Serves one WireGuard interface until it is removed or a signal arrives, and follows the host meanwhile."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import replace

from igd.config_peers import without_peer
from igd.core.peers import Interface, Peers
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.host import forwarding
from igd.host.links import Links
from igd.host.ready import to_exist, wait_until_up
from igd.process import loops, sd_notify
from igd.process.in_kernel import InKernel
from igd.process.instance import Instance
from igd.process.parts import Parts, open_parts
from igd.process.reloading import Reloading
from igd.wire.upnp import ssdp

log = logging.getLogger(__name__)

OnReady = Callable[[], None]


def run(instance: Instance, reloading: Reloading, on_ready: OnReady | None = None) -> None:
    """Serve until a signal arrives or the interface is removed; call `on_ready` once. FirewallError, OSError.

    SIGHUP has the configuration read again. In the foreground of a terminal it means that this is gone, and stops igd.
    SIGUSR1 leaves mappings and flows in the kernel, for the igd that is started next.
    """
    asyncio.run(_serve_until_signalled(instance, reloading, on_ready))


async def _serve_until_signalled(instance: Instance, reloading: Reloading, on_ready: OnReady | None) -> None:
    leaving = asyncio.Event()
    serving = asyncio.create_task(_serve_until_removed(instance, reloading, on_ready, leaving))
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:  # a second signal must not interrupt the cleanup
            stopped = True
            serving.cancel()

    def leave() -> None:
        leaving.set()  # also after SIGTERM: of two signals that are pending at once, the second is handled first
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, leave)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, stop if _has_terminal() else reloading.begin)
    try:
        await serving
    except asyncio.CancelledError:
        if not stopped:
            raise
        log.info("stopped")


def _has_terminal() -> bool:
    """Return whether igd logs to its controlling terminal; a detached one has none, though it may write to one."""
    try:
        os.tcgetpgrp(2)
    except OSError:
        return False
    return True


async def _serve_until_removed(
    instance: Instance, reloading: Reloading, on_ready: OnReady | None, leaving: asyncio.Event
) -> None:
    in_kernel = InKernel(instance)
    async with Links() as links:
        index = await wait_until_up(links, instance.interface, functools.partial(_report_missing, in_kernel))
        instance.report_waiting("")
        in_kernel.adopt(reloading.config)
        async with contextlib.AsyncExitStack() as stack:
            with garbage_collection_paused():
                parts = await open_parts(stack, in_kernel, reloading.config, links, index)
            await reloading.serve(parts)
            announced = parts.host.external_address.addresses.announced
            log.info("external address: %s", announced or "none")
            log.info("ready for the peers of %s at %s", instance.interface, _places(parts.endpoints.addresses))
            daemon = Daemon(parts, leaving)
            daemon.report_way_out()
            in_kernel.stays = False
            sd_notify.notify("READY=1")
            if on_ready is not None:
                on_ready()
            try:
                await daemon.serve()
            finally:
                in_kernel.stays = await daemon.leaves()


def _places(addresses: Iterable[Interface]) -> str:
    return ", ".join(str(address.ip) for address in addresses) or "no address"


def _report_missing(in_kernel: InKernel, missing: str) -> None:
    instance = in_kernel.instance
    if missing == to_exist(instance.interface):
        in_kernel.remove_left(f"{instance.interface} is gone")
    log.info("waiting for %s", missing)
    instance.report_waiting(missing)
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
    """Runs the tasks that keep the open parts up to date. `leaving` is set before it is stopped for a restart."""

    def __init__(self, parts: Parts, leaving: asyncio.Event) -> None:
        self._parts = parts
        self._leaving = leaving
        self._rules_changed = asyncio.Event()  # the operator's firewall rules
        self.look_again = asyncio.Event()  # set by what changes the way out and is not seen by rtnetlink
        self._announced = parts.host.external_address.addresses.announced  # to clients, with its epoch
        self._failures = RecurringWarnings(log, "the host cannot be followed, trying again: %s")
        self._interface_warnings = RecurringWarnings(log)
        self._way_out_warnings = RecurringWarnings(log)
        self._peer_warnings = RecurringWarnings(log)
        self._settings_warnings = RecurringWarnings(log)
        self._status = ""
        parts.gateway.on_new_peers.append(self._follow_peers)

    async def serve(self) -> None:
        """Serve until the interface is removed. OSError."""
        following = asyncio.create_task(self._follow_host())
        tasks = [following, *map(asyncio.create_task, self._endless())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            assert done == {following}, "the other tasks never end"
        finally:
            sd_notify.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if not self._leaving.is_set():
                with contextlib.suppress(OSError):  # the interface, and with it every receiver, may be gone
                    await self._parts.endpoints.advertise(ssdp.byebye)

    async def leaves(self) -> bool:
        """Return whether mappings and flows are to stay in the kernel: for a restart, and not without the interface."""
        host = self._parts.host
        if not self._leaving.is_set():
            return False
        with contextlib.suppress(OSError):
            link = await host.links.state(host.instance.interface)
            if link is not None and link.index == host.index:
                log.info("stopped for a restart: mappings and flows stay")
                return True
        return False

    def _endless(self) -> list[Coroutine[None, None, None]]:
        maintenance, firewall = self._parts.maintenance, self._parts.firewall
        stun = self._parts.host.stun
        if stun is not None:
            stun.on_change.append(self.look_again.set)
        return [
            *([stun.run()] if stun else []),
            loops.end_leases(maintenance, firewall.ledger),
            loops.settle_store(firewall.ledger),
            loops.report_left_out(),
            loops.report_dropped(self._parts.gateway),
            loops.recheck_peers(maintenance),
            loops.announce(self._parts.endpoints),
            self._parts.endpoints.retry(),
            self._parts.endpoints.subscriptions.watch_host(),
            loops.repair_nftables(firewall.ledger, firewall.watch, self._rules_changed),
            loops.repair_iptables_legacy(firewall.ledger, firewall.legacy_watch.changed, self._rules_changed),
            loops.reread_rules(self._rules_changed, firewall.read_rules),
        ]

    async def _follow_host(self) -> None:
        """Follow every change of the host until the interface is removed."""
        host = self._parts.host
        interface = host.instance.interface
        async for _ in host.links.changes(self.look_again):
            link = await host.links.state(interface)
            if link is None or link.index != host.index:
                log.info("%s is gone", interface)
                return
            down = [] if link.up else [f"{interface} is down: no peer is served until it is up"]
            self._interface_warnings.log(down)
            failures = []
            steps = (
                self._follow_addresses,
                self._follow_way_out,
                self._parts.maintenance.recheck_routes,
                self._warn_of_settings,
            )
            for step in steps:
                try:
                    await step()
                except OSError as error:  # the host changed while it was read, or a port is taken
                    failures.append(str(error))
            self._failures.log(failures)
            if failures:
                self.look_again.set()

    async def _follow_addresses(self) -> None:
        """Listen on the addresses that the interface has now."""
        host = self._parts.host
        addresses = await host.links.addresses(host.instance.interface)
        if addresses == host.wireguard.addresses:
            return
        gone = set(host.wireguard.addresses) - set(addresses)
        host.wireguard.addresses = addresses
        await self._parts.endpoints.listen_on(addresses)
        log.info("serving the peers of %s at %s", host.instance.interface, _places(self._parts.endpoints.addresses))
        if gone:
            await self._parts.firewall.ledger.repair()  # flows to PCP's anycast addresses lead there
        self._rules_changed.set()  # the firewall may keep peers from an address

    async def _follow_way_out(self) -> None:
        parts = self._parts
        external = parts.host.external_address
        changed = await external.read(parts.host.wireguard.last_read.addresses)

        def update_site() -> None:
            parts.firewall.site.external = external.interface

        announced = external.addresses.announced
        is_new = announced != self._announced
        try:
            # before clients can learn the address: one that reads it with the old epoch would not map again
            lost = is_new and await parts.firewall.ledger.in_worker(parts.epoch.update, announced)
        finally:  # a full disk does not keep the way out from being followed
            if changed:
                await parts.maintenance.set_addresses(*external.addresses, update_site)
                self._rules_changed.set()  # interface and address decide which of the operator's rules apply
            parts.endpoints.subscriptions.host_changed()
            self.report_way_out()
        if is_new:
            self._announced = announced
            log.info("external address: %s", announced or "none")
            parts.endpoints.announce(lost=lost)

    def report_way_out(self) -> None:
        """Log what is wrong with the way out, and have systemd show it."""
        host = self._parts.host
        self._way_out_warnings.log(host.external_address.warnings)
        self._report_status()

    def _report_status(self) -> None:
        host = self._parts.host
        status = "; ".join([f"Serving the peers of {host.instance.interface}", *host.warnings])
        if status != self._status:
            self._status = status
            sd_notify.notify(f"STATUS={status}")

    async def _warn_of_settings(self) -> None:
        """Log which settings of the kernel keep mapped flows from passing, and which no longer do."""
        host, external = self._parts.host, self._parts.host.external_address
        interfaces = host.instance.interface, external.interface
        peers, matched = (await host.wireguard.peers()).owned(), external.addresses.matched
        host.settings = await forwarding.warnings(host.links, *interfaces, peers, matched)
        self._settings_warnings.log(host.settings)
        self._report_status()

    async def _follow_peers(self, peers: Peers) -> None:
        """Update the networks of the peers, let their mapped flows through, and limit their rates."""
        parts = self._parts
        site, ledger = parts.firewall.site, parts.firewall.ledger
        # with the addresses of present mappings: there may still be flows to peers that were removed
        networks = peers.networks({entry.mapping.internal.address for entry in ledger.table})
        masqueraded = parts.host.config.policies.masqueraded(peers)

        def update_site() -> None:
            site.peers, site.masqueraded = networks, masqueraded
            if site.request_rate is not None:
                site.request_rate = replace(site.request_rate, peers=peers)

        changed = (networks, masqueraded) != (site.peers, site.masqueraded)
        await (ledger.repair if changed else ledger.follow_peers)(update_site)
        self._peer_warnings.log(without_peer(parts.gateway.policies, site.wireguard, peers))
        self.look_again.set()  # the operator may route single peers by another way
        self._rules_changed.set()  # and translate their source addresses
