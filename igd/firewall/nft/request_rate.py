"""Drops what a peer sends to the gateway above its rate, before it reaches a socket.

    table inet igd_wg0/rate {
        limit unknown_sources { rate over 400/second burst 400 packets }
        limit peer_<public key> { rate over 400/second burst 400 packets }           (one for each peer)
        set served { type inet_proto . inet_service; elements = { tcp . 2869, udp . 1900, udp . 5351 } }
        map ipv4_limits { type ipv4_addr : limit; flags interval; }
        map ipv6_limits { type ipv6_addr : limit; flags interval; }
        chain input {
            type filter hook input priority filter - 10; policy accept;
            iifname != "wg0" return
            meta l4proto . th dport != @served return
            tcp flags & (fin | syn | rst | ack) != syn return
            fib daddr . iif type unicast return
            limit name ip saddr map @ipv4_limits drop
            limit name ip6 saddr map @ipv6_limits drop
        }
    }

A table of its own: it is replaced as a whole when the peers change, however many mappings there are; it is the same for
both backends; and where the kernel cannot have it, nothing but the limit is missing, which igd then keeps alone.

The limits are twice the rate that igd itself admits, so that igd answers what is a little above it and counts exactly.
A new connection counts as one packet. The maps contain all addresses, those that no peer owns with one limit for all of
them. A peer with many addresses has one limit.

At the input hook, because only there it is known that a packet is for the server: forwarded packets, mapped ones too,
pass another hook, and requests to PCP's anycast addresses have been redirected. Flows of dropped packets are not added
to connection tracking, which is done behind this hook. "fib daddr . iif type unicast" is true for addresses that wg0
does not have: another program may serve these ports at the server's other addresses.
"""

import logging
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from igd.core.peers import Address, Peer
from igd.firewall import nf_tables as nf
from igd.firewall.backend import FirewallError
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import NFNL_SUBSYS_NFTABLES, NLM_F_CREATE, Message, nested, text, u32, u64, value
from igd.firewall.nft.elements import INET_PROTO, INET_SERVICE, IPV4_ADDR, IPV6_ADDR, DataType, NftSet, element
from igd.firewall.nft.elements import port_key as served_key
from igd.firewall.nft.expressions import (
    DPORT,
    DROP,
    IFNAMSIZ,
    IIFNAME,
    IPV4,
    IPV6,
    L4PROTO,
    REG32_00,
    RETURN,
    SADDR,
    SADDR6,
    EncodedRule,
    bitwise,
    compare,
    concatenation,
    expression,
    load,
    payload,
)
from igd.firewall.nft.table_messages import Hook, TableMessages
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.site import RATE_TABLE, RequestRate, Site, label

log = logging.getLogger(__name__)

MARGIN = 2
"""How many times the rate that igd admits reaches its sockets."""

CHAIN = "input"
HOOK = Hook(nf.NF_INET.LOCAL_IN, nf.NF_IP_PRI.FILTER - 10, "filter")

SERVED = NftSet("served", (INET_PROTO, INET_SERVICE), flags=nf.NFT_SET(0))
MAPS = {4: ("ipv4_limits", IPV4_ADDR), 6: ("ipv6_limits", IPV6_ADDR)}

_RTN_UNICAST = 1  # linux/rtnetlink.h
_INITIAL, _FLAGS = 0x02, 0x17  # SYN; FIN, SYN, RST and ACK


def table_name(interface: str) -> str:
    """Return the name of the table for this interface."""
    return label(interface) + RATE_TABLE


