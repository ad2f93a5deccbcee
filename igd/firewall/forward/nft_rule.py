"""Keeps rules that accept mapped flows in the nftables chain that `forward_chain` names, or those to which it leads.

    iifname != "wg0" oifname "wg0" ct mark & 0x10000000 == 0x10000000 accept comment "igd wg0"
    iifname "wg0" oifname != "wg0" ct mark & 0x10000000 == 0x10000000 accept comment "igd wg0"

In a base chain they stand directly before the rule that stops every mapped flow, or at the end if the policy does, and
nowhere if mapped flows pass. Any other chain has them in any case: the operator leads packets there.

The program nft lists and edits the chains. We recognize our rules by their comment and their form: iptables-nft stores
comments in the same way, and its rules must not be edited here. We find them in nft's text, because `nft -j` aborts if
a rule of the table contains bytes that are not UTF-8; such a table is not judged.
"""

import logging
import os
import re
import socket
from collections.abc import Container, Iterable, Sequence
from contextlib import closing
from typing import NamedTuple

from igd.firewall.backend import FirewallError
from igd.firewall.netlink import Netlink
from igd.firewall.nf_tables import NFT_MSG, NFT_TABLE_F, NFTA_CHAIN, NFTA_RULE, NFTA_TABLE
from igd.firewall.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, body, nft_message, text
from igd.firewall.operator_rules import xtables
from igd.firewall.operator_rules.accepts import accepts, as_nft, mapped_flows
from igd.firewall.operator_rules.frontends import OWNED_BY_FIREWALLD
from igd.firewall.operator_rules.openings import Classes, Opening, Openings, find_openings, outcome
from igd.firewall.operator_rules.packet import used_versions
from igd.firewall.operator_rules.rule_sets import FAMILIES, IPTABLES_TABLES, native_table
from igd.firewall.operator_rules.saved_rules import Rule, Rules
from igd.firewall.site import Site

_log = logging.getLogger(__name__)

_FAMILY_NUMBERS = {name: number for number, (name, _) in FAMILIES.items()}

# iptables-nft's families and base chains
_IPTABLES = {NFPROTO_IPV4: "iptables-nft", NFPROTO_IPV6: "ip6tables-nft"}
_IPTABLES_CHAINS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

# What `nft -a list chain` prints: rules, the line of a base chain, and rules that have the same form as ours
_LISTED = re.compile(r"^\t\t(.*) # handle (\d+)$", re.MULTILINE)
_BASE_CHAIN = re.compile(r"^\t\ttype ", re.MULTILINE)
_OURS = re.compile(
    r"[io]ifname (!= )?\S+ ([io]ifname (!= )?\S+ )?(meta l4proto \w+ )?(ct state \w+ )?"
    r'ct mark (& )?\S+( [!=]= \S+)? \w+ comment "igd \S+"'
)

_UNWRITABLE = set('"*')  # a quote ends a string; an asterisk at the end of a name matches a prefix


class NftChain(NamedTuple):
    """The full name of a chain; `family` is an NFPROTO_*."""

    family: int
    table: str
    name: str

    def __str__(self) -> str:
        return f"{FAMILIES[self.family][0]} {self.table} {self.name}"


class _Rule(NamedTuple):
    """A rule as nft prints it, and its handle."""

    text: str
    handle: str


_Present = tuple[NftChain, _Rule]
"""A rule of ours, and its chain."""


def named(forward_chain: str | None) -> NftChain | None:
    """Return the chain of a name like "inet filter forward"; None for an iptables chain or no name; FirewallError."""
    words = (forward_chain or "").split()
    if len(words) <= 1:
        return None
    if len(words) != 3 or words[0] not in _FAMILY_NUMBERS:
        raise FirewallError(
            f'forward_chain = "{forward_chain}": neither a chain of iptables (DOCKER-USER) '
            "nor family (ip, ip6, inet), table and chain of nftables (inet filter forward)"
        )
    return NftChain(_FAMILY_NUMBERS[words[0]], words[1], words[2])


