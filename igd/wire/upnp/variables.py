"""The state variables of our services: how their values are read and written, and what the service documents show."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypedDict, cast

from igd.core.mapping import TransportProtocol
from igd.wire.upnp import xml
from igd.wire.upnp.soap import Arguments, UPnPError

LONGEST_STRING = 256
"""Characters; the standards set no limit, and no client is known to need more."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A state variable with its data type (§2.5) and its allowed values, listed or a range; neither: the data type's.

    `read` takes an argument's name and text, and returns the value or raises the UPnPError that names the argument.
    `write` returns the text of a value.
    """

    name: str
    data_type: str
    read: Callable[[str, str], Any]
    write: Callable[[Any], str]
    allowed: tuple[str, ...] = ()
    allowed_range: range | None = None


class Inputs(TypedDict, total=False):
    """The values of a call's in-arguments; each action has some of them."""

    NewDefaultConnectionService: str
    NewEnabledForInternet: bool
    NewActiveConnectionIndex: int
    NewConnectionType: str
    NewAutoDisconnectTime: int
    NewIdleDisconnectTime: int
    NewWarnDisconnectDelay: int
    NewPortMappingIndex: int
    NewRemoteHost: str
    NewExternalPort: int
    NewProtocol: TransportProtocol
    NewInternalPort: int
    NewInternalClient: str
    NewEnabled: bool
    NewPortMappingDescription: str
    NewLeaseDuration: int
    NewStartPort: int
    NewEndPort: int
    NewManage: bool
    NewNumberOfPorts: int
    RemoteHost: str
    RemotePort: int
    InternalClient: str
    InternalPort: int
    Protocol: int
    LeaseTime: int
    NewLeaseTime: int
    UniqueID: int
    varName: str


DEFAULTS = {
    "NewRemoteHost": "",
    "NewInternalClient": "",
    "NewEnabled": "1",
    "NewPortMappingDescription": "",
    "NewLeaseDuration": "0",
    "NewManage": "0",
    "NewNumberOfPorts": "0",
    "RemoteHost": "",
    "RemotePort": "0",
    "InternalClient": "",
}
"""The arguments that may be missing or empty, because only one value can be meant; clients leave out some of them."""


def read(variables: Mapping[str, Variable], arguments: Arguments) -> Inputs:
    """Read the arguments that `variables` names and ignore others; raise a UPnPError for a missing or wrong one."""
    given = _given(variables, arguments)
    texts = DEFAULTS | {name: text for name, text in given.items() if text.strip() or not DEFAULTS.get(name)}
    missing = [name for name in variables if name not in texts]
    if missing:
        raise UPnPError(402, f"Invalid Args: {', '.join(missing)} missing")
    return cast("Inputs", {name: variable.read(name, texts[name]) for name, variable in variables.items()})


def _given(variables: Mapping[str, Variable], arguments: Arguments) -> dict[str, str]:
    """Return the texts by the right names: clients may write them in any case, and without `New`."""
    names = {_bare(name): name for name in variables}
    given: dict[str, str] = {}
    for written, text in arguments.items():
        name = names.get(_bare(written))
        if name is not None and given.setdefault(name, text).strip() != text.strip():
            raise UPnPError(402, f"Invalid Args: {name} has two values")
    return given


def _bare(name: str) -> str:
    return name.lower().removeprefix("new")


def write(variables: Mapping[str, Variable], values: Iterable[object]) -> dict[str, str]:
    """Write one value for each of `variables`, in their order."""
    return {name: variable.write(value) for (name, variable), value in zip(variables.items(), values, strict=True)}


# Data types (§2.5)


def _string(name: str, write: Callable[[Any], str] = str) -> Variable:
    return Variable(name, "string", _read_string, write)


def _read_string(argument: str, text: str) -> str:
    if len(text) > LONGEST_STRING:
        raise UPnPError(605, f"String Argument Too Long: {argument} has more than {LONGEST_STRING} characters")
    return text


_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


_ONE_ADDRESS = re.compile(r"(?:::ffff:)?([0-9]+(?:\.[0-9]+){3})|(?!0\.0\.0\.0/)([0-9.]+)/32", re.IGNORECASE)


def _address(name: str) -> Variable:
    return Variable(name, "string", _read_address, str)


