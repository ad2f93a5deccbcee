"""The flows of mappings, by ctnetlink: a flow outlives the rule that made it, so whoever closes a port ends its flows.

Two ways. The sweep is one delete with a filter, since Linux 6.11: the kernel walks its table and ends what fits. Else a
dump finds the candidates, each is verified here, and each is deleted by its own tuple and id. The dump locks every one
of 262,144 buckets, 12 ms if all are empty; the sweep skips the empty ones (0.3 ms; both grow by 0.3 ms with each
thousand flows).

IPv6 is never swept: up to 6.18 the kernel's filter has the comparison of IPv6 addresses inverted, and would end all
flows but the right ones. Nor is it asked for addresses in a dump.

Source of numbers: linux/netfilter/nfnetlink_conntrack.h; the filter's flags are in the kernel's
net/netfilter/nf_internals.h.
"""

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

from igd.core.mapping import AnyMapping, Endpoint, Entry, Pinhole, PortMapping, Remote, TransportProtocol
from igd.firewall.netlink import Netlink, NetlinkError
from igd.firewall.nfnetlink import NFNL_SUBSYS_CTNETLINK, Message, attribute, attributes, body, nested, u8, u32

GET, DELETE = 1, 2

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_MARK, CTA_ID, CTA_ZONE, CTA_MARK_MASK, CTA_FILTER = 1, 2, 8, 12, 18, 21, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST = 1, 2  # IPv6: 3 and 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
FILTER_IP_DST = 2
FILTER_SOURCE, FILTER_DESTINATION = 1 | 8 | 16, FILTER_IP_DST | 8 | 32  # address, protocol, port

