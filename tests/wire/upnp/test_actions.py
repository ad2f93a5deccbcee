"""The actions of all services: what each asks the gateway, and how the reply is answered."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import get_type_hints
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import Endpoint, Pinhole, PortMapping, Remote, TransportProtocol
from igd.core.request import (
    ENDLESS,
    ExternalAddress,
    GetExternalAddress,
    GetLinkStatus,
    GetMapping,
    GetMappingAt,
    GetPeerState,
    GetPinholeTimeout,
    GetPinholeTraffic,
    LinkStatus,
    ListMappings,
    Mapped,
    MappingList,
    MapPort,
    PeerState,
    PinholeTimeout,
    PinholeTraffic,
    Refusal,
    RenewPinhole,
    Reply,
    Request,
    Unmapped,
    UnmapPinhole,
    UnmapPorts,
)
from igd.wire.upnp import soap
from igd.wire.upnp import variables as v
from igd.wire.upnp.actions import ACTIONS, Action, decode
from igd.wire.upnp.devices import (
    LAYER3_FORWARDING,
    WAN_COMMON_INTERFACE_CONFIG,
    WAN_IP_CONNECTION,
    WAN_IPV6_FIREWALL_CONTROL,
    Service,
)
from igd.wire.upnp.requests import Parties, split_listing
from igd.wire.upnp.soap import Arguments, Call, UPnPError
from igd.wire.upnp.xml import Element, parse

SOURCE = IPv4Address("10.100.0.2")
PARTIES = Parties(SOURCE, UUID("11111111-2222-3333-4444-555555555555"))
CONNECTION = "uuid:98e8b6ec-0bb4-5c7b-8715-6190e2207005:WANConnectionDevice:1,urn:upnp-org:serviceId:WANIPConn1"

ADD = {
    "NewRemoteHost": "",
    "NewExternalPort": "8043",
    "NewProtocol": "TCP",
    "NewInternalPort": "43",
    "NewInternalClient": "10.100.0.9",
    "NewEnabled": "1",
    "NewPortMappingDescription": "d",
    "NewLeaseDuration": "300",
}
KEY = {name: ADD[name] for name in ("NewRemoteHost", "NewExternalPort", "NewProtocol")}
RANGE = {"NewStartPort": "8000", "NewEndPort": "9000", "NewProtocol": "TCP", "NewManage": "1"}
LIST = RANGE | {"NewNumberOfPorts": "0"}

MAP_PORT = MapPort(TransportProtocol.TCP, Endpoint(IPv4Address("10.100.0.9"), 43), 8043, 300, "d")
MAP_ANY = MapPort(TransportProtocol.TCP, Endpoint(IPv4Address("10.100.0.9"), 43), 8043, 300, "d", any_port=True)


def mapped(port: int, protocol: TransportProtocol = TransportProtocol.TCP, description: str = "d") -> Mapped:
    internal = Endpoint(IPv4Address("10.100.0.9"), 43)
    return Mapped(PortMapping(protocol, port, internal, "peer", description), 299)


PINHOLE = {
    "RemoteHost": "",
    "RemotePort": "0",
    "InternalClient": "2001:db8:1::2",
    "InternalPort": "8043",
    "Protocol": "6",
    "LeaseTime": "300",
}
OPEN = MapPort(TransportProtocol.TCP, Endpoint(IPv6Address("2001:db8:1::2"), 8043), 8043, 300)


def opened(unique_id: int) -> Mapped:
    return Mapped(Pinhole(OPEN.protocol, OPEN.internal, "peer", unique_id=unique_id), 300)


REMOTES = (Remote(IPv4Network("198.51.100.7")),)
MAPPINGS = MappingList((mapped(8043), mapped(8044, TransportProtocol.UDP), mapped(9000), mapped(9001)))
LINK = LinkStatus(
    up=True,
    bits_per_second=10**10,
    bytes_sent=2**32 + 5,
    bytes_received=2**32 - 1,
    packets_sent=2**33,
    packets_received=7,
    uptime=100,
)
STATUS = {"NewConnectionStatus": "Connected", "NewLastConnectionError": "ERROR_NONE", "NewUptime": "100"}
PROPERTIES = {
    "NewWANAccessType": "Ethernet",
    "NewLayer1UpstreamMaxBitRate": "4294967295",
    "NewLayer1DownstreamMaxBitRate": "4294967295",
    "NewPhysicalLinkStatus": "Up",
}
VALUE = {
    "NewInternalPort": "43",
    "NewInternalClient": "10.100.0.9",
    "NewEnabled": "1",
    "NewPortMappingDescription": "d",
    "NewLeaseDuration": "299",
}


ROWS = [(service, row) for service, rows in ACTIONS.items() for row in rows]


def call(action: str, arguments: Arguments | None = None, version: int = 1) -> tuple[Service, Call]:
    service = next(service for service, row in ROWS if row.name == action)
    return service, Call(service.urn(version), action, arguments or {})


def answered(called: tuple[Service, Call], reply: Reply | None) -> Arguments:
    return decode(*called, PARTIES).answer(reply)


# Each action: its in-arguments, the request, a reply to it, and its out-arguments

ASKING: list[tuple[str, Arguments, Request, Reply, Arguments]] = [
    ("AddPortMapping", ADD, MAP_PORT, mapped(8043), {}),
    ("AddAnyPortMapping", ADD, MAP_ANY, mapped(50000), {"NewReservedPort": "50000"}),
    (
        "DeletePortMapping",
        KEY,
        UnmapPorts(TransportProtocol.TCP, range(8043, 8044)),
        Unmapped((mapped(8043).mapping,)),
        {},
    ),
    (
        "DeletePortMappingRange",
        RANGE,
        UnmapPorts(TransportProtocol.TCP, range(8000, 9001)),
        Unmapped((mapped(8043).mapping,)),
        {},
    ),
    (
        "DeletePortMapping",
        KEY | {"NewRemoteHost": "198.51.100.7"},
        UnmapPorts(TransportProtocol.TCP, range(8043, 8044), REMOTES),
        Unmapped((mapped(8043).mapping,)),
        {},
    ),
    ("GetSpecificPortMappingEntry", KEY, GetMapping(TransportProtocol.TCP, 8043), mapped(8043), VALUE),
    (
        "GetSpecificPortMappingEntry",
        KEY | {"NewRemoteHost": "198.51.100.7"},
        GetMapping(TransportProtocol.TCP, 8043, REMOTES),
        mapped(8043),
        VALUE,
    ),
    (
        "GetGenericPortMappingEntry",
        {"NewPortMappingIndex": "1"},
        GetMappingAt(1),
        MAPPINGS.mappings[1],
        {"NewRemoteHost": "", "NewExternalPort": "8044", "NewProtocol": "UDP"} | VALUE,
    ),
    (
        "GetExternalIPAddress",
        {},
        GetExternalAddress(),
        ExternalAddress(IPv4Address("60.60.60.1")),
        {"NewExternalIPAddress": "60.60.60.1"},
    ),
    ("GetStatusInfo", {}, GetLinkStatus(), LINK, STATUS),
    ("GetCommonLinkProperties", {}, GetLinkStatus(), LINK, PROPERTIES),
    ("GetTotalBytesSent", {}, GetLinkStatus(), LINK, {"NewTotalBytesSent": "5"}),
    ("GetTotalBytesReceived", {}, GetLinkStatus(), LINK, {"NewTotalBytesReceived": "4294967295"}),
    ("GetTotalPacketsSent", {}, GetLinkStatus(), LINK, {"NewTotalPacketsSent": "0"}),
    ("GetTotalPacketsReceived", {}, GetLinkStatus(), LINK, {"NewTotalPacketsReceived": "7"}),
    (
        "GetActiveConnection",
        {"NewActiveConnectionIndex": "0"},
        GetLinkStatus(),
        LINK,
        {
            "NewActiveConnDeviceContainer": CONNECTION.split(",", maxsplit=1)[0],
            "NewActiveConnectionServiceID": "urn:upnp-org:serviceId:WANIPConn1",
        },
    ),
    (
        "GetFirewallStatus",
        {},
        GetPeerState(),
        PeerState(port_mappings=3, update_id=7, pinholes_allowed=True),
        {"FirewallEnabled": "1", "InboundPinholeAllowed": "1"},
    ),
    (
        "GetFirewallStatus",
        {},
        GetPeerState(),
        PeerState(port_mappings=3, update_id=7, pinholes_allowed=False),
        {"FirewallEnabled": "1", "InboundPinholeAllowed": "0"},
    ),
    ("AddPinhole", PINHOLE, OPEN, opened(9), {"UniqueID": "9"}),
    (
        "AddPinhole",
        PINHOLE | {"RemoteHost": "2001:db8::9", "RemotePort": "5000"},
        replace(OPEN, remotes=(Remote(IPv6Network("2001:db8::9"), 5000),)),
        opened(65535),
        {"UniqueID": "65535"},
    ),
    ("UpdatePinhole", {"UniqueID": "9", "NewLeaseTime": "86400"}, RenewPinhole(9, 86400), opened(9), {}),
    ("DeletePinhole", {"UniqueID": "9"}, UnmapPinhole(9), Unmapped((opened(9).mapping,)), {}),
    ("GetPinholePackets", {"UniqueID": "9"}, GetPinholeTraffic(9), PinholeTraffic(0), {"PinholePackets": "0"}),
    (
        "GetPinholePackets",
        {"UniqueID": "9"},
        GetPinholeTraffic(9),
        PinholeTraffic(2**32 + 3),
        {"PinholePackets": "3"},
    ),
    ("CheckPinholeWorking", {"UniqueID": "9"}, GetPinholeTraffic(9), PinholeTraffic(1), {"IsWorking": "1"}),
    (
        "GetOutboundPinholeTimeout",
        {name: text for name, text in PINHOLE.items() if name != "LeaseTime"},
        GetPinholeTimeout(TransportProtocol.TCP),
        PinholeTimeout(432000),
        {"OutboundPinholeTimeout": "432000"},
    ),
]

READY: list[tuple[str, Arguments, Arguments]] = [
    ("SetDefaultConnectionService", {"NewDefaultConnectionService": CONNECTION}, {}),
    ("GetDefaultConnectionService", {}, {"NewDefaultConnectionService": CONNECTION}),
    ("SetConnectionType", {"NewConnectionType": "IP_Routed"}, {}),
    ("GetConnectionTypeInfo", {}, {"NewConnectionType": "IP_Routed", "NewPossibleConnectionTypes": "IP_Routed"}),
    ("RequestConnection", {}, {}),
    ("GetNATRSIPStatus", {}, {"NewRSIPAvailable": "0", "NewNATEnabled": "1"}),
    ("GetAutoDisconnectTime", {}, {"NewAutoDisconnectTime": "0"}),
    ("GetIdleDisconnectTime", {}, {"NewIdleDisconnectTime": "0"}),
    ("GetWarnDisconnectDelay", {}, {"NewWarnDisconnectDelay": "0"}),
    ("GetEnabledForInternet", {}, {"NewEnabledForInternet": "1"}),
    ("GetMaximumActiveConnections", {}, {"NewMaximumActiveConnections": "1"}),
]

FOR_ALL: dict[str, Arguments] = {
    "RequestTermination": {},
    "ForceTermination": {},
    "SetAutoDisconnectTime": {"NewAutoDisconnectTime": "60"},
    "SetIdleDisconnectTime": {"NewIdleDisconnectTime": "60"},
    "SetWarnDisconnectDelay": {"NewWarnDisconnectDelay": "60"},
    "SetEnabledForInternet": {"NewEnabledForInternet": "0"},
}
"""Actions that would change what all peers share."""

SENT = {
    **ADD,
    **LIST,
    **PINHOLE,
    **{name: text for arguments in FOR_ALL.values() for name, text in arguments.items()},
    "NewPortMappingIndex": "1",
    "NewConnectionType": "",
    "NewDefaultConnectionService": "",
    "NewActiveConnectionIndex": "0",
    "UniqueID": "9",
    "NewLeaseTime": "300",
}
"""Each in-argument of each action."""


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("row", ASKING, ids=[row[0] for row in ASKING])
def test_actions_that_ask(row: tuple[str, Arguments, Request, Reply, Arguments], version: int) -> None:
    action, arguments, request, reply, outputs = row
    service, asked = call(action, arguments, version)
    invocation = decode(service, asked, PARTIES)
    assert invocation.request == request
    assert invocation.answer(reply) == outputs


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("action", "arguments", "outputs"), READY, ids=[row[0] for row in READY])
def test_actions_whose_answer_is_ready(action: str, arguments: Arguments, outputs: Arguments, version: int) -> None:
    service, asked = call(action, arguments, version)
    invocation = decode(service, asked, PARTIES)
    assert invocation.request is None
    assert invocation.answer() == outputs


def test_every_action_is_in_these_tables() -> None:
    tested = {row[0] for row in ASKING} | {row[0] for row in READY} | {"GetListOfPortMappings", *FOR_ALL}
    assert tested == {row.name for _, row in ROWS}


@pytest.mark.parametrize(("action", "arguments"), FOR_ALL.items(), ids=FOR_ALL)
def test_one_peer_does_not_change_what_all_share(action: str, arguments: Arguments) -> None:
    service, asked = call(action, arguments)
    with pytest.raises(UPnPError) as refused:
        decode(service, asked, PARTIES)
    assert refused.value.code == 606


@pytest.mark.parametrize(("action", "outputs"), [*((row[0], row[4]) for row in ASKING), *((r[0], r[2]) for r in READY)])
def test_answers_are_what_the_service_document_says(action: str, outputs: Arguments) -> None:
    row = next(row for _, row in ROWS if row.name == action)
    assert list(outputs) == list(row.outputs)
    for name, variable in row.outputs.items():
        assert variable.write(variable.read(name, outputs[name])) == outputs[name]


def test_a_link_that_is_down() -> None:
    down = LinkStatus(
        up=False,
        bits_per_second=0,
        bytes_sent=0,
        bytes_received=0,
        packets_sent=0,
        packets_received=0,
        uptime=0,
    )
    assert answered(call("GetStatusInfo"), down)["NewConnectionStatus"] == "Disconnected"
    assert answered(call("GetCommonLinkProperties"), down)["NewPhysicalLinkStatus"] == "Down"
    with pytest.raises(UPnPError) as none_active:
        answered(call("GetActiveConnection", {"NewActiveConnectionIndex": "0"}), down)
    assert none_active.value.code == 713


@pytest.mark.parametrize("action", [row for _, row in ROWS], ids=lambda action: action.name)
def test_arguments_are_read_as_the_types_that_are_declared(action: Action) -> None:
    inputs = v.read(action.inputs, {name: SENT[name] for name in action.inputs})
    declared = get_type_hints(v.Inputs)
    assert {name: type(value) for name, value in inputs.items()} == {name: declared[name] for name in action.inputs}


# What clients send

TOLERATED: dict[str, tuple[dict[str, str], MapPort]] = {
    "lower-case protocol": ({"NewProtocol": "tcp"}, MAP_PORT),
    "truth in words": ({"NewEnabled": "True"}, MAP_PORT),
    "space around": (
        {"NewExternalPort": " 8043\n", "NewInternalClient": " 10.100.0.9 ", "NewProtocol": "\tTCP"},
        MAP_PORT,
    ),
    "leading zeros": ({"NewExternalPort": "0008043"}, MAP_PORT),
    "a leading plus": ({"NewExternalPort": "+8043"}, MAP_PORT),
    "any remote host, async-upnp-client": ({"NewRemoteHost": "0.0.0.0"}, MAP_PORT),
    "any remote host, IPv6": ({"NewRemoteHost": "::/0"}, MAP_PORT),
    "a protocol's number": ({"NewProtocol": " 6 "}, MAP_PORT),
    "a fraction of zero": ({"NewExternalPort": "8043.0", "NewLeaseDuration": "300.00"}, MAP_PORT),
    "no-break spaces around": ({"NewExternalPort": "\xa08043\xa0", "NewProtocol": "\xa0TCP"}, MAP_PORT),
    "truth in a third word": ({"NewEnabled": "On"}, MAP_PORT),
    "an address with all its bits": ({"NewInternalClient": "10.100.0.9/32"}, MAP_PORT),
    "an address as one of IPv6": ({"NewInternalClient": "::FFFF:10.100.0.9"}, MAP_PORT),
    "an argument twice with one value": ({"newExternalPort": " 8043"}, MAP_PORT),
    "any remote host, a star": ({"NewRemoteHost": "*"}, MAP_PORT),
    "one remote host": (
        {"NewRemoteHost": " 198.51.100.7 "},
        MapPort(TransportProtocol.TCP, MAP_PORT.internal, 8043, 300, "d", remotes=REMOTES),
    ),
    "arguments of its own": ({"NewSomething": "else"}, MAP_PORT),
    "no internal client: the sender": (
        {"NewInternalClient": ""},
        MapPort(TransportProtocol.TCP, Endpoint(SOURCE, 43), 8043, 300, "d"),
    ),
    "truth in another word": ({"NewEnabled": " YES "}, MAP_PORT),
    "empty: enabled": ({"NewEnabled": ""}, MAP_PORT),
    "a lease with spaces and a sign": ({"NewLeaseDuration": " +300 "}, MAP_PORT),
    "an internal port with zeros": ({"NewInternalPort": " 0043"}, MAP_PORT),
    "an empty lease: no end": (
        {"NewLeaseDuration": ""},
        MapPort(TransportProtocol.TCP, MAP_PORT.internal, 8043, ENDLESS, "d"),
    ),
    "a lease of spaces: no end": (
        {"NewLeaseDuration": " \n"},
        MapPort(TransportProtocol.TCP, MAP_PORT.internal, 8043, ENDLESS, "d"),
    ),
    "no end": ({"NewLeaseDuration": "0"}, MapPort(TransportProtocol.TCP, MAP_PORT.internal, 8043, ENDLESS, "d")),
    "the longest lease": (
        {"NewLeaseDuration": "4294967295"},
        MapPort(TransportProtocol.TCP, MAP_PORT.internal, 8043, 4294967295, "d"),
    ),
    "the last port": ({"NewExternalPort": "65535"}, MapPort(TransportProtocol.TCP, MAP_PORT.internal, 65535, 300, "d")),
    "UDP": ({"NewProtocol": "UDP"}, MapPort(TransportProtocol.UDP, MAP_PORT.internal, 8043, 300, "d")),
    "no description": (
        {"NewPortMappingDescription": ""},
        MapPort(TransportProtocol.TCP, MAP_PORT.internal, 8043, 300, ""),
    ),
    "the longest description": (
        {"NewPortMappingDescription": "é" * 256},
        MapPort(TransportProtocol.TCP, MAP_PORT.internal, 8043, 300, "é" * 256),
    ),
}


@pytest.mark.parametrize(("changed", "request_"), TOLERATED.values(), ids=TOLERATED)
def test_what_clients_send_is_understood(changed: dict[str, str], request_: MapPort) -> None:
    service, asked = call("AddPortMapping", ADD | changed)
    assert decode(service, asked, PARTIES).request == request_


@pytest.mark.parametrize(
    "write", [str.lower, str.upper, lambda name: name.removeprefix("New"), lambda name: f"new{name[3:]}"]
)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_names_in_any_case_and_without_new(write: Callable[[str], str], spell: Callable[[str], str]) -> None:
    remote = ADD | {"NewRemoteHost": "198.51.100.7"}
    service, asked = call("AddPortMapping", {write(name): value for name, value in remote.items()})
    invocation = decode(service, replace(asked, action=spell(asked.action)), PARTIES)
    assert invocation.request == replace(MAP_PORT, remotes=REMOTES)
    assert invocation.name == "AddPortMapping"


@pytest.mark.parametrize("service", ACTIONS)
def test_no_two_names_differ_in_case_or_new_alone(service: Service) -> None:
    rows = ACTIONS[service]
    assert len({row.name.lower() for row in rows}) == len(rows)
    for row in rows:
        assert len({name.lower().removeprefix("new") for name in row.inputs}) == len(row.inputs)


LEFT_OUT = {
    "NewRemoteHost": MAP_PORT,
    "NewEnabled": MAP_PORT,
    "NewPortMappingDescription": replace(MAP_PORT, description=""),
    "NewLeaseDuration": replace(MAP_PORT, lifetime=ENDLESS),
    "NewInternalClient": replace(MAP_PORT, internal=Endpoint(SOURCE, 43)),
}


@pytest.mark.parametrize("action", ["AddPortMapping", "AddAnyPortMapping"])
@pytest.mark.parametrize(("name", "request_"), LEFT_OUT.items(), ids=LEFT_OUT)
def test_an_argument_that_is_left_out_has_its_default(action: str, name: str, request_: MapPort) -> None:
    service, asked = call(action, {key: value for key, value in ADD.items() if key != name})
    assert decode(service, asked, PARTIES).request == replace(request_, any_port=action == "AddAnyPortMapping")


def test_only_ports_and_protocol_are_needed() -> None:
    needed = {name: value for name, value in ADD.items() if name not in LEFT_OUT}
    assert list(needed) == ["NewExternalPort", "NewProtocol", "NewInternalPort"]
    service, asked = call("AddPortMapping", needed)
    assert decode(service, asked, PARTIES).request == MapPort(
        TransportProtocol.TCP, Endpoint(SOURCE, 43), 8043, ENDLESS
    )


@pytest.mark.parametrize(("row", "left_out"), [
    (next(row for row in ASKING if row[0] == name), left_out)
    for name, left_out in (
        ("DeletePortMapping", "NewRemoteHost"),
        ("GetSpecificPortMappingEntry", "NewRemoteHost"),
        ("DeletePortMappingRange", "NewManage"),
    )
])  # fmt: skip
def test_other_actions_have_the_same_defaults(
    row: tuple[str, Arguments, Request, Reply, Arguments], left_out: str
) -> None:
    action, arguments, request, *_ = row
    for changed in ({left_out: ""}, {}):
        sent = {name: value for name, value in arguments.items() if name != left_out} | changed
        service, asked = call(action, sent)
        assert decode(service, asked, PARTIES).request == request


OVER_IPV6: dict[str, tuple[tuple[str, ...], str | None]] = {
    "the only IPv4 address": (("10.100.0.2", "2001:db8::2"), "10.100.0.2"),
    "no IPv4 address": (("2001:db8::2",), None),
    "two IPv4 addresses": (("10.100.0.2", "10.100.0.3", "2001:db8::2"), None),
    "one that is no host's": (("169.254.0.2", "10.100.0.2", "2001:db8::2"), "10.100.0.2"),
}
"""A peer's single addresses, and the one that a call over IPv6 means that names none."""