def _read_address(argument: str, text: str) -> str:
    """Read an address, and leave it to the action what it may be; an IPv4 address may be written as one of IPv6.

    0.0.0.0 means any host, but 0.0.0.0/32 one host, which there is not.
    """
    written = _read_string(argument, text).strip()
    address = _ONE_ADDRESS.fullmatch(written)
    return address[1] or address[2] if address else written


def _boolean(name: str) -> Variable:
    return Variable(name, "boolean", _read_boolean, lambda value: "1" if value else "0")


def _read_boolean(argument: str, text: str) -> bool:
    """Read 0 or 1; §2.5: receivers accept the words as well."""
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise UPnPError(402, f"Invalid Args: {argument} must be 0 or 1")
    return word in _TRUE


def _ui2(name: str) -> Variable:
    return Variable(name, "ui2", _number_reader(2**16 - 1), str)


def _ui4(name: str, write: Callable[[int], str] = str) -> Variable:
    return Variable(name, "ui4", _number_reader(2**32 - 1), write)


def _number_reader(largest: int, smallest: int = 0) -> Callable[[str, str], int]:
    def read_number(argument: str, text: str) -> int:
        """Read a whole number in decimals; §3.2.5: 402 for the wrong data type, 601 for a number out of range."""
        match = re.fullmatch(r"([+-]?)([0-9]+)(?:\.0+)?", text.strip())
        if match is None:
            raise UPnPError(402, f"Invalid Args: {argument} is not a number")
        sign, digits = match[1], match[2].lstrip("0") or "0"
        # The length is checked first: int() raises ValueError for more than 4300 digits.
        if len(digits) > len(str(largest)) or not smallest <= (number := int(sign + digits)) <= largest:
            raise UPnPError(601, f"Argument Value Out of Range: {argument} must be from {smallest} to {largest}")
        return number

    return read_number


def _wrapped(count: int) -> str:
    """Counters of type ui4 continue at 0 after their largest value."""
    return str(count % 2**32)


def _capped(bits_per_second: int) -> str:
    """Speeds above the range of ui4 (4.3 Gbit/s) are reported as its largest value."""
    return str(min(bits_per_second, 2**32 - 1))


def _one_of(
    name: str,
    *allowed: str,
    also: Mapping[str, str] = MappingProxyType({}),
    value: Callable[[str], Any] = str,
    write: Callable[[Any], str] = str,
) -> Variable:
    """Return a variable with allowed values; `also` has other ways to write them (IANA's numbers of protocols)."""
    by_text = {**{each.lower(): each for each in allowed}, **also}

    def read_one(argument: str, text: str) -> object:
        """Read an allowed value in any case; §3.2.5: any other is 601, so SCTP is answered with 601 and not 600."""
        found = by_text.get(text.strip().lower())
        if found is None:
            raise UPnPError(601, f"Argument Value Out of Range: {argument} must be one of {', '.join(allowed)}")
        return value(found)

    return Variable(name, "string", read_one, write, allowed)


# The argument of QueryStateVariable (§3.3)

VARIABLE_NAME = _string("varName")

# Variables of Layer3Forwarding:1

DEFAULT_CONNECTION_SERVICE = _string("DefaultConnectionService")

# Variables of WANCommonInterfaceConfig:1

WAN_ACCESS_TYPE = _one_of("WANAccessType", "Ethernet", "DSL", "POTS", "Cable")
UPSTREAM_MAX_BIT_RATE = _ui4("Layer1UpstreamMaxBitRate", _capped)
DOWNSTREAM_MAX_BIT_RATE = _ui4("Layer1DownstreamMaxBitRate", _capped)
PHYSICAL_LINK_STATUS = _one_of("PhysicalLinkStatus", "Up", "Down", "Initializing", "Unavailable")
TOTAL_BYTES_SENT = _ui4("TotalBytesSent", _wrapped)
TOTAL_BYTES_RECEIVED = _ui4("TotalBytesReceived", _wrapped)
TOTAL_PACKETS_SENT = _ui4("TotalPacketsSent", _wrapped)
TOTAL_PACKETS_RECEIVED = _ui4("TotalPacketsReceived", _wrapped)
ENABLED_FOR_INTERNET = _boolean("EnabledForInternet")
MAXIMUM_ACTIVE_CONNECTIONS = _ui2("MaximumActiveConnections")
NUMBER_OF_ACTIVE_CONNECTIONS = _ui2("NumberOfActiveConnections")
ACTIVE_CONNECTION_DEVICE_CONTAINER = _string("ActiveConnectionDeviceContainer")
ACTIVE_CONNECTION_SERVICE_ID = _string("ActiveConnectionServiceID")


