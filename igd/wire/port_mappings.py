"""Port mappings in UPnP's words: arguments become requests, and mappings become arguments."""

from ipaddress import AddressValueError, IPv4Address

from igd.core.mapping import Endpoint, Protocol
from igd.core.request import ENDLESS, Mapped, Mappings, MapPort
from igd.wire import markup
from igd.wire.soap import Arguments, UPnPError

_ANY_REMOTE_HOST = {"", "*", "0.0.0.0", "0.0.0.0/0", "::", "::/0"}  # noqa: S104 - compared, never bound
"""The standard has the empty string; the others are seen from clients."""

_LIST = 'p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection"'


def key(inputs: Arguments) -> tuple[Protocol, int]:
    """Give what names an existing mapping: none has port 0, and none is for one remote host only."""
    port = int(inputs["NewExternalPort"])
    if port == 0 or inputs["NewRemoteHost"].strip() not in _ANY_REMOTE_HOST:
        raise UPnPError(714, "NoSuchEntryInArray: mappings have a port, and are for any remote host")
    return Protocol[inputs["NewProtocol"]], port


def one_port(inputs: Arguments) -> tuple[Protocol, int, int]:
    """Give the range that holds nothing but the mapping named."""
    protocol, port = key(inputs)
    return protocol, port, port


def ports(inputs: Arguments) -> tuple[Protocol, int, int]:
    """Give the range, both ends included; one that ends before it begins is refused (733)."""
    first, last = int(inputs["NewStartPort"]), int(inputs["NewEndPort"])
    if first > last:
        raise UPnPError(733, "InconsistentParameters: NewStartPort is above NewEndPort")
    return Protocol[inputs["NewProtocol"]], first, last


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
    if inputs["NewRemoteHost"].strip() not in _ANY_REMOTE_HOST:
        raise UPnPError(726, "RemoteHostOnlySupportsWildcard")
    if inputs["NewEnabled"] == "0":
        # RFC 6970: a mapping that is there and does not work is not supported, Enabled must be 1.
        raise UPnPError(600, "Argument Value Invalid: NewEnabled must be 1")
    return MapPort(
        protocol=Protocol[inputs["NewProtocol"]],
        internal=_internal(inputs, source),
        external_port=int(inputs["NewExternalPort"]) or None,
        lifetime=int(inputs["NewLeaseDuration"]) or ENDLESS,
        description=inputs["NewPortMappingDescription"],
        any_port=any_port,
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
        "NewRemoteHost": "",
        "NewExternalPort": str(mapped.mapping.external_port),
        "NewProtocol": mapped.mapping.protocol.name,
    }


def value_outputs(mapped: Mapped) -> Arguments:
    """Give what is asked of a mapping whose key is known; every mapping is enabled (RFC 6970)."""
    return {
        "NewInternalPort": str(mapped.mapping.internal.port),
        "NewInternalClient": str(mapped.mapping.internal.address),
        "NewEnabled": "1",
        "NewPortMappingDescription": mapped.mapping.description,
        "NewLeaseDuration": str(mapped.lifetime),
    }


def entry_at_index(reply: Mappings, inputs: Arguments) -> Arguments:
    """Give one of the peer's own mappings; beyond the last 713, on which clients stop counting up."""
    index = int(inputs["NewPortMappingIndex"])
    if index >= len(reply.mappings):
        raise UPnPError(713, "SpecifiedArrayIndexInvalid")
    mapped = reply.mappings[index]
    return {**_key_outputs(mapped), **value_outputs(mapped)}


def listing(reply: Mappings, inputs: Arguments) -> Arguments:
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
    return {"NewPortListing": markup.CData(markup.fragment((_LIST, entries)))}


def _listed(mapped: Mapped) -> markup.Tree:
    """Two names differ from those of the arguments: the schema of the listing has them so."""
    fields = {**_key_outputs(mapped), **value_outputs(mapped)}
    renamed = {"NewPortMappingDescription": "NewDescription", "NewLeaseDuration": "NewLeaseTime"}
    return "p:PortMappingEntry", tuple((f"p:{renamed.get(name, name)}", value) for name, value in fields.items())
