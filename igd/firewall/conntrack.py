"""Ends the flows of closed mappings, by ctnetlink: a flow outlives the rule that translated its first packet.

There are two ways. From Linux 6.11 one delete with a filter: the kernel walks its table and deletes what matches.
Otherwise a dump returns the candidates, and each is checked here and deleted by its own tuple and id. The dump locks
each of 262,144 buckets, which takes 12 ms if all are empty; the filtered delete skips empty ones (0.3 ms). Both take
0.3 ms more for each thousand flows.

IPv6 flows are never deleted by filter: up to 6.18 the kernel inverts the filter's comparison of IPv6 addresses, and
would end all flows but the right ones. For the same reason dumps do not filter by IPv6 address.

Numbers are from linux/netfilter/nfnetlink_conntrack.h, the filter's flags from net/netfilter/nf_internals.h in the
kernel's sources.
"""

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

from igd.core.mapping import AnyMapping, Endpoint, Entry, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import NFNL_SUBSYS_CTNETLINK, Message, attribute, attributes, body, nested, u8, u32
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
# Above these numbers one dump is cheaper, although it returns many more flows than needed: a flow read takes 0.03 ms.
_MAX_FILTERED_DELETES = 16
_MAX_FILTERED_DUMPS = 8
_CHUNK = 100  # deletions in one send: each may be answered by an error, and all errors must fit in the receive buffer


class Translation(NamedTuple):
    """The original tuple's destination and the reply tuple's source, which are equal if nothing is DNATed."""

    protocol: int
    orig_dst: Endpoint
    reply_src: Endpoint


class Flow(NamedTuple):
    """A conntrack entry; `source` sent its first packet.

    `identity` holds the attributes by which the kernel finds exactly this entry.
    """

    translation: Translation
    source: Endpoint
    mark: int
    identity: bytes


