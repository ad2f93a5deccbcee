"""From NAT-PMP and PCP to the gateway's requests, and from its replies to responses. Sections are of RFC 6887."""

from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import ClassVar

from igd.core.mapping import (
    BY_INTERNAL_ENDPOINT,
    SAME_PORT,
    AnyMapping,
    Claim,
    ControlProtocol,
    Endpoint,
    Pinhole,
    Remote,
    TransportProtocol,
)
from igd.core.request import (
    ExternalAddress,
    GetExternalAddress,
    Mapped,
    MapPort,
    Refusal,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
)
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import NO_OPTIONS, Address, Filter, Options, PortSet

MIN_LIFETIME = 120
MAX_LIFETIME = 86400
"""The shortest and the longest lifetime that PCP grants, in seconds (§15)."""

MAX_PORT_SET_SIZE = 256
"""The most ports that one PCP request gets."""

_PROTOCOLS = frozenset(TransportProtocol)

RESULTS: dict[Refusal, tuple[natpmp.Result, pcp.Result]] = {
    Refusal.NOT_A_PEER: (natpmp.Result.NOT_AUTHORIZED, pcp.Result.NOT_AUTHORIZED),
    Refusal.NOT_YOUR_ADDRESS: (natpmp.Result.NOT_AUTHORIZED, pcp.Result.NOT_AUTHORIZED),
    Refusal.PROTOCOL_FORBIDDEN: (natpmp.Result.NOT_AUTHORIZED, pcp.Result.NOT_AUTHORIZED),
    Refusal.FORBIDDEN: (natpmp.Result.NOT_AUTHORIZED, pcp.Result.NOT_AUTHORIZED),
    Refusal.NO_PINHOLES: (natpmp.Result.NOT_AUTHORIZED, pcp.Result.NOT_AUTHORIZED),
    Refusal.STATIC: (natpmp.Result.NOT_AUTHORIZED, pcp.Result.NOT_AUTHORIZED),
    Refusal.CONFLICT: (natpmp.Result.OUT_OF_RESOURCES, pcp.Result.CANNOT_PROVIDE_EXTERNAL),
    Refusal.OTHER_NONCE: (natpmp.Result.NOT_AUTHORIZED, pcp.Result.NOT_AUTHORIZED),
    Refusal.TOO_MANY_REMOTES: (natpmp.Result.OUT_OF_RESOURCES, pcp.Result.EXCESSIVE_REMOTE_PEERS),
    Refusal.QUOTA: (natpmp.Result.OUT_OF_RESOURCES, pcp.Result.USER_EX_QUOTA),
    Refusal.NO_FREE_PORT: (natpmp.Result.OUT_OF_RESOURCES, pcp.Result.NO_RESOURCES),
    Refusal.TOO_MANY_REQUESTS: (natpmp.Result.OUT_OF_RESOURCES, pcp.Result.NO_RESOURCES),
    Refusal.NO_SUCH_MAPPING: (natpmp.Result.NOT_AUTHORIZED, pcp.Result.NOT_AUTHORIZED),
    Refusal.NO_EXTERNAL_ADDRESS: (natpmp.Result.NETWORK_FAILURE, pcp.Result.NETWORK_FAILURE),
    Refusal.SYSTEM_FAILURE: (natpmp.Result.OUT_OF_RESOURCES, pcp.Result.NO_RESOURCES),
}
"""The result codes of both protocols for each refusal."""


@dataclass(frozen=True, slots=True)
class NatpmpExchange:
    """A NAT-PMP message, and the request that it makes of the gateway."""

    message: natpmp.Request
    request: Request
    protocol: ClassVar = ControlProtocol.NAT_PMP

    def encode(self, reply: Reply | None, epoch: int, _external: IPv4Address | None) -> bytes:
        """Encode the response to the gateway's reply."""
        match self.message, reply:
            case natpmp.AddressRequest(), ExternalAddress(address):
                return natpmp.encode_address(natpmp.Result.SUCCESS, epoch, address)
            case natpmp.MapRequest() as message, Mapped(mapping, lifetime):
                return natpmp.encode_mapping(message, natpmp.Result.SUCCESS, epoch, mapping.external_port, lifetime)
            case natpmp.MapRequest(), Unmapped():
                result = natpmp.Result.SUCCESS
            case _, Refusal() as reason:
                result = RESULTS[reason][0]
            case _:
                raise AssertionError("a reply to another request")
        return natpmp.encode_result(self.message, result, epoch)


