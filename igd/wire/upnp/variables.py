"""The state variables of our services: the types by which arguments are read and service documents drawn."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from igd.wire.upnp.soap import UPnPError

LONGEST_STRING = 256
"""Characters; the standards name no number, and no client is known to need more."""

_TRUTH = {"1": "1", "true": "1", "yes": "1", "0": "0", "false": "0", "no": "0"}
"""§2.5, boolean: 0 and 1, and for what is received the words as well."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A state variable: its data type (§2.5), and where only some values are allowed, those."""

    name: str
    data_type: str = "string"
    allowed: tuple[str, ...] = ()

    def read(self, argument: str, text: str) -> str:
        """Give the value in its one plain form; raise the UPnPError that it deserves, naming `argument`."""
        if self.allowed:
            return _allowed(self.allowed, argument, text)
        return _READERS[self.data_type](argument, text)


def _allowed(allowed: tuple[str, ...], argument: str, text: str) -> str:
    """Give the allowed value, whichever case it is sent in.

    §3.2.5: 601 is also for a value that is not in the list of allowed ones, so SCTP gets 601 rather than 600.
    """
    for value in allowed:
        if value.lower() == text.strip().lower():
            return value
    raise UPnPError(601, f"Argument Value Out of Range: {argument} must be one of {', '.join(allowed)}")


def _number(largest: int) -> Callable[[str, str], str]:
    def read(argument: str, text: str) -> str:
        """Give the number in decimal digits; §3.2.5: 402 for the wrong data type, 601 beyond its range."""
        plain = re.fullmatch("([+-]?)([0-9]+)", text.strip())
        if plain is None:
            raise UPnPError(402, f"Invalid Args: {argument} is not a number")
        sign, digits = plain[1], plain[2].lstrip("0") or "0"
        # Very long ones are never turned into numbers: Python would raise ValueError.
        if len(digits) > len(str(largest)) or not 0 <= int(sign + digits) <= largest:
            raise UPnPError(601, f"Argument Value Out of Range: {argument} must be from 0 to {largest}")
        return digits

    return read


def _boolean(argument: str, text: str) -> str:
    value = _TRUTH.get(text.strip().lower())
    if value is None:
        raise UPnPError(402, f"Invalid Args: {argument} must be 0 or 1")
    return value


def _string(argument: str, text: str) -> str:
    if len(text) > LONGEST_STRING:
        raise UPnPError(605, f"String Argument Too Long: {argument} has more than {LONGEST_STRING} characters")
    return text


_READERS: dict[str, Callable[[str, str], str]] = {
    "string": _string,
    "boolean": _boolean,
    "ui2": _number(2**16 - 1),
    "ui4": _number(2**32 - 1),
}

# Of Layer3Forwarding:1
DEFAULT_CONNECTION_SERVICE = Variable("DefaultConnectionService")

# Of WANCommonInterfaceConfig:1
WAN_ACCESS_TYPE = Variable("WANAccessType", allowed=("Ethernet", "DSL", "POTS", "Cable"))
UPSTREAM_MAX_BIT_RATE = Variable("Layer1UpstreamMaxBitRate", "ui4")
DOWNSTREAM_MAX_BIT_RATE = Variable("Layer1DownstreamMaxBitRate", "ui4")
PHYSICAL_LINK_STATUS = Variable("PhysicalLinkStatus", allowed=("Up", "Down", "Initializing", "Unavailable"))

# Of WANIPConnection:1 and :2
CONNECTION_TYPE = Variable("ConnectionType")
POSSIBLE_CONNECTION_TYPES = Variable("PossibleConnectionTypes", allowed=("IP_Routed", "IP_Bridged", "Unconfigured"))
CONNECTION_STATUS = Variable(
    "ConnectionStatus",
    allowed=("Connected", "Connecting", "Disconnecting", "PendingDisconnect", "Disconnected", "Unconfigured"),
)
LAST_CONNECTION_ERROR = Variable("LastConnectionError", allowed=("ERROR_NONE", "ERROR_UNKNOWN"))
UPTIME = Variable("Uptime", "ui4")
RSIP_AVAILABLE = Variable("RSIPAvailable", "boolean")
NAT_ENABLED = Variable("NATEnabled", "boolean")
EXTERNAL_ADDRESS = Variable("ExternalIPAddress")
NUMBER_OF_ENTRIES = Variable("PortMappingNumberOfEntries", "ui2")
ENABLED = Variable("PortMappingEnabled", "boolean")
# No range is given for the lease (version 2: up to 604800): clients that hold arguments against the service document
# would refuse to send what the gateway shortens. Nor for the internal port: its 0 has an error of its own, 732.
LEASE_DURATION = Variable("PortMappingLeaseDuration", "ui4")
REMOTE_HOST = Variable("RemoteHost")
EXTERNAL_PORT = Variable("ExternalPort", "ui2")
INTERNAL_PORT = Variable("InternalPort", "ui2")
PROTOCOL = Variable("PortMappingProtocol", allowed=("TCP", "UDP"))
INTERNAL_CLIENT = Variable("InternalClient")
DESCRIPTION = Variable("PortMappingDescription")
MANAGE = Variable("A_ARG_TYPE_Manage", "boolean")
PORT_LISTING = Variable("A_ARG_TYPE_PortListing")


def total(what: str) -> Variable:
    """Give the counter of this (`BytesSent`), which wraps as ui4 does."""
    return Variable(f"Total{what}", "ui4")
