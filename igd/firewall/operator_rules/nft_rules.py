"""Decodes nftables' rules, as `nft -j -t list table` prints them, into those of iptables-save. Pure.

Targets keep nft's names (accept, drop, dnat): they are keywords, so that no chain is named like one. A rule with
several verdicts (a vmap) becomes several rules; an unknown statement may drop, and what follows it may not be reached.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from igd.firewall.operator_rules.nft_matches import conditions, narrow, unknown
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
    """Decode the table of this name; ValueError, KeyError or TypeError if the JSON is no table."""
    table = Table(name)
    for thing in json.loads(listed)["nftables"]:
        if "chain" in thing:
            _add_chain(table, thing["chain"])
        elif "rule" in thing:
            table.rules.chains.setdefault(thing["rule"]["chain"], []).extend(_rules(thing["rule"], name))
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


def _rules(rule: dict[str, Json], table: str) -> Iterator[Rule]:
    """Yield a rule for each verdict; all have the text and the handle of the whole."""
    # What is no list of statements may do anything.
    statements = rule["expr"] if isinstance(rule.get("expr"), list) else [rule.get("expr")]
    text = f"{table} {rule['chain']}: {' '.join(map(spoken, statements))}"
    asked = [Condition("comment", "--comment", rule["comment"], negated=False)] if "comment" in rule else []
    for statement in statements:
        more, verdicts = _meaning(statement)
        for verdict in verdicts:
            conditions = (*asked, *verdict.conditions)
            yield Rule(text, rule["chain"], conditions, verdict.target, verdict.goto, rule.get("handle", 0))
        asked += more


def _meaning(statement: Json) -> _Meaning:
    if not isinstance(statement, dict) or len(statement) != 1:
        return _unknown(statement)
    ((name, body),) = statement.items()
    return _STATEMENTS.get(name, _verdict)(name, body)


def _unknown(statement: Json) -> _Meaning:
    return [unknown(statement)], [_Verdict(f"unknown: {spoken(statement)}")]


def _match(_name: str, body: Json) -> _Meaning:
    return conditions(body["left"], body["op"], body["right"]), []


def _some(name: str, body: Json) -> _Meaning:
    return [narrow({name: body})], []


def _add_element(name: str, body: Json) -> _Meaning:
    """A set that is full ends the rule; one with a limit for each element is a limit."""
    return [(narrow if isinstance(body, dict) and body.get("stmt") else unknown)({name: body})], []


def _goes_on(_name: str, _body: Json) -> _Meaning:
    return [], []


def _mangle(_name: str, body: Json) -> _Meaning:
    # It might take away the mark that a later rule accepts by.
    return [], [_Verdict("ct mark set")] if body["key"] == {"ct": {"key": "mark"}} else []


def _verdict(name: str, body: Json) -> _Meaning:
    """Decode a verdict; any other statement may be one that drops, or a condition."""
    if name in ("jump", "goto"):
        return [], [_Verdict(body["target"], name == "goto")]
    return [] if name in _VERDICTS else [unknown({name: body})], [_Verdict(name)]


def _reject(name: str, body: Json) -> _Meaning:
    """Decode a reject: nft leaves out the protocol for which the answer is."""
    answer = str(body.get("type")) if isinstance(body, dict) else ""
    return [], [_Verdict(name, conditions=_ANSWERS.get(answer, ()))]


_ANSWERS: dict[str, tuple[Condition, ...]] = {
    "icmp": (Condition("nft", "nfproto", "4", negated=False),),
    "icmpv6": (Condition("nft", "nfproto", "6", negated=False),),
    "tcp reset": (Condition("", "-p", "tcp", negated=False),),
}

_VERDICTS = {"accept", "drop", "continue", "return", "queue"}


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
    """Decode a translation; of addresses and ports that are looked up in a map, only the map's keys are translated."""
    values = body.values() if isinstance(body, dict) else ()
    maps = [value["map"] for value in values if isinstance(value, dict) and "map" in value]
    asked = [condition for each in maps for condition in _looked_up(each["key"], each["data"])]
    return [], [_Verdict(name, conditions=tuple(asked))]


def _looked_up(key: Json, data: Json) -> list[Condition]:
    if not isinstance(data, dict):
        return [narrow(key)]
    return conditions(key, "==", {"set": [element for element, _value in data["set"]]})


_STATEMENTS: dict[str, Callable[[str, Json], _Meaning]] = {
    "match": _match,
    "vmap": _vmap,
    "mangle": _mangle,
    "reject": _reject,
    **dict.fromkeys(("dnat", "redirect"), _nat),
    **dict.fromkeys(("limit", "quota", "ct count", "meter"), _some),
    **dict.fromkeys(("set", "map"), _add_element),
    **dict.fromkeys(("counter", "log", "comment", "last", "notrack", "flow", "dup", "secmark"), _goes_on),
    **dict.fromkeys(("ct helper", "ct timeout", "ct expectation"), _goes_on),
}
