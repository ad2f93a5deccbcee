"""The rules of our nftables chains, as lists of expressions. Bytes only.

Everything is encoded as nft 1.0.6 encodes it, which would otherwise print the rules differently.
"""

import os
import socket
import struct
from typing import NamedTuple

from igd.firewall.nf_tables import (
    NFT_CMP,
    NFT_CT,
    NFT_META,
    NFT_NAT,
    NFT_PAYLOAD,
    NFT_REGISTERS,
    NFT_SOCKET,
    NFT_VERDICTS,
    NFTA_BITWISE,
    NFTA_CMP,
    NFTA_CT,
    NFTA_DATA,
    NFTA_EXPR,
    NFTA_IMMEDIATE,
    NFTA_LIST,
    NFTA_LOOKUP,
    NFTA_META,
    NFTA_NAT,
    NFTA_PAYLOAD,
    NFTA_SOCKET,
    NFTA_VERDICT,
)
from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, attribute, nested, text, u32
from igd.firewall.nft.elements import EXTERNAL, MAPPINGS, OUTBOUND, PINHOLES, RESTRICTED, RESTRICTED_PINHOLES, NftSet
from igd.firewall.site import PCP_ANYCAST, PCP_SERVER_PORT, Site

EncodedRule = tuple[bytes, ...]

REG32_00, REG32_01 = NFT_REGISTERS.REG32_00, NFT_REGISTERS.REG32_01

IFNAMSIZ = 16


def prerouting(site: Site) -> list[EncodedRule]:
    """Return the rules that translate and mark flows."""
    mark, unmark = _set_mark(site.mark, site.mark), _set_mark(site.mark, 0)
    skip_peers = [(*_interface(_IIFNAME, site.wireguard), _RETURN)]
    return [
        *(_anycast(site) if site.anycast else []),
        *([] if site.hairpin else skip_peers),
        (*_TO_EXTERNAL, *_SERVERS_OWN_SOCKET, _RETURN),
        (*_TO_EXTERNAL, *mark, *_translation(NFT_NAT.DNAT, MAPPINGS, _L4PROTO, _DPORT)),
        (*_TO_EXTERNAL, *mark, *_translation(NFT_NAT.DNAT, RESTRICTED, _PROTOCOL, _DPORT, _SADDR, _SPORT)),
        (*_TO_EXTERNAL, *unmark),
        (*_IPV6, *_membership(PINHOLES, _DADDR6, _L4PROTO, _DPORT), *mark),
        (*_IPV6, *_membership(RESTRICTED_PINHOLES, _DADDR6, _L4PROTO, _DPORT, _SADDR6, _SPORT), *mark),
    ]


def postrouting(site: Site) -> list[EncodedRule]:
    """Return the rules that translate the source of flows, as far as the site asks for it."""
    among_peers = (*_IPV4, *_interface(_IIFNAME, site.wireguard), *_interface(_OIFNAME, site.wireguard))
    to_internet = (*_interface(_OIFNAME, site.external), *_IPV4, *_UDP)
    hairpin = [(*among_peers, *_has_mark(site.mark), _expression("masq"))]
    preserved = [(*to_internet, *_translation(NFT_NAT.SNAT, OUTBOUND, _SADDR, _SPORT))]
    return [*(hairpin if site.hairpin else []), *(preserved if site.preserve_source_port else [])]


def _anycast(site: Site) -> list[EncodedRule]:
    """Return the rules that redirect peers' requests to PCP's anycast addresses to the server's own in the tunnel."""
    peers = _interface(_IIFNAME, site.wireguard)
    to_server = (*_UDP, _load(_DPORT), _compare(NFT_CMP.EQ, PCP_SERVER_PORT.to_bytes(2, "big")), _expression("redir"))
    return [
        (*peers, *_IPV4, _load(_DADDR), _compare(NFT_CMP.EQ, PCP_ANYCAST[4].packed), *to_server),
        (*peers, *_IPV6, _load(_DADDR6), _compare(NFT_CMP.EQ, PCP_ANYCAST[6].packed), *to_server),
    ]


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(NFTA_LIST.ELEM, text(NFTA_EXPR.NAME, name), nested(NFTA_EXPR.DATA, *parts))


class _Field(NamedTuple):
    """A field of a packet: how to load it, and how many registers it fills.

    `dreg` is the number of the attribute for the destination register, `attributes` are all others.
    """

    expression: str
    dreg: int
    attributes: bytes
    registers: int = 1


def _meta(key: NFT_META, registers: int = 1) -> _Field:
    return _Field("meta", NFTA_META.DREG, u32(NFTA_META.KEY, key), registers)


