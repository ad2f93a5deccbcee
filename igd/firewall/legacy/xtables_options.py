"""The option tables of iptables' extensions, as python-iptables has to walk them.

iptables 1.8.11 gave struct xt_option_entry (xtables.h) a last field, `unsigned int base`; the library kept its name,
libxtables.so.12. python-iptables 1.2.0 knows the structure without it: it takes the end of the first entry for the name
of a second one, reads NULL, and sees the end of the table ("no such parameter dport"). Tables are walked here instead.
"""

import ctypes
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import iptc.xtables

_POINTER = ctypes.sizeof(ctypes.c_void_p)

Entries = Any
"""A ctypes pointer to struct xt_option_entry."""


def fix_option_tables(library: "iptc.xtables") -> None:
    """Make python-iptables (its module `xtables`) walk option tables as the installed libxtables lays them out."""
    kind, old_entry = library.xtables, library.xt_option_entry
    udp = kind(library.NFPROTO_IPV4).find_match("udp")  # its table has several entries, none with a base
    second = ctypes.addressof(udp.contents.x6_options.contents) + ctypes.sizeof(old_entry)
    if ctypes.c_void_p.from_address(second).value is not None:  # a name: entries are as python-iptables knows them
        return

    def entries(table: Entries) -> Iterator[Any]:
        # In place, not copies: the extensions read `base`, which follows the fields of `old_entry`.
        address = ctypes.addressof(table.contents)
        while (entry := old_entry.from_address(address)).name:
            yield entry
            address += ctypes.sizeof(old_entry) + _POINTER  # `base` and the padding after it

    lookup: Callable[..., Any] = kind._option_lookup
    check: Callable[..., None] = kind._options_fcheck
    kind._option_lookup = lambda self, table, name: lookup(self, entries(table), name)
    kind._options_fcheck = lambda self, name, flags, table: check(self, name, flags, entries(table))
