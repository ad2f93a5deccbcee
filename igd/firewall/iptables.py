"""The backend for hosts of iptables-legacy: a chain of ours in `nat`, one rule per mapping, by python-iptables.

    -A PREROUTING -d 60.60.60.1/32 -m comment --comment "igd wg0" -j igd_wg0     (at the end; one per address)
    -A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x10000000/0x10000000
    -A igd_wg0 -p tcp -m tcp --dport 8043 -j DNAT --to-destination 10.100.0.2:8043
    -A igd_wg0 -m comment --comment "igd wg0" -j CONNMARK --set-xmark 0x0/0x10000000

At the end of PREROUTING, so that the operator's own DNATs come first. Mark, try, take the mark back: DNAT ends the
walk, and only the first packet of a flow walks through nat, before anybody else sees the flow, so that the mark is on
our flows alone. A socket of the server's own does not come first here as it does with nftables: iptables has
`-m socket` in mangle only.

libiptc reads the table, changes its copy and writes all of it back. Whoever wrote in between is undone, unless the
number of rules changed, which the kernel notices (EAGAIN). So: read, change and write under the lock of iptables, which
libiptc leaves to its caller. What is left is a program that takes no lock, within the fraction of a millisecond between
our read and our write; reading all of it again after each write would cost a third more and leave the same gap.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from igd.core.mapping import Change, Entry, PortMapping
from igd.firewall.backend import FirewallError
from igd.firewall.rules import MARK, label
from igd.firewall.xtables import legacy_tables

if TYPE_CHECKING:
    from types import ModuleType

    import iptc

_log = logging.getLogger(__name__)

NAT = "nat"
PREROUTING = "PREROUTING"
LOCK_FILE = "/run/xtables.lock"  # XT_LOCK_NAME; the variable XTABLES_LOCKFILE moves it for iptables' programs too
LOCK_PATIENCE = 5.0  # seconds


class Iptables:
    """A Backend (igd.firewall.backend) that keeps chain `igd_<interface>`; `mark` is our conntrack mark bit.

    python-iptables works in the network namespace of the calling thread, and in one thread of a process alone.
    """

    def __init__(self, interface: str, mark: int = MARK, lock_patience: float = LOCK_PATIENCE) -> None:
        self._chain = label(interface)
        self._comment = f"igd {interface}"
        self._mark = mark
        self._lock_patience = lock_patience
        self._table: iptc.Table | None = None
        self._iptc: ModuleType

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:  # noqa: ARG002 - rules of iptables have no timeout
        """Hold exactly `entries` for packets to `addresses`, whatever was there of ours before, in one transaction."""
        with self._transaction() as table:
            self._delete_jumps(table)
            if table.is_chain(self._chain):
                table.flush_entries(self._chain)
            else:
                table.create_chain(self._chain)
            for rule in self._rules(entries):
                self._append(table, self._chain, rule)
            for address in sorted(set(addresses)):
                self._append(table, PREROUTING, self._jump(address))

    def apply(self, changes: Sequence[Change], now: float) -> None:  # noqa: ARG002
        """Carry out `changes` in one transaction; raise FirewallError where the kernel holds not what it should."""
        edits = [change for change in changes if _mapping(change.before) != _mapping(change.after)]
        if not edits:  # renewals
            return
        with self._transaction() as table:
            chain = self._iptc.Chain(table, self._chain)
            for change in edits:
                if change.before is not None:
                    chain.delete_rule(self._dnat(change.before.mapping))
                if change.after is not None:
                    chain.insert_rule(self._dnat(change.after.mapping), position=1)  # behind the mark
        for change in edits:
            self._log_edit(change)

    def remove_all(self) -> None:
        """Take everything of ours out of the kernel; nothing there is not an error."""
        if NAT not in legacy_tables():  # asking libiptc would create it
            return
        with self._transaction() as table:
            self._delete_jumps(table)
            if table.is_chain(self._chain):
                table.flush_entries(self._chain)
                self._delete_chain(table)

    def close(self) -> None:
        """Give back the handle; the kernel's state stays as it is."""
        if self._table is not None:
            self._table.close()
            self._table = None

    @contextmanager
    def _transaction(self) -> Iterator["iptc.Table"]:
        """Give the table as it is now, and write it back at the end; nobody else who takes the lock comes between."""
        with xtables_lock(self._lock_patience):
            table = self._open()
            try:
                table.refresh()
                yield table
                table.commit()
            except (self._iptc.IPTCError, self._iptc.XTablesError, ValueError) as error:
                raise FirewallError(f"iptables-legacy: {error}") from error

    def _open(self) -> "iptc.Table":
        if self._table is not None:
            return self._table
        # Here and not above: the import takes 0.3 s and 20 MB, and runs modprobe and ldconfig, and gcc where there is
        # one. None of this may happen on a host that uses another backend.
        try:
            import iptc  # noqa: PLC0415
        except Exception as error:  # it loads iptables' libraries as it is imported, and says so in many ways
            raise FirewallError(f"python-iptables cannot be used here: {error}") from error
        # To tell a jump from an extension, python-iptables looks for its name in all tables, and so creates them all.
        iptc.Table.existing_table_names.update({name: name == NAT for name in iptc.Table.ALL})
        try:
            self._table = iptc.Table(NAT, autocommit=False)
        except iptc.IPTCError as error:
            raise FirewallError(f"iptables-legacy: {error}") from error
        self._iptc = iptc
        return self._table

    def _delete_jumps(self, table: "iptc.Table") -> None:
        """Delete every rule of PREROUTING that leads to our chain, however it came about."""
        # Only these are decoded: 0.2 ms each, and the operator's may use extensions unknown to this host's libraries.
        chain = self._iptc.Chain(table, PREROUTING)
        entries = []
        entry = table.first_rule(PREROUTING)
        while entry:
            if table.get_target(entry) == self._chain.encode():
                entries.append(entry)
            entry = table.next_rule(entry)
        for rule in [table.create_rule(entry, chain) for entry in entries]:
            chain.delete_rule(rule)

    def _delete_chain(self, table: "iptc.Table") -> None:
        try:
            table.delete_chain(self._chain)
        except self._iptc.IPTCError as error:  # a rule of the operator's leads to it
            _log.warning("chain %s stays, empty: %s", self._chain, error)

    def _rules(self, entries: Iterable[Entry]) -> Iterator["iptc.Rule"]:
        yield self._set_mark(self._mark)
        for entry in entries:
            yield self._dnat(entry.mapping)
        yield self._set_mark(0)

    def _append(self, table: "iptc.Table", chain: str, rule: "iptc.Rule") -> None:
        self._iptc.Chain(table, chain).append_rule(rule)

    def _jump(self, address: IPv4Address) -> "iptc.Rule":
        rule = self._commented_rule()
        rule.dst = f"{address}/32"
        rule.create_target(self._chain)
        return rule

    def _set_mark(self, value: int) -> "iptc.Rule":
        rule = self._commented_rule()
        rule.create_target("CONNMARK").set_xmark = f"{value:#x}/{self._mark:#x}"
        return rule

    def _dnat(self, mapping: PortMapping) -> "iptc.Rule":
        protocol = mapping.protocol.name.lower()
        rule = self._iptc.Rule()
        rule.protocol = protocol
        rule.create_match(protocol).dport = str(mapping.external_port)
        rule.create_target("DNAT").to_destination = str(mapping.internal)
        return rule

    def _commented_rule(self) -> "iptc.Rule":
        rule = self._iptc.Rule()
        rule.create_match("comment").comment = self._comment
        return rule

    def _log_edit(self, change: Change) -> None:
        for letter, mapping in (("D", _mapping(change.before)), ("I", _mapping(change.after))):
            if mapping is not None:
                protocol = mapping.protocol.name.lower()
                position = " 2" if letter == "I" else ""
                match = f"-p {protocol} -m {protocol} --dport {mapping.external_port}"
                where = f"-{letter} {self._chain}{position}"
                _log.info("iptables-legacy -t nat %s %s -j DNAT --to-destination %s", where, match, mapping.internal)


def _mapping(entry: Entry | None) -> PortMapping | None:
    return None if entry is None else entry.mapping


@contextmanager
def xtables_lock(patience: float) -> Iterator[None]:
    """Hold the lock that iptables-legacy's programs hold while they change a table; wait `patience` seconds for it."""
    path = os.environ.get("XTABLES_LOCKFILE") or LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FirewallError(f"cannot open iptables' lock {path}: {error.strerror}") from error
    try:
        _lock(descriptor, path, time.monotonic() + patience)
        yield
    finally:
        os.close(descriptor)  # gives the lock back as well


def _lock(descriptor: int, path: str, deadline: float) -> None:
    # flock has no timeout, and the alarm by which iptables interrupts it belongs to the main thread: so ask again.
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise FirewallError(f"somebody else holds iptables' lock {path}") from None
            time.sleep(0.005)
        else:
            return
