"""NAT-PMP's and PCP's words become requests, and replies become their answers. Section numbers are RFC 6887's."""

from dataclasses import replace
from ipaddress import IPv4Address

from igd.core.mapping import AnyMapping, Endpoint, Pinhole, Remote, TransportProtocol
from igd.core.request import (
    ExternalAddress,
    GetExternalAddress,
    Mapped,
    MapPort,
    Refusal,
    Refused,
    Reply,
    Request,
    UnmapInternal,
    Unmapped,
)
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import Address, Filter, Options, PortSet

SHORTEST_LIFETIME = 120
LONGEST_LIFETIME = 86400
"""Seconds that PCP grants (§15)."""

LARGEST_SET = 256
"""How many ports in a row one request of PCP may get."""

NATPMP_RESULTS: dict[Refusal, natpmp.Result] = {
    Refusal.NOT_A_PEER: natpmp.Result.NOT_AUTHORIZED,
    Refusal.NOT_YOUR_ADDRESS: natpmp.Result.NOT_AUTHORIZED,
    Refusal.FORBIDDEN: natpmp.Result.NOT_AUTHORIZED,
    Refusal.CONFLICT: natpmp.Result.OUT_OF_RESOURCES,
    Refusal.OTHER_NONCE: natpmp.Result.NOT_AUTHORIZED,
    Refusal.TOO_MANY_REMOTES: natpmp.Result.OUT_OF_RESOURCES,
    Refusal.QUOTA: natpmp.Result.OUT_OF_RESOURCES,
    Refusal.NO_FREE_PORT: natpmp.Result.OUT_OF_RESOURCES,
    Refusal.TOO_MANY_REQUESTS: natpmp.Result.OUT_OF_RESOURCES,
    Refusal.NO_SUCH_MAPPING: natpmp.Result.NOT_AUTHORIZED,
    Refusal.NO_EXTERNAL_ADDRESS: natpmp.Result.NETWORK_FAILURE,
    Refusal.SYSTEM_FAILURE: natpmp.Result.OUT_OF_RESOURCES,
}

PCP_RESULTS: dict[Refusal, pcp.Result] = {
    Refusal.NOT_A_PEER: pcp.Result.NOT_AUTHORIZED,
    Refusal.NOT_YOUR_ADDRESS: pcp.Result.NOT_AUTHORIZED,
    Refusal.FORBIDDEN: pcp.Result.NOT_AUTHORIZED,
    Refusal.CONFLICT: pcp.Result.CANNOT_PROVIDE_EXTERNAL,
    Refusal.OTHER_NONCE: pcp.Result.NOT_AUTHORIZED,
    Refusal.TOO_MANY_REMOTES: pcp.Result.EXCESSIVE_REMOTE_PEERS,
    Refusal.QUOTA: pcp.Result.USER_EX_QUOTA,
    Refusal.NO_FREE_PORT: pcp.Result.NO_RESOURCES,
    Refusal.TOO_MANY_REQUESTS: pcp.Result.NO_RESOURCES,
    Refusal.NO_SUCH_MAPPING: pcp.Result.NOT_AUTHORIZED,
    Refusal.NO_EXTERNAL_ADDRESS: pcp.Result.NETWORK_FAILURE,
    Refusal.SYSTEM_FAILURE: pcp.Result.NO_RESOURCES,
}


def from_natpmp(asked: natpmp.Request, source: IPv4Address) -> Request | natpmp.Result:
    """Give the request, or the failure that needs no decision; the internal address is always the source."""
    if isinstance(asked, natpmp.AddressRequest):
        return GetExternalAddress()
    if asked.lifetime == 0:
        return UnmapInternal(asked.protocol, source, asked.internal_port or None, b"")
    if asked.internal_port == 0:
        return natpmp.Result.NOT_AUTHORIZED  # all ports are for deleting alone (RFC 6886 §3.4)
    return MapPort(
        protocol=asked.protocol,
        internal=Endpoint(source, asked.internal_port),
        external_port=asked.external_port or asked.internal_port,
        lifetime=asked.lifetime,
        description="NAT-PMP",
        any_port=True,
        nonce=b"",
        adds_remotes=True,
    )


def to_natpmp(asked: natpmp.Request, reply: Reply | natpmp.Result, epoch: int) -> natpmp.Response:
    """Give the answer to a request that `from_natpmp` has read."""
    match asked, reply:
        case natpmp.AddressRequest(), ExternalAddress(address):
            return natpmp.AddressResponse(natpmp.Result.SUCCESS, epoch, address)
        case natpmp.MapRequest(protocol, port), Mapped(mapping, lifetime):
            return natpmp.MapResponse(protocol, natpmp.Result.SUCCESS, epoch, port, mapping.external_port, lifetime)
        case natpmp.MapRequest(protocol, port), Unmapped():
            return natpmp.MapResponse(protocol, natpmp.Result.SUCCESS, epoch, port, 0, 0)
        case _, Refused(reason):
            return natpmp.refuse(asked, NATPMP_RESULTS[reason], epoch)
        case _, natpmp.Result():
            return natpmp.refuse(asked, reply, epoch)
    raise AssertionError("a reply to another request")


def from_pcp(asked: pcp.Request, external: IPv4Address | None, *, third_party: bool) -> Request | pcp.Result | None:
    """Give the request, or the failure that needs no decision; None: an announcement is asked for, and nothing else.

    `external` is the address that clients are told.
    """
    payload, options = asked.payload, asked.options
    if isinstance(payload, Announce):
        return None
    if options.third_party is not None and not third_party:
        return pcp.Result.UNSUPP_OPTION
    internal = options.third_party or asked.client
    if asked.lifetime == 0:
        return _unmap(payload, options, internal)
    return _failure(payload, options, internal, external) or _map(asked.lifetime, payload, options, internal)


