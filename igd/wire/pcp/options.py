"""PCP's options: RFC 6887 §7.3 and §13, and PORT_SET of RFC 7753; and its addresses (RFC 6887 §5)."""

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from igd.wire.malformed import Malformed

THIRD_PARTY = 1
PREFER_FAILURE = 2
FILTER = 3
PORT_SET = 130
"""RFC 7753 §4."""

OPTIONAL = 0x80
"""The bit of codes that a server may pass over (§7.3)."""

Address = IPv4Address | IPv6Address

_MAPPED = bytes(10) + b"\xff\xff"
_IPV4 = 96
"""What an IPv4 prefix is longer by on the wire (§13.3)."""

# code, length of the data without the padding (§7.3)
_HEAD = struct.Struct("!BxH")
# prefix length, remote peer's port and address (§13.3)
_FILTER = struct.Struct("!xBH16s")
# size, first internal port, parity in the lowest bit (RFC 7753 §4)
_PORT_SET = struct.Struct("!HHB")


class UnsupportedOption(Malformed):
    """An option that must be processed and cannot be (§7.3)."""


def encode_address(address: Address) -> bytes:
    """Give the 16 octets of an address; IPv4 is mapped into IPv6, all-zeroes too (§5)."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def decode_address(octets: bytes) -> Address:
    """Read 16 octets; what is mapped is IPv4 (§5)."""
    address = IPv6Address(octets)
    return address if address.ipv4_mapped is None else address.ipv4_mapped


@dataclass(frozen=True, slots=True)
class Filter:
    """Let packets in from these remote peers only, besides those of earlier filters (§13.3).

    `prefix_length` is the wire's (for IPv4 96 to 128; 0 removes all earlier filters, whatever the address), and
    port 0 is all ports.
    """

    prefix_length: int
    port: int
    address: Address

    @property
    def network(self) -> IPv4Network | IPv6Network | None:
        """Where packets may come from; None: from everywhere, all filters are to be removed."""
        if self.prefix_length == 0:
            return None
        bits = self.prefix_length - (_IPV4 if self.address.version == 4 else 0)
        return ip_network((self.address, bits), strict=False)


@dataclass(frozen=True, slots=True)
class PortSet:
    """Map `size` (1 to 65535) consecutive ports, of which this is the first internal one (RFC 7753 §4).

    `parity`: the first external port is to be odd or even as the first internal one is.
    """

    size: int
    first_internal_port: int
    parity: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """All options of one message: in an answer, only those that were processed (§7.3).

    `third_party` is the address to map to in the client's stead (§13.1), `prefer_failure`: that external address and
    port or none (§13.2); `filters` are in the order in which they are to be processed (§13.3).
    """

    third_party: Address | None = None
    prefer_failure: bool = False
    filters: tuple[Filter, ...] = ()
    port_set: PortSet | None = None


NO_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class _Kind:
    """How many octets of data an option has, how often it may come, and how it joins those before it."""

    length: int
    many: bool
    add: Callable[[Options, bytes], Options]


def _add_filter(options: Options, data: bytes) -> Options:
    prefix_length, port, octets = _FILTER.unpack(data)
    address = decode_address(octets)
    if prefix_length > 128 or (address.version == 4 and 0 < prefix_length < _IPV4):
        raise Malformed(f"a filter's prefix of {prefix_length} bits for {address}")
    return replace(options, filters=(*options.filters, Filter(prefix_length, port, address)))


def _add_port_set(options: Options, data: bytes) -> Options:
    size, first_internal_port, flags = _PORT_SET.unpack(data)
    if size == 0:
        raise Malformed("a set of no ports")
    return replace(options, port_set=PortSet(size, first_internal_port, bool(flags & 1)))


_KINDS = {
    THIRD_PARTY: _Kind(16, many=False, add=lambda options, data: replace(options, third_party=decode_address(data))),
    PREFER_FAILURE: _Kind(0, many=False, add=lambda options, _: replace(options, prefer_failure=True)),
    FILTER: _Kind(_FILTER.size, many=True, add=_add_filter),
    PORT_SET: _Kind(_PORT_SET.size, many=False, add=_add_port_set),
}


def decode(data: bytes, known: Collection[int], *, lenient: bool = False) -> Options:
    """Read the options behind the opcode's own fields, of which `known` are the codes that the opcode can have.

    Malformed and UnsupportedOption say which error it is. A client is `lenient` to what it does not know (§7.3).
    """
    options = NO_OPTIONS
    seen = set()
    # The structure of the whole comes first, then each option in turn (§7.3).
    for code, content in _split(data):
        if code not in known:
            if lenient or code & OPTIONAL:
                continue
            raise UnsupportedOption(f"option {code}")
        kind = _KINDS[code]
        if len(content) != kind.length:
            raise Malformed(f"option {code} with {len(content)} octets")
        if code in seen and not kind.many:
            raise Malformed(f"option {code} comes twice")
        seen.add(code)
        options = kind.add(options, content)
    return options


def _split(data: bytes) -> list[tuple[int, bytes]]:
    # The message comes in whole words (§8.2), and so the padding is there where the content is.
    found = []
    while data:
        if len(data) < _HEAD.size:
            raise Malformed("an option without a length")
        code, length = _HEAD.unpack_from(data)
        end = _HEAD.size + length
        if end > len(data):
            raise Malformed(f"option {code} is longer than what is left")
        found.append((code, data[_HEAD.size : end]))
        data = data[end + -length % 4 :]
    return found


def encode(options: Options) -> bytes:
    """Give the octets of the options, in the order of their codes."""
    found: list[tuple[int, bytes]] = []
    if options.third_party is not None:
        found.append((THIRD_PARTY, encode_address(options.third_party)))
    if options.prefer_failure:
        found.append((PREFER_FAILURE, b""))
    found += (
        (FILTER, _FILTER.pack(each.prefix_length, each.port, encode_address(each.address))) for each in options.filters
    )
    if (ports := options.port_set) is not None:
        found.append((PORT_SET, _PORT_SET.pack(ports.size, ports.first_internal_port, ports.parity)))
    return b"".join(_HEAD.pack(code, len(data)) + data + bytes(-len(data) % 4) for code, data in found)
