"""The default backend: one table of our own, by netlink; a change costs the same however many mappings there are.

    table inet igd_wg0 {
        set external { type ipv4_addr; }
        map mappings { type inet_proto . inet_service : ipv4_addr . inet_service; flags timeout; }
        map restricted {
            type inet_proto . inet_service . ipv4_addr . inet_service : ipv4_addr . inet_service
            flags interval,timeout
        }
        set pinholes { type ipv6_addr . inet_proto . inet_service; flags timeout; }
        set restricted_pinholes {
            type ipv6_addr . inet_proto . inet_service . ipv6_addr . inet_service
            flags interval,timeout
        }
        map outbound { type ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout; }
        chain prerouting {
            type nat hook prerouting priority -80; policy accept;
            iifname "wg0" ip daddr 192.0.0.9 udp dport 5351 redirect                                     (anycast)
            iifname "wg0" ip6 daddr 2001:1::1 udp dport 5351 redirect                                    (anycast)
            iifname "wg0" return                                                        (only without hairpin)
            ip daddr @external socket transparent <= 1 return
            ip daddr @external ct mark set ct mark | 0x10000000 dnat ip to meta l4proto . th dport map @mappings
            ip daddr @external ct mark set ct mark | 0x10000000
                dnat ip to ip protocol . th dport . ip saddr . th sport map @restricted
            ip daddr @external ct mark set ct mark & 0xefffffff
            ip6 daddr . meta l4proto . th dport @pinholes ct mark set ct mark | 0x10000000
            ip6 daddr . meta l4proto . th dport . ip6 saddr . th sport @restricted_pinholes
                ct mark set ct mark | 0x10000000
        }
        chain postrouting {
            type nat hook postrouting priority srcnat - 1; policy accept;
            meta nfproto ipv4 iifname "wg0" oifname "wg0" ct mark & 0x10000000 != 0x00000000 masquerade    (hairpin)
            oifname "eth0" snat ip to ip saddr . udp sport map @outbound                    (preserve_source_port)
        }
    }

-80 is dstnat + 20: the operator's own DNATs come first (firewalld's are at + 10), and a packet that they took never
gets here.
redirect: to the first address of wg0 in the kernel's order; of several of IPv6 that is the one added last. Answers
leave from the anycast address (RFC 7723). It ends the walk, so that these flows get no mark.
The rule for sockets: a socket of the server itself is there (transparent is 0 or 1, and no value without a socket).
Those behind it: the mark is set before the lookup and taken back after the last miss. Only the first packet of a flow
comes here, before anybody else sees the flow, so that the mark is on our flows alone. The shorter ways are closed: nft
prints "look up, then mark" in the other order and would load it as such, and a test of a map's keys that leaves their
values alone is refused before Linux 6.5. `ip protocol` beside `meta l4proto`: with two ports in one key nft 1.0.6 does
not see in the latter that there is a transport protocol. Pinholes are not translated, and hide nothing of the server's.
srcnat - 1: before the operator's MASQUERADE. Peers that reach each other through the public address answer to the
server, or their answers would take the short way without it. Restricted mappings are in `outbound` too: their remotes
are those who may call, not those whom the peer calls, and the external port is the peer's alone in any case.

Everything here is what nft 1.0.6 prints and reads back, because operators save `nft list ruleset` as their firewall.
Source of numbers: linux/netfilter/nf_tables.h. Works since Linux 5.10, hence no update of an element's timeout in place
(6.12), and no destroy-if-there (6.3). An own table, which is no part of what is saved, wants Linux 6.9.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address

from igd.core.mapping import Change, Entry
from igd.firewall.backend import FirewallError
from igd.firewall.netlink import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    BatchError,
    Message,
    Netlink,
    NetlinkError,
    body,
)
from igd.firewall.nft import elements
from igd.firewall.nft.elements import EXTERNAL, OUTBOUND, NftSet
from igd.firewall.nft.own_table import (
    DELSETELEM,
    GETCHAIN,
    GETSET,
    GETTABLE,
    TABLE_NAME,
    TABLE_OWNER,
    Attributes,
    OwnTable,
)
from igd.firewall.nft.source_ports import Plan, SourcePorts
from igd.firewall.site import Site


class Nftables:
    """A Backend (igd.firewall.backend) that keeps `table inet igd_<interface>`."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._table = OwnTable(site)
        self._external: IPv4Address | None = None  # from where peers with preserved ports send
        self._source_ports = SourcePorts()
        self._netlink = Netlink()

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries` for packets to `addresses`, whatever was there of ours before, in one transaction.

        Preserved source ports are those of the first address, and of the first entry that leads to an endpoint.
        """
        addresses, entries = list(addresses), list(entries)
        self._external = next(iter(addresses), None)
        self._source_ports = SourcePorts()
        plan = self._plan([Change(None, entry) for entry in entries])
        held: dict[NftSet, list[bytes]] = {EXTERNAL: [elements.element(elements.address(each)) for each in addresses]}
        for entry in entries:
            held_by, added = elements.additions(entry, now)
            held.setdefault(held_by, []).extend(added)
        everything = [message for each in held.items() for message in self._table.additions(*each)]
        self._transact([*self._fresh_start(), *self._table.rules(), *everything, *self._outbound(plan, now)])
        self._source_ports.accept(plan)

    def remove_all(self) -> None:
        """Take our table out of the kernel; nothing there is not an error."""
        self._transact(self._table.removed())

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out `changes` in one transaction; `now` is the moment on the clock of the leases.

        An entry that the kernel's own timeout took away already counts as deleted.
        """
        plan = self._plan(changes)
        messages = [message for change in changes for message in self._change(change, now)]
        self._transact_what_is_there([*messages, *self._outbound(plan, now)])
        self._source_ports.accept(plan)

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
            yield from self._table.deletions(*elements.keys(change.before.mapping))
        if change.after is not None:
            yield from self._table.additions(*elements.additions(change.after, now))

    def _plan(self, changes: Sequence[Change]) -> Plan:
        return self._source_ports.plan(changes if self._site.preserve_source_port and self._external else ())

    def _outbound(self, plan: Plan, now: float) -> Iterator[Message]:
        gone = [elements.sender(change.before.mapping) for change in plan.changes if change.before]
        come = [change.after for change in plan.changes if change.after]
        yield from self._table.deletions(OUTBOUND, gone)
        if self._external is not None:
            external = self._external
            yield from self._table.additions(OUTBOUND, [elements.outbound(each, external, now) for each in come])

    def _transact_what_is_there(self, messages: Sequence[Message]) -> None:
        while True:
            try:
                return self._transact(messages)
            except BatchError as error:
                # A delete of what is gone fails the whole transaction, so again without those. Ends: each time fewer.
                gone = {bad.index for bad in error.errors if bad.errno == errno.ENOENT and _deletes(messages, bad)}
                if len(gone) < len(error.errors):
                    raise
                messages = [message for index, message in enumerate(messages) if index not in gone]

    def _transact(self, messages: Sequence[Message]) -> None:
        try:
            self._netlink.transact(NFNL_SUBSYS_NFTABLES, messages)
        except BatchError as error:
            numbers = {bad.errno for bad in error.errors}
            if errno.EPERM in numbers and self._owner() not in (None, self.port):
                raise FirewallError(f"table inet {self._table.name} belongs to another running program") from error
            if errno.EOPNOTSUPP in numbers and self._site.own_table:
                raise FirewallError(f"{error}: an own table needs Linux 6.9") from error
            raise

    def _fresh_start(self) -> list[Message]:
        """Give the messages after which table, sets and chains are there, and nothing in them.

        What is right stays, and is emptied: only then no packet is lost. A chain that takes another's place is asked
        before it, and is empty until the moment in which that one becomes empty, so that the first packet of a flow can
        come too early for the one and too late for the other (seen: 1 new flow of 60 was lost, with one replacement
        after another; with a new map in the old one's place 1 of 2,000).
        """
        if self._table.stands(self._ours(GETTABLE), self._ours(GETSET), self._ours(GETCHAIN)):
            return self._table.emptied()
        return [*self._table.removed(), *self._table.new()]

    def _owner(self) -> int | None:
        """Give the netlink address of the program that alone may edit our table, if there is one."""
        owners = [each[TABLE_OWNER] for each in self._ours(GETTABLE) if TABLE_OWNER in each]
        return int.from_bytes(owners[0], "big") if owners else None

    def _ours(self, kind: int) -> list[Attributes]:
        """Give the attributes of our table, or of the sets or chains in it."""
        name = self._table.name.encode() + b"\0"
        dumped = self._netlink.dump(Message(NFNL_SUBSYS_NFTABLES << 8 | kind, NFPROTO_INET))
        return [each for each in map(body, dumped) if each[TABLE_NAME] == name]


def _deletes(messages: Sequence[Message], error: NetlinkError) -> bool:
    return error.index is not None and messages[error.index].kind & 0xFF == DELSETELEM
