"""Where the operator drops in a chain of nftables' own and names it ("inet filter forward"): two rules of ours in it.

    oifname "wg0" ct mark & 0x10000000 == 0x10000000 accept comment "igd wg0"        (inserted as the first rules)
    iifname "wg0" ct mark & 0x10000000 == 0x10000000 accept comment "igd wg0"

By netlink, as nft itself would write them, so that a saved rule set loads again. They are known by their comment and
what they consist of: iptables-nft keeps its comments in the same way, and its rules are not ours to touch here.

What is always in the operator's way can be kept out of it: he may name a chain that holds nothing else, and jump to it
from where he likes.
"""

import logging
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import takewhile

from igd.firewall.backend import FirewallError
from igd.firewall.forward import netlink_rules
from igd.firewall.forward.netlink_rules import FAMILIES, Expression, NftChain, NftRule
from igd.firewall.netlink import Netlink
from igd.firewall.nf_tables import (
    NFT_CMP,
    NFT_CT,
    NFT_META,
    NFT_REGISTERS,
    NFT_VERDICTS,
    NFTA_BITWISE,
    NFTA_CMP,
    NFTA_CT,
    NFTA_DATA,
    NFTA_IMMEDIATE,
    NFTA_META,
    NFTA_VERDICT,
)
from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, attribute, u32
from igd.firewall.operator_rules import xtables
from igd.firewall.site import Site

_log = logging.getLogger(__name__)

IFNAMSIZ = 16

# iptables-nft's: the families and tables in which it works, and its base chains
_IPTABLES = {NFPROTO_IPV4: "iptables-nft", NFPROTO_IPV6: "ip6tables-nft"}
_IPTABLES_TABLES = {"raw", "mangle", "nat", "filter", "security"}
_IPTABLES_CHAINS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}


def named(forward_chain: str | None) -> NftChain | None:
    """Give the chain that is named like "inet filter forward"; None where iptables' or none is named; FirewallError."""
    words = (forward_chain or "").split()
    if len(words) <= 1:
        return None
    if len(words) != 3 or words[0] not in FAMILIES:
        raise FirewallError(
            f'forward_chain = "{forward_chain}": neither a chain of iptables (DOCKER-USER) '
            "nor family (ip, ip6, inet), table and chain of nftables (inet filter forward)"
        )
    return NftChain(FAMILIES[words[0]], words[1], words[2])


class ForwardRule:
    """Keeps our two rules at the beginning of the chain of nftables that the operator named, if he did."""

    def __init__(self, site: Site) -> None:
        self._chain = named(site.forward_chain)
        self._comment = f"igd {site.wireguard}"
        self._looked = False  # for what an earlier run left in a chain that is no longer named: 10 us for each rule
        self._wanted = [_accept(key, site.wireguard, site.mark) for key in (NFT_META.OIFNAME, NFT_META.IIFNAME)]
        self._lines = [
            f'{way} "{site.wireguard}" ct mark & {site.mark:#x} == {site.mark:#x} accept comment "{self._comment}"'
            for way in ("oifname", "iifname")
        ]

    def ensure(self) -> list[str]:
        """Have our rules first in that chain and in no other, whatever was there; give why they cannot be.

        Whether the chain drops is not asked: who names it wants them there. FirewallError where the kernel refuses, and
        where the chain is iptables-nft's, which then could not read its own table any more.
        """
        if xtables.nft_tables() is None:
            return self._missing()
        if self._chain is None and self._looked:
            return []
        with closing(Netlink()) as netlink:
            present = self._ours(netlink)
            self._looked = True
            complaints = self._unusable(netlink)
            if self._chain is None or complaints:
                _take_out(netlink, present)
            elif not self._is_in_place(netlink, self._chain, present):
                self._put_in(netlink, self._chain, present)
            return complaints

    def remove(self) -> None:
        """Take our rules out, wherever they are; nothing there is not an error."""
        if xtables.nft_tables() is not None:
            with closing(Netlink()) as netlink:
                _take_out(netlink, self._ours(netlink))

    def _ours(self, netlink: Netlink) -> list[NftRule]:
        """Give what is there of ours, but for what only the owner of its table may touch."""
        made = [rule for rule in netlink_rules.commented(netlink, self._comment) if rule.kinds == _KINDS]
        return [rule for rule in made if not netlink_rules.is_owned(netlink, rule.chain)]

    def _put_in(self, netlink: Netlink, chain: NftChain, present: Iterable[NftRule]) -> None:
        for line in reversed(self._lines):
            _log.info("nft insert rule %s %s", chain, line)
        insertions = [netlink_rules.insertion(chain, steps, self._comment) for steps in reversed(self._wanted)]
        netlink_rules.edit(netlink, [*map(netlink_rules.deletion, present), *insertions])

    def _is_in_place(self, netlink: Netlink, chain: NftChain, present: list[NftRule]) -> bool:
        """Whether our rules are there once, and first but for those of other instances."""
        leading = takewhile(_is_an_instances, netlink_rules.rules(netlink, chain))
        first = [rule.expressions for rule in leading if rule.comment == self._comment]
        return len(present) == len(first) == len(self._wanted) and all(map(_says, first, self._wanted))

    def _unusable(self, netlink: Netlink) -> list[str]:
        """Give why our rules cannot be in the chain; FirewallError where they must not."""
        chain = self._chain
        if chain is None:
            return []
        chains = netlink_rules.chains(netlink)
        if chain not in chains:
            return self._missing()
        if _is_iptables(chain, is_base=chains[chain]):
            raise FirewallError(
                f'forward_chain = "{chain}": this chain is {_IPTABLES[chain.family]}\'s, which cannot read rules of '
                f'nftables\' own; write: forward_chain = "{chain.name}"'
            )
        if netlink_rules.is_owned(netlink, chain):
            return [f'forward_chain = "{chain}": only the program that owns this table (flags owner) can edit it']
        return []

    def _missing(self) -> list[str]:
        if self._chain is None:
            return []
        return [f'forward_chain = "{self._chain}": nftables has no such chain; our rules go in when there is one']


