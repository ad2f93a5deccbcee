"""The flows of mappings, by ctnetlink: a flow outlives the rule that made it, so whoever closes a port ends its flows.

A dump with the kernel's filter finds the candidates; each is verified here, because kernels before 5.8 do not know the
filter and give everything; then each is deleted by its own tuple and id. (A filtered delete would be one message, but a
kernel that does not know the filter would delete every flow of the machine.)

Source of numbers: linux/netfilter/nfnetlink_conntrack.h; the filter's flags are in the kernel's
net/netfilter/nf_internals.h.
"""

import errno
import socket
import struct
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from igd.core.mapping import Endpoint, Entry, Key, PortMapping, Protocol
from igd.firewall.netlink import Message, Netlink, NetlinkError, attribute, attributes, body, nested, u8, u32
from igd.firewall.rules import MARK

NFNL_SUBSYS_CTNETLINK = 1
GET, DELETE = 1, 2

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_MARK, CTA_ID, CTA_ZONE, CTA_MARK_MASK, CTA_FILTER = 1, 2, 8, 12, 18, 21, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST = 1, 2
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER_ORIG_FLAGS = 1
FILTER_IP_DST, FILTER_PROTO_NUM, FILTER_PROTO_DST_PORT = 1 << 1, 1 << 3, 1 << 5

EVERYWHERE = (IPv4Network("0.0.0.0/0"),)

_NO_FILTER = {errno.EOPNOTSUPP, errno.EINVAL}
_FEW = 8  # ports looked for one by one. A dump walks the whole table, 13 ms if that is empty; a flow read adds 0.03 ms
_CHUNK = 100  # deletes of one send: each may be answered by an error, and those have to fit in the receive buffer


@dataclass(frozen=True, slots=True)
class Flow:
    """A conntrack entry: what its first packet was sent to, and who answers it (the same where nothing was DNATed).

    `identity` holds the attributes by which the kernel finds exactly this entry.
    """

    protocol: int
    destination: Endpoint
    answering: Endpoint
    mark: int
    identity: bytes

    @property
    def led(self) -> tuple[int, int, Endpoint]:
        """The protocol, the port that the flow was sent to, and the endpoint that it is led to."""
        return self.protocol, self.destination.port, self.answering


class Conntrack:
    """Ends flows in the network namespace of the thread that made it; `mark` is the mark bit of flows of mappings."""

    def __init__(self, mark: int = MARK) -> None:
        self._mark = mark
        self._netlink = Netlink()

    def flush(self, mappings: Iterable[PortMapping], addresses: Iterable[IPv4Address]) -> int:
        """End the flows that these mappings led from `addresses` to their internal endpoints; give their number."""
        led = {(*mapping.key, mapping.internal) for mapping in mappings}
        return self._end_to({key[:2] for key in led}, addresses, lambda flow: flow.led in led)

    def flush_unmapped(self, mappings: Iterable[PortMapping], addresses: Iterable[IPv4Address]) -> int:
        """End UDP flows to these new mappings' external ports that no DNAT leads elsewhere; give their number.

        A remote that was already sending to the port has such a flow, and it keeps his packets from the mapping for as
        long as he goes on sending. With TCP the server itself had answered with a reset, and nothing is left.
        """
        keys = {mapping.key for mapping in mappings if mapping.protocol is Protocol.UDP}
        return self._end_to(keys, addresses, lambda flow: flow.answering == flow.destination)

    def flush_stale(self, keep: Iterable[Entry], networks: Iterable[IPv4Network] = EVERYWHERE) -> int:
        """End every flow with our mark into `networks` that no entry of `keep` would lead so; give their number.

        Elsewhere lead the flows of other instances, which have the same mark.
        """
        kept = {(*entry.mapping.key, entry.mapping.internal) for entry in keep}
        own = tuple(networks)

        def stale(flow: Flow) -> bool:
            ours = flow.mark & self._mark == self._mark and any(flow.answering.address in network for network in own)
            return ours and flow.led not in kept

        return self._end(u32(CTA_MARK, self._mark) + u32(CTA_MARK_MASK, self._mark), stale)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def _end_to(self, keys: AbstractSet[Key], addresses: Iterable[IPv4Address], doomed: Callable[[Flow], bool]) -> int:
        """End the flows to these protocols and ports at `addresses` that are doomed."""
        external = frozenset(addresses)
        dumps = [_to_port(key) for key in keys] if len(keys) <= _FEW else [_to_address(address) for address in external]

        def concerned(flow: Flow) -> bool:
            return (flow.protocol, flow.destination.port) in keys and flow.destination.address in external

        return sum(self._end(criteria, lambda flow: concerned(flow) and doomed(flow)) for criteria in dumps)

    def _end(self, criteria: bytes, doomed: Callable[[Flow], bool]) -> int:
        flows = [flow for flow in map(parse, self._dump(criteria)) if flow is not None and doomed(flow)]
        deletes = [_message(DELETE, flow.identity) for flow in flows]
        for start in range(0, len(deletes), _CHUNK):
            for error in self._netlink.request(deletes[start : start + _CHUNK]):
                if error.errno != errno.ENOENT:  # ENOENT: it ended by itself
                    raise error
        return len(flows)

    def _dump(self, criteria: bytes) -> list[bytes]:
        try:
            return self._netlink.dump(_message(GET, criteria))
        except NetlinkError as error:
            if error.errno not in _NO_FILTER:
                raise
            return self._netlink.dump(_message(GET, b""))


