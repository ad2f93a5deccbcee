"""The paths of miniupnpd: a client that found it before igd took its place goes on with the URLs that it knows."""

from igd.wire.upnp.devices import (
    LAYER3_FORWARDING,
    WAN_COMMON_INTERFACE_CONFIG,
    WAN_IP_CONNECTION,
    WAN_IPV6_FIREWALL_CONTROL,
)

DEVICE_PATH = "/rootDesc.xml"
"""The path of its device description, which is of version 1 or 2."""

_NAMES = {
    "L3F": LAYER3_FORWARDING,
    "CmnIfCfg": WAN_COMMON_INTERFACE_CONFIG,
    "IPConn": WAN_IP_CONNECTION,
    "IP6FCtl": WAN_IPV6_FIREWALL_CONTROL,
}

CONTROL_PATHS = {f"/ctl/{name}": service for name, service in _NAMES.items()}

EVENT_PATHS = {f"/evt/{name}": service for name, service in _NAMES.items()}
