"""Compares description documents with the templates of the standard, and with UPnP Device Architecture §2."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from lxml import etree

from tests.wire.upnp import igd_templates as templates

TYPES = (
    "ui1 ui2 ui4 ui8 i1 i2 i4 i8 int r4 r8 number fixed.14.4 float char string date dateTime dateTime.tz time time.tz "
    "boolean bin.base64 bin.hex uri uuid"
).split()
"""The data types (§2.5)."""

REQUIRED_OF_A_DEVICE = "deviceType friendlyName manufacturer modelName UDN".split()


def faults(path: str, documents: Mapping[str, bytes], urls: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with a device description and its service descriptions; `urls` are those that are served."""
    root = etree.fromstring(documents[path])
    device = _child(root, "device")
    version = int(_field(device, "deviceType").rpartition(":")[2] or 0)
    if version not in templates.DEVICES:
        yield f"no version of InternetGatewayDevice: {_field(device, 'deviceType')}"
        return
    yield from _device(device, templates.DEVICES[version])
    devices = [each for each in root.iter() if etree.QName(each).localname == "device"]
    yield from _repeated("UDN", (_field(each, "UDN") for each in devices))
    for each in devices:
        yield from _repeated("serviceId", (_field(service, "serviceId") for service in _services(each)))
    services = [service for each in devices for service in _services(each)]
    for name in ("SCPDURL", "controlURL", "eventSubURL"):
        found = [_field(service, name) for service in services]
        yield from _repeated(name, found)
        served = documents if name == "SCPDURL" else set(urls)
        yield from (f"{name} leads nowhere: {url!r}" for url in found if url not in served)
    for service in services:
        short = _short(_field(service, "serviceType"), "service")
        if short in templates.SERVICES and _field(service, "SCPDURL") in documents:
            document = etree.fromstring(documents[_field(service, "SCPDURL")])
            yield from (f"{short}: {fault}" for fault in _service(document, templates.SERVICES[short]))


# Devices (§2.3)


def _device(device: etree._Element, template: templates.Tree) -> Iterator[str]:
    name, services, embedded = template
    if _short(_field(device, "deviceType"), "device") != name:
        yield f"{_field(device, 'deviceType')} is where {name} must be"
    yield from (f"{name} has no {field}" for field in REQUIRED_OF_A_DEVICE if not _field(device, field))
    if not re.fullmatch("uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", _field(device, "UDN")):
        yield f"{name} has the UDN {_field(device, 'UDN')!r}"
    found = {_short(_field(service, "serviceType"), "service") for service in _services(device)}
    yield from (f"{name} lacks {each}" for each in services - found)
    yield from (f"{name} has {each}, which has no template" for each in found - set(templates.SERVICES))
    inner = [each for lists in _children(device, "deviceList") for each in lists]
    for wanted in embedded:
        matching = [each for each in inner if _short(_field(each, "deviceType"), "device") == wanted[0]]
        if len(matching) != 1:
            yield f"{name} has {len(matching)} devices {wanted[0]}"
        for each in matching:
            yield from _device(each, wanted)


def _services(device: etree._Element) -> list[etree._Element]:
    return [each for lists in _children(device, "serviceList") for each in lists]


# Services (§2.5)


def _service(document: etree._Element, template: templates.Service) -> Iterator[str]:
    actions = _child(document, "actionList")
    variables = _child(document, "serviceStateTable")
    yield from _repeated("action", (_field(action, "name") for action in actions))
    yield from _repeated("variable", (_field(variable, "name") for variable in variables))
    described = {_field(action, "name") for action in actions}
    yield from (f"lacks {name}" for name, each in template.actions.items() if each.required and name not in described)
    defined = {_field(variable, "name") for variable in variables}
    for action in actions:
        yield from _action(action, template, defined)
    for variable in variables:
        yield from _variable(variable, template)
    evented = {name for name, each in template.variables.items() if each.evented}
    yield from (f"lacks the evented variable {name}" for name in evented - defined)


def _action(action: etree._Element, template: templates.Service, defined: set[str]) -> Iterator[str]:
    name = _field(action, "name")
    if name not in template.actions:
        yield f"{name} is no action of the template"
        return
    found = tuple(
        templates.Argument(*(_field(argument, field) for field in ("name", "direction", "relatedStateVariable")))
        for lists in _children(action, "argumentList")
        for argument in lists
    )
    if found != template.actions[name].arguments:
        yield f"{name} has other arguments than in the template: {found}"
    yield from (f"{name}: no variable {argument.variable}" for argument in found if argument.variable not in defined)


def _variable(variable: etree._Element, template: templates.Service) -> Iterator[str]:
    name, data_type = _field(variable, "name"), _field(variable, "dataType")
    if data_type not in TYPES:
        yield f"{name} is of an unknown type: {data_type!r}"
    if name not in template.variables:
        yield f"{name} is no variable of the template"
        return
    wanted = template.variables[name]
    if data_type != wanted.data_type:
        yield f"{name} is of type {data_type}, and not {wanted.data_type}"
    allowed = {value.text or "" for lists in _children(variable, "allowedValueList") for value in lists}
    if allowed != wanted.allowed:
        yield f"{name} has other allowed values: {sorted(allowed ^ wanted.allowed)}"
    if variable.get("sendEvents") != ("yes" if wanted.evented else "no"):
        yield f"{name} has sendEvents={variable.get('sendEvents')!r}"
    limits = tuple(int(value.text or 0) for lists in _children(variable, "allowedValueRange") for value in lists)
    if limits != wanted.limits:
        yield f"{name} has another range: {limits}"


# Nodes of the tree; the schemas check their namespace


def _repeated(what: str, values: Iterable[str]) -> Iterator[str]:
    yield from (f"{what} is there {count} times: {value!r}" for value, count in Counter(values).items() if count > 1)


def _children(node: etree._Element, name: str) -> list[etree._Element]:
    return [child for child in node if etree.QName(child).localname == name]


def _child(node: etree._Element, name: str) -> etree._Element:
    (child,) = _children(node, name)
    return child


def _field(node: etree._Element, name: str) -> str:
    return "".join(child.text or "" for child in _children(node, name))


def _short(urn: str, kind: str) -> str:
    return urn.removeprefix(f"urn:schemas-upnp-org:{kind}:")
