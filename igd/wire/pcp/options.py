"""PCP's options (RFC 6887 §7.3 and §13, PORT_SET of RFC 7753) and its encoding of addresses (RFC 6887 §5)."""

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from igd.wire.malformed import Malformed

THIRD_PARTY = 1
PREFER_FAILURE = 2
FILTER = 3
PORT_SET = 130
"""RFC 7753 §4."""

OPTIONAL = 0x80
"""The bit of an option code that marks the option as optional to process (§7.3)."""

Address = IPv4Address | IPv6Address

_MAPPED = bytes(10) + b"\xff\xff"
_IPV4 = 96
"""The bits of the IPv4-mapped prefix, which an IPv4 prefix length on the wire includes (§13.3)."""

# code, length of the data without the padding (§7.3)
_HEADER = struct.Struct("!BxH")
# prefix length, remote peer's port and address (§13.3)
_FILTER = struct.Struct("!xBH16s")
# size, first internal port, parity in the lowest bit (RFC 7753 §4)
_PORT_SET = struct.Struct("!HHB")


class UnsupportedOption(Malformed):
    """An option that is mandatory to process and not supported (§7.3)."""


def encode_address(address: Address) -> bytes:
    """Return the 16 octets of an address; an IPv4 address, 0.0.0.0 too, is IPv4-mapped (§5)."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def decode_address(octets: bytes) -> Address:
    """Decode 16 octets; an IPv4-mapped address is an IPv4 address (§5)."""
    address = IPv6Address(octets)
    return address if address.ipv4_mapped is None else address.ipv4_mapped


@dataclass(frozen=True, slots=True)
class Filter:
    """Accept packets from these remote peers only, and from those of the filters before it (§13.3).

    `prefix_length` is the number on the wire: 96 to 128 for IPv4; 0 removes all earlier filters, whatever the address.
    Port 0 is all ports.
    """

    prefix_length: int
    port: int
    address: Address

    @property
    def network(self) -> IPv4Network | IPv6Network | None:
        """The network of the remote peers, or None if the filter removes all filters."""
        if self.prefix_length == 0:
            return None
        # from numbers: to parse the address's text takes three times as long
        if self.address.version == 4:
            return IPv4Network((int(self.address), self.prefix_length - _IPV4), strict=False)
        return IPv6Network((int(self.address), self.prefix_length), strict=False)


@dataclass(frozen=True, slots=True)
class PortSet:
    """Map `size` (1 to 65535) consecutive internal ports, beginning with `first_internal_port` (RFC 7753 §4).

    `parity`: the first external port must have the parity (odd or even) of the first internal port.
    """

    size: int
    first_internal_port: int
    parity: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """All options of one message; in a response, only those that were processed (§7.3).

    `third_party` is the internal address if it is not the client's (§13.1). `prefer_failure` requests an error instead
    of another external address and port than suggested (§13.2). `filters` are in the order of processing (§13.3).
    """

    third_party: Address | None = None
    prefer_failure: bool = False
    filters: tuple[Filter, ...] = ()
    port_set: PortSet | None = None


NO_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class _Format:
    """The octets of an option's data, how it is added to earlier options, and whether it may occur more than once."""

    length: int
    add: Callable[[Options, bytes], Options]
    repeatable: bool = False


def _add_filter(options: Options, data: bytes) -> Options:
    prefix_length, port, octets = _FILTER.unpack(data)
    address = decode_address(octets)
    if prefix_length > 128 or (address.version == 4 and 0 < prefix_length < _IPV4):
        raise Malformed(f"a filter with prefix length {prefix_length} for {address}")
    return replace(options, filters=(*options.filters, Filter(prefix_length, port, address)))


def _add_port_set(options: Options, data: bytes) -> Options:
    size, first_internal_port, flags = _PORT_SET.unpack(data)
    if size == 0:
        raise Malformed("a port set of size 0")
    return replace(options, port_set=PortSet(size, first_internal_port, bool(flags & 1)))


_FORMATS = {
    THIRD_PARTY: _Format(16, lambda options, data: replace(options, third_party=decode_address(data))),
    PREFER_FAILURE: _Format(0, lambda options, _: replace(options, prefer_failure=True)),
    FILTER: _Format(_FILTER.size, _add_filter, repeatable=True),
    PORT_SET: _Format(_PORT_SET.size, _add_port_set),
}


def decode_options(data: bytes, allowed: Collection[int]) -> Options:
    """Decode the options behind the opcode's payload; `allowed` are the codes that the opcode allows.

    Raise Malformed or UnsupportedOption.
    """
    options = NO_OPTIONS
    seen = set()
    # The structure of all options is checked first, then each option in turn (§7.3).
    for code, content in _split(data):
        if code not in allowed:
            if code & OPTIONAL:
                continue
            raise UnsupportedOption(f"option {code}")
        option = _FORMATS[code]
        if len(content) != option.length:
            raise Malformed(f"option {code} with {len(content)} octets")
        if code in seen and not option.repeatable:
            raise Malformed(f"option {code} occurs twice")
        seen.add(code)
        options = option.add(options, content)
    return options


def _split(data: bytes) -> list[tuple[int, bytes]]:
    # The message is a multiple of 4 octets (§8.2), so where an option's data is complete, its padding is too.
    found = []
    while data:
        if len(data) < _HEADER.size:
            raise Malformed("an option without a length")
        code, length = _HEADER.unpack_from(data)
        end = _HEADER.size + length
        if end > len(data):
            raise Malformed(f"option {code} is longer than the rest of the message")
        found.append((code, data[_HEADER.size : end]))
        data = data[end + -length % 4 :]
    return found


def encode_options(options: Options) -> bytes:
    """Encode options, in the order of their codes."""
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
    return b"".join(_HEADER.pack(code, len(data)) + data + bytes(-len(data) % 4) for code, data in found)