@dataclass(frozen=True, slots=True)
class PcpExchange:
    """A PCP message, and the request that it makes of the gateway, or the result that needs no decision."""

    datagram: bytes
    message: pcp.Request
    request: Request | pcp.Result
    protocol: ClassVar = ControlProtocol.PCP

    def encode(self, reply: Reply | None, epoch: int, external: IPv4Address | None) -> bytes:
        """Encode the response to the gateway's reply, None if the gateway was not asked; errors are copies (§8.2)."""
        payload, options = self.message.payload, self.message.options
        match payload, reply:
            case Map(nonce), Mapped():
                return _encode_mapped(nonce, options, reply, epoch, external)
            case Map(), Unmapped():
                result = pcp.Result.SUCCESS
            case _, Refusal() as reason:
                result = RESULTS[reason][1]
                # CANNOT_PROVIDE_EXTERNAL is reserved for PREFER_FAILURE (§7.4)
                if result is pcp.Result.CANNOT_PROVIDE_EXTERNAL and not options.prefer_failure:
                    result = pcp.Result.NO_RESOURCES
            case _, None if isinstance(self.request, pcp.Result):
                result = self.request
            case _:
                raise AssertionError("a reply to another request")
        if result is not pcp.Result.SUCCESS:
            return pcp.encode_error(self.datagram, result, epoch)
        return pcp.encode_response(0, epoch, payload, options)


Exchange = NatpmpExchange | PcpExchange


def decode(
    datagram: bytes, source: Address, epoch: int, external: IPv4Address | None, *, third_party: bool
) -> Exchange:
    """Decode a datagram from `source`: NAT-PMP has version 0 and IPv4 only, everything else is PCP (§9).

    `external` is the announced external address; `third_party` enables the option THIRD_PARTY. Raise InvalidRequest.
    """
    if natpmp.is_natpmp(datagram) and isinstance(source, IPv4Address):
        natpmp_message = natpmp.decode_request(datagram, epoch)
        return NatpmpExchange(natpmp_message, _from_natpmp(natpmp_message, source))
    message = pcp.decode_request(datagram, source, epoch)
    return PcpExchange(datagram, message, _from_pcp(message, external, third_party=third_party))


def _from_natpmp(message: natpmp.Request, source: IPv4Address) -> Request:
    """Return the request of a message; the internal address is always the source."""
    if isinstance(message, natpmp.AddressRequest):
        return GetExternalAddress()
    if message.lifetime == 0:
        return UnmapInternal(message.protocol, source, message.internal_port or None, BY_INTERNAL_ENDPOINT)
    return MapPort(
        protocol=message.protocol,
        internal=Endpoint(source, message.internal_port),
        external_port=_suggested(message),
        lifetime=message.lifetime,
        description="NAT-PMP" if message.internal_port else SAME_PORT,
        any_port=True,
        claim=BY_INTERNAL_ENDPOINT,
        adds_remotes=True,
    )


def _suggested(message: natpmp.MapRequest) -> int | None:
    """Return the suggested external port; without one, the internal port is suggested.

    RFC 6886 gives internal port 0 no meaning here. Clients of ProtonVPN use it to be given a port that is the same
    inside and outside, and its guides suggest external port 1 with it.
    """
    if message.internal_port == 0 and message.external_port == 1:
        return None
    return message.external_port or message.internal_port or None


def _from_pcp(message: pcp.Request, external: IPv4Address | None, *, third_party: bool) -> Request | pcp.Result:
    payload, options = message.payload, message.options
    if isinstance(payload, Announce):
        return pcp.Result.SUCCESS
    if options.third_party is not None and not third_party:
        return pcp.Result.UNSUPP_OPTION
    internal = options.third_party or message.client
    if message.lifetime == 0:
        return _unmap(payload, options, internal)
    return _error(payload, options, internal, external) or _map(message.lifetime, payload, options, internal)


