"""Builds every part, connects them, starts and stops them; owns the signals and the one timer."""

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from pathlib import Path

from igd import VERSION, systemd
from igd.config import Config
from igd.core.rate_limit import RateLimit
from igd.endpoints.discovery import Discovery
from igd.endpoints.upnp_http import PAGE, UPnPHttp
from igd.firewall import detect, kernel
from igd.firewall.forward_verdict import Passage
from igd.firewall.rules import MARK
from igd.gateway import Gateway
from igd.host.external_address import ExternalAddresses, external_addresses
from igd.host.links import Links
from igd.host.own_ports import in_use
from igd.host.wireguard import WireGuard
from igd.instance import Instance
from igd.lease_store import LeaseStore
from igd.ledger import Ledger
from igd.operator.admin_socket import AdminSocket
from igd.operator.status import Status
from igd.wire import description, ssdp

log = logging.getLogger(__name__)

PEERS_SECONDS = 5.0
"""How often the peers are looked at when nobody asks: a removed peer's mappings end within this."""

ANNOUNCE_SECONDS = ssdp.MAX_AGE / 3
"""How often live peers are told again that the gateway is there: two messages may be lost before one expires."""

SETTLE_SECONDS = 0.1
"""Interfaces and firewalls change in bursts; the last change of a burst is the one to look at."""

REPAIR_SECONDS = 0.5
"""How long another manager of the firewall has its way between two repairs: two that fight should not do it fast."""


class Readdressed(Exception):  # noqa: N818 - nothing failed
    """The WireGuard interface has another address: everything bound to the old one begins anew."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The links around the gateway, found once it can work: interface indexes are never used twice."""

    index: int
    address: IPv4Address
    external_interface: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What one run is given; `on_ready` is called once it serves."""

    instance: Instance
    config: Config
    on_ready: Callable[[], None]

    @property
    def interface(self) -> str:
        """The WireGuard interface's name."""
        return self.instance.interface

    @property
    def store_path(self) -> Path:
        """The lease store's file."""
        return self.config.store.path or self.instance.state_directory / "leases.sqlite"


def run(settings: Settings) -> None:
    """Serve until a signal or the end of the interface; FirewallError or OSError when that is not possible."""
    asyncio.run(_until_signalled(settings))


async def _until_signalled(settings: Settings) -> None:
    serving = asyncio.create_task(_serve_for_ever(settings))
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:  # once only: a second signal must not interrupt the clearing up
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


async def _serve_for_ever(settings: Settings) -> None:
    async with Links() as links:
        while True:
            try:
                surroundings = await _wait_for_links(links, settings)
                await Daemon(settings, links, surroundings).serve()
            except Readdressed:
                log.info("%s has another address: starting anew", settings.interface)
                settings = replace(settings, on_ready=lambda: None)
            else:
                return


async def _wait_for_links(links: Links, settings: Settings) -> Surroundings:
    """Wait until the WireGuard interface is up with an IPv4 address and the way to the internet is known."""
    said = None
    async for _ in links.changes(routes=True):
        found = await _look_around(links, settings)
        if isinstance(found, Surroundings):
            return found
        if found != said:
            log.info("waiting for %s", found)
            systemd.notify(f"STATUS=Waiting for {found}")
            said = found
    raise AssertionError("changes never end")


async def _look_around(links: Links, settings: Settings) -> Surroundings | str:
    """Find the links, or say what is missing."""
    link = await links.state(settings.interface)
    address = await _first_address(links, settings.interface)
    if link is None or not link.up or address is None:
        return f"{settings.interface} to be up with an IPv4 address"
    configured = settings.config.external_interface
    external = await links.default_interface() if configured == "auto" else configured
    if external is None:
        return "an IPv4 default route, or external_interface in the configuration"
    return Surroundings(link.index, address, external)


async def _first_address(links: Links, interface: str) -> IPv4Address | None:
    addresses = (address.ip for address in await links.addresses(interface))
    return next((address for address in addresses if isinstance(address, IPv4Address)), None)


