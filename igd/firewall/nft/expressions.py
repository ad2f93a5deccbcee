"""The rules of our nftables chains, as the expressions that the kernel runs and nft prints.

Source of numbers: linux/netfilter/nf_tables.h. Everything is written as nft 1.0.6 would, or it would print something
else.
"""

import os
import socket
import struct
from typing import NamedTuple

from igd.firewall.netlink import NFPROTO_IPV4, NFPROTO_IPV6, attribute, nested, text, u32
from igd.firewall.nft.elements import EXTERNAL, MAPPINGS, OUTBOUND, PINHOLES, RESTRICTED, RESTRICTED_PINHOLES, NftSet
from igd.firewall.site import PCP_ANYCAST, PCP_SERVER_PORT, Site

EncodedRule = tuple[bytes, ...]

NF_ACCEPT = 1
NFT_RETURN = -5 & 0xFFFF_FFFF

REG_VERDICT, REG32_00, REG32_01 = 0, 8, 9  # 16 registers of one word follow each other from REG32_00
EQUAL, NOT_EQUAL, LESS_OR_EQUAL = 0, 1, 3  # NFT_CMP_*
SNAT, DNAT = 0, 1

IFNAMSIZ = 16


def prerouting(site: Site) -> list[EncodedRule]:
    """Give the rules by which flows are led and marked."""
    mark, unmark = _set_mark(site.mark, site.mark), _set_mark(site.mark, 0)
    peers_own = [(*_interface(_IIFNAME, site.wireguard), _RETURN)]
    return [
        *(_anycast(site) if site.anycast else []),
        *([] if site.hairpin else peers_own),
        (*_TO_EXTERNAL, *_SERVERS_OWN_SOCKET, _RETURN),
        (*_TO_EXTERNAL, *mark, *_translation(DNAT, MAPPINGS, _L4PROTO, _DPORT)),
        (*_TO_EXTERNAL, *mark, *_translation(DNAT, RESTRICTED, _PROTOCOL, _DPORT, _SADDR, _SPORT)),
        (*_TO_EXTERNAL, *unmark),
        (*_IPV6, *_membership(PINHOLES, _DADDR6, _L4PROTO, _DPORT), *mark),
        (*_IPV6, *_membership(RESTRICTED_PINHOLES, _DADDR6, _L4PROTO, _DPORT, _SADDR6, _SPORT), *mark),
    ]


def postrouting(site: Site) -> list[EncodedRule]:
    """Give the rules by which some flows leave from another address or port than they would without us."""
    among_peers = (*_IPV4, *_interface(_IIFNAME, site.wireguard), *_interface(_OIFNAME, site.wireguard))
    to_internet = (*_interface(_OIFNAME, site.external), *_IPV4, *_UDP)
    hairpin = [(*among_peers, *_has_mark(site.mark), _expression("masq"))]
    preserved = [(*to_internet, *_translation(SNAT, OUTBOUND, _SADDR, _SPORT))]
    return [*(hairpin if site.hairpin else []), *(preserved if site.preserve_source_port else [])]


def _anycast(site: Site) -> list[EncodedRule]:
    """Give the rules by which what peers send to PCP's anycast addresses comes to the server's own in the tunnel."""
    peers = _interface(_IIFNAME, site.wireguard)
    to_server = (*_UDP, _load(_DPORT), _compare(EQUAL, PCP_SERVER_PORT.to_bytes(2, "big")), _expression("redir"))
    return [
        (*peers, *_IPV4, _load(_DADDR), _compare(EQUAL, PCP_ANYCAST[4].packed), *to_server),
        (*peers, *_IPV6, _load(_DADDR6), _compare(EQUAL, PCP_ANYCAST[6].packed), *to_server),
    ]


def _expression(name: str, *parts: bytes) -> bytes:
    """Give a list item (1) with name 1 and attributes 2."""
    return nested(1, text(1, name), nested(2, *parts))


class _Field(NamedTuple):
    """Something of a packet: the expression that loads it, its attributes but the destination, and its words."""

    expression: str
    attributes: bytes
    words: int = 1


def _meta(key: int, words: int = 1) -> _Field:
    return _Field("meta", u32(2, key), words)


