"""Keeps two rules that accept mapped flows in the native nftables chain that `forward_chain` names.

    oifname "wg0" ct mark & 0x10000000 == 0x10000000 accept comment "igd wg0"        (inserted as the first rules)
    iifname "wg0" ct mark & 0x10000000 == 0x10000000 accept comment "igd wg0"

The program nft lists and edits the chains. We recognize our rules by their comment and their form: iptables-nft stores
comments in the same way, and its rules must not be edited here. We read nft's text, not its JSON, because `nft -j`
aborts if a rule of the chain contains bytes that are not UTF-8.

Operators who do not want them among their own rules can name a separate chain, and jump to it from anywhere.
"""

import logging
import os
import re
import socket
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from typing import NamedTuple

from igd.firewall.backend import FirewallError
from igd.firewall.netlink import Netlink
from igd.firewall.nf_tables import NFT_MSG, NFT_TABLE_F, NFTA_CHAIN, NFTA_RULE, NFTA_TABLE
from igd.firewall.nfnetlink import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, body, nft_message, text
from igd.firewall.operator_rules import xtables
from igd.firewall.site import Site

_log = logging.getLogger(__name__)

_FAMILIES = {"ip": NFPROTO_IPV4, "ip6": NFPROTO_IPV6, "inet": NFPROTO_INET}
_FAMILY_NAMES = {number: name for name, number in _FAMILIES.items()}

# iptables-nft's families, tables and base chains
_IPTABLES = {NFPROTO_IPV4: "iptables-nft", NFPROTO_IPV6: "ip6tables-nft"}
_IPTABLES_TABLES = {"raw", "mangle", "nat", "filter", "security"}
_IPTABLES_CHAINS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

# What `nft -a list chain` prints: rules, the line of a base chain, and rules that have the same form as ours
_LISTED = re.compile(r"^\t\t(.*) # handle (\d+)$", re.MULTILINE)
_BASE_CHAIN = re.compile(r"^\t\ttype ", re.MULTILINE)
_OF_ANY_INSTANCE = re.compile(r'[io]ifname \S+ ct mark (& )?\S+( [!=]= \S+)? \w+ comment "igd \S+"')

_UNWRITABLE = set('"*')  # a quote ends a string; an asterisk at the end of a name matches a prefix


class NftChain(NamedTuple):
    """The full name of a chain; `family` is an NFPROTO_*."""

    family: int
    table: str
    name: str

    def __str__(self) -> str:
        return f"{_FAMILY_NAMES[self.family]} {self.table} {self.name}"


class _Rule(NamedTuple):
    """A rule as nft prints it, and its handle."""

    text: str
    handle: str


def named(forward_chain: str | None) -> NftChain | None:
    """Return the chain of a name like "inet filter forward"; None for an iptables chain or no name; FirewallError."""
    words = (forward_chain or "").split()
    if len(words) <= 1:
        return None
    if len(words) != 3 or words[0] not in _FAMILIES:
        raise FirewallError(
            f'forward_chain = "{forward_chain}": neither a chain of iptables (DOCKER-USER) '
            "nor family (ip, ip6, inet), table and chain of nftables (inet filter forward)"
        )
    return NftChain(_FAMILIES[words[0]], words[1], words[2])


