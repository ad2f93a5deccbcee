"""Counts what the internet sends through each mapping, for both backends.

    table inet igd_wg0/traffic {
        set port_mappings { type inet_proto . inet_service; counter; }
        set pinholes { type ipv6_addr . inet_proto . inet_service; counter; }
        set pinholes_from { type ipv6_addr . ipv6_addr . inet_proto . inet_service; counter; }
        set pinholes_from_port { type ipv6_addr . ipv6_addr . inet_proto . inet_service . inet_service; counter; }
        set pinholes_from_any_port { type ipv6_addr . inet_proto . inet_service . inet_service; counter; }
        chain forward {
            type filter hook forward priority 2147483647; policy accept;
            ct mark & 0x10000000 != 0x00000000 iifname != "wg0" jump received
        }
        chain received {                                                            (each rule when it is needed)
            meta nfproto ipv4 meta l4proto tcp meta l4proto . ct original proto-dst @port_mappings
            meta nfproto ipv4 meta l4proto udp meta l4proto . ct original proto-dst @port_mappings
            ip6 daddr . meta l4proto . th dport @pinholes
            ip6 saddr . ip6 daddr . meta l4proto . th dport @pinholes_from
            ip6 saddr . ip6 daddr . meta l4proto . th dport . th sport @pinholes_from_port
            ip6 daddr . meta l4proto . th dport . th sport @pinholes_from_any_port
        }
    }

A lookup that finds an element counts in it. The rule of a set comes with its first element, and stays until the table
is written anew: few peers need more than one of those for pinholes, and each costs 0.2 microseconds.

A chain of type nat sees only the first packet of a flow, so this is a filter chain. Its priority is the highest: it
counts what all forward chains have accepted. One comparison ends it for packets that belong to no mapping; for those
that connection tracking does not know there is no mark to compare, and they are not counted either.

"meta l4proto tcp" is for nft, which otherwise can list, but not load, a lookup of the original port.

A table of its own, as that of request_rate.py: both backends have it, and where the kernel cannot have it, nothing but
the counts is missing. With the nftables backend its elements change in the same transaction as the mappings.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from igd.core.mapping import AnyMapping, Change, Endpoint, Entry, Key
from igd.firewall import nf_tables as nf
from igd.firewall.backend import FirewallError, Traffic
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import NFNL_SUBSYS_NFTABLES, Message, nested, text
from igd.firewall.nft import traffic_sets
from igd.firewall.nft.elements import NftSet, Placed, element
from igd.firewall.nft.table_messages import Hook, TableMessages, transact_tolerantly
from igd.firewall.nft.traffic_sets import COUNTER, PINHOLES, RECEIVED, SETS, place
from igd.firewall.recurring_warnings import RecurringWarnings
from igd.firewall.site import TRAFFIC_TABLE, Site, label

log = logging.getLogger(__name__)

FORWARD = "forward"
HOOK = Hook(nf.NF_INET.FORWARD, nf.NF_IP_PRI.LAST, "filter")


def table_name(interface: str) -> str:
    """Return the name of the table for this interface."""
    return label(interface) + TRAFFIC_TABLE


class TrafficTable:
    """The table of one site. If the kernel cannot have it, that is a warning, and reading a count an error.

    `netlink` is the socket that edits the table, which only its creator closes.
    """

    def __init__(self, site: Site, netlink: Netlink) -> None:
        self._site = site
        self._netlink = netlink
        self._messages = TableMessages(table_name(site.wireguard))
        self._is_there = False
        self._looked_up: set[NftSet] = set()  # those that have a rule
        self._shared: defaultdict[Placed, set[Key]] = defaultdict(set)  # of the elements for endpoints: which pinholes
        self._failures = RecurringWarnings(log, "what passes through mappings is not counted: %s")

    def replace(self, mappings: Iterable[AnyMapping]) -> None:
        """Count for exactly these mappings; those that the table has are counted on."""
        self._shared = defaultdict(set)
        wanted = dict.fromkeys(found for each in mappings if (found := self._opened(each)))
        self._is_there = False
        with self._failures.catching(FirewallError):
            present = dict.fromkeys(self._present())
            stale = [key for key in present if key not in wanted]
            missing = [key for key in wanted if key not in present]
            used = {nft_set for nft_set, _key in wanted}
            shape = [*self._creation(), *self._rules(used)]
            try:
                self._transact([*shape, *self._deletions(stale), *self._additions(missing)])
            except FirewallError:  # a table of another shape has this name
                self._transact([*self._messages.removal(), *shape, *self._additions(wanted)])
            self._is_there, self._looked_up = True, used

    def changed(self, changes: Iterable[Change]) -> list[Message]:
        """Return the messages by which the table counts for what these changes open, and no longer for the closed.

        A mapping that is renewed, or that admits other remotes, is counted on. If they are not carried out, call
        `replace`.
        """
        if not self._is_there:
            return []
        moved = [change for change in changes if _counted(change.before) != _counted(change.after)]
        closed = [found for each in moved if each.before and (found := self._closed(each.before.mapping))]
        opened = [found for each in moved if each.after and (found := self._opened(each.after.mapping))]
        new = {nft_set for nft_set, _key in opened} - self._looked_up
        self._looked_up |= new
        return [*self._rules(new), *self._deletions(closed), *self._additions(opened)]

    def apply(self, changes: Collection[Change]) -> None:
        """Carry out what `changed` returns, in a transaction of its own; a failure is logged."""
        looked_up = set(self._looked_up)
        places = {place(entry.mapping) for each in changes for entry in (each.before, each.after) if entry}
        shared = {found: set(self._shared[found]) for found in places & self._shared.keys()}
        if messages := self.changed(changes):
            with self._failures.catching(FirewallError):
                try:
                    transact_tolerantly(self._transact, messages)
                except FirewallError:
                    self._looked_up = looked_up
                    for found in places:
                        self._shared.pop(found, None)
                    self._shared |= shared
                    raise

    def read(self, mappings: Collection[AnyMapping]) -> list[Traffic | None]:
        """Return what the internet has sent through each of these mappings, None of one that is not counted.

        FirewallError. It takes 14 microseconds for each.
        """
        if not self._is_there:
            raise FirewallError("the kernel does not count what passes through mappings")
        found = self._netlink.get([self._request(*place(mapping)) for mapping in mappings])
        return [traffic_sets.traffic(payload) for payload in found]

    def remove(self) -> None:
        """Delete the table; its absence is no error."""
        self._transact(self._messages.removal())

    def _opened(self, mapping: AnyMapping) -> Placed | None:
        """Record that a mapping is opened; return the element that will count for it, unless another shares it."""
        found = place(mapping)
        if found[0] is not PINHOLES:
            return found
        sharing = self._shared[found]
        sharing.add(mapping.key)
        return found if len(sharing) == 1 else None

    def _closed(self, mapping: AnyMapping) -> Placed | None:
        """Record that a mapping is closed; return the element that counted for it, unless another shares it."""
        found = place(mapping)
        if found[0] is not PINHOLES:
            return found
        sharing = self._shared[found]
        sharing.discard(mapping.key)
        if not sharing:
            del self._shared[found]
        return None if sharing else found

    def _present(self) -> Iterator[Placed]:
        """Yield the elements that the table has."""
        for nft_set in SETS:
            for payload in self._netlink.dump_if_exists(self._request(nft_set)):
                yield from traffic_sets.places(nft_set, payload)

    def _creation(self) -> Iterator[Message]:
        """Yield the messages that create the table, or write the rules of one that exists anew."""
        create = self._messages
        yield create.table(owned=self._site.own_table)
        yield from create.sets(each.declaration() + COUNTER for each in SETS)
        for name, hook in ((RECEIVED, None), (FORWARD, HOOK)):
            yield create.chain(name, hook)
            yield create.message(nf.NFT_MSG.DELRULE, text(nf.NFTA_RULE.CHAIN, name))
        yield create.rule(FORWARD, traffic_sets.from_outside(self._site))

    def _rules(self, sets: Collection[NftSet]) -> Iterator[Message]:
        """Yield the messages that have packets looked up in these sets."""
        for nft_set in SETS:
            if nft_set in sets:
                yield from (self._messages.rule(RECEIVED, rule) for rule in traffic_sets.lookups(nft_set))

    def _additions(self, places: Iterable[Placed]) -> Iterator[Message]:
        contents: dict[NftSet, list[bytes]] = {}
        for nft_set, key in places:
            contents.setdefault(nft_set, []).append(element(key))
        for nft_set, listed in contents.items():
            yield from self._messages.elements(nft_set.name, listed)

    def _deletions(self, places: Iterable[Placed]) -> Iterator[Message]:
        return (self._messages.deletion(nft_set.name, key) for nft_set, key in places)

    def _request(self, nft_set: NftSet, *listed: bytes) -> Message:
        """Return the request for these elements of the set, or for a dump of it."""
        parts = [text(nf.NFTA_SET_ELEM_LIST.SET, nft_set.name)]
        parts += [nested(nf.NFTA_SET_ELEM_LIST.ELEMENTS, *map(element, listed))] if listed else []
        return self._messages.message(nf.NFT_MSG.GETSETELEM, *parts)

    def _transact(self, messages: Sequence[Message]) -> None:
        self._netlink.transact(NFNL_SUBSYS_NFTABLES, messages)


def _counted(entry: Entry | None) -> Endpoint | None:
    """Return where an open mapping leads to; while that stays the same, it has one count."""
    return entry.mapping.internal if entry else None
