"""UPnP Device Architecture §2: device and service documents."""

import re
from uuid import UUID

import pytest

from igd.wire.upnp import former_paths
from igd.wire.upnp.actions import ACTIONS
from igd.wire.upnp.description import (
    CONTROL_PATHS,
    DEVICE_PATHS,
    EVENT_PATHS,
    WITHOUT_FIREWALL_PATH,
    Identity,
    config_id,
    documents,
)
from igd.wire.upnp.ssdp import adverts
from igd.wire.upnp.xml import Element, parse

ROOT = UUID("11111111-2222-3333-4444-555555555555")
IDENTITY = Identity(ROOT, "igd on wg0", "0.1.0")
DOCUMENTS = documents(IDENTITY)
SERVICE_PATHS = sorted(set(DOCUMENTS) - {*DEVICE_PATHS.values(), WITHOUT_FIREWALL_PATH, former_paths.DEVICE_PATH})

TREES = {
    1: [
        ("device:InternetGatewayDevice:1", ["service:Layer3Forwarding:1"]),
        ("device:WANDevice:1", ["service:WANCommonInterfaceConfig:1"]),
        ("device:WANConnectionDevice:1", ["service:WANIPConnection:1", "service:WANIPv6FirewallControl:1"]),
    ],
    2: [
        ("device:InternetGatewayDevice:2", ["service:Layer3Forwarding:1"]),
        ("device:WANDevice:2", ["service:WANCommonInterfaceConfig:1"]),
        ("device:WANConnectionDevice:2", ["service:WANIPConnection:2", "service:WANIPv6FirewallControl:1"]),
    ],
}


def all_named(element: Element, name: str) -> list[Element]:
    """Return all elements of this name at or below `element`, in document order."""
    below = [found for child in element.children for found in all_named(child, name)]
    return [element, *below] if element.name == name else below


def fields(element: Element) -> dict[str, str]:
    return {child.name: child.text for child in element.children if not child.children}


def devices(version: int, identity: Identity = IDENTITY) -> list[Element]:
    return all_named(parse(documents(identity)[DEVICE_PATHS[version]]), "device")


@pytest.mark.parametrize("version", [1, 2])
def test_the_tree(version: int) -> None:
    found = []
    for device in devices(version):
        (services,) = (child for child in device.children if child.name == "serviceList")
        types = [fields(service)["serviceType"] for service in services.children]
        found.append((fields(device)["deviceType"], types))
    short = "urn:schemas-upnp-org:"
    assert found == [(short + device, [short + service for service in services]) for device, services in TREES[version]]


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_announced_is_what_is_described(version: int) -> None:
    root = parse(DOCUMENTS[DEVICE_PATHS[version]])
    described = {
        element.text
        for name in ("UDN", "deviceType", "serviceType")
        for element in all_named(root, name)
    }  # fmt: skip
    announced = {advert.target for advert in adverts(ROOT) if advert.version == version}
    assert announced - {"upnp:rootdevice"} <= described
    assert described <= {advert.target for advert in adverts(ROOT)}


@pytest.mark.parametrize("version", [1, 2])
def test_section_2_3_fields_of_a_device(version: int) -> None:
    for device in devices(version):
        assert fields(device) == fields(device) | {
            "friendlyName": "igd on wg0",
            "manufacturer": "igd",
            "modelName": "igd",
            "modelNumber": "0.1.0",
        }


def test_a_description_without_the_firewall_differs_in_nothing_else() -> None:
    with_it, without = DOCUMENTS[DEVICE_PATHS[1]], DOCUMENTS[WITHOUT_FIREWALL_PATH]
    services = re.findall(rb"<service>.*?</service>", with_it)
    (firewall,) = (each for each in services if b":WANIPv6FirewallControl:1<" in each)
    assert with_it.replace(firewall, b"") == without


def test_the_two_versions_are_the_same_devices() -> None:
    assert [fields(device)["UDN"] for device in devices(1)] == [fields(device)["UDN"] for device in devices(2)]


@pytest.mark.parametrize("version", [1, 2])
def test_every_url_leads_somewhere(version: int) -> None:
    services = all_named(parse(DOCUMENTS[DEVICE_PATHS[version]]), "service")
    for service in map(fields, services):
        assert service["SCPDURL"] in DOCUMENTS
        assert CONTROL_PATHS[service["controlURL"]].urn(version) == service["serviceType"]
        assert service["serviceId"] == f"urn:upnp-org:serviceId:{CONTROL_PATHS[service['controlURL']].service_id}"
        assert EVENT_PATHS[service["eventSubURL"]] is CONTROL_PATHS[service["controlURL"]]


def test_paths_stay_as_they_are() -> None:
    """Some clients store them."""
    assert sorted(DOCUMENTS) == [
        "/1/L3Forwarding1.xml",
        "/1/WANCommonIFC1.xml",
        "/1/WANIPConn1.xml",
        "/1/WANIPv6Firewall1.xml",
        "/1/device-without-firewall.xml",
        "/1/device.xml",
        "/2/L3Forwarding1.xml",
        "/2/WANCommonIFC1.xml",
        "/2/WANIPConn1.xml",
        "/2/WANIPv6Firewall1.xml",
        "/2/device.xml",
        "/rootDesc.xml",
    ]
    services = ["L3Forwarding1", "WANCommonIFC1", "WANIPConn1", "WANIPv6Firewall1"]
    assert sorted(CONTROL_PATHS) == [f"/control/{service}" for service in services]
    assert sorted(EVENT_PATHS) == [f"/event/{service}" for service in services]


