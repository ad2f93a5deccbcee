"""The way of a traced packet through nftables, as the kernel reports it: each rule that it matches, and each policy.

Rules of iptables-nft are reported too, those of iptables-legacy are not.
"""

import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from igd.firewall.netlink import NETLINK_NETFILTER, SOL_NETLINK, NetlinkError
from igd.firewall.nf_tables import NFT_MSG, NFT_TRACETYPE_POLICY, NFT_VERDICTS, NFTA_TRACE, NFTA_VERDICT
from igd.firewall.nfnetlink import attributes, body, decode
from igd.firewall.watch import NETLINK_ADD_MEMBERSHIP

NFNLGRP_NFTRACE = 9  # linux/netfilter/nfnetlink.h

SILENT_SECONDS = 0.3
"""How long nothing is heard of a packet that has been lost without a report; on its way it is heard of at once."""

_VERDICT_MASK = 0xFF  # the rest is the number of a queue, or an errno
_ENDS = {NFT_VERDICTS.NF_DROP, NFT_VERDICTS.NF_STOLEN, NFT_VERDICTS.NF_QUEUE}


class Step(NamedTuple):
    """A rule that a packet matched, by nft's number (`handle`), or a chain's policy (0), and what became of the packet.

    `family` is an NFPROTO_*. `ends`: the packet went no further.
    """

    family: int
    table: str
    chain: str
    handle: int
    ends: bool


class Trace:
    """Receives the steps of traced packets in the network namespace of the thread that creates it; NetlinkError."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTRACE)
        except OSError as error:
            raise NetlinkError(error.errno or 0, "packets cannot be traced") from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def follow(self, send: Callable[[], None], begins_in: str) -> list[Step]:
        """Call `send` and return the steps of the packet that it sends, from the table with the name `begins_in` on.

        They end with one that `ends`, or the packet got lost behind them.
        """
        steps: list[Step] = []
        ours: bytes | None = None
        send()
        for number, step in self._steps():
            if ours is None and step.table == begins_in:
                ours = number
            if number == ours:
                steps.append(step)
                if step.ends:
                    break
        return steps

    def _steps(self) -> Iterator[tuple[bytes, Step]]:
        """Yield the steps with the numbers of their packets, until there has been none for SILENT_SECONDS."""
        deadline = time.monotonic() + SILENT_SECONDS
        while (rest := deadline - time.monotonic()) > 0:
            self._socket.settimeout(rest)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return
            except OSError as error:
                raise NetlinkError(error.errno or 0, "steps of a packet were lost") from error
            for message in decode(data):
                if message.kind & 0xFF == NFT_MSG.TRACE:
                    deadline = time.monotonic() + SILENT_SECONDS
                    yield _step(message.payload)


def _step(payload: bytes) -> tuple[bytes, Step]:
    found = body(payload)
    handle = int.from_bytes(found.get(NFTA_TRACE.RULE_HANDLE, b""), "big")
    if int.from_bytes(found[NFTA_TRACE.TYPE], "big") == NFT_TRACETYPE_POLICY:
        handle, verdict = 0, found.get(NFTA_TRACE.POLICY, b"\1")
    else:
        verdict = attributes(found.get(NFTA_TRACE.VERDICT, b"")).get(NFTA_VERDICT.CODE, b"\1")
    code = int.from_bytes(verdict, "big", signed=True)
    ends = code >= 0 and code & _VERDICT_MASK in _ENDS
    return found[NFTA_TRACE.ID], Step(
        payload[0], _text(found, NFTA_TRACE.TABLE), _text(found, NFTA_TRACE.CHAIN), handle, ends
    )


def _text(found: dict[int, bytes], kind: NFTA_TRACE) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")
