"""Ends the flows of closed mappings, by ctnetlink: a flow outlives the rule that translated its first packet.

There are two ways. From Linux 6.11 one delete with a filter: the kernel walks its table and deletes what matches.
Otherwise a dump returns the candidates, and each is checked here and deleted by its own tuple and id. The dump locks
each of 262,144 buckets, which takes 9 ms if all are empty; the filtered delete skips empty ones (0.02 ms). Both take
0.2 ms more for each thousand flows, and the dump 2 ms more for each thousand candidates. A filtered delete ends flows
of one translation and a dump those of any number, so that many changes cost one walk for each IP version.

IPv6 flows are never deleted by filter: up to 6.18 the kernel inverts the filter's comparison of IPv6 addresses, and
would end all flows but the right ones. For the same reason dumps do not filter by IPv6 address.

Numbers are from linux/netfilter/nfnetlink_conntrack.h, the filter's flags from net/netfilter/nf_internals.h in the
kernel's sources.
"""

import errno
import re
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from igd.core.mapping import AnyMapping, Endpoint, Entry, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.netlink import Netlink, NetlinkError
from igd.firewall.nfnetlink import (
    NFNL_SUBSYS_CTNETLINK,
    NLA_F_NESTED,
    Message,
    attribute,
    attributes,
    body,
    nested,
    u8,
    u32,
)
from igd.firewall.open_pinholes import OpenPinholes, admits
from igd.firewall.site import PCP_ANYCAST, PCP_SERVER_PORT

IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = 1, 2

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_MARK, CTA_ID, CTA_ZONE, CTA_MARK_MASK, CTA_FILTER = 1, 2, 8, 12, 18, 21, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST = 1, 2  # IPv6: 3 and 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
FILTER_IP_DST = 2
FILTER_SOURCE, FILTER_DESTINATION = 1 | 8 | 16, FILTER_IP_DST | 8 | 32  # address, protocol, port