def test_a_page_is_named_by_the_root_only() -> None:
    with_page = devices(1, Identity(ROOT, "igd", "0.1", "http://10.100.0.1:5000/?a&b"))
    assert [fields(device).get("presentationURL") for device in with_page] == [
        "http://10.100.0.1:5000/?a&b",
        None,
        None,
    ]
    assert "presentationURL" not in fields(devices(1)[0])


@pytest.mark.parametrize("name", ["Müller & Söhne <wg0>", "]]>", "a\x00b"])
def test_any_friendly_name_can_be_written(name: str) -> None:
    written = devices(2, Identity(ROOT, name, "0.1"))
    assert [fields(device)["friendlyName"] for device in written] == [name.replace("\x00", "\ufffd")] * 3


def test_the_configuration_number_changes_with_the_documents() -> None:
    other = config_id(documents(Identity(ROOT, "another", "0.1.0")))
    assert config_id(documents(IDENTITY)) == config_id(DOCUMENTS) != other
    assert 0 <= other < 2**24


# Services (§2.5)

VERSION_1 = [
    "SetConnectionType",
    "GetConnectionTypeInfo",
    "RequestConnection",
    "RequestTermination",
    "ForceTermination",
    "SetAutoDisconnectTime",
    "SetIdleDisconnectTime",
    "SetWarnDisconnectDelay",
    "GetStatusInfo",
    "GetAutoDisconnectTime",
    "GetIdleDisconnectTime",
    "GetWarnDisconnectDelay",
    "GetNATRSIPStatus",
    "GetGenericPortMappingEntry",
    "GetSpecificPortMappingEntry",
    "AddPortMapping",
    "DeletePortMapping",
    "GetExternalIPAddress",
]
VERSION_2 = [*VERSION_1, "DeletePortMappingRange", "GetListOfPortMappings", "AddAnyPortMapping"]


@pytest.mark.parametrize(("version", "actions"), [(1, VERSION_1), (2, VERSION_2)])
def test_each_version_shows_its_own_actions(version: int, actions: list[str]) -> None:
    found = all_named(parse(DOCUMENTS[f"/{version}/WANIPConn1.xml"]), "action")
    assert [fields(action)["name"] for action in found] == actions


@pytest.mark.parametrize("path", SERVICE_PATHS)
def test_arguments_are_those_that_the_table_takes(path: str) -> None:
    for action in all_named(parse(DOCUMENTS[path]), "action"):
        (row,) = (row for rows in ACTIONS.values() for row in rows if row.name == fields(action)["name"])
        found = [tuple(fields(argument).values()) for argument in all_named(action, "argument")]
        assert found == [
            *((name, "in", variable.name) for name, variable in row.inputs.items()),
            *((name, "out", variable.name) for name, variable in row.outputs.items()),
        ]


@pytest.mark.parametrize("path", SERVICE_PATHS)
def test_every_variable_is_defined_once_and_used(path: str) -> None:
    root = parse(DOCUMENTS[path])
    defined = [fields(variable)["name"] for variable in all_named(root, "stateVariable")]
    used = {element.text for element in all_named(root, "relatedStateVariable")}
    assert len(defined) == len(set(defined))
    assert set(defined) == used | ({"SystemUpdateID"} if path == "/2/WANIPConn1.xml" else set())


EVENTED = {
    "L3Forwarding1": {"DefaultConnectionService"},
    "WANCommonIFC1": {"PhysicalLinkStatus"},
    "WANIPConn1": {
        "PossibleConnectionTypes",
        "ConnectionStatus",
        "ExternalIPAddress",
        "PortMappingNumberOfEntries",
    },
    "WANIPv6Firewall1": {"FirewallEnabled", "InboundPinholeAllowed"},
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("service", EVENTED)
def test_the_evented_variables_are_marked(version: int, service: str) -> None:
    marked = DOCUMENTS[f"/{version}/{service}.xml"].split(b'sendEvents="yes"><name>')[1:]
    found = {part.split(b"<")[0].decode() for part in marked}
    assert found == EVENTED[service] | ({"SystemUpdateID"} if (version, service) == (2, "WANIPConn1") else set())


def allowed_range(path: str, name: str) -> tuple[str, ...]:
    variables = all_named(parse(DOCUMENTS[path]), "stateVariable")
    (found,) = (each for each in variables if fields(each)["name"] == name)
    (limits,) = all_named(found, "allowedValueRange")
    return tuple(fields(limits)[each] for each in ("minimum", "maximum"))


def test_a_variable_has_its_type_and_its_values() -> None:
    variables = all_named(parse(DOCUMENTS["/1/WANIPConn1.xml"]), "stateVariable")
    (protocol,) = (found for found in variables if fields(found)["name"] == "PortMappingProtocol")
    assert fields(protocol)["dataType"] == "string"
    assert [value.text for value in all_named(protocol, "allowedValue")] == ["TCP", "UDP"]
    assert allowed_range("/1/WANIPConn1.xml", "InternalPort") == ("1", "65535")
    assert allowed_range("/1/WANIPv6Firewall1.xml", "A_ARG_TYPE_LeaseTime") == ("1", "86400")
    (lease,) = (found for found in variables if fields(found)["name"] == "PortMappingLeaseDuration")
    assert fields(lease) == {"name": "PortMappingLeaseDuration", "dataType": "ui4"}
