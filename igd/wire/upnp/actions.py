"""The table of actions: the arguments of each, and how it is answered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from igd.core.request import Refusal, Reply, Request
from igd.wire.upnp import pinholes, requests, state
from igd.wire.upnp import variables as v
from igd.wire.upnp.devices import (
    LAYER3_FORWARDING,
    VERSIONS,
    WAN_COMMON_INTERFACE_CONFIG,
    WAN_IP_CONNECTION,
    WAN_IPV6_FIREWALL_CONTROL,
    Service,
)
from igd.wire.upnp.requests import KEY, VALUE, Decoder, Parties, Values
from igd.wire.upnp.soap import CONTROL, Arguments, Call, UPnPError

REFUSALS: dict[Refusal, tuple[int, str]] = {
    Refusal.NOT_A_PEER: (606, "Action not authorized"),
    Refusal.NOT_YOUR_ADDRESS: (606, "Action not authorized"),
    Refusal.PROTOCOL_FORBIDDEN: (606, "Action not authorized"),
    Refusal.FORBIDDEN: (606, "Action not authorized"),
    Refusal.NO_PINHOLES: (606, "Action not authorized"),
    Refusal.STATIC: (606, "Action not authorized"),
    # Besides 501, the only code on which libtorrent tries again.
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
"""The general codes are those of UPnP Device Architecture §3.2.5, those from 700 on of WANIPConnection:2."""

INDEX_REFUSALS = REFUSALS | {Refusal.NO_SUCH_MAPPING: (713, "SpecifiedArrayIndexInvalid")}
"""Beyond the last index, 713 tells clients that the list has ended."""

RANGE_REFUSALS = REFUSALS | {Refusal.NO_SUCH_MAPPING: (730, "PortMappingNotFound")}
"""Actions on a range of ports have their own code for an empty range."""

PINHOLE_REFUSALS = REFUSALS | {
    Refusal.NO_PINHOLES: (703, "InboundPinholeNotAllowed"),
    Refusal.CONFLICT: (501, "Action Failed"),
    Refusal.OTHER_NONCE: (501, "Action Failed"),
    Refusal.TOO_MANY_REMOTES: (701, "PinholeSpaceExhausted"),
    Refusal.QUOTA: (701, "PinholeSpaceExhausted"),
    Refusal.NO_FREE_PORT: (701, "PinholeSpaceExhausted"),
    Refusal.NO_SUCH_MAPPING: (704, "NoSuchEntry"),
}
"""From 700 on, the codes of WANIPv6FirewallControl:1.

702 FirewallDisabled is never sent: clients take it for a gateway that opens no pinholes, and ask no more. 708
WildCardNotPermittedInSrcIP is never sent either: any source is permitted.
"""


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its in- and out-arguments, how it is answered, and the error codes of refusals.

    `since` is the version of the service that introduced it.
    """

    name: str
    inputs: Mapping[str, v.Variable]
    outputs: Mapping[str, v.Variable]
    decode: Decoder
    refusals: Mapping[Refusal, tuple[int, str]] = field(default_factory=lambda: REFUSALS)
    since: int = 1


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call that was decoded; `request` is what to ask the gateway, or None if the answer needs no decision."""

    action: Action
    request: Request | None
    values: Callable[[Any], Values]

    @property
    def name(self) -> str:
        """The action's name, whatever case the client wrote it in."""
        return self.action.name

    def answer(self, reply: Reply | None = None) -> Arguments:
        """Return the out-arguments, or raise a UPnPError for a refusal or for an entry that does not exist."""
        if isinstance(reply, Refusal):
            code, name = self.action.refusals[reply]
            raise UPnPError(code, f"{name}: {reply.value}")
        return v.write(self.action.outputs, self.values(reply))


@dataclass(frozen=True, slots=True)
class Query:
    """The query for the value of one state variable (§3.3); `request` is as of an Invocation."""

    row: state.StateVariable
    parties: Parties
    name: ClassVar[str] = "QueryStateVariable"

    @property
    def request(self) -> Request | None:
        """What to ask the gateway, or None for a constant."""
        return self.row.request

    def answer(self, reply: Reply | None = None) -> Arguments:
        """Return the value, or raise a UPnPError for a refusal."""
        text = self.row.text(reply, self.parties)
        if text is None:
            assert isinstance(reply, Refusal), "only a refusal has no value"
            raise UPnPError(REFUSALS[reply][0], f"{REFUSALS[reply][1]}: {reply.value}")
        return {"return": text}