def _payload(base: int, offset: int, length: int) -> _Field:
    """Give a field of the network (base 1) or the transport header (2)."""
    return _Field("payload", u32(2, base) + u32(3, offset) + u32(4, length), (length + 3) // 4)


_NFPROTO, _L4PROTO, _IIFNAME, _OIFNAME = _meta(15), _meta(16), _meta(6, 4), _meta(7, 4)
_PROTOCOL, _SADDR, _DADDR = _payload(1, 9, 1), _payload(1, 12, 4), _payload(1, 16, 4)
_SADDR6, _DADDR6 = _payload(1, 8, 16), _payload(1, 24, 16)
_SPORT, _DPORT = _payload(2, 0, 2), _payload(2, 2, 2)


def _load(field: _Field, register: int = REG32_00) -> bytes:
    """Give the expression that loads the field: destination 1."""
    return _expression(field.expression, u32(1, register), field.attributes)


def _concatenation(fields: tuple[_Field, ...]) -> list[bytes]:
    loads = []
    register = REG32_00
    for field in fields:
        loads.append(_load(field, register))
        register += field.words
    return loads


def _compare(operation: int, data: bytes) -> bytes:
    """Go on where what was loaded compares so: source 1, operation 2, data 3."""
    return _expression("cmp", u32(1, REG32_00), u32(2, operation), _value(3, data))


def _interface(field: _Field, name: str) -> EncodedRule:
    # A quote, which nft cannot write, ends what is compared: fewer bytes are the beginning of a name, in nft `wg*`.
    beginning, quote, _rest = os.fsencode(name).partition(b'"')
    return _load(field), _compare(EQUAL, beginning if quote else beginning.ljust(IFNAMSIZ, b"\0"))


def _membership(wanted: NftSet, *fields: _Field) -> EncodedRule:
    """Go on where the fields are in the set: set 1, source 2."""
    return *_concatenation(fields), _expression("lookup", text(1, wanted.name), u32(2, REG32_00))


def _translation(kind: int, endpoints: NftSet, *fields: _Field) -> EncodedRule:
    """Translate to the endpoint that the map has for the fields, if it has one.

    lookup: set 1, source 2, destination 3. nat: type 1, family 2, address register 3, port register 5.
    """
    lookup = _expression("lookup", text(1, endpoints.name), u32(2, REG32_00), u32(3, REG32_00))
    nat = _expression("nat", u32(1, kind), u32(2, NFPROTO_IPV4), u32(3, REG32_00), u32(5, REG32_01))
    return *_concatenation(fields), lookup, nat


# ct: destination 1, key 2 (3: mark), source 4
_LOAD_MARK = _expression("ct", u32(2, 3), u32(1, REG32_00))
_STORE_MARK = _expression("ct", u32(2, 3), u32(4, REG32_00))


def _bitwise(mask: int, xor: int) -> bytes:
    """Set what was loaded to itself & mask ^ xor: source 1, destination 2, length 3, mask 4, xor 5."""
    mask_, xor_ = struct.pack("=I", mask), struct.pack("=I", xor)
    return _expression("bitwise", u32(1, REG32_00), u32(2, REG32_00), u32(3, 4), _value(4, mask_), _value(5, xor_))


def _set_mark(bit: int, value: int) -> EncodedRule:
    """Set the ct mark to itself & ~bit ^ value, which is how nft writes `|` (value: the bit) and `&` (0)."""
    return _LOAD_MARK, _bitwise(~bit & 0xFFFF_FFFF, value), _STORE_MARK


def _has_mark(bit: int) -> EncodedRule:
    # Not "equals the bit": with the highest one nft would take that for a network.
    return _LOAD_MARK, _bitwise(bit, 0), _compare(NOT_EQUAL, bytes(4))


def _value(kind: int, data: bytes) -> bytes:
    return nested(kind, attribute(1, data))


# immediate: destination 1, data 2 (verdict 2 with code 1). socket: key 1 (0: transparent), destination 2.
_RETURN = _expression("immediate", u32(1, REG_VERDICT), nested(2, nested(2, u32(1, NFT_RETURN))))
_IPV4 = (_load(_NFPROTO), _compare(EQUAL, bytes([NFPROTO_IPV4])))
_IPV6 = (_load(_NFPROTO), _compare(EQUAL, bytes([NFPROTO_IPV6])))
_UDP = (_load(_L4PROTO), _compare(EQUAL, bytes([socket.IPPROTO_UDP])))
_TO_EXTERNAL = (*_IPV4, *_membership(EXTERNAL, _DADDR))
_SERVERS_OWN_SOCKET = (_expression("socket", u32(1, 0), u32(2, REG32_00)), _compare(LESS_OR_EQUAL, bytes([1])))
