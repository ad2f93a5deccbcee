"""The sets and maps of our nftables table, and what is in them, as bytes.

Source of numbers: linux/netfilter/nf_tables.h; those of data types and of comments are nft's own (nft's datatype.h,
libnftnl's udata.h), which the kernel only keeps for nft to print.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.core.mapping import AnyMapping, Endpoint, Entry, PortMapping, TransportProtocol
from igd.firewall.netlink import attribute, nested, text, u32, u64
from igd.firewall.nft.remotes import Sources, let_in
from igd.firewall.site import kernel_timeout

NFT_SET_INTERVAL, NFT_SET_MAP, NFT_SET_TIMEOUT, NFT_SET_CONCAT = 0x04, 0x08, 0x10, 0x80

SET_NAME, SET_FLAGS, SET_KEY_TYPE, SET_KEY_LEN, SET_DATA_TYPE, SET_DATA_LEN, SET_DESC = 2, 3, 4, 5, 6, 7, 9
ELEM_KEY, ELEM_DATA, ELEM_TIMEOUT, ELEM_USERDATA, ELEM_KEY_END = 1, 2, 4, 6, 10

COMMENT_SIZE = 127  # nft takes 128 with the NUL
_UNPRINTABLE = str.maketrans({chr(code): "?" for code in [*range(32), 127, *b'"\\']})  # nft has no escape for them


class DataType(NamedTuple):
    """A data type: nft's number, and its bytes; in a concatenation each fills up 4."""

    number: int
    size: int


IPV4_ADDR, IPV6_ADDR, INET_PROTO, INET_SERVICE = DataType(7, 4), DataType(8, 16), DataType(12, 1), DataType(13, 2)


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set, or with `data` a map. Intervals are in concatenations alone, where they want Linux 5.6."""

    name: str
    key: tuple[DataType, ...]
    data: tuple[DataType, ...] = ()
    timeout: bool = True
    interval: bool = False

    def declaration(self) -> bytes:
        """Give the attributes of a message that creates it, apart from table and id."""
        kinds = ((self.data, NFT_SET_MAP), (self.timeout, NFT_SET_TIMEOUT))
        flags = sum(flag for wanted, flag in kinds if wanted)
        flags |= (NFT_SET_INTERVAL | NFT_SET_CONCAT) * self.interval
        parts = [text(SET_NAME, self.name), u32(SET_FLAGS, flags)]
        parts += [u32(SET_KEY_TYPE, _number(self.key)), u32(SET_KEY_LEN, _length(self.key))]
        if self.data:
            parts += [u32(SET_DATA_TYPE, _number(self.data)), u32(SET_DATA_LEN, _length(self.data))]
        if self.interval:
            parts.append(self._description())
        return b"".join(parts)

    def _description(self) -> bytes:
        """Give the sizes of the fields, by which the kernel chooses the kind of set: concat 2, a list (1) of len 1.

        Without the flag of nested attributes, as the kernel tells it.
        """
        fields = b"".join(attribute(1, u32(1, field.size)) for field in self.key)
        return attribute(SET_DESC, attribute(2, fields))


_TRANSLATED = (IPV4_ADDR, INET_SERVICE)
_PORT, _PINHOLE = (INET_PROTO, INET_SERVICE), (IPV6_ADDR, INET_PROTO, INET_SERVICE)

EXTERNAL = NftSet("external", (IPV4_ADDR,), timeout=False)
MAPPINGS = NftSet("mappings", _PORT, _TRANSLATED)
RESTRICTED = NftSet("restricted", (*_PORT, IPV4_ADDR, INET_SERVICE), _TRANSLATED, interval=True)
PINHOLES = NftSet("pinholes", _PINHOLE)
RESTRICTED_PINHOLES = NftSet("restricted_pinholes", (*_PINHOLE, IPV6_ADDR, INET_SERVICE), interval=True)
OUTBOUND = NftSet("outbound", (IPV4_ADDR, INET_SERVICE), _TRANSLATED)

SETS = (EXTERNAL, MAPPINGS, RESTRICTED, PINHOLES, RESTRICTED_PINHOLES, OUTBOUND)


def keys(mapping: AnyMapping) -> tuple[NftSet, list[bytes]]:
    """Give the set that holds the mapping, and what names its elements there: one, or several disjoint intervals."""
    places = (MAPPINGS, RESTRICTED) if isinstance(mapping, PortMapping) else (PINHOLES, RESTRICTED_PINHOLES)
    key, sources = _key(mapping), let_in(mapping)
    if sources:
        return places[1], [_interval(key, each) for each in sources]
    return places[0], [_value(ELEM_KEY, key)]


def additions(entry: Entry, now: float) -> tuple[NftSet, list[bytes]]:
    """Give the set that holds the entry's mapping, and its elements as they are added."""
    held_by, named = keys(entry.mapping)
    data = _value(ELEM_DATA, _endpoint(entry.mapping.internal)) if held_by.data else b""
    about = _about(entry, now)
    return held_by, [element(key, data, about) for key in named]


