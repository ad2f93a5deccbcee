"""What the templates of InternetGatewayDevice:1 and :2 and of their services prescribe, as data.

An action is `R` (required) or `O`, its name, and its arguments in their order: `>` in, `<` out, the name, and after the
equals sign the related state variable, if its name is not that of the argument without "New". A variable is its name,
its type, `evented` or `-`, and after that its allowed values (`A|B`) or its range (`1..86400`), if it has any.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Argument(NamedTuple):
    """An argument of an action: its name, its direction, and the related state variable."""

    name: str
    direction: str
    variable: str


@dataclass(frozen=True)
class Action:
    """An action of a service."""

    required: bool
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Variable:
    """A state variable; `allowed` is empty where every value of the type is, and `limits` where there is no range."""

    data_type: str
    evented: bool
    allowed: frozenset[str]
    limits: tuple[int, ...]


@dataclass(frozen=True)
class Service:
    """The template of a service type."""

    actions: dict[str, Action]
    variables: dict[str, Variable]


def _argument(text: str) -> Argument:
    name, _, variable = text[1:].partition("=")
    return Argument(name, {">": "in", "<": "out"}[text[0]], variable or name.removeprefix("New"))


def _action(line: str) -> tuple[str, Action]:
    need, name, *arguments = line.split()
    return name, Action(need == "R", tuple(map(_argument, arguments)))


def _variable(line: str) -> tuple[str, Variable]:
    name, data_type, evented, *rest = line.split()
    limits = tuple(map(int, rest[0].split(".."))) if rest and ".." in rest[0] else ()
    allowed = frozenset(rest[0].split("|")) if rest and not limits else frozenset()
    return name, Variable(data_type, evented == "evented", allowed, limits)


def _service(actions: str, variables: str) -> Service:
    return Service(
        dict(map(_action, actions.strip().splitlines())), dict(map(_variable, variables.strip().splitlines()))
    )


_KEY = "NewRemoteHost NewExternalPort NewProtocol=PortMappingProtocol".split()
_VALUE = (
    "NewInternalPort NewInternalClient NewEnabled=PortMappingEnabled NewPortMappingDescription "
    "NewLeaseDuration=PortMappingLeaseDuration"
).split()
_RANGE = (
    ">NewStartPort=ExternalPort >NewEndPort=ExternalPort >NewProtocol=PortMappingProtocol >NewManage=A_ARG_TYPE_Manage"
)


def _all(mark: str, names: list[str]) -> str:
    return " ".join(f"{mark}{name}" for name in names)


_IP_CONNECTION = f"""
R SetConnectionType >NewConnectionType
R GetConnectionTypeInfo <NewConnectionType <NewPossibleConnectionTypes
R RequestConnection
O RequestTermination
R ForceTermination
O SetAutoDisconnectTime >NewAutoDisconnectTime
O SetIdleDisconnectTime >NewIdleDisconnectTime
O SetWarnDisconnectDelay >NewWarnDisconnectDelay
R GetStatusInfo <NewConnectionStatus <NewLastConnectionError <NewUptime
O GetAutoDisconnectTime <NewAutoDisconnectTime
O GetIdleDisconnectTime <NewIdleDisconnectTime
O GetWarnDisconnectDelay <NewWarnDisconnectDelay
R GetNATRSIPStatus <NewRSIPAvailable <NewNATEnabled
R GetGenericPortMappingEntry >NewPortMappingIndex=PortMappingNumberOfEntries {_all("<", _KEY + _VALUE)}
R GetSpecificPortMappingEntry {_all(">", _KEY)} {_all("<", _VALUE)}
R AddPortMapping {_all(">", _KEY + _VALUE)}
R DeletePortMapping {_all(">", _KEY)}
R GetExternalIPAddress <NewExternalIPAddress
"""
_IP_CONNECTION_VARIABLES = """
ConnectionType string -
PossibleConnectionTypes string evented Unconfigured|IP_Routed|IP_Bridged
ConnectionStatus string evented Unconfigured|Connecting|Connected|PendingDisconnect|Disconnecting|Disconnected
Uptime ui4 -
LastConnectionError string - ERROR_NONE|ERROR_COMMAND_ABORTED|ERROR_NOT_ENABLED_FOR_INTERNET|ERROR_USER_DISCONNECT|\
ERROR_ISP_DISCONNECT|ERROR_IDLE_DISCONNECT|ERROR_FORCED_DISCONNECT|ERROR_NO_CARRIER|ERROR_IP_CONFIGURATION|ERROR_UNKNOWN
AutoDisconnectTime ui4 -
IdleDisconnectTime ui4 -
WarnDisconnectDelay ui4 -
RSIPAvailable boolean -
NATEnabled boolean -
ExternalIPAddress string evented
PortMappingNumberOfEntries ui2 evented
PortMappingEnabled boolean -
PortMappingLeaseDuration ui4 -
RemoteHost string -
ExternalPort ui2 -
InternalPort ui2 - 1..65535
PortMappingProtocol string - TCP|UDP
InternalClient string -
PortMappingDescription string -
"""

SERVICES = {
    "Layer3Forwarding:1": _service(
        """
R SetDefaultConnectionService >NewDefaultConnectionService
R GetDefaultConnectionService <NewDefaultConnectionService
""",
        "DefaultConnectionService string evented",
    ),
    "WANCommonInterfaceConfig:1": _service(
        """
