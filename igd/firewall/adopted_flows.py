"""Marks the flows that another program redirected, so that they pass as flows of the mappings that igd takes over.

A flow keeps its translation when the rule that made it is deleted. What it lacks is igd's bit of the connection mark:
by it FORWARD accepts flows of mappings, and by it igd's next start finds those that no mapping admits.
"""

import errno
import socket
from collections import defaultdict
from collections.abc import Collection

from igd.core.mapping import PortMapping
from igd.firewall.conntrack import (
    CTA_MARK,
    CTA_MARK_MASK,
    CTA_TUPLE_ORIG,
    CTA_ZONE,
    IPCTNL_MSG_CT_GET,
    Flow,
    parse,
)
from igd.firewall.netlink import Netlink
from igd.firewall.nfnetlink import NFNL_SUBSYS_CTNETLINK, Message, attribute, body, nested, u32
from igd.firewall.open_pinholes import admits

IPCTNL_MSG_CT_NEW = 0


def mark(mappings: Collection[PortMapping], bit: int) -> int:
    """Set this bit in the marks of all flows that these mappings admit; return how many there are. FirewallError."""
    remotes = defaultdict(list)
    for one in mappings:
        remotes[int(one.protocol), one.external_port, one.internal].append(one.remotes)

    def is_mapped(flow: Flow | None) -> bool:
        if flow is None:
            return False
        protocol, to, source = flow.translation
        admitted = remotes.get((protocol, to.port, source), ())
        return to != source and any(admits(each, flow.source) for each in admitted)

    netlink = Netlink()
    try:
        dumped = netlink.dump(_message(IPCTNL_MSG_CT_GET))
        updates = [_update(payload, bit) for payload in dumped if is_mapped(parse(payload))]
        refusals = [netlink.request([update]) for update in updates]
        for error in (each for errors in refusals for each in errors):
            if error.errno != errno.ENOENT:  # the flow ended in between
                raise error
        return len(updates)
    finally:
        netlink.close()


def _update(payload: bytes, bit: int) -> Message:
    """Return the message that sets the bit of exactly the entry of a conntrack message."""
    found = body(payload)
    zone = attribute(CTA_ZONE, found[CTA_ZONE]) if CTA_ZONE in found else b""
    values = u32(CTA_MARK, bit) + u32(CTA_MARK_MASK, bit)
    return _message(IPCTNL_MSG_CT_NEW, nested(CTA_TUPLE_ORIG, found[CTA_TUPLE_ORIG]) + zone + values)


def _message(kind: int, payload: bytes = b"") -> Message:
    return Message(NFNL_SUBSYS_CTNETLINK << 8 | kind, socket.AF_INET, payload)
