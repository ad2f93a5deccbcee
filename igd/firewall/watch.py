"""Who else changes the firewall: nftables tells of each commit, what it touched and by whom.

A commit is told as a run of messages about tables, chains, rules, sets and elements, each with its table's name, and
ends in one (NEWGEN) with the author's program. Every message bears the address of the netlink socket that the author
used. Numbers: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

import errno
import socket
from collections.abc import Collection, Iterator

from igd.firewall.netlink import NETLINK_NETFILTER, SOL_NETLINK, Answer, NetlinkError, body, decode

NETLINK_ADD_MEMBERSHIP = 1
NFNLGRP_NFTABLES = 7
NEWGEN = 15
TABLE_NAME = 1  # of every kind of message but NEWGEN
PROCESS_NAME = 3  # of NEWGEN

UNKNOWN = "somebody"

_RECEIVE_SIZE = 65536


class Watch:
    """A socket that hears every commit in the network namespace of the thread that made it. Raises NetlinkError.

    It tells of `tables`, by family (NFPROTO_*) and name, and not of what came from the netlink socket `own`.
    """

    def __init__(self, tables: Collection[tuple[int, str]], own: int) -> None:
        self._tables = frozenset(tables)
        self._own = own
        self._touched = False  # by the commit whose messages are being read
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
            )
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError as error:
            raise NetlinkError(error.errno or 0, "changes of nftables cannot be heard") from error

    def fileno(self) -> int:
        """The descriptor, which is readable when `authors` has something to read."""
        return self._socket.fileno()

    def authors(self) -> list[str]:
        """The programs whose commits touched our tables since the last call; UNKNOWN: more happened than was heard."""
        found: list[str] = []
        while True:
            try:
                found += self._read(self._socket.recv(_RECEIVE_SIZE))
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NetlinkError(error.errno or 0, "changes of nftables cannot be heard") from error
                self._touched = False
                found.append(UNKNOWN)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _read(self, data: bytes) -> Iterator[str]:
        for answer in decode(data):
            if answer.kind & 0xFF == NEWGEN:
                if self._touched:
                    yield _name(body(answer.payload).get(PROCESS_NAME, b""))
                self._touched = False
            elif answer.port != self._own and self._concerns_us(answer):
                self._touched = True

    def _concerns_us(self, answer: Answer) -> bool:
        name = body(answer.payload).get(TABLE_NAME)
        return name is not None and (answer.payload[0], _name(name)) in self._tables


def _name(text: bytes) -> str:
    return text.rstrip(b"\0").decode(errors="replace") or UNKNOWN
