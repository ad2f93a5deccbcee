"""The messages that create, flush, fill and delete our nftables table. Bytes only."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from igd.firewall import nf_tables as nf
from igd.firewall.nfnetlink import (
    NFPROTO_INET,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    attributes,
    nested,
    nft_message,
    text,
    u32,
)
from igd.firewall.nft import elements, expressions
from igd.firewall.nft.elements import SETS, NftSet
from igd.firewall.site import Site, label

# name, hook, priority, rules
CHAINS = (
    ("prerouting", nf.NF_INET.PRE_ROUTING, nf.NF_IP_PRI.NAT_DST + 20, expressions.prerouting),
    ("postrouting", nf.NF_INET.POST_ROUTING, nf.NF_IP_PRI.NAT_SRC - 1, expressions.postrouting),
)

_CHUNK = 200  # elements of one message: each at most 280 bytes, in a list whose length field has 16 bits

Attributes = dict[int, bytes]


class OwnTable:
    """`table inet igd_<interface>` of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.name = label(site.wireguard)
        # The same number in every message: NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE
        self._table = text(nf.NFTA_TABLE.NAME, self.name)

    def creation(self) -> list[Message]:
        """Return the messages that create the table with its sets and chains, all empty."""
        return [self._new_table(), *self._new_sets(), *(self._new_chain(*chain[:3]) for chain in CHAINS)]

    def matches(self, tables: Iterable[Attributes], sets: Iterable[Attributes], chains: Iterable[Attributes]) -> bool:
        """Return whether what the kernel has under our table's name is what `creation` makes, apart from contents."""
        found = [*map(_as_owned, tables), *({nf.NFTA_SET.FLAGS: bytes(4)} | each for each in (*sets, *chains))]
        wanted = [attributes(message.payload) for message in self.creation()]
        for each in wanted:
            each.pop(nf.NFTA_SET.ID, None)  # exists within the transaction only
        return len(found) == len(wanted) and all(any(w.items() <= f.items() for f in found) for w in wanted)

    def flush(self) -> list[Message]:
        """Return the messages that take over an existing table and delete all its rules and elements."""
        rules = [self._message(nf.NFT_MSG.DELRULE, text(nf.NFTA_RULE.CHAIN, name)) for name, *_ in CHAINS]
        listed = [self._message(nf.NFT_MSG.DELSETELEM, text(nf.NFTA_SET_ELEM_LIST.SET, each.name)) for each in SETS]
        return [self._new_table(), *rules, *listed]

    def removal(self) -> list[Message]:
        """Return the messages that delete the table; they create it first, so that its absence is no error."""
        return [self._message(nf.NFT_MSG.NEWTABLE, flags=NLM_F_CREATE), self._message(nf.NFT_MSG.DELTABLE)]

    def rules(self) -> list[Message]:
        """Return the messages that add the rules."""
        return [
            self._message(
                nf.NFT_MSG.NEWRULE,
                text(nf.NFTA_RULE.CHAIN, name),
                nested(nf.NFTA_RULE.EXPRESSIONS, *rule),
                flags=NLM_F_CREATE | NLM_F_APPEND,
            )
            for name, _hook, _priority, rules in CHAINS
            for rule in rules(self._site)
        ]

    def additions(self, nft_set: NftSet, added: Iterable[bytes]) -> Iterator[Message]:
        """Yield the messages that add these elements to a set."""
        remaining = iter(added)
        while chunk := list(islice(remaining, _CHUNK)):
            yield self._elements(nf.NFT_MSG.NEWSETELEM, nft_set, chunk, NLM_F_CREATE)

    def deletions(self, nft_set: NftSet, keys: Iterable[bytes]) -> Iterator[Message]:
        """Yield one message for each key that deletes its element; one each, because any of them may be gone."""
        return (self._elements(nf.NFT_MSG.DELSETELEM, nft_set, [elements.element(key)]) for key in keys)

    def _elements(self, kind: int, nft_set: NftSet, listed: Sequence[bytes], flags: int = 0) -> Message:
        parts = text(nf.NFTA_SET_ELEM_LIST.SET, nft_set.name), nested(nf.NFTA_SET_ELEM_LIST.ELEMENTS, *listed)
        return self._message(kind, *parts, flags=flags)

    def _new_table(self) -> Message:
        """Return the message that creates the table, or leaves an existing one as it is.

        A table with NFT_TABLE_F_OWNER whose owner is gone becomes ours. Flags 0: neither dormant nor owned.
        """
        flags = nf.NFT_TABLE_F.OWNER | nf.NFT_TABLE_F.PERSIST if self._site.own_table else 0
        return self._message(nf.NFT_MSG.NEWTABLE, u32(nf.NFTA_TABLE.FLAGS, flags), flags=NLM_F_CREATE)

    def _new_sets(self) -> list[Message]:
        """Return the messages that create the sets; the kernel requires an id, though nothing here refers to it."""
        return [
            self._message(nf.NFT_MSG.NEWSET, each.declaration(), u32(nf.NFTA_SET.ID, number), flags=NLM_F_CREATE)
            for number, each in enumerate(SETS, start=1)
        ]

    def _new_chain(self, name: str, hook: int, priority: int) -> Message:
        place = u32(nf.NFTA_HOOK.HOOKNUM, hook), u32(nf.NFTA_HOOK.PRIORITY, priority & 0xFFFF_FFFF)
        return self._message(
            nf.NFT_MSG.NEWCHAIN,
            text(nf.NFTA_CHAIN.NAME, name),
            nested(nf.NFTA_CHAIN.HOOK, *place),
            u32(nf.NFTA_CHAIN.POLICY, nf.NFT_VERDICTS.NF_ACCEPT),
            text(nf.NFTA_CHAIN.TYPE, "nat"),
            flags=NLM_F_CREATE,
        )

    def _message(self, kind: int, *parts: bytes, flags: int = 0) -> Message:
        return nft_message(kind, NFPROTO_INET, self._table, *parts, flags=flags)


def _as_owned(table: Attributes) -> Attributes:
    """Return the table with OWNER set if PERSIST is: the kernel clears OWNER when the owner exits."""
    flags = int.from_bytes(table[nf.NFTA_TABLE.FLAGS], "big")
    owned = nf.NFT_TABLE_F.OWNER if flags & nf.NFT_TABLE_F.PERSIST else 0
    return table | {nf.NFTA_TABLE.FLAGS: (flags | owned).to_bytes(4, "big")}