ALL_NETWORKS: tuple[IPv4Network | IPv6Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_NO_FILTER = {errno.EOPNOTSUPP, errno.EINVAL}
_MAX_FILTERED_DELETES = 4  # above this number one dump is cheaper
_CHUNK = 100  # deletions in one send: each may be answered by an error, and all errors must fit in the receive buffer


class Translation(NamedTuple):
    """The original tuple's destination and the reply tuple's source, which are equal if nothing is DNATed."""

    protocol: int
    orig_dst: Endpoint
    reply_src: Endpoint


class Flow(NamedTuple):
    """A conntrack entry; `source` sent its first packet."""

    translation: Translation
    source: Endpoint
    mark: int


class Conntrack:
    """Ends flows in the network namespace of the thread that created it; `mark` is the mark bit of mapped flows.

    The flows of a closed pinhole stay if one of `pinholes` lets them through.
    """

    def __init__(self, mark: int, pinholes: OpenPinholes | None = None) -> None:
        self._mark = mark
        self._pinholes = pinholes or OpenPinholes()
        self._netlink = Netlink()
        self._dumping = Netlink()  # flows are deleted while a dump is read
        self._deletes_by_filter = True  # until the kernel refuses it

    def end(self, ended: Collection[Translation]) -> None:
        """End the flows with these translations; FirewallError if some may be left."""
        ipv4 = {translation for translation in ended if translation.orig_dst.address.version == 4}
        self._end_ipv4(ipv4)
        self._end_ipv6(set(ended) - ipv4)

    def flush_stale(self, keep: Iterable[Entry], networks: Iterable[IPv4Network | IPv6Network] = ALL_NETWORKS) -> None:
        """End every flow with our mark into `networks` that no entry of `keep` would admit.

        Flows into other networks belong to other instances, which use the same mark.
        """
        mappings = [entry.mapping for entry in keep]
        kept: dict[tuple[int, int, Endpoint], list[tuple[Remote, ...]]] = {}
        for one in mappings:
            kept.setdefault((int(one.protocol), one.external_port, one.internal), []).append(one.remotes)
        own = tuple(networks)

        def stale(payload: bytes) -> bool:
            flow = parse(payload)
            if flow is None or not self._is_marked(flow):
                return False
            protocol, orig_dst, reply_src = flow.translation
            if not any(reply_src.address in network for network in own):
                return False
            admitted = kept.get((protocol, orig_dst.port, reply_src), ())
            return not any(admits(remotes, flow.source) for remotes in admitted)

        self._end(socket.AF_UNSPEC, _with_mark(self._mark), stale)

    def end_anycast(self) -> None:
        """End the flows to PCP's anycast addresses: each leads to the address that its first packet was redirected to.

        A client that sends again from the same port would not reach the server after that address has gone.
        """
        ends = {Endpoint(anycast, PCP_SERVER_PORT) for anycast in PCP_ANYCAST.values()}

        def leads_to_one(payload: bytes) -> bool:
            flow = parse(payload)
            return flow is not None and flow.translation.orig_dst in ends

        for end in ends:
            criteria = _to(Translation(TransportProtocol.UDP, end, end))
            self._end(_FAMILY[end.address.version], criteria, leads_to_one)

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._dumping.close()

    def _end_ipv4(self, ended: Collection[Translation]) -> None:
        """End the IPv4 flows with these translations, whatever their mark: operators overwrite marks."""
        if not ended or (len(ended) <= _MAX_FILTERED_DELETES and self._delete_by_filter(ended)):
            return
        # Two translations may share a destination: a lost mapping's, and none.
        destinations = {_to(each) for each in ended}
        addresses = {_to_address(each.orig_dst.address) for each in ended}
        for criteria in destinations if len(destinations) == 1 else addresses:
            self._end(socket.AF_INET, criteria, _have(ended))

    def _delete_by_filter(self, ended: Collection[Translation]) -> bool:
        """End the IPv4 flows with these translations by one filtered delete each; False if the kernel cannot."""
        if self._deletes_by_filter:
            deletes = [_message(IPCTNL_MSG_CT_DELETE, socket.AF_INET, _with_translation(each)) for each in ended]
            errors = self._netlink.request(deletes)
            for error in errors:
                if error.errno not in _NO_FILTER:
                    raise error
            self._deletes_by_filter = not errors
        return self._deletes_by_filter

    def _end_ipv6(self, ended: Collection[Translation]) -> None:
        """End the marked flows of these pinholes; only the mark tells them from flows that passed without one."""
        if not ended:
            return
        marked = _with_mark(self._mark)
        destinations = {_to(each) + marked for each in ended}
        have = _have(ended)
        criteria = destinations.pop() if len(destinations) == 1 else marked
        self._end(socket.AF_INET6, criteria, lambda payload: have(payload) and self._is_ended(parse(payload)))

    def _end(self, family: int, criteria: bytes, is_ended: Callable[[bytes], bool]) -> None:
        """Dump the flows that match the criteria, and delete those for which `is_ended` holds as they come."""
        refusals: list[NetlinkError] = []
        deletes: list[Message] = []
        for payload in self._dump(family, criteria):
            if is_ended(payload):
                deletes.append(_delete(payload))
            if len(deletes) == _CHUNK:
                refusals += self._netlink.request(deletes)
                deletes.clear()
        refusals += self._netlink.request(deletes)
        for error in refusals:
            if error.errno != errno.ENOENT:  # ENOENT: the flow ended in between
                raise error

    def _is_ended(self, flow: Flow | None) -> bool:
        """Return whether a flow to a closed pinhole's endpoint is to be ended: no other pinhole lets it through."""
        if flow is None or not self._is_marked(flow):
            return False
        protocol, orig_dst, _reply_src = flow.translation
        return not self._pinholes.admit(protocol, orig_dst, flow.source)

    def _is_marked(self, flow: Flow | None) -> bool:
        return flow is not None and flow.mark & self._mark == self._mark

    def _dump(self, family: int, criteria: bytes) -> Iterator[bytes]:
        """Yield the flows that match, or more: kernels before 5.8 ignore the filter and return all flows."""
        return self._dumping.read_dump(_message(IPCTNL_MSG_CT_GET, family, criteria))


def endings(
    lost: Iterable[AnyMapping], new: Iterable[AnyMapping], external: Collection[IPv4Address]
) -> set[Translation]:
    """Return the translations of the flows of `lost` mappings, and of those that keep packets from `new` mappings.

    `external` are the external addresses of port mappings. A UDP flow to a new mapping's external port that is not
    translated keeps its remote's packets from the mapping for as long as the remote sends. A TCP flow of that kind
    ended with the server's reset, and a firewall that dropped a new pinhole's packets left no flow.
    """
    udp = [one for one in new if isinstance(one, PortMapping) and one.protocol is TransportProtocol.UDP]
    untranslated = {Translation(one.protocol, to, to) for one in udp for to in _destinations(one, external)}
    return untranslated.union(*(translations(one, external) for one in lost))


def translations(mapping: AnyMapping, external: Iterable[IPv4Address]) -> set[Translation]:
    """Return the translations of this mapping's flows."""
    return {Translation(mapping.protocol, to, mapping.internal) for to in _destinations(mapping, external)}


def is_in_use(version: int) -> bool:
    """Return whether the kernel knows connections of this IP version; FirewallError."""
    with closing(Netlink()) as netlink:
        return any(True for _ in netlink.read_dump(_message(IPCTNL_MSG_CT_GET, _FAMILY[version], b"")))


def answered_to(protocol: TransportProtocol, source: Endpoint, destination: Endpoint) -> Endpoint | None:
    """Return where the answers in the flow that began so go to: its source, or what that is translated to.

    None if there is no such flow. FirewallError.
    """
    with closing(Netlink()) as netlink:
        (payload,) = netlink.get([_of_flow(IPCTNL_MSG_CT_GET, protocol, source, destination)])
    reply = _parse_tuple(body(payload)[CTA_TUPLE_REPLY]) if payload else None
    return reply.destination if reply else None


def deletion(protocol: TransportProtocol, source: Endpoint, destination: Endpoint) -> Message:
    """Return the message that deletes the entry of the flow that began so; ENOENT if there is none."""
    return _of_flow(IPCTNL_MSG_CT_DELETE, protocol, source, destination)


def _of_flow(kind: int, protocol: TransportProtocol, source: Endpoint, destination: Endpoint) -> Message:
    version = source.address.version
    first = CTA_IP_V4_SRC if version == 4 else 3
    addresses = attribute(first, source.address.packed) + attribute(first + 1, destination.address.packed)
    ports = ((CTA_PROTO_SRC_PORT, source.port), (CTA_PROTO_DST_PORT, destination.port))
    transport = u8(CTA_PROTO_NUM, protocol) + b"".join(attribute(kind, struct.pack(">H", port)) for kind, port in ports)
    original = nested(CTA_TUPLE_ORIG, nested(CTA_TUPLE_IP, addresses), nested(CTA_TUPLE_PROTO, transport))
    return _message(kind, _FAMILY[version], original)


def parse(payload: bytes) -> Flow | None:
    """Decode a conntrack message; return None for a flow without ports, which cannot be a mapping's."""
    found = body(payload)
    original, reply = _parse_tuple(found[CTA_TUPLE_ORIG]), _parse_tuple(found[CTA_TUPLE_REPLY])
    if original is None or reply is None:
        return None
    return Flow(
        translation=Translation(original.protocol, original.destination, reply.source),
        source=original.source,
        mark=int.from_bytes(found.get(CTA_MARK, b""), "big"),
    )


def _delete(payload: bytes) -> Message:
    """Return the message that deletes exactly the entry of a conntrack message."""
    found = body(payload)
    rest = (attribute(kind, found[kind]) for kind in (CTA_ID, CTA_ZONE) if kind in found)
    return _message(IPCTNL_MSG_CT_DELETE, payload[0], nested(CTA_TUPLE_ORIG, found[CTA_TUPLE_ORIG]) + b"".join(rest))


def _have(ended: Collection[Translation]) -> Callable[[bytes], bool]:
    """Return a function that returns whether a conntrack message has one of these translations.

    `parse` takes 13 us. A peer can make 100,000 flows, so those are recognised by the kernel's usual layout (1 us).
    """
    keys = {_key(translation) for translation in ended}
    layouts: dict[int, re.Pattern[bytes]] = {socket.AF_INET: _layout(4), socket.AF_INET6: _layout(16)}

    def has(payload: bytes) -> bool:
        usual = layouts[payload[0]].match(payload)
        if usual:
            return usual.groups() in keys
        flow = parse(payload)
        return flow is not None and flow.translation in ended

    return has


def _key(translation: Translation) -> tuple[bytes, ...]:
    """Return what `_layout` captures of a flow with this translation."""
    protocol, to, source = translation
    ports = [struct.pack(">H", end.port) for end in (to, source)]
    return to.address.packed, bytes([protocol]), ports[0], source.address.packed, ports[1]


def _layout(size: int) -> re.Pattern[bytes]:
    """Return the pattern of a conntrack message with addresses of this size and without zones, up to its translation.

    Captured are the original tuple's destination address, protocol and port, and the reply tuple's source address and
    port. Values are padded to 4 bytes.
    """
    word, address = b"(?:.{4})", b".{%d}" % size

    def header(kind: int, length: int) -> bytes:
        return re.escape(struct.pack("=HH", length, kind))

    def pattern(kind: int, *values: bytes) -> bytes:
        source, destination, protocol, source_port, destination_port = values
        first = CTA_IP_V4_SRC if size == 4 else 3
        of_address, of_proto = 4 + 2 * (4 + size), 4 + 3 * 8
        return b"".join(
            (
                header(kind | NLA_F_NESTED, 4 + of_address + of_proto),
                header(CTA_TUPLE_IP | NLA_F_NESTED, of_address),
                header(first, 4 + size) + source + header(first + 1, 4 + size) + destination,
                header(CTA_TUPLE_PROTO | NLA_F_NESTED, of_proto),
                header(CTA_PROTO_NUM, 5) + protocol,
                header(CTA_PROTO_SRC_PORT, 6) + source_port + header(CTA_PROTO_DST_PORT, 6) + destination_port,
            )
        )

    taken, protocol, port = b"(%s)" % address, b"(.)...", b"(..).."
    original = pattern(CTA_TUPLE_ORIG, address, taken, protocol, word, port)
    return re.compile(word + original + pattern(CTA_TUPLE_REPLY, taken, address, word, port, word), re.DOTALL)


class _Tuple(NamedTuple):
    """One direction of a flow."""

    protocol: int
    source: Endpoint
    destination: Endpoint


def _parse_tuple(encoded: bytes) -> _Tuple | None:
    parts = attributes(encoded)
    transport = attributes(parts[CTA_TUPLE_PROTO])
    if CTA_PROTO_DST_PORT not in transport:
        return None
    addresses = (address for _kind, address in sorted(attributes(parts[CTA_TUPLE_IP]).items()))  # the source is first
    ports = (transport[CTA_PROTO_SRC_PORT], transport[CTA_PROTO_DST_PORT])
    source, destination = (
        Endpoint(ip_address(address), int.from_bytes(port, "big"))
        for address, port in zip(addresses, ports, strict=True)
    )
    return _Tuple(transport[CTA_PROTO_NUM][0], source, destination)


def _destinations(mapping: AnyMapping, external: Iterable[IPv4Address]) -> list[Endpoint]:
    """Return the endpoints to which the internet sends packets for this mapping."""
    if isinstance(mapping, Pinhole):
        return [mapping.internal]
    return [Endpoint(address, mapping.external_port) for address in external]


def _with_translation(translation: Translation) -> bytes:
    """Return the criteria for flows with this IPv4 translation, which are safe in a delete.

    Kernels before 6.11 know no filter there. They take CTA_TUPLE_ORIG for the complete tuple of one flow, and refuse it
    because it has no source. Without any CTA_TUPLE_ORIG they would end every flow of the machine.
    """
    protocol, orig_dst, reply_src = translation
    original = _end_of_tuple(CTA_TUPLE_ORIG, CTA_IP_V4_DST, CTA_PROTO_DST_PORT, protocol, orig_dst)
    reply = _end_of_tuple(CTA_TUPLE_REPLY, CTA_IP_V4_SRC, CTA_PROTO_SRC_PORT, protocol, reply_src)
    return original + reply + _filter(FILTER_DESTINATION, FILTER_SOURCE)


def _to(translation: Translation) -> bytes:
    """Return the criteria for flows with this original destination; for IPv6, with its port at any address."""
    protocol, orig_dst, _reply_src = translation
    if orig_dst.address.version == 4:
        original = _end_of_tuple(CTA_TUPLE_ORIG, CTA_IP_V4_DST, CTA_PROTO_DST_PORT, protocol, orig_dst)
        return original + _filter(FILTER_DESTINATION)
    port = _port(CTA_PROTO_DST_PORT, protocol, orig_dst.port)
    return nested(CTA_TUPLE_ORIG, port) + _filter(FILTER_DESTINATION & ~FILTER_IP_DST)


def _to_address(address: IPv4Address | IPv6Address) -> bytes:
    """Return the criteria for flows to this original destination address, which is IPv4."""
    destination = nested(CTA_TUPLE_IP, attribute(CTA_IP_V4_DST, address.packed))
    return nested(CTA_TUPLE_ORIG, destination) + _filter(FILTER_IP_DST)


def _with_mark(mark: int) -> bytes:
    """Return the criteria for flows that have all bits of the mark."""
    return u32(CTA_MARK, mark) + u32(CTA_MARK_MASK, mark)


def _end_of_tuple(kind: int, address_kind: int, port_kind: int, protocol: int, end: Endpoint) -> bytes:
    """Encode the source or the destination of one direction's tuple."""
    address = nested(CTA_TUPLE_IP, attribute(address_kind, end.address.packed))
    return nested(kind, address, _port(port_kind, protocol, end.port))


def _port(kind: int, protocol: int, port: int) -> bytes:
    return nested(CTA_TUPLE_PROTO, u8(CTA_PROTO_NUM, protocol), attribute(kind, struct.pack(">H", port)))


def _filter(orig_flags: int, reply_flags: int = 0) -> bytes:
    """Return the attribute that says which parts of the tuples to compare. Its flags are in host order."""
    flags = ((CTA_FILTER_ORIG_FLAGS, orig_flags), (CTA_FILTER_REPLY_FLAGS, reply_flags))
    return nested(CTA_FILTER, *(attribute(kind, struct.pack("=I", value)) for kind, value in flags))


def _message(kind: int, family: int, payload: bytes) -> Message:
    return Message(NFNL_SUBSYS_CTNETLINK << 8 | kind, family, payload)
