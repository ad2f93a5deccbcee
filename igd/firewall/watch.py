"""Who else changes the firewall: nftables tells of each commit, what it touched and by whom.

A commit is told as a run of messages about tables, chains, rules, sets and elements, each with its table's name, and
ends in one (NEWGEN) with the author's program. Every message bears the address of the netlink socket that the author
used. Numbers: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Collection
from typing import NamedTuple

from igd.firewall.netlink import NETLINK_NETFILTER, SOL_NETLINK, NetlinkError
from igd.firewall.nf_tables import NFT_MSG, NFTA_GEN, NFTA_TABLE
from igd.firewall.nfnetlink import body, decode
from igd.firewall.site import OURS

NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7
ELEMENTS = {NFT_MSG.NEWSETELEM, NFT_MSG.DELSETELEM}

SO_ATTACH_FILTER = 26

UNKNOWN = "somebody"

_RECEIVE_SIZE = 65536


class Heard(NamedTuple):
    """What others did: the programs whose commits touched our own table, and those that touched the forward chains.

    `rules`: there were commits that changed rules, chains or tables of others', and not just what their sets hold.
    """

    ours: list[str]
    forward: list[str]
    rules: bool


class Watch:
    """A socket that hears every commit in the network namespace of the thread that made it. Raises NetlinkError.

    Tables are named by family (NFPROTO_*) and name: our own is `ours`, `forward` are those of the operator's in which
    flows are let in for us. What comes from the netlink socket `own` is not heard.
    """

    def __init__(self, ours: tuple[int, str], forward: Collection[tuple[int, str]], own: int) -> None:
        self._ours = ours
        self._forward = frozenset(forward)
        self._touched: set[tuple[int, str]] = set()  # by the commit whose messages are being read
        self._rules = False  # it changed more than elements of sets, and not in a table of an instance of ours
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
            )
            self._socket.bind((0, 0))
            self._turn_a_deaf_ear(own)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError as error:
            raise NetlinkError(error.errno or 0, "changes of nftables cannot be heard") from error

    def fileno(self) -> int:
        """The descriptor, which is readable when `heard` has something to read."""
        return self._socket.fileno()

    def heard(self) -> Heard:
        """Tell what others did since the last call; an author that is UNKNOWN: more happened than was heard."""
        heard = Heard([], [], rules=False)
        while True:
            try:
                heard = self._read(self._socket.recv(_RECEIVE_SIZE), heard)
            except BlockingIOError:
                return heard
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NetlinkError(error.errno or 0, "changes of nftables cannot be heard") from error
                self._touched, self._rules = set(), False
                heard = Heard([*heard.ours, UNKNOWN], [*heard.forward, UNKNOWN], rules=True)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _turn_a_deaf_ear(self, port: int) -> None:
        """Have the kernel drop what the netlink socket with this address caused.

        The tens of thousands of messages that tell of our own mappings would crowd out others'.
        """
        # Classic BPF (linux/filter.h: code, jumps, operand): load nlmsg_pid as bytes in their order; is it that one?
        written = int.from_bytes(struct.pack("=I", port), "big")
        program = ((0x20, 0, 0, 12), (0x15, 0, 1, written), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF_FFFF))
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
        # struct sock_fprog: their number, and where they are
        self._socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )

    def _read(self, data: bytes, heard: Heard) -> Heard:
        for answer in decode(data):
            kind, found = answer.kind & 0xFF, body(answer.payload)
            if kind == NFT_MSG.NEWGEN:
                author = [_name(found.get(NFTA_GEN.PROC_NAME, b""))]
                heard = Heard(
                    heard.ours + author * (self._ours in self._touched),
                    heard.forward + author * bool(self._touched & self._forward),
                    heard.rules or self._rules,
                )
                self._touched, self._rules = set(), False
            elif NFTA_TABLE.NAME in found:
                name = _name(found[NFTA_TABLE.NAME])
                self._touched.add((answer.payload[0], name))
                self._rules |= kind not in ELEMENTS and not name.startswith(OURS)
        return heard


def _name(text: bytes) -> str:
    return text.rstrip(b"\0").decode(errors="replace") or UNKNOWN
