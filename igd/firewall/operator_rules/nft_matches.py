"""Translates conditions of nftables' rules, as `nft -j` prints them, into iptables' options. Pure.

Only exact translations are made: a condition without one matches some packets, and is `nft match`. In nft's sets, any
of the elements may match: such values are lists, separated by spaces for iptables' own options, by commas for modules'.
"""

from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import NamedTuple

from igd.firewall.operator_rules.nft_text import spoken
from igd.firewall.operator_rules.saved_rules import Condition


class _Word(NamedTuple):
    """One of iptables' options, and how it writes what nft writes otherwise."""

    module: str
    option: str
    of: Callable[[object], str | None]  # one element in iptables' form; None: it has none

    def condition(self, elements: Iterable[object], *, negated: bool) -> Condition | None:
        values = [self.of(element) for element in elements]
        if not values or None in values:
            return None
        return Condition(self.module, self.option, ("," if self.module else " ").join(filter(None, values)), negated)


def narrow(statement: object, *, negated: bool = False) -> Condition:
    """Return a condition that matches some packets, or all but some."""
    return Condition("nft", "match", spoken(statement), negated)


def unknown(statement: object) -> Condition:
    """Return a condition of which nothing is known."""
    return Condition("nft", "unknown", spoken(statement), negated=False)


def conditions(left: object, op: str, right: object) -> list[Condition]:
    """Return all conditions, with those that `left` implies: `tcp dport != 80` never holds for UDP."""
    return [*_implied(left), *_asked(left, op, right)]


def _asked(left: object, op: str, right: object) -> list[Condition]:
    if op == "==" and isinstance(left, dict) and "concat" in left:
        return _each_part(left["concat"], right)
    if _selector(left) in _KINDS:
        return [unknown({"match": {"op": op, "left": left, "right": right}})]
    exact = _masked(left, op, right) or _plain(left, op, right)
    return [exact or narrow({"match": {"op": op, "left": left, "right": right}}, negated=op in ("!=", "!"))]


def _each_part(parts: list[object], right: object) -> list[Condition]:
    """Return that each part is in one of the elements at its place; that it is the same element remains open."""
    rows = [_unwrapped(element) for element in _elements(right)]
    columns = [row["concat"] for row in rows if isinstance(row, dict) and "concat" in row]
    if not rows or len(columns) != len(rows) or any(len(column) != len(parts) for column in columns):
        return [narrow({"concat": parts})]
    asked = [
        condition
        for part, column in zip(parts, zip(*columns, strict=True), strict=True)
        for condition in _asked(part, "==", {"set": list(column)})
    ]
    return asked if len(rows) == 1 else [*asked, narrow({"concat": parts})]


def _masked(left: object, op: str, right: object) -> Condition | None:
    match left, op, right:
        case {"&": [{"ct": {"key": "mark"}}, int(mask)]}, "==" | "!=", int(mark):
            return Condition("connmark", "--mark", f"{mark:#x}/{mask:#x}", op == "!=")
        case {"ct": {"key": "mark"}}, "==" | "!=", {"prefix": {"addr": int(mark), "len": int(length)}}:  # nft 1.0.6
            return Condition("connmark", "--mark", f"{mark:#x}/{(1 << 32) - (1 << 32 - length):#x}", op == "!=")
        case {"ct": {"key": "mark"}}, "==" | "!=", int(mark):
            return Condition("connmark", "--mark", f"{mark:#x}", op == "!=")
        case {"&": [{"ct": {"key": "status"}} as status, str(flag)]}, "==", str(other) if flag == other:
            return _plain(status, "in", flag)
        case {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, mask]}, "==" | "!=", flags:
            asked, wanted = _tcp_flags(mask), _tcp_flags(flags)
            return Condition("tcp", "--tcp-flags", f"{asked} {wanted}", op == "!=") if asked and wanted else None
    return None


def _tcp_flags(flags: object) -> str:
    """Return flags as iptables writes them; empty if it cannot."""
    match flags:
        case 0:
            return "NONE"
        case str():
            return flags.upper()
        case [*several] | {"|": [*several]}:
            return ",".join(map(_tcp_flags, several))
    return ""


# ct state and ct status are bits: "in" asks for any of them, "!" for none; a packet has one state and may have many
# statuses, so that "==" is exact for the first and of no use for the second.
_OPERATORS = {
    "ct status": {"in": False, "!": True},
    "ct state": {"==": False, "!=": True, "in": False, "!": True},
}
_COMPARISONS: dict[str, Callable[[int], tuple[int, int]]] = {
    "<": lambda port: (0, port - 1),
    "<=": lambda port: (0, port),
    ">": lambda port: (port + 1, 65535),
    ">=": lambda port: (port, 65535),
}


