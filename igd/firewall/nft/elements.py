"""The sets and maps of our nftables table, and their elements. Bytes only.

The numbers of data types and the format of comments are nft's own (nft's datatype.h, libnftnl's udata.h); the kernel
only stores them for nft.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.core.mapping import AnyMapping, Endpoint, Entry, PortMapping, Remote, TransportProtocol
from igd.firewall import nf_tables as nf
from igd.firewall.nfnetlink import attribute, attributes, nested, pairs, text, u32, u64, value
from igd.firewall.site import kernel_timeout

STEP = 4
"""Networks are split into networks whose prefix length is a multiple of this, at most 8 for each.

A packet to a restricted port is looked up once for each length, so this bounds what remotes of odd lengths cost others.
"""

COMMENT_SIZE = 127  # nft allows 128 with the NUL
_UNPRINTABLE = str.maketrans({chr(code): "?" for code in [*range(32), 127, *b'"\\']})  # nft cannot escape them

# Every element needs these: 60,000 are encoded at once, and in Python 3.11 an enum's member is slow to look up.
_KEY, _DATA = nf.NFTA_SET_ELEM.KEY, nf.NFTA_SET_ELEM.DATA
_TIMEOUT, _USERDATA = nf.NFTA_SET_ELEM.TIMEOUT, nf.NFTA_SET_ELEM.USERDATA


class DataType(NamedTuple):
    """A data type: nft's number, and its size in bytes; in a concatenation each is padded to 4 bytes."""

    number: int
    size: int


IPV4_ADDR, IPV6_ADDR, INET_PROTO, INET_SERVICE = DataType(7, 4), DataType(8, 16), DataType(12, 1), DataType(13, 2)


@dataclass(frozen=True, slots=True, eq=False)
class NftSet:
    """A set, or with `data` a map; `flags` are all but NFT_SET.MAP. All are hash sets: a change copies none of them."""

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
        return b"".join(parts)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RemoteSet(NftSet):
    """The remotes of one kind: networks of one prefix length (a multiple of STEP), all with a source port or without.

    Key: the network (unless its length is 0), the mapping's key, the port. For port mappings it is a map to the
    internal endpoints, for pinholes a set.
    """

    prefixlen: int
    has_port: bool


Placed = tuple[NftSet, bytes]
"""An element, or the key of one, and the set that it belongs to."""

_TRANSLATED = (IPV4_ADDR, INET_SERVICE)
_PORT, _PINHOLE = (INET_PROTO, INET_SERVICE), (IPV6_ADDR, INET_PROTO, INET_SERVICE)

EXTERNAL = NftSet("external", (IPV4_ADDR,), flags=nf.NFT_SET(0))
MAPPINGS = NftSet("mappings", _PORT, _TRANSLATED)
RESTRICTED_PORTS = NftSet("restricted_ports", _PORT)
PINHOLES = NftSet("pinholes", _PINHOLE)
RESTRICTED_PINHOLES = NftSet("restricted_pinholes", _PINHOLE)
OUTBOUND = NftSet("outbound", (IPV4_ADDR, INET_SERVICE), _TRANSLATED)
INTERNAL = NftSet("internal", (IPV4_ADDR,))

OLD_RESTRICTED = NftSet("restricted", (*_PORT, IPV4_ADDR, INET_SERVICE), _TRANSLATED)
"""What tables that an older igd made have instead of RESTRICTED_PORTS; a key ends in a range of sources."""

SETS = (EXTERNAL, MAPPINGS, RESTRICTED_PORTS, PINHOLES, RESTRICTED_PINHOLES, OUTBOUND, INTERNAL)
"""The sets that always exist. The remote sets exist as far as mappings need them."""


@cache
def remote_set(version: int, prefixlen: int, *, has_port: bool) -> RemoteSet:
    """Return the set of remotes of this kind, by the IP version of their networks."""
    name, address, key = ("remotes", IPV4_ADDR, _PORT) if version == 4 else ("pinhole_remotes", IPV6_ADDR, _PINHOLE)
    return RemoteSet(
        f"{name}_{prefixlen}{'_port' if has_port else ''}",
        ((address,) if prefixlen else ()) + key + ((INET_SERVICE,) if has_port else ()),
        _TRANSLATED if version == 4 else (),
        prefixlen=prefixlen,
        has_port=has_port,
    )


@cache
def remote_sets() -> dict[str, RemoteSet]:
    """Return every set of remotes that mappings may need, by name."""
    found = (
        remote_set(version, prefixlen, has_port=has_port)
        for version, bits in ((4, 32), (6, 128))
        for prefixlen in range(0, bits + 1, STEP)
        for has_port in (False, True)
    )
    return {each.name: each for each in found}