@pytest.mark.parametrize("action", ["AddPortMapping", "AddAnyPortMapping"])
@pytest.mark.parametrize(("addresses", "meant"), OVER_IPV6.values(), ids=OVER_IPV6)
def test_over_ipv6_an_empty_internal_client_is_the_peers_only_ipv4_address(
    action: str, addresses: tuple[str, ...], meant: str | None
) -> None:
    parties = Parties(IPv6Address("2001:db8::2"), PARTIES.root, tuple(map(ip_address, addresses)))
    service, asked = call(action, ADD | {"NewInternalClient": " "})
    if meant is None:
        with pytest.raises(UPnPError, match="NewInternalClient is required in a call over IPv6") as refused:
            decode(service, asked, parties)
        assert refused.value.code == 402
    else:
        request = decode(service, asked, parties).request
        assert isinstance(request, MapPort)
        assert request.internal == Endpoint(IPv4Address(meant), 43)


def test_over_ipv6_an_internal_client_is_taken_as_it_is() -> None:
    service, asked = call("AddPortMapping", ADD)
    assert decode(service, asked, Parties(IPv6Address("2001:db8::2"), PARTIES.root)).request == MAP_PORT


def test_any_port_leaves_the_choice_to_the_gateway() -> None:
    service, asked = call("AddAnyPortMapping", ADD | {"NewExternalPort": "0"})
    assert decode(service, asked, PARTIES).request == MapPort(
        TransportProtocol.TCP, MAP_PORT.internal, None, 300, "d", any_port=True
    )


