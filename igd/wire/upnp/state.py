"""The state variables that have one value for the asking peer: how each is read, and which are evented (§4)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from igd.core.request import (
    GetExternalAddress,
    GetLinkStatus,
    GetPeerState,
    LinkStatus,
    PeerState,
    Refusal,
    Reply,
    Request,
)
from igd.wire.upnp import variables as v
from igd.wire.upnp.devices import (
    LAYER3_FORWARDING,
    WAN_COMMON_INTERFACE_CONFIG,
    WAN_IP_CONNECTION,
    WAN_IPV6_FIREWALL_CONTROL,
    Service,
)
from igd.wire.upnp.requests import Decoder, Exchange, Parties, connection_device, default_connection
from igd.wire.upnp.variables import Inputs, Variable


@dataclass(frozen=True, slots=True)
class StateVariable:
    """A state variable, the request that asks the gateway for its value (None: a constant), and its place in events.

    `read` returns the value from the reply to `request` (None without one). `since` is the version of the service that
    introduced the variable.
    """

    variable: Variable
    request: Request | None
    read: Callable[[Any, Parties], object]
    evented: bool = False
    since: int = 1

    def text(self, reply: Reply | None, parties: Parties) -> str | None:
        """Return the value as it is sent; None if the gateway refused to read it."""
        if isinstance(reply, Refusal) and reply is not Refusal.NO_EXTERNAL_ADDRESS:
            return None
        return self.variable.write(self.read(reply, parties))


def _constant(variable: Variable, value: object, *, evented: bool = False) -> StateVariable:
    return StateVariable(variable, None, lambda _reply, _parties: value, evented)


def _of_link(variable: Variable, read: Callable[[LinkStatus], object], *, evented: bool = False) -> StateVariable:
    return StateVariable(variable, GetLinkStatus(), lambda link, _parties: read(link), evented)


def _of_peer(
    variable: Variable, read: Callable[[PeerState], object], *, evented: bool = False, since: int = 1
) -> StateVariable:
    return StateVariable(variable, GetPeerState(), lambda state, _parties: read(state), evented, since)


STATE: Mapping[Service, tuple[StateVariable, ...]] = {
    LAYER3_FORWARDING: (
        StateVariable(
            v.DEFAULT_CONNECTION_SERVICE, None, lambda _reply, parties: default_connection(parties), evented=True
        ),
    ),
    WAN_COMMON_INTERFACE_CONFIG: (
        _constant(v.WAN_ACCESS_TYPE, "Ethernet"),
        _of_link(v.UPSTREAM_MAX_BIT_RATE, lambda link: link.bits_per_second),
        _of_link(v.DOWNSTREAM_MAX_BIT_RATE, lambda link: link.bits_per_second),
        _of_link(v.PHYSICAL_LINK_STATUS, lambda link: "Up" if link.up else "Down", evented=True),
        _of_link(v.TOTAL_BYTES_SENT, lambda link: link.bytes_sent),
        _of_link(v.TOTAL_BYTES_RECEIVED, lambda link: link.bytes_received),
        _of_link(v.TOTAL_PACKETS_SENT, lambda link: link.packets_sent),
        _of_link(v.TOTAL_PACKETS_RECEIVED, lambda link: link.packets_received),
        _constant(v.ENABLED_FOR_INTERNET, True),  # noqa: FBT003 - the variable is named before it
        _constant(v.MAXIMUM_ACTIVE_CONNECTIONS, 1),
        _of_link(v.NUMBER_OF_ACTIVE_CONNECTIONS, lambda link: int(link.up)),
        StateVariable(v.ACTIVE_CONNECTION_DEVICE_CONTAINER, None, lambda _reply, parties: connection_device(parties)),
        _constant(v.ACTIVE_CONNECTION_SERVICE_ID, WAN_IP_CONNECTION.urn_id),
    ),
    WAN_IP_CONNECTION: (
        _constant(v.CONNECTION_TYPE, "IP_Routed"),
        _constant(v.POSSIBLE_CONNECTION_TYPES, "IP_Routed", evented=True),
        _of_link(v.CONNECTION_STATUS, lambda link: "Connected" if link.up else "Disconnected", evented=True),
        _constant(v.LAST_CONNECTION_ERROR, "ERROR_NONE"),
        _of_link(v.UPTIME, lambda link: link.uptime),
        _constant(v.RSIP_AVAILABLE, False),  # noqa: FBT003 - the variable is named before it
        _constant(v.NAT_ENABLED, True),  # noqa: FBT003 - the variable is named before it
        StateVariable(
            v.EXTERNAL_ADDRESS,
            GetExternalAddress(),
            lambda reply, _parties: "" if reply is Refusal.NO_EXTERNAL_ADDRESS else reply.address,
            evented=True,
        ),
        _of_peer(v.NUMBER_OF_ENTRIES, lambda state: state.port_mappings, evented=True),
        _of_peer(v.SYSTEM_UPDATE_ID, lambda state: state.update_id, evented=True, since=2),
        # The connection is the server's own, and never ends because it is idle: 0 (§2.2.7 of WANIPConnection:1).
        _constant(v.AUTO_DISCONNECT_TIME, 0),
        _constant(v.IDLE_DISCONNECT_TIME, 0),
        _constant(v.WARN_DISCONNECT_DELAY, 0),
    ),
    WAN_IPV6_FIREWALL_CONTROL: (
        _constant(v.FIREWALL_ENABLED, True, evented=True),  # noqa: FBT003 - the variable is named before it
        _of_peer(v.INBOUND_PINHOLE_ALLOWED, lambda state: state.pinholes_allowed, evented=True),
    ),
}
"""The variables of each service that have one value; those of single mappings (ExternalPort) have none."""

_ROWS = {row.variable: row for rows in STATE.values() for row in rows}


def reading(variables: Iterable[Variable]) -> Decoder:
    """Return the decoder of an action that answers with the values of these variables, from one reply at most."""
    rows = [_ROWS[variable] for variable in variables]
    requests = {row.request for row in rows} - {None}
    assert len(requests) <= 1, "an action makes one request"
    request = next(iter(requests), None)

    def decode(_inputs: Inputs, parties: Parties) -> Exchange:
        return Exchange(request, lambda reply: tuple(row.read(reply, parties) for row in rows))

    return decode
