"""Counts what the internet sends through each mapping, for both backends.

    table inet igd_wg0/traffic {
        set port_mappings { type ipv4_addr . inet_proto . inet_service; counter; }
        set pinholes { type ipv6_addr . inet_proto . inet_service; counter; }
        set pinholes_from { type ipv6_addr . ipv6_addr . inet_proto . inet_service; counter; }
        set pinholes_from_port { type ipv6_addr . ipv6_addr . inet_proto . inet_service . inet_service; counter; }
        set pinholes_from_any_port { type ipv6_addr . inet_proto . inet_service . inet_service; counter; }
        chain forward {
            type filter hook forward priority filter + 20; policy accept;
            ct mark & 0x10000000 == 0x00000000 return
            ct direction reply return
            ip daddr . meta l4proto . th dport @port_mappings
            ip6 daddr . meta l4proto . th dport @pinholes
            ip6 saddr . ip6 daddr . meta l4proto . th dport @pinholes_from
            ip6 saddr . ip6 daddr . meta l4proto . th dport . th sport @pinholes_from_port
            ip6 daddr . meta l4proto . th dport . th sport @pinholes_from_any_port
        }
    }

A chain of type nat sees the first packet of a flow only, so that this is a filter chain. It stands behind the forward
chains of iptables (filter) and firewalld (filter + 10), so that it counts what they have accepted, and neither answers
nor what no mapping lets in. A lookup that finds an element counts in it. Packets that a flowtable forwards pass no
chain, and are not counted.

A port mapping is counted by its internal endpoint, because nft can list, but not load, a lookup of the original port:
mappings that lead to one endpoint have one count. The sets of pinholes correspond to their keys: without a remote, and
with one by its address, by address and port, or by its port.

A table of its own, as that of request_rate.py: where the kernel cannot have it, nothing but the counts is missing. It
needs Linux 5.7.
"""

import logging
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from igd.core.mapping import AnyMapping, Change, Endpoint, PortMapping, TransportProtocol
from igd.firewall import nf_tables as nf
from igd.firewall.backend import FirewallError
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    Message,
    attributes,
    body,
    nested,
    nft_message,
    pairs,
    text,
    u64,
    value,
)
from igd.firewall.nft.elements import INET_PROTO, INET_SERVICE, IPV4_ADDR, IPV6_ADDR, NftSet, Placed, element
from igd.firewall.nft.expressions import (
    DADDR,
    DADDR6,
    DPORT,
    IPV4,
    IPV6,
    L4PROTO,
    RETURN,
    SADDR6,
    SPORT,
    EncodedRule,
    Field,
    compare,
    lacks_mark,
    load_ct,
    membership,
)
from igd.firewall.nft.table_messages import Hook, TableMessages
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.site import TRAFFIC_TABLE, Site, label

log = logging.getLogger(__name__)

CHAIN = "forward"
HOOK = Hook(nf.NF_INET.FORWARD, nf.NF_IP_PRI.FILTER + 20, "filter")

_NO_FLAGS = nf.NFT_SET(0)
_PINHOLE = (IPV6_ADDR, INET_PROTO, INET_SERVICE)

PORT_MAPPINGS = NftSet("port_mappings", (IPV4_ADDR, INET_PROTO, INET_SERVICE), flags=_NO_FLAGS)
PINHOLES = NftSet("pinholes", _PINHOLE, flags=_NO_FLAGS)
FROM_ADDRESS = NftSet("pinholes_from", (IPV6_ADDR, *_PINHOLE), flags=_NO_FLAGS)
FROM_PORT = NftSet("pinholes_from_port", (IPV6_ADDR, *_PINHOLE, INET_SERVICE), flags=_NO_FLAGS)
FROM_ANY_PORT = NftSet("pinholes_from_any_port", (*_PINHOLE, INET_SERVICE), flags=_NO_FLAGS)

