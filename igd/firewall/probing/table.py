"""The nftables table of a probe: it traces, maps and at the end consumes the packets of its flows, and no others.

    table ip igd_wg0/probe {                                                      (IPv6: ip6)
        flags owner
        chain first {
            type filter hook prerouting priority -450; policy accept;
            ... meta nftrace set 1
        }
        chain mapped {
            type nat hook prerouting priority -81; policy accept;
            ... ct mark set ct mark | 0x10000000 dnat to 10.100.0.2:40000
        }
        chain routed { type filter hook forward priority -2147483648; policy accept; }
        chain marked {
            type filter hook forward priority -2; policy accept;
            ... ct mark & 0x10000000 != 0x00000000
        }
        chain forwarded {
            type filter hook forward priority 2147483647; policy accept;
            ... ct mark & 0x10000000 != 0x00000000
        }
        chain received {
            type filter hook input priority 2147483646; policy accept;
            ... drop
        }
        chain strays {
            type filter hook postrouting priority 2147483645; policy accept;
            oifname != "wg0" ct direction original ... drop
            oifname != "ens0" ... drop                                                    (towards the sender)
            oifname "wg0" ct direction original ... meta priority set 0x69676470
        }
        chain to_internet {
            type filter hook postrouting priority 2147483646; policy accept;
            ... drop
        }
        chain errors {
            type filter hook output priority -450; policy accept;
            ... drop
        }
    }
    table netdev igd_wg0/probe {
        flags owner
        chain to_tunnel {
            type filter hook egress device "wg0" priority 0; policy accept;
            meta priority 0x69676470 ... drop
        }
    }

"..." stands for the protocol, addresses and ports of the flow, in one of its directions or in both. Nothing of a flow
leaves the server: what has passed all rules is dropped behind them, and so are the errors and resets that a REJECT
sends about it. Packets towards the peer are dropped at the egress of the tunnel, where connection tracking has
confirmed their flow. The operator may masquerade them, so they get a priority by which they are known there. The others
are dropped in postrouting: they might wait for an answer of ARP longer than the table exists.

The kernel deletes a table with the flag "owner" when the socket that created it is closed, so that it ends with this
process however that ends (Linux 5.12). Egress hooks need Linux 5.16.

What is dropped at the priority 2147483646 is not yet confirmed by connection tracking, which forgets it at once.

Priority -81 is directly before igd's own rules, and behind the operator's redirections. A traced packet reports each
base chain that it leaves and each rule that it matches, so that a chain without rules is a mark on its way.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from igd.core.mapping import Endpoint, TransportProtocol
from igd.firewall import nf_tables as nf
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFPROTO_NETDEV,
    NLM_F_CREATE,
    Message,
    u8,
    u32,
    value,
)
from igd.firewall.nft.expressions import (
    DADDR,
    DADDR6,
    DPORT,
    DROP,
    L4PROTO,
    OIFNAME,
    REG32_00,
    REG32_01,
    SADDR,
    SADDR6,
    SPORT,
    EncodedRule,
    Field,
    compare,
    expression,
    has_mark,
    interface,
    load,
    load_ct,
    meta,
    payload,
    set_mark,
)
from igd.firewall.nft.table_messages import Hook, TableMessages
from igd.firewall.probing.flow import ProbeFlow
from igd.firewall.site import PROBE_TABLE, Site, label

FIRST, MAPPED, ROUTED, MARKED = "first", "mapped", "routed", "marked"
FORWARDED, RECEIVED, STRAYS, ERRORS = "forwarded", "received", "strays", "errors"
TO_INTERNET, TO_TUNNEL = "to_internet", "to_tunnel"

_EARLY = nf.NF_IP_PRI.CONNTRACK_DEFRAG - 50
_PRI = nf.NF_IP_PRI
_HOOKS = {
    FIRST: Hook(nf.NF_INET.PRE_ROUTING, _EARLY, "filter"),
    MAPPED: Hook(nf.NF_INET.PRE_ROUTING, _PRI.NAT_DST + 19, "nat"),
    ROUTED: Hook(nf.NF_INET.FORWARD, _PRI.FIRST, "filter"),
    MARKED: Hook(nf.NF_INET.FORWARD, _PRI.FILTER - 2, "filter"),
    FORWARDED: Hook(nf.NF_INET.FORWARD, _PRI.LAST, "filter"),
    RECEIVED: Hook(nf.NF_INET.LOCAL_IN, _PRI.LAST - 1, "filter"),
    STRAYS: Hook(nf.NF_INET.POST_ROUTING, _PRI.LAST - 2, "filter"),
    TO_INTERNET: Hook(nf.NF_INET.POST_ROUTING, _PRI.LAST - 1, "filter"),
    ERRORS: Hook(nf.NF_INET.LOCAL_OUT, _EARLY, "filter"),
}

_PRIORITY = struct.pack("=I", 0x69676470)  # "igdp"

_FAMILIES = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}


def table_name(interface: str) -> str:
    """Return the name of the table for this interface."""
    return label(interface) + PROBE_TABLE


@contextmanager
def probe_table(site: Site, flows: Sequence[ProbeFlow]) -> Iterator[None]:
    """Have the table for these flows in the block; FirewallError, with nothing changed, if the kernel refuses it."""
    with closing(Netlink()) as netlink:
        netlink.transact(NFNL_SUBSYS_NFTABLES, list(_creation(site, flows)))
        yield


def _creation(site: Site, flows: Sequence[ProbeFlow]) -> Iterator[Message]:
    for version, family in _FAMILIES.items():
        if of_version := [flow for flow in flows if flow.version == version]:
            yield from _in_family(site, family, of_version)
    netdev = TableMessages(table_name(site.wireguard), NFPROTO_NETDEV)
    yield from _new(netdev)
    yield netdev.chain(TO_TUNNEL, Hook(nf.NF_NETDEV_EGRESS, 0, "filter", site.wireguard))
    for flow in flows:
        if flow.led_to is not None:
            yield netdev.rule(TO_TUNNEL, (*_tagged(flow.protocol, flow.led_to), DROP))


def _new(table: TableMessages) -> Iterator[Message]:
    yield from table.removal()  # of one that is nobody's: somebody has saved and loaded it
    yield table.message(nf.NFT_MSG.NEWTABLE, u32(nf.NFTA_TABLE.FLAGS, nf.NFT_TABLE_F.OWNER), flags=NLM_F_CREATE)


def _in_family(site: Site, family: int, flows: Sequence[ProbeFlow]) -> Iterator[Message]:
    table = TableMessages(table_name(site.wireguard), family)
    yield from _new(table)
    rules = [named for flow in flows for named in _rules(site, flow)]
    used = {name for name, _rule in rules} | {ROUTED}
    for name, hook in _HOOKS.items():
        if name in used:  # those with a mark or a translation switch connection tracking on
            yield table.chain(name, hook)
    for name, rule in rules:
        yield table.rule(name, rule)


def _rules(site: Site, flow: ProbeFlow) -> Iterator[tuple[str, EncodedRule]]:
    """Yield the rules for a flow, each with the name of its chain."""
    come, go = _both_ways(flow)
    yield RECEIVED, (*come, DROP)
    to_sender = _to_sender(flow)
    yield STRAYS, (*interface(OIFNAME, site.external, nf.NFT_CMP.NEQ), *to_sender, DROP)
    yield TO_INTERNET, (*to_sender, DROP)
    for way in (come, go):
        yield FIRST, (*way, *_TRACED)
        yield ERRORS, (*way, DROP)  # resets
    for about in _errors_about(flow):
        yield ERRORS, (*about, DROP)
    if flow.led_to is None:
        yield FORWARDED, (*come, DROP)
    else:
        original = _original(flow)
        yield STRAYS, (*interface(OIFNAME, site.wireguard, nf.NFT_CMP.NEQ), *original, DROP)
        yield STRAYS, (*interface(OIFNAME, site.wireguard), *original, *_set(nf.NFT_META.PRIORITY, _PRIORITY))
        translation = _translation(flow.led_to) if flow.is_translated else ()
        yield MAPPED, (*come, *set_mark(site.mark, site.mark), *translation)
        yield from ((chain, (*way, *has_mark(site.mark))) for chain in (MARKED, FORWARDED) for way in (come, go))


def _both_ways(flow: ProbeFlow) -> tuple[EncodedRule, EncodedRule]:
    """Return the expressions that continue for packets from the sender of a flow, and to it."""
    source, destination = (SADDR, DADDR) if flow.version == 4 else (SADDR6, DADDR6)
    port = flow.sent_to.port
    return (
        _equal((source, flow.sender.address.packed), *_transport(flow.protocol, flow.sender.port, port)),
        _equal((destination, flow.sender.address.packed), *_transport(flow.protocol, port, flow.sender.port)),
    )


def _transport(protocol: TransportProtocol, source: int, destination: int) -> tuple[tuple[Field, bytes], ...]:
    return (L4PROTO, bytes([protocol])), (SPORT, struct.pack(">H", source)), (DPORT, struct.pack(">H", destination))


def _errors_about(flow: ProbeFlow) -> Iterator[EncodedRule]:
    """Yield the expressions that continue for ICMP errors about packets of the flow, which begin with their headers."""
    icmp, addresses, size, header = (
        (socket.IPPROTO_ICMP, 8 + 12, 4, 8 + 20) if flow.version == 4 else (socket.IPPROTO_ICMPV6, 8 + 8, 16, 8 + 40)
    )
    for offset, port_offset in ((addresses, header), (addresses + size, header + 2)):
        yield _equal(
            (L4PROTO, bytes([icmp])),
            (payload(nf.NFT_PAYLOAD.TRANSPORT_HEADER, offset, size), flow.sender.address.packed),
            (payload(nf.NFT_PAYLOAD.TRANSPORT_HEADER, port_offset, 2), struct.pack(">H", flow.sender.port)),
        )


def _to_sender(flow: ProbeFlow) -> EncodedRule:
    """Return the expressions that continue for packets to the sender, even if their source has been translated."""
    return _equal(
        (DADDR if flow.version == 4 else DADDR6, flow.sender.address.packed),
        (L4PROTO, bytes([flow.protocol])),
        (DPORT, struct.pack(">H", flow.sender.port)),
    )


def _original(flow: ProbeFlow) -> EncodedRule:
    """Return the expressions that continue for packets from the sender, even if their source has been translated."""
    key = nf.NFT_CT.SRC_IP if flow.version == 4 else nf.NFT_CT.SRC_IP6
    original = u8(nf.NFTA_CT.DIRECTION, nf.IP_CT_DIR.ORIGINAL)
    return (
        *_equal((L4PROTO, bytes([flow.protocol]))),
        *(load_ct(key, original), compare(flow.sender.address.packed)),
        *(load_ct(nf.NFT_CT.PROTO_SRC, original), compare(struct.pack(">H", flow.sender.port))),
        *(load_ct(nf.NFT_CT.DIRECTION), compare(bytes([nf.IP_CT_DIR.ORIGINAL]))),
    )


def _tagged(protocol: TransportProtocol, to: Endpoint) -> EncodedRule:
    """Return the expressions of the family netdev that continue for packets with our priority to this endpoint."""
    version = to.address.version
    return _equal(
        (meta(nf.NFT_META.PRIORITY), _PRIORITY),
        (meta(nf.NFT_META.PROTOCOL), struct.pack(">H", _ETHERTYPES[version])),
        (L4PROTO, bytes([protocol])),
        (DADDR if version == 4 else DADDR6, to.address.packed),
        (DPORT, struct.pack(">H", to.port)),
    )


def _equal(*wanted: tuple[Field, bytes]) -> EncodedRule:
    """Return the expressions that continue if the fields have these values."""
    return tuple(part for field, data in wanted for part in (load(field), compare(data)))


def _translation(internal: Endpoint) -> EncodedRule:
    """Return the expressions that translate the destination of an IPv4 flow."""
    nat = expression(
        "nat",
        u32(nf.NFTA_NAT.TYPE, nf.NFT_NAT.DNAT),
        u32(nf.NFTA_NAT.FAMILY, NFPROTO_IPV4),
        u32(nf.NFTA_NAT.REG_ADDR_MIN, REG32_00),
        u32(nf.NFTA_NAT.REG_PROTO_MIN, REG32_01),
    )
    return _immediate(REG32_00, internal.address.packed), _immediate(REG32_01, struct.pack(">H", internal.port)), nat


def _immediate(register: int, data: bytes) -> bytes:
    return expression("immediate", u32(nf.NFTA_IMMEDIATE.DREG, register), value(nf.NFTA_IMMEDIATE.DATA, data))


def _set(key: nf.NFT_META, data: bytes) -> EncodedRule:
    """Return the expressions that set what meta loads."""
    return _immediate(REG32_00, data), expression("meta", u32(nf.NFTA_META.KEY, key), u32(nf.NFTA_META.SREG, REG32_00))


_TRACED = _set(nf.NFT_META.NFTRACE, b"\1")
