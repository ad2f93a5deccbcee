"""The sets and maps of our nftables table, and their elements. Bytes only.

The numbers of data types and the format of comments are nft's own (nft's datatype.h, libnftnl's udata.h); the kernel
only stores them for nft.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.core.mapping import AnyMapping, Endpoint, Entry, PortMapping, TransportProtocol
from igd.firewall import nf_tables as nf
from igd.firewall.nfnetlink import attribute, nested, text, u32, u64, value
from igd.firewall.nft.remotes import SourceRange, admitted_sources
from igd.firewall.site import kernel_timeout

COMMENT_SIZE = 127  # nft allows 128 with the NUL
_UNPRINTABLE = str.maketrans({chr(code): "?" for code in [*range(32), 127, *b'"\\']})  # nft cannot escape them

# Every element needs these: 60,000 are encoded at once, and in Python 3.11 an enum's member is slow to look up.
_KEY, _KEY_END, _DATA = nf.NFTA_SET_ELEM.KEY, nf.NFTA_SET_ELEM.KEY_END, nf.NFTA_SET_ELEM.DATA
_TIMEOUT, _USERDATA = nf.NFTA_SET_ELEM.TIMEOUT, nf.NFTA_SET_ELEM.USERDATA


class DataType(NamedTuple):
    """A data type: nft's number, and its size in bytes; in a concatenation each is padded to 4 bytes."""

    number: int
    size: int


IPV4_ADDR, IPV6_ADDR, INET_PROTO, INET_SERVICE = DataType(7, 4), DataType(8, 16), DataType(12, 1), DataType(13, 2)


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set, or with `data` a map; `flags` are all but NFT_SET.MAP. Only concatenations have intervals."""

    name: str
    key: tuple[DataType, ...]
    data: tuple[DataType, ...] = ()
    flags: nf.NFT_SET = nf.NFT_SET.TIMEOUT

    def declaration(self) -> bytes:
        """Return the attributes of a message that creates the set, except table and id."""
        flags = self.flags | nf.NFT_SET.MAP if self.data else self.flags
        parts = [text(nf.NFTA_SET.NAME, self.name), u32(nf.NFTA_SET.FLAGS, flags)]
        parts += [u32(nf.NFTA_SET.KEY_TYPE, _number(self.key)), u32(nf.NFTA_SET.KEY_LEN, _length(self.key))]
        if self.data:
            parts += [u32(nf.NFTA_SET.DATA_TYPE, _number(self.data)), u32(nf.NFTA_SET.DATA_LEN, _length(self.data))]
        if nf.NFT_SET.CONCAT in self.flags:
            parts.append(self._description())
        return b"".join(parts)

    def _description(self) -> bytes:
        """Return the sizes of the fields, by which the kernel chooses the kind of set.

        Without NLA_F_NESTED, as the kernel returns it: `OwnTable.matches` compares both.
        """
        fields = b"".join(attribute(nf.NFTA_LIST_ELEM, u32(nf.NFTA_SET_FIELD_LEN, field.size)) for field in self.key)
        return attribute(nf.NFTA_SET.DESC, attribute(nf.NFTA_SET_DESC_CONCAT, fields))


_TRANSLATED = (IPV4_ADDR, INET_SERVICE)
_INTERVALS = nf.NFT_SET.TIMEOUT | nf.NFT_SET.INTERVAL | nf.NFT_SET.CONCAT
_PORT, _PINHOLE = (INET_PROTO, INET_SERVICE), (IPV6_ADDR, INET_PROTO, INET_SERVICE)

EXTERNAL = NftSet("external", (IPV4_ADDR,), flags=nf.NFT_SET(0))
MAPPINGS = NftSet("mappings", _PORT, _TRANSLATED)
RESTRICTED = NftSet("restricted", (*_PORT, IPV4_ADDR, INET_SERVICE), _TRANSLATED, _INTERVALS)
PINHOLES = NftSet("pinholes", _PINHOLE)
RESTRICTED_PINHOLES = NftSet("restricted_pinholes", (*_PINHOLE, IPV6_ADDR, INET_SERVICE), flags=_INTERVALS)
OUTBOUND = NftSet("outbound", (IPV4_ADDR, INET_SERVICE), _TRANSLATED)

SETS = (EXTERNAL, MAPPINGS, RESTRICTED, PINHOLES, RESTRICTED_PINHOLES, OUTBOUND)


def keys(mapping: AnyMapping) -> tuple[NftSet, list[bytes]]:
    """Return the set that holds the mapping, and the keys of its elements: one, or several disjoint intervals."""
    plain, restricted = (MAPPINGS, RESTRICTED) if isinstance(mapping, PortMapping) else (PINHOLES, RESTRICTED_PINHOLES)
    key, sources = _mapping_key(mapping), admitted_sources(mapping)
    if sources:
        return restricted, [_interval(key, each) for each in sources]
    return plain, [value(_KEY, key)]


def additions(entry: Entry, now: float) -> tuple[NftSet, list[bytes]]:
    """Return the set that holds the entry's mapping, and the elements to add to it."""
    nft_set, element_keys = keys(entry.mapping)
    data = value(_DATA, _endpoint(entry.mapping.internal)) if nft_set.data else b""
    rest = _timeout_and_comment(entry, now)
    return nft_set, [element(key, data, rest) for key in element_keys]


