"""The endpoints at the addresses that the interface has at the moment."""

import asyncio
import logging
import random
from collections.abc import Sequence
from uuid import UUID

from igd import VERSION
from igd.config import Config
from igd.core.peers import Interface
from igd.core.places import Places
from igd.endpoints.discovery import Discovery, Message
from igd.endpoints.notifier import Notifier
from igd.endpoints.port_control import PortControl
from igd.endpoints.subscriptions import Subscription, Subscriptions
from igd.endpoints.upnp_http import PAGE, Listening, UPnPHttp
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.gateway import Gateway
from igd.process import descriptors
from igd.process.epoch import Epoch
from igd.wire.upnp import description, ssdp

log = logging.getLogger(__name__)

SERVER = f"Linux UPnP/1.1 igd/{VERSION}"

RETRY_SECONDS = 3.0
"""The pause before a socket that could not be opened is tried again: nothing reports that a port was released."""


class Endpoints:
    """Discovery, HTTP, NAT-PMP and PCP on one WireGuard interface; `root` is UPnP's root device.

    `addresses` are those that are served; `changed` is set when they or their sockets have changed.
    """

    def __init__(self, interface: str, config: Config, root: UUID, gateway: Gateway, epoch: Epoch) -> None:
        name = config.friendly_name or f"igd on {interface}"
        documents = description.documents(description.Identity(root, name, VERSION, PAGE))
        advertiser = ssdp.Advertiser(root, SERVER, epoch.next_bootid(), description.config_id(documents))
        limits = config.limits
        connections, subscriptions = descriptors.fitting(limits.connections, limits.subscriptions)
        listening = Listening(interface, config.http_port, connections, limits.connections_per_peer, SERVER)
        places = Places[Subscription](subscriptions, limits.subscriptions_per_peer)
        self.subscriptions = Subscriptions(gateway, root, Notifier(interface), places)
        self._http = UPnPHttp(listening, gateway, root, documents, self.subscriptions)
        self._gateway = gateway
        self._epoch = epoch
        self._discovery = Discovery(interface, gateway, advertiser, self._http.endpoint_for, random.SystemRandom())
        self._port_control: PortControl | None = None
        if config.port_control.enabled:
            third_party = config.port_control.third_party
            self._port_control = PortControl(interface, gateway, epoch.seconds, third_party=third_party)
        # in the order in which they open: a URL is advertised only where HTTP is served
        self._all = [each for each in (self._http, self._port_control, self._discovery) if each is not None]
        self.changed = asyncio.Event()
        self._lock = asyncio.Lock()
        self.addresses: tuple[Interface, ...] = ()
        self._problems: list[str] = []
        self._warnings = RecurringWarnings(log)

    def configure(self, config: Config) -> None:
        """Use what this configuration has for a running endpoint: limits, and port_control.third_party."""
        limits = config.limits
        connections, subscriptions = descriptors.fitting(limits.connections, limits.subscriptions)
        self._http.limit(connections, limits.connections_per_peer)
        self.subscriptions.limit(subscriptions, limits.subscriptions_per_peer)
        if self._port_control is not None:
            self._port_control.third_party = config.port_control.third_party

    async def listen_on(self, addresses: Sequence[Interface]) -> None:
        """Serve on these addresses of the interface, and no others; the first call raises OSError if it is in vain."""
        async with self._lock:
            await self._serve(tuple(addresses))

    async def retry(self) -> None:
        """Try again to open sockets for as long as some cannot be opened; never ends."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            async with self._lock:
                if self._problems:
                    await self._serve(self.addresses)

    async def _serve(self, addresses: tuple[Interface, ...]) -> None:
        problems = [sentence for each in self._all for sentence in await each.listen_on(addresses)]
        self._warnings.log(problems)
        if (addresses, problems) != (self.addresses, self._problems):
            self.changed.set()
        self.addresses, self._problems = addresses, problems

    def urls(self) -> list[str]:
        """Return the URLs of the device description, one for each address that serves it."""
        return [f"http://{endpoint}{description.DEVICE_PATHS[1]}" for endpoint in self._http.endpoints()]

    async def close(self) -> None:
        """Stop listening, and wait for responses under way."""
        for each in reversed(self._all):
            await each.close()
        await self.subscriptions.close()

    async def advertise(self, message: Message) -> None:
        """Send `ssdp.alive` or `ssdp.byebye` to each live peer; OSError."""
        await self._discovery.announce(message)

    async def advertise_change(self) -> None:
        """Announce to each live peer that the addresses have changed; OSError."""
        boot_id = await self._gateway.ledger.in_worker(self._epoch.next_bootid)
        await self._discovery.announce_change(boot_id)

    async def greet(self) -> None:
        """Announce the gateway to the peers that have come alive since the last announcement; OSError."""
        await self._discovery.greet()

    def announce(self, *, lost: bool) -> None:
        """Announce to live peers the external address, their mappings, and whether mappings were `lost`."""
        if self._port_control is not None:
            self._port_control.announce(lost=lost)