class RequestRateTable:
    """The table of one site. If the kernel cannot have it, that is a warning and no error."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._messages = TableMessages(table_name(site.wireguard))
        self._netlink = Netlink()
        self._failures = RecurringWarnings(log, "what peers send above their rate is dropped by igd alone: %s")

    @property
    def port(self) -> int:
        """The address of the netlink socket that edits the table."""
        return self._netlink.port

    def replace(self) -> None:
        """Make the table what the site asks for, in one transaction."""
        if self._site.request_rate is not None:
            with self._failures.catching(FirewallError):
                self._transact([*self._messages.removal(), *self._creation(self._site.request_rate)])

    def remove(self) -> None:
        """Delete the table; its absence is no error."""
        self._transact(self._messages.removal())

    def close(self) -> None:
        """Close the socket; the table stays."""
        self._netlink.close()

    def _creation(self, rate: RequestRate) -> Iterator[Message]:
        create = self._messages
        yield create.table(owned=self._site.own_table)
        yield from create.sets([SERVED.declaration(), *(_map(name, key) for name, key in MAPS.values())])
        yield from create.elements(SERVED.name, [element(served_key(*port)) for port in rate.ports])
        for peer in (None, *rate.peers.all):
            yield create.message(nf.NFT_MSG.NEWOBJ, *_limit(peer, rate.per_second * MARGIN), flags=NLM_F_CREATE)
        for version, (name, _key) in MAPS.items():
            yield from create.elements(name, _intervals(rate.peers.ranges(version)))
        yield create.chain(CHAIN, HOOK)
        for rule in _rules(self._site):
            yield create.rule(CHAIN, rule)

    def _transact(self, messages: Sequence[Message]) -> None:
        self._netlink.transact(NFNL_SUBSYS_NFTABLES, messages)


def _limit(peer: Peer | None, per_second: int) -> tuple[bytes, ...]:
    data = (
        u64(nf.NFTA_LIMIT.RATE, per_second),
        u64(nf.NFTA_LIMIT.UNIT, 1),  # second
        u32(nf.NFTA_LIMIT.BURST, per_second),
        u32(nf.NFTA_LIMIT.TYPE, nf.NFT_LIMIT_PKTS),
        u32(nf.NFTA_LIMIT.FLAGS, nf.NFT_LIMIT_F_INV),
    )
    return (
        text(nf.NFTA_OBJ.NAME, limit_name(peer)),
        u32(nf.NFTA_OBJ.TYPE, nf.NFT_OBJECT_LIMIT),
        nested(nf.NFTA_OBJ.DATA, *data),
    )


def limit_name(peer: Peer | None) -> str:
    """Return the name of a peer's limit, or of the one of all unknown sources; nft accepts no `+` and `=` in it."""
    return f"peer_{peer.public_key.rstrip('=').replace('+', '-')}" if peer else "unknown_sources"


def _map(name: str, key: DataType) -> bytes:
    return b"".join(
        (
            text(nf.NFTA_SET.NAME, name),
            u32(nf.NFTA_SET.FLAGS, nf.NFT_SET.INTERVAL | nf.NFT_SET.OBJECT),
            u32(nf.NFTA_SET.KEY_TYPE, key.number),
            u32(nf.NFTA_SET.KEY_LEN, key.size),
            u32(nf.NFTA_SET_OBJ_TYPE, nf.NFT_OBJECT_LIMIT),
        )
    )


def _intervals(ranges: Sequence[tuple[Address, Peer | None]]) -> Iterator[bytes]:
    """Yield the elements with which the ranges begin and end; the last one is open."""
    for number, (first, owner) in enumerate(ranges):
        key = value(nf.NFTA_SET_ELEM.KEY, first.packed)
        if number:
            yield element(key, u32(nf.NFTA_SET_ELEM_FLAGS, nf.NFT_SET_ELEM_INTERVAL_END))
        yield element(key, text(nf.NFTA_SET_ELEM_OBJREF, limit_name(owner)))


def _rules(site: Site) -> list[EncodedRule]:
    if '"' in site.wireguard:  # nft cannot write the name, and another interface's packets are not ours to drop
        return []
    name = os.fsencode(site.wireguard).ljust(IFNAMSIZ, b"\0")
    return [
        (load(IIFNAME), compare(name, nf.NFT_CMP.NEQ), RETURN),
        (*concatenation((L4PROTO, DPORT)), _NOT_SERVED, RETURN),
        (*_TCP, *_NOT_INITIAL, RETURN),
        (*_TO_OTHER_INTERFACE, RETURN),
        (*IPV4, load(SADDR), _limit_in(MAPS[4][0]), DROP),
        (*IPV6, load(SADDR6), _limit_in(MAPS[6][0]), DROP),
    ]


def _limit_in(name: str) -> bytes:
    return expression("objref", u32(nf.NFTA_OBJREF.SET_SREG, REG32_00), text(nf.NFTA_OBJREF.SET_NAME, name))


_NOT_SERVED = expression(
    "lookup",
    text(nf.NFTA_LOOKUP.SET, SERVED.name),
    u32(nf.NFTA_LOOKUP.SREG, REG32_00),
    u32(nf.NFTA_LOOKUP.FLAGS, nf.NFT_LOOKUP_F_INV),
)
_TCP = (load(L4PROTO), compare(bytes([socket.IPPROTO_TCP])))
_NOT_INITIAL = (
    load(payload(nf.NFT_PAYLOAD.TRANSPORT_HEADER, 13, 1)),
    bitwise(bytes([_FLAGS]), bytes(1)),
    compare(bytes([_INITIAL]), nf.NFT_CMP.NEQ),
)
_FIB = (
    u32(nf.NFTA_FIB.DREG, REG32_00),
    u32(nf.NFTA_FIB.RESULT, nf.NFT_FIB_RESULT_ADDRTYPE),
    u32(nf.NFTA_FIB.FLAGS, nf.NFT_FIB_F.DADDR | nf.NFT_FIB_F.IIF),
)
_TO_OTHER_INTERFACE = (expression("fib", *_FIB), compare(struct.pack("=I", _RTN_UNICAST)))
