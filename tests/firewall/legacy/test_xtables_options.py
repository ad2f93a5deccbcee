"""The walk through the option tables of iptables' extensions, in both layouts, without the real library."""

import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from igd.firewall.legacy import xtables_options

NAMES = (b"sport", b"dport", b"to")
MANDATORY = 1 << 1  # XTOPT_MAND


class Narrow(ctypes.Structure):
    """struct xt_option_entry before iptables 1.8.11, which is all that python-iptables knows."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        *((name, ctypes.c_uint) for name in ("type", "id", "excl", "also", "flags", "ptroff")),
        ("size", ctypes.c_size_t),
        ("min", ctypes.c_uint),
        ("max", ctypes.c_uint),
    )


class Wide(Narrow):
    """The same since iptables 1.8.11."""

    _fields_ = (("base", ctypes.c_uint),)


class Unknown(Narrow):
    """What a later version may have."""

    _fields_ = (("more", ctypes.c_uint * 8),)


class Match(ctypes.Structure):
    """What is of interest of struct xtables_match."""

    _fields_ = (("x6_options", ctypes.POINTER(Narrow)),)


def table(kind: type[Narrow]) -> Any:  # noqa: ANN401 - ctypes knows arrays by their length
    entries = [kind(name=name, id=number, flags=MANDATORY) for number, name in enumerate(NAMES)]
    if kind is Wide:
        entries[2].base = 16
    return (kind * (len(NAMES) + 1))(*entries)


class XTables:
    """As much of python-iptables' class as is mended; its methods end a table where the second entry seems missing."""

    options: Any = None

    def __init__(self, _family: int) -> None:
        self.match = ctypes.pointer(Match(ctypes.cast(self.options, ctypes.POINTER(Narrow))))

    def find_match(self, name: str) -> Any:  # noqa: ANN401 - python-iptables has no types
        """Return the match, whose options are the table."""
        assert name == "udp"
        return self.match

    def _option_lookup(self, entries: Iterator[Narrow], name: bytes) -> Narrow | None:
        for entry in entries:
            if not entry.name:
                break
            if entry.name == name:
                return entry
        return None

    def _options_fcheck(self, _name: bytes, flags: int, entries: Iterator[Narrow]) -> None:
        for entry in entries:
            if entry.name is None:
                break
            if entry.flags & MANDATORY and not flags & (1 << entry.id):
                raise ValueError(entry.name)


def library(options: Any) -> Any:  # noqa: ANN401 - likewise
    kind = type("XTables", (XTables,), {"options": options})
    return SimpleNamespace(NFPROTO_IPV4=2, xt_option_entry=Narrow, xtables=kind)


@pytest.mark.parametrize("kind", [Narrow, Wide])
def test_every_entry_is_found_where_it_lies(kind: type[Narrow]) -> None:
    """Not a copy: the extension that gets the entry reads `base` behind it."""
    options = table(kind)
    mended = library(options)
    xtables_options.fix_option_tables(mended)
    xtables = mended.xtables(2)
    pointer = xtables.match.contents.x6_options
    for number, name in enumerate(NAMES):
        entry = xtables._option_lookup(pointer, name)
        assert isinstance(entry, Narrow)
        assert ctypes.addressof(entry) == ctypes.addressof(options[number])
        ctypes.pointer(entry)
    assert xtables._option_lookup(pointer, b"from") is None


@pytest.mark.parametrize("kind", [Narrow, Wide])
@pytest.mark.parametrize("missing", range(len(NAMES)))
def test_every_entry_is_checked(kind: type[Narrow], missing: int) -> None:
    mended = library(table(kind))
    xtables_options.fix_option_tables(mended)
    xtables = mended.xtables(2)
    pointer = xtables.match.contents.x6_options
    xtables._options_fcheck(b"udp", 0b111, pointer)
    with pytest.raises(ValueError, match=NAMES[missing].decode()):
        xtables._options_fcheck(b"udp", 0b111 & ~(1 << missing), pointer)


def test_without_the_mending_the_second_entry_of_a_wide_table_is_not_found() -> None:
    unmended = library(table(Wide)).xtables(2)
    assert unmended._option_lookup(unmended.match.contents.x6_options, b"dport") is None


def test_an_unknown_layout_is_an_error_and_is_not_walked() -> None:
    with pytest.raises(ValueError, match="libxtables lays out the options of extensions in an unknown way"):
        xtables_options.fix_option_tables(library(table(Unknown)))
