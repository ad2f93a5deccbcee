"""Detects changes of iptables-legacy's tables by others: the kernel announces none, so the tables are compared.

The number of rules and the size of a table (IPT_SO_GET_INFO, 5 microseconds) show most changes, but not a replaced
rule, nor a restored older rule set with the same number of rules. So the rules are compared too (IPT_SO_GET_ENTRIES,
1.6 microseconds a rule), without their counters.

Structures: linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h. Reading a table creates it, so only
tables that are listed in /proc are read.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from igd.firewall.backend import FirewallError
from igd.firewall.legacy.chain import Version
from igd.firewall.operator_rules.xtables import legacy_tables

GET_INFO, GET_ENTRIES = 64, 65  # IPT_SO_*, and IP6T_SO_* too

_INFO = struct.Struct("@32s13I")  # struct ipt_getinfo: name, hooks, their entries and underflows, number, size
_ENTRIES = struct.Struct("@32sI0Q")  # struct ipt_get_entries: name, size; the rules follow, aligned to 64 bits
_NEXT = struct.Struct("@H")
_COUNTERS = bytes(16)

_libc = ctypes.CDLL(None, use_errno=True)


class _Layout(NamedTuple):
    """Offsets in a rule: struct ipt_entry, struct ip6t_entry.

    Its fields: struct ipt_ip or ip6t_ip6, nfcache, the offsets of the target and of the next rule, comefrom, counters.
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
    """Compares tables, given by IP version and name, in the network namespace of the calling thread.

    Raises FirewallError where they cannot be read.
    """

    def __init__(self, tables: Collection[tuple[Version, str]]) -> None:
        self._tables = sorted(tables)
        self._foreign: set[str] = set()  # tables in which `own_change` found a foreign change
        self._last = self._snapshot()

    def changed(self) -> set[str]:
        """Return the names of the tables that another program changed, created or removed since the last call."""
        now = self._snapshot()
        changed = self._foreign | self._different(now)
        self._last, self._foreign = now, set()
        return changed

    @contextmanager
    def own_change(self) -> Iterator[None]:
        """Do not report changes inside as foreign; none are where the caller holds the lock (xtables_lock)."""
        self._foreign |= self._different(self._snapshot())
        try:
            yield
        finally:
            self._last = self._snapshot()

    def _different(self, now: dict[tuple[Version, str], bytes]) -> set[str]:
        return {table[1] for table in now.keys() | self._last.keys() if now.get(table) != self._last.get(table)}

    def _snapshot(self) -> dict[tuple[Version, str], bytes]:
        """Return the rules of each table, in the kernel's form and without their counters."""
        listed = {version: legacy_tables(version) for version in _LAYOUTS}
        present = ((version, name) for version, name in self._tables if name in listed[version])
        return {(version, name): rules_in_kernel(version, name) for version, name in present}


def rules_in_kernel(version: Version, table: str) -> bytes:
    """Return the rules of a table that exists, without their counters; FirewallError."""
    layout = _LAYOUTS[version]
    try:
        with socket.socket(layout.family, socket.SOCK_DGRAM) as sock:
            return _without_counters(layout, _entries(sock, layout, table.encode()))
    except OSError as error:
        raise FirewallError(f"table {table} of IPv{version} cannot be read: {error.strerror}") from error


def _entries(sock: socket.socket, layout: _Layout, table: bytes) -> bytearray:
    """Read the size and then the rules, again if the size has changed in between; OSError."""
    while True:
        info = _get(sock, layout.level, GET_INFO, bytearray(_INFO.pack(table, *bytes(13))))
        size = _INFO.unpack(info)[-1]
        request = bytearray(_ENTRIES.pack(table, size)) + bytes(size)
        try:
            return _get(sock, layout.level, GET_ENTRIES, request)[_ENTRIES.size :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise


def _get(sock: socket.socket, level: int, option: int, buffer: bytearray) -> bytearray:
    """Call getsockopt, which writes over its input in `buffer`; socket.getsockopt passes no input. OSError."""
    size = ctypes.c_uint32(len(buffer))
    start = ctypes.c_char.from_buffer(buffer)
    if _libc.getsockopt(sock.fileno(), level, option, ctypes.byref(start), ctypes.byref(size)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer


def _without_counters(layout: _Layout, rules: bytearray) -> bytes:
    start = 0
    while start < len(rules):
        counters = start + layout.counters
        rules[counters : counters + len(_COUNTERS)] = _COUNTERS
        start += _NEXT.unpack_from(rules, start + layout.next)[0]
    return bytes(rules)
