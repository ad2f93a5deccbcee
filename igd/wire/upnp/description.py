"""The description documents (UPnP Device Architecture 1.1 §2), drawn from the devices and the table of actions."""

import zlib
from dataclasses import dataclass
from uuid import UUID

from igd.wire.upnp import xml
from igd.wire.upnp.actions import ACTIONS, Action
from igd.wire.upnp.devices import ROOT, VERSIONS, Device, Service, udn
from igd.wire.upnp.variables import Variable

DEVICE_PATHS = {version: f"/{version}/device.xml" for version in VERSIONS}
"""Where the description of each version is found."""

CONTROL_PATHS = {service.control_path: service for device in ROOT.family() for service in device.services}
"""Where each service is controlled: the same in both versions, which differ in what they show and not in what works."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the operator's gateway calls itself; `presentation_url` is empty where there is no page."""

    uuid: UUID
    friendly_name: str
    product_version: str
    presentation_url: str = ""


def documents(identity: Identity) -> dict[str, bytes]:
    """Give every document by its path."""
    found = {}
    for version in VERSIONS:
        found[DEVICE_PATHS[version]] = _device_document(identity, version)
        for service in CONTROL_PATHS.values():
            found[_service_path(service, version)] = _service_document(service, version)
    return found


def config_id(found: dict[str, bytes]) -> int:
    """Give the number (0 to 16777215) that tells clients whether the documents changed (§1.2.2)."""
    return zlib.crc32(b"".join(found.values())) % 2**24


def _service_path(service: Service, version: int) -> str:
    return f"/{version}/{service.service_id}.xml"


def _spec_version(minor: int) -> xml.Tree:
    return "specVersion", (("major", "1"), ("minor", str(minor)))


# Devices (§2.3)


def _device_document(identity: Identity, version: int) -> bytes:
    """Clients of version 1 were written for UPnP 1.0 and some look at the number; version 2 was written on 1.1."""
    root = (_spec_version(version - 1), _device(ROOT, identity, version))
    return xml.write(('root xmlns="urn:schemas-upnp-org:device-1-0"', root))


def _device(device: Device, identity: Identity, version: int) -> xml.Tree:
    fields: list[xml.Tree] = [
        ("deviceType", device.urn(version)),
        ("friendlyName", identity.friendly_name),
        ("manufacturer", "igd"),
        ("modelDescription", "Port-mapping gateway for WireGuard"),
        ("modelName", "igd"),
        ("modelNumber", identity.product_version),
        ("UDN", udn(device, identity.uuid)),
        ("serviceList", tuple(_service(service, version) for service in device.services)),
    ]
    if device.devices:
        fields.append(("deviceList", tuple(_device(embedded, identity, version) for embedded in device.devices)))
    if device is ROOT and identity.presentation_url:
        fields.append(("presentationURL", identity.presentation_url))
    return "device", tuple(fields)


def _service(service: Service, version: int) -> xml.Tree:
    """No variable is evented, and then eventSubURL must be there and empty (§2.3)."""
    return "service", (
        ("serviceType", service.urn(version)),
        ("serviceId", service.urn_id),
        ("SCPDURL", _service_path(service, version)),
        ("controlURL", service.control_path),
        ("eventSubURL", ""),
    )


# Services (§2.5)


def _service_document(service: Service, version: int) -> bytes:
    """A service of version 1 shows the actions of version 1 only, as clients that check expect it; all work in both."""
    actions = [action for action in ACTIONS if action.service is service and action.since <= version]
    arguments = [item for action in actions for item in (*action.inputs.values(), *action.outputs.values())]
    return xml.write(
        (
            'scpd xmlns="urn:schemas-upnp-org:service-1-0"',
            (
                _spec_version(version - 1),
                ("actionList", tuple(map(_action, actions))),
                ("serviceStateTable", tuple(map(_variable, dict.fromkeys(arguments)))),
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


def _variable(variable: Variable) -> xml.Tree:
    """Events are announced only where they are sent: a client would wait for the first one, which always comes (§4)."""
    fields: list[xml.Tree] = [("name", variable.name), ("dataType", variable.data_type)]
    if variable.allowed:
        fields.append(("allowedValueList", tuple(("allowedValue", value) for value in variable.allowed)))
    return 'stateVariable sendEvents="no"', tuple(fields)