_COUNTED: dict[NftSet, tuple[EncodedRule, tuple[Field, ...]]] = {
    PORT_MAPPINGS: (IPV4, (DADDR, L4PROTO, DPORT)),
    PINHOLES: (IPV6, (DADDR6, L4PROTO, DPORT)),
    FROM_ADDRESS: (IPV6, (SADDR6, DADDR6, L4PROTO, DPORT)),
    FROM_PORT: (IPV6, (SADDR6, DADDR6, L4PROTO, DPORT, SPORT)),
    FROM_ANY_PORT: (IPV6, (DADDR6, L4PROTO, DPORT, SPORT)),
}
"""What is looked up in each set, in packets of which IP version."""

_COUNTS = struct.Struct(">QQ")


def table_name(interface: str) -> str:
    """Return the name of the table for this interface."""
    return label(interface) + TRAFFIC_TABLE


class TrafficTable:
    """The table of one site. If the kernel cannot have it, that is a warning, and reading a count an error."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._messages = TableMessages(table_name(site.wireguard))
        self._netlink = Netlink()
        self._mappings: Counter[Placed] = Counter()  # with this count
        self._failures = RecurringWarnings(log, "what passes through mappings is not counted: %s")

    @property
    def port(self) -> int:
        """The address of the netlink socket that edits the table."""
        return self._netlink.port

    def replace(self, mappings: Iterable[AnyMapping]) -> None:
        """Count for exactly these mappings; those that the table has go on from their present counts."""
        self._mappings = Counter(map(_place, mappings))
        with self._failures.catching(FirewallError):
            counts = dict(self._counts())
            self._transact([*self._messages.removal(), *self._creation(counts)])

    def apply(self, changes: Collection[Change]) -> None:
        """Begin and end counting as these changes open, move and close mappings."""
        deleted, added = [], []
        for place, (before, after) in self._steps(changes).items():
            if before and not after:
                deleted.append(place)
            elif after and not before:
                added.append(place)
        if deleted or added:
            with self._failures.catching(FirewallError):
                self._transact([*self._deletions(deleted), *self._additions(dict.fromkeys(added, (0, 0)))])

    def packets(self, mapping: AnyMapping) -> int:
        """Return how many packets the internet has sent through this mapping; FirewallError."""
        nft_set, key = _place(mapping)
        listed = nested(nf.NFTA_SET_ELEM_LIST.ELEMENTS, element(key))
        found = self._netlink.get(
            self._messages.message(nf.NFT_MSG.GETSETELEM, text(nf.NFTA_SET_ELEM_LIST.SET, nft_set.name), listed)
        )
        for payload in found:
            for _key, packets, _octets in _elements(payload):
                return packets
        raise FirewallError(f"the kernel does not count for {mapping}")

    def remove(self) -> None:
        """Delete the table; its absence is no error."""
        self._transact(self._messages.removal())

    def close(self) -> None:
        """Close the socket; the table stays."""
        self._netlink.close()

    def _steps(self, changes: Iterable[Change]) -> dict[Placed, tuple[int, int]]:
        """Count the mappings anew; return how many each count of these changes had before and has after them."""
        steps: Counter[Placed] = Counter()
        for change in changes:
            steps.update([_place(change.after.mapping)] if change.after else [])
            steps.subtract([_place(change.before.mapping)] if change.before else [])
        before = {place: self._mappings[place] for place in steps}
        self._mappings.update(steps)
        after = {place: self._mappings[place] for place in steps}
        self._mappings = +self._mappings
        return {place: (before[place], after[place]) for place in steps}

    def _counts(self) -> Iterator[tuple[Placed, tuple[int, int]]]:
        """Yield what the table has counted: packets and octets."""
        for nft_set in _COUNTED:
            names = (
                text(nf.NFTA_SET_ELEM_LIST.TABLE, self._messages.name),
                text(nf.NFTA_SET_ELEM_LIST.SET, nft_set.name),
            )
            for payload in self._netlink.dump_if_exists(nft_message(nf.NFT_MSG.GETSETELEM, NFPROTO_INET, *names)):
                for key, packets, octets in _elements(payload):
                    yield (nft_set, key), (packets, octets)

    def _creation(self, counts: dict[Placed, tuple[int, int]]) -> Iterator[Message]:
        create = self._messages
        yield create.table(owned=self._site.own_table)
        yield from create.sets(each.declaration() + _counter(nf.NFTA_SET.EXPR) for each in _COUNTED)
        yield from self._additions({place: counts.get(place, (0, 0)) for place in self._mappings})
        yield create.chain(CHAIN, HOOK)
        yield create.rule(CHAIN, (*lacks_mark(self._site.mark), RETURN))
        yield create.rule(CHAIN, (load_ct(nf.NFT_CT.DIRECTION), compare(bytes([nf.IP_CT_DIR.REPLY])), RETURN))
        for nft_set, (version, fields) in _COUNTED.items():
            yield create.rule(CHAIN, (*version, *membership(nft_set, *fields)))

    def _additions(self, counts: dict[Placed, tuple[int, int]]) -> Iterator[Message]:
        contents: dict[NftSet, list[bytes]] = {}
        for (nft_set, key), (packets, octets) in counts.items():
            item = element(key, _counter(nf.NFTA_SET_ELEM.EXPR, packets, octets))
            contents.setdefault(nft_set, []).append(item)
        for nft_set, listed in contents.items():
            yield from self._messages.elements(nft_set.name, listed)

    def _deletions(self, places: Iterable[Placed]) -> Iterator[Message]:
        for nft_set, key in places:
            yield self._messages.deletion(nft_set.name, key)

    def _transact(self, messages: Sequence[Message]) -> None:
        self._netlink.transact(NFNL_SUBSYS_NFTABLES, messages)


def _place(mapping: AnyMapping) -> Placed:
    """Return the element that counts for this mapping, as its set and key."""
    key = _endpoint(mapping.protocol, mapping.internal)
    if isinstance(mapping, PortMapping):
        return PORT_MAPPINGS, value(nf.NFTA_SET_ELEM.KEY, key)
    remote = mapping.key[3] if len(mapping.key) == 4 else None
    if remote is None:
        return PINHOLES, value(nf.NFTA_SET_ELEM.KEY, key)
    port = struct.pack(">H2x", remote.port) if remote.port else b""
    if remote.network.prefixlen < remote.network.max_prefixlen:
        return FROM_ANY_PORT, value(nf.NFTA_SET_ELEM.KEY, key + port)
    nft_set = FROM_PORT if port else FROM_ADDRESS
    return nft_set, value(nf.NFTA_SET_ELEM.KEY, remote.network.network_address.packed + key + port)


def _endpoint(protocol: TransportProtocol, endpoint: Endpoint) -> bytes:
    return endpoint.address.packed + struct.pack(">B3xH2x", protocol, endpoint.port)


def _counter(kind: int, packets: int = 0, octets: int = 0) -> bytes:
    """Return the attribute that gives a set or an element a counter."""
    data = u64(nf.NFTA_COUNTER.BYTES, octets), u64(nf.NFTA_COUNTER.PACKETS, packets)
    return nested(kind, text(nf.NFTA_EXPR.NAME, "counter"), nested(nf.NFTA_EXPR.DATA, *data))


def _elements(payload: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield key, packets and octets of the elements in a message of the kernel; the key is an attribute."""
    for _kind, encoded in pairs(body(payload).get(nf.NFTA_SET_ELEM_LIST.ELEMENTS, b"")):
        found = attributes(encoded)
        key = attributes(found.get(nf.NFTA_SET_ELEM.KEY, b"")).get(nf.NFTA_DATA.VALUE)
        counter = attributes(attributes(found.get(nf.NFTA_SET_ELEM.EXPR, b"")).get(nf.NFTA_EXPR.DATA, b""))
        if key is not None and nf.NFTA_COUNTER.PACKETS in counter:
            packets, octets = (
                int.from_bytes(counter[each], "big") for each in (nf.NFTA_COUNTER.PACKETS, nf.NFTA_COUNTER.BYTES)
            )
            yield value(nf.NFTA_SET_ELEM.KEY, key), packets, octets


__all__ = ["TrafficTable", "table_name"]
