"""How each action is answered: the request that it makes of the gateway, and the values that the reply becomes."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

from igd.core.mapping import Endpoint, Remote, TransportProtocol
from igd.core.peers import Address
from igd.core.request import (
    ENDLESS,
    GetLinkStatus,
    GetMapping,
    GetMappingAt,
    LinkStatus,
    ListMappings,
    Mapped,
    MappingList,
    MapPort,
    Request,
    UnmapPorts,
)
from igd.core.unicast import is_unicast
from igd.wire.upnp import variables as v
from igd.wire.upnp import xml
from igd.wire.upnp.devices import WAN_CONNECTION_DEVICE, WAN_IP_CONNECTION, udn
from igd.wire.upnp.soap import UPnPError
from igd.wire.upnp.variables import Inputs


@dataclass(frozen=True, slots=True)
class Parties:
    """The sender of a call (the packet's source) and its receiver (the root device's uuid).

    `addresses` are the single ones of the sender's peer.
    """

    source: Address
    root: UUID
    addresses: tuple[Address, ...] = ()

    def address(self, version: int) -> Address | None:
        """Return the sender's address of this IP version: the source, or the peer's only one; None if it has others."""
        if self.source.version == version:
            return self.source
        own = [each for each in self.addresses if each.version == version and is_unicast(each)]
        return own[0] if len(own) == 1 else None


Values = tuple[object, ...]
"""The values of an action's out-arguments, in their order."""


class Exchange(NamedTuple):
    """The request that a call makes of the gateway, None where it needs none, and the values that answer the call.

    `values` turns the reply (None without a request) into these values, or raises a UPnPError.
    """

    request: Request | None
    values: Callable[[Any], Values] = lambda _reply: ()


Decoder = Callable[[Inputs, Parties], Exchange]
"""Raises a UPnPError for values that the action does not accept."""


def _ready(*values: object) -> Exchange:
    return Exchange(None, lambda _reply: values)


# The connection and the link


def set_connection_type(inputs: Inputs, _parties: Parties) -> Exchange:
    """Accept the type that the connection has, and no other (731)."""
    if inputs["NewConnectionType"] != "IP_Routed":
        raise UPnPError(731, "ReadOnly: the connection is IP_Routed")
    return _ready()


def accept(_inputs: Inputs, _parties: Parties) -> Exchange:
    """Accept without a change: what is asked for is so already."""
    return _ready()


def refuse(_inputs: Inputs, _parties: Parties) -> NoReturn:
    """Refuse (606): one peer must not change what all share."""
    raise UPnPError(606, "Action not authorized")


def get_active_connection(inputs: Inputs, parties: Parties) -> Exchange:
    """Answer with the only connection, at index 0; it is active while the link is up, and beyond the last is 713."""

    def values(link: LinkStatus) -> Values:
        if inputs["NewActiveConnectionIndex"] >= int(link.up):
            raise UPnPError(713, "SpecifiedArrayIndexInvalid")
        return connection_device(parties), WAN_IP_CONNECTION.urn_id

    return Exchange(GetLinkStatus(), values)


def connection_device(parties: Parties) -> str:
    """Return the device with the only connection, as Layer3Forwarding:1 and WANCommonInterfaceConfig:1 name it."""
    return f"{udn(WAN_CONNECTION_DEVICE, parties.root)}:{WAN_CONNECTION_DEVICE.name}:1"


def default_connection(parties: Parties) -> str:
    """Return the value of DefaultConnectionService: the connection device and the service, separated by a comma."""
    return f"{connection_device(parties)},{WAN_IP_CONNECTION.urn_id}"


def set_default_connection(inputs: Inputs, parties: Parties) -> Exchange:
    """Accept the only connection, which changes nothing, and no other (723)."""
    if inputs["NewDefaultConnectionService"].strip() != default_connection(parties):
        raise UPnPError(723, "InvalidConnServiceSelection")
    return _ready()


# Port mappings

KEY = {"NewRemoteHost": v.REMOTE_HOST, "NewExternalPort": v.EXTERNAL_PORT, "NewProtocol": v.PROTOCOL}
VALUE = {
    "NewInternalPort": v.INTERNAL_PORT,
    "NewInternalClient": v.INTERNAL_CLIENT,
    "NewEnabled": v.ENABLED,
    "NewPortMappingDescription": v.DESCRIPTION,
    "NewLeaseDuration": v.LEASE_DURATION,
}

_LISTING = xml.Tag("p:PortMappingList", {"p": "urn:schemas-upnp-org:gw:WANIPConnection"})
_RENAMED = {"NewPortMappingDescription": "NewDescription", "NewLeaseDuration": "NewLeaseTime"}
_LISTED = {f"p:{_RENAMED.get(name, name)}": variable for name, variable in (KEY | VALUE).items()}
"""The elements of an entry in a port listing: its schema has two names that differ from those of the arguments."""

ANY_REMOTE_HOST = {"", "*", "0.0.0.0", "0.0.0.0/0", "::", "::/0"}  # noqa: S104 - compared, never bound
"""The standard has the empty string; some clients send the others."""


def _remotes(inputs: Inputs) -> tuple[Remote, ...]:
    """Return the only host that may connect, or none for any; a host name would need a look-up and is refused (600)."""
    host = inputs["NewRemoteHost"].strip()
    if host in ANY_REMOTE_HOST:
        return ()
    try:
        return (Remote(IPv4Network(IPv4Address(host))),)
    except AddressValueError as error:
        raise UPnPError(600, "Argument Value Invalid: NewRemoteHost must be empty or an IPv4 address") from error


