"""The default backend: one nftables table, edited by netlink; a change costs the same for any number of mappings.

    table inet igd_wg0 {
        set external { type ipv4_addr; }
        map mappings { type inet_proto . inet_service : ipv4_addr . inet_service; flags timeout; }
        set restricted_ports { type inet_proto . inet_service; flags timeout; }
        set pinholes { type ipv6_addr . inet_proto . inet_service; flags timeout; }
        set restricted_pinholes { type ipv6_addr . inet_proto . inet_service; flags timeout; }
        map remotes_24 {                                                (one for each kind of remotes in use)
            type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
            flags timeout
        }
        map remotes_32_port {
            type ipv4_addr . inet_proto . inet_service . inet_service : ipv4_addr . inet_service
            flags timeout
        }
        set pinhole_remotes_64 { type ipv6_addr . ipv6_addr . inet_proto . inet_service; flags timeout; }
        map outbound { type ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout; }
        set internal { type ipv4_addr; flags timeout; }
        chain prerouting {
            type nat hook prerouting priority -80; policy accept;
            iifname "wg0" ip daddr 192.0.0.9 udp dport 5351 redirect                                     (anycast)
            iifname "wg0" ip6 daddr 2001:1::1 udp dport 5351 redirect                                    (anycast)
            iifname "wg0" return                                                        (only without hairpin)
            ip daddr @external socket transparent <= 1 return
            ip daddr @external ct mark set ct mark | 0x10000000 dnat ip to meta l4proto . th dport map @mappings
            ip daddr @external meta l4proto . th dport @restricted_ports jump from_remotes
            ip daddr @external ct mark set ct mark & 0xefffffff
            ip6 daddr . meta l4proto . th dport @pinholes ct mark set ct mark | 0x10000000
            ip6 daddr . meta l4proto . th dport @restricted_pinholes jump pinholes_from_remotes
        }
        chain postrouting {
            type nat hook postrouting priority srcnat - 1; policy accept;
            meta nfproto ipv4 iifname "wg0" oifname "wg0" ct mark & 0x10000000 != 0x00000000 masquerade    (hairpin)
            meta nfproto ipv4 oifname "wg0" ct mark & 0x10000000 != 0x00000000 ip daddr 10.100.0.7 masquerade
                                                                                          (masquerade_inbound)
            oifname "eth0" snat ip to ip saddr . udp sport map @outbound                    (preserve_source_port)
        }
        chain input {
            type filter hook input priority filter - 1; policy accept;
            ct direction original ct status dnat ct mark & 0x10000000 != 0x00000000 ct reply ip saddr @internal drop
        }
        chain forward {
            type filter hook forward priority filter - 1; policy accept;
            oifname != "wg0" ct direction original ct status dnat ct mark & 0x10000000 != 0x00000000
                ct reply ip saddr @internal drop
        }
        chain from_remotes {
            dnat ip to ip saddr & 255.255.255.0 . ip protocol . th dport map @remotes_24
            dnat ip to ip saddr . ip protocol . th dport . th sport map @remotes_32_port
        }
        chain pinholes_from_remotes {
            ip6 saddr & ffff:ffff:ffff:ffff:: . ip6 daddr . meta l4proto . th dport @pinhole_remotes_64
                ct mark set ct mark | 0x10000000
        }
    }

What peers send to the gateway itself is limited by another table: see request_rate.py.

Priority -80 is dstnat + 20: the operator's own DNATs come first (firewalld's are at + 10), and packets that they
translate never reach this chain.

redirect goes to the first address of wg0 in the kernel's order; among several IPv6 addresses that is the one added
last. Answers leave from the anycast address (RFC 7723). redirect ends the chain, so these flows get no mark.

The socket rule skips packets for which the server itself has a socket (transparent is 0 or 1, and has no value without
a socket).

The rules behind it set the mark before the lookups and clear it after the last miss. Only the first packet of a flow
passes here, before any other rule can see the flow's mark, so that only our flows carry it. Shorter ways do not work:
nft prints "look up, then mark" in the other order and would load it as such, and kernels before 6.5 refuse a lookup of
a map's keys without its values. Pinholes are not translated, and cannot hide the server's sockets.

A mapping for some remotes only has an element in `restricted_ports`, and one for each remote in the map of its kind:
the networks of one prefix length, with a source port or without. Networks are split until their length is a multiple of
4. Only packets to such ports are looked up in these maps, masked to each length: 17 times at most, 65 for IPv6. A map
and its rule come with the first element, and go when everything is replaced. All are hash tables: interval sets would
be copied as a whole at each commit, and a chain for each mapping would be examined with all others (decision 18).

`mappings` and `restricted_ports` never share a port, so that a packet that passes while the table changes is admitted
only if the table before or after the change admits it. The network comes first in the key because nft cannot parse a
mask behind it. `ip protocol` instead of `meta l4proto`: with two ports in one key, nft 1.0.6 does not recognize that
the latter is a transport protocol.

Priority srcnat - 1 is before the operator's MASQUERADE. With hairpin, peers that reach each other through the public
address must answer to the server, because a direct answer would bypass the translation. `outbound` includes restricted
mappings: their remotes restrict incoming flows, not the ones that the peer opens, and the external port belongs to the
peer in any case.

`internal` has the addresses that the port mappings lead to, without a timeout, and for two more seconds those of
mappings that have ended. The chains `input` and `forward` drop what was translated to such an address and does not go
into the tunnel now (stray_flows.py). Priority filter - 1 is before the operator's filter: the operator's counters and
logs do not count these packets as accepted, and no flowtable takes their flows.

nft 1.0.6 prints and reads back everything here, because operators save `nft list ruleset` as their firewall. It works
from Linux 5.10, therefore without updates of an element's timeout (6.12) and without "destroy" (6.3). An own table,
which is not part of what operators save, needs Linux 6.9.
"""

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from itertools import chain