def places(mapping: AnyMapping) -> list[Placed]:
    """Return the elements that hold the mapping, as sets and keys: one, and with remotes one or more for each."""
    plain, restricted = (
        (MAPPINGS, RESTRICTED_PORTS) if isinstance(mapping, PortMapping) else (PINHOLES, RESTRICTED_PINHOLES)
    )
    key = _mapping_key(mapping)
    if _admits_every_source(mapping.remotes):
        return [(plain, value(_KEY, key))]
    sources = (each for remote in mapping.remotes for each in _sources(remote, key))
    return [(restricted, value(_KEY, key)), *dict.fromkeys(sources)]


def additions(entry: Entry, now: float) -> list[Placed]:
    """Return the elements to add for the entry's mapping, with their sets."""
    data = value(_DATA, _endpoint(entry.mapping.internal)) if isinstance(entry.mapping, PortMapping) else b""
    rest = timeout_and_comment(entry, now)
    return [(nft_set, element(key, data if nft_set.data else b"", rest)) for nft_set, key in places(entry.mapping)]


def _admits_every_source(remotes: Iterable[Remote]) -> bool:
    return not remotes or any(not remote.network.prefixlen and not remote.port for remote in remotes)


def _sources(remote: Remote, mapping_key: bytes) -> Iterator[Placed]:
    """Yield the keys of the networks into which the remote's is split, and their set."""
    network, port = remote.network, struct.pack(">H2x", remote.port) if remote.port else b""
    prefixlen = network.prefixlen + -network.prefixlen % STEP
    nft_set = remote_set(network.version, prefixlen, has_port=bool(port))
    first, bits = int(network.network_address), network.max_prefixlen
    for number in range(1 << prefixlen - network.prefixlen):
        address = (first + (number << bits - prefixlen)).to_bytes(bits // 8, "big") if prefixlen else b""
        yield nft_set, value(_KEY, address + mapping_key + port)


def outbound_key(mapping: AnyMapping) -> bytes:
    """Return the key of the mapping's element in OUTBOUND."""
    return value(_KEY, _endpoint(mapping.internal))


def outbound_element(entry: Entry, external: IPv4Address, now: float) -> bytes:
    """Return the element of OUTBOUND that translates the internal endpoint to the mapping's external one."""
    data = _endpoint(Endpoint(external, entry.mapping.external_port))
    return element(outbound_key(entry.mapping), value(_DATA, data), timeout_and_comment(entry, now))


def address_key(address: IPv4Address) -> bytes:
    """Return the key of an address in EXTERNAL or INTERNAL."""
    return value(_KEY, address.packed)


def addresses(listed: bytes) -> Iterator[IPv4Address]:
    """Yield the addresses in a list of elements of EXTERNAL or INTERNAL, as the kernel dumps it.

    Elements without such a key are left out: another program may have made a set of this name.
    """
    for _kind, encoded in pairs(listed):
        key = attributes(attributes(encoded).get(_KEY, b"")).get(nf.NFTA_DATA.VALUE, b"")
        if len(key) == IPV4_ADDR.size:
            yield IPv4Address(key)


def timeout(seconds: float) -> bytes:
    """Return the attribute of an element that the kernel removes after this time."""
    return u64(_TIMEOUT, int(seconds * 1000))


def port_key(protocol: TransportProtocol, number: int) -> bytes:
    """Return the key of a protocol and port in MAPPINGS."""
    return value(_KEY, _port(protocol, number))


def has_key_prefix(payload: bytes, protocol: TransportProtocol, number: int) -> bool:
    """Return whether an element of OLD_RESTRICTED has this protocol and port; `payload` is a message about the set.

    No other attribute in such a message has a key's length, and comments contain only printable bytes.
    """
    length = _length(OLD_RESTRICTED.key)
    return attribute(nf.NFTA_DATA.VALUE, bytes(length))[:-length] + _port(protocol, number) in payload


def element(*parts: bytes) -> bytes:
    """Return an item of a list of elements."""
    return nested(nf.NFTA_LIST_ELEM, *parts)


def comment(mapping: AnyMapping) -> str:
    """Return peer and description in characters that nft prints and reads back: ASCII without quote and backslash."""
    words = f"{mapping.peer[:8]} {mapping.description}".strip()
    return words.translate(_UNPRINTABLE).encode("ascii", "replace").decode()[:COMMENT_SIZE]


def timeout_and_comment(entry: Entry, now: float) -> bytes:
    """Return the attributes that all elements of a mapping share. A comment is type 0, size, text with a NUL."""
    words = comment(entry.mapping).encode() + b"\0"
    userdata = attribute(_USERDATA, bytes([0, len(words)]) + words)
    timeout = kernel_timeout(entry.lease, now)
    return userdata if timeout is None else u64(_TIMEOUT, timeout) + userdata


def _mapping_key(mapping: AnyMapping) -> bytes:
    """Return the mapping's key in MAPPINGS and RESTRICTED_PORTS, or in PINHOLES and RESTRICTED_PINHOLES."""
    port = _port(mapping.protocol, mapping.external_port)
    return port if isinstance(mapping, PortMapping) else mapping.internal.address.packed + port


def _port(protocol: TransportProtocol, number: int) -> bytes:
    return struct.pack(">B3xH2x", protocol, number)


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