EVERYWHERE: tuple[IPv4Network | IPv6Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_NO_FILTER = {errno.EOPNOTSUPP, errno.EINVAL}
# More than so many, and one dump of far more flows than it takes is cheaper: a flow read here costs 0.03 ms.
_SWEEPS = 16
_DUMPS = 8
_CHUNK = 100  # deletes of one send: each may be answered by an error, and those have to fit in the receive buffer


class Course(NamedTuple):
    """The way of flows: what their first packets were sent to, and who answers (the same where nothing is DNATed)."""

    protocol: int
    outside: Endpoint
    inside: Endpoint


@dataclass(frozen=True, slots=True)
class Flow:
    """A conntrack entry; `source` sent its first packet.

    `identity` holds the attributes by which the kernel finds exactly this entry.
    """

    course: Course
    source: Endpoint
    mark: int
    identity: bytes


class Conntrack:
    """Ends flows in the network namespace of the thread that made it; `mark` is the mark bit of flows of mappings."""

    def __init__(self, mark: int) -> None:
        self._mark = mark
        self._netlink = Netlink()
        self._sweeps = True  # until the kernel refuses one

    def settle(self, lost: Iterable[AnyMapping], new: Iterable[AnyMapping], addresses: Iterable[IPv4Address]) -> None:
        """End the flows that `lost` mappings let in, for port mappings from `addresses`; and those that go past `new`.

        Past a port mapping goes a UDP flow to its external port that no DNAT leads elsewhere: a remote that was already
        sending has one, and it keeps his packets from the mapping for as long as he goes on. With TCP the server itself
        had answered with a reset, and where a firewall dropped what a pinhole lets in, it left no flow.
        """
        external = tuple(addresses)
        courses = {course for mapping in lost for course in _led(mapping, external)}
        courses.update(course for mapping in new for course in _past(mapping, external))
        ipv4 = {course for course in courses if course.outside.address.version == 4}
        self._end_port_mappings(ipv4, external)
        self._end_pinholes(courses - ipv4)

    def flush_stale(self, keep: Iterable[Entry], networks: Iterable[IPv4Network | IPv6Network] = EVERYWHERE) -> None:
        """End every flow with our mark into `networks` that no entry of `keep` would let in so.

        Elsewhere lead the flows of other instances, which have the same mark.
        """
        mappings = [entry.mapping for entry in keep]
        kept = {(int(one.protocol), one.external_port, one.internal): one.remotes for one in mappings}
        own = tuple(networks)

        def stale(flow: Flow) -> bool:
            protocol, outside, inside = flow.course
            if not self._bears_mark(flow) or not any(inside.address in network for network in own):
                return False
            remotes = kept.get((protocol, outside.port, inside))
            return remotes is None or not _among(remotes, flow.source)

        self._end(socket.AF_UNSPEC, _marked(self._mark), stale)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def _end_port_mappings(self, courses: Collection[Course], external: Iterable[IPv4Address]) -> None:
        """End the flows on these IPv4 courses, whatever their mark: operators overwrite marks."""
        if len(courses) <= _SWEEPS and self._swept(courses):
            return
        # Two courses from one port have one criterion.
        narrow = {_to(course) for course in courses} if len(courses) <= 2 * _DUMPS else ()
        for criteria in narrow if 0 < len(narrow) <= _DUMPS else map(_to_address, external):
            self._end(socket.AF_INET, criteria, lambda flow: flow.course in courses)

    def _swept(self, courses: Collection[Course]) -> bool:
        """End the flows on these IPv4 courses by one filtered delete each; False where the kernel cannot."""
        if self._sweeps:
            errors = self._netlink.request([_message(DELETE, socket.AF_INET, _on(course)) for course in courses])
            for error in errors:
                if error.errno not in _NO_FILTER:
                    raise error
            self._sweeps = not errors
        return self._sweeps

    def _end_pinholes(self, courses: Collection[Course]) -> None:
        """End the marked flows on these IPv6 courses; nothing but the mark tells them from what had passed already."""
        marked = _marked(self._mark)
        narrow = {_to(course) + marked for course in courses}
        for criteria in narrow if len(narrow) <= _DUMPS else [marked]:
            self._end(socket.AF_INET6, criteria, lambda flow: flow.course in courses and self._bears_mark(flow))

    def _end(self, family: int, criteria: bytes, doomed: Callable[[Flow], bool]) -> None:
        flows = [flow for flow in map(parse, self._dump(family, criteria)) if flow is not None and doomed(flow)]
        deletes = [_message(DELETE, _FAMILY[flow.source.address.version], flow.identity) for flow in flows]
        for start in range(0, len(deletes), _CHUNK):
            for error in self._netlink.request(deletes[start : start + _CHUNK]):
                if error.errno != errno.ENOENT:  # ENOENT: it ended by itself
                    raise error

    def _bears_mark(self, flow: Flow) -> bool:
        return flow.mark & self._mark == self._mark

    def _dump(self, family: int, criteria: bytes) -> list[bytes]:
        """Give what fits the criteria, or more: kernels before 5.8 do not know the filter and give everything."""
        try:
            return self._netlink.dump(_message(GET, family, criteria))
        except NetlinkError as error:
            if error.errno not in _NO_FILTER:
                raise
            return self._netlink.dump(_message(GET, family, b""))


def parse(payload: bytes) -> Flow | None:
    """Read a conntrack message; None for what has no ports, and so never was mapped."""
    found = body(payload)
    there, back = _ends(found[CTA_TUPLE_ORIG]), _ends(found[CTA_TUPLE_REPLY])
    if there is None or back is None:
        return None
    protocol, source, outside = there
    rest = (attribute(kind, found[kind]) for kind in (CTA_ID, CTA_ZONE) if kind in found)
    return Flow(
        course=Course(protocol, outside, inside=back[1]),
        source=source,
        mark=int.from_bytes(found.get(CTA_MARK, b""), "big"),
        identity=nested(CTA_TUPLE_ORIG, found[CTA_TUPLE_ORIG]) + b"".join(rest),
    )


def _ends(direction: bytes) -> tuple[int, Endpoint, Endpoint] | None:
    """Read a tuple's protocol, source and destination; None if it has no ports."""
    parts = attributes(direction)
    transport = attributes(parts[CTA_TUPLE_PROTO])
    if CTA_PROTO_DST_PORT not in transport:
        return None
    addresses = (address for _kind, address in sorted(attributes(parts[CTA_TUPLE_IP]).items()))  # the source is first
    ports = (transport[CTA_PROTO_SRC_PORT], transport[CTA_PROTO_DST_PORT])
    source, destination = (
        Endpoint(ip_address(address), int.from_bytes(port, "big"))
        for address, port in zip(addresses, ports, strict=True)
    )
    return transport[CTA_PROTO_NUM][0], source, destination


def _led(mapping: AnyMapping, external: Iterable[IPv4Address]) -> list[Course]:
    if isinstance(mapping, Pinhole):
        return [Course(mapping.protocol, mapping.internal, mapping.internal)]
    return [Course(mapping.protocol, outside, mapping.internal) for outside in _outside(mapping, external)]


def _past(mapping: AnyMapping, external: Iterable[IPv4Address]) -> list[Course]:
    if isinstance(mapping, Pinhole) or mapping.protocol is not TransportProtocol.UDP:
        return []
    return [Course(mapping.protocol, outside, outside) for outside in _outside(mapping, external)]


def _outside(mapping: PortMapping, external: Iterable[IPv4Address]) -> list[Endpoint]:
    return [Endpoint(address, mapping.external_port) for address in external]


def _among(remotes: Collection[Remote], source: Endpoint) -> bool:
    """Whether a mapping for these remotes lets the source in."""
    return not remotes or any(
        source.address in remote.network and remote.port in (0, source.port) for remote in remotes
    )


def _on(course: Course) -> bytes:
    """Give the criteria for flows on this IPv4 course; safe in a delete.

    Kernels before 6.11 know no filter there. They take CTA_TUPLE_ORIG for the whole tuple of one flow, and refuse it
    for having no source. Without any CTA_TUPLE_ORIG they would end every flow of the machine.
    """
    there = _tuple(CTA_TUPLE_ORIG, CTA_IP_V4_DST, CTA_PROTO_DST_PORT, course.protocol, course.outside)
    back = _tuple(CTA_TUPLE_REPLY, CTA_IP_V4_SRC, CTA_PROTO_SRC_PORT, course.protocol, course.inside)
    return there + back + _filter(FILTER_DESTINATION, FILTER_SOURCE)


def _to(course: Course) -> bytes:
    """Give the criteria for flows whose first packet went there; of IPv6, to that port of any address."""
    if course.outside.address.version == 4:
        there = _tuple(CTA_TUPLE_ORIG, CTA_IP_V4_DST, CTA_PROTO_DST_PORT, course.protocol, course.outside)
        return there + _filter(FILTER_DESTINATION)
    port = _port(CTA_PROTO_DST_PORT, course.protocol, course.outside.port)
    return nested(CTA_TUPLE_ORIG, port) + _filter(FILTER_DESTINATION & ~FILTER_IP_DST)


def _to_address(address: IPv4Address) -> bytes:
    """Give the criteria for flows whose first packet went to this address."""
    there = nested(CTA_TUPLE_IP, attribute(CTA_IP_V4_DST, address.packed))
    return nested(CTA_TUPLE_ORIG, there) + _filter(FILTER_IP_DST)


def _marked(mark: int) -> bytes:
    """Give the criteria for flows with all bits of the mark."""
    return u32(CTA_MARK, mark) + u32(CTA_MARK_MASK, mark)


def _tuple(kind: int, address_kind: int, port_kind: int, protocol: int, end: Endpoint) -> bytes:
    """Encode one end of a flow in one direction."""
    address = nested(CTA_TUPLE_IP, attribute(address_kind, end.address.packed))
    return nested(kind, address, _port(port_kind, protocol, end.port))


def _port(kind: int, protocol: int, port: int) -> bytes:
    return nested(CTA_TUPLE_PROTO, u8(CTA_PROTO_NUM, protocol), attribute(kind, struct.pack(">H", port)))


def _filter(orig_flags: int, reply_flags: int = 0) -> bytes:
    """Say which parts of the tuples count. These flags alone are in host order."""
    flags = ((CTA_FILTER_ORIG_FLAGS, orig_flags), (CTA_FILTER_REPLY_FLAGS, reply_flags))
    return nested(CTA_FILTER, *(attribute(kind, struct.pack("=I", value)) for kind, value in flags))


def _message(kind: int, family: int, payload: bytes) -> Message:
    return Message(NFNL_SUBSYS_CTNETLINK << 8 | kind, family, payload)