def decode(service: Service, call: Call, parties: Parties) -> Invocation | Query:
    """Decode a call that was sent to the control URL of `service`; ignore arguments that the action does not have.

    Raise a UPnPError for an unknown action (401), an optional one that is not offered (602), an unknown variable (404)
    or for arguments that the action does not accept.
    """
    name = call.action.lower()
    if (call.service_type, name) == (CONTROL, Query.name.lower()):
        return Query(_queried(service, call.arguments), parties)
    action = _BY_CALL.get((service, call.service_type, name))
    if action is None:
        if (service, name) in NOT_OFFERED:
            raise UPnPError(602, "Optional Action Not Implemented")
        raise UPnPError(401, "Invalid Action")
    return Invocation(action, *action.decode(v.read(action.inputs, call.arguments), parties))


def _queried(service: Service, arguments: Arguments) -> state.StateVariable:
    """Return the variable that a query names: 402 without a name, 404 for one that is unknown or has no value."""
    name = v.read({"varName": v.VARIABLE_NAME}, arguments)["varName"].strip().lower()
    for row in state.STATE[service]:
        if row.variable.name.lower() == name:
            return row
    raise UPnPError(404, "Invalid Var")


def _get(name: str, since: int = 1, **outputs: v.Variable) -> Action:
    """Return the row of an action without in-arguments that reads state variables."""
    return Action(name, {}, outputs, state.reading(outputs.values()), since=since)


_RANGE = {
    "NewStartPort": v.EXTERNAL_PORT,
    "NewEndPort": v.EXTERNAL_PORT,
    "NewProtocol": v.PROTOCOL,
    "NewManage": v.MANAGE,  # 1 asks for the mappings of other clients as well; no peer may see them: it is ignored
}

