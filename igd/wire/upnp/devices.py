"""What this gateway is to UPnP: a tree of devices with their services; discovery and description both read it."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID, uuid5

VERSIONS = (1, 2)
"""The versions of InternetGatewayDevice that the gateway shows, each with a description of its own."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service; `version` is its newest."""

    name: str
    service_id: str
    version: int

    def urn(self, version: int) -> str:
        """Give the type as a description of this version names it."""
        return f"urn:schemas-upnp-org:service:{self.name}:{min(version, self.version)}"

    @property
    def urn_id(self) -> str:
        """The serviceId as descriptions have it."""
        return f"urn:upnp-org:serviceId:{self.service_id}"

    @property
    def control_path(self) -> str:
        """Where actions are sent to."""
        return f"/control/{self.service_id}"


@dataclass(frozen=True, slots=True)
class Device:
    """A device with its services and the devices embedded in it; `version` is its newest."""

    name: str
    version: int
    services: tuple[Service, ...]
    devices: tuple["Device", ...] = ()

    def urn(self, version: int) -> str:
        """Give the type as a description of this version names it."""
        return f"urn:schemas-upnp-org:device:{self.name}:{min(version, self.version)}"

    def family(self) -> Iterator["Device"]:
        """Give the device and all below it, the outer before the inner."""
        yield self
        for device in self.devices:
            yield from device.family()


LAYER3_FORWARDING = Service("Layer3Forwarding", "L3Forwarding1", 1)
WAN_COMMON_INTERFACE_CONFIG = Service("WANCommonInterfaceConfig", "WANCommonIFC1", 1)
WAN_IP_CONNECTION = Service("WANIPConnection", "WANIPConn1", 2)

WAN_CONNECTION_DEVICE = Device("WANConnectionDevice", 2, (WAN_IP_CONNECTION,))
WAN_DEVICE = Device("WANDevice", 2, (WAN_COMMON_INTERFACE_CONFIG,), (WAN_CONNECTION_DEVICE,))
ROOT = Device("InternetGatewayDevice", 2, (LAYER3_FORWARDING,), (WAN_DEVICE,))


def udn(device: Device, root: UUID) -> str:
    """Give the device's unique name (`uuid:...`), the same in both versions, where `root` is the root device's."""
    return f"uuid:{root if device is ROOT else uuid5(root, device.name)}"
