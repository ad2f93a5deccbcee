"""Rules that were made with nft, as `nft -j -t list table` prints them, in the words of iptables-save. Pure.

Targets keep nft's names (accept, drop, dnat): they are keywords, so that no chain is named like one. A rule with
several verdicts (a vmap) becomes several rules; a statement that nobody here has heard of is a target that may drop.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from igd.firewall.operator_rules.nft_matches import conditions, unknown
from igd.firewall.operator_rules.nft_text import spoken
from igd.firewall.operator_rules.saved_rules import Condition, Rule, Rules

Json = Any
"""What `nft -j` prints: objects, arrays, strings and numbers."""


class BaseChain(NamedTuple):
    """A chain that the kernel hands packets to."""

    name: str
    type: str
    hook: str
    priority: int


@dataclass(frozen=True, slots=True)
class Table:
    """One table of nftables; `name` with the family before it, as in "inet filter"."""

    name: str
    rules: Rules = field(default_factory=Rules)
    base_chains: list[BaseChain] = field(default_factory=list)


def parse(listed: str, name: str) -> Table:
    """Read the table of this name out of the JSON; ValueError where it is none."""
    table = Table(name)
    for thing in json.loads(listed)["nftables"]:
        if "chain" in thing:
            _add_chain(table, thing["chain"])
        elif "rule" in thing:
            rule = thing["rule"]
            chain = rule["chain"]
            # What makes no sense as a list of statements may do anything.
            statements = rule["expr"] if isinstance(rule.get("expr"), list) else [rule.get("expr")]
            table.rules.chains.setdefault(chain, []).extend(_rules(statements, name, chain))
    return table


def _add_chain(table: Table, chain: dict[str, Json]) -> None:
    name = chain["name"]
    table.rules.chains.setdefault(name, [])
    if "hook" not in chain:
        table.rules.policies[name] = "-"
        return
    table.rules.policies[name] = chain.get("policy", "accept").upper()
    table.base_chains.append(BaseChain(name, chain["type"], chain["hook"], chain["prio"]))


class _Verdict(NamedTuple):
    """Where a packet goes for which `conditions` hold besides those of the rule so far."""

    target: str
    goto: bool = False
    conditions: tuple[Condition, ...] = ()


_Meaning = tuple[list[Condition], list[_Verdict]]
"""What a statement asks of the packets that reach those behind it, and where it may send packets by itself."""


def _rules(statements: list[Json], table: str, chain: str) -> Iterator[Rule]:
    """Give the rules that come to the same; they all bear the text of the whole."""
    text = f"{table} {chain}: {' '.join(map(spoken, statements))}"
    asked: list[Condition] = []
    for statement in statements:
        more, verdicts = _meaning(statement)
        asked += more
        for verdict in verdicts:
            yield Rule(text, chain, (*asked, *verdict.conditions), verdict.target, verdict.goto)


def _meaning(statement: Json) -> _Meaning:
    if not isinstance(statement, dict) or len(statement) != 1:
        return [], [_Verdict(f"unknown: {spoken(statement)}")]
    ((name, body),) = statement.items()
    return _STATEMENTS.get(name, _verdict)(name, body)


def _match(_name: str, body: Json) -> _Meaning:
    return conditions(body["left"], body["op"], body["right"]), []


def _may_hold(name: str, body: Json) -> _Meaning:
    return [unknown({name: body})], []


def _goes_on(_name: str, _body: Json) -> _Meaning:
    return [], []


def _mangle(_name: str, body: Json) -> _Meaning:
    # It might take away the mark that a later rule accepts by.
    return [], [_Verdict("ct mark set")] if body["key"] == {"ct": {"key": "mark"}} else []


def _verdict(name: str, body: Json) -> _Meaning:
    """A verdict, or a statement that nobody here has heard of, which may be one that drops."""
    target = body["target"] if name in ("jump", "goto") else name
    return [], [_Verdict(target, name == "goto")]


def _vmap(_name: str, body: Json) -> _Meaning:
    data = body["data"]
    if not isinstance(data, dict):  # a named map: it may hold any verdict
        return [], [_Verdict(f"vmap {data}")]
    return [], [
        verdict._replace(conditions=tuple(conditions(body["key"], "==", {"set": [element]})))
        for element, said in data["set"]
        for verdict in _meaning(said)[1]
    ]


def _nat(name: str, body: Json) -> _Meaning:
    """Address and port may be looked up in maps: what they do not hold is not translated."""
    values = body.values() if isinstance(body, dict) else ()
    maps = [value["map"] for value in values if isinstance(value, dict) and "map" in value]
    asked = [condition for each in maps for condition in _looked_up(each["key"], each["data"])]
    return [], [_Verdict(name, conditions=tuple(asked))]


def _looked_up(key: Json, data: Json) -> list[Condition]:
    if not isinstance(data, dict):
        return [unknown(key)]
    return conditions(key, "==", {"set": [element for element, _value in data["set"]]})


_STATEMENTS: dict[str, Callable[[str, Json], _Meaning]] = {
    "match": _match,
    "vmap": _vmap,
    "mangle": _mangle,
    **dict.fromkeys(("dnat", "redirect"), _nat),
    # The last two: a set that is full ends the rule.
    **dict.fromkeys(("limit", "quota", "ct count", "set", "map"), _may_hold),
    **dict.fromkeys(("counter", "log", "comment", "last", "notrack", "flow", "dup", "secmark"), _goes_on),
    **dict.fromkeys(("ct helper", "ct timeout", "ct expectation"), _goes_on),
}
