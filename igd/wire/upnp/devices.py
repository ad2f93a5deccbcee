"""The tree of UPnP devices and services that this gateway is; discovery and description are generated from it."""

from dataclasses import dataclass
from uuid import UUID, uuid5

VERSIONS = (1, 2)
"""The versions of InternetGatewayDevice that the gateway offers, each with its own description."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service; `version` is the newest that is supported."""

    name: str
    service_id: str
    version: int

    def urn(self, version: int) -> str:
        """Return the type in a description of this version."""
        return f"urn:schemas-upnp-org:service:{self.name}:{min(version, self.version)}"

    @property
    def urn_id(self) -> str:
        """The serviceId in descriptions."""
        return f"urn:upnp-org:serviceId:{self.service_id}"

    @property
    def control_path(self) -> str:
        """The path of the controlURL."""
        return f"/control/{self.service_id}"

    @property
    def event_path(self) -> str:
        """The path of the eventSubURL."""
        return f"/event/{self.service_id}"


@dataclass(frozen=True, slots=True)
class Device:
    """A device with its services and its embedded devices; `version` is the newest that is supported."""

    name: str
    version: int
    services: tuple[Service, ...]
    devices: tuple["Device", ...] = ()

    def urn(self, version: int) -> str:
        """Return the type in a description of this version."""
        return f"urn:schemas-upnp-org:device:{self.name}:{min(version, self.version)}"


LAYER3_FORWARDING = Service("Layer3Forwarding", "L3Forwarding1", 1)
WAN_COMMON_INTERFACE_CONFIG = Service("WANCommonInterfaceConfig", "WANCommonIFC1", 1)
WAN_IP_CONNECTION = Service("WANIPConnection", "WANIPConn1", 2)
WAN_IPV6_FIREWALL_CONTROL = Service("WANIPv6FirewallControl", "WANIPv6Firewall1", 1)

WAN_CONNECTION_DEVICE = Device("WANConnectionDevice", 2, (WAN_IP_CONNECTION, WAN_IPV6_FIREWALL_CONTROL))
WAN_DEVICE = Device("WANDevice", 2, (WAN_COMMON_INTERFACE_CONFIG,), (WAN_CONNECTION_DEVICE,))
ROOT = Device("InternetGatewayDevice", 2, (LAYER3_FORWARDING,), (WAN_DEVICE,))

DEVICES = (ROOT, WAN_DEVICE, WAN_CONNECTION_DEVICE)
"""All devices of the tree, the outer before the embedded ones."""


def udn(device: Device, root: UUID) -> str:
    """Return the unique device name (`uuid:...`), the same in both versions; `root` is the root device's uuid."""
    return f"uuid:{root if device is ROOT else uuid5(root, device.name)}"
