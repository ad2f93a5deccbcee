"""The sets of the table that counts, their rules, and the elements that count for mappings. Bytes only."""

import struct
from collections.abc import Iterator

from igd.core.mapping import AnyMapping, PortMapping, TransportProtocol
from igd.firewall import nf_tables as nf
from igd.firewall.backend import Traffic
from igd.firewall.nfnetlink import attributes, body, nested, pairs, text, u8, u32, value
from igd.firewall.nft.elements import INET_PROTO, INET_SERVICE, IPV6_ADDR, NftSet, Placed
from igd.firewall.nft.expressions import (
    DADDR6,
    DPORT,
    IIFNAME,
    IPV4,
    IPV6,
    L4PROTO,
    SADDR6,
    SPORT,
    EncodedRule,
    Field,
    compare,
    has_mark,
    interface,
    jump,
    load,
    membership,
)
from igd.firewall.site import Site

RECEIVED = "received"
"""The chain that received packets pass, with the rules of `lookups`."""

_KEY = nf.NFTA_SET_ELEM.KEY  # in Python 3.11 an enum's member is slow to look up
_COUNTS = nf.NFTA_COUNTER.PACKETS, nf.NFTA_COUNTER.BYTES
_NO_FLAGS = nf.NFT_SET(0)
_PINHOLE = (IPV6_ADDR, INET_PROTO, INET_SERVICE)

PORT_MAPPINGS = NftSet("port_mappings", (INET_PROTO, INET_SERVICE), flags=_NO_FLAGS)
PINHOLES = NftSet("pinholes", _PINHOLE, flags=_NO_FLAGS)
FROM_ADDRESS = NftSet("pinholes_from", (IPV6_ADDR, *_PINHOLE), flags=_NO_FLAGS)
FROM_PORT = NftSet("pinholes_from_port", (IPV6_ADDR, *_PINHOLE, INET_SERVICE), flags=_NO_FLAGS)
FROM_ANY_PORT = NftSet("pinholes_from_any_port", (*_PINHOLE, INET_SERVICE), flags=_NO_FLAGS)
SETS = (PORT_MAPPINGS, PINHOLES, FROM_ADDRESS, FROM_PORT, FROM_ANY_PORT)

_ORIGINAL_PORT = Field(
    "ct", nf.NFTA_CT.DREG, u32(nf.NFTA_CT.KEY, nf.NFT_CT.PROTO_DST) + u8(nf.NFTA_CT.DIRECTION, nf.IP_CT_DIR.ORIGINAL)
)

COUNTER = nested(nf.NFTA_SET.EXPR, text(nf.NFTA_EXPR.NAME, "counter"), nested(nf.NFTA_EXPR.DATA))
"""The attribute of a set that gives each of its elements a counter."""


def from_outside(site: Site) -> EncodedRule:
    """Return the rule for packets of mapped flows that do not come from a peer: no answers, nothing hairpin."""
    return *has_mark(site.mark), *interface(IIFNAME, site.wireguard, nf.NFT_CMP.NEQ), jump(RECEIVED)


def lookups(nft_set: NftSet) -> list[EncodedRule]:
    """Return the rules that look up received packets in the set."""
    if nft_set is PORT_MAPPINGS:
        ports = membership(nft_set, L4PROTO, _ORIGINAL_PORT)
        return [(*IPV4, load(L4PROTO), compare(bytes([protocol])), *ports) for protocol in TransportProtocol]
    return [(*IPV6, *membership(nft_set, *_FIELDS[nft_set]))]


_FIELDS: dict[NftSet, tuple[Field, ...]] = {
    PINHOLES: (DADDR6, L4PROTO, DPORT),
    FROM_ADDRESS: (SADDR6, DADDR6, L4PROTO, DPORT),
    FROM_PORT: (SADDR6, DADDR6, L4PROTO, DPORT, SPORT),
    FROM_ANY_PORT: (DADDR6, L4PROTO, DPORT, SPORT),
}
"""What of a packet is looked up in the sets of pinholes."""


def place(mapping: AnyMapping) -> Placed:
    """Return the set and the key of the element that counts for this mapping.

    A pinhole for a network of remotes has the one in PINHOLES, which counts all that comes to its endpoint.
    """
    port = struct.pack(">B3xH2x", mapping.protocol, mapping.external_port)
    if isinstance(mapping, PortMapping):
        return PORT_MAPPINGS, value(_KEY, port)
    endpoint, remote = mapping.internal.address.packed + port, mapping.key[3] if len(mapping.key) == 4 else None
    source_port = struct.pack(">H2x", remote.port) if remote and remote.port else b""
    if remote and remote.network.prefixlen == remote.network.max_prefixlen:
        address = remote.network.network_address.packed
        return (FROM_PORT if source_port else FROM_ADDRESS), value(_KEY, address + endpoint + source_port)
    if source_port and remote and not remote.network.prefixlen:
        return FROM_ANY_PORT, value(_KEY, endpoint + source_port)
    return PINHOLES, value(_KEY, endpoint)


def traffic(payload: bytes | None) -> Traffic | None:
    """Return what the kernel has counted in the element that it answered."""
    for found in _elements(payload or b""):
        counter = attributes(attributes(found.get(nf.NFTA_SET_ELEM.EXPR, b"")).get(nf.NFTA_EXPR.DATA, b""))
        if nf.NFTA_COUNTER.PACKETS in counter:
            return Traffic(*(int.from_bytes(counter[each], "big") for each in _COUNTS))
    return None


def places(nft_set: NftSet, payload: bytes) -> Iterator[Placed]:
    """Yield the elements in a message of the kernel about the set."""
    for found in _elements(payload):
        yield nft_set, value(_KEY, attributes(found.get(_KEY, b"")).get(nf.NFTA_DATA.VALUE, b""))


def _elements(payload: bytes) -> Iterator[dict[int, bytes]]:
    """Yield the attributes of each element in a message of the kernel."""
    for _kind, encoded in pairs(body(payload).get(nf.NFTA_SET_ELEM_LIST.ELEMENTS, b"")):
        yield attributes(encoded)
