"""The default backend: one table of our own with one map, by netlink; a change costs the same however many there are.

    table inet igd_wg0 {
        set external { type ipv4_addr; }
        map mappings { type inet_proto . inet_service : ipv4_addr . inet_service; flags timeout; }
        chain prerouting {
            type nat hook prerouting priority dstnat + 1; policy accept;
            ip daddr @external socket transparent <= 1 return
            ip daddr @external ct mark set ct mark | 0x10000000 dnat ip to meta l4proto . th dport map @mappings
            ip daddr @external ct mark set ct mark & 0xefffffff
        }
    }

dstnat + 1: the operator's own DNATs come first, and a packet that they took never gets here.
First rule: a socket of the server itself is there (transparent is 0 or 1, and no value at all without a socket).
Second and third: the mark is set before the lookup and taken back after a miss. Only the first packet of a flow comes
here, before anybody else sees the flow, so that the mark is on our flows alone. The shorter ways are closed: nft prints
"look up, then mark" in the other order and would load it as such, and a test of a map's keys that leaves their values
alone is refused before Linux 6.5.

Everything here is what nft 1.0.6 prints and reads back, because operators save `nft list ruleset` as their firewall.
Source of numbers: linux/netfilter/nf_tables.h. Works since Linux 5.10, hence no update of an element's timeout in place
(6.12), and no destroy-if-there (6.3).
"""

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from itertools import islice

from igd.core.mapping import Change, Entry, Key
from igd.firewall.netlink import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    NFPROTO_IPV4,
    BatchError,
    Message,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    body,
    nested,
    text,
    u32,
    u64,
)
from igd.firewall.rules import MARK, kernel_timeout, label

NF_INET_PRE_ROUTING = 0
NF_IP_PRI_NAT_DST = -100
NF_ACCEPT = 1

NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, NEWRULE, DELRULE = 0, 1, 2, 3, 4, 6, 8
NEWSET, GETSET, NEWSETELEM, DELSETELEM, GETGEN = 9, 10, 12, 14, 16
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

SET_FLAGS, SET_ID = 3, 10  # of NFTA_SET_*; 3 of a table and of a chain is something that is always there

EXTERNAL, MAPPINGS, PREROUTING = "external", "mappings", "prerouting"

# nft's numbers of its data types, 6 bits each in a concatenation; the kernel only keeps them for nft to print
IPV4_ADDR, INET_PROTO, INET_SERVICE = 7, 12, 13
KEY_TYPE = INET_PROTO << 6 | INET_SERVICE
DATA_TYPE = IPV4_ADDR << 6 | INET_SERVICE
NFT_SET_MAP = 0x08
NFT_SET_TIMEOUT = 0x10

REG_VERDICT, REG_1, REG32_01 = 0, 1, 9  # REG32_01 is the second word of REG_1
NFT_RETURN = -5 & 0xFFFF_FFFF

_CHUNK = 1000  # elements of one message: about 50 bytes each, in a list whose length field has 16 bits