def _error(payload: Map, options: Options, internal: Address, external: IPv4Address | None) -> pcp.Result | None:
    """Return the error of a request that the gateway cannot grant, or None."""
    suggested, assigned = payload.external_address, external if internal.version == 4 else internal
    elsewhere = int(suggested) != 0 and suggested != assigned
    networks = [each.network for each in options.filters]
    rows = (
        # all protocols and all ports can be deleted, not mapped
        (payload.protocol not in _PROTOCOLS or payload.internal_port == 0, pcp.Result.UNSUPP_PROTOCOL),
        # a filter that removes all filters is valid in either address family (§13.3)
        (any(network and network.version != internal.version for network in networks), pcp.Result.MALFORMED_OPTION),
        # fewer ports than requested may be granted (RFC 7753 §4.2)
        (options.prefer_failure and options.port_set is not None, pcp.Result.MALFORMED_OPTION),
        (options.prefer_failure and elsewhere, pcp.Result.CANNOT_PROVIDE_EXTERNAL),
    )
    return next((result for wrong, result in rows if wrong), None)


def _unmap(payload: Map, options: Options, internal: Address) -> Request | pcp.Result:
    if payload.protocol not in {0, *_PROTOCOLS}:
        return pcp.Result.UNSUPP_PROTOCOL
    protocol = TransportProtocol(payload.protocol) if payload.protocol else None
    count = options.port_set.size if options.port_set else 1
    return UnmapInternal(
        protocol, internal, payload.internal_port or None, Claim(by_internal=True, nonce=payload.nonce), count
    )


def _map(lifetime: int, payload: Map, options: Options, internal: Address) -> MapPort:
    remotes, adds_remotes = _remotes(options.filters)
    ports = options.port_set or PortSet(1, payload.internal_port)
    return MapPort(
        protocol=TransportProtocol(payload.protocol),
        internal=Endpoint(internal, payload.internal_port),
        external_port=payload.external_port or payload.internal_port,
        lifetime=max(MIN_LIFETIME, min(MAX_LIFETIME, lifetime)),
        description="PCP",
        any_port=not options.prefer_failure,
        remotes=remotes,
        claim=Claim(by_internal=True, nonce=payload.nonce),
        adds_remotes=adds_remotes,
        count=min(ports.size, MAX_PORT_SET_SIZE),
        keeps_parity=ports.parity,
    )


def _remotes(filters: tuple[Filter, ...]) -> tuple[tuple[Remote, ...], bool]:
    """Return the remotes that the filters leave in force, and whether the mapping keeps its earlier ones (§13.3)."""
    remotes: dict[Remote, None] = {}
    adds = True
    for each in filters:
        network = each.network
        if network is None:
            remotes, adds = {}, False
        else:
            remotes[Remote(network, each.port)] = None
    return tuple(remotes), adds


def encode_update(mapped: Mapped, epoch: int, external: IPv4Address | None) -> bytes:
    """Encode the unsolicited response that updates a PCP client's mapping (§14.2)."""
    assert mapped.mapping.claim.nonce, "a mapping that PCP requested"
    return _encode_mapped(mapped.mapping.claim.nonce, NO_OPTIONS, mapped, epoch, external)


def encode_closed(mapping: AnyMapping, epoch: int, external: IPv4Address | None) -> bytes:
    """Encode the unsolicited response that tells a PCP client that its mapping was closed: its lifetime is 0."""
    return encode_update(Mapped(mapping, 0), epoch, external)


def _encode_mapped(nonce: bytes, options: Options, mapped: Mapped, epoch: int, external: IPv4Address | None) -> bytes:
    """Encode the response with the assigned external port and address (§11.4); one port is no set (RFC 7753 §4.2)."""
    mapping = mapped.mapping
    address = mapping.internal.address if isinstance(mapping, Pinhole) else external or IPv4Address(0)
    payload = Map(nonce, mapping.protocol, mapping.internal.port, mapping.external_port, address)
    if options.port_set is not None:
        port_set = replace(options.port_set, size=mapped.count) if mapped.count > 1 else None
        options = replace(options, port_set=port_set)
    return pcp.encode_response(min(MAX_LIFETIME, mapped.lifetime), epoch, payload, options)
