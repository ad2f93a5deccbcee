"""One `nat` table of iptables-legacy in memory, by python-iptables: read, changed, and written back as a whole.

libiptc writes all that it has read. Whoever wrote in between is undone, unless the number of rules changed, which the
kernel notices (EAGAIN): so read, change and write under the lock (xtables_lock).

python-iptables as it is used here: `Chain.append_rule` and its kin, and all that is called `final_check`, have matches
and targets print themselves through the process's own standard output, and parse that again, for 0.1 ms each and
trouble with comments; so the table is handed the bytes. `Rule6.in_interface` writes a mask that compares one bit of
each letter, so interfaces are written here. To tell a jump from an extension it looks for the name in all tables, and
so creates them; so it is told that there are no others. Since iptables 1.8.9 the targets of NAT are one library, which
registers those of the IP version that is served first and no others, in IPv6 none, as IPv4's DNAT must be there: so
IPv6's are written here.
"""

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from types import SimpleNamespace
from typing import TYPE_CHECKING

from igd.firewall.backend import FirewallError
from igd.firewall.legacy.chain import Edit, Extension, LegacyRule, OwnChain, Version
from igd.firewall.legacy.python_iptables import library
from igd.firewall.site import OURS

if TYPE_CHECKING:
    import iptc

_RAW_TARGETS: dict[tuple[Version, str], bytes] = {
    (6, "REDIRECT"): struct.pack("=H29sBI32xHH", 72, b"REDIRECT", 0, 0, 0, 0),
}
"""By IP version and name: struct xt_entry_target (size, name, revision), struct nf_nat_range (0: to the same port)."""

_INVERTED = {"iniface": 0x01, "outiface": 0x02}  # IPT_INV_VIA_IN, IPT_INV_VIA_OUT; IP6T_* are the same


@contextmanager
def translated() -> Iterator[None]:
    """Raise FirewallError for what python-iptables complains of."""
    iptc = library()
    try:
        yield
    except (iptc.IPTCError, iptc.XTablesError, ValueError) as error:
        raise FirewallError(f"iptables-legacy: {error}") from error


class NoTableError(FirewallError):
    """The kernel does not have the table, and cannot create it."""


class LegacyTable:
    """`nat` of IP version 4 or 6, in the network namespace of the calling thread; within `translated` alone.

    Nothing is in the kernel before `write`. python-iptables works in one thread of a process alone.
    """

    def __init__(self, version: Version) -> None:
        self._version = version
        self._table: iptc.Table | None = None

    def read(self) -> None:
        """Take the table as the kernel has it, without what was changed and not written; it is created if need be.

        NoTableError.
        """
        kind = library().Table if self._version == 4 else library().Table6
        if self._table is None:
            try:
                self._table = kind(kind.NAT, autocommit=False)
            except library().IPTCError as error:
                raise NoTableError(f"iptables-legacy: {error}") from error
        self._table.refresh()

    def write(self) -> None:
        """Give the whole back to the kernel, if anything was changed."""
        self._open.commit()

    def close(self) -> None:
        """Give back the handle."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def put(self, chain: OwnChain) -> None:
        """Have this chain and these jumps to it in its hook, whatever was there."""
        self._delete_jumps(chain.hook, chain.name)
        if self._open.is_chain(chain.name):
            self._open.flush_entries(chain.name)
        else:
            self._open.create_chain(chain.name)
        for rule in chain.rules:
            self._open.append_entry(chain.name, self._made(rule).rule)
        place = self._place(chain)
        for jump in reversed(chain.jumps):
            self._open.insert_entry(chain.hook, self._made(jump).rule, place)

    def take_out(self, hook: str, chain: str) -> bool:
        """Have neither this chain nor jumps to it from its hook; False: it stays, empty, because others lead to it."""
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
        """Carry out one edit; the chain must be there, and the rule that goes."""
        made = self._made(edit.rule)
        entry = made.rule
        if not edit.comes:
            self._open.delete_entry(edit.chain, entry, made.mask)
        elif edit.position is None:
            self._open.append_entry(edit.chain, entry)
        else:
            self._open.insert_entry(edit.chain, entry, edit.position)

    def holds(self, chain: str) -> bool:
        """Say whether this chain is there and has a rule."""
        return bool(self._open.is_chain(chain)) and bool(self._open.first_rule(chain))

    @property
    def _open(self) -> "iptc.Table":
        assert self._table is not None, "read first"
        return self._table

    def _place(self, chain: OwnChain) -> int:
        """Give the index for jumps from the hook: first or last, but for those of other instances; these by name.

        Two that both wanted to be the very last would push each other aside for ever.
        """
        targets = self._targets(chain.hook)
        if chain.jumps_first:
            return len(list(takewhile(lambda name: name.startswith(OURS) and name < chain.name, targets)))
        behind = takewhile(lambda name: name.startswith(OURS) and name > chain.name, reversed(targets))
        return len(targets) - len(list(behind))

    def _targets(self, hook: str) -> list[str]:
        """Name what each rule of the hook leads to."""
        table, targets = self._open, []
        entry = table.first_rule(hook)
        while entry:
            targets.append(table.get_target(entry).decode(errors="replace"))
            entry = table.next_rule(entry)
        return targets

    def _delete_jumps(self, hook: str, chain: str) -> None:
        """Delete every rule of `hook` that leads to the chain, however it came about."""
        # Only these are decoded: 0.2 ms each, and the operator's may use extensions unknown to this host's libraries.
        table = self._open
        entries = []
        entry = table.first_rule(hook)
        while entry:
            if table.get_target(entry) == chain.encode():
                entries.append(entry)
            entry = table.next_rule(entry)
        for rule in [table.create_rule(entry, library().Chain(table, hook)) for entry in entries]:
            table.delete_entry(hook, rule.rule, rule.mask)

    def _made(self, rule: LegacyRule) -> "iptc.Rule":
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
        raw = _RAW_TARGETS.get((self._version, target.name))
        if raw is not None:
            made.target = SimpleNamespace(size=len(raw), target=ctypes.create_string_buffer(raw, len(raw)))
            return
        _set_options(made.create_target(target.name), target.options)
        made.target._final_check()  # noqa: SLF001 - where SNAT and MASQUERADE count their ranges; see above


def _set_interface(conditions: "iptc.ip4tc.ipt_ip", field: str, interface: str) -> None:
    name = interface.removeprefix("!").encode()
    setattr(conditions, field, name)
    setattr(conditions, f"{field}_mask", b"\xff" * (len(name) + 1))  # the closing 0 too: this one and no longer name
    if interface.startswith("!"):
        conditions.invflags |= _INVERTED[field]


def _set_options(extension: "iptc.ip4tc.IPTCModule", options: tuple[tuple[str, str], ...]) -> None:
    for name, value in options:
        extension.set_parameter(name, value)
