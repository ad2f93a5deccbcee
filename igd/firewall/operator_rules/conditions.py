"""Whether a rule matches the packets of a class. Pure."""

import enum
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import ip_network

from igd.firewall.operator_rules.packet import Packet, Ranges, ranges_of
from igd.firewall.operator_rules.saved_rules import Condition

ALL_PORTS = range(65536)


class Truth(enum.IntEnum):
    """Whether a rule matches the packets of a class. The lowest of its conditions decides, so the order matters."""

    NO = 0  # none of them
    NARROW = 1  # some: a source, a port, a rate
    UNKNOWN = 2  # an unknown part of them
    YES = 3  # all of them

    def negated(self) -> "Truth":
        """Return what "!" makes of it: "all but a few" may be most packets, and counts as unknown."""
        return _NEGATED[self]


_NEGATED = {
    Truth.NO: Truth.YES,
    Truth.NARROW: Truth.UNKNOWN,
    Truth.UNKNOWN: Truth.UNKNOWN,
    Truth.YES: Truth.NO,
}


def matches(conditions: Iterable[Condition], packet: Packet) -> Truth:
    """Return whether all conditions hold for the packets of this class; no conditions hold for all."""
    truth = Truth.YES
    for condition in conditions:
        truth = min(truth, _holds(condition, packet))
        if truth is Truth.NO:
            break
    return truth


def is_for_single_hosts(conditions: Iterable[Condition]) -> bool:
    """Return whether the source or the destination must be one of a list of single addresses, not of a network."""
    addresses = (each for each in conditions if (each.module, each.option) in {("", "-s"), ("", "-d")})
    return any(not each.negated and _are_single(each.value) for each in addresses)


@lru_cache(maxsize=65536)
def _are_single(value: str) -> bool:
    return all(ip_network(each, strict=False).num_addresses == 1 for each in value.split(" "))


def _holds(condition: Condition, packet: Packet) -> Truth:
    judge = _JUDGES.get((condition.module, condition.option))
    if judge is None:
        truth = Truth.NARROW if condition.module in _KNOWN else Truth.UNKNOWN
    else:
        try:
            truth = judge(packet, condition.value)
        except ValueError:  # an address mask with holes, a service by its name
            truth = Truth.NARROW
    return truth.negated() if condition.negated else truth


def port_ranges(value: str) -> list[range]:
    """Decode the ports of --dport or of multiport's --dports; ValueError."""
    return [_port_range(part) for part in value.split(",")]


def _port_range(part: str) -> range:
    low, colon, high = part.partition(":")
    return range(int(low or 0), (int(high or 65535) if colon else int(low)) + 1)


def _interface(packet: Packet, actual: str, value: str) -> Truth:
    wanted = value.split(" ")
    if actual or "+" in wanted:
        return _known(any(_is_named(actual, each) for each in wanted))
    return _known(fact=False) if packet.other_interfaces.issuperset(wanted) else Truth.NARROW


def _is_named(actual: str, wanted: str) -> bool:
    return actual.startswith(wanted[:-1]) if wanted.endswith("+") else actual == wanted


def _known(fact: bool) -> Truth:  # noqa: FBT001 - it converts a bool, and takes nothing else
    return Truth.YES if fact else Truth.NO


_PROTOCOLS = {"tcp": {"tcp", "6", "all", "0", "ip"}, "udp": {"udp", "17", "all", "0", "ip"}}


def _protocol(packet: Packet, value: str) -> Truth:
    return _known(not _PROTOCOLS[packet.protocol].isdisjoint(value.lower().split(" ")))


@lru_cache(maxsize=65536)
def _wanted(value: str) -> Ranges:
    return ranges_of(value.split(" "))


@lru_cache(maxsize=65536)
def _address(possible: Ranges, value: str) -> Truth:
    wanted = _wanted(value)
    if not any(low <= last and first <= high for low, high in possible for first, last in wanted):
        return Truth.NO
    covered = all(any(first <= low and high <= last for first, last in wanted) for low, high in possible)
    return Truth.YES if covered else Truth.NARROW


def _dport(packet: Packet, value: str) -> Truth:
    ranges = sorted(port_ranges(value), key=lambda ports: ports.start)
    if packet.dport:
        return _known(any(packet.dport in ports for ports in ranges))
    covered = 1
    for ports in ranges:
        if ports.start <= covered:
            covered = max(covered, ports.stop)
    return Truth.YES if covered == ALL_PORTS.stop else Truth.NARROW


