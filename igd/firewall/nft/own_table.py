"""The messages about our nftables table: they make it, fill it, empty it and take it away. Bytes only.

Source of numbers: linux/netfilter/nf_tables.h.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from igd.firewall.netlink import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    Message,
    attributes,
    nested,
    text,
    u32,
)
from igd.firewall.nft import elements, expressions
from igd.firewall.nft.elements import SETS, NftSet
from igd.firewall.site import Site, label

NF_INET_PRE_ROUTING, NF_INET_POST_ROUTING = 0, 4
NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC = -100, 100
NF_ACCEPT = 1

NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, NEWRULE, DELRULE = 0, 1, 2, 3, 4, 6, 8
NEWSET, GETSET, NEWSETELEM, DELSETELEM = 9, 10, 12, 14
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NFT_TABLE_F_OWNER, NFT_TABLE_F_PERSIST = 0x2, 0x4
TABLE_NAME = 1  # of a message of any kind
TABLE_FLAGS, TABLE_OWNER = 2, 7
SET_FLAGS, SET_ID = 3, 10  # of NFTA_SET_*; 3 of a table and of a chain is something that is always there

# name, hook, priority, what it holds
CHAINS = (
    ("prerouting", NF_INET_PRE_ROUTING, NF_IP_PRI_NAT_DST + 20, expressions.prerouting),
    ("postrouting", NF_INET_POST_ROUTING, NF_IP_PRI_NAT_SRC - 1, expressions.postrouting),
)

_CHUNK = 200  # elements of one message: each at most 280 bytes, in a list whose length field has 16 bits

Attributes = dict[int, bytes]


class OwnTable:
    """`table inet igd_<interface>` of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.name = label(site.wireguard)

    def new(self) -> list[Message]:
        """Give the messages that make the table with its sets and chains, all empty."""
        return [self._claim(), *self._new_sets(), *self._new_chains()]

    def stands(self, tables: Iterable[Attributes], sets: Iterable[Attributes], chains: Iterable[Attributes]) -> bool:
        """Whether these, which the kernel has by our table's name, are just what `new` makes, whatever is in them."""
        found = [*map(_as_owned, tables), *({SET_FLAGS: bytes(4)} | each for each in (*sets, *chains))]
        wanted = [attributes(message.payload) for message in self.new()]
        for each in wanted:
            each.pop(SET_ID, None)  # of the transaction alone
        return len(found) == len(wanted) and all(any(w.items() <= f.items() for f in found) for w in wanted)

    def emptied(self) -> list[Message]:
        """Give the messages that make a table that stands ours, and take all rules and elements out."""
        rules = [self._message(DELRULE, text(2, name)) for name, *_ in CHAINS]
        return [self._claim(), *rules, *(self._message(DELSETELEM, text(2, each.name)) for each in SETS)]

    def removed(self) -> list[Message]:
        """Give the messages that take it away: made and deleted, so that neither absence nor a wrong shape matters."""
        return [self._message(NEWTABLE, flags=NLM_F_CREATE), self._message(DELTABLE)]

    def rules(self) -> list[Message]:
        """Give the messages that add the rules: table 1, chain 2, expressions 4."""
        return [
            self._message(NEWRULE, text(2, name), nested(4, *rule), flags=NLM_F_CREATE | NLM_F_APPEND)
            for name, _hook, _priority, rules in CHAINS
            for rule in rules(self._site)
        ]

    def additions(self, held_by: NftSet, added: Iterable[bytes]) -> Iterator[Message]:
        """Give the messages that put these elements into a set."""
        remaining = iter(added)
        while chunk := list(islice(remaining, _CHUNK)):
            yield self._elements(NEWSETELEM, held_by, chunk, NLM_F_CREATE)

    def deletions(self, held_by: NftSet, keys: Iterable[bytes]) -> Iterator[Message]:
        """Give the messages that take the elements of these keys out: one by one, because any of them may be gone."""
        return (self._elements(DELSETELEM, held_by, [elements.element(key)]) for key in keys)

    def _elements(self, kind: int, held_by: NftSet, listed: Sequence[bytes], flags: int = 0) -> Message:
        """Give the message for elements: table 1, set 2, list of elements 3."""
        return self._message(kind, text(2, held_by.name), nested(3, *listed), flags=flags)

    def _claim(self) -> Message:
        """Give the message that makes the table (name 1, flags 2; none: not dormant, and nobody's in particular).

        An own table that its owner left behind is taken over; one that is there as it should be stays so.
        """
        flags = NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST if self._site.own_table else 0
        return self._message(NEWTABLE, u32(TABLE_FLAGS, flags), flags=NLM_F_CREATE)

    def _new_sets(self) -> list[Message]:
        """Give the messages for the sets: table 1, id 10, which nothing refers to here, but the kernel insists on."""
        return [
            self._message(NEWSET, each.declaration(), u32(SET_ID, number), flags=NLM_F_CREATE)
            for number, each in enumerate(SETS, start=1)
        ]

    def _new_chains(self) -> list[Message]:
        """Give the messages for the chains: table 1, name 3, hook 4 (number 1, priority 2), policy 5, type 7."""
        messages = []
        for name, hook, priority, _rules in CHAINS:
            place = nested(4, u32(1, hook), u32(2, priority & 0xFFFF_FFFF))
            parts = (text(3, name), place, u32(5, NF_ACCEPT), text(7, "nat"))
            messages.append(self._message(NEWCHAIN, *parts, flags=NLM_F_CREATE))
        return messages

    def _message(self, kind: int, *parts: bytes, flags: int = 0) -> Message:
        payload = b"".join((text(TABLE_NAME, self.name), *parts))
        return Message(NFNL_SUBSYS_NFTABLES << 8 | kind, NFPROTO_INET, payload, flags)


def _as_owned(table: Attributes) -> Attributes:
    """Give the table with the flags that it would have if its last owner were still there."""
    flags = int.from_bytes(table[TABLE_FLAGS], "big")
    owned = NFT_TABLE_F_OWNER if flags & NFT_TABLE_F_PERSIST else 0
    return table | {TABLE_FLAGS: (flags | owned).to_bytes(4, "big")}
