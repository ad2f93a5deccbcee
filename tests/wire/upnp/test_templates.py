"""The documents are what the standard's templates prescribe, and the checker that says so finds what is not."""

import pytest

from igd.wire.upnp.description import CONTROL_PATHS, DEVICE_PATHS, EVENT_PATHS, WITHOUT_FIREWALL_PATH
from igd.wire.upnp.devices import WAN_IPV6_FIREWALL_CONTROL, Service
from igd.wire.upnp.state import STATE
from tests.wire.upnp import igd_templates as templates
from tests.wire.upnp.template_checker import faults
from tests.wire.upnp.test_actions import PARTIES
from tests.wire.upnp.test_description import DOCUMENTS
from tests.wire.upnp.test_state import REPLIES

URLS = {*CONTROL_PATHS, *EVENT_PATHS}


@pytest.mark.parametrize("path", [*DEVICE_PATHS.values(), WITHOUT_FIREWALL_PATH])
def test_the_documents_are_as_the_templates_prescribe(path: str) -> None:
    assert list(faults(path, DOCUMENTS, URLS)) == []


@pytest.mark.parametrize("path", DEVICE_PATHS.values())
def test_a_gateway_with_ipv6_has_firewall_control(path: str) -> None:
    assert WAN_IPV6_FIREWALL_CONTROL.urn(1).encode() in DOCUMENTS[path]


@pytest.mark.parametrize("service", STATE, ids=lambda service: service.service_id)
def test_each_evented_variable_of_the_templates_has_a_value(service: Service) -> None:
    rows = {row.variable.name: row for row in STATE[service]}
    template = templates.SERVICES[f"{service.name}:{service.version}"]
    evented = {name for name, each in template.variables.items() if each.evented}
    assert evented == {name for name, row in rows.items() if row.evented}
    for name in evented:
        assert rows[name].text(REPLIES[rows[name].request], PARTIES) is not None


def test_versions_differ_in_what_the_second_added() -> None:
    """A variable that version 2 introduced has its number in STATE."""
    first, second = templates.SERVICES["WANIPConnection:1"], templates.SERVICES["WANIPConnection:2"]
    added = second.variables.keys() - first.variables.keys()
    for rows in STATE.values():
        for row in rows:
            assert (row.since == 2) == (row.variable.name in added)


DEVICE, IP, COMMON, FIREWALL = "/1/device.xml", "/1/WANIPConn1.xml", "/1/WANCommonIFC1.xml", "/1/WANIPv6Firewall1.xml"

BROKEN: dict[str, tuple[str, str, str, str]] = {
    "another version": (DEVICE, "InternetGatewayDevice:1", "InternetGatewayDevice:3", "no version"),
    "a mixed tree": (DEVICE, "WANDevice:1", "WANDevice:2", "has 0 devices WANDevice:1"),
    "a service of the other version": (DEVICE, "WANIPConnection:1", "WANIPConnection:2", "lacks WANIPConnection:1"),
    "an unknown service": (DEVICE, "Layer3Forwarding:1", "Layer4Forwarding:1", "which has no template"),
    "no manufacturer": (DEVICE, "<manufacturer>igd</manufacturer>", "", "has no manufacturer"),
    "no uuid": (DEVICE, "<UDN>uuid:", "<UDN>", "has the UDN"),
    "one UDN twice": (
        DEVICE,
        "6d208993-fa70-535d-b1bd-7c4259b52b34",
        "98e8b6ec-0bb4-5c7b-8715-6190e2207005",
        "UDN is there 2 times",
    ),
    "one serviceId twice": (DEVICE, "serviceId:WANIPv6Firewall1", "serviceId:WANIPConn1", "serviceId is there 2 times"),
    "one control URL twice": (DEVICE, "/control/WANIPv6Firewall1", "/control/WANIPConn1", "controlURL is there 2"),
    "no event URL": (DEVICE, "/event/WANIPConn1", "", "eventSubURL leads nowhere"),
    "a document that is not there": (DEVICE, "/1/WANIPConn1.xml", "/1/other.xml", "SCPDURL leads nowhere"),
    "a required action less": (IP, "<name>ForceTermination</name>", "<name>RequestConnection</name>", "lacks Force"),
    "one action twice": (IP, "<name>RequestTermination</name>", "<name>ForceTermination</name>", "action is there 2"),
    "an action of version 2": (IP, "<name>RequestTermination</name>", "<name>AddAnyPortMapping</name>", "is no action"),
    "a misspelt argument": (IP, "<name>NewRSIPAvailable</name>", "<name>NewRsipAvailable</name>", "other arguments"),
    "a direction that is wrong": (
        COMMON,
        "<name>NewTotalBytesSent</name><direction>out<",
        "<name>NewTotalBytesSent</name><direction>in<",
        "GetTotalBytesSent has other arguments",
    ),
    "another related variable": (
        FIREWALL,
        "<relatedStateVariable>A_ARG_TYPE_Boolean<",
        "<relatedStateVariable>A_ARG_TYPE_Port<",
        "CheckPinholeWorking has other arguments",
    ),
    "a related variable that is not there": (IP, "<name>Uptime</name>", "<name>UpTime</name>", "no variable Uptime"),
    "an unknown type": (IP, "<dataType>ui4<", "<dataType>uint32<", "of an unknown type: 'uint32'"),
    "another type": (
        FIREWALL,
        "<name>A_ARG_TYPE_Protocol</name><dataType>ui2<",
        "<name>A_ARG_TYPE_Protocol</name><dataType>string<",
        "A_ARG_TYPE_Protocol is of type string",
    ),
    "a variable that is not evented": (
        FIREWALL,
        'sendEvents="yes"><name>FirewallEnabled<',
        'sendEvents="no"><name>FirewallEnabled<',
        "FirewallEnabled has sendEvents='no'",
    ),
    "one that should not be": (
        COMMON,
        'sendEvents="no"><name>EnabledForInternet<',
        'sendEvents="yes"><name>EnabledForInternet<',
        "EnabledForInternet has sendEvents='yes'",
    ),
    "a value that the standard does not have": (IP, "<allowedValue>UDP<", "<allowedValue>SCTP<", "['SCTP', 'UDP']"),
    "another range": (FIREWALL, "<maximum>86400<", "<maximum>604800<", "another range: (1, 604800)"),
    "no evented variable": (FIREWALL, "InboundPinholeAllowed", "PinholeAllowed", "lacks the evented variable Inbound"),
}


@pytest.mark.parametrize(("path", "right", "wrong", "fault"), BROKEN.values(), ids=BROKEN)
def test_what_the_checker_finds(path: str, right: str, wrong: str, fault: str) -> None:
    assert right.encode() in DOCUMENTS[path]
    broken = {**DOCUMENTS, path: DOCUMENTS[path].replace(right.encode(), wrong.encode())}
    found = list(faults(DEVICE, broken, URLS))
    assert any(fault in each for each in found), found
