"""One `nat` table of iptables-legacy in memory, by python-iptables: read, changed, and written back as a whole.

libiptc writes the whole table that it has read. A change that another program made meanwhile is lost, unless it changed
the number of rules, which the kernel detects (EAGAIN). So a table is read, changed and written under the lock
(xtables_lock).

Parts of python-iptables are avoided. `Chain.append_rule`, its siblings and every `final_check` have matches and targets
print themselves to the process's standard output and parse that, which takes 0.1 ms each and damages some comments: the
rules are passed on as bytes. `Rule6.in_interface` writes a mask that compares one bit of each letter: interfaces are
written here. To distinguish a jump from an extension the library looks for the name in all tables, which creates them:
`library` marks the other tables as absent. Since iptables 1.8.9 all NAT targets are in one shared object, which
registers only those of the IP version that is used first: that is IPv4, and IPv6's targets are written here.
"""

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from igd.firewall.backend import FirewallError
from igd.firewall.legacy.chain import Edit, Extension, LegacyRule, OwnChain, Version
from igd.firewall.legacy.python_iptables import library
from igd.firewall.site import OURS

if TYPE_CHECKING:
    import iptc

_REDIRECT6 = struct.pack("=H29sBI32xHH", 72, b"REDIRECT", 0, 0, 0, 0)
"""IPv6's REDIRECT: struct xt_entry_target (size, name, revision), struct nf_nat_range (0: to the same port)."""

_INVERTED = {"iniface": 0x01, "outiface": 0x02}  # IPT_INV_VIA_IN, IPT_INV_VIA_OUT; IP6T_* are the same


@contextmanager
def translated() -> Iterator[None]:
    """Raise FirewallError for the exceptions of python-iptables."""
    iptc = library()
    try:
        yield
    except (iptc.IPTCError, iptc.XTablesError, ValueError) as error:
        raise FirewallError(f"iptables-legacy: {error}") from error


class NoTableError(FirewallError):
    """The kernel does not have the table, and cannot create it."""


class LegacyTable:
    """`nat` of IP version 4 or 6, in the network namespace of the calling thread; used within `translated` only.

    Nothing reaches the kernel before `write`. python-iptables works in one thread of a process only.
    """

    def __init__(self, version: Version) -> None:
        self._version = version
        self._table: iptc.Table | None = None

    def read(self) -> None:
        """Read the table from the kernel, which creates it if need be, and discard unwritten changes; NoTableError."""
        kind = library().Table if self._version == 4 else library().Table6
        if self._table is None:
            try:
                self._table = kind(kind.NAT, autocommit=False)
            except library().IPTCError as error:
                raise NoTableError(f"iptables-legacy: {error}") from error
        self._table.refresh()

    def write(self) -> None:
        """Write the table to the kernel, if anything was changed."""
        self._open.commit()

    def close(self) -> None:
        """Close the handle."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def put(self, chain: OwnChain) -> None:
        """Hold this chain, and exactly its jumps in its hook, whatever was there."""
        self._delete_jumps(chain.hook, chain.name)
        if self._open.is_chain(chain.name):
            self._open.flush_entries(chain.name)
        else:
            self._open.create_chain(chain.name)
        for rule in chain.rules:
            self._open.append_entry(chain.name, self._rule(rule).rule)
        place = self._place(chain)
        for jump in reversed(chain.jumps):
            self._open.insert_entry(chain.hook, self._rule(jump).rule, place)

    def take_out(self, hook: str, chain: str) -> bool:
        """Remove this chain and its jumps from the hook; False: it stays, empty, because other rules jump to it."""
        self._delete_jumps(hook, chain)
        if not self._open.is_chain(chain):
            return True
        self._open.flush_entries(chain)
        try:
            self._open.delete_chain(chain)
        except library().IPTCError:
            return False
        return True

    def edit(self, edit: Edit) -> None:
        """Carry out one edit; the chain must exist, and so must a rule that is deleted."""
        made = self._rule(edit.rule)
        entry = made.rule
        if not edit.adds:
            self._open.delete_entry(edit.chain, entry, made.mask)
        elif edit.position is None:
            self._open.append_entry(edit.chain, entry)
        else:
            self._open.insert_entry(edit.chain, entry, edit.position)

    def holds(self, chain: str) -> bool:
        """Return whether this chain exists and has a rule."""
        return bool(self._open.is_chain(chain)) and bool(self._open.first_rule(chain))

    @property
    def _open(self) -> "iptc.Table":
        assert self._table is not None, "read first"
        return self._table

    def _place(self, chain: OwnChain) -> int:
        """Return the index for the chain's jumps in the hook: first or last, sorted by name among other instances'.

        Two instances that both wanted the last place would displace each other for ever.
        """
        targets = [self._open.get_target(entry).decode(errors="replace") for entry in self._entries(chain.hook)]
        if chain.jumps_first:
            return len(list(takewhile(lambda name: name.startswith(OURS) and name < chain.name, targets)))
        behind = takewhile(lambda name: name.startswith(OURS) and name > chain.name, reversed(targets))
        return len(targets) - len(list(behind))

    def _entries(self, hook: str) -> Iterator[Any]:
        """Yield the hook's rules as libiptc has them, undecoded."""
        entry = self._open.first_rule(hook)
        while entry:
            yield entry
            entry = self._open.next_rule(entry)

    def _delete_jumps(self, hook: str, chain: str) -> None:
        """Delete every rule of `hook` that jumps to the chain, also those of other programs."""
        # Only these are decoded: each takes 0.2 ms, and the operator's may use extensions unknown to the library.
        table = self._open
        entries = [entry for entry in self._entries(hook) if table.get_target(entry) == chain.encode()]
        for rule in [table.create_rule(entry, library().Chain(table, hook)) for entry in entries]:
            table.delete_entry(hook, rule.rule, rule.mask)

    def _rule(self, rule: LegacyRule) -> "iptc.Rule":
        made = self._open.create_rule()
        if rule.protocol:
            made.protocol = rule.protocol.name.lower()
        if rule.source:
            made.src = str(rule.source)
        if rule.destination:
            made.dst = str(rule.destination)
        for field, interface in (("iniface", rule.incoming), ("outiface", rule.outgoing)):
            if interface:
                _set_interface(made.get_ip(), field, interface)
        for match in rule.matches:
            _set_options(made.create_match(match.name), match.options)
        self._set_target(made, rule.target)
        return made

    def _set_target(self, made: "iptc.Rule", target: Extension) -> None:
        if (self._version, target.name) == (6, "REDIRECT"):
            size = len(_REDIRECT6)
            made.target = SimpleNamespace(size=size, target=ctypes.create_string_buffer(_REDIRECT6, size))
            return
        _set_options(made.create_target(target.name), target.options)
        made.target._final_check()  # noqa: SLF001 - SNAT and MASQUERADE count their ranges in it, and no public method calls it without printing


def _set_interface(conditions: "iptc.ip4tc.ipt_ip", field: str, interface: str) -> None:
    name = interface.removeprefix("!").encode()
    setattr(conditions, field, name)
    setattr(conditions, f"{field}_mask", b"\xff" * (len(name) + 1))  # with the closing 0: not a prefix
    if interface.startswith("!"):
        conditions.invflags |= _INVERTED[field]


def _set_options(extension: "iptc.ip4tc.IPTCModule", options: tuple[tuple[str, str], ...]) -> None:
    for name, value in options:
        extension.set_parameter(name, value)