class Daemon:
    """One run on one set of links; `serve` builds the parts, bottom up, and takes them down in the other order."""

    def __init__(self, settings: Settings, links: Links, surroundings: Surroundings) -> None:
        self._settings = settings
        self._links = links
        self._around = surroundings
        self._started = time.monotonic()
        self._timer = asyncio.Event()
        self._external = ExternalAddresses(None, ())

    async def serve(self) -> None:
        """Serve until cancelled or until the interface is gone; Readdressed, FirewallError, OSError."""
        async with contextlib.AsyncExitStack() as stack:
            gateway = await self._open_gateway(stack)
            discovery = await self._open_endpoints(stack, gateway)
            log.info("ready for the peers of %s at %s", self._settings.interface, self._url())
            systemd.notify("READY=1", f"STATUS=Serving the peers of {self._settings.interface}")
            self._settings.on_ready()
            await self._tend(gateway, discovery)

    async def _open_gateway(self, stack: contextlib.AsyncExitStack) -> Gateway:
        settings, config = self._settings, self._settings.config
        interface = settings.interface
        wireguard = WireGuard(interface, self._links, clock=time.monotonic, wall_clock=time.time)
        self._uuid = config.uuid or uuid.uuid5(uuid.NAMESPACE_URL, f"wireguard:{await wireguard.public_key()}")
        store = LeaseStore(settings.store_path, clock=time.monotonic, wall_clock=time.time)
        stack.callback(store.close)
        self._choice = detect.choose(config.firewall.backend, detect.probe())
        log.info("firewall backend %s: %s", *self._choice)
        stored = store.load()
        # With the addresses that peers had before they were removed: there may still be flows to them.
        inside = [
            *(await wireguard.peers()).networks(),
            *(IPv4Network(entry.mapping.internal.address) for entry in stored),
        ]
        passage = Passage(self._around.external_interface, interface, tuple(collapse_addresses(inside)), MARK)
        backend = kernel.build(self._choice.backend, passage)
        self._ledger = Ledger(backend, store, time.monotonic)
        stack.push_async_callback(self._ledger.close)
        self._watch = kernel.watch(backend, interface)
        stack.callback(self._watch.close)
        self._ledger.on_change.append(self._timer.set)
        gateway = Gateway(
            policy=config.policy,
            rate_limit=RateLimit(config.limits.requests_per_second),
            ledger=self._ledger,
            peers=wireguard,
            link=lambda: self._links.status(self._around.external_interface, self._uptime()),
            clock=time.monotonic,
            rng=random.SystemRandom(),
            in_use=in_use,
        )
        await gateway.start(stored, *self._take_external(await self._read_external()))
        return gateway

    async def _open_endpoints(self, stack: contextlib.AsyncExitStack, gateway: Gateway) -> Discovery:
        interface, address, config = self._settings.interface, self._around.address, self._settings.config
        identity = description.Identity(
            self._uuid, config.friendly_name or f"igd on {interface}", VERSION, f"{self._url()}{PAGE}"
        )
        documents = description.documents(identity)
        server = f"Linux UPnP/1.1 igd/{VERSION}"
        advertiser = ssdp.Advertiser(
            (f"{self._url()}{description.DEVICE_PATHS[1]}", f"{self._url()}{description.DEVICE_PATHS[2]}"),
            server,
            int(time.time()),
            description.config_id(documents),
        )
        http = UPnPHttp(gateway, self._uuid, documents, server)
        stack.push_async_callback(http.close)
        await http.open(interface, address, config.http_port)
        admin = AdminSocket(gateway, lambda: self._status(gateway), self._settings.instance.runtime_directory)
        stack.push_async_callback(admin.close)
        await admin.open()
        discovery = Discovery(gateway, self._uuid, advertiser, random.SystemRandom())
        stack.push_async_callback(discovery.close)
        await discovery.open(interface, address)
        return discovery

    async def _tend(self, gateway: Gateway, discovery: Discovery) -> None:
        """Do what time and the machine ask for, until the interface is gone."""
        changed = asyncio.Event()
        tasks = [
            asyncio.create_task(task)
            for task in (
                self._keep_time(gateway),
                self._keep_peers(gateway),
                self._keep_announcing(discovery),
                self._keep_rules(),
                self._hear_links(changed),
                self._watch_links(changed, gateway),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            log.info("%s is gone", self._settings.interface)
        finally:
            systemd.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(OSError):  # the interface may be gone, and with it everybody who could hear
                await discovery.announce(ssdp.byebye)

    async def _keep_time(self, gateway: Gateway) -> None:
        while True:
            wake = self._ledger.next_wake()
            try:
                async with asyncio.timeout(None if wake is None else max(0.0, wake - time.monotonic())):
                    await self._timer.wait()
            except TimeoutError:
                await gateway.wake()
            self._timer.clear()

    async def _keep_peers(self, gateway: Gateway) -> None:
        while True:
            await asyncio.sleep(PEERS_SECONDS)
            await gateway.recheck_peers()

    async def _keep_announcing(self, discovery: Discovery) -> None:
        while True:
            try:
                await discovery.announce(ssdp.alive)
            except OSError as error:
                log.warning("not announced: %s", error)
            await asyncio.sleep(ANNOUNCE_SECONDS)

    async def _keep_rules(self) -> None:
        """Put right what others have done to our part of the firewall, but not more than once in REPAIR_SECONDS."""
        loop, heard, authors = asyncio.get_running_loop(), asyncio.Event(), set[str]()

        def hear() -> None:
            authors.update(self._watch.authors())
            if authors:
                heard.set()

        loop.add_reader(self._watch, hear)
        try:
            while True:
                await heard.wait()
                await asyncio.sleep(SETTLE_SECONDS)
                log.warning("the firewall was changed by %s: putting ours right", ", ".join(sorted(authors)))
                authors.clear()
                heard.clear()
                await self._ledger.repair()
                await asyncio.sleep(REPAIR_SECONDS)
        finally:
            loop.remove_reader(self._watch)

    async def _hear_links(self, changed: asyncio.Event) -> None:
        async for _ in self._links.changes():
            changed.set()

    async def _watch_links(self, changed: asyncio.Event, gateway: Gateway) -> None:
        while True:
            await changed.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            changed.clear()
            link = await self._links.state(self._settings.interface)
            if link is None or link.index != self._around.index:
                return
            if await _first_address(self._links, self._settings.interface) != self._around.address:
                raise Readdressed
            external = await self._read_external()
            if external != self._external:
                await gateway.set_addresses(*self._take_external(external))

    async def _read_external(self) -> ExternalAddresses:
        configured = self._settings.config.external_address
        addresses = await self._links.addresses(self._around.external_interface)
        return external_addresses(None if configured == "auto" else configured, addresses)

    def _take_external(self, found: ExternalAddresses) -> ExternalAddresses:
        self._external = found
        if not found.matched:
            log.warning("%s is missing or has no IPv4 address: nothing can be mapped", self._around.external_interface)
        elif found.announced and not found.announced.is_global:
            log.warning(
                "%s is not a public address: clients will refuse it; behind another NAT set external_address",
                found.announced,
            )
        else:
            log.info("external address: %s", found.announced)
        return found

    def _url(self) -> str:
        return f"http://{self._around.address}:{self._settings.config.http_port}"

    def _uptime(self) -> int:
        return int(time.monotonic() - self._started)

    def _status(self, gateway: Gateway) -> Status:
        return Status(
            version=VERSION,
            pid=os.getpid(),
            interface=self._settings.interface,
            external_interface=self._around.external_interface,
            external_address=None if gateway.announced is None else str(gateway.announced),
            matched_addresses=tuple(map(str, self._ledger.addresses)),
            backend=f"{self._choice.backend}: {self._choice.reason}",
            url=f"{self._url()}{description.DEVICE_PATHS[1]}",
            uuid=str(self._uuid),
            uptime=self._uptime(),
            mappings=len(self._ledger.table),
            decisions=_readable(gateway.counters),
        )


def _readable(counters: Counter[tuple[str, str]]) -> dict[str, int]:
    return {f"{what} {outcome}": count for (what, outcome), count in counters.items()}