O SetEnabledForInternet >NewEnabledForInternet
O GetEnabledForInternet <NewEnabledForInternet
R GetCommonLinkProperties <NewWANAccessType <NewLayer1UpstreamMaxBitRate <NewLayer1DownstreamMaxBitRate \
<NewPhysicalLinkStatus
O GetWANAccessProvider <NewWANAccessProvider
O GetMaximumActiveConnections <NewMaximumActiveConnections
O GetTotalBytesSent <NewTotalBytesSent
O GetTotalBytesReceived <NewTotalBytesReceived
O GetTotalPacketsSent <NewTotalPacketsSent
O GetTotalPacketsReceived <NewTotalPacketsReceived
O GetActiveConnection >NewActiveConnectionIndex=NumberOfActiveConnections \
<NewActiveConnDeviceContainer=ActiveConnectionDeviceContainer <NewActiveConnectionServiceID
""",
        """
WANAccessType string - DSL|POTS|Cable|Ethernet
Layer1UpstreamMaxBitRate ui4 -
Layer1DownstreamMaxBitRate ui4 -
PhysicalLinkStatus string evented Up|Down|Initializing|Unavailable
WANAccessProvider string -
MaximumActiveConnections ui2 -
TotalBytesSent ui4 -
TotalBytesReceived ui4 -
TotalPacketsSent ui4 -
TotalPacketsReceived ui4 -
NumberOfActiveConnections ui2 -
ActiveConnectionDeviceContainer string -
ActiveConnectionServiceID string -
EnabledForInternet boolean -
""",
    ),
    "WANIPConnection:1": _service(_IP_CONNECTION, _IP_CONNECTION_VARIABLES),
    "WANIPConnection:2": _service(
        f"""{_IP_CONNECTION}
R DeletePortMappingRange {_RANGE}
R GetListOfPortMappings {_RANGE} >NewNumberOfPorts=PortMappingNumberOfEntries <NewPortListing=A_ARG_TYPE_PortListing
R AddAnyPortMapping {_all(">", _KEY + _VALUE)} <NewReservedPort=ExternalPort
""".replace("\n\n", "\n"),
        f"""{_IP_CONNECTION_VARIABLES}
SystemUpdateID ui4 evented
A_ARG_TYPE_Manage boolean -
A_ARG_TYPE_PortListing string -
""".replace("\n\n", "\n"),
    ),
    "WANIPv6FirewallControl:1": _service(
        """
R GetFirewallStatus <FirewallEnabled <InboundPinholeAllowed
O GetOutboundPinholeTimeout >RemoteHost=A_ARG_TYPE_IPv6Address >RemotePort=A_ARG_TYPE_Port \
>InternalClient=A_ARG_TYPE_IPv6Address >InternalPort=A_ARG_TYPE_Port >Protocol=A_ARG_TYPE_Protocol \
<OutboundPinholeTimeout=A_ARG_TYPE_OutboundPinholeTimeout
R AddPinhole >RemoteHost=A_ARG_TYPE_IPv6Address >RemotePort=A_ARG_TYPE_Port >InternalClient=A_ARG_TYPE_IPv6Address \
>InternalPort=A_ARG_TYPE_Port >Protocol=A_ARG_TYPE_Protocol >LeaseTime=A_ARG_TYPE_LeaseTime \
<UniqueID=A_ARG_TYPE_UniqueID
R UpdatePinhole >UniqueID=A_ARG_TYPE_UniqueID >NewLeaseTime=A_ARG_TYPE_LeaseTime
R DeletePinhole >UniqueID=A_ARG_TYPE_UniqueID
R GetPinholePackets >UniqueID=A_ARG_TYPE_UniqueID <PinholePackets=A_ARG_TYPE_PinholePackets
O CheckPinholeWorking >UniqueID=A_ARG_TYPE_UniqueID <IsWorking=A_ARG_TYPE_Boolean
""",
        """
FirewallEnabled boolean evented
InboundPinholeAllowed boolean evented
A_ARG_TYPE_OutboundPinholeTimeout ui4 -
A_ARG_TYPE_IPv6Address string -
A_ARG_TYPE_Port ui2 -
A_ARG_TYPE_Protocol ui2 -
A_ARG_TYPE_LeaseTime ui4 - 1..86400
A_ARG_TYPE_UniqueID ui2 -
A_ARG_TYPE_PinholePackets ui4 -
A_ARG_TYPE_Boolean boolean -
""",
    ),
}

Tree = tuple[str, frozenset[str], tuple["Tree", ...]]


def _igd(version: int) -> Tree:
    connection = f"WANConnectionDevice:{version}", frozenset({f"WANIPConnection:{version}"}), ()
    wan = f"WANDevice:{version}", frozenset({"WANCommonInterfaceConfig:1"}), (connection,)
    return f"InternetGatewayDevice:{version}", frozenset({"Layer3Forwarding:1"}), (wan,)


DEVICES = {version: _igd(version) for version in (1, 2)}
"""The required devices, each with its required services and embedded devices.

Layer3Forwarding is only recommended in version 2.
WANIPv6FirewallControl:1 is required of a gateway of version 2 that has IPv6, and may be absent from version 1.
"""
