"""Reads the rule sets that packets pass in this network namespace, but igd's: iptables' of both kinds, and nft's.

Reading creates no tables. The elements of nft's sets are not read.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

from igd.firewall.backend import FirewallError
from igd.firewall.nfnetlink import NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
from igd.firewall.operator_rules import nft_rules, saved_rules, xtables
from igd.firewall.operator_rules.packet import Version
from igd.firewall.operator_rules.saved_rules import Rules
from igd.firewall.site import OURS

Place = Literal["early", "prerouting", "input", "forward", "postrouting"]


class _Chains(NamedTuple):
    """Where chains are: their hook and type, and the tables in which iptables has such chains."""

    hook: str
    type: str
    tables: tuple[str, ...]


_PLACES: dict[Place, _Chains] = {
    "early": _Chains("prerouting", "filter", ("raw", "mangle")),
    "prerouting": _Chains("prerouting", "nat", ("nat",)),
    "input": _Chains("input", "filter", ("filter",)),
    "forward": _Chains("forward", "filter", ("filter",)),
    "postrouting": _Chains("postrouting", "nat", ("nat",)),
}

FAMILIES: dict[int, tuple[str, tuple[Version, ...]]] = {
    NFPROTO_INET: ("inet", (4, 6)),
    NFPROTO_IPV4: ("ip", (4,)),
    NFPROTO_IPV6: ("ip6", (6,)),
}
"""nft's name of each family, and the IP versions of the packets that pass its chains."""

_PROGRAMS: dict[Version, str] = {4: "iptables", 6: "ip6tables"}

IPTABLES_TABLES = {"filter", "nat", "mangle", "raw", "security"}
_NOT_ALL = "contains incompatible base-chains"  # iptables-nft-save then prints its own chains, and not nft's


class Chain(NamedTuple):
    """A base chain and its table: `table` is iptables' name of it ("filter"), or nft's with the family before it.

    `program` edits it: iptables-nft, ip6tables-legacy, nft. `versions` are those of the packets that pass it.
    """

    program: str
    table: str
    name: str
    versions: tuple[Version, ...]
    rules: Rules


class Chains(NamedTuple):
    """What was found, and one sentence about each rule set that could not be read."""

    found: list[Chain]
    unread: list[str]


def chains(place: Place) -> Chains:
    """Read the base chains of this place; FirewallError.

    "prerouting" and "postrouting" are those that translate addresses, "early" those that filter before them.
    """
    result = Chains([], [])
    for read in _sources(_PLACES[place]):
        try:
            result.found.extend(read())
        except FirewallError as error:
            result.unread.append(str(error))
    return result


def native_table(family: str, name: str) -> nft_rules.Table:
    """Read a table of nftables, without the elements of its sets, which may be many; FirewallError."""
    listed = xtables.run("nft", "-j", "-t", "list", "table", family, name)
    try:
        return nft_rules.parse(listed, f"{family} {name}")
    except (ValueError, KeyError, TypeError) as error:
        raise FirewallError(f"nft prints table {family} {name} in an unknown form: {error!r}") from error


def _sources(place: _Chains) -> Iterator[Callable[[], list[Chain]]]:
    for family, name in xtables.nft_tables() or ():
        if family in FAMILIES and not name.startswith(OURS):
            yield partial(_nft, place, family, name)
    for version, program in _PROGRAMS.items():
        for table in place.tables:
            if table in xtables.legacy_tables(version):
                yield partial(_legacy, place, version, f"{program}-legacy", table)


def _nft(place: _Chains, family: int, name: str) -> list[Chain]:
    if family != NFPROTO_INET and name in IPTABLES_TABLES:
        if name not in place.tables:
            return []
        version: Version = 4 if family == NFPROTO_IPV4 else 6
        program = f"{_PROGRAMS[version]}-nft"
        saved = xtables.saved(program, name) if xtables.program(f"{program}-save") else None
        if saved is not None and _NOT_ALL not in saved:
            return [_built_in(place, version, program, name, saved)]
    return _native(place, *FAMILIES[family], name)


def _legacy(place: _Chains, version: Version, program: str, table: str) -> list[Chain]:
    return [_built_in(place, version, program, table, xtables.run(f"{program}-save", "-t", table))]


def _built_in(place: _Chains, version: Version, program: str, table: str, saved: str) -> Chain:
    return Chain(program, table, place.hook.upper(), (version,), saved_rules.parse(saved, table))


def _native(place: _Chains, family: str, versions: tuple[Version, ...], name: str) -> list[Chain]:
    table = native_table(family, name)
    return [
        Chain("nft", table.name, base.name, versions, table.rules)
        for base in sorted(table.base_chains, key=lambda base: base.priority)
        if (base.hook, base.type) == (place.hook, place.type)
    ]
