"""The table of actions: what each takes and gives, the request that it becomes, and the answer that a reply becomes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

from igd.core.request import (
    GetExternalAddress,
    GetLinkStatus,
    LinkStatus,
    ListMappings,
    Refusal,
    Refused,
    Reply,
    Request,
    UnmapPorts,
)
from igd.wire.upnp import requests
from igd.wire.upnp import variables as v
from igd.wire.upnp.devices import (
    LAYER3_FORWARDING,
    VERSIONS,
    WAN_COMMON_INTERFACE_CONFIG,
    WAN_CONNECTION_DEVICE,
    WAN_IP_CONNECTION,
    Service,
    udn,
)
from igd.wire.upnp.soap import Arguments, Call, UPnPError


@dataclass(frozen=True, slots=True)
class Parties:
    """Who asks (the packet's source), and whom (the root device's uuid)."""

    source: IPv4Address
    root: UUID


REFUSALS: dict[Refusal, tuple[int, str]] = {
    Refusal.NOT_A_PEER: (606, "Action not authorized"),
    Refusal.NOT_YOUR_ADDRESS: (606, "Action not authorized"),
    Refusal.FORBIDDEN: (606, "Action not authorized"),
    # The only one, with 501, on which libtorrent tries again.
    Refusal.CONFLICT: (718, "ConflictInMappingEntry"),
    Refusal.OTHER_NONCE: (718, "ConflictInMappingEntry"),
    Refusal.TOO_MANY_REMOTES: (501, "Action Failed"),
    Refusal.QUOTA: (728, "NoPortMapsAvailable"),
    Refusal.NO_FREE_PORT: (728, "NoPortMapsAvailable"),
    Refusal.TOO_MANY_REQUESTS: (501, "Action Failed"),
    Refusal.NO_SUCH_MAPPING: (714, "NoSuchEntryInArray"),
    Refusal.NO_EXTERNAL_ADDRESS: (501, "Action Failed"),
    Refusal.SYSTEM_FAILURE: (501, "Action Failed"),
}
"""The general codes are of UPnP Device Architecture §3.2.5, those from 700 of WANIPConnection:2."""

RANGE_REFUSALS = REFUSALS | {Refusal.NO_SUCH_MAPPING: (730, "PortMappingNotFound")}
"""The actions on a range of ports have a code of their own for finding nothing in it."""


def _no_outputs(_reply: Reply, _inputs: Arguments) -> Arguments:
    return {}


@dataclass(frozen=True, slots=True)
class Action:
    """One action: `decode` gives the request, or the outputs where no request is needed, or raises a UPnPError.

    `encode` is given the reply to that request, unless it is a refusal; `since` is the version of the service that
    brought the action.
    """

    service: Service
    name: str
    inputs: Mapping[str, v.Variable]
    outputs: Mapping[str, v.Variable]
    decode: Callable[[Arguments, Parties], Request | Arguments]
    encode: Callable[[Any, Arguments], Arguments] = _no_outputs
    refusals: Mapping[Refusal, tuple[int, str]] = field(default_factory=lambda: REFUSALS)
    since: int = 1


def decode(service: Service, call: Call, parties: Parties) -> Request | Arguments:
    """Turn what was sent to the control URL of `service` into a request, or at once into the outputs of the answer.

    Raise a UPnPError where the standard wants one. Arguments that the action does not know are passed over.
    """
    action = _BY_CALL.get((call.service_type, call.action))
    if action is None or action.service is not service:
        raise UPnPError(401, "Invalid Action")
    return action.decode(_inputs(action, call), parties)


def encode(call: Call, reply: Reply) -> Arguments:
    """Give the outputs that answer `call`, which was decoded, or raise the UPnPError that a refusal becomes."""
    action = _BY_CALL[call.service_type, call.action]
    if isinstance(reply, Refused):
        code, name = action.refusals[reply.reason]
        raise UPnPError(code, f"{name}: {reply.reason.value}")
    return action.encode(reply, _inputs(action, call))


def _inputs(action: Action, call: Call) -> Arguments:
    missing = [name for name in action.inputs if name not in call.arguments]
    if missing:
        raise UPnPError(402, f"Invalid Args: {', '.join(missing)} missing")
    return {name: variable.read(name, call.arguments[name]) for name, variable in action.inputs.items()}


# The connection and the link


def _set_connection_type(inputs: Arguments, _parties: Parties) -> Arguments:
    if inputs["NewConnectionType"] != "IP_Routed":
        raise UPnPError(731, "ReadOnly: the connection is IP_Routed")
    return {}


def _force_termination(_inputs: Arguments, _parties: Parties) -> Arguments:
    """One peer must not cut the uplink of all."""
    raise UPnPError(606, "Action not authorized")


def _status_outputs(link: LinkStatus, _inputs: Arguments) -> Arguments:
    return {
        "NewConnectionStatus": "Connected" if link.up else "Disconnected",
        "NewLastConnectionError": "ERROR_NONE",
        "NewUptime": _ui4(link.uptime),
    }


def _link_outputs(link: LinkStatus, _inputs: Arguments) -> Arguments:
    speed = str(min(link.bits_per_second, 2**32 - 1))
    return {
        "NewWANAccessType": "Ethernet",
        "NewLayer1UpstreamMaxBitRate": speed,
        "NewLayer1DownstreamMaxBitRate": speed,
        "NewPhysicalLinkStatus": "Up" if link.up else "Down",
    }


def _ui4(count: int) -> str:
    """Counters of type ui4 start again from 0 beyond their largest value."""
    return str(count % 2**32)


def _counter(what: str, read: Callable[[LinkStatus], int]) -> Action:
    """Give the row of one counter (`BytesSent`)."""
    return Action(
        WAN_COMMON_INTERFACE_CONFIG,
        f"GetTotal{what}",
        {},
        {f"NewTotal{what}": v.total(what)},
        lambda _inputs, _parties: GetLinkStatus(),
        lambda link, _inputs: {f"NewTotal{what}": _ui4(read(link))},
    )


def _default_connection(parties: Parties) -> str:
    """Give the value of DefaultConnectionService: the connection device and the service, with a comma between them."""
    device = udn(WAN_CONNECTION_DEVICE, parties.root)
    return f"{device}:{WAN_CONNECTION_DEVICE.name}:1,{WAN_IP_CONNECTION.urn_id}"


def _set_default_connection(inputs: Arguments, parties: Parties) -> Arguments:
    """There is one connection: choosing it changes nothing, and no other can be chosen (723)."""
    if inputs["NewDefaultConnectionService"].strip() != _default_connection(parties):
        raise UPnPError(723, "InvalidConnServiceSelection")
    return {}


_KEY = {"NewRemoteHost": v.REMOTE_HOST, "NewExternalPort": v.EXTERNAL_PORT, "NewProtocol": v.PROTOCOL}
_VALUE = {
    "NewInternalPort": v.INTERNAL_PORT,
    "NewInternalClient": v.INTERNAL_CLIENT,
    "NewEnabled": v.ENABLED,
    "NewPortMappingDescription": v.DESCRIPTION,
    "NewLeaseDuration": v.LEASE_DURATION,
}
_RANGE = {
    "NewStartPort": v.EXTERNAL_PORT,
    "NewEndPort": v.EXTERNAL_PORT,
    "NewProtocol": v.PROTOCOL,
    "NewManage": v.MANAGE,  # to see the mappings of others too: nobody may, so it changes nothing
}
_DEFAULT_CONNECTION = {"NewDefaultConnectionService": v.DEFAULT_CONNECTION_SERVICE}

ACTIONS = (
    Action(LAYER3_FORWARDING, "SetDefaultConnectionService", _DEFAULT_CONNECTION, {}, _set_default_connection),
    Action(
        LAYER3_FORWARDING,
        "GetDefaultConnectionService",
        {},
        _DEFAULT_CONNECTION,
        lambda _inputs, parties: {"NewDefaultConnectionService": _default_connection(parties)},
    ),
    Action(
        WAN_COMMON_INTERFACE_CONFIG,
        "GetCommonLinkProperties",
        {},
        {
            "NewWANAccessType": v.WAN_ACCESS_TYPE,
            "NewLayer1UpstreamMaxBitRate": v.UPSTREAM_MAX_BIT_RATE,
            "NewLayer1DownstreamMaxBitRate": v.DOWNSTREAM_MAX_BIT_RATE,
            "NewPhysicalLinkStatus": v.PHYSICAL_LINK_STATUS,
        },
        lambda _inputs, _parties: GetLinkStatus(),
        _link_outputs,
    ),
    _counter("BytesSent", lambda link: link.bytes_sent),
    _counter("BytesReceived", lambda link: link.bytes_received),
    _counter("PacketsSent", lambda link: link.packets_sent),
    _counter("PacketsReceived", lambda link: link.packets_received),
    Action(WAN_IP_CONNECTION, "SetConnectionType", {"NewConnectionType": v.CONNECTION_TYPE}, {}, _set_connection_type),
    Action(
        WAN_IP_CONNECTION,
        "GetConnectionTypeInfo",
        {},
        {"NewConnectionType": v.CONNECTION_TYPE, "NewPossibleConnectionTypes": v.POSSIBLE_CONNECTION_TYPES},
        lambda _inputs, _parties: {"NewConnectionType": "IP_Routed", "NewPossibleConnectionTypes": "IP_Routed"},
    ),
    Action(WAN_IP_CONNECTION, "RequestConnection", {}, {}, lambda _inputs, _parties: {}),
    Action(WAN_IP_CONNECTION, "ForceTermination", {}, {}, _force_termination),
    Action(
        WAN_IP_CONNECTION,
        "GetStatusInfo",
        {},
        {
            "NewConnectionStatus": v.CONNECTION_STATUS,
            "NewLastConnectionError": v.LAST_CONNECTION_ERROR,
            "NewUptime": v.UPTIME,
        },
        lambda _inputs, _parties: GetLinkStatus(),
        _status_outputs,
    ),
    Action(
        WAN_IP_CONNECTION,
        "GetNATRSIPStatus",
        {},
        {"NewRSIPAvailable": v.RSIP_AVAILABLE, "NewNATEnabled": v.NAT_ENABLED},
        lambda _inputs, _parties: {"NewRSIPAvailable": "0", "NewNATEnabled": "1"},
    ),
    Action(
        WAN_IP_CONNECTION,
        "GetGenericPortMappingEntry",
        {"NewPortMappingIndex": v.NUMBER_OF_ENTRIES},
        _KEY | _VALUE,
        lambda _inputs, _parties: ListMappings(),
        requests.entry_at_index,
    ),
    Action(
        WAN_IP_CONNECTION,
        "GetSpecificPortMappingEntry",
        _KEY,
        _VALUE,
        lambda inputs, _parties: requests.get(inputs),
        lambda mapped, _inputs: requests.value_outputs(mapped),
    ),
    Action(
        WAN_IP_CONNECTION,
        "AddPortMapping",
        _KEY | _VALUE,
        {},
        lambda inputs, parties: requests.add(inputs, parties.source),
    ),
    Action(
        WAN_IP_CONNECTION,
        "DeletePortMapping",
        _KEY,
        {},
        lambda inputs, _parties: requests.delete(inputs),
    ),
    Action(
        WAN_IP_CONNECTION,
        "GetExternalIPAddress",
        {},
        {"NewExternalIPAddress": v.EXTERNAL_ADDRESS},
        lambda _inputs, _parties: GetExternalAddress(),
        lambda external, _inputs: {"NewExternalIPAddress": str(external.address)},
    ),
    Action(
        WAN_IP_CONNECTION,
        "DeletePortMappingRange",
        _RANGE,
        {},
        lambda inputs, _parties: UnmapPorts(*requests.ports(inputs)),
        refusals=RANGE_REFUSALS,
        since=2,
    ),
    Action(
        WAN_IP_CONNECTION,
        "GetListOfPortMappings",
        _RANGE | {"NewNumberOfPorts": v.NUMBER_OF_ENTRIES},
        {"NewPortListing": v.PORT_LISTING},
        lambda inputs, _parties: requests.ports(inputs) and ListMappings(),
        requests.listing,
        since=2,
    ),
    Action(
        WAN_IP_CONNECTION,
        "AddAnyPortMapping",
        _KEY | _VALUE,
        {"NewReservedPort": v.EXTERNAL_PORT},
        lambda inputs, parties: requests.add_any(inputs, parties.source),
        lambda mapped, _inputs: {"NewReservedPort": str(mapped.mapping.external_port)},
        since=2,
    ),
)
"""The required actions of each service, in the order of the standards; those of version 2 behind those of 1."""

_BY_CALL = {(action.service.urn(version), action.name): action for action in ACTIONS for version in VERSIONS}
"""Every action is accepted under every version: `upnpc -n` asks WANIPConnection:1 for AddAnyPortMapping."""
