"""The option tables of iptables' extensions, as python-iptables has to walk them.

iptables 1.8.11 gave struct xt_option_entry (xtables.h) a last field, `unsigned int base`; the library kept its name,
libxtables.so.12. python-iptables 1.2.0 knows the structure without it: it takes the end of the first entry for the name
of a second one, reads NULL, and sees the end of the table ("no such parameter dport"). Tables are walked here instead.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import iptc.xtables

_POINTER = ctypes.sizeof(ctypes.c_void_p)
_UDP_OPTIONS = {b"sport", b"source-port", b"dport", b"destination-port"}

Entries = Any
"""A ctypes pointer to struct xt_option_entry."""


def fix_option_tables(library: "iptc.xtables") -> None:
    """Make python-iptables (its module `xtables`) walk option tables as the installed libxtables lays them out.

    Raise ValueError if that is unknown: walked in a wrong way, a table ends the process with a segmentation fault.
    """
    kind, old_entry = library.xtables, library.xt_option_entry
    udp = kind(library.NFPROTO_IPV4).find_match("udp")  # its table has several entries, none with a base
    old, new = ctypes.sizeof(old_entry), ctypes.sizeof(old_entry) + _POINTER  # `base` and the padding after it
    first = ctypes.addressof(udp.contents.x6_options.contents)
    step = next((size for size in (old, new) if _name_at(first + size) in _UDP_OPTIONS), None)
    if step is None:
        raise ValueError("the installed libxtables lays out the options of extensions in an unknown way")
    if step == old:
        return

    def entries(table: Entries) -> Iterator[Any]:
        # In place, not copies: the extensions read `base`, which follows the fields of `old_entry`.
        address = ctypes.addressof(table.contents)
        while (entry := old_entry.from_address(address)).name:
            yield entry
            address += new

    lookup: Callable[..., Any] = kind._option_lookup
    check: Callable[..., None] = kind._options_fcheck
    kind._option_lookup = lambda self, table, name: lookup(self, entries(table), name)
    kind._options_fcheck = lambda self, name, flags, table: check(self, name, flags, entries(table))


def _name_at(address: int) -> bytes:
    """Return the string that the pointer at `address` leads to; empty if it leads nowhere."""
    target = ctypes.c_void_p.from_address(address).value
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:  # which, unlike a pointer, may be read anywhere
        try:
            return os.pread(memory.fileno(), 32, target or 0).split(b"\0")[0]
        except (OSError, OverflowError):
            return b""