def _key(inputs: Inputs) -> tuple[TransportProtocol, int, tuple[Remote, ...]]:
    """Return the protocol, external port and remotes of an existing mapping; no mapping has port 0 (714)."""
    port = inputs["NewExternalPort"]
    if port == 0:
        raise UPnPError(714, "NoSuchEntryInArray: mappings have a port")
    return inputs["NewProtocol"], port, _remotes(inputs)


def get(inputs: Inputs, _parties: Parties) -> Exchange:
    """Read one mapping."""
    return Exchange(GetMapping(*_key(inputs)), _value)


def delete(inputs: Inputs, _parties: Parties) -> Exchange:
    """Close one mapping; without a remote host in the call, whatever its remotes are."""
    protocol, port, remotes = _key(inputs)
    return Exchange(UnmapPorts(protocol, range(port, port + 1), remotes or None))


def _range(inputs: Inputs) -> tuple[TransportProtocol, range]:
    """Return the protocol and the range, NewEndPort included; a range that ends before it begins is refused (733)."""
    first, last = inputs["NewStartPort"], inputs["NewEndPort"]
    if first > last:
        raise UPnPError(733, "InconsistentParameters: NewStartPort is above NewEndPort")
    return inputs["NewProtocol"], range(first, last + 1)


def delete_range(inputs: Inputs, _parties: Parties) -> Exchange:
    """Close all mappings of the peer in a range."""
    return Exchange(UnmapPorts(*_range(inputs)))


def internal_address(argument: str, version: int, parties: Parties) -> Address:
    """Return the address of this IP version that a call means which names none: the sender's.

    A call in the other IP version must name one (402), unless the peer has only one.
    """
    address = parties.address(version)
    if address is None:
        raise UPnPError(402, f"Invalid Args: {argument} is required in a call over IPv{parties.source.version}")
    return address


def _internal(inputs: Inputs, parties: Parties) -> Endpoint:
    """Return the internal endpoint; port 0 is refused (732)."""
    port = inputs["NewInternalPort"]
    if port == 0:
        raise UPnPError(732, "WildCardNotPermittedInIntPort")
    client = inputs["NewInternalClient"].strip()
    if not client:
        return Endpoint(internal_address("NewInternalClient", 4, parties), port)
    try:
        return Endpoint(IPv4Address(client), port)
    except AddressValueError as error:
        raise UPnPError(600, "Argument Value Invalid: NewInternalClient must be an IPv4 address") from error


def _map_port(inputs: Inputs, parties: Parties, *, any_port: bool) -> MapPort:
    if not inputs["NewEnabled"]:
        # RFC 6970: disabled mappings are not supported, Enabled must be 1.
        raise UPnPError(600, "Argument Value Invalid: NewEnabled must be 1")
    return MapPort(
        protocol=inputs["NewProtocol"],
        internal=_internal(inputs, parties),
        external_port=inputs["NewExternalPort"] or None,
        lifetime=inputs["NewLeaseDuration"] or ENDLESS,
        description=inputs["NewPortMappingDescription"],
        any_port=any_port,
        remotes=_remotes(inputs),
    )


def add(inputs: Inputs, parties: Parties) -> Exchange:
    """Map exactly this port; 0 would mean all ports that are not mapped otherwise, and is refused (716)."""
    request = _map_port(inputs, parties, any_port=False)
    if request.external_port is None:
        raise UPnPError(716, "WildCardNotPermittedInExtPort")
    return Exchange(request)


def add_any(inputs: Inputs, parties: Parties) -> Exchange:
    """Map this port or another, and answer with the port; 0 leaves the choice to the gateway."""
    request = _map_port(inputs, parties, any_port=True)
    return Exchange(request, lambda mapped: (mapped.mapping.external_port,))


def _value(mapped: Mapped) -> Values:
    """Return the values of VALUE; every mapping is enabled (RFC 6970)."""
    mapping = mapped.mapping
    return mapping.internal.port, mapping.internal.address, True, mapping.description, mapped.lifetime


def _entry(mapped: Mapped) -> Values:
    """Return the values of KEY and VALUE. Of several remotes UPnP can name one: the first, of a network its address."""
    mapping = mapped.mapping
    remote = mapping.remotes[0].network.network_address if mapping.remotes else ""
    return remote, mapping.external_port, mapping.protocol, *_value(mapped)


def get_at_index(inputs: Inputs, _parties: Parties) -> Exchange:
    """Read the peer's mapping at an index."""
    return Exchange(GetMappingAt(inputs["NewPortMappingIndex"]), _entry)


def list_range(inputs: Inputs, _parties: Parties) -> Exchange:
    """List the peer's mappings in a range: at most NewNumberOfPorts, where 0 is no limit; none at all is 730."""
    return Exchange(ListMappings(*_range(inputs), inputs["NewNumberOfPorts"]), _listing)


def _listing(reply: MappingList) -> Values:
    if not reply.mappings:
        raise UPnPError(730, "PortMappingNotFound")
    entries = (v.write(_LISTED, _entry(mapped)) for mapped in reply.mappings)
    elements = (("p:PortMappingEntry", tuple(entry.items())) for entry in entries)
    return (xml.fragment((_LISTING, tuple(elements))),)


def split_listing(listing: str) -> tuple[str, str, str]:
    """Return start tag, entries and end tag of a listing: between the tags there may also be the entries of several."""
    end = f"</{_LISTING.name}>"
    begin = listing[: listing.index(">") + 1]
    return begin, listing[len(begin) : -len(end)], end
