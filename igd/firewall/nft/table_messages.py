"""The messages that create, fill and delete one nftables table. Bytes only."""

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from igd.firewall import nf_tables as nf
from igd.firewall.netlink import BatchError, NetlinkError
from igd.firewall.nfnetlink import (
    NFPROTO_INET,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    nested,
    nft_message,
    text,
    u32,
)
from igd.firewall.nft.expressions import EncodedRule

_CHUNK = 200  # elements of one message: each at most 280 bytes, in a list whose length field has 16 bits


class Hook(NamedTuple):
    """Where packets enter a base chain, and its type; `device`: the interface of a hook of the family netdev."""

    number: int
    priority: int
    kind: str
    device: str = ""


class TableMessages:
    """Makes messages about the table of this name and family (NFPROTO_*)."""

    def __init__(self, name: str, family: int = NFPROTO_INET) -> None:
        self.name = name
        self._family = family
        # The same number in every message: NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE
        self._table = text(nf.NFTA_TABLE.NAME, name)

    def message(self, kind: nf.NFT_MSG, *parts: bytes, flags: int = 0) -> Message:
        """Return a message with these attributes besides the table's name."""
        return nft_message(kind, self._family, self._table, *parts, flags=flags)

    def table(self, *, owned: bool) -> Message:
        """Return the message that creates the table, or leaves an existing one as it is.

        A table with NFT_TABLE_F_OWNER whose owner is gone becomes ours. Flags 0: neither dormant nor owned.
        """
        flags = nf.NFT_TABLE_F.OWNER | nf.NFT_TABLE_F.PERSIST if owned else 0
        return self.message(nf.NFT_MSG.NEWTABLE, u32(nf.NFTA_TABLE.FLAGS, flags), flags=NLM_F_CREATE)

    def removal(self) -> list[Message]:
        """Return the messages that delete the table; they create it first, so that its absence is no error."""
        return [self.message(nf.NFT_MSG.NEWTABLE, flags=NLM_F_CREATE), self.message(nf.NFT_MSG.DELTABLE)]

    def sets(self, declarations: Iterable[bytes]) -> list[Message]:
        """Return the messages that create sets; the kernel requires an id, though nothing here refers to it."""
        return [
            self.message(nf.NFT_MSG.NEWSET, declaration, u32(nf.NFTA_SET.ID, number), flags=NLM_F_CREATE)
            for number, declaration in enumerate(declarations, start=1)
        ]

    def chain(self, name: str, hook: Hook | None) -> Message:
        """Return the message that creates a base chain, which accepts what it does not drop, or one without a hook."""
        parts = [text(nf.NFTA_CHAIN.NAME, name)]
        if hook is not None:
            place = [u32(nf.NFTA_HOOK.HOOKNUM, hook.number), u32(nf.NFTA_HOOK.PRIORITY, hook.priority & 0xFFFF_FFFF)]
            place += [text(nf.NFTA_HOOK.DEV, hook.device)] if hook.device else []
            parts += [nested(nf.NFTA_CHAIN.HOOK, *place), u32(nf.NFTA_CHAIN.POLICY, nf.NFT_VERDICTS.NF_ACCEPT)]
            parts.append(text(nf.NFTA_CHAIN.TYPE, hook.kind))
        return self.message(nf.NFT_MSG.NEWCHAIN, *parts, flags=NLM_F_CREATE)

    def rule(self, chain: str, rule: EncodedRule) -> Message:
        """Return the message that adds a rule at the end of a chain."""
        parts = text(nf.NFTA_RULE.CHAIN, chain), nested(nf.NFTA_RULE.EXPRESSIONS, *rule)
        return self.message(nf.NFT_MSG.NEWRULE, *parts, flags=NLM_F_CREATE | NLM_F_APPEND)

    def deletion(self, nft_set: str, key: bytes) -> Message:
        """Return the message that deletes the element with this key from a set; it fails if there is none."""
        listed = nested(nf.NFTA_SET_ELEM_LIST.ELEMENTS, nested(nf.NFTA_LIST_ELEM, key))
        return self.message(nf.NFT_MSG.DELSETELEM, text(nf.NFTA_SET_ELEM_LIST.SET, nft_set), listed)

    def elements(self, nft_set: str, added: Iterable[bytes]) -> Iterator[Message]:
        """Yield the messages that add elements to a set."""
        remaining = iter(added)
        while chunk := list(islice(remaining, _CHUNK)):
            parts = text(nf.NFTA_SET_ELEM_LIST.SET, nft_set), nested(nf.NFTA_SET_ELEM_LIST.ELEMENTS, *chunk)
            yield self.message(nf.NFT_MSG.NEWSETELEM, *parts, flags=NLM_F_CREATE)


def transact_tolerantly(transact: Callable[[Sequence[Message]], None], messages: Sequence[Message]) -> None:
    """Carry out a transaction, without those of its deletions whose element no longer exists."""
    while True:
        try:
            return transact(messages)
        except BatchError as error:
            # One failed deletion fails the transaction. Each repetition has fewer messages, so this ends.
            gone = {bad.index for bad in error.errors if bad.errno == errno.ENOENT and _deletes(messages, bad)}
            if len(gone) < len(error.errors):
                raise
            messages = [message for index, message in enumerate(messages) if index not in gone]


def _deletes(messages: Sequence[Message], error: NetlinkError) -> bool:
    return error.index is not None and messages[error.index].kind & 0xFF == nf.NFT_MSG.DELSETELEM