def _take_out(netlink: Netlink, present: Sequence[NftRule]) -> None:
    for rule in present:
        _log.info("nft delete rule %s handle %d", rule.chain, int.from_bytes(rule.handle, "big"))
    netlink_rules.edit(netlink, [netlink_rules.deletion(rule) for rule in present])


def _is_iptables(chain: NftChain, *, is_base: bool) -> bool:
    """Whether iptables-nft takes the chain for its own; in doubt, because the program is missing, it does.

    In its tables it passes over base chains of other names, and over a whole table with a rule that it cannot read.
    """
    program = _IPTABLES.get(chain.family)
    if program is None or chain.table not in _IPTABLES_TABLES or (is_base and chain.name not in _IPTABLES_CHAINS):
        return False
    return xtables.program(f"{program}-save") is None or xtables.saved(program, chain.table) is not None


def _is_an_instances(rule: NftRule) -> bool:
    return (rule.comment or "").startswith("igd ") and rule.kinds == _KINDS


def _says(found: Iterable[Expression], wanted: Iterable[Expression]) -> bool:
    """Whether a rule of our making says just this; newer kernels tell more of an expression than they were told."""
    return all(w.values.items() <= f.values.items() for f, w in zip(found, wanted, strict=True))


_KINDS = ("meta", "cmp", "ct", "bitwise", "cmp", "immediate")


def _accept(key: NFT_META, interface: str, mark: int) -> list[Expression]:
    """Return the expressions of a rule that accepts marked packets of this interface, of the types in _KINDS."""
    name = interface.encode(errors="surrogateescape").ljust(IFNAMSIZ, b"\0")
    bit = struct.pack("=I", mark)  # registers are in host order
    accept = attribute(NFTA_DATA.VERDICT, u32(NFTA_VERDICT.CODE, NFT_VERDICTS.NF_ACCEPT))
    register, equal = _u32(NFT_REGISTERS.REG_1), _u32(NFT_CMP.EQ)
    steps: tuple[dict[int, bytes], ...] = (
        {NFTA_META.DREG: register, NFTA_META.KEY: _u32(key)},
        {NFTA_CMP.SREG: register, NFTA_CMP.OP: equal, NFTA_CMP.DATA: _value(name)},
        {NFTA_CT.DREG: register, NFTA_CT.KEY: _u32(NFT_CT.MARK)},
        {
            NFTA_BITWISE.SREG: register,
            NFTA_BITWISE.DREG: register,
            NFTA_BITWISE.LEN: _u32(4),
            NFTA_BITWISE.MASK: _value(bit),
            NFTA_BITWISE.XOR: _value(bytes(4)),
        },
        {NFTA_CMP.SREG: register, NFTA_CMP.OP: equal, NFTA_CMP.DATA: _value(bit)},
        {NFTA_IMMEDIATE.DREG: _u32(NFT_REGISTERS.REG_VERDICT), NFTA_IMMEDIATE.DATA: accept},
    )
    return [Expression(kind, values) for kind, values in zip(_KINDS, steps, strict=True)]


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)


def _value(data: bytes) -> bytes:
    return attribute(NFTA_DATA.VALUE, data)
