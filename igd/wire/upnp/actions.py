"""The table of actions: the arguments of each, and how it is answered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from igd.core.request import GetExternalAddress, GetLinkStatus, LinkStatus, Refusal, Reply, Request
from igd.wire.upnp import requests
from igd.wire.upnp import variables as v
from igd.wire.upnp.devices import LAYER3_FORWARDING, VERSIONS, WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION, Service
from igd.wire.upnp.requests import KEY, VALUE, Decoder, Parties, Values, constant_answer, constant_request
from igd.wire.upnp.soap import Arguments, Call, UPnPError

REFUSALS: dict[Refusal, tuple[int, str]] = {
    Refusal.NOT_A_PEER: (606, "Action not authorized"),
    Refusal.NOT_YOUR_ADDRESS: (606, "Action not authorized"),
    Refusal.PROTOCOL_FORBIDDEN: (606, "Action not authorized"),
    Refusal.FORBIDDEN: (606, "Action not authorized"),
    Refusal.NO_PINHOLES: (606, "Action not authorized"),
    # Besides 501, the only code on which libtorrent tries again.
    Refusal.STATIC: (606, "Action not authorized"),
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

RANGE_REFUSALS = REFUSALS | {Refusal.NO_SUCH_MAPPING: (730, "PortMappingNotFound")}
"""Actions on a range of ports have their own code for an empty range."""


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

    def answer(self, reply: Reply | None = None) -> Arguments:
        """Return the out-arguments, or raise a UPnPError for a refusal or for an entry that does not exist."""
        if isinstance(reply, Refusal):
            code, name = self.action.refusals[reply]
            raise UPnPError(code, f"{name}: {reply.value}")
        return v.write(self.action.outputs, self.values(reply))


def decode(service: Service, call: Call, parties: Parties) -> Invocation:
    """Decode a call that was sent to the control URL of `service`; ignore arguments that the action does not have.

    Raise a UPnPError for an unknown action (401) or for arguments that it does not accept.
    """
    action = _BY_CALL.get((service, call.service_type, call.action))
    if action is None:
        raise UPnPError(401, "Invalid Action")
    return Invocation(action, *action.decode(v.read(action.inputs, call.arguments), parties))


def _counter(unit: str, read: Callable[[LinkStatus], int]) -> Action:
    """Return the row of one counter (`BytesSent`)."""
    decoder = constant_request(GetLinkStatus(), lambda link: (read(link),))
    return Action(f"GetTotal{unit}", {}, {f"NewTotal{unit}": v.total(unit)}, decoder)


_RANGE = {
    "NewStartPort": v.EXTERNAL_PORT,
    "NewEndPort": v.EXTERNAL_PORT,
    "NewProtocol": v.PROTOCOL,
    "NewManage": v.MANAGE,  # 1 asks for the mappings of other clients as well; no peer may see them: it is ignored
}
_DEFAULT_CONNECTION = {"NewDefaultConnectionService": v.DEFAULT_CONNECTION_SERVICE}

ACTIONS = {
    LAYER3_FORWARDING: (
        Action("SetDefaultConnectionService", _DEFAULT_CONNECTION, {}, requests.set_default_connection),
        Action("GetDefaultConnectionService", {}, _DEFAULT_CONNECTION, requests.get_default_connection),
    ),
    WAN_COMMON_INTERFACE_CONFIG: (
        Action(
            "GetCommonLinkProperties",
            {},
            {
                "NewWANAccessType": v.WAN_ACCESS_TYPE,
                "NewLayer1UpstreamMaxBitRate": v.UPSTREAM_MAX_BIT_RATE,
                "NewLayer1DownstreamMaxBitRate": v.DOWNSTREAM_MAX_BIT_RATE,
                "NewPhysicalLinkStatus": v.PHYSICAL_LINK_STATUS,
            },
            constant_request(GetLinkStatus(), requests.link_properties),
        ),
        _counter("BytesSent", lambda link: link.bytes_sent),
        _counter("BytesReceived", lambda link: link.bytes_received),
        _counter("PacketsSent", lambda link: link.packets_sent),
        _counter("PacketsReceived", lambda link: link.packets_received),
    ),
    WAN_IP_CONNECTION: (
        Action("SetConnectionType", {"NewConnectionType": v.CONNECTION_TYPE}, {}, requests.set_connection_type),
        Action(
            "GetConnectionTypeInfo",
            {},
            {"NewConnectionType": v.CONNECTION_TYPE, "NewPossibleConnectionTypes": v.POSSIBLE_CONNECTION_TYPES},
            constant_answer("IP_Routed", "IP_Routed"),
        ),
        Action("RequestConnection", {}, {}, constant_answer()),
        Action("ForceTermination", {}, {}, requests.force_termination),
        Action(
            "GetStatusInfo",
            {},
            {
                "NewConnectionStatus": v.CONNECTION_STATUS,
                "NewLastConnectionError": v.LAST_CONNECTION_ERROR,
                "NewUptime": v.UPTIME,
            },
            constant_request(GetLinkStatus(), requests.status),
        ),
        Action(
            "GetNATRSIPStatus",
            {},
            {"NewRSIPAvailable": v.RSIP_AVAILABLE, "NewNATEnabled": v.NAT_ENABLED},
            constant_answer(0, 1),
        ),
        Action(
            "GetGenericPortMappingEntry",
            {"NewPortMappingIndex": v.NUMBER_OF_ENTRIES},
            KEY | VALUE,
            requests.get_at_index,
        ),
        Action("GetSpecificPortMappingEntry", KEY, VALUE, requests.get),
        Action("AddPortMapping", KEY | VALUE, {}, requests.add),
        Action("DeletePortMapping", KEY, {}, requests.delete),
        Action(
            "GetExternalIPAddress",
            {},
            {"NewExternalIPAddress": v.EXTERNAL_ADDRESS},
            constant_request(GetExternalAddress(), lambda external: (external.address,)),
        ),
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
}
"""The required actions of each service, in the order of the standards; those of version 2 follow those of 1."""

_BY_CALL = {
    (service, service.urn(version), action.name): action
    for service, actions in ACTIONS.items()
    for action in actions
    for version in VERSIONS
}
"""Every action is accepted under every version: `upnpc -n` asks WANIPConnection:1 for AddAnyPortMapping."""