WRONG: dict[str, tuple[str, dict[str, str], int]] = {
    "SCTP": ("AddPortMapping", ADD | {"NewProtocol": "SCTP"}, 601),
    "another protocol's number": ("AddPortMapping", ADD | {"NewProtocol": "132"}, 601),
    "a protocol's number with a zero": ("AddPortMapping", ADD | {"NewProtocol": "06"}, 601),
    "no protocol": ("DeletePortMapping", KEY | {"NewProtocol": ""}, 601),
    "port 65536": ("AddPortMapping", ADD | {"NewExternalPort": "65536"}, 601),
    "port 65537": ("AddPortMapping", ADD | {"NewExternalPort": "65537"}, 601),
    "port -1": ("AddPortMapping", ADD | {"NewExternalPort": "-1"}, 601),
    "a port of very many digits": ("AddPortMapping", ADD | {"NewExternalPort": "9" * 9000}, 601),
    "port 0": ("AddPortMapping", ADD | {"NewExternalPort": "0"}, 716),
    "no port": ("AddPortMapping", ADD | {"NewExternalPort": ""}, 402),
    "half a port": ("AddPortMapping", ADD | {"NewExternalPort": "80.5"}, 402),
    "a hexadecimal port": ("AddPortMapping", ADD | {"NewExternalPort": "0x50"}, 402),
    "digits of another script": ("AddPortMapping", ADD | {"NewExternalPort": "٨٠"}, 402),
    "internal port 0": ("AddPortMapping", ADD | {"NewInternalPort": "0"}, 732),
    "any port, internal port 0": ("AddAnyPortMapping", ADD | {"NewInternalPort": "0"}, 732),
    "internal port 65537": ("AddPortMapping", ADD | {"NewInternalPort": "65537"}, 601),
    "not enabled": ("AddPortMapping", ADD | {"NewEnabled": "0"}, 600),
    "perhaps enabled": ("AddPortMapping", ADD | {"NewEnabled": "2"}, 402),
    "a remote host's name": ("AddPortMapping", ADD | {"NewRemoteHost": "example.org"}, 600),
    "any port, a remote host's name": ("AddAnyPortMapping", ADD | {"NewRemoteHost": "example.org"}, 600),
    "a remote network": ("AddPortMapping", ADD | {"NewRemoteHost": "198.51.100.0/24"}, 600),
    "deleting for a remote host's name": ("DeletePortMapping", KEY | {"NewRemoteHost": "example.org"}, 600),
    "deleting port 0": ("DeletePortMapping", KEY | {"NewExternalPort": "0"}, 714),
    "a host's name": ("AddPortMapping", ADD | {"NewInternalClient": "localhost"}, 600),
    "an IPv6 address": ("AddPortMapping", ADD | {"NewInternalClient": "fd00::2"}, 600),
    "a long description": ("AddPortMapping", ADD | {"NewPortMappingDescription": "x" * 257}, 605),
    "a lease below zero": ("AddPortMapping", ADD | {"NewLeaseDuration": "-1"}, 601),
    "a lease of 2^32": ("AddPortMapping", ADD | {"NewLeaseDuration": "4294967296"}, 601),
    "a lease with a unit": ("AddPortMapping", ADD | {"NewLeaseDuration": "300s"}, 402),
    "a lease in words": ("AddPortMapping", ADD | {"NewLeaseDuration": "infinite"}, 402),
    "a lease with a fraction": ("AddPortMapping", ADD | {"NewLeaseDuration": "300.5"}, 402),
    "not enabled, in a word": ("AddPortMapping", ADD | {"NewEnabled": "False"}, 600),
    "not enabled, in another word": ("AddPortMapping", ADD | {"NewEnabled": "off"}, 600),
    "enabled in a number": ("AddPortMapping", ADD | {"NewEnabled": "01"}, 402),
    "an address that may be octal": ("AddPortMapping", ADD | {"NewInternalClient": "10.100.000.009"}, 600),
    "a remote address that may be octal": ("AddPortMapping", ADD | {"NewRemoteHost": "198.051.100.7"}, 600),
    "a network of one host, with too many bits": ("AddPortMapping", ADD | {"NewRemoteHost": "198.51.100.7/33"}, 600),
    "the one host 0.0.0.0": ("AddPortMapping", ADD | {"NewRemoteHost": "0.0.0.0/32"}, 600),
    "a network of IPv6": ("AddPortMapping", ADD | {"NewRemoteHost": "::ffff:198.51.100.7/32"}, 600),
    "an address with a zone": ("AddPortMapping", ADD | {"NewInternalClient": "10.100.0.9%wg0"}, 600),
    "an address in brackets": ("AddPortMapping", ADD | {"NewInternalClient": "[10.100.0.9]"}, 600),
    "an address of three numbers": ("AddPortMapping", ADD | {"NewInternalClient": "10.100.9"}, 600),
    "a port in quotes": ("AddPortMapping", ADD | {"NewExternalPort": '"8043"'}, 402),
    "a port with a comma": ("AddPortMapping", ADD | {"NewExternalPort": "8,043"}, 402),
    "a port with an exponent": ("AddPortMapping", ADD | {"NewExternalPort": "8e3"}, 402),
    "a port with a dot": ("AddPortMapping", ADD | {"NewExternalPort": "8043."}, 402),
    "a port with a replaced character": ("AddPortMapping", ADD | {"NewExternalPort": "8043\ufffd"}, 402),
    "a port twice": ("AddPortMapping", ADD | {"newExternalPort": "8044"}, 402),
    "a port twice, once without New": ("AddPortMapping", ADD | {"ExternalPort": "8044"}, 402),
    "a remote host twice": ("AddPortMapping", ADD | {"NEWREMOTEHOST": "198.51.100.7"}, 402),
    "both protocols": ("AddPortMapping", ADD | {"NewProtocol": "TCP/UDP"}, 601),
    "two ports": ("AddPortMapping", ADD | {"NewExternalPort": "8043 8044"}, 402),
    "a range of ports": ("AddPortMapping", ADD | {"NewExternalPort": "8043-8044"}, 402),
    "no internal port": ("AddPortMapping", ADD | {"NewInternalPort": " "}, 402),
    "any port, no port": ("AddAnyPortMapping", ADD | {"NewExternalPort": ""}, 402),
    "two remote hosts": ("AddPortMapping", ADD | {"NewRemoteHost": "198.51.100.7, 198.51.100.8"}, 600),
    "an internal client with a port": ("AddPortMapping", ADD | {"NewInternalClient": "10.100.0.9:43"}, 600),
    "a backward range": ("DeletePortMappingRange", RANGE | {"NewStartPort": "9001"}, 733),
    "a backward list": ("GetListOfPortMappings", LIST | {"NewStartPort": "9001"}, 733),
    "a range that is managed perhaps": ("DeletePortMappingRange", RANGE | {"NewManage": "2"}, 402),
    "index -1": ("GetGenericPortMappingEntry", {"NewPortMappingIndex": "-1"}, 601),
    "another connection type": ("SetConnectionType", {"NewConnectionType": "IP_Bridged"}, 731),
    "a UniqueID of 65536": ("DeletePinhole", {"UniqueID": "65536"}, 601),
    "a UniqueID that is none": ("UpdatePinhole", {"UniqueID": "x", "NewLeaseTime": "300"}, 402),
    "another connection": ("SetDefaultConnectionService", {"NewDefaultConnectionService": "x"}, 723),
}


