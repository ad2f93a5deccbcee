"""Whether somebody else has changed iptables-legacy's tables: they tell nobody, so they are looked at.

The number of rules and the size of a table (IPT_SO_GET_INFO) tell of most changes in 5 microseconds, but not of a rule
that another took the place of, nor of an older save of as many rules: so the rules are compared as well
(IPT_SO_GET_ENTRIES), all but their counters, which grow by themselves. 1.6 microseconds per rule.

Structures: linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h. A table that is asked about is created,
so only those are that have a name in /proc.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from igd.firewall.backend import FirewallError
from igd.firewall.legacy.chain import Version
from igd.firewall.operator_rules.xtables import legacy_tables

GET_INFO, GET_ENTRIES = 64, 65  # IPT_SO_*, and IP6T_SO_* too

Snapshot = dict[tuple[Version, str], bytes]
"""By IP version and table: all its rules as the kernel has them, but for their counters."""

_INFO = struct.Struct("@32s13I")  # struct ipt_getinfo: name, hooks, their entries and underflows, number, size
_ENTRIES = struct.Struct("@32sI0Q")  # struct ipt_get_entries: name, size, and then the rules, aligned as 64 bits are
_NEXT = struct.Struct("@H")
_COUNTERS = bytes(16)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where in a rule is what: struct ipt_entry, struct ip6t_entry.

    First struct ipt_ip or ip6t_ip6, then nfcache, the offsets of the target and of the next rule, comefrom, counters.
    """

    family: int
    level: int
    next: int
    counters: int


_LAYOUTS: dict[Version, _Layout] = {
    4: _Layout(socket.AF_INET, socket.IPPROTO_IP, struct.calcsize("@84sIH"), struct.calcsize("@84sIHHI0Q")),
    6: _Layout(socket.AF_INET6, socket.IPPROTO_IPV6, struct.calcsize("@136sIH"), struct.calcsize("@136sIHHI0Q")),
}


class LegacyWatch:
    """Looks at tables, by IP version and name, in the network namespace of the calling thread.

    Raises FirewallError where they cannot be read.
    """

    def __init__(self, tables: Collection[tuple[Version, str]]) -> None:
        self._tables = sorted(tables)
        self._touched = False  # by somebody else, as `own_change` saw
        self._seen = self._look()

    def changed(self) -> bool:
        """Tell whether somebody else changed, made or took away a table since this was last asked."""
        now = self._look()
        changed = self._touched or now != self._seen
        self._seen, self._touched = now, False
        return changed

    @contextmanager
    def own_change(self) -> Iterator[None]:
        """Take what happens inside for our own doing: nobody else's, for whoever holds the lock (xtables_lock)."""
        self._touched |= self._look() != self._seen
        try:
            yield
        finally:
            self._seen = self._look()

    def _look(self) -> Snapshot:
        there = {version: legacy_tables(version) for version in _LAYOUTS}
        present = ((version, name) for version, name in self._tables if name in there[version])
        return {(version, name): rules_in_kernel(version, name) for version, name in present}


def rules_in_kernel(version: Version, table: str) -> bytes:
    """Read a table that is there."""
    layout = _LAYOUTS[version]
    try:
        with socket.socket(layout.family, socket.SOCK_DGRAM) as asked:
            return _without_counters(layout, _entries(asked, layout, table.encode()))
    except OSError as error:
        raise FirewallError(f"table {table} of IPv{version} cannot be read: {error.strerror}") from error


def _entries(asked: socket.socket, layout: _Layout, table: bytes) -> bytearray:
    """Ask for the size and then for so much; again where somebody has changed the size meanwhile. OSError."""
    while True:
        info = _get(asked, layout.level, GET_INFO, bytearray(_INFO.pack(table, *bytes(13))))
        size = _INFO.unpack(info)[-1]
        question = bytearray(_ENTRIES.pack(table, size)) + bytes(size)
        try:
            return _get(asked, layout.level, GET_ENTRIES, question)[_ENTRIES.size :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise


def _get(asked: socket.socket, level: int, option: int, question: bytearray) -> bytearray:
    """Have getsockopt write its answer over the question, which socket.getsockopt cannot hand over; OSError."""
    size = ctypes.c_uint32(len(question))
    start = ctypes.c_char.from_buffer(question)
    if _libc.getsockopt(asked.fileno(), level, option, ctypes.byref(start), ctypes.byref(size)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return question


def _without_counters(layout: _Layout, rules: bytearray) -> bytes:
    start = 0
    while start < len(rules):
        counters = start + layout.counters
        rules[counters : counters + len(_COUNTERS)] = _COUNTERS
        start += _NEXT.unpack_from(rules, start + layout.next)[0]
    return bytes(rules)
