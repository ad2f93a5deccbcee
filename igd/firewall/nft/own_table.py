"""The messages that create, flush, fill and delete our nftables table. Bytes only."""

from collections.abc import Callable, Iterable, Iterator

from igd.firewall import nf_tables as nf
from igd.firewall.nfnetlink import Message, attributes, text
from igd.firewall.nft import elements, expressions, stray_flows
from igd.firewall.nft.elements import SETS, NftSet, Placed, RemoteSet
from igd.firewall.nft.expressions import FROM_REMOTES, PINHOLES_FROM_REMOTES, EncodedRule
from igd.firewall.nft.table_messages import Hook, TableMessages
from igd.firewall.site import Site, label


def _no_rules(_site: Site) -> list[EncodedRule]:
    """Return the rules that a chain always has; those of the sets of remotes are added with the sets."""
    return []


# name, hook (None: other chains jump to it), rules
CHAINS: tuple[tuple[str, Hook | None, Callable[[Site], list[EncodedRule]]], ...] = (
    ("prerouting", Hook(nf.NF_INET.PRE_ROUTING, nf.NF_IP_PRI.NAT_DST + 20, "nat"), expressions.prerouting),
    ("postrouting", Hook(nf.NF_INET.POST_ROUTING, nf.NF_IP_PRI.NAT_SRC - 1, "nat"), expressions.postrouting),
    ("input", Hook(nf.NF_INET.LOCAL_IN, nf.NF_IP_PRI.FILTER - 1, "filter"), stray_flows.to_server),
    ("forward", Hook(nf.NF_INET.FORWARD, nf.NF_IP_PRI.FILTER - 1, "filter"), stray_flows.past_tunnel),
    (FROM_REMOTES, None, _no_rules),
    (PINHOLES_FROM_REMOTES, None, _no_rules),
)

Attributes = dict[int, bytes]


class OwnTable:
    """`table inet igd_<interface>` of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.name = label(site.wireguard)
        self._messages = TableMessages(self.name)

    def creation(self, remotes: Iterable[RemoteSet]) -> list[Message]:
        """Return the messages that create the table with its sets, these sets of remotes, and its chains, all empty."""
        chains = (self._messages.chain(name, hook) for name, hook, _rules in CHAINS)
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
        rules = [self._messages.message(nf.NFT_MSG.DELRULE, text(nf.NFTA_RULE.CHAIN, name)) for name, *_ in CHAINS]
        listed = [
            self._messages.message(nf.NFT_MSG.DELSETELEM, text(nf.NFTA_SET_ELEM_LIST.SET, each.name))
            for each in (*SETS, *(present & wanted))
        ]
        unused = [
            self._messages.message(nf.NFT_MSG.DELSET, text(nf.NFTA_SET.NAME, each.name)) for each in present - wanted
        ]
        return [self._new_table(), *rules, *listed, *unused, *self._new_sets(wanted - present)]

    def removal(self) -> list[Message]:
        """Return the messages that delete the table; its absence is no error."""
        return self._messages.removal()

    def rules(self, remotes: Iterable[RemoteSet]) -> list[Message]:
        """Return the messages that add the rules, with those for these sets of remotes."""
        fixed = [self._messages.rule(name, rule) for name, _hook, rules in CHAINS for rule in rules(self._site)]
        return [*fixed, *self._remote_rules(remotes)]

    def new_remotes(self, remotes: set[RemoteSet]) -> list[Message]:
        """Return the messages that add these sets of remotes to the table, each with its rule."""
        return [*self._new_sets(remotes), *self._remote_rules(remotes)]

    def _remote_rules(self, remotes: Iterable[RemoteSet]) -> list[Message]:
        """Return the messages that add their rules: single hosts, which are the most frequent remotes, come first."""
        ordered = sorted(remotes, key=lambda each: (-each.prefixlen, each.name))
        return [self._messages.rule(*expressions.remote_rule(self._site, each)) for each in ordered]

    def additions(self, added: Iterable[Placed]) -> Iterator[Message]:
        """Yield the messages that add these elements to their sets."""
        contents: dict[NftSet, list[bytes]] = {}
        for nft_set, element in added:
            contents.setdefault(nft_set, []).append(element)
        for nft_set, listed in contents.items():
            yield from self._messages.elements(nft_set.name, listed)

    def deletions(self, keys: Iterable[Placed]) -> Iterator[Message]:
        """Yield one message for each key that deletes its element; one each, because any of them may be gone."""
        for nft_set, key in keys:
            yield self._messages.deletion(nft_set.name, key)

    def _new_table(self) -> Message:
        return self._messages.table(owned=self._site.own_table)

    def _new_sets(self, sets: Iterable[NftSet]) -> list[Message]:
        return self._messages.sets(each.declaration() for each in sets)


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