@pytest.mark.parametrize(("action", "arguments", "code"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(action: str, arguments: dict[str, str], code: int) -> None:
    service, asked = call(action, arguments)
    with pytest.raises(UPnPError) as caught:
        decode(service, asked, PARTIES)
    assert caught.value.code == code


NEEDED = [(row, name) for _, row in ROWS for name in row.inputs if name not in v.DEFAULTS]


@pytest.mark.parametrize(("action", "missing"), NEEDED, ids=[f"{row.name} without {name}" for row, name in NEEDED])
def test_a_missing_argument_is_402_and_named(action: Action, missing: str) -> None:
    arguments = {name: SENT[name] for name in action.inputs if name != missing}
    service, asked = call(action.name, arguments)
    with pytest.raises(UPnPError, match=missing) as caught:
        decode(service, asked, PARTIES)
    assert caught.value.code == 402


UNKNOWN = [
    (WAN_IP_CONNECTION, WAN_IP_CONNECTION.urn(1), "Reboot"),
    (WAN_IP_CONNECTION, "urn:schemas-upnp-org:service:WANIPConnection:3", "GetExternalIPAddress"),
    (WAN_IP_CONNECTION, "urn:schemas-upnp-org:service:WANPPPConnection:1", "GetExternalIPAddress"),
    (WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION.urn(1), "GetExternalIPAddress"),
    (LAYER3_FORWARDING, LAYER3_FORWARDING.urn(1), "GetExternalIPAddress"),
    (WAN_IP_CONNECTION, WAN_IPV6_FIREWALL_CONTROL.urn(1), "AddPinhole"),
    (WAN_IPV6_FIREWALL_CONTROL, WAN_IPV6_FIREWALL_CONTROL.urn(1), "GetWANAccessProvider"),
]


def test_an_optional_action_without_an_answer_is_602() -> None:
    service = WAN_COMMON_INTERFACE_CONFIG
    with pytest.raises(UPnPError) as caught:
        decode(service, Call(service.urn(1), "GetWANAccessProvider", {}), PARTIES)
    assert caught.value.code == 602


@pytest.mark.parametrize(("service", "service_type", "action"), UNKNOWN)
def test_an_action_that_the_service_does_not_have_is_401(service: Service, service_type: str, action: str) -> None:
    with pytest.raises(UPnPError) as caught:
        decode(service, Call(service_type, action, {}), PARTIES)
    assert caught.value.code == 401


# Refusals

CODES: Mapping[Refusal, int] = {
    Refusal.NOT_A_PEER: 606,
    Refusal.NOT_YOUR_ADDRESS: 606,
    Refusal.PROTOCOL_FORBIDDEN: 606,
    Refusal.STATIC: 606,
    Refusal.FORBIDDEN: 606,
    Refusal.NO_PINHOLES: 606,
    Refusal.CONFLICT: 718,
    Refusal.OTHER_NONCE: 718,
    Refusal.TOO_MANY_REMOTES: 501,
    Refusal.QUOTA: 728,
    Refusal.NO_FREE_PORT: 728,
    Refusal.TOO_MANY_REQUESTS: 501,
    Refusal.NO_SUCH_MAPPING: 714,
    Refusal.NO_EXTERNAL_ADDRESS: 501,
    Refusal.SYSTEM_FAILURE: 501,
}


@pytest.mark.parametrize("reason", Refusal)
def test_refusals(reason: Refusal) -> None:
    with pytest.raises(UPnPError, match=reason.value) as caught:
        answered(call("AddPortMapping", ADD), reason)
    assert caught.value.code == CODES[reason]


def test_every_refusal_has_a_code() -> None:
    for _, row in ROWS:
        assert set(row.refusals) == set(Refusal)


PINHOLE_CODES: Mapping[Refusal, int] = {
    **CODES,
    Refusal.NO_PINHOLES: 703,
    Refusal.CONFLICT: 501,
    Refusal.OTHER_NONCE: 501,
    Refusal.TOO_MANY_REMOTES: 701,
    Refusal.QUOTA: 701,
    Refusal.NO_FREE_PORT: 701,
    Refusal.NO_SUCH_MAPPING: 704,
}


@pytest.mark.parametrize("row", [row for service, row in ROWS if service is WAN_IPV6_FIREWALL_CONTROL and row.inputs])
@pytest.mark.parametrize("reason", Refusal)
def test_refusals_of_pinholes(row: Action, reason: Refusal) -> None:
    """702 is never sent, nor are codes of WANIPConnection."""
    arguments = PINHOLE | {"UniqueID": "9", "NewLeaseTime": "300"}
    with pytest.raises(UPnPError, match=reason.value) as caught:
        answered(call(row.name, arguments), reason)
    assert caught.value.code == PINHOLE_CODES[reason]


def test_nothing_in_a_range_is_730() -> None:
    with pytest.raises(UPnPError) as caught:
        answered(call("DeletePortMappingRange", RANGE), Refusal.NO_SUCH_MAPPING)
    assert caught.value.code == 730


# Lists


@pytest.mark.parametrize("index", ["1", "65535"])
def test_beyond_the_only_connection_is_713(index: str) -> None:
    with pytest.raises(UPnPError) as caught:
        answered(call("GetActiveConnection", {"NewActiveConnectionIndex": index}), LINK)
    assert caught.value.code == 713


def test_beyond_the_last_entry_is_713() -> None:
    with pytest.raises(UPnPError) as caught:
        answered(call("GetGenericPortMappingEntry", {"NewPortMappingIndex": "4"}), Refusal.NO_SUCH_MAPPING)
    assert caught.value.code == 713


def listed(reply: MappingList) -> tuple[Element, ...]:
    service, asked = call("GetListOfPortMappings", LIST)
    ((name, listing),) = decode(service, asked, PARTIES).answer(reply).items()
    response = parse(b"".join(soap.encode_listing(asked, name, [listing.encode()])))
    (written,) = response.children[0].children[0].children
    assert written.name == "NewPortListing"
    assert written.text == listing
    return parse(listing.encode()).children


@pytest.mark.parametrize(
    ("changed", "request_"),
    [
        ({}, ListMappings(TransportProtocol.TCP, range(8000, 9001))),
        ({"NewNumberOfPorts": "1"}, ListMappings(TransportProtocol.TCP, range(8000, 9001), 1)),
        ({"NewNumberOfPorts": "", "NewManage": ""}, ListMappings(TransportProtocol.TCP, range(8000, 9001))),
        ({"NewProtocol": "udp"}, ListMappings(TransportProtocol.UDP, range(8000, 9001))),
        ({"NewStartPort": "0", "NewEndPort": "65535"}, ListMappings(TransportProtocol.TCP, range(65536))),
        ({"NewStartPort": "9001", "NewEndPort": "9001"}, ListMappings(TransportProtocol.TCP, range(9001, 9002))),
    ],
)
def test_a_list_asks_for_what_is_in_its_range(changed: dict[str, str], request_: ListMappings) -> None:
    service, asked = call("GetListOfPortMappings", LIST | changed)
    assert decode(service, asked, PARTIES).request == request_


def test_a_list_in_pieces_is_the_list() -> None:
    service, asked = call("GetListOfPortMappings", LIST)
    invocation = decode(service, asked, PARTIES)
    whole, *pieces = (
        invocation.answer(MappingList(each))["NewPortListing"]
        for each in (MAPPINGS.mappings, MAPPINGS.mappings[:1], MAPPINGS.mappings[1:3], MAPPINGS.mappings[3:])
    )
    begin, entries, end = split_listing(whole)
    assert begin + entries + end == whole
    assert [split_listing(piece)[0] for piece in pieces] == [begin] * 3
    assert "".join(split_listing(piece)[1] for piece in pieces) == entries
    assert [entry.children[1].text for entry in listed(MAPPINGS)] == ["8043", "8044", "9000", "9001"]


def test_an_entry_of_a_list() -> None:
    (entry,) = listed(MappingList((mapped(8043, description="]]>&<é listing"),)))
    assert {field.name: field.text for field in entry.children} == {
        "NewRemoteHost": "",
        "NewExternalPort": "8043",
        "NewProtocol": "TCP",
        "NewInternalPort": "43",
        "NewInternalClient": "10.100.0.9",
        "NewEnabled": "1",
        "NewDescription": "]]>&<é listing",
        "NewLeaseTime": "299",
    }
    assert {field.namespace for field in entry.children} == {"urn:schemas-upnp-org:gw:WANIPConnection"}


def test_a_list_is_written_as_cdata_which_miniupnpc_needs() -> None:
    called = call("GetListOfPortMappings", LIST)
    ((name, listing),) = answered(called, MAPPINGS).items()
    response = b"".join(soap.encode_listing(called[1], name, [listing.encode()]))
    assert b"<NewPortListing><![CDATA[<p:PortMappingList " in response


def test_an_empty_list_is_730() -> None:
    with pytest.raises(UPnPError) as caught:
        listed(MappingList(()))
    assert caught.value.code == 730


# Properties

XML_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff").filter(
    lambda character: character >= " " or character in "\t\n\r"), max_size=256)  # fmt: skip


