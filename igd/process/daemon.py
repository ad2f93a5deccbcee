"""Builds every part, connects them, starts and stops them; owns the signals and the one timer."""

import asyncio
import contextlib
import gc
import logging
import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

from igd import VERSION
from igd.config import Config
from igd.core.mapping import TransportProtocol
from igd.core.peers import collapsed
from igd.core.rate_limit import RateLimit
from igd.endpoints.discovery import Discovery
from igd.endpoints.port_control import PortControl
from igd.endpoints.upnp_http import PAGE, UPnPHttp
from igd.firewall import detect, kernel
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.operator_rules.advice import Advisor
from igd.firewall.site import Site
from igd.firewall.taken_ports import TakenPorts
from igd.gateway import Gateway
from igd.host.external_address import ExternalAddressReader
from igd.host.links import Links
from igd.host.own_ports import OwnPorts
from igd.host.ready import Interfaces, first_address, wait_for_interfaces
from igd.host.wireguard import WireGuard
from igd.ledger import Ledger
from igd.maintenance import Maintenance
from igd.operator.admin_socket import AdminSocket
from igd.operator.status import Status
from igd.process import loops, sd_notify
from igd.process.instance import Instance
from igd.store.leases import LeaseStore
from igd.wire.pcp import messages as pcp
from igd.wire.upnp import description, ssdp

log = logging.getLogger(__name__)


class Readdressed(Exception):  # noqa: N818 - nothing failed
    """The WireGuard interface has another address: everything bound to the old one begins anew."""


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
    def external_interface(self) -> str | None:
        """The external interface that is asked for; None: the default route's."""
        configured = self.config.external_interface
        return None if configured == "auto" else configured

    @property
    def store_path(self) -> Path:
        """The lease store's file."""
        return self.config.store.path or self.instance.store_path


def run(settings: Settings) -> None:
    """Serve until a signal or the end of the interface; FirewallError or OSError when that is not possible."""
    gc.disable()  # until `serve` has built what stays: to walk through all of it again and again takes a second
    try:
        asyncio.run(_until_signalled(settings))
    finally:
        gc.enable()


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
                interfaces = await wait_for_interfaces(
                    links, settings.interface, settings.external_interface, _report_waiting
                )
                await Daemon(settings, links, interfaces).serve()
            except Readdressed:
                log.info("%s has another address: starting anew", settings.interface)
                settings = replace(settings, on_ready=lambda: None)
            else:
                return


def _report_waiting(missing: str) -> None:
    log.info("waiting for %s", missing)
    sd_notify.notify(f"STATUS=Waiting for {missing}")


