"""Keeps two rules that accept mapped flows in the native nftables chain that `forward_chain` names.

    oifname "wg0" ct mark & 0x10000000 == 0x10000000 accept comment "igd wg0"        (inserted as the first rules)
    iifname "wg0" ct mark & 0x10000000 == 0x10000000 accept comment "igd wg0"

They are encoded as nft itself encodes them, so that a saved rule set loads again. We recognize them by their comment
and their expressions: iptables-nft stores comments in the same way, and its rules must not be edited here.

Operators who do not want them among their own rules can name a separate chain, and jump to it from anywhere.
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

# iptables-nft's families, tables and base chains
_IPTABLES = {NFPROTO_IPV4: "iptables-nft", NFPROTO_IPV6: "ip6tables-nft"}
_IPTABLES_TABLES = {"raw", "mangle", "nat", "filter", "security"}
_IPTABLES_CHAINS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}


def named(forward_chain: str | None) -> NftChain | None:
    """Return the chain of a name like "inet filter forward"; None for an iptables chain or no name; FirewallError."""
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
    """Keeps our two rules at the beginning of the nftables chain that `forward_chain` names, if it names one."""

    def __init__(self, site: Site) -> None:
        self._chain = named(site.forward_chain)
        self._comment = f"igd {site.wireguard}"
        self._cleaned = False  # no rules of an earlier run are left in other chains; checking takes 10 us for each rule
        self._wanted = [_accept(key, site.wireguard, site.mark) for key in (NFT_META.OIFNAME, NFT_META.IIFNAME)]
        self._lines = [
            f'{way} "{site.wireguard}" ct mark & {site.mark:#x} == {site.mark:#x} accept comment "{self._comment}"'
            for way in ("oifname", "iifname")
        ]

    def ensure(self) -> list[str]:
        """Ensure that our rules are first in that chain and in no other; return the reasons if they cannot be.

        They are inserted even if the chain does not drop. FirewallError if the kernel refuses them, and if the chain is
        iptables-nft's, which could then no longer read its own table.
        """
        if xtables.nft_tables() is None:
            return self._missing()
        if self._chain is None and self._cleaned:
            return []
        with closing(Netlink()) as netlink:
            present = self._ours(netlink)
            self._cleaned = True
            complaints = self._unusable(netlink)
            if self._chain is None or complaints:
                _take_out(netlink, present)
            elif not self._is_in_place(netlink, self._chain, present):
                self._put_in(netlink, self._chain, present)
            return complaints

    def remove(self) -> None:
        """Delete our rules from every chain; their absence is not an error."""
        if xtables.nft_tables() is not None:
            with closing(Netlink()) as netlink:
                _take_out(netlink, self._ours(netlink))

    def _ours(self, netlink: Netlink) -> list[NftRule]:
        """Return our rules, except those in tables that only another program may edit."""
        made = [rule for rule in netlink_rules.commented(netlink, self._comment) if rule.kinds == _KINDS]
        return [rule for rule in made if not netlink_rules.is_owned(netlink, rule.chain)]

    def _put_in(self, netlink: Netlink, chain: NftChain, present: Iterable[NftRule]) -> None:
        for line in reversed(self._lines):
            _log.info("nft insert rule %s %s", chain, line)
        insertions = [netlink_rules.insertion(chain, steps, self._comment) for steps in reversed(self._wanted)]
        netlink_rules.edit(netlink, [*map(netlink_rules.deletion, present), *insertions])

    def _is_in_place(self, netlink: Netlink, chain: NftChain, present: list[NftRule]) -> bool:
        """Return whether our rules exist once, and before all except those of other instances."""
        leading = takewhile(_is_of_any_instance, netlink_rules.rules(netlink, chain))
        first = [rule.expressions for rule in leading if rule.comment == self._comment]
        return len(present) == len(first) == len(self._wanted) and all(map(_has, first, self._wanted))

    def _unusable(self, netlink: Netlink) -> list[str]:
        """Return why our rules cannot be in the chain; raise FirewallError if they must not be."""
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
    """Return whether the chain is iptables-nft's; also if the program is missing, so that it cannot be known.

    iptables-nft ignores base chains of other names in its tables, and a whole table with a rule that it cannot read.
    """
    program = _IPTABLES.get(chain.family)
    if program is None or chain.table not in _IPTABLES_TABLES or (is_base and chain.name not in _IPTABLES_CHAINS):
        return False
    return xtables.program(f"{program}-save") is None or xtables.saved(program, chain.table) is not None


def _is_of_any_instance(rule: NftRule) -> bool:
    return (rule.comment or "").startswith("igd ") and rule.kinds == _KINDS


def _has(found: Iterable[Expression], wanted: Iterable[Expression]) -> bool:
    """Return whether a rule of ours has these attributes; newer kernels return more of them than they received."""
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