class Conntrack:
    """Ends flows in the network namespace of the thread that created it; `mark` is the mark bit of mapped flows."""

    def __init__(self, mark: int) -> None:
        self._mark = mark
        self._netlink = Netlink()
        self._deletes_by_filter = True  # until the kernel refuses it

    def end_flows(
        self, lost: Iterable[AnyMapping], new: Iterable[AnyMapping], addresses: Iterable[IPv4Address]
    ) -> None:
        """End the flows of `lost` mappings, and the flows that keep packets from `new` mappings.

        `addresses` are the external addresses of port mappings. A UDP flow to a new mapping's external port that is not
        translated keeps its remote's packets from the mapping for as long as the remote sends. A TCP flow of that kind
        ended with the server's reset, and a firewall that dropped a new pinhole's packets left no flow.
        """
        external = tuple(addresses)
        ended = {Translation(one.protocol, to, one.internal) for one in lost for to in _destinations(one, external)}
        udp = [one for one in new if isinstance(one, PortMapping) and one.protocol is TransportProtocol.UDP]
        ended |= {Translation(one.protocol, to, to) for one in udp for to in _destinations(one, external)}
        ipv4 = {translation for translation in ended if translation.orig_dst.address.version == 4}
        self._end_ipv4(ipv4, external)
        self._end_ipv6(ended - ipv4)

    def flush_stale(self, keep: Iterable[Entry], networks: Iterable[IPv4Network | IPv6Network] = ALL_NETWORKS) -> None:
        """End every flow with our mark into `networks` that no entry of `keep` would admit.

        Flows into other networks belong to other instances, which use the same mark.
        """
        mappings = [entry.mapping for entry in keep]
        kept = {(int(one.protocol), one.external_port, one.internal): one.remotes for one in mappings}
        own = tuple(networks)

        def stale(flow: Flow) -> bool:
            protocol, orig_dst, reply_src = flow.translation
            if not self._is_marked(flow) or not any(reply_src.address in network for network in own):
                return False
            remotes = kept.get((protocol, orig_dst.port, reply_src))
            return remotes is None or not _admit(remotes, flow.source)

        self._end(socket.AF_UNSPEC, _with_mark(self._mark), stale)

    def end_anycast(self) -> None:
        """End the flows to PCP's anycast addresses: each leads to the address that its first packet was redirected to.

        A client that sends again from the same port would not reach the server after that address has gone.
        """
        ends = {Endpoint(anycast, PCP_SERVER_PORT) for anycast in PCP_ANYCAST.values()}
        for end in ends:
            criteria = _to(Translation(TransportProtocol.UDP, end, end))
            self._end(_FAMILY[end.address.version], criteria, lambda flow: flow.translation.orig_dst in ends)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def _end_ipv4(self, ended: Collection[Translation], external: Iterable[IPv4Address]) -> None:
        """End the IPv4 flows with these translations, whatever their mark: operators overwrite marks."""
        if not ended or (len(ended) <= _MAX_FILTERED_DELETES and self._delete_by_filter(ended)):
            return
        # Up to two translations may share a destination: a lost mapping's, and none.
        destinations = {_to(each) for each in ended} if len(ended) <= 2 * _MAX_FILTERED_DUMPS else ()
        narrow = 0 < len(destinations) <= _MAX_FILTERED_DUMPS
        for criteria in destinations if narrow else map(_to_address, external):
            self._end(socket.AF_INET, criteria, lambda flow: flow.translation in ended)

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
        marked = _with_mark(self._mark)
        destinations = {_to(each) + marked for each in ended}
        for criteria in destinations if len(destinations) <= _MAX_FILTERED_DUMPS else [marked]:
            self._end(socket.AF_INET6, criteria, lambda flow: flow.translation in ended and self._is_marked(flow))

    def _end(self, family: int, criteria: bytes, is_ended: Callable[[Flow], bool]) -> None:
        """Dump the flows that match the criteria, and delete those for which `is_ended` holds."""
        flows = [flow for flow in map(parse, self._dump(family, criteria)) if flow is not None and is_ended(flow)]
        deletes = [
            _message(IPCTNL_MSG_CT_DELETE, _FAMILY[flow.source.address.version], flow.identity) for flow in flows
        ]
        for start in range(0, len(deletes), _CHUNK):
            for error in self._netlink.request(deletes[start : start + _CHUNK]):
                if error.errno != errno.ENOENT:  # ENOENT: the flow ended in between
                    raise error

    def _is_marked(self, flow: Flow) -> bool:
        return flow.mark & self._mark == self._mark

    def _dump(self, family: int, criteria: bytes) -> list[bytes]:
        """Return the flows that match, or more: kernels before 5.8 ignore the filter and return all flows."""
        return self._netlink.dump(_message(IPCTNL_MSG_CT_GET, family, criteria))


def parse(payload: bytes) -> Flow | None:
    """Decode a conntrack message; return None for a flow without ports, which cannot be a mapping's."""
    found = body(payload)
    original, reply = _parse_tuple(found[CTA_TUPLE_ORIG]), _parse_tuple(found[CTA_TUPLE_REPLY])
    if original is None or reply is None:
        return None
    rest = (attribute(kind, found[kind]) for kind in (CTA_ID, CTA_ZONE) if kind in found)
    return Flow(
        translation=Translation(original.protocol, original.destination, reply.source),
        source=original.source,
        mark=int.from_bytes(found.get(CTA_MARK, b""), "big"),
        identity=nested(CTA_TUPLE_ORIG, found[CTA_TUPLE_ORIG]) + b"".join(rest),
    )


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


def _admit(remotes: Collection[Remote], source: Endpoint) -> bool:
    """Return whether a mapping with these remotes admits the source."""
    return not remotes or any(
        source.address in remote.network and remote.port in (0, source.port) for remote in remotes
    )


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


def _to_address(address: IPv4Address) -> bytes:
    """Return the criteria for flows to this original destination address."""
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
