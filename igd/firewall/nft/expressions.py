"""The rules of our nftables chains, as lists of expressions. Bytes only.

Everything is encoded as nft 1.0.6 encodes it, which would otherwise print the rules differently.
"""

import os
import socket
import struct
from ipaddress import IPv4Network
from typing import NamedTuple

from igd.firewall import nf_tables as nf
from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, nested, text, u32, value
from igd.firewall.nft.elements import (
    EXTERNAL,
    MAPPINGS,
    OUTBOUND,
    PINHOLES,
    RESTRICTED_PINHOLES,
    RESTRICTED_PORTS,
    NftSet,
    RemoteSet,
)
from igd.firewall.site import PCP_ANYCAST, PCP_SERVER_PORT, Site

EncodedRule = tuple[bytes, ...]

REG32_00, REG32_01 = nf.NFT_REGISTERS.REG32_00, nf.NFT_REGISTERS.REG32_01

IFNAMSIZ = 16

FROM_REMOTES, PINHOLES_FROM_REMOTES = "from_remotes", "pinholes_from_remotes"
"""The chains with one rule for each set of remotes."""


def prerouting(site: Site) -> list[EncodedRule]:
    """Return the rules that translate and mark flows."""
    mark, unmark = set_mark(site.mark, site.mark), set_mark(site.mark, 0)
    skip_peers = [(*interface(IIFNAME, site.wireguard), RETURN)]
    return [
        *(_anycast(site) if site.anycast else []),
        *([] if site.hairpin else skip_peers),
        (*_TO_EXTERNAL, *_SERVERS_OWN_SOCKET, RETURN),
        (*_TO_EXTERNAL, *mark, *_translation(nf.NFT_NAT.DNAT, MAPPINGS, L4PROTO, DPORT)),
        (*_TO_EXTERNAL, *membership(RESTRICTED_PORTS, L4PROTO, DPORT), jump(FROM_REMOTES)),
        (*_TO_EXTERNAL, *unmark),
        (*IPV6, *membership(PINHOLES, DADDR6, L4PROTO, DPORT), *mark),
        (*IPV6, *membership(RESTRICTED_PINHOLES, DADDR6, L4PROTO, DPORT), jump(PINHOLES_FROM_REMOTES)),
    ]


def remote_rule(site: Site, remotes: RemoteSet) -> tuple[str, EncodedRule]:
    """Return the rule that translates or marks the flows from these remotes, and the chain that it belongs to."""
    port = (SPORT,) if remotes.has_port else ()
    if remotes.data:
        source = (_masked(SADDR, remotes.prefixlen),) if remotes.prefixlen else ()
        translation = _translation(nf.NFT_NAT.DNAT, remotes, *source, _PROTOCOL, DPORT, *port)
        return FROM_REMOTES, (*IPV4, *translation)
    source = (_masked(SADDR6, remotes.prefixlen),) if remotes.prefixlen else ()
    admitted = membership(remotes, *source, DADDR6, L4PROTO, DPORT, *port)
    return PINHOLES_FROM_REMOTES, (*IPV6, *admitted, *set_mark(site.mark, site.mark))


def postrouting(site: Site) -> list[EncodedRule]:
    """Return the rules that translate the source of flows, as far as the site asks for it."""
    among_peers = (*IPV4, *interface(IIFNAME, site.wireguard), *interface(OIFNAME, site.wireguard))
    hairpin = [(*among_peers, *has_mark(site.mark), expression("masq"))]
    to_internet = (*interface(OIFNAME, site.external), *IPV4, *_UDP)
    preserved = [(*to_internet, *_translation(nf.NFT_NAT.SNAT, OUTBOUND, SADDR, SPORT))]
    preserves = site.preserve_source_port and site.external
    masqueraded = [
        (*IPV4, *interface(OIFNAME, site.wireguard), *has_mark(site.mark), *_to_network(each), expression("masq"))
        for each in site.masqueraded
    ]
    return [*(hairpin if site.hairpin else []), *masqueraded, *(preserved if preserves else [])]


def _anycast(site: Site) -> list[EncodedRule]:
    """Return the rules that redirect peers' requests to PCP's anycast addresses to the server's own in the tunnel."""
    peers = interface(IIFNAME, site.wireguard)
    to_server = (*_UDP, load(DPORT), compare(PCP_SERVER_PORT.to_bytes(2, "big")), expression("redir"))
    return [
        (*peers, *IPV4, load(DADDR), compare(PCP_ANYCAST[4].packed), *to_server),
        (*peers, *IPV6, load(DADDR6), compare(PCP_ANYCAST[6].packed), *to_server),
    ]


