"""The description documents (UPnP Device Architecture 1.1 §2), generated from the devices and the table of actions."""

import zlib
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from igd.wire.upnp import former_paths, xml
from igd.wire.upnp.actions import ACTIONS, Action
from igd.wire.upnp.devices import DEVICES, ROOT, VERSIONS, WAN_IPV6_FIREWALL_CONTROL, Device, Service, udn
from igd.wire.upnp.state import STATE
from igd.wire.upnp.variables import Variable

DEVICE_PATHS = {version: f"/{version}/device.xml" for version in VERSIONS}
"""The path of the device description of each version."""

WITHOUT_FIREWALL_PATH = "/1/device-without-firewall.xml"
"""The path of a description of version 1 without WANIPv6FirewallControl, for clients that understand nothing newer."""

SERVICES = tuple(service for device in DEVICES for service in device.services)

CONTROL_PATHS = {service.control_path: service for service in SERVICES}
"""Each service by its control path, the same in both versions: they differ in what they describe, not in what works."""

EVENT_PATHS = {service.event_path: service for service in SERVICES}
"""Each service by the path for subscriptions, the same in both versions."""


@dataclass(frozen=True, slots=True)
class Identity:
    """How this gateway describes itself; `presentation_url` is relative, or empty if there is no page."""

    uuid: UUID
    friendly_name: str
    product_version: str
    presentation_url: str = ""


def documents(identity: Identity) -> dict[str, bytes]:
    """Return all documents by path."""
    by_path = {WITHOUT_FIREWALL_PATH: _device_document(identity, 1, without=[WAN_IPV6_FIREWALL_CONTROL])}
    for version in VERSIONS:
        by_path[DEVICE_PATHS[version]] = _device_document(identity, version)
        for service in CONTROL_PATHS.values():
            by_path[_service_path(service, version)] = _service_document(service, version)
    return {**by_path, former_paths.DEVICE_PATH: by_path[DEVICE_PATHS[1]]}


def config_id(by_path: dict[str, bytes]) -> int:
    """Return a number (0 to 16777215) that changes with the documents (§1.2.2)."""
    return zlib.crc32(b"".join(by_path.values())) % 2**24


def _service_path(service: Service, version: int) -> str:
    return f"/{version}/{service.service_id}.xml"


def _spec_version(minor: int) -> xml.Tree:
    return "specVersion", (("major", "1"), ("minor", str(minor)))


# Devices (§2.3)


def _device_document(identity: Identity, version: int, without: Collection[Service] = ()) -> bytes:
    """Return a device description; specVersion is 1.0 for version 1, because some of its clients check it, else 1.1."""
    root = (_spec_version(version - 1), _device(ROOT, identity, version, without))
    return xml.write((xml.Tag("root", {None: "urn:schemas-upnp-org:device-1-0"}), root))


def _device(device: Device, identity: Identity, version: int, without: Collection[Service]) -> xml.Tree:
    services = [service for service in device.services if service not in without]
    fields: list[xml.Tree] = [
        ("deviceType", device.urn(version)),
        ("friendlyName", identity.friendly_name),
        ("manufacturer", "igd"),
        ("modelDescription", "Port-mapping gateway for WireGuard"),
        ("modelName", "igd"),
        ("modelNumber", identity.product_version),
        ("UDN", udn(device, identity.uuid)),
        ("serviceList", tuple(_service(service, version) for service in services)),
    ]
    if device.devices:
        embedded = tuple(_device(each, identity, version, without) for each in device.devices)
        fields.append(("deviceList", embedded))
    if device is ROOT and identity.presentation_url:
        fields.append(("presentationURL", identity.presentation_url))
    return "device", tuple(fields)


def _service(service: Service, version: int) -> xml.Tree:
    """Return a service of a device; all have evented variables, and some clients cannot read an empty eventSubURL."""
    return "service", (
        ("serviceType", service.urn(version)),
        ("serviceId", service.urn_id),
        ("SCPDURL", _service_path(service, version)),
        ("controlURL", service.control_path),
        ("eventSubURL", service.event_path),
    )


# Services (§2.5)


def _service_document(service: Service, version: int) -> bytes:
    """Return a service description; version 1 lists its own actions only, which some clients check, but accepts all."""
    actions = [action for action in ACTIONS[service] if action.since <= version]
    arguments = [item for action in actions for item in (*action.inputs.values(), *action.outputs.values())]
    state = [row for row in STATE[service] if row.since <= version]
    evented = {row.variable for row in state if row.evented}
    variables = dict.fromkeys([*arguments, *(row.variable for row in state)])
    return xml.write(
        (
            xml.Tag("scpd", {None: "urn:schemas-upnp-org:service-1-0"}),
            (
                _spec_version(version - 1),
                ("actionList", tuple(map(_action, actions))),
                ("serviceStateTable", tuple(_variable(each, evented=each in evented) for each in variables)),
            ),
        )
    )


def _action(action: Action) -> xml.Tree:
    arguments = tuple(
        _argument(name, direction, variable)
        for direction, of_one_direction in (("in", action.inputs), ("out", action.outputs))
        for name, variable in of_one_direction.items()
    )
    name: xml.Tree = ("name", action.name)
    return "action", (name, ("argumentList", arguments)) if arguments else (name,)


def _argument(name: str, direction: str, variable: Variable) -> xml.Tree:
    return "argument", (("name", name), ("direction", direction), ("relatedStateVariable", variable.name))


def _variable(variable: Variable, *, evented: bool) -> xml.Tree:
    fields: list[xml.Tree] = [("name", variable.name), ("dataType", variable.data_type)]
    if variable.allowed:
        fields.append(("allowedValueList", tuple(("allowedValue", value) for value in variable.allowed)))
    if variable.allowed_range:
        limits = ("minimum", str(variable.allowed_range[0])), ("maximum", str(variable.allowed_range[-1]))
        fields.append(("allowedValueRange", limits))
    return xml.Tag("stateVariable", attributes={"sendEvents": "yes" if evented else "no"}), tuple(fields)
