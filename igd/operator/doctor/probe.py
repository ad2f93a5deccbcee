"""Sends the packets of flows on the kernel's own way between two interfaces, and reports how far each got.

Each packet is consumed before it leaves the server. Nothing is left when a probe ends. If its process is killed, the
kernel removes all of it but entries of connection tracking, which end after at most two minutes.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

from igd.core.mapping import Endpoint, TransportProtocol
from igd.firewall import conntrack
from igd.firewall.netlink import Netlink
from igd.firewall.probing.flow import ProbeFlow
from igd.firewall.probing.passage import Passage, Reached, passage
from igd.firewall.probing.table import probe_table, table_name
from igd.firewall.probing.trace import Trace
from igd.firewall.site import Site
from igd.host.arrivals import Arrivals
from igd.wire import ip_packet
from igd.wire.ip_packet import TcpFlags

_AT_ONCE = 4
"""How many flows have rules at a time: each packet of the host is compared with all of them."""

_SEQUENCE = 1 << 20  # of both ends


class Sent(NamedTuple):
    """A packet of a flow, which arrived on one interface and should leave by another, and how far it got.

    `leaves_by` is "" if it is for the server itself. `goal` is how far it should get.
    """

    flow: ProbeFlow
    what: str
    arrived_on: str
    leaves_by: str
    goal: Reached
    passage: Passage

    @property
    def passed(self) -> bool:
        """Whether it got where it should."""
        return self.passage.reached is self.goal

    @property
    def way(self) -> str:
        """The interfaces of its way, in words."""
        return f"from {self.arrived_on}" + (f" to {self.leaves_by}" if self.leaves_by else "")


def probe(site: Site, flows: Sequence[ProbeFlow]) -> list[Sent]:
    """Send the packets of these flows one after another, and return how far they got.

    After a lost one, no more are sent of its flow, and of a flow that is masqueraded into the tunnel only the first.
    Those of mapped flows switch connection tracking on for their IP version, for as long as this takes.
    May block for half a second for each flow. OSError or FirewallError if this host or its kernel does not allow it.
    """
    if not flows:
        return []
    outside = [site.external] if any(flow.led_to for flow in flows) else []
    sent: list[Sent] = []
    with ExitStack() as stack:
        trace = stack.enter_context(closing(Trace()))
        arrivals = {name: stack.enter_context(Arrivals(name)) for name in {site.wireguard, *outside}}
        stack.callback(_forget, flows)
        for first in range(0, len(flows), _AT_ONCE):
            some = flows[first : first + _AT_ONCE]
            with probe_table(site, some):
                sent += [each for flow in some for each in _send(site, flow, trace, arrivals)]
    return sent


def _send(site: Site, flow: ProbeFlow, trace: Trace, arrivals: dict[str, Arrivals]) -> Iterator[Sent]:
    ours = table_name(site.wireguard)
    for what, packet, comes in _packets(flow):
        arrived_on, leaves_by, goal = site.wireguard, site.external, Reached.INTERNET
        if flow.led_to is None:
            leaves_by, goal = "", Reached.RECEIVED
        elif comes:
            arrived_on, leaves_by, goal = site.external, site.wireguard, Reached.TUNNEL
        steps = trace.follow(partial(arrivals[arrived_on].send, packet), ours)
        sent = Sent(flow, what, arrived_on, leaves_by, goal, passage(steps, ours))
        yield sent
        if not sent.passed or not _answers_are_for_sender(flow):
            return


def _answers_are_for_sender(flow: ProbeFlow) -> bool:
    """Return whether the flow's source is not translated: answers to it have an address that is not the probe's."""
    return conntrack.answered_to(flow.protocol, flow.sender, flow.sent_to) == flow.sender


def _packets(flow: ProbeFlow) -> Iterator[tuple[str, bytes, bool]]:
    """Yield the packets of a flow: what each is, its bytes, and whether it comes from the sender.

    The third one of TCP is a reset: connection tracking keeps a connection that began for five days.
    """
    sender, sent_to, led_to = flow.sender, flow.sent_to, flow.led_to
    if flow.protocol is TransportProtocol.UDP:
        come = ip_packet.udp(sender, sent_to)
        packets = [come] if led_to is None else [come, ip_packet.udp(led_to, sender), come]
    else:
        packets = _segments(sender, sent_to, led_to)
    names = _TO_SERVER if led_to is None else _MAPPED
    yield from ((name, packet, comes) for (name, comes), packet in zip(names, packets, strict=True))


def _segments(sender: Endpoint, sent_to: Endpoint, led_to: Endpoint | None) -> list[bytes]:
    first = ip_packet.tcp(sender, sent_to, TcpFlags.SYN, _SEQUENCE, 0)
    if led_to is None:
        return [first]
    answer = ip_packet.tcp(led_to, sender, TcpFlags.SYN | TcpFlags.ACK, _SEQUENCE, _SEQUENCE + 1)
    return [first, answer, ip_packet.tcp(sender, sent_to, TcpFlags.RST | TcpFlags.ACK, _SEQUENCE + 1, _SEQUENCE + 1)]


# The names of igd.firewall.operator_rules.packet, and whether the packet comes from the sender.
_MAPPED = (
    ("the first packet of a mapped flow", True),
    ("an answer in a mapped flow", False),
    ("a later packet of a mapped flow", True),
)
_TO_SERVER = (("a request of a peer", True),)


def _forget(flows: Sequence[ProbeFlow]) -> None:
    """End the flows in connection tracking; FirewallError."""
    with closing(Netlink()) as netlink:
        for error in netlink.request([conntrack.deletion(flow.protocol, flow.sender, flow.sent_to) for flow in flows]):
            if error.errno != errno.ENOENT:
                raise error
