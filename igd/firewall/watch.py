"""Which other programs change the firewall: nf_tables notifies of each commit, what it touched and who made it.

The notifications of a commit are messages about tables, chains, rules, sets and elements, each with its table's name,
and at the end one NEWGEN with the name of the program. Every message carries the address of the netlink socket that
caused it (linux/netfilter/nfnetlink.h).
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Collection
from typing import NamedTuple

from igd.firewall.netlink import NETLINK_NETFILTER, SOL_NETLINK, NetlinkError
from igd.firewall.nf_tables import NFT_MSG, NFTA_GEN_PROC_NAME, NFTA_TABLE
from igd.firewall.nfnetlink import body, decode
from igd.firewall.site import OURS

NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7
_ELEMENTS = {NFT_MSG.NEWSETELEM, NFT_MSG.DELSETELEM}

SO_ATTACH_FILTER = 26

UNKNOWN = "an unknown program"

_RECEIVE_SIZE = 65536


class ForeignChanges(NamedTuple):
    """What other programs changed: `ours` and `forward` name those whose commits touched our own and forward tables.

    `rules`: commits changed rules, chains or tables that are not igd's, and not only the contents of sets.
    """

    ours: list[str]
    forward: list[str]
    rules: bool


class Watch:
    """A socket that receives every commit in the network namespace of the thread that created it. Raises NetlinkError.

    Tables are named by family (NFPROTO_*) and name: `ours` are our own, `forward` the operator's tables with chains
    that accept mapped flows for us. Commits of the netlink sockets with the addresses `own` are ignored.
    """

    def __init__(
        self, ours: Collection[tuple[int, str]], forward: Collection[tuple[int, str]], own: Collection[int]
    ) -> None:
        self._ours = frozenset(ours)
        self._forward = frozenset(forward)
        self._touched: set[tuple[int, str]] = set()  # by the commit that is being read
        self._rules = False  # that commit changed more than elements, in a table that is not igd's
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
            )
            self._socket.bind((0, 0))
            self._drop_notifications_from(own)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError as error:
            raise NetlinkError(error.errno or 0, "cannot subscribe to changes of nftables") from error

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there are notifications."""
        return self._socket.fileno()

    def read(self) -> ForeignChanges:
        """Return what other programs changed since the last call.

        The author UNKNOWN stands for commits whose notifications were lost.
        """
        changes = ForeignChanges([], [], rules=False)
        while True:
            try:
                changes = self._add(self._socket.recv(_RECEIVE_SIZE), changes)
            except BlockingIOError:
                return changes
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NetlinkError(error.errno or 0, "cannot read changes of nftables") from error
                self._touched, self._rules = set(), False
                changes = ForeignChanges([*changes.ours, UNKNOWN], [*changes.forward, UNKNOWN], rules=True)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _drop_notifications_from(self, ports: Collection[int]) -> None:
        """Make the kernel drop the notifications that the netlink sockets with these addresses caused.

        The tens of thousands of notifications about our own mappings would leave no room in the buffer for others.
        """
        # Classic BPF (linux/filter.h: code, jumps, operand): load nlmsg_pid, jump to the last instruction, which drops
        # the message, if it is equal to one of them, else accept it. BPF loads in network order what the kernel wrote
        # in host order.
        swapped = (int.from_bytes(struct.pack("=I", port), "big") for port in ports)
        compared = [(0x15, len(ports) - index, 0, port) for index, port in enumerate(swapped)]
        program = ((0x20, 0, 0, 12), *compared, (0x06, 0, 0, 0xFFFF_FFFF), (0x06, 0, 0, 0))
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
        # struct sock_fprog: the number of instructions, and their address
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )

    def _add(self, data: bytes, changes: ForeignChanges) -> ForeignChanges:
        """Return `changes` with the commits that end in this datagram."""
        for notification in decode(data):
            kind, found = notification.kind & 0xFF, body(notification.payload)
            if kind == NFT_MSG.NEWGEN:
                author = [_name(found.get(NFTA_GEN_PROC_NAME, b""))]
                changes = ForeignChanges(
                    changes.ours + author * bool(self._touched & self._ours),
                    changes.forward + author * bool(self._touched & self._forward),
                    changes.rules or self._rules,
                )
                self._touched, self._rules = set(), False
            elif NFTA_TABLE.NAME in found:  # the same number in all other notifications
                table = _name(found[NFTA_TABLE.NAME])
                self._touched.add((notification.payload[0], table))
                self._rules |= kind not in _ELEMENTS and not table.startswith(OURS)
        return changes


def _name(text: bytes) -> str:
    return text.rstrip(b"\0").decode(errors="replace") or UNKNOWN
