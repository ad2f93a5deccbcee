"""nfnetlink messages and their attributes. Bytes only.

Sources: netlink(7), linux/netlink.h, linux/netfilter/nfnetlink.h. Netlink headers are in host order; the values that
nf_tables and ctnetlink put into attributes are in network order.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from igd.firewall.nf_tables import NFTA_DATA

NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_NFTABLES = 1, 10  # linux/netfilter/nfnetlink.h
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17

NFPROTO_INET, NFPROTO_IPV4, NFPROTO_NETDEV, NFPROTO_IPV6 = 1, 2, 5, 10  # linux/netfilter.h

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x001, 0x004, 0x010, 0x300
NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800  # in requests
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200  # in answers

NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_GENERIC = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_VALUE = NFTA_DATA.VALUE  # in Python 3.11 an enum's member is slow to look up
_PADDING = (b"", bytes(3), bytes(2), bytes(1))  # to 4 bytes, by length % 4


@dataclass(frozen=True, slots=True)
class Message:
    """One request: `kind` is subsystem << 8 | type, `family` an address family, `payload` attributes."""

    kind: int
    family: int
    payload: bytes = b""
    flags: int = 0
    resource: int = 0

    def encode(self, sequence: int, flags: int = 0) -> bytes:
        """Return the bytes for the kernel; `flags` are added to the message's own."""
        length = _HEADER.size + _GENERIC.size + len(self.payload)
        header = _HEADER.pack(length, self.kind, NLM_F_REQUEST | self.flags | flags, sequence, 0)
        return header + _GENERIC.pack(self.family, 0, self.resource) + self.payload + _PADDING[length % 4]


def nft_message(kind: int, family: int, *parts: bytes, flags: int = 0) -> Message:
    """Return a request to nf_tables: `kind` is an NFT_MSG, `parts` are its attributes."""
    return Message(NFNL_SUBSYS_NFTABLES << 8 | kind, family, b"".join(parts), flags)


class Answer(NamedTuple):
    """One message from the kernel without its header; an nfnetlink payload still begins with its nfgenmsg."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute, padded to 4 bytes; its 16 bit length allows 65,531 bytes of value."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + _PADDING[length % 4]


def nested(kind: int, *attributes: bytes) -> bytes:
    """Encode an attribute that contains attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Encode a string attribute, with the NUL that nf_tables requires."""
    return attribute(kind, value.encode() + b"\0")


def value(kind: int, data: bytes) -> bytes:
    """Encode a value of nf_tables: a key, the data of a map, or an operand of an expression."""
    return nested(kind, attribute(_VALUE, data))


def u8(kind: int, value: int) -> bytes:
    """Encode an 8 bit attribute."""
    return attribute(kind, struct.pack(">B", value))


def u32(kind: int, value: int) -> bytes:
    """Encode a 32 bit attribute in network order."""
    return attribute(kind, struct.pack(">I", value))


def u64(kind: int, value: int) -> bytes:
    """Encode a 64 bit attribute in network order."""
    return attribute(kind, struct.pack(">Q", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode attributes that occur once each; raise ValueError for a wrong length."""
    return dict(pairs(data))


def pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Decode attributes, for example the items of a list, in their order; raise ValueError for a wrong length."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            raise ValueError(f"attribute {kind & NLA_TYPE_MASK} of {length} bytes where {len(data) - offset} are left")
        yield kind & NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + -length % 4


def body(payload: bytes) -> dict[int, bytes]:
    """Decode the attributes that follow an nfnetlink message's nfgenmsg."""
    return attributes(payload[_GENERIC.size :])


def decode(data: bytes) -> Iterator[Answer]:
    """Decode the messages of one datagram from the kernel; raise ValueError for a wrong length."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            raise ValueError(f"message of {length} bytes where {len(data) - offset} are left")
        yield Answer(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += length + -length % 4


def refusal(answer: Answer) -> tuple[int, str]:
    """Decode an NLMSG_ERROR or NLMSG_DONE: the errno (0 for success), and the kernel's explanation or ""."""
    number = -struct.unpack_from("=i", answer.payload)[0] if len(answer.payload) >= 4 else 0
    if answer.kind != NLMSG_ERROR or not answer.flags & NLM_F_ACK_TLVS:
        return number, ""
    request_length = _HEADER.unpack_from(answer.payload, 4)[0]
    echoed = _HEADER.size if answer.flags & NLM_F_CAPPED else request_length + -request_length % 4
    explanation = attributes(answer.payload[4 + echoed :]).get(NLMSGERR_ATTR_MSG, b"")
    return number, explanation.rstrip(b"\0").decode(errors="replace")