class Daemon:
    """One run on one set of links; `serve` builds the parts, bottom up, and takes them down in the other order."""

    def __init__(self, settings: Settings, links: Links, interfaces: Interfaces) -> None:
        self._settings = settings
        self._links = links
        self._interfaces = interfaces
        self._started = time.monotonic()
        configured = settings.config.external_address
        fixed = None if configured == "auto" else configured
        self._outside = ExternalAddressReader(links, interfaces.external_interface, fixed)
        self._port_control: PortControl | None = None

    async def serve(self) -> None:
        """Serve until cancelled or until the interface is gone; Readdressed, FirewallError, OSError."""
        async with contextlib.AsyncExitStack() as stack:
            gateway, maintenance = await self._open_gateway(stack)
            discovery = await self._open_endpoints(stack, gateway)
            gc.freeze()
            gc.enable()
            log.info("ready for the peers of %s at %s", self._settings.interface, self._url())
            sd_notify.notify("READY=1", f"STATUS=Serving the peers of {self._settings.interface}")
            self._settings.on_ready()
            await self._tend(maintenance, discovery)

    async def _open_gateway(self, stack: contextlib.AsyncExitStack) -> tuple[Gateway, Maintenance]:
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
            *map(ip_network, {entry.mapping.internal.address for entry in stored}),
        ]
        site = Site(
            self._interfaces.external_interface,
            interface,
            collapsed(inside),
            **config.firewall.model_dump(exclude={"backend"}),
            anycast=config.port_control.enabled and config.port_control.anycast,
        )
        self._legacy = LegacyWatch(kernel.LEGACY)
        backend = kernel.build(self._choice.backend, site, self._legacy)
        self._store = store
        self._ledger = Ledger(backend, store, time.monotonic)
        stack.push_async_callback(self._ledger.close)
        self._watch = kernel.watch(backend, site)
        stack.callback(self._watch.close)
        ports = [(TransportProtocol.UDP, ssdp.PORT), (TransportProtocol.TCP, config.http_port)]
        ports += [(TransportProtocol.UDP, pcp.SERVER_PORT)] if config.port_control.enabled else []
        self._taken_ports = TakenPorts(site, lambda: self._outside.addresses.matched)
        stack.callback(self._taken_ports.close)
        self._advisor = Advisor(site, ports, [self._interfaces.address])
        self._own_ports = OwnPorts(self._interfaces.external_interface)
        stack.callback(self._own_ports.close)
        gateway = Gateway(
            policy=config.policy,
            rate_limit=RateLimit(config.limits.requests_per_second),
            ledger=self._ledger,
            peers=wireguard,
            link=lambda: self._links.status(self._interfaces.external_interface, self._uptime()),
            clock=time.monotonic,
            rng=random.SystemRandom(),
            taken=self._taken,
        )
        maintenance = Maintenance(
            gateway=gateway,
            policy=config.policy,
            ledger=self._ledger,
            peers=wireguard,
            clock=time.monotonic,
            taken=self._taken,
        )
        await self._outside.read()
        self._lost = self._begin_epoch() or store.is_new
        await asyncio.to_thread(self._taken_ports.refresh)
        await asyncio.gather(
            maintenance.start(stored, *self._outside.addresses), asyncio.to_thread(self._advisor.advise)
        )
        return gateway, maintenance

    def _taken(self, protocol: TransportProtocol, port: int) -> bool:
        """Tell whether packets to this external port go elsewhere already; FirewallError, OSError."""
        own = any(self._own_ports.in_use(protocol, address, port) for address in self._outside.addresses.matched)
        return own or self._taken_ports.hold(protocol, port)

    def _look_at_rules(self) -> None:
        self._taken_ports.refresh()
        self._advisor.advise()

    async def _open_endpoints(self, stack: contextlib.AsyncExitStack, gateway: Gateway) -> Discovery:
        interface, address, config = self._settings.interface, self._interfaces.address, self._settings.config
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
        if config.port_control.enabled:
            await self._open_port_control(stack, gateway)
        discovery = Discovery(gateway, self._uuid, advertiser, random.SystemRandom())
        stack.push_async_callback(discovery.close)
        await discovery.open(interface, address)
        return discovery

    async def _open_port_control(self, stack: contextlib.AsyncExitStack, gateway: Gateway) -> None:
        interface = self._settings.interface
        inside = (address.ip for address in await self._links.addresses(interface))
        ipv6 = [address for address in inside if address.version == 6 and not address.is_link_local]  # for anycast, all
        third_party = self._settings.config.port_control.third_party
        self._port_control = PortControl(gateway, self._epoch, third_party=third_party)
        stack.push_async_callback(self._port_control.close)
        await self._port_control.open(interface, [self._interfaces.address, *ipv6])
        self._port_control.announce(lost=self._lost)

    async def _tend(self, maintenance: Maintenance, discovery: Discovery) -> None:
        """Do what time and the machine ask for, until the interface is gone."""
        changed, others_changed = asyncio.Event(), asyncio.Event()
        tasks = [
            asyncio.create_task(task)
            for task in (
                loops.keep_time(maintenance, self._ledger),
                loops.keep_peers(maintenance),
                loops.keep_announcing(discovery),
                loops.keep_rules(self._ledger, self._watch, others_changed),
                loops.keep_legacy_rules(self._ledger, self._legacy.changed, others_changed),
                loops.keep_looking(others_changed, self._look_at_rules),
                self._hear_links(changed),
            )
        ]
        links = asyncio.create_task(self._watch_links(changed, others_changed, maintenance))
        tasks.append(links)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            assert done == {links}, "nothing else ends by itself"
            log.info("%s is gone", self._settings.interface)
        finally:
            sd_notify.notify("STOPPING=1")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(OSError):  # the interface may be gone, and with it everybody who could hear
                await discovery.announce(ssdp.byebye)

    async def _hear_links(self, changed: asyncio.Event) -> None:
        async for _ in self._links.changes():
            changed.set()

    async def _watch_links(
        self, changed: asyncio.Event, others_changed: asyncio.Event, maintenance: Maintenance
    ) -> None:
        while True:
            await changed.wait()
            await asyncio.sleep(loops.SETTLE_SECONDS)
            changed.clear()
            link = await self._links.state(self._settings.interface)
            if link is None or link.index != self._interfaces.index:
                return
            if await first_address(self._links, self._settings.interface) != self._interfaces.address:
                raise Readdressed
            if await self._outside.read():
                await maintenance.set_addresses(*self._outside.addresses)
                lost = await self._ledger.between_changes(self._begin_epoch)
                others_changed.set()  # which of the operator's rules concern us depends on the address
                if self._port_control is not None:
                    self._port_control.announce(lost=lost)

    def _url(self) -> str:
        return f"http://{self._interfaces.address}:{self._settings.config.http_port}"

    def _begin_epoch(self) -> bool:
        """Take note of the address that clients are told; say whether theirs are lost because it is another."""
        announced = self._outside.addresses.announced
        lost = announced is not None and self._store.record_address(announced)
        self._began = time.monotonic() - self._store.age()
        return lost

    def _epoch(self) -> int:
        """Seconds since mappings were lost: the age of the store, or of the address (RFC 6887 §8.5)."""
        return int(time.monotonic() - self._began)

    def _uptime(self) -> int:
        return int(time.monotonic() - self._started)

    def _status(self, gateway: Gateway) -> Status:
        return Status(
            version=VERSION,
            pid=os.getpid(),
            interface=self._settings.interface,
            external_interface=self._interfaces.external_interface,
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