def parse(payload: bytes) -> Flow | None:
    """Read a conntrack message; None for what has no IPv4 addresses or no ports, and so never was mapped."""
    found = body(payload)
    original, reply = attributes(found[CTA_TUPLE_ORIG]), attributes(found[CTA_TUPLE_REPLY])
    there, back = (attributes(tuple_[CTA_TUPLE_PROTO]) for tuple_ in (original, reply))
    addresses, answering = (attributes(tuple_[CTA_TUPLE_IP]) for tuple_ in (original, reply))
    if CTA_PROTO_DST_PORT not in there or CTA_IP_V4_DST not in addresses:
        return None
    rest = (attribute(kind, found[kind]) for kind in (CTA_ID, CTA_ZONE) if kind in found)
    return Flow(
        protocol=there[CTA_PROTO_NUM][0],
        destination=_endpoint(addresses[CTA_IP_V4_DST], there[CTA_PROTO_DST_PORT]),
        answering=_endpoint(answering[CTA_IP_V4_SRC], back[CTA_PROTO_SRC_PORT]),
        mark=int.from_bytes(found.get(CTA_MARK, b""), "big"),
        identity=nested(CTA_TUPLE_ORIG, found[CTA_TUPLE_ORIG]) + b"".join(rest),
    )


def _endpoint(address: bytes, port: bytes) -> Endpoint:
    return Endpoint(IPv4Address(address), int.from_bytes(port, "big"))


def _to_port(key: Key) -> bytes:
    """Give the criteria for flows whose first packet went to this protocol and port."""
    protocol, port = key
    ports = nested(CTA_TUPLE_PROTO, u8(CTA_PROTO_NUM, protocol), attribute(CTA_PROTO_DST_PORT, struct.pack(">H", port)))
    return nested(CTA_TUPLE_ORIG, ports) + _filter(FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT)


def _to_address(address: IPv4Address) -> bytes:
    """Give the criteria for flows whose first packet went to this address."""
    addresses = nested(CTA_TUPLE_IP, attribute(CTA_IP_V4_DST, address.packed))
    return nested(CTA_TUPLE_ORIG, addresses) + _filter(FILTER_IP_DST)


def _filter(flags: int) -> bytes:
    # these flags alone are in host order
    return nested(CTA_FILTER, attribute(CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))


def _message(kind: int, payload: bytes) -> Message:
    return Message(NFNL_SUBSYS_CTNETLINK << 8 | kind, socket.AF_INET, payload)
