"""The messages that create, flush, fill and delete our nftables table. Bytes only."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

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
from igd.firewall.nft import elements, expressions, stray_flows
from igd.firewall.nft.elements import SETS, NftSet, Placed, RemoteSet
from igd.firewall.nft.expressions import FROM_REMOTES, PINHOLES_FROM_REMOTES, EncodedRule
from igd.firewall.site import Site, label


class Hook(NamedTuple):
    """Where packets enter a base chain, and its type."""

    number: nf.NF_INET
    priority: int
    kind: str = "nat"


def _no_rules(_site: Site) -> list[EncodedRule]:
    """Return the rules that a chain always has; those of the sets of remotes are added with the sets."""
    return []


# name, hook (None: other chains jump to it), rules
CHAINS: tuple[tuple[str, Hook | None, Callable[[Site], list[EncodedRule]]], ...] = (
    ("prerouting", Hook(nf.NF_INET.PRE_ROUTING, nf.NF_IP_PRI.NAT_DST + 20), expressions.prerouting),
    ("postrouting", Hook(nf.NF_INET.POST_ROUTING, nf.NF_IP_PRI.NAT_SRC - 1), expressions.postrouting),
    ("input", Hook(nf.NF_INET.LOCAL_IN, nf.NF_IP_PRI.FILTER - 1, "filter"), stray_flows.to_server),
    ("forward", Hook(nf.NF_INET.FORWARD, nf.NF_IP_PRI.FILTER - 1, "filter"), stray_flows.past_tunnel),
    (FROM_REMOTES, None, _no_rules),
    (PINHOLES_FROM_REMOTES, None, _no_rules),
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

    def creation(self, remotes: Iterable[RemoteSet]) -> list[Message]:
        """Return the messages that create the table with its sets, these sets of remotes, and its chains, all empty."""
        chains = (self._new_chain(name, hook) for name, hook, _rules in CHAINS)
        return [self._new_table(), *self._new_sets([*SETS, *remotes]), *chains]

    def matches(self, tables: Iterable[Attributes], sets: Iterable[Attributes], chains: Iterable[Attributes]) -> bool:
        """Return whether what the kernel has under our table's name is what `creation` makes, apart from contents."""
        sets = list(sets)
        wanted = [_declared(message) for message in self.creation(self.remote_sets(sets))]
        found = [*map(_as_owned, tables), *(_DEFAULTS | each for each in (*sets, *chains))]
        return len(found) == len(wanted) and all(any(w.items() <= f.items() for f in found) for w in wanted)

    def remote_sets(self, sets: Iterable[Attributes]) -> set[RemoteSet]:
        """Return the sets of remotes that have the names of these sets of the kernel."""
        names = (each[nf.NFTA_SET.NAME].rstrip(b"\0").decode(errors="replace") for each in sets)
        return {elements.remote_sets()[name] for name in names if name in elements.remote_sets()}

    def flush(self, present: set[RemoteSet], wanted: set[RemoteSet]) -> list[Message]:
        """Return the messages that take over an existing table and delete all its rules and elements.

        Of the sets of remotes, which are `present`, those that are `wanted` stay; all others are deleted.
        """
        rules = [self._message(nf.NFT_MSG.DELRULE, text(nf.NFTA_RULE.CHAIN, name)) for name, *_ in CHAINS]
        listed = [
            self._message(nf.NFT_MSG.DELSETELEM, text(nf.NFTA_SET_ELEM_LIST.SET, each.name))
            for each in (*SETS, *(present & wanted))
        ]
        unused = [self._message(nf.NFT_MSG.DELSET, text(nf.NFTA_SET.NAME, each.name)) for each in present - wanted]
        return [self._new_table(), *rules, *listed, *unused, *self._new_sets(wanted - present)]

    def removal(self) -> list[Message]:
        """Return the messages that delete the table; they create it first, so that its absence is no error."""
        return [self._message(nf.NFT_MSG.NEWTABLE, flags=NLM_F_CREATE), self._message(nf.NFT_MSG.DELTABLE)]

    def rules(self, remotes: Iterable[RemoteSet]) -> list[Message]:
        """Return the messages that add the rules, with those for these sets of remotes."""
        fixed = [self._new_rule(name, rule) for name, _hook, rules in CHAINS for rule in rules(self._site)]
        return [*fixed, *self._remote_rules(remotes)]

    def new_remotes(self, remotes: set[RemoteSet]) -> list[Message]:
        """Return the messages that add these sets of remotes to the table, each with its rule."""
        return [*self._new_sets(remotes), *self._remote_rules(remotes)]

    def _remote_rules(self, remotes: Iterable[RemoteSet]) -> list[Message]:
        """Return the messages that add their rules: single hosts, which are the most frequent remotes, come first."""
        ordered = sorted(remotes, key=lambda each: (-each.prefixlen, each.name))
        return [self._new_rule(*expressions.remote_rule(self._site, each)) for each in ordered]

    def _new_rule(self, chain: str, rule: EncodedRule) -> Message:
        parts = text(nf.NFTA_RULE.CHAIN, chain), nested(nf.NFTA_RULE.EXPRESSIONS, *rule)
        return self._message(nf.NFT_MSG.NEWRULE, *parts, flags=NLM_F_CREATE | NLM_F_APPEND)

    def additions(self, added: Iterable[Placed]) -> Iterator[Message]:
        """Yield the messages that add these elements to their sets."""
        contents: dict[NftSet, list[bytes]] = {}
        for nft_set, element in added:
            contents.setdefault(nft_set, []).append(element)
        for nft_set, listed in contents.items():
            for start in range(0, len(listed), _CHUNK):
                chunk = listed[start : start + _CHUNK]
                yield self._elements(nf.NFT_MSG.NEWSETELEM, nft_set, chunk, NLM_F_CREATE)

    def deletions(self, keys: Iterable[Placed]) -> Iterator[Message]:
        """Yield one message for each key that deletes its element; one each, because any of them may be gone."""
        return (self._elements(nf.NFT_MSG.DELSETELEM, nft_set, [elements.element(key)]) for nft_set, key in keys)

    def _elements(self, kind: int, nft_set: NftSet, listed: Sequence[bytes], flags: int = 0) -> Message:
        parts = text(nf.NFTA_SET_ELEM_LIST.SET, nft_set.name), nested(nf.NFTA_SET_ELEM_LIST.ELEMENTS, *listed)
        return self._message(kind, *parts, flags=flags)

    def _new_table(self) -> Message:
        """Return the message that creates the table, or leaves an existing one as it is.

        A table with NFT_TABLE_F_OWNER whose owner is gone becomes ours. Flags 0: neither dormant nor owned.
        """
        flags = nf.NFT_TABLE_F.OWNER | nf.NFT_TABLE_F.PERSIST if self._site.own_table else 0
        return self._message(nf.NFT_MSG.NEWTABLE, u32(nf.NFTA_TABLE.FLAGS, flags), flags=NLM_F_CREATE)

    def _new_sets(self, sets: Iterable[NftSet]) -> list[Message]:
        """Return the messages that create the sets; the kernel requires an id, though nothing here refers to it."""
        return [
            self._message(nf.NFT_MSG.NEWSET, each.declaration(), u32(nf.NFTA_SET.ID, number), flags=NLM_F_CREATE)
            for number, each in enumerate(sets, start=1)
        ]

    def _new_chain(self, name: str, hook: Hook | None) -> Message:
        parts = [text(nf.NFTA_CHAIN.NAME, name)]
        if hook is not None:
            place = u32(nf.NFTA_HOOK.HOOKNUM, hook.number), u32(nf.NFTA_HOOK.PRIORITY, hook.priority & 0xFFFF_FFFF)
            parts += [nested(nf.NFTA_CHAIN.HOOK, *place), u32(nf.NFTA_CHAIN.POLICY, nf.NFT_VERDICTS.NF_ACCEPT)]
            parts.append(text(nf.NFTA_CHAIN.TYPE, hook.kind))
        return self._message(nf.NFT_MSG.NEWCHAIN, *parts, flags=NLM_F_CREATE)

    def _message(self, kind: int, *parts: bytes, flags: int = 0) -> Message:
        return nft_message(kind, NFPROTO_INET, self._table, *parts, flags=flags)


# What the kernel does not list where it is absent: a set's flags, and the hook of a chain that has none. A chain's name
# and a set's data type have the same numbers, and are always listed.
_DEFAULTS: Attributes = {nf.NFTA_SET.FLAGS: bytes(4), nf.NFTA_CHAIN.HOOK: b""}


def _declared(message: Message) -> Attributes:
    """Return what the kernel lists of the object that the message creates."""
    declared = attributes(message.payload)
    declared.pop(nf.NFTA_SET.ID, None)  # exists within the transaction only
    return (_DEFAULTS if message.kind & 0xFF == nf.NFT_MSG.NEWCHAIN else {}) | declared


def _as_owned(table: Attributes) -> Attributes:
    """Return the table with OWNER set if PERSIST is: the kernel clears OWNER when the owner exits."""
    flags = int.from_bytes(table[nf.NFTA_TABLE.FLAGS], "big")
    owned = nf.NFT_TABLE_F.OWNER if flags & nf.NFT_TABLE_F.PERSIST else 0
    return table | {nf.NFTA_TABLE.FLAGS: (flags | owned).to_bytes(4, "big")}