class ForwardRule:
    """Keeps our two rules at the beginning of the nftables chain that `forward_chain` names, if it names one."""

    def __init__(self, site: Site) -> None:
        self._chain = named(site.forward_chain)
        self._interface = site.wireguard
        self._comment = f"igd {site.wireguard}"
        self._cleaned = False  # no rules of an earlier run are left in other chains; checking takes 10 us for each rule
        self._form_unknown = False  # otherwise each call would insert them again
        mark = f"{site.mark:#010x}"
        self._wanted = [
            f'{key} "{site.wireguard}" ct mark & {mark} == {mark} accept comment "{self._comment}"'
            for key in ("oifname", "iifname")
        ]

    def ensure(self) -> list[str]:
        """Ensure that our rules are first in that chain and in no other; return the reasons if they cannot be.

        They are inserted even if the chain does not drop. FirewallError if nft cannot edit a chain, and if the chain is
        iptables-nft's, which could then no longer read its own table.
        """
        if xtables.nft_tables() is None:
            return self._missing()
        if self._chain is None and self._cleaned:
            return []
        with closing(Netlink()) as netlink:
            owned = _owned_tables(netlink)
            chains = self._chains(netlink, owned)
            edited = self._chain or next(iter(chains), None)
            if edited and xtables.program("nft") is None:
                return [f"nft: not installed; without it our rules in {edited} can neither be inserted nor deleted"]
            complaints = self._unusable(netlink, owned)
        listed = {chain: _rules(chain) for chain in chains}
        deletions = self._deletions(listed)
        self._cleaned = True
        if self._chain is None or complaints:
            _take_out(deletions)
        elif not self._form_unknown and not self._is_in_place(listed.get(self._chain, []), len(deletions)):
            self._put_in(self._chain, deletions)
            self._form_unknown = not self._is_in_place(_rules(self._chain), len(self._wanted))
        if self._form_unknown:
            complaints = [f"nft lists our rules in {self._chain} in an unknown form: they are not checked any more"]
        return complaints

    def remove(self) -> None:
        """Delete our rules from every chain; their absence is not an error."""
        if xtables.nft_tables() is not None:
            with closing(Netlink()) as netlink:
                chains = self._chains(netlink, _owned_tables(netlink))
            _take_out(self._deletions({chain: _rules(chain) for chain in chains}))

    def _chains(self, netlink: Netlink, owned: Container[tuple[int, str]]) -> list[NftChain]:
        """Return the chains that may contain our rules, except those in tables that only another program may edit.

        Ask the kernel: nft would take 0.5 s of CPU time to list 20,000 rules.
        """
        comment, mask = os.fsencode(self._comment) + b"\0", b"bitwise\0"  # iptables-nft's rules hardly ever have both
        dumped = netlink.dump(nft_message(NFT_MSG.GETRULE, socket.AF_UNSPEC))
        found = ((payload[0], body(payload)) for payload in dumped if comment in payload and mask in payload)
        chains = {NftChain(family, _name(r[NFTA_RULE.TABLE]), _name(r[NFTA_RULE.CHAIN])) for family, r in found}
        return sorted(chain for chain in chains if chain.family in _FAMILY_NAMES and chain[:2] not in owned)

    def _unusable(self, netlink: Netlink, owned: Container[tuple[int, str]]) -> list[str]:
        """Return why our rules cannot be in the chain; raise FirewallError if they must not be."""
        chain = self._chain
        if chain is None:
            return []
        names = text(NFTA_CHAIN.TABLE, chain.table), text(NFTA_CHAIN.NAME, chain.name)
        if not netlink.exists(nft_message(NFT_MSG.GETCHAIN, chain.family, *names)):
            return self._missing()
        setting = f'forward_chain = "{chain}"'
        if _is_iptables(chain):
            raise FirewallError(
                f"{setting}: this chain is {_IPTABLES[chain.family]}'s, which cannot read rules of "
                f'nftables\' own; write: forward_chain = "{chain.name}"'
            )
        if chain[:2] in owned:
            return [f"{setting}: only the program that owns this table (flags owner) can edit it"]
        if set(self._interface) & _UNWRITABLE:
            return [f"{setting}: our rules cannot be there, because nft cannot write the name {self._interface}"]
        return []

    def _missing(self) -> list[str]:
        if self._chain is None:
            return []
        return [f'forward_chain = "{self._chain}": nftables has no such chain; our rules go in when there is one']

    def _is_in_place(self, rules: Iterable[_Rule], present: int) -> bool:
        """Return whether the chain's `rules` begin with ours (others' of igd may precede), and no other chain has any.

        `present` counts our rules in all chains.
        """
        leading = takewhile(lambda rule: _OF_ANY_INSTANCE.fullmatch(rule.text), rules)
        first = [rule.text for rule in leading if self._is_ours(rule)]
        return first == self._wanted and present == len(first)

    def _put_in(self, chain: NftChain, deletions: Iterable[str]) -> None:
        insertions = [f"insert rule {chain} {rule}" for rule in reversed(self._wanted)]
        for insertion in insertions:
            _log.info("nft %s", insertion)
        _edit([*deletions, *insertions])

    def _deletions(self, listed: Mapping[NftChain, Iterable[_Rule]]) -> list[str]:
        """Return nft's commands that delete our rules."""
        ours = ((chain, rule) for chain, rules in listed.items() for rule in rules if self._is_ours(rule))
        return [f"delete rule {chain} handle {rule.handle}" for chain, rule in ours]

    def _is_ours(self, rule: _Rule) -> bool:
        return rule.text.endswith(f' comment "{self._comment}"') and bool(_OF_ANY_INSTANCE.fullmatch(rule.text))


def _take_out(deletions: Sequence[str]) -> None:
    for deletion in deletions:
        _log.info("nft %s", deletion)
    _edit(deletions)


def _edit(commands: Sequence[str]) -> None:
    """Carry out all commands as one transaction, or raise FirewallError and change nothing."""
    if commands:
        xtables.run("nft", "-f", "-", text="".join(f"{command}\n" for command in commands))


def _rules(chain: NftChain) -> list[_Rule]:
    """Return the rules of a chain in order."""
    # nft 1.0.6 prints a comparison with the highest bit as a prefix.
    listing = _list(chain).replace(" ct mark 0x80000000/1 ", " ct mark & 0x80000000 == 0x80000000 ")
    return [_Rule(*found) for found in _LISTED.findall(listing)]


def _list(chain: NftChain) -> str:
    return xtables.run("nft", "-a", "-t", "list", "chain", *str(chain).split())


def _owned_tables(netlink: Netlink) -> set[tuple[int, str]]:
    """Return family and name of the tables with an owner: only the netlink socket that created one may edit it."""
    tables = ((payload[0], body(payload)) for payload in netlink.dump(nft_message(NFT_MSG.GETTABLE, socket.AF_UNSPEC)))
    return {
        (family, _name(table[NFTA_TABLE.NAME]))
        for family, table in tables
        if int.from_bytes(table[NFTA_TABLE.FLAGS], "big") & NFT_TABLE_F.OWNER
    }


def _is_iptables(chain: NftChain) -> bool:
    """Return whether the chain is iptables-nft's; also if the program is missing, so that it cannot be known.

    iptables-nft ignores base chains of other names in its tables, and a whole table with a rule that it cannot read.
    """
    program = _IPTABLES.get(chain.family)
    if program is None or chain.table not in _IPTABLES_TABLES:
        return False
    if chain.name not in _IPTABLES_CHAINS and _BASE_CHAIN.search(_list(chain)):
        return False
    return xtables.program(f"{program}-save") is None or xtables.saved(program, chain.table) is not None


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")