def expression(name: str, *parts: bytes) -> bytes:
    """Return an expression of this name with these attributes."""
    return nested(nf.NFTA_LIST_ELEM, text(nf.NFTA_EXPR.NAME, name), nested(nf.NFTA_EXPR.DATA, *parts))


class Field(NamedTuple):
    """A field of a packet: how to load it, and how many registers it fills.

    `dreg` is the number of the attribute for the destination register, `attributes` are all others. What is loaded is
    masked with `mask`, unless that is empty.
    """

    expression: str
    dreg: int
    attributes: bytes
    registers: int = 1
    mask: bytes = b""


def meta(key: nf.NFT_META, registers: int = 1) -> Field:
    """Return the field of what the kernel knows about a packet."""
    return Field("meta", nf.NFTA_META.DREG, u32(nf.NFTA_META.KEY, key), registers)


def payload(base: nf.NFT_PAYLOAD, offset: int, length: int) -> Field:
    """Return the field of so many bytes behind an offset in a header."""
    place = u32(nf.NFTA_PAYLOAD.BASE, base) + u32(nf.NFTA_PAYLOAD.OFFSET, offset) + u32(nf.NFTA_PAYLOAD.LEN, length)
    return Field("payload", nf.NFTA_PAYLOAD.DREG, place, (length + 3) // 4)


_NFPROTO, L4PROTO = meta(nf.NFT_META.NFPROTO), meta(nf.NFT_META.L4PROTO)
IIFNAME, OIFNAME = meta(nf.NFT_META.IIFNAME, 4), meta(nf.NFT_META.OIFNAME, 4)
_PROTOCOL = payload(nf.NFT_PAYLOAD.NETWORK_HEADER, 9, 1)
SADDR, DADDR = payload(nf.NFT_PAYLOAD.NETWORK_HEADER, 12, 4), payload(nf.NFT_PAYLOAD.NETWORK_HEADER, 16, 4)
SADDR6, DADDR6 = payload(nf.NFT_PAYLOAD.NETWORK_HEADER, 8, 16), payload(nf.NFT_PAYLOAD.NETWORK_HEADER, 24, 16)
SPORT, DPORT = payload(nf.NFT_PAYLOAD.TRANSPORT_HEADER, 0, 2), payload(nf.NFT_PAYLOAD.TRANSPORT_HEADER, 2, 2)


def _masked(address: Field, prefixlen: int) -> Field:
    """Return the network of this length that contains the address."""
    size = 4 * address.registers
    mask = (1 << prefixlen) - 1 << 8 * size - prefixlen
    return address if prefixlen == 8 * size else address._replace(mask=mask.to_bytes(size, "big"))


def load(field: Field, register: int = REG32_00) -> bytes:
    """Return the expressions that load a field into registers from this one."""
    loaded = expression(field.expression, u32(field.dreg, register), field.attributes)
    return loaded + bitwise(field.mask, bytes(len(field.mask)), register) if field.mask else loaded


def concatenation(fields: tuple[Field, ...]) -> list[bytes]:
    """Return the expressions that load the fields into consecutive registers from REG32_00."""
    loads = []
    register: int = REG32_00
    for field in fields:
        loads.append(load(field, register))
        register += field.registers
    return loads


def compare(data: bytes, operation: nf.NFT_CMP = nf.NFT_CMP.EQ) -> bytes:
    """Return the expression that continues if the loaded field compares so to `data`."""
    operands = u32(nf.NFTA_CMP.SREG, REG32_00), u32(nf.NFTA_CMP.OP, operation), value(nf.NFTA_CMP.DATA, data)
    return expression("cmp", *operands)


def interface(field: Field, name: str, operation: nf.NFT_CMP = nf.NFT_CMP.EQ) -> EncodedRule:
    """Return the expressions that continue if the interface's name compares so to `name`."""
    # nft cannot write a quote: compare the bytes before it only, which matches a prefix of the name (in nft: `wg*`).
    prefix, quote, _rest = os.fsencode(name).partition(b'"')
    return load(field), compare(prefix if quote else prefix.ljust(IFNAMSIZ, b"\0"), operation)


def lookup(nft_set: NftSet, *rest: bytes) -> bytes:
    """Return the expression that continues if the set contains what was loaded."""
    return expression("lookup", text(nf.NFTA_LOOKUP.SET, nft_set.name), u32(nf.NFTA_LOOKUP.SREG, REG32_00), *rest)


def membership(nft_set: NftSet, *fields: Field) -> EncodedRule:
    """Return the expressions that continue if the set contains the fields."""
    return *concatenation(fields), lookup(nft_set)


def _translation(kind: nf.NFT_NAT, endpoints: NftSet, *fields: Field) -> EncodedRule:
    """Return the expressions that translate to the endpoint that the map has for the fields, if it has one."""
    nat = expression(
        "nat",
        u32(nf.NFTA_NAT.TYPE, kind),
        u32(nf.NFTA_NAT.FAMILY, NFPROTO_IPV4),
        u32(nf.NFTA_NAT.REG_ADDR_MIN, REG32_00),
        u32(nf.NFTA_NAT.REG_PROTO_MIN, REG32_01),
    )
    return *concatenation(fields), lookup(endpoints, u32(nf.NFTA_LOOKUP.DREG, REG32_00)), nat


def load_ct(key: nf.NFT_CT, *direction: bytes) -> bytes:
    """Return the expression that loads what connection tracking knows; some of it needs a direction."""
    return expression("ct", u32(nf.NFTA_CT.KEY, key), u32(nf.NFTA_CT.DREG, REG32_00), *direction)


_LOAD_MARK = load_ct(nf.NFT_CT.MARK)
_STORE_MARK = expression("ct", u32(nf.NFTA_CT.KEY, nf.NFT_CT.MARK), u32(nf.NFTA_CT.SREG, REG32_00))


def bitwise(mask: bytes, xor: bytes, register: int = REG32_00) -> bytes:
    """Return the expression that changes what was loaded to itself & mask ^ xor."""
    return expression(
        "bitwise",
        u32(nf.NFTA_BITWISE.SREG, register),
        u32(nf.NFTA_BITWISE.DREG, register),
        u32(nf.NFTA_BITWISE.LEN, len(mask)),
        value(nf.NFTA_BITWISE.MASK, mask),
        value(nf.NFTA_BITWISE.XOR, xor),
    )


def _to_network(network: IPv4Network) -> EncodedRule:
    """Return the expressions that continue if the destination is in the network."""
    if network.prefixlen == network.max_prefixlen:
        return load(DADDR), compare(network.network_address.packed)
    mask = bitwise(network.netmask.packed, bytes(4))
    return load(DADDR), mask, compare(network.network_address.packed)


def set_mark(bit: int, xor: int) -> EncodedRule:
    """Return the expressions that set the ct mark to itself & ~bit ^ xor: nft's `|` for xor = bit, `&` for 0."""
    return _LOAD_MARK, bitwise(struct.pack("=I", ~bit & 0xFFFF_FFFF), struct.pack("=I", xor)), _STORE_MARK


def has_mark(bit: int) -> EncodedRule:
    """Return the expressions that continue if the ct mark has this bit."""
    # Not "== bit": nft would print a comparison with the highest bit as a prefix.
    return _LOAD_MARK, bitwise(struct.pack("=I", bit), bytes(4)), compare(bytes(4), nf.NFT_CMP.NEQ)


def _verdict(code: nf.NFT_VERDICTS, *chain: bytes) -> bytes:
    """Return the expression that ends the rule with a verdict; `chain` is the attribute that says where to jump."""
    data = nested(nf.NFTA_DATA.VERDICT, u32(nf.NFTA_VERDICT.CODE, code & 0xFFFF_FFFF), *chain)
    register = u32(nf.NFTA_IMMEDIATE.DREG, nf.NFT_REGISTERS.REG_VERDICT)
    return expression("immediate", register, nested(nf.NFTA_IMMEDIATE.DATA, data))


def jump(chain: str) -> bytes:
    """Return the expression that jumps to the chain."""
    return _verdict(nf.NFT_VERDICTS.NFT_JUMP, text(nf.NFTA_VERDICT.CHAIN, chain))


RETURN, DROP = _verdict(nf.NFT_VERDICTS.NFT_RETURN), _verdict(nf.NFT_VERDICTS.NF_DROP)
IPV4 = (load(_NFPROTO), compare(bytes([NFPROTO_IPV4])))
IPV6 = (load(_NFPROTO), compare(bytes([NFPROTO_IPV6])))
_UDP = (load(L4PROTO), compare(bytes([socket.IPPROTO_UDP])))
_TO_EXTERNAL = (*IPV4, *membership(EXTERNAL, DADDR))
_LOAD_SOCKET = expression(
    "socket", u32(nf.NFTA_SOCKET.KEY, nf.NFT_SOCKET_TRANSPARENT), u32(nf.NFTA_SOCKET.DREG, REG32_00)
)
_SERVERS_OWN_SOCKET = (_LOAD_SOCKET, compare(bytes([1]), nf.NFT_CMP.LTE))