def _plain(left: object, op: str, right: object) -> Condition | None:
    name = _selector(left)
    word = _WORDS.get(name)
    if word is None:
        return None
    if op in _COMPARISONS and word.of is _port and isinstance(right, int):
        op, right = "==", {"range": list(_COMPARISONS[op](right))}
    negated = _OPERATORS.get(name, {"==": False, "!=": True}).get(op)
    if negated is None:
        return None
    bits = right if op in ("in", "!") and isinstance(right, list) else None
    return word.condition(bits or _elements(right), negated=negated)


def _elements(right: object) -> list[object]:
    """Return the elements of an anonymous set; those of a named one are not listed."""
    match right:
        case {"set": [*elements]}:
            return [_unwrapped(element) for element in elements]
        case str() if right.startswith("@"):
            return []
        case _:
            return [right]


def _unwrapped(element: object) -> object:
    match element:
        case {"elem": {"val": value}}:  # an element with a comment, a timeout or a counter
            return value
        case _:
            return element


def _selector(left: object) -> str:
    match left:
        case {"meta": {"key": str(key)}}:
            return f"meta {key}"
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return f"{protocol} {field}"
        case {"ct": {"key": str(key), **options}} if not options:
            return f"ct {key}"
        case {"fib": {"result": "type", "flags": "daddr" | ["daddr"]}}:
            return "fib type"
    return ""


def _implied(left: object) -> list[Condition]:
    match left:
        case {"payload": {"protocol": str(protocol)}} if protocol in _HEADERS:
            return _HEADERS[protocol]
        case {"exthdr": {"name": str(name)}}:
            return [Condition("", "-m", name, negated=False)]
        case {"concat": [*parts]} | {"&": [*parts]}:
            return [condition for part in parts for condition in _implied(part)]
    return []


def _is_protocol(name: str) -> Condition:
    return Condition("", "-p", name, negated=False)


# A header that is not there is not equal to anything, and not unequal either: the rule does not match.
_HEADERS = {
    "ip": [Condition("nft", "nfproto", "4", negated=False)],
    "ip6": [Condition("nft", "nfproto", "6", negated=False)],
    "icmp": [_is_protocol("icmp")],
    "icmpv6": [_is_protocol("ipv6-icmp")],
    **{name: [_is_protocol(name)] for name in ("tcp", "udp", "sctp", "dccp", "udplite", "esp", "ah", "igmp")},
}


def _interface(element: object) -> str | None:
    # "*" alone stands for what no other element names; the others would be prefixes in iptables, and are none in nft
    if not isinstance(element, str) or element == "*" or element.endswith(("+", "\\*")):
        return None
    return element[:-1] + "+" if element.endswith("*") else element


def _protocol(element: object) -> str | None:
    # iptables takes 0, and its name "ip", for all protocols; nftables does not
    return str(element) if isinstance(element, str | int) and element not in ("*", 0, "ip", "all") else None


def _version(element: object) -> str | None:
    return {"ipv4": "4", "ip": "4", "ipv6": "6", "ip6": "6"}.get(str(element))


def _network(element: object) -> str | None:
    try:
        match element:
            case str():
                return str(ip_network(element))
            case {"prefix": {"addr": str(address), "len": int(length)}}:
                return str(ip_network(f"{address}/{length}"))
            case {"range": [str(first), str(last)]}:
                ends = ip_address(first), ip_address(last)
                return " ".join(map(str, summarize_address_range(*ends)))
    except (ValueError, TypeError):
        pass
    return None


def _port(element: object) -> str | None:
    match element:
        case int():
            return str(element)
        case {"range": [int(low), int(high)]}:
            return f"{low}:{high}"
    return None


def _capitals(element: object) -> str | None:
    return element.upper() if isinstance(element, str) and element != "*" else None


_KINDS = {
    *("meta iifkind", "meta oifkind", "meta iifgroup", "meta oifgroup", "meta iiftype", "meta oiftype"),
    "ct direction",
}
"""What every mapped flow may have, or none: kinds and groups of interfaces, the direction of a packet in its flow."""

_WORDS = {
    **dict.fromkeys(("meta iifname", "meta iif"), _Word("", "-i", _interface)),
    **dict.fromkeys(("meta oifname", "meta oif"), _Word("", "-o", _interface)),
    **dict.fromkeys(("meta l4proto", "ip protocol", "ip6 nexthdr"), _Word("", "-p", _protocol)),
    **dict.fromkeys(("ip saddr", "ip6 saddr"), _Word("", "-s", _network)),
    **dict.fromkeys(("ip daddr", "ip6 daddr"), _Word("", "-d", _network)),
    **dict.fromkeys(("tcp dport", "udp dport", "th dport"), _Word("multiport", "--dports", _port)),
    **dict.fromkeys(("meta nfproto", "meta protocol"), _Word("nft", "nfproto", _version)),
    "ct state": _Word("conntrack", "--ctstate", _capitals),
    "ct status": _Word("conntrack", "--ctstatus", _capitals),
    "fib type": _Word("addrtype", "--dst-type", _capitals),
}
