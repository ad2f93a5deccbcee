"""Does a rule match a packet? Pure. What is not understood "may match"."""

import enum
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from igd.firewall.operator_rules.packet import Networks, Packet
from igd.firewall.operator_rules.saved_rules import Condition

ALL_PORTS = range(65536)


class Truth(enum.IntEnum):
    """Whether a rule matches; the least certain of its conditions decides, so that the order matters."""

    NO = 0
    MAYBE = 1
    YES = 2

    def negated(self) -> "Truth":
        """Turn yes into no; what may match may also not match."""
        return Truth(2 - self)


def matches(conditions: Iterable[Condition], packet: Packet) -> Truth:
    """Say whether all conditions hold for the packet; none always do."""
    return min((_holds(condition, packet) for condition in conditions), default=Truth.YES)


def _holds(condition: Condition, packet: Packet) -> Truth:
    judge = _JUDGES.get((condition.module, condition.option))
    if judge is None:
        return Truth.MAYBE
    try:
        truth = judge(packet, condition.value)
    except ValueError:  # an address mask with holes, a number in a form of its own
        return Truth.MAYBE
    return truth.negated() if condition.negated else truth


def port_ranges(value: str) -> list[range]:
    """Read the ports that --dport or multiport's --dports lists; ValueError."""
    return [_port_range(part) for part in value.split(",")]


def _port_range(part: str) -> range:
    low, colon, high = part.partition(":")
    return range(int(low or 0), (int(high or 65535) if colon else int(low)) + 1)


def _interface(actual: str, value: str) -> Truth:
    return _known(any(_is_named(actual, wanted) for wanted in value.split(" "))) if actual else Truth.MAYBE


def _is_named(actual: str, wanted: str) -> bool:
    return actual.startswith(wanted[:-1]) if wanted.endswith("+") else actual == wanted


def _known(fact: bool) -> Truth:  # noqa: FBT001 - it converts a bool, and takes nothing else
    return Truth.YES if fact else Truth.NO


_PROTOCOLS = {"tcp": {"tcp", "6", "all", "0", "ip"}, "udp": {"udp", "17", "all", "0", "ip"}}


def _protocol(packet: Packet, value: str) -> Truth:
    return _known(not _PROTOCOLS[packet.protocol].isdisjoint(value.lower().split(" ")))


def _address(possible: Networks, value: str) -> Truth:
    wanted = [ip_network(part, strict=False) for part in value.split(" ")]
    if not possible:
        return Truth.MAYBE
    if not any(network.overlaps(other) for network in possible for other in wanted):
        return Truth.NO
    return Truth.YES if all(any(_lies_in(each, other) for other in wanted) for each in possible) else Truth.MAYBE


def _lies_in(network: IPv4Network | IPv6Network, wanted: IPv4Network | IPv6Network) -> bool:
    return network.version == wanted.version and network.subnet_of(wanted)  # type: ignore[arg-type]


def _dport(packet: Packet, value: str) -> Truth:
    ranges = port_ranges(value)
    if packet.dport:
        return _known(any(packet.dport in ports for ports in ranges))
    return Truth.YES if any(ports.start <= 1 and ports.stop == ALL_PORTS.stop for ports in ranges) else Truth.MAYBE


def _ctstate(packet: Packet, value: str) -> Truth:
    listed = set(value.split(","))
    if listed & packet.states:
        return Truth.YES
    return Truth.MAYBE if "SNAT" in listed else Truth.NO  # the operator may translate the source as well


def _state(packet: Packet, value: str) -> Truth:
    return _known(not (packet.states - {"DNAT"}).isdisjoint(value.split(",")))


def _ctstatus(packet: Packet, value: str) -> Truth:
    listed = set(value.split(","))
    if listed & packet.states:
        return Truth.YES
    return Truth.NO if listed == {"DNAT"} else Truth.MAYBE


def _connmark(packet: Packet, value: str) -> Truth:
    wanted, _slash, mask = value.partition("/")
    if int(mask or "0xffffffff", 0) != packet.mark:
        return Truth.MAYBE  # it asks for bits of the operator's
    return _known(int(wanted, 0) == packet.mark)


def _destination_type(packet: Packet, value: str) -> Truth:
    return _known(packet.destination_type in value.split(","))


def _module(_packet: Packet, value: str) -> Truth:
    if value in _EXTENSIONS:
        return Truth.NO
    return Truth.YES if value in _MODULES else Truth.MAYBE


# Extension headers of IPv6: whatever is asked of one, the rule is not for packets without.
_EXTENSIONS = {"rt", "frag"}

# "-m tcp" alone asks nothing that -p has not asked, and the others here ask nothing without their options.
_MODULES = {"tcp", "udp", "multiport", "conntrack", "state", "connmark", "comment", "addrtype"}

# Where a value is a list: iptables' own options (as native rules use them) part it by spaces, modules by commas.
_JUDGES: dict[tuple[str, str], Callable[[Packet, str], Truth]] = {
    ("", "-i"): lambda packet, value: _interface(packet.in_interface, value),
    ("", "-o"): lambda packet, value: _interface(packet.out_interface, value),
    ("", "-p"): _protocol,
    ("", "-s"): lambda packet, value: _address(packet.source, value),
    ("", "-d"): lambda packet, value: _address(packet.destination, value),
    ("", "-m"): _module,
    ("comment", "--comment"): lambda _packet, _value: Truth.YES,
    ("tcp", "--dport"): _dport,
    ("udp", "--dport"): _dport,
    ("multiport", "--dports"): _dport,
    ("conntrack", "--ctstate"): _ctstate,
    ("conntrack", "--ctstatus"): _ctstatus,
    ("state", "--state"): _state,
    ("connmark", "--mark"): _connmark,
    ("addrtype", "--dst-type"): _destination_type,
    ("nft", "nfproto"): lambda packet, value: _known(packet.version == int(value)),
}