def outbound_key(mapping: AnyMapping) -> bytes:
    """Return the key of the mapping's element in OUTBOUND."""
    return value(_KEY, _endpoint(mapping.internal))


def outbound_element(entry: Entry, external: IPv4Address, now: float) -> bytes:
    """Return the element of OUTBOUND that translates the internal endpoint to the mapping's external one."""
    data = _endpoint(Endpoint(external, entry.mapping.external_port))
    return element(outbound_key(entry.mapping), value(_DATA, data), _timeout_and_comment(entry, now))


def address_key(external: IPv4Address) -> bytes:
    """Return the key of an address in EXTERNAL."""
    return value(_KEY, external.packed)


def port_key(protocol: TransportProtocol, number: int) -> bytes:
    """Return the key of a protocol and port in MAPPINGS."""
    return value(_KEY, _port(protocol, number))


def restricted_prefix(protocol: TransportProtocol, number: int) -> bytes:
    """Return bytes that a message about RESTRICTED contains if and only if the set has this protocol and port.

    No other attribute in such a message has a key's length, and comments contain only printable bytes.
    """
    length = _length(RESTRICTED.key)
    return attribute(nf.NFTA_DATA.VALUE, bytes(length))[:-length] + _port(protocol, number)


def element(*parts: bytes) -> bytes:
    """Return an item of a list of elements."""
    return nested(nf.NFTA_LIST_ELEM, *parts)


def comment(mapping: AnyMapping) -> str:
    """Return peer and description in characters that nft prints and reads back: ASCII without quote and backslash."""
    words = f"{mapping.peer[:8]} {mapping.description}".strip()
    return words.translate(_UNPRINTABLE).encode("ascii", "replace").decode()[:COMMENT_SIZE]


def _timeout_and_comment(entry: Entry, now: float) -> bytes:
    """Return the attributes that all elements of a mapping share. A comment is type 0, size, text with a NUL."""
    words = comment(entry.mapping).encode() + b"\0"
    userdata = attribute(_USERDATA, bytes([0, len(words)]) + words)
    timeout = kernel_timeout(entry.lease, now)
    return userdata if timeout is None else u64(_TIMEOUT, timeout) + userdata


def _mapping_key(mapping: AnyMapping) -> bytes:
    """Return the mapping's key in MAPPINGS or PINHOLES, which is the first part of its keys in a restricted set."""
    port = _port(mapping.protocol, mapping.external_port)
    return port if isinstance(mapping, PortMapping) else mapping.internal.address.packed + port


def _port(protocol: TransportProtocol, number: int) -> bytes:
    return struct.pack(">B3xH2x", protocol, number)


def _interval(key: bytes, sources: SourceRange) -> bytes:
    """Return the first and the last key of an interval: the mapping's own key with a range of sources."""
    return value(_KEY, key + _endpoint(sources.first)) + value(_KEY_END, key + _endpoint(sources.last))


def _endpoint(endpoint: Endpoint) -> bytes:
    return endpoint.address.packed + struct.pack(">H2x", endpoint.port)


def _number(types: tuple[DataType, ...]) -> int:
    """Return nft's number of a concatenation: 6 bits for each type."""
    number = 0
    for each in types:
        number = number << 6 | each.number
    return number


def _length(types: tuple[DataType, ...]) -> int:
    return sum(each.size + -each.size % 4 for each in types)