class ForwardRule:
    """Keeps our rules where the nftables chain that `forward_chain` names needs them, if it names one."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._chain = named(site.forward_chain)
        self._comment = f"igd {site.wireguard}"
        self._cleaned = False  # no rules of an earlier run are left in other chains; checking takes 10 us for each rule
        self.edited = False
        """Whether the last `ensure` edited rules."""
        self._form_unknown = False  # otherwise each call would insert them again

    def ensure(self) -> list[str]:
        """Have our rules where they are needed and nowhere else; return what may still stop mapped flows.

        FirewallError if nft cannot edit a chain, and if the chain is iptables-nft's, which could then no longer read
        its own table.
        """
        self.edited = False
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
            warnings = self._unusable(netlink, owned)
        present = self._present(chains)
        self._cleaned = True
        if self._chain is None or warnings:
            self._edit(_deletions(present))
            return warnings
        return self._keep(self._chain, present)

    def remove(self) -> None:
        """Delete our rules from every chain; their absence is not an error."""
        if xtables.nft_tables() is not None:
            with closing(Netlink()) as netlink:
                chains = self._chains(netlink, _owned_tables(netlink))
            self._edit(_deletions(self._present(chains)))

    def _keep(self, chain: NftChain, present: Sequence[_Present]) -> list[str]:
        try:
            table = _table(chain)
        except FirewallError as error:
            found = Openings([Opening(chain.name, None)], hairpin=self._site.hairpin)
            if not (self._is_listed(present, chain, found) and self._is_last(chain, len(present))):
                self._put_in(chain, present, found)
            return [f'forward_chain = "{chain}": the rules cannot be judged, so ours stand at its end: {error}']
        found = find_openings(table.without(_is_any_instances), chain.name, self._classes(chain))
        if not (self._form_unknown or self._is_in_place(table, present, chain, found)):
            self._put_in(chain, present, found)
            self._form_unknown = self._is_listed_otherwise(chain, found)
        if self._form_unknown:
            return [f"nft lists our rules in {chain} in an unknown form: they are not checked any more"]
        return [f"{chain}: {warning}" for warning in found.warnings()]

    def _classes(self, chain: NftChain) -> Classes:
        """Return the packets of mapped flows that pass a chain of this family."""
        versions = FAMILIES[chain.family][1]
        return mapped_flows(self._site, used_versions(self._site, versions) or versions)

    def _is_in_place(self, table: Rules, present: Sequence[_Present], chain: NftChain, found: Openings) -> bool:
        """Return whether our rules are those that are needed, and at places where they do the same."""
        alone = table.without(lambda rule: _is_any_instances(rule) and self._comment not in rule.comments)
        if not self._is_listed(present, chain, found):
            return False
        return not present or outcome(alone, chain.name, self._classes(chain), found.unjudged) == found.outcome

    def _is_listed(self, present: Sequence[_Present], chain: NftChain, found: Openings) -> bool:
        """Return whether our rules, wherever they stand in the chains, are those that are needed."""
        wanted = [(place, text) for place, _before, text in self._wanted(chain, found)]
        return sorted((place, rule.text) for place, rule in present) == sorted(wanted)

    def _is_listed_otherwise(self, chain: NftChain, found: Openings) -> bool:
        """Return whether nft lists the rules that were just inserted, but in another form.

        Whether they are still there, and at the right place, is not asked: other programs may edit at the same time.
        """
        places = list(_places(chain, found))
        marked = [rule for place in places for rule in _rules(place) if self._is_marked(rule)]
        return len(marked) >= len(self._wanted(chain, found)) and not self._is_listed(
            self._present(places), chain, found
        )

    def _is_last(self, chain: NftChain, count: int) -> bool:
        """Return whether the last rules of the chain are ours, apart from other instances'."""
        rules = [rule for rule in _rules(chain) if self._is_ours(rule) or not _OURS.fullmatch(rule.text)]
        return all(self._is_ours(rule) for rule in rules[-count:])

    def _wanted(self, chain: NftChain, found: Openings) -> list[tuple[NftChain, int, str]]:
        """Return each of our rules: its chain, the handle of the rule behind it (0: none), and its text."""
        return [
            (
                chain._replace(name=opening.chain),
                opening.before.handle if opening.before else 0,
                f'{as_nft(conditions)} accept comment "{self._comment}"',
            )
            for opening in found.needed
            for conditions in accepts(self._site, opening.only, hairpin=found.hairpin)
        ]

    def _put_in(self, chain: NftChain, present: Sequence[_Present], found: Openings) -> None:
        self._edit(
            _deletions(present)
            + [
                f"insert rule {place} position {before} {rule}" if before else f"add rule {place} {rule}"
                for place, before, rule in self._wanted(chain, found)
            ]
        )

    def _edit(self, commands: Sequence[str]) -> None:
        """Carry out all commands as one transaction, or raise FirewallError and change nothing."""
        if commands:
            for command in commands:
                _log.info("nft %s", command)
            self.edited = True
            xtables.run("nft", "-f", "-", text="".join(f"{command}\n" for command in commands))

    def _present(self, chains: Iterable[NftChain]) -> list[_Present]:
        """Return our rules in these chains."""
        return [(chain, rule) for chain in chains for rule in _rules(chain) if self._is_ours(rule)]

    def _chains(self, netlink: Netlink, owned: Container[tuple[int, str]]) -> list[NftChain]:
        """Return the chains that may contain our rules, except those in tables that only another program may edit.

        Ask the kernel: nft would take 0.5 s of CPU time to list 20,000 rules.
        """
        comment, mask = os.fsencode(self._comment) + b"\0", b"bitwise\0"  # iptables-nft's rules hardly ever have both
        dumped = netlink.dump(nft_message(NFT_MSG.GETRULE, socket.AF_UNSPEC))
        found = ((payload[0], body(payload)) for payload in dumped if comment in payload and mask in payload)
        chains = {NftChain(family, _name(r[NFTA_RULE.TABLE]), _name(r[NFTA_RULE.CHAIN])) for family, r in found}
        return sorted(chain for chain in chains if chain.family in FAMILIES and chain[:2] not in owned)

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
            return [f"{setting}: only the program that owns this table can edit it; {OWNED_BY_FIREWALLD}"]
        if set(self._site.wireguard) & _UNWRITABLE:
            return [f"{setting}: our rules cannot be there, because nft cannot write the name {self._site.wireguard}"]
        return []

    def _missing(self) -> list[str]:
        if self._chain is None:
            return []
        return [
            f'forward_chain = "{self._chain}": nftables has no such chain; our rules are inserted when there is one'
        ]

    def _is_ours(self, rule: _Rule) -> bool:
        return self._is_marked(rule) and bool(_OURS.fullmatch(rule.text))

    def _is_marked(self, rule: _Rule) -> bool:
        return rule.text.endswith(f' comment "{self._comment}"')


def _is_any_instances(rule: Rule) -> bool:
    """Return whether igd has made the rule, for any interface."""
    ours = any(comment.startswith("igd ") for comment in rule.comments)
    return ours and rule.target == "accept" and any(condition.module == "connmark" for condition in rule.conditions)


def _places(chain: NftChain, found: Openings) -> Iterable[NftChain]:
    return dict.fromkeys(chain._replace(name=opening.chain) for opening in found.needed)


def _deletions(present: Sequence[_Present]) -> list[str]:
    return [f"delete rule {chain} handle {rule.handle}" for chain, rule in present]


def _table(chain: NftChain) -> Rules:
    return native_table(FAMILIES[chain.family][0], chain.table).rules


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
    if program is None or chain.table not in IPTABLES_TABLES:
        return False
    if chain.name not in _IPTABLES_CHAINS and _BASE_CHAIN.search(_list(chain)):
        return False
    return xtables.program(f"{program}-save") is None or xtables.saved(program, chain.table) is not None


def _name(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")
