"""Port mappings in UPnP's words: arguments become requests, and mappings become arguments."""

from ipaddress import AddressValueError, IPv4Address, IPv4Network

from igd.core.mapping import Endpoint, Remote, TransportProtocol
from igd.core.request import ENDLESS, GetMapping, Mapped, MappingList, MapPort, UnmapPorts
from igd.wire.upnp import xml
from igd.wire.upnp.soap import Arguments, UPnPError

_ANY_REMOTE_HOST = {"", "*", "0.0.0.0", "0.0.0.0/0", "::", "::/0"}  # noqa: S104 - compared, never bound
"""The standard has the empty string; the others are seen from clients."""

_LIST = 'p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection"'


def _remotes(inputs: Arguments) -> tuple[Remote, ...]:
    """Give the one host that may come in, or none: everybody may. A name would have to be looked up (600)."""
    host = inputs["NewRemoteHost"].strip()
    if host in _ANY_REMOTE_HOST:
        return ()
    try:
        return (Remote(IPv4Network(IPv4Address(host))),)
    except AddressValueError as error:
        raise UPnPError(600, "Argument Value Invalid: NewRemoteHost must be empty or an IPv4 address") from error


def _key(inputs: Arguments) -> tuple[TransportProtocol, int, tuple[Remote, ...]]:
    """Give what names an existing mapping: none has port 0."""
    port = int(inputs["NewExternalPort"])
    if port == 0:
        raise UPnPError(714, "NoSuchEntryInArray: mappings have a port")
    return TransportProtocol[inputs["NewProtocol"]], port, _remotes(inputs)


def get(inputs: Arguments) -> GetMapping:
    """Give the request for the mapping named."""
    return GetMapping(*_key(inputs))


def delete(inputs: Arguments) -> UnmapPorts:
    """Give the request to close nothing but the mapping named, without a remote host whoever it is for."""
    protocol, port, remotes = _key(inputs)
    return UnmapPorts(protocol, port, port, remotes or None)


def ports(inputs: Arguments) -> tuple[TransportProtocol, int, int]:
    """Give the range, both ends included; one that ends before it begins is refused (733)."""
    first, last = int(inputs["NewStartPort"]), int(inputs["NewEndPort"])
    if first > last:
        raise UPnPError(733, "InconsistentParameters: NewStartPort is above NewEndPort")
    return TransportProtocol[inputs["NewProtocol"]], first, last


def _internal(inputs: Arguments, source: IPv4Address) -> Endpoint:
    """Give the internal end; without an address it is the sender's, with port 0 it is none (732)."""
    port = int(inputs["NewInternalPort"])
    if port == 0:
        raise UPnPError(732, "WildCardNotPermittedInIntPort")
    client = inputs["NewInternalClient"].strip()
    try:
        return Endpoint(IPv4Address(client) if client else source, port)
    except AddressValueError as error:
        raise UPnPError(600, "Argument Value Invalid: NewInternalClient must be an IPv4 address") from error


def _map_port(inputs: Arguments, source: IPv4Address, *, any_port: bool) -> MapPort:
    if inputs["NewEnabled"] == "0":
        # RFC 6970: a mapping that is there and does not work is not supported, Enabled must be 1.
        raise UPnPError(600, "Argument Value Invalid: NewEnabled must be 1")
    return MapPort(
        protocol=TransportProtocol[inputs["NewProtocol"]],
        internal=_internal(inputs, source),
        external_port=int(inputs["NewExternalPort"]) or None,
        lifetime=int(inputs["NewLeaseDuration"]) or ENDLESS,
        description=inputs["NewPortMappingDescription"],
        any_port=any_port,
        remotes=_remotes(inputs),
    )


def add(inputs: Arguments, source: IPv4Address) -> MapPort:
    """Give the request for exactly this port; 0 would mean all ports that nobody else has, and is refused (716)."""
    request = _map_port(inputs, source, any_port=False)
    if request.external_port is None:
        raise UPnPError(716, "WildCardNotPermittedInExtPort")
    return request


def add_any(inputs: Arguments, source: IPv4Address) -> MapPort:
    """Give the request for this port or another; 0 leaves the choice to the gateway."""
    return _map_port(inputs, source, any_port=True)


def _key_outputs(mapped: Mapped) -> Arguments:
    return {
        "NewRemoteHost": _remote_host(mapped.mapping.remotes),
        "NewExternalPort": str(mapped.mapping.external_port),
        "NewProtocol": mapped.mapping.protocol.name,
    }


def _remote_host(remotes: tuple[Remote, ...]) -> str:
    """Name the first of several, and of a network the first address: UPnP has no words for more."""
    return str(remotes[0].network.network_address) if remotes else ""


def value_outputs(mapped: Mapped) -> Arguments:
    """Give what is asked of a mapping whose key is known; every mapping is enabled (RFC 6970)."""
    return {
        "NewInternalPort": str(mapped.mapping.internal.port),
        "NewInternalClient": str(mapped.mapping.internal.address),
        "NewEnabled": "1",
        "NewPortMappingDescription": mapped.mapping.description,
        "NewLeaseDuration": str(mapped.lifetime),
    }


def entry_at_index(reply: MappingList, inputs: Arguments) -> Arguments:
    """Give one of the peer's own mappings; beyond the last 713, on which clients stop counting up."""
    index = int(inputs["NewPortMappingIndex"])
    if index >= len(reply.mappings):
        raise UPnPError(713, "SpecifiedArrayIndexInvalid")
    mapped = reply.mappings[index]
    return {**_key_outputs(mapped), **value_outputs(mapped)}


def listing(reply: MappingList, inputs: Arguments) -> Arguments:
    """Give those in range, at most NewNumberOfPorts, where 0 is no limit; nothing in range is an error (730)."""
    protocol, first, last = ports(inputs)
    found = [
        mapped
        for mapped in reply.mappings
        if mapped.mapping.protocol is protocol and first <= mapped.mapping.external_port <= last
    ]
    if not found:
        raise UPnPError(730, "PortMappingNotFound")
    wanted = found[: int(inputs["NewNumberOfPorts"]) or None]
    entries = tuple(_listed(mapped) for mapped in wanted)
    return {"NewPortListing": xml.CData(xml.fragment((_LIST, entries)))}


def _listed(mapped: Mapped) -> xml.Tree:
    """Two names differ from those of the arguments: the schema of the listing has them so."""
    fields = {**_key_outputs(mapped), **value_outputs(mapped)}
    renamed = {"NewPortMappingDescription": "NewDescription", "NewLeaseDuration": "NewLeaseTime"}
    return "p:PortMappingEntry", tuple((f"p:{renamed.get(name, name)}", value) for name, value in fields.items())
