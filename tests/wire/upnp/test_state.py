"""State variables: what QueryStateVariable (UPnP Device Architecture §3.3) and events read."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from igd.core.request import (
    ExternalAddress,
    GetExternalAddress,
    GetLinkStatus,
    GetPeerState,
    PeerState,
    Refusal,
    Reply,
    Request,
)
from igd.wire.upnp import soap
from igd.wire.upnp.actions import ACTIONS, decode
from igd.wire.upnp.devices import WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION, WAN_IPV6_FIREWALL_CONTROL, Service
from igd.wire.upnp.soap import Call, UPnPError
from igd.wire.upnp.state import STATE
from tests.wire.upnp.test_actions import CONNECTION, LINK, PARTIES
from tests.wire.upnp.test_soap import envelope

HEADER = '"urn:schemas-upnp-org:control-1-0#QueryStateVariable"'

REPLIES: dict[Request | None, Reply | None] = {
    None: None,
    GetLinkStatus(): LINK,
    GetPeerState(): PeerState(port_mappings=3, update_id=7, pinholes_allowed=False),
    GetExternalAddress(): ExternalAddress(IPv4Address("60.60.60.1")),
}

VALUES = {
    "L3Forwarding1": {"DefaultConnectionService": CONNECTION},
    "WANCommonIFC1": {
        "WANAccessType": "Ethernet",
        "Layer1UpstreamMaxBitRate": "4294967295",
        "Layer1DownstreamMaxBitRate": "4294967295",
        "PhysicalLinkStatus": "Up",
        "TotalBytesSent": "5",
        "TotalBytesReceived": "4294967295",
        "TotalPacketsSent": "0",
        "TotalPacketsReceived": "7",
        "EnabledForInternet": "1",
        "MaximumActiveConnections": "1",
        "NumberOfActiveConnections": "1",
        "ActiveConnectionDeviceContainer": CONNECTION.split(",", maxsplit=1)[0],
        "ActiveConnectionServiceID": "urn:upnp-org:serviceId:WANIPConn1",
    },
    "WANIPConn1": {
        "ConnectionType": "IP_Routed",
        "PossibleConnectionTypes": "IP_Routed",
        "ConnectionStatus": "Connected",
        "LastConnectionError": "ERROR_NONE",
        "Uptime": "100",
        "RSIPAvailable": "0",
        "NATEnabled": "1",
        "ExternalIPAddress": "60.60.60.1",
        "PortMappingNumberOfEntries": "3",
        "SystemUpdateID": "7",
        "AutoDisconnectTime": "0",
        "IdleDisconnectTime": "0",
        "WarnDisconnectDelay": "0",
    },
    "WANIPv6Firewall1": {"FirewallEnabled": "1", "InboundPinholeAllowed": "0"},
}


def query(service: Service, name: str, reply: Reply | None = None) -> str:
    """Return what a query, as clients send it, is answered with; without a reply, with the one in REPLIES."""
    body = envelope(
        f'<u:QueryStateVariable xmlns:u="{soap.CONTROL}"><u:varName>{name}</u:varName></u:QueryStateVariable>'
    )
    call = soap.decode(HEADER, body)
    invocation = decode(service, call, PARTIES)
    response = soap.encode_response(call, invocation.answer(reply or REPLIES[invocation.request]))
    answered = soap.decode(f"{soap.CONTROL}#QueryStateVariableResponse", response)
    assert list(answered.arguments) == ["return"]
    return answered.arguments["return"]


@pytest.mark.parametrize("service", STATE, ids=lambda service: service.service_id)
def test_every_variable_with_a_value_can_be_queried(service: Service) -> None:
    names = [row.variable.name for row in STATE[service]]
    assert {name: query(service, name) for name in names} == VALUES[service.service_id]


@pytest.mark.parametrize("name", ["Nonsense", "", "ExternalPort", "A_ARG_TYPE_Manage", "FirewallEnabled"])
def test_an_unknown_variable_is_404(name: str) -> None:
    """So is one of a single mapping, and one of another service."""
    with pytest.raises(UPnPError) as caught:
        query(WAN_IP_CONNECTION, name)
    assert caught.value.code == 404


def test_names_may_be_in_any_case() -> None:
    invocation = decode(WAN_IP_CONNECTION, Call(soap.CONTROL, "queryStateVariable", {"VarName": " uptime "}), PARTIES)
    assert invocation.answer(LINK) == {"return": "100"}


@pytest.mark.parametrize("arguments", [{}, {"var": "Uptime"}])
def test_a_query_needs_a_name(arguments: dict[str, str]) -> None:
    with pytest.raises(UPnPError) as caught:
        decode(WAN_IP_CONNECTION, Call(soap.CONTROL, "QueryStateVariable", arguments), PARTIES)
    assert caught.value.code == 402


def test_the_control_namespace_has_no_other_action() -> None:
    with pytest.raises(UPnPError) as caught:
        decode(WAN_IP_CONNECTION, Call(soap.CONTROL, "GetExternalIPAddress", {}), PARTIES)
    assert caught.value.code == 401


def test_without_an_external_address_the_variable_is_empty() -> None:
    """The action is an error then (501), because clients take an empty address for one."""
    assert query(WAN_IP_CONNECTION, "ExternalIPAddress", Refusal.NO_EXTERNAL_ADDRESS) == ""


@pytest.mark.parametrize(
    ("service", "name", "refusal", "code"),
    [
        (WAN_IP_CONNECTION, "ConnectionStatus", Refusal.SYSTEM_FAILURE, 501),
        (WAN_COMMON_INTERFACE_CONFIG, "PhysicalLinkStatus", Refusal.SYSTEM_FAILURE, 501),
        (WAN_IP_CONNECTION, "ExternalIPAddress", Refusal.PROTOCOL_FORBIDDEN, 606),
        (WAN_IPV6_FIREWALL_CONTROL, "InboundPinholeAllowed", Refusal.PROTOCOL_FORBIDDEN, 606),
    ],
)
def test_a_refusal_is_an_error(service: Service, name: str, refusal: Refusal, code: int) -> None:
    with pytest.raises(UPnPError, match=refusal.value) as caught:
        query(service, name, refusal)
    assert caught.value.code == code


def test_a_link_that_is_down() -> None:
    down = replace(LINK, up=False)
    assert query(WAN_IP_CONNECTION, "ConnectionStatus", down) == "Disconnected"
    assert query(WAN_COMMON_INTERFACE_CONFIG, "PhysicalLinkStatus", down) == "Down"
    assert query(WAN_COMMON_INTERFACE_CONFIG, "NumberOfActiveConnections", down) == "0"


def test_an_action_reads_what_a_query_reads() -> None:
    """Each action without in-arguments is answered with the values of the variables that it names."""
    for service, actions in ACTIONS.items():
        for action in actions:
            if action.inputs or not action.outputs:
                continue
            invocation = decode(service, Call(service.urn(2), action.name, {}), PARTIES)
            outputs = invocation.answer(REPLIES[invocation.request])
            queried = {name: query(service, variable.name) for name, variable in action.outputs.items()}
            assert outputs == queried


@pytest.mark.parametrize("service", STATE, ids=lambda service: service.service_id)
def test_every_service_has_evented_variables_from_its_first_version(service: Service) -> None:
    """UPnPy cannot read a description with an empty eventSubURL."""
    assert any(row.evented and row.since == 1 for row in STATE[service])


def test_values_are_of_the_declared_type() -> None:
    for rows in STATE.values():
        for row in rows:
            text = row.text(REPLIES[row.request], PARTIES)
            assert text is not None
            assert row.variable.write(row.variable.read(row.variable.name, text)) == text