ACTIONS = {
    LAYER3_FORWARDING: (
        Action(
            "SetDefaultConnectionService",
            {"NewDefaultConnectionService": v.DEFAULT_CONNECTION_SERVICE},
            {},
            requests.set_default_connection,
        ),
        _get("GetDefaultConnectionService", NewDefaultConnectionService=v.DEFAULT_CONNECTION_SERVICE),
    ),
    WAN_COMMON_INTERFACE_CONFIG: (
        Action("SetEnabledForInternet", {"NewEnabledForInternet": v.ENABLED_FOR_INTERNET}, {}, requests.refuse),
        _get("GetEnabledForInternet", NewEnabledForInternet=v.ENABLED_FOR_INTERNET),
        _get(
            "GetCommonLinkProperties",
            NewWANAccessType=v.WAN_ACCESS_TYPE,
            NewLayer1UpstreamMaxBitRate=v.UPSTREAM_MAX_BIT_RATE,
            NewLayer1DownstreamMaxBitRate=v.DOWNSTREAM_MAX_BIT_RATE,
            NewPhysicalLinkStatus=v.PHYSICAL_LINK_STATUS,
        ),
        _get("GetMaximumActiveConnections", NewMaximumActiveConnections=v.MAXIMUM_ACTIVE_CONNECTIONS),
        _get("GetTotalBytesSent", NewTotalBytesSent=v.TOTAL_BYTES_SENT),
        _get("GetTotalBytesReceived", NewTotalBytesReceived=v.TOTAL_BYTES_RECEIVED),
        _get("GetTotalPacketsSent", NewTotalPacketsSent=v.TOTAL_PACKETS_SENT),
        _get("GetTotalPacketsReceived", NewTotalPacketsReceived=v.TOTAL_PACKETS_RECEIVED),
        Action(
            "GetActiveConnection",
            {"NewActiveConnectionIndex": v.NUMBER_OF_ACTIVE_CONNECTIONS},
            {
                "NewActiveConnDeviceContainer": v.ACTIVE_CONNECTION_DEVICE_CONTAINER,
                "NewActiveConnectionServiceID": v.ACTIVE_CONNECTION_SERVICE_ID,
            },
            requests.get_active_connection,
        ),
    ),
    WAN_IP_CONNECTION: (
        Action("SetConnectionType", {"NewConnectionType": v.CONNECTION_TYPE}, {}, requests.set_connection_type),
        _get(
            "GetConnectionTypeInfo",
            NewConnectionType=v.CONNECTION_TYPE,
            NewPossibleConnectionTypes=v.POSSIBLE_CONNECTION_TYPES,
        ),
        Action("RequestConnection", {}, {}, requests.accept),
        Action("RequestTermination", {}, {}, requests.refuse),
        Action("ForceTermination", {}, {}, requests.refuse),
        Action("SetAutoDisconnectTime", {"NewAutoDisconnectTime": v.AUTO_DISCONNECT_TIME}, {}, requests.refuse),
        Action("SetIdleDisconnectTime", {"NewIdleDisconnectTime": v.IDLE_DISCONNECT_TIME}, {}, requests.refuse),
        Action("SetWarnDisconnectDelay", {"NewWarnDisconnectDelay": v.WARN_DISCONNECT_DELAY}, {}, requests.refuse),
        _get(
            "GetStatusInfo",
            NewConnectionStatus=v.CONNECTION_STATUS,
            NewLastConnectionError=v.LAST_CONNECTION_ERROR,
            NewUptime=v.UPTIME,
        ),
        _get("GetAutoDisconnectTime", NewAutoDisconnectTime=v.AUTO_DISCONNECT_TIME),
        _get("GetIdleDisconnectTime", NewIdleDisconnectTime=v.IDLE_DISCONNECT_TIME),
        _get("GetWarnDisconnectDelay", NewWarnDisconnectDelay=v.WARN_DISCONNECT_DELAY),
        _get("GetNATRSIPStatus", NewRSIPAvailable=v.RSIP_AVAILABLE, NewNATEnabled=v.NAT_ENABLED),
        Action(
            "GetGenericPortMappingEntry",
            {"NewPortMappingIndex": v.NUMBER_OF_ENTRIES},
            KEY | VALUE,
            requests.get_at_index,
            INDEX_REFUSALS,
        ),
        Action("GetSpecificPortMappingEntry", KEY, VALUE, requests.get),
        Action("AddPortMapping", KEY | VALUE, {}, requests.add),
        Action("DeletePortMapping", KEY, {}, requests.delete),
        _get("GetExternalIPAddress", NewExternalIPAddress=v.EXTERNAL_ADDRESS),
        Action("DeletePortMappingRange", _RANGE, {}, requests.delete_range, RANGE_REFUSALS, since=2),
        Action(
            "GetListOfPortMappings",
            _RANGE | {"NewNumberOfPorts": v.NUMBER_OF_ENTRIES},
            {"NewPortListing": v.PORT_LISTING},
            requests.list_range,
            since=2,
        ),
        Action("AddAnyPortMapping", KEY | VALUE, {"NewReservedPort": v.EXTERNAL_PORT}, requests.add_any, since=2),
    ),
    WAN_IPV6_FIREWALL_CONTROL: (
        _get(
            "GetFirewallStatus",
            FirewallEnabled=v.FIREWALL_ENABLED,
            InboundPinholeAllowed=v.INBOUND_PINHOLE_ALLOWED,
        ),
        Action(
            "GetOutboundPinholeTimeout",
            pinholes.FLOW,
            {"OutboundPinholeTimeout": v.OUTBOUND_PINHOLE_TIMEOUT},
            pinholes.get_outbound_timeout,
            PINHOLE_REFUSALS,
        ),
        Action(
            "AddPinhole",
            pinholes.FLOW | {"LeaseTime": v.LEASE_TIME},
            pinholes.UNIQUE_ID,
            pinholes.add,
            PINHOLE_REFUSALS,
        ),
        Action(
            "UpdatePinhole",
            pinholes.UNIQUE_ID | {"NewLeaseTime": v.LEASE_TIME},
            {},
            pinholes.update,
            PINHOLE_REFUSALS,
        ),
        Action("DeletePinhole", pinholes.UNIQUE_ID, {}, pinholes.delete, PINHOLE_REFUSALS),
        Action(
            "GetPinholePackets",
            pinholes.UNIQUE_ID,
            {"PinholePackets": v.PINHOLE_PACKETS},
            pinholes.get_packets,
            PINHOLE_REFUSALS,
        ),
        Action("CheckPinholeWorking", pinholes.UNIQUE_ID, {"IsWorking": v.BOOLEAN}, pinholes.check, PINHOLE_REFUSALS),
    ),
}
"""The actions of each service, in the order of the standards; those of version 2 follow those of 1."""

NOT_OFFERED = {(WAN_COMMON_INTERFACE_CONFIG, "GetWANAccessProvider".lower())}
"""Optional actions that have no answer: the server does not know the name of its provider."""

_BY_CALL = {
    (service, service.urn(version), action.name.lower()): action
    for service, actions in ACTIONS.items()
    for action in actions
    for version in VERSIONS
}
"""Every action is accepted under every version: `upnpc -n` asks WANIPConnection:1 for AddAnyPortMapping."""