def _payload(base: NFT_PAYLOAD, offset: int, length: int) -> _Field:
    place = u32(NFTA_PAYLOAD.BASE, base) + u32(NFTA_PAYLOAD.OFFSET, offset) + u32(NFTA_PAYLOAD.LEN, length)
    return _Field("payload", NFTA_PAYLOAD.DREG, place, (length + 3) // 4)


_NFPROTO, _L4PROTO = _meta(NFT_META.NFPROTO), _meta(NFT_META.L4PROTO)
_IIFNAME, _OIFNAME = _meta(NFT_META.IIFNAME, 4), _meta(NFT_META.OIFNAME, 4)
_PROTOCOL = _payload(NFT_PAYLOAD.NETWORK_HEADER, 9, 1)
_SADDR, _DADDR = _payload(NFT_PAYLOAD.NETWORK_HEADER, 12, 4), _payload(NFT_PAYLOAD.NETWORK_HEADER, 16, 4)
_SADDR6, _DADDR6 = _payload(NFT_PAYLOAD.NETWORK_HEADER, 8, 16), _payload(NFT_PAYLOAD.NETWORK_HEADER, 24, 16)
_SPORT, _DPORT = _payload(NFT_PAYLOAD.TRANSPORT_HEADER, 0, 2), _payload(NFT_PAYLOAD.TRANSPORT_HEADER, 2, 2)


def _load(field: _Field, register: int = REG32_00) -> bytes:
    return _expression(field.expression, u32(field.dreg, register), field.attributes)


def _concatenation(fields: tuple[_Field, ...]) -> list[bytes]:
    """Return the expressions that load the fields into consecutive registers from REG32_00."""
    loads = []
    register: int = REG32_00
    for field in fields:
        loads.append(_load(field, register))
        register += field.registers
    return loads


def _compare(operation: NFT_CMP, data: bytes) -> bytes:
    """Return the expression that continues if the loaded field compares so to `data`."""
    return _expression("cmp", u32(NFTA_CMP.SREG, REG32_00), u32(NFTA_CMP.OP, operation), _value(NFTA_CMP.DATA, data))


def _interface(field: _Field, name: str) -> EncodedRule:
    # nft cannot write a quote: compare the bytes before it only, which matches a prefix of the name (in nft: `wg*`).
    prefix, quote, _rest = os.fsencode(name).partition(b'"')
    return _load(field), _compare(NFT_CMP.EQ, prefix if quote else prefix.ljust(IFNAMSIZ, b"\0"))


def _lookup(nft_set: NftSet, *rest: bytes) -> bytes:
    return _expression("lookup", text(NFTA_LOOKUP.SET, nft_set.name), u32(NFTA_LOOKUP.SREG, REG32_00), *rest)


def _membership(nft_set: NftSet, *fields: _Field) -> EncodedRule:
    """Return the expressions that continue if the set contains the fields."""
    return *_concatenation(fields), _lookup(nft_set)


def _translation(kind: NFT_NAT, endpoints: NftSet, *fields: _Field) -> EncodedRule:
    """Return the expressions that translate to the endpoint that the map has for the fields, if it has one."""
    nat = _expression(
        "nat",
        u32(NFTA_NAT.TYPE, kind),
        u32(NFTA_NAT.FAMILY, NFPROTO_IPV4),
        u32(NFTA_NAT.REG_ADDR_MIN, REG32_00),
        u32(NFTA_NAT.REG_PROTO_MIN, REG32_01),
    )
    return *_concatenation(fields), _lookup(endpoints, u32(NFTA_LOOKUP.DREG, REG32_00)), nat


_LOAD_MARK = _expression("ct", u32(NFTA_CT.KEY, NFT_CT.MARK), u32(NFTA_CT.DREG, REG32_00))
_STORE_MARK = _expression("ct", u32(NFTA_CT.KEY, NFT_CT.MARK), u32(NFTA_CT.SREG, REG32_00))


def _bitwise(mask: int, xor: int) -> bytes:
    """Return the expression that changes what was loaded to itself & mask ^ xor."""
    return _expression(
        "bitwise",
        u32(NFTA_BITWISE.SREG, REG32_00),
        u32(NFTA_BITWISE.DREG, REG32_00),
        u32(NFTA_BITWISE.LEN, 4),
        _value(NFTA_BITWISE.MASK, struct.pack("=I", mask)),
        _value(NFTA_BITWISE.XOR, struct.pack("=I", xor)),
    )


def _set_mark(bit: int, value: int) -> EncodedRule:
    """Return the expressions that set the ct mark to itself & ~bit ^ value: nft's `|` for value = bit, `&` for 0."""
    return _LOAD_MARK, _bitwise(~bit & 0xFFFF_FFFF, value), _STORE_MARK


def _has_mark(bit: int) -> EncodedRule:
    # Not "== bit": nft would print a comparison with the highest bit as a prefix.
    return _LOAD_MARK, _bitwise(bit, 0), _compare(NFT_CMP.NEQ, bytes(4))


def _value(kind: int, data: bytes) -> bytes:
    return nested(kind, attribute(NFTA_DATA.VALUE, data))


_RETURN = _expression(
    "immediate",
    u32(NFTA_IMMEDIATE.DREG, NFT_REGISTERS.REG_VERDICT),
    nested(
        NFTA_IMMEDIATE.DATA,
        nested(NFTA_DATA.VERDICT, u32(NFTA_VERDICT.CODE, NFT_VERDICTS.NFT_RETURN & 0xFFFF_FFFF)),
    ),
)
_IPV4 = (_load(_NFPROTO), _compare(NFT_CMP.EQ, bytes([NFPROTO_IPV4])))
_IPV6 = (_load(_NFPROTO), _compare(NFT_CMP.EQ, bytes([NFPROTO_IPV6])))
_UDP = (_load(_L4PROTO), _compare(NFT_CMP.EQ, bytes([socket.IPPROTO_UDP])))
_TO_EXTERNAL = (*_IPV4, *_membership(EXTERNAL, _DADDR))
_LOAD_SOCKET = _expression("socket", u32(NFTA_SOCKET.KEY, NFT_SOCKET.TRANSPARENT), u32(NFTA_SOCKET.DREG, REG32_00))
_SERVERS_OWN_SOCKET = (_LOAD_SOCKET, _compare(NFT_CMP.LTE, bytes([1])))
