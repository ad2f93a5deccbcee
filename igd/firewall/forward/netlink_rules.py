"""Reads, inserts and deletes rules in the operator's nftables chains, by netlink.

The format of comments is libnftnl's (udata.h); the kernel only stores them for nft.
"""

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from igd.firewall.netlink import Netlink
from igd.firewall.nf_tables import NFT_MSG, NFT_TABLE_F, NFTA_CHAIN, NFTA_EXPR, NFTA_LIST, NFTA_RULE, NFTA_TABLE
from igd.firewall.nfnetlink import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NLM_F_CREATE,
    Message,
    attribute,
    attributes,
    body,
    nested,
    nft_message,
    text,
)

FAMILIES = {"ip": NFPROTO_IPV4, "ip6": NFPROTO_IPV6, "inet": NFPROTO_INET}

UDATA_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT

_LENGTH = struct.Struct("=H")
_FLAGS = struct.Struct(">I")


class NftChain(NamedTuple):
    """The full name of a chain; `family` is an NFPROTO_*."""

    family: int
    table: str
    name: str

    def __str__(self) -> str:
        names = {number: name for name, number in FAMILIES.items()}
        return f"{names.get(self.family, self.family)} {self.table} {self.name}"


class Expression(NamedTuple):
    """One expression of a rule: its type, and its attributes as the kernel encodes them."""

    name: str
    values: dict[int, bytes]


class NftRule(NamedTuple):
    """A rule in the kernel; `comment` is the one that nft prints."""

    chain: NftChain
    handle: bytes
    expressions: list[Expression]
    comment: str | None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types of its expressions."""
        return tuple(expression.name for expression in self.expressions)


def chains(netlink: Netlink) -> dict[NftChain, bool]:
    """Return every chain, and whether it is a base chain, which has a hook."""
    dumped = ((payload[0], body(payload)) for payload in netlink.dump(nft_message(NFT_MSG.GETCHAIN, socket.AF_UNSPEC)))
    return {
        NftChain(family, _string(found[NFTA_CHAIN.TABLE]), _string(found[NFTA_CHAIN.NAME])): NFTA_CHAIN.HOOK in found
        for family, found in dumped
    }


def is_owned(netlink: Netlink, chain: NftChain) -> bool:
    """Return whether the chain's table has an owner: only the netlink socket that created it may edit it."""
    for payload in netlink.dump(nft_message(NFT_MSG.GETTABLE, socket.AF_UNSPEC)):
        found = body(payload)
        if (payload[0], _string(found[NFTA_TABLE.NAME])) == (chain.family, chain.table):
            return bool(_FLAGS.unpack(found[NFTA_TABLE.FLAGS])[0] & NFT_TABLE_F.OWNER)
    return False


def commented(netlink: Netlink, comment: str) -> list[NftRule]:
    """Return the rules with this comment in all tables."""
    needle = comment.encode()  # decode only these of a host's tens of thousands of rules
    dumped = (payload for payload in netlink.dump(nft_message(NFT_MSG.GETRULE, socket.AF_UNSPEC)) if needle in payload)
    return [rule for rule in map(_decoded, dumped) if rule.comment == comment]


def rules(netlink: Netlink, chain: NftChain) -> Iterator[NftRule]:
    """Yield the rules of one chain in order, each decoded when it is requested."""
    return map(_decoded, netlink.dump(nft_message(NFT_MSG.GETRULE, chain.family, *_of(chain))))


def edit(netlink: Netlink, messages: Sequence[Message]) -> None:
    """Carry out deletions and insertions as one transaction, or raise FirewallError and change nothing."""
    netlink.transact(NFNL_SUBSYS_NFTABLES, messages)


def deletion(rule: NftRule) -> Message:
    """Return the message that deletes this rule."""
    return nft_message(NFT_MSG.DELRULE, rule.chain.family, *_of(rule.chain), attribute(NFTA_RULE.HANDLE, rule.handle))


def insertion(chain: NftChain, expressions: Iterable[Expression], comment: str) -> Message:
    """Return the message that inserts a rule as the first of the chain."""
    words = comment.encode() + b"\0"
    userdata = attribute(NFTA_RULE.USERDATA, bytes([UDATA_COMMENT, len(words)]) + words)
    steps = nested(NFTA_RULE.EXPRESSIONS, *map(_encoded, expressions))
    # Without NLM_F_APPEND the rule becomes the first.
    return nft_message(NFT_MSG.NEWRULE, chain.family, *_of(chain), steps, userdata, flags=NLM_F_CREATE)


def _of(chain: NftChain) -> tuple[bytes, bytes]:
    return text(NFTA_RULE.TABLE, chain.table), text(NFTA_RULE.CHAIN, chain.name)


def _decoded(payload: bytes) -> NftRule:
    found = body(payload)
    chain = NftChain(payload[0], _string(found[NFTA_RULE.TABLE]), _string(found[NFTA_RULE.CHAIN]))
    expressions = [
        Expression(_string(item[NFTA_EXPR.NAME]), attributes(item.get(NFTA_EXPR.DATA, b"")))
        for item in _items(found.get(NFTA_RULE.EXPRESSIONS, b""))
    ]
    return NftRule(chain, found[NFTA_RULE.HANDLE], expressions, _comment(found.get(NFTA_RULE.USERDATA, b"")))


def _items(data: bytes) -> Iterator[dict[int, bytes]]:
    """Yield the items of a list."""
    while len(data) >= 4:
        length = _LENGTH.unpack_from(data)[0]
        yield attributes(data[4:length])
        data = data[length + -length % 4 :]


def _encoded(expression: Expression) -> bytes:
    values = (attribute(kind, value) for kind, value in expression.values.items())
    return nested(NFTA_LIST.ELEM, text(NFTA_EXPR.NAME, expression.name), nested(NFTA_EXPR.DATA, *values))


def _comment(userdata: bytes) -> str | None:
    """Return the comment among entries of type, length (one byte each) and value."""
    while len(userdata) >= 2:
        kind, length = userdata[:2]
        if kind == UDATA_COMMENT:
            return _string(userdata[2 : 2 + length])
        userdata = userdata[2 + length :]
    return None


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")