def sender(mapping: AnyMapping) -> bytes:
    """Give what names the mapping's element in OUTBOUND."""
    return _value(ELEM_KEY, _endpoint(mapping.internal))


def outbound(entry: Entry, external: IPv4Address, now: float) -> bytes:
    """Give the element for OUTBOUND by which the internal endpoint sends from the mapping's external one."""
    data = _endpoint(Endpoint(external, entry.mapping.external_port))
    return element(sender(entry.mapping), _value(ELEM_DATA, data), _about(entry, now))


def address(external: IPv4Address) -> bytes:
    """Give what names an address in EXTERNAL."""
    return _value(ELEM_KEY, external.packed)


def port_key(protocol: TransportProtocol, number: int) -> bytes:
    """Give what names a protocol and port in MAPPINGS."""
    return _value(ELEM_KEY, _port(protocol, number))


def restricted_beginning(protocol: TransportProtocol, number: int) -> bytes:
    """Give the bytes that are in a message about RESTRICTED where it holds this protocol and port, and only there.

    Nothing else in such a message is an attribute of a key's length, and comments have no unprintable bytes.
    """
    length = _length(RESTRICTED.key)
    return attribute(1, bytes(length))[:-length] + _port(protocol, number)


def element(*parts: bytes) -> bytes:
    """Give an item (1) of a list of elements."""
    return nested(1, *parts)


def comment(mapping: AnyMapping) -> str:
    """Say whose mapping it is, in what nft prints and reads back: printable ASCII without quote and backslash."""
    said = f"{mapping.peer[:8]} {mapping.description}".strip()
    return said.translate(_UNPRINTABLE).encode("ascii", "replace").decode()[:COMMENT_SIZE]


def _about(entry: Entry, now: float) -> bytes:
    """Give what every element of a mapping has: its timeout, and a comment (type 0, size, text with a NUL)."""
    said = comment(entry.mapping).encode() + b"\0"
    comments = attribute(ELEM_USERDATA, bytes([0, len(said)]) + said)
    return u64(ELEM_TIMEOUT, kernel_timeout(entry.lease, now)) + comments


def _key(mapping: AnyMapping) -> bytes:
    """Give the mapping's key as its place has it, and in a restricted place its beginning."""
    of_port = _port(mapping.protocol, mapping.external_port)
    return of_port if isinstance(mapping, PortMapping) else mapping.internal.address.packed + of_port


def _port(protocol: TransportProtocol, number: int) -> bytes:
    return struct.pack(">B3xH2x", protocol, number)


def _interval(key: bytes, sources: Sources) -> bytes:
    """Give the ends of an interval: the mapping's own key and some sources."""
    ends = (Endpoint(sources.first, sources.first_port), Endpoint(sources.last, sources.last_port))
    start, end = (key + _endpoint(one) for one in ends)
    return _value(ELEM_KEY, start) + _value(ELEM_KEY_END, end)


def _endpoint(endpoint: Endpoint) -> bytes:
    return endpoint.address.packed + struct.pack(">H2x", endpoint.port)


def _value(kind: int, data: bytes) -> bytes:
    return nested(kind, attribute(1, data))


def _number(types: tuple[DataType, ...]) -> int:
    """Give nft's number of a concatenation: 6 bits for each type."""
    number = 0
    for each in types:
        number = number << 6 | each.number
    return number


def _length(types: tuple[DataType, ...]) -> int:
    return sum(each.size + -each.size % 4 for each in types)
