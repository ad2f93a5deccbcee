"""What the actions of WANIPv6FirewallControl:1 ask and answer; their arguments have no prefix "New"."""

from ipaddress import AddressValueError, IPv6Address, IPv6Network

from igd.core.mapping import Endpoint, Pinhole, Remote, TransportProtocol
from igd.core.request import (
    GetPinholeTimeout,
    GetPinholeTraffic,
    Mapped,
    MapPort,
    PinholeTraffic,
    RenewPinhole,
    UnmapPinhole,
)
from igd.core.unicast import is_unicast
from igd.wire.upnp import variables as v
from igd.wire.upnp.requests import ANY_REMOTE_HOST, Exchange, Parties, Values, internal_address
from igd.wire.upnp.soap import UPnPError
from igd.wire.upnp.variables import Inputs

FLOW = {
    "RemoteHost": v.IPV6_ADDRESS,
    "RemotePort": v.PORT,
    "InternalClient": v.IPV6_ADDRESS,
    "InternalPort": v.PORT,
    "Protocol": v.PROTOCOL_NUMBER,
}
UNIQUE_ID = {"UniqueID": v.UNIQUE_ID}

_ALL_PROTOCOLS = 65535
_ALL_REMOTES = IPv6Network("::/0")


def add(inputs: Inputs, parties: Parties) -> Exchange:
    """Open a pinhole, or renew the one with the same arguments; the lease may be another (§2.5.3)."""
    internal = _internal(inputs, parties)
    request = MapPort(
        protocol=_protocol(inputs),
        internal=internal,
        external_port=internal.port,
        lifetime=inputs["LeaseTime"],
        remotes=_remotes(inputs),
    )
    return Exchange(request, _unique_id)


def _unique_id(mapped: Mapped) -> Values:
    assert isinstance(mapped.mapping, Pinhole), "an internal IPv6 address gets a pinhole"
    return (mapped.mapping.unique_id,)


def _internal(inputs: Inputs, parties: Parties) -> Endpoint:
    """Return the internal endpoint; port 0 would be all ports, which is refused (706)."""
    if inputs["InternalPort"] == 0:
        raise UPnPError(706, "InternalPortWildcardingNotAllowed")
    client = _bare(inputs["InternalClient"])
    if not client:
        return Endpoint(internal_address("InternalClient", 6, parties), inputs["InternalPort"])
    try:
        return Endpoint(IPv6Address(client), inputs["InternalPort"])
    except AddressValueError as error:
        raise UPnPError(600, "Argument Value Invalid: InternalClient must be an IPv6 address") from error


def _protocol(inputs: Inputs) -> TransportProtocol:
    """Return the protocol; all at once is refused (707), and so is any but TCP and UDP (705)."""
    if inputs["Protocol"] == _ALL_PROTOCOLS:
        raise UPnPError(707, "ProtocolWildcardingNotAllowed")
    try:
        return TransportProtocol(inputs["Protocol"])
    except ValueError as error:
        raise UPnPError(705, "ProtocolNotSupported: Protocol must be 6 (TCP) or 17 (UDP)") from error


def _remotes(inputs: Inputs) -> tuple[Remote, ...]:
    """Return what may connect, none for any host and port; a host name would need a look-up and is refused (600).

    A network in prefix notation is more than the standard has, and means one thing.
    """
    host = _bare(inputs["RemoteHost"])
    try:
        network = _ALL_REMOTES if host in ANY_REMOTE_HOST else IPv6Network(host)
    except ValueError as error:
        raise UPnPError(600, "Argument Value Invalid: RemoteHost must be empty or an IPv6 address") from error
    if network != _ALL_REMOTES and not is_unicast(network.network_address):
        raise UPnPError(600, "Argument Value Invalid: no host of the internet has RemoteHost as its address")
    remote = Remote(network, inputs["RemotePort"])
    return () if remote == Remote(_ALL_REMOTES) else (remote,)


def _bare(address: str) -> str:
    """Return an address without brackets and zone, which mean nothing outside the sender's host (RFC 4007 §11.2)."""
    address, _, _zone = address.strip().removeprefix("[").removesuffix("]").partition("%")
    return address


def update(inputs: Inputs, _parties: Parties) -> Exchange:
    """Give a pinhole another lease."""
    return Exchange(RenewPinhole(inputs["UniqueID"], inputs["NewLeaseTime"]))


def delete(inputs: Inputs, _parties: Parties) -> Exchange:
    """Close a pinhole."""
    return Exchange(UnmapPinhole(inputs["UniqueID"]))


def get_packets(inputs: Inputs, _parties: Parties) -> Exchange:
    """Read how many packets have passed from the internet."""
    return Exchange(GetPinholeTraffic(inputs["UniqueID"]), lambda traffic: (traffic.packets,))


def check(inputs: Inputs, _parties: Parties) -> Exchange:
    """Answer that a pinhole works if packets have passed; before the first one, nobody knows (709)."""

    def values(traffic: PinholeTraffic) -> Values:
        if not traffic.packets:
            raise UPnPError(709, "NoTrafficReceived")
        return (True,)

    return Exchange(GetPinholeTraffic(inputs["UniqueID"]), values)


def get_outbound_timeout(inputs: Inputs, _parties: Parties) -> Exchange:
    """Read how long an outbound flow may be silent; that depends on its protocol alone."""
    return Exchange(GetPinholeTimeout(_protocol(inputs)), lambda timeout: (timeout.seconds,))
