"""The endpoints at the addresses that the interface has at the moment."""

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from ipaddress import IPv4Address
from uuid import UUID

from igd import VERSION
from igd.config import Config
from igd.core.peers import Interface
from igd.endpoints.discovery import Discovery, Message
from igd.endpoints.port_control import PortControl
from igd.endpoints.upnp_http import PAGE, UPnPHttp
from igd.gateway import Gateway
from igd.process.epoch import Epoch
from igd.wire.upnp import description, ssdp

SERVER = f"Linux UPnP/1.1 igd/{VERSION}"


class Endpoints:
    """Discovery, HTTP, NAT-PMP and PCP on one WireGuard interface; `root` is UPnP's root device."""

    def __init__(self, interface: str, config: Config, root: UUID, gateway: Gateway, epoch: Epoch) -> None:
        self._interface = interface
        self._config = config
        self._root = root
        self._gateway = gateway
        self._epoch = epoch
        self._stack = AsyncExitStack()
        self._port_control: PortControl | None = None
        self._discovery: Discovery | None = None
        self.addresses: tuple[Interface, ...] = ()

    @property
    def url(self) -> str | None:
        """The root of the HTTP server; None while the interface has no IPv4 address."""
        ipv4 = self._ipv4()
        return f"http://{ipv4}:{self._config.http_port}" if ipv4 else None

    async def listen_on(self, addresses: Sequence[Interface]) -> None:
        """Listen on these addresses of the interface, and on no others. OSError."""
        if tuple(addresses) == self.addresses:
            return
        await self.close()
        self.addresses = tuple(addresses)
        if ipv4 := self._ipv4():
            documents = await self._open_http(ipv4)
            self._discovery = await self._open_discovery(ipv4, documents)
        if self._config.port_control.enabled:
            self._port_control = await self._open_port_control(ipv4)
            self.announce(lost=self._epoch.lost)
            self._epoch.lost = False

    async def close(self) -> None:
        """Stop listening, and wait for responses under way."""
        self._port_control = self._discovery = None
        await self._stack.aclose()

    async def advertise(self, message: Message) -> None:
        """Send `ssdp.alive` or `ssdp.byebye` to each live peer; OSError."""
        if self._discovery is not None:
            await self._discovery.announce(message)

    def announce(self, *, lost: bool) -> None:
        """Announce to live peers the external address, their mappings, and whether mappings were `lost`."""
        if self._port_control is not None:
            self._port_control.announce(lost=lost)

    def _ipv4(self) -> IPv4Address | None:
        return next((each.ip for each in self.addresses if isinstance(each.ip, IPv4Address)), None)

    async def _open_http(self, address: IPv4Address) -> dict[str, bytes]:
        """Serve the device and service descriptions; return them by path."""
        name = self._config.friendly_name or f"igd on {self._interface}"
        documents = description.documents(description.Identity(self._root, name, VERSION, f"{self.url}{PAGE}"))
        http = UPnPHttp(self._gateway, self._root, documents, SERVER)
        self._stack.push_async_callback(http.close)
        await http.open(self._interface, address, self._config.http_port)
        return documents

    async def _open_discovery(self, address: IPv4Address, documents: dict[str, bytes]) -> Discovery:
        locations = (f"{self.url}{description.DEVICE_PATHS[1]}", f"{self.url}{description.DEVICE_PATHS[2]}")
        advertiser = ssdp.Advertiser(locations, SERVER, int(time.time()), description.config_id(documents))
        discovery = Discovery(self._gateway, self._root, advertiser, random.SystemRandom())
        self._stack.push_async_callback(discovery.close)
        await discovery.open(self._interface, address)
        return discovery

    async def _open_port_control(self, ipv4: IPv4Address | None) -> PortControl:
        ipv6 = [each.ip for each in self.addresses if each.version == 6 and not each.ip.is_link_local]  # for anycast
        third_party = self._config.port_control.third_party
        port_control = PortControl(self._gateway, self._epoch.seconds, third_party=third_party)
        self._stack.push_async_callback(port_control.close)
        await port_control.open(self._interface, [*([ipv4] if ipv4 else []), *ipv6])
        return port_control