def _tcp_flags(packet: Packet, value: str) -> Truth:
    """A first packet has SYN alone of the flags that say what a packet is for; others have many combinations."""
    asked, wanted = (set(part.split(",")) for part in value.split(" "))
    if "NEW" not in packet.states or not asked <= _FLAGS:
        return Truth.NARROW
    return _known(wanted - {"NONE"} == asked & {"SYN"})


_FLAGS = {"FIN", "SYN", "RST", "ACK"}


def _ctstate(packet: Packet, value: str) -> Truth:
    listed = set(value.split(","))
    if listed & packet.states:
        return Truth.YES
    return Truth.NARROW if "SNAT" in listed else Truth.NO  # the operator may translate the source as well


def _state(packet: Packet, value: str) -> Truth:
    return _known(not (packet.states - {"DNAT"}).isdisjoint(value.split(",")))


def _ctstatus(packet: Packet, value: str) -> Truth:
    listed = set(value.split(","))
    if listed & packet.states:
        return Truth.YES
    return Truth.NO if listed == {"DNAT"} else Truth.NARROW


def _connmark(packet: Packet, value: str) -> Truth:
    wanted, _slash, mask = value.partition("/")
    if int(mask or "0xffffffff", 0) != packet.mark:
        return Truth.NARROW  # bits of the operator's
    return _known(int(wanted, 0) == packet.mark)


def _destination_type(packet: Packet, value: str) -> Truth:
    return _known(packet.destination_type in value.split(","))


def _module(_packet: Packet, value: str) -> Truth:
    if value in _EXTENSIONS:
        return Truth.NO
    return Truth.YES if value in _KNOWN else Truth.UNKNOWN


def _always(_packet: Packet, _value: str) -> Truth:
    return Truth.YES


def _nobody_knows(_packet: Packet, _value: str) -> Truth:
    return Truth.UNKNOWN


# Extension headers of IPv6: whatever is asked of one, the rule does not match packets without it.
_EXTENSIONS = {"rt", "frag"}

# Modules that match nothing by themselves ("-m tcp"), and whose options without a judge below match some packets only.
_KNOWN = {
    "",
    *("tcp", "udp", "multiport", "conntrack", "state", "connmark", "comment", "addrtype", "mark", "iprange", "mac"),
    *(
        "set",
        "connlimit",
        "hashlimit",
        "limit",
        "recent",
        "owner",
        "string",
        "time",
        "length",
        "ttl",
        "hl",
        "statistic",
    ),
    *("quota", "connbytes", "connlabel", "dscp", "tos", "ecn", "u32", "cpu", "cluster", "helper", "pkttype", "realm"),
    *("physdev", "rpfilter", "socket", "tcpmss", "osf", "nft"),
}

# Where a value is a list: spaces separate the elements for iptables' own options (as native rules use them), commas
# for modules'.
_JUDGES: dict[tuple[str, str], Callable[[Packet, str], Truth]] = {
    ("", "-i"): lambda packet, value: _interface(packet, packet.in_interface, value),
    ("", "-o"): lambda packet, value: _interface(packet, packet.out_interface, value),
    ("", "-p"): _protocol,
    ("", "-s"): lambda packet, value: _address(packet.sources, value),
    ("", "-d"): lambda packet, value: _address(packet.destinations, value),
    ("", "-m"): _module,
    ("comment", "--comment"): _always,
    ("tcp", "--dport"): _dport,
    ("tcp", "--tcp-flags"): _tcp_flags,
    ("udp", "--dport"): _dport,
    ("multiport", "--dports"): _dport,
    ("conntrack", "--ctstate"): _ctstate,
    ("conntrack", "--ctstatus"): _ctstatus,
    ("conntrack", "--ctdir"): _nobody_knows,
    ("state", "--state"): _state,
    ("connmark", "--mark"): _connmark,
    ("addrtype", "--dst-type"): _destination_type,
    ("recent", "--set"): _always,
    **{("recent", option): _always for option in ("--name", "--mask", "--rsource", "--rdest")},
    ("nft", "nfproto"): lambda packet, value: _known(packet.version == int(value)),
    ("nft", "unknown"): _nobody_knows,
}