# Variables of WANIPConnection:1 and :2

CONNECTION_TYPE = _string("ConnectionType")
POSSIBLE_CONNECTION_TYPES = _one_of("PossibleConnectionTypes", "IP_Routed", "IP_Bridged", "Unconfigured")
CONNECTION_STATUS = _one_of(
    "ConnectionStatus", "Connected", "Connecting", "Disconnecting", "PendingDisconnect", "Disconnected", "Unconfigured"
)
LAST_CONNECTION_ERROR = _one_of(
    "LastConnectionError",
    "ERROR_NONE",
    "ERROR_COMMAND_ABORTED",
    "ERROR_NOT_ENABLED_FOR_INTERNET",
    "ERROR_USER_DISCONNECT",
    "ERROR_ISP_DISCONNECT",
    "ERROR_IDLE_DISCONNECT",
    "ERROR_FORCED_DISCONNECT",
    "ERROR_NO_CARRIER",
    "ERROR_IP_CONFIGURATION",
    "ERROR_UNKNOWN",
)
UPTIME = _ui4("Uptime", _wrapped)
AUTO_DISCONNECT_TIME = _ui4("AutoDisconnectTime")
IDLE_DISCONNECT_TIME = _ui4("IdleDisconnectTime")
WARN_DISCONNECT_DELAY = _ui4("WarnDisconnectDelay")
RSIP_AVAILABLE = _boolean("RSIPAvailable")
NAT_ENABLED = _boolean("NATEnabled")
EXTERNAL_ADDRESS = _string("ExternalIPAddress")
NUMBER_OF_ENTRIES = _ui2("PortMappingNumberOfEntries")
SYSTEM_UPDATE_ID = _ui4("SystemUpdateID")
ENABLED = _boolean("PortMappingEnabled")
# The service document shows no range for the lease (version 2: up to 604800), because clients that check arguments
# against it would refuse to send what the gateway shortens.
LEASE_DURATION = _ui4("PortMappingLeaseDuration")
REMOTE_HOST = _address("RemoteHost")
EXTERNAL_PORT = _ui2("ExternalPort")
INTERNAL_PORT = replace(_ui2("InternalPort"), allowed_range=range(1, 2**16))  # what it reads: 0 has its own error, 732
PROTOCOL = _one_of(
    "PortMappingProtocol",
    "TCP",
    "UDP",
    also={"6": "TCP", "17": "UDP"},
    value=lambda name: TransportProtocol[name],
    write=lambda protocol: protocol.name,
)
INTERNAL_CLIENT = _address("InternalClient")
DESCRIPTION = _string("PortMappingDescription")
MANAGE = _boolean("A_ARG_TYPE_Manage")
PORT_LISTING = _string("A_ARG_TYPE_PortListing", xml.CData)

# Variables of WANIPv6FirewallControl:1

FIREWALL_ENABLED = _boolean("FirewallEnabled")
INBOUND_PINHOLE_ALLOWED = _boolean("InboundPinholeAllowed")
IPV6_ADDRESS = _string("A_ARG_TYPE_IPv6Address")
PORT = _ui2("A_ARG_TYPE_Port")


def _read_protocol_number(argument: str, text: str) -> int:
    """Read the number of an IP protocol, or the name that IPv4's port mappings have."""
    name = text.strip().upper()
    return TransportProtocol[name] if name in TransportProtocol.__members__ else _read_ui2(argument, text)


_read_ui2 = _number_reader(2**16 - 1)
PROTOCOL_NUMBER = Variable("A_ARG_TYPE_Protocol", "ui2", _read_protocol_number, str)
LEASE_TIMES = range(1, 86400 + 1)
LEASE_TIME = Variable(
    "A_ARG_TYPE_LeaseTime", "ui4", _number_reader(LEASE_TIMES[-1], LEASE_TIMES[0]), str, allowed_range=LEASE_TIMES
)
UNIQUE_ID = _ui2("A_ARG_TYPE_UniqueID")
# The range of the template, 100 to 200 s, is an example: connection tracking keeps TCP for days.
OUTBOUND_PINHOLE_TIMEOUT = _ui4("A_ARG_TYPE_OutboundPinholeTimeout")
BOOLEAN = _boolean("A_ARG_TYPE_Boolean")
PINHOLE_PACKETS = _ui4("A_ARG_TYPE_PinholePackets", _wrapped)
