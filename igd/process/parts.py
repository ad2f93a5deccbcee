"""Opens and connects the parts of one run, from the bottom up; `stack` closes them in reverse order."""

import asyncio
import logging
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from igd import VERSION, site_settings
from igd.config import Config
from igd.core.mapping import Entry, TransportProtocol
from igd.core.rate_limit import RateLimit
from igd.firewall import detect, kernel
from igd.firewall.legacy.watch import LegacyWatch
from igd.firewall.operator_rules import source_nat
from igd.firewall.operator_rules.advice import Advisor
from igd.firewall.site import Site
from igd.firewall.taken_ports import TakenPorts
from igd.firewall.watch import Watch
from igd.gateway import Gateway
from igd.host import clock, flow_timeouts
from igd.host.external_address import ExternalAddressReader
from igd.host.links import Links
from igd.host.own_ports import OwnPorts
from igd.host.stun_address import StunAddress
from igd.host.wireguard import WireGuard
from igd.ledger import Ledger
from igd.maintenance import Maintenance
from igd.operator.admin_paths import ADD, REVOKE
from igd.operator.admin_socket import Action, AdminSocket
from igd.operator.mapping_requests import MappingRequests
from igd.process.behind_nat import stun_address
from igd.process.endpoints import Endpoints
from igd.process.epoch import Epoch
from igd.process.in_kernel import InKernel
from igd.process.instance import Instance
from igd.store.leases import LeaseStore

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class HostParts:
    """What reads the host; `root` is UPnP's root device, `started` is a boottime.

    `index` is the WireGuard interface's. `settings` are the warnings about the kernel's settings.
    """

    instance: Instance
    config: Config
    links: Links
    index: int
    external_address: ExternalAddressReader
    wireguard: WireGuard
    root: uuid.UUID
    started: float
    stun: StunAddress | None = None
    settings: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What keeps ports from being mapped now, and what is waited for, as far as the host is concerned."""
        waiting = [f"waiting for {self.stun.missing}"] if self.stun and self.stun.missing else []
        return [*waiting, *self.external_address.warnings, *self.settings]

    def uptime(self) -> int:
        """Return the age of this run in seconds."""
        return int(clock.boottime() - self.started)


@dataclass(frozen=True, slots=True)
class FirewallParts:
    """What changes the kernel, and what observes others' changes to it."""

    choice: detect.Choice
    site: Site
    ledger: Ledger
    watch: Watch
    legacy_watch: LegacyWatch
    taken_ports: TakenPorts
    advisor: Advisor

    def read_rules(self) -> bool:
        """Read the operator's rules again, for taken ports and for advice; may block for seconds.

        Return whether to read them again soon (Advisor.advise).
        """
        self.taken_ports.refresh()
        return self.advisor.advise()


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts that a serving daemon uses. `actions` is what the admin socket does, by path."""

    host: HostParts
    firewall: FirewallParts
    gateway: Gateway
    maintenance: Maintenance
    epoch: Epoch
    endpoints: Endpoints
    actions: dict[str, Action] = field(default_factory=dict)


async def open_parts(stack: AsyncExitStack, in_kernel: InKernel, config: Config, links: Links, index: int) -> Parts:
    """Open all parts, and restore the stored mappings before any endpoint answers.

    FirewallError, OSError; ConfigError if the configuration does not fit the interface.
    """
    instance = in_kernel.instance
    host = await _read_host(instance, config, links, index)
    store = LeaseStore(config.store.path or instance.store_path, clock.moment)
    stack.callback(store.close)
    stored = store.load()
    firewall = await _open_firewall(stack, host, store, stored, in_kernel)
    gateway = _open_gateway(stack, host, firewall)
    maintenance = Maintenance(gateway)
    host.stun = host.external_address.stun = stun_address(config, gateway, firewall.site, firewall.taken_ports)
    await host.external_address.read(host.wireguard.last_read.addresses)
    addresses = host.external_address.addresses
    epoch = Epoch(store, addresses.announced, clock.boottime)
    await asyncio.to_thread(firewall.taken_ports.refresh)
    await asyncio.gather(maintenance.start(stored, *addresses), asyncio.to_thread(firewall.advisor.advise))
    endpoints = Endpoints(instance.interface, config, host.root, gateway, epoch)
    stack.push_async_callback(endpoints.close)
    await endpoints.listen_on(host.wireguard.addresses)
    endpoints.announce(lost=epoch.lost)
    parts = Parts(host, firewall, gateway, maintenance, epoch, endpoints)
    requests = MappingRequests(gateway)
    parts.actions.update({REVOKE: requests.revoke, ADD: requests.add})
    admin_socket = AdminSocket(gateway, lambda: _status(parts), instance.runtime_directory, parts.actions)
    stack.push_async_callback(admin_socket.close)
    await admin_socket.open()
    return parts


async def _read_host(instance: Instance, config: Config, links: Links, index: int) -> HostParts:
    wireguard = WireGuard(
        instance.interface, clock=clock.boottime, wall_clock=time.time, name_of=config.policies.name_of
    )
    own_key = await wireguard.public_key()
    config.reject_own_key(instance.interface, own_key)
    root = config.uuid or uuid.uuid5(uuid.NAMESPACE_URL, f"wireguard:{own_key}")
    external_address = ExternalAddressReader(
        links, instance.interface, config.external_interface, config.external_address
    )
    await external_address.read((await wireguard.peers()).addresses)
    wireguard.addresses = await links.addresses(instance.interface)
    return HostParts(instance, config, links, index, external_address, wireguard, root, clock.boottime())


async def _open_firewall(
    stack: AsyncExitStack, host: HostParts, store: LeaseStore, stored: Collection[Entry], in_kernel: InKernel
) -> FirewallParts:
    config = host.config
    choice = detect.choose(config.firewall.backend, detect.probe())
    log.info("firewall backend %s: %s", *choice)
    site = site_settings.site(
        config,
        host.instance.interface,
        host.external_address.interface,
        await host.wireguard.peers(),
        # there may still be flows to peers that were removed
        {entry.mapping.internal.address for entry in stored},
    )
    legacy_watch = LegacyWatch(kernel.LEGACY)
    backend = kernel.build(choice.backend, site, legacy_watch)
    ledger = Ledger(backend, store, clock.boottime)
    in_kernel.record(config)
    stack.push_async_callback(_close, ledger, in_kernel)
    watch = kernel.watch(backend, site)
    stack.callback(watch.close)
    taken_ports = TakenPorts(site, lambda: host.external_address.addresses.matched)

    def missing() -> list[str] | None:
        way_out, peers = host.external_address.default_interface, host.wireguard.last_read
        found = source_nat.missing(site.wireguard, way_out, peers)
        return None if found is None else list(map(str, found))

    advisor = Advisor(
        site, site_settings.ports(config), lambda: [address.ip for address in host.wireguard.addresses], missing
    )
    return FirewallParts(choice, site, ledger, watch, legacy_watch, taken_ports, advisor)


async def _close(ledger: Ledger, in_kernel: InKernel) -> None:
    await ledger.close(leave=in_kernel.stays)
    if not in_kernel.stays:
        in_kernel.forget()


def _open_gateway(stack: AsyncExitStack, host: HostParts, firewall: FirewallParts) -> Gateway:
    site = firewall.site
    own_ports = OwnPorts(lambda: site.external)
    stack.callback(own_ports.close)

    def taken(protocol: TransportProtocol, port: int) -> bool:
        own = any(own_ports.in_use(protocol, address, port) for address in host.external_address.addresses.matched)
        return own or firewall.taken_ports.hold(protocol, port)

    return Gateway(
        policies=host.config.policies,
        rate_limit=RateLimit(host.config.limits.requests_per_second),
        ledger=firewall.ledger,
        peers=host.wireguard,
        link=lambda: host.links.status(site.external, host.uptime()),
        clock=clock.boottime,
        rng=random.SystemRandom(),
        taken=taken,
        idle_seconds=flow_timeouts.idle_seconds,
    )


def _status(parts: Parts) -> dict[str, Any]:
    """Return what `igd status --json` prints.

    `uptime` is in seconds; `peers` counts mappings by peer, `decisions` counts by request and outcome.
    """
    host, firewall, gateway = parts.host, parts.firewall, parts.gateway
    return {
        "version": VERSION,
        "pid": os.getpid(),
        "interface": host.instance.interface,
        "external_interface": firewall.site.external or None,
        "external_address": None if gateway.announced is None else str(gateway.announced),
        "matched_addresses": list(map(str, firewall.ledger.addresses)),
        "warnings": [*host.warnings, *parts.maintenance.warnings],
        "nat": host.stun.verdict.text if host.stun and host.stun.verdict else None,
        "backend": f"{firewall.choice.backend}: {firewall.choice.reason}",
        "urls": parts.endpoints.urls(),
        "uuid": str(host.root),
        "configuration": host.config.digest,
        "uptime": host.uptime(),
        "mappings": len(firewall.ledger.table),
        "peers": Counter(gateway.policies.label(entry.mapping.peer) for entry in firewall.ledger.table),
        "decisions": {f"{request} {outcome}": count for (request, outcome), count in gateway.counters.items()},
    }