from igd.core.mapping import Change, Entry, PortMapping
from igd.firewall.backend import FirewallError
from igd.firewall.netlink import BatchError, Netlink
from igd.firewall.nf_tables import NFT_MSG, NFTA_SET_ELEM_LIST, NFTA_TABLE
from igd.firewall.nfnetlink import NFNL_SUBSYS_NFTABLES, NFPROTO_INET, Message, body, nft_message, text
from igd.firewall.nft import elements
from igd.firewall.nft.elements import EXTERNAL, INTERNAL, OUTBOUND, Placed, RemoteSet
from igd.firewall.nft.internal_addresses import InternalAddresses
from igd.firewall.nft.own_table import Attributes, OwnTable
from igd.firewall.nft.pinhole_elements import PinholeElements
from igd.firewall.nft.source_ports import Selection, SourcePorts
from igd.firewall.nft.table_messages import transact_tolerantly
from igd.firewall.site import Site


class Nftables:
    """A Backend (igd.firewall.backend) that keeps `table inet igd_<interface>`.

    `netlink` edits it. `beside` returns what else belongs into the transaction of changes.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._table = OwnTable(site)
        self._external: IPv4Address | None = None  # the source address of peers with preserved source ports
        self._source_ports = SourcePorts()
        self._remotes: set[RemoteSet] = set()  # exist in the kernel, each with a rule
        self._internal = InternalAddresses()
        self._pinholes = PinholeElements()
        self.netlink = Netlink()
        self.beside: Callable[[Sequence[Change]], Iterable[Message]] = lambda _changes: ()

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:
        """Hold exactly `entries` for packets to `addresses`, in one transaction.

        Preserved source ports belong to the first address, and to the first entry of each internal endpoint.
        """
        addresses, entries = list(addresses), list(entries)
        self._external = next(iter(addresses), None)
        self._source_ports = SourcePorts()
        selection = self._select([Change(None, entry) for entry in entries])
        added = [each for entry in entries for each in _additions(entry, now)]
        added += self._pinholes.replace(entries, now)
        added += [(EXTERNAL, elements.element(elements.address_key(each))) for each in addresses]
        added += self._internal.replace(entries, self._held_internal(), now)
        remotes = _remote_sets(added)
        messages = [*self._empty_table(remotes), *self._table.rules(remotes), *self._table.additions(added)]
        self._transact([*messages, *self._outbound(selection, now)])
        self._source_ports.accept(selection)
        self._remotes = remotes

    def remove_all(self) -> None:
        """Delete our table; its absence is not an error."""
        self._transact(self._table.removal())

    def apply(self, changes: Sequence[Change], now: float) -> None:
        """Carry out `changes` in one transaction.

        An element that already ended by the kernel's timeout counts as deleted.
        """
        selection = self._select(changes)
        added = [_additions(change.after, now) for change in changes]
        pinholes = self._pinholes.change(changes, now)
        new = _remote_sets((*chain.from_iterable(added), *pinholes.added)) - self._remotes
        messages = [*self._table.new_remotes(new)]
        for change, additions in zip(changes, added, strict=True):
            # A renewal deletes and adds too: kernels before 6.12 accept the addition of an existing element, but leave
            # its timeout as it is.
            messages += self._table.deletions(_places(change.before))
            messages += self._table.additions(additions)
        for deleted, held in (pinholes, self._internal.change(changes, now)):
            messages += [*self._table.deletions(deleted), *self._table.additions(held)]
        messages += [*self._outbound(selection, now), *self.beside(changes)]
        transact_tolerantly(self._transact, messages)
        self._source_ports.accept(selection)
        self._remotes |= new

    @property
    def port(self) -> int:
        """The address of the netlink socket that edits the table."""
        return self.netlink.port

    def close(self) -> None:
        """Close the socket; the table stays."""
        self.netlink.close()

    def _select(self, changes: Sequence[Change]) -> Selection:
        return self._source_ports.select(changes if self._site.preserve_source_port and self._external else ())

    def _outbound(self, selection: Selection, now: float) -> Iterator[Message]:
        """Yield the messages that change the elements of OUTBOUND."""
        gone = (change.before.mapping for change in selection.changes if change.before)
        yield from self._table.deletions((OUTBOUND, elements.outbound_key(mapping)) for mapping in gone)
        if external := self._external:
            added = (change.after for change in selection.changes if change.after)
            yield from self._table.additions(
                (OUTBOUND, elements.outbound_element(entry, external, now)) for entry in added
            )

    def _transact(self, messages: Sequence[Message]) -> None:
        try:
            self.netlink.transact(NFNL_SUBSYS_NFTABLES, messages)
        except BatchError as error:
            numbers = {bad.errno for bad in error.errors}
            if errno.EPERM in numbers and self._owner() not in (None, self.port):
                raise FirewallError(f"table inet {self._table.name} belongs to another running program") from error
            if errno.EOPNOTSUPP in numbers and self._site.own_table:
                raise FirewallError(f"{error}: an own table needs Linux 6.9") from error
            raise

    def _empty_table(self, remotes: set[RemoteSet]) -> list[Message]:
        """Return the messages after which the table has its sets, these sets of remotes and chains, all empty.

        A table of the right shape is flushed, not replaced, because a replacement loses packets: the first packet of a
        flow can traverse the new chain while it is still empty, and the old one after it was emptied (measured: 1 of 60
        new flows lost during continuous replacements; 1 of 2,000 when only the map was replaced).
        """
        tables, sets, chains = map(self._dump, (NFT_MSG.GETTABLE, NFT_MSG.GETSET, NFT_MSG.GETCHAIN))
        present = self._table.remote_sets(sets)
        if self._table.matches(tables, sets, chains):
            return self._table.flush(present, remotes)
        return [*self._table.removal(), *self._table.creation(remotes)]

    def _held_internal(self) -> list[IPv4Address]:
        """Return the addresses in INTERNAL as the kernel has it, which an earlier run may have filled."""
        listed = (body(payload).get(NFTA_SET_ELEM_LIST.ELEMENTS, b"") for payload in self._dump_internal())
        return [address for each in listed for address in elements.addresses(each)]

    def _dump_internal(self) -> list[bytes]:
        names = text(NFTA_SET_ELEM_LIST.TABLE, self._table.name), text(NFTA_SET_ELEM_LIST.SET, INTERNAL.name)
        return self.netlink.dump_if_exists(nft_message(NFT_MSG.GETSETELEM, NFPROTO_INET, *names))

    def _owner(self) -> int | None:
        """Return the netlink address of the program that owns our table, or None."""
        owners = [each[NFTA_TABLE.OWNER] for each in self._dump(NFT_MSG.GETTABLE) if NFTA_TABLE.OWNER in each]
        return int.from_bytes(owners[0], "big") if owners else None

    def _dump(self, kind: NFT_MSG) -> list[Attributes]:
        """Return the attributes of our table, or of its sets or chains, whose table name is the same attribute."""
        name = self._table.name.encode() + b"\0"
        dumped = self.netlink.dump(nft_message(kind, NFPROTO_INET))
        return [each for each in map(body, dumped) if each[NFTA_TABLE.NAME] == name]


def _remote_sets(added: Iterable[Placed]) -> set[RemoteSet]:
    return {nft_set for nft_set, _element in added if isinstance(nft_set, RemoteSet)}


def _additions(entry: Entry | None, now: float) -> list[Placed]:
    """Return the elements of a port mapping, which shares none with others; those of pinholes: PinholeElements."""
    return elements.additions(entry, now) if entry and isinstance(entry.mapping, PortMapping) else []


def _places(entry: Entry | None) -> list[Placed]:
    return elements.places(entry.mapping) if entry and isinstance(entry.mapping, PortMapping) else []