class Nftables:
    """A Backend (igd.firewall.backend) that keeps `table inet igd_<interface>`; `mark` is our conntrack mark bit."""

    def __init__(self, interface: str, mark: int = MARK) -> None:
        self._table = label(interface)
        self._mark = mark
        self._netlink = Netlink()

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries` for packets to `addresses`, whatever was there of ours before, in one transaction."""
        external = self._elements(NEWSETELEM, EXTERNAL, (_element(address.packed) for address in addresses))
        mappings = self._elements(NEWSETELEM, MAPPINGS, (_mapping_element(entry, now) for entry in entries))
        self._transact([*self._fresh_start(), *self._new_rules(), *external, *mappings])

    def remove_all(self) -> None:
        """Take our table out of the kernel; nothing there is not an error."""
        self._transact(self._removal())

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out `changes` in one transaction; `now` is the moment on the clock of the leases.

        An entry that the kernel's own timeout took away already counts as deleted.
        """
        messages = [message for change in changes for message in self._change(change, now)]
        while True:
            try:
                return self._transact(messages)
            except BatchError as error:
                # A delete of what is gone fails the whole transaction, so again without those. Ends: each time fewer.
                gone = {bad.index for bad in error.errors if bad.errno == errno.ENOENT and _deletes(messages, bad)}
                if len(gone) < len(error.errors):
                    raise
                messages = [message for index, message in enumerate(messages) if index not in gone]

    @property
    def port(self) -> int:
        """The address of the netlink socket from which the table is changed."""
        return self._netlink.port

    def close(self) -> None:
        """Close the socket; the table stays."""
        self._netlink.close()

    def _change(self, change: Change, now: float) -> Iterator[Message]:
        # A renewal too deletes and adds: kernels before 6.12 accept an add of what is there, and leave its timeout.
        if change.before is not None:
            yield from self._elements(DELSETELEM, MAPPINGS, [_element(_key(change.before.mapping.key))])
        if change.after is not None:
            yield from self._elements(NEWSETELEM, MAPPINGS, [_mapping_element(change.after, now)])

    def _transact(self, messages: Sequence[Message]) -> None:
        self._netlink.transact(NFNL_SUBSYS_NFTABLES, messages)

    def _message(self, kind: int, *parts: bytes, flags: int = 0) -> Message:
        return Message(NFNL_SUBSYS_NFTABLES << 8 | kind, NFPROTO_INET, b"".join(parts), flags)

    def _fresh_start(self) -> list[Message]:
        """Give the messages after which table, sets and chain are there, and nothing in them.

        What is right stays, and is emptied: only then no packet is lost. A chain that takes another's place is asked
        before it, and is empty until the moment in which that one becomes empty, so that the first packet of a flow can
        come too early for the one and too late for the other (seen: 1 new flow of 60 was lost, with one replacement
        after another; with a new map in the old one's place 1 of 2,000).
        """
        frame = [self._new_table(), *self._new_sets(), self._new_chain()]
        if self._stands(frame):
            own = text(1, self._table)
            sets = [self._message(DELSETELEM, own, text(2, name)) for name in (EXTERNAL, MAPPINGS)]
            return [self._message(DELRULE, own, text(2, PREROUTING)), *sets]
        return [*self._removal(), *frame]

    def _stands(self, frame: Sequence[Message]) -> bool:
        """Whether our table consists of just what these messages would make, whatever rules and elements are in it."""
        name = self._table.encode() + b"\0"
        kinds = (GETTABLE, GETSET, GETCHAIN)
        everyones = (body(payload) for kind in kinds for payload in self._netlink.dump(self._message(kind)))
        found = [{SET_FLAGS: bytes(4)} | each for each in everyones if each[1] == name]  # left out where there are none
        wanted = [attributes(message.payload) for message in frame]
        for each in wanted:
            each.pop(SET_ID, None)  # of the transaction alone
        return len(found) == len(wanted) and all(any(w.items() <= f.items() for f in found) for w in wanted)

    def _removal(self) -> list[Message]:
        # Made and deleted, so that neither its absence nor whatever is wrong with it matters.
        own = text(1, self._table)
        return [self._message(NEWTABLE, own, flags=NLM_F_CREATE), self._message(DELTABLE, own)]

    def _new_table(self) -> Message:
        """Give the message for the table: name 1, flags 2 (none: not dormant, and nobody's in particular)."""
        return self._message(NEWTABLE, text(1, self._table), u32(2, 0), flags=NLM_F_CREATE)

    def _new_sets(self) -> list[Message]:
        """Give the messages for `external` and `mappings`.

        Attributes: table 1, name 2, flags 3, key type 4 and length 5, data type 6 and length 7, id 10, which nothing
        refers to here, but the kernel insists on.
        """
        external = (text(2, EXTERNAL), u32(SET_FLAGS, 0), u32(4, IPV4_ADDR), u32(5, 4))
        flags = u32(SET_FLAGS, NFT_SET_MAP | NFT_SET_TIMEOUT)
        mappings = (text(2, MAPPINGS), flags, u32(4, KEY_TYPE), u32(5, 8), u32(6, DATA_TYPE), u32(7, 8))
        return [
            self._message(NEWSET, text(1, self._table), *kind, u32(SET_ID, number), flags=NLM_F_CREATE)
            for number, kind in enumerate((external, mappings), start=1)
        ]

    def _new_chain(self) -> Message:
        """Give the message for `prerouting`: table 1, name 3, hook 4 (number 1, priority 2), policy 5, type 7."""
        hook = nested(4, u32(1, NF_INET_PRE_ROUTING), u32(2, NF_IP_PRI_NAT_DST + 1 & 0xFFFF_FFFF))
        own = (text(1, self._table), text(3, PREROUTING), hook, u32(5, NF_ACCEPT), text(7, "nat"))
        return self._message(NEWCHAIN, *own, flags=NLM_F_CREATE)

    def _new_rules(self) -> list[Message]:
        """Give the messages for the rules: table 1, chain 2, expressions 4."""
        return [
            self._message(
                NEWRULE,
                text(1, self._table),
                text(2, PREROUTING),
                nested(4, *_TO_EXTERNAL, *expressions),
                flags=NLM_F_CREATE | NLM_F_APPEND,
            )
            for expressions in (
                _SERVERS_OWN_SOCKET,
                (*_set_mark(self._mark, self._mark), *_DNAT),
                _set_mark(self._mark, 0),
            )
        ]

    def _elements(self, kind: int, name: str, elements: Iterable[bytes]) -> Iterator[Message]:
        """Give messages that add or delete elements: table 1, set 2, list of elements 3."""
        remaining = iter(elements)
        while chunk := list(islice(remaining, _CHUNK)):
            flags = NLM_F_CREATE if kind == NEWSETELEM else 0
            yield self._message(kind, text(1, self._table), text(2, name), nested(3, *chunk), flags=flags)


def _deletes(messages: Sequence[Message], error: NetlinkError) -> bool:
    return error.index is not None and messages[error.index].kind & 0xFF == DELSETELEM


def _key(key: Key) -> bytes:
    """Give protocol . port as the map has it: each part fills 4 bytes."""
    protocol, port = key
    return struct.pack(">B3xH2x", protocol, port)


def _mapping_element(entry: Entry, now: float) -> bytes:
    internal = entry.mapping.internal
    data = internal.address.packed + struct.pack(">H2x", internal.port)
    return _element(_key(entry.mapping.key), _value(2, data), u64(4, kernel_timeout(entry.lease, now)))


def _element(key: bytes, *more: bytes) -> bytes:
    """Give a list item (1) with the attributes key 1, data 2, timeout 4."""
    return nested(1, _value(1, key), *more)


def _value(kind: int, data: bytes) -> bytes:
    return nested(kind, attribute(1, data))


def _expression(name: str, *parts: bytes) -> bytes:
    """Give a list item (1) with name 1 and attributes 2."""
    return nested(1, text(1, name), nested(2, *parts))


def _set_mark(bit: int, value: int) -> tuple[bytes, ...]:
    """Set the ct mark to itself & ~bit ^ value, which is how nft writes `|` (value: the bit) and `&` (0).

    ct: destination 1, key 2 (3: mark), source 4. bitwise: source 1, destination 2, length 3, mask 4, xor 5.
    """
    mask, xor = struct.pack("=I", ~bit & 0xFFFF_FFFF), struct.pack("=I", value)
    return (
        _expression("ct", u32(2, 3), u32(1, REG_1)),
        _expression("bitwise", u32(1, REG_1), u32(2, REG_1), u32(3, 4), _value(4, mask), _value(5, xor)),
        _expression("ct", u32(2, 3), u32(4, REG_1)),
    )


# The attributes of each expression, as in nf_tables.h: meta: destination 1, key 2 (15: nfproto, 16: l4proto).
# cmp: source 1, operation 2 (0: equal, 3: less or equal), data 3. payload: destination 1, base 2 (1: network header,
# 2: transport header), offset 3, length 4. lookup: set 1, source 2, destination 3. socket: key 1 (0: transparent),
# destination 2. immediate: destination 1, data 2 (verdict 2 with code 1). nat: type 1 (1: dnat), family 2, address
# register 3, port register 5.
_TO_EXTERNAL = (
    _expression("meta", u32(2, 15), u32(1, REG_1)),
    _expression("cmp", u32(1, REG_1), u32(2, 0), _value(3, bytes([NFPROTO_IPV4]))),
    _expression("payload", u32(1, REG_1), u32(2, 1), u32(3, 16), u32(4, 4)),
    _expression("lookup", text(1, EXTERNAL), u32(2, REG_1)),
)
_SERVERS_OWN_SOCKET = (
    _expression("socket", u32(1, 0), u32(2, REG_1)),
    _expression("cmp", u32(1, REG_1), u32(2, 3), _value(3, bytes([1]))),
    _expression("immediate", u32(1, REG_VERDICT), nested(2, nested(2, u32(1, NFT_RETURN)))),
)
_DNAT = (
    _expression("meta", u32(2, 16), u32(1, REG_1)),
    _expression("payload", u32(1, REG32_01), u32(2, 2), u32(3, 2), u32(4, 2)),
    _expression("lookup", text(1, MAPPINGS), u32(2, REG_1), u32(3, REG_1)),
    _expression("nat", u32(1, 1), u32(2, NFPROTO_IPV4), u32(3, REG_1), u32(5, REG32_01)),
)