def _failure(payload: Map, options: Options, internal: Address, external: IPv4Address | None) -> pcp.Result | None:
    wish, here = payload.external_address, external if internal.version == 4 else internal
    rows = (
        # all protocols and all ports are for deleting alone
        (payload.protocol not in _PROTOCOLS or payload.internal_port == 0, pcp.Result.UNSUPP_PROTOCOL),
        (any(not _concerns(each, internal) for each in options.filters), pcp.Result.MALFORMED_OPTION),
        # a row is given as far as it can be had (RFC 7753 §4.2)
        (options.prefer_failure and options.port_set is not None, pcp.Result.MALFORMED_OPTION),
        (options.prefer_failure and int(wish) != 0 and wish != here, pcp.Result.CANNOT_PROVIDE_EXTERNAL),
    )
    return next((result for wrong, result in rows if wrong), None)


def _concerns(each: Filter, internal: Address) -> bool:
    """All filters can be removed in the words of either family (§13.3)."""
    return each.network is None or each.network.version == internal.version


_PROTOCOLS = frozenset(TransportProtocol)


def _unmap(payload: Map, options: Options, internal: Address) -> Request | pcp.Result:
    if payload.protocol not in {0, *_PROTOCOLS}:
        return pcp.Result.UNSUPP_PROTOCOL
    protocol = TransportProtocol(payload.protocol) if payload.protocol else None
    count = options.port_set.size if options.port_set else 1
    return UnmapInternal(protocol, internal, payload.internal_port or None, payload.nonce, count)


def _map(lifetime: int, payload: Map, options: Options, internal: Address) -> MapPort:
    remotes, adds_remotes = _remotes(options.filters)
    ports = options.port_set or PortSet(1, payload.internal_port)
    return MapPort(
        protocol=TransportProtocol(payload.protocol),
        internal=Endpoint(internal, payload.internal_port),
        external_port=payload.external_port or payload.internal_port,
        lifetime=max(SHORTEST_LIFETIME, min(LONGEST_LIFETIME, lifetime)),
        description="PCP",
        any_port=not options.prefer_failure,
        remotes=remotes,
        nonce=payload.nonce,
        adds_remotes=adds_remotes,
        count=min(ports.size, LARGEST_SET),
        keeps_parity=ports.parity,
    )


def _remotes(filters: tuple[Filter, ...]) -> tuple[tuple[Remote, ...], bool]:
    """Give the remotes that are left of the filters in their order, and whether those of before stay (§13.3)."""
    remotes: dict[Remote, None] = {}
    adds = True
    for each in filters:
        if each.network is None:
            remotes, adds = {}, False
        else:
            remotes[Remote(each.network, each.port)] = None
    return tuple(remotes), adds


def to_pcp(
    datagram: bytes, asked: pcp.Request, reply: Reply | pcp.Result | None, epoch: int, external: IPv4Address | None
) -> bytes:
    """Give the answer to a request that `from_pcp` has read; errors are copies of the datagram (§8.2)."""
    match asked.payload, reply:
        case Announce(), None:
            return pcp.encode_response(pcp.Response(0, epoch, Announce()))
        case Map() as payload, Unmapped():
            return pcp.encode_response(pcp.Response(0, epoch, payload, asked.options))
        case Map(), Mapped():
            return pcp.encode_response(granted(asked, reply, epoch, external))
        case _, Refused(reason):
            return pcp.encode_error(datagram, _refusal(reason, asked.options), epoch)
        case _, pcp.Result():
            return pcp.encode_error(datagram, reply, epoch)
    raise AssertionError("a reply to another request")


def _refusal(reason: Refusal, options: Options) -> pcp.Result:
    result = PCP_RESULTS[reason]
    # that is for those alone who ask for this port or none (§7.4)
    unasked = result is pcp.Result.CANNOT_PROVIDE_EXTERNAL and not options.prefer_failure
    return pcp.Result.NO_RESOURCES if unasked else result


def granted(asked: pcp.Request, mapped: Mapped, epoch: int, external: IPv4Address | None) -> pcp.Response:
    """Give the answer that tells of a mapping (§11.4), with the options that were processed (§7.3).

    A set of one port is none (RFC 7753 §4.2).
    """
    payload, mapping = asked.payload, mapped.mapping
    assert isinstance(payload, Map), "nothing else is mapped"
    address = _external(mapping, external)
    told = Map(payload.nonce, payload.protocol, payload.internal_port, mapping.external_port, address)
    options = asked.options
    if options.port_set is not None:
        port_set = replace(options.port_set, size=mapped.count) if mapped.count > 1 else None
        options = replace(options, port_set=port_set)
    return pcp.Response(min(LONGEST_LIFETIME, mapped.lifetime), epoch, told, options)


def changed(mapped: Mapped, epoch: int, external: IPv4Address | None) -> bytes:
    """Give what a client of PCP is told, unasked, of its mapping (§14.2)."""
    mapping = mapped.mapping
    assert mapping.nonce, "nobody else would understand it"
    address = _external(mapping, external)
    told = Map(mapping.nonce, mapping.protocol, mapping.internal.port, mapping.external_port, address)
    return pcp.encode_response(pcp.Response(min(LONGEST_LIFETIME, mapped.lifetime), epoch, told))


def _external(mapping: AnyMapping, external: IPv4Address | None) -> Address:
    return mapping.internal.address if isinstance(mapping, Pinhole) else external or IPv4Address(0)