@given(XML_TEXT)
def test_a_description_comes_back_as_it_was_sent(description: str) -> None:
    service, asked = call("AddPortMapping", ADD | {"NewPortMappingDescription": description})
    body = soap.encode_response(Call(asked.service_type, "X", {}), asked.arguments).replace(
        b"XResponse", b"AddPortMapping"
    )
    request = decode(service, soap.decode(f"{asked.service_type}#AddPortMapping", body), PARTIES).request
    assert isinstance(request, MapPort)
    called = call("GetSpecificPortMappingEntry", KEY)
    outputs = answered(called, mapped(8043, description=request.description))
    answer = soap.encode_response(called[1], outputs)
    header = f"{called[1].service_type}#GetSpecificPortMappingEntryResponse"
    assert soap.decode(header, answer).arguments["NewPortMappingDescription"] == description


@given(st.sampled_from(ROWS), st.data())
def test_any_arguments_are_decoded_or_an_error(row: tuple[Service, Action], data: st.DataObject) -> None:
    service, action = row
    text = st.one_of(st.text(), st.integers().map(str), st.sampled_from([*ADD.values(), *LIST.values()]))
    arguments = data.draw(st.fixed_dictionaries(dict.fromkeys(action.inputs, text)))
    try:
        decode(service, Call(service.urn(2), action.name, arguments), PARTIES)
    except UPnPError as error:
        code = error.code
    else:
        return
    assert code in {402, 600, 601, 605, 606, 705, 706, 707, 714, 716, 723, 726, 731, 732, 733}
