"""The backend for hosts of iptables-legacy: chains of ours in `nat`, one rule per mapping (rules.py).

A socket of the server's own does not come first here as it does with nftables: iptables has `-m socket` in mangle only.

A table is read, changed and written back as a whole, under the lock of iptables. What is left is a program that takes
no lock, within the fraction of a millisecond between our read and our write; reading all of it again after each write
would cost a third more and leave the same gap.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from ipaddress import IPv4Address

from igd.core.mapping import Change, Entry
from igd.firewall.legacy import removal
from igd.firewall.legacy.chain import NAT, PROGRAMS, Edit, OwnChain, Version
from igd.firewall.legacy.rules import LegacyRules
from igd.firewall.legacy.table import LegacyTable, NoTableError, translated
from igd.firewall.legacy.xtables_lock import LOCK_PATIENCE, xtables_lock
from igd.firewall.operator_rules.xtables import legacy_tables
from igd.firewall.site import Site

_log = logging.getLogger(__name__)

VERSIONS: tuple[Version, ...] = (4, 6)


class Iptables:
    """A Backend (igd.firewall.backend) that keeps chains `igd_<interface>`, and such with `/out` and `/pcp` behind it.

    What happens within `own_change()` is ours (LegacyWatch.own_change). python-iptables works in the network namespace
    of the calling thread, and in one thread of a process alone.
    """

    def __init__(
        self,
        site: Site,
        lock_patience: float = LOCK_PATIENCE,
        own_change: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._rules = LegacyRules(site)
        self._lock_patience = lock_patience
        self._own_change = own_change
        self._tables = {version: LegacyTable(version) for version in VERSIONS}
        self._address: IPv4Address | None = None  # from which a preserved port is sent
        self._holes_led = False  # the chain in IPv6's table is there
        self._anycast6_missed = False  # and the log says so

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:  # noqa: ARG002 - rules of iptables have no timeout
        """Hold exactly `entries` for packets to `addresses`, whatever was there of ours before.

        One transaction for each IP version, IPv4 first: it holds also where the kernel is without nat for IPv6. That is
        an error only where there are pinholes.
        """
        addresses, entries = tuple(addresses), tuple(entries)
        self._address = addresses[0] if addresses else None
        rules = self._rules
        self._hold(4, (rules.led4(addresses, entries), rules.out4(self._address, entries), rules.led_anycast(4)))
        holes, anycast = rules.led6(entries), rules.led_anycast(6)
        if holes.rules or NAT in legacy_tables(6):
            self._hold(6, (holes if holes.rules else None, anycast))
        elif anycast:
            self._try_anycast6(anycast)
        self._holes_led = bool(holes.rules)

    def apply(self, changes: Sequence[Change], now: float) -> None:  # noqa: ARG002
        """Carry out `changes`; raise FirewallError where the kernel holds not what it should.

        One transaction, where they are of one IP version. Of two, the second may fail after the first is done, but not
        because of what they ask: that was carried out in memory, for both, before the first was written.
        """
        edits = self._rules.edits(changes, self._address)
        if not edits:  # renewals
            return
        with self._transaction({edit.version for edit in edits}):
            first = self._lead_holes(edits)
            for edit in edits:
                self._tables[edit.version].edit(edit)
            last = self._leave_holes(edits)
        self._holes_led = (self._holes_led or bool(first)) and not last
        for line in (*first, *map(Edit.command, edits), *last):
            _log.info("%s", line)

    def remove_all(self) -> None:
        """Take everything of ours out of the kernel; nothing there is not an error."""
        for version in VERSIONS:
            if removal.is_there(version, self._rules.hooks):
                with self._own_change():
                    removal.remove(version, self._rules.hooks)
        self._holes_led = False

    def close(self) -> None:
        """Give back the handles; the kernel's state stays as it is."""
        for table in self._tables.values():
            table.close()

    def _lead_holes(self, edits: Iterable[Edit]) -> list[str]:
        """Make IPv6's chain for the first pinhole, and give the commands that would; where it should be, it must be."""
        if self._holes_led or not any(edit.version == 6 and edit.comes for edit in edits):
            return []
        chain = self._rules.led6(())
        self._tables[6].put(chain)
        return chain.making()

    def _leave_holes(self, edits: Iterable[Edit]) -> list[str]:
        """Take that chain out after the last pinhole, and give the commands that would."""
        if all(edit.version == 4 for edit in edits) or self._tables[6].holds(self._rules.led):
            return []
        chain = self._rules.led6(())
        self._take_out(6, chain.hook, chain.name)
        return chain.unmaking()

    def _try_anycast6(self, anycast: OwnChain) -> None:
        """Have this chain and no other; where the kernel is without nat for IPv6, say so once."""
        try:
            self._hold(6, (anycast,))
        except NoTableError as error:
            if not self._anycast6_missed:
                _log.warning("what peers send to PCP's anycast address of IPv6 does not reach us: %s", error)
            self._anycast6_missed = True

    def _hold(self, version: Version, chains: Iterable[OwnChain | None]) -> None:
        """Have these chains of ours, and no others."""
        wanted = {chain.name: chain for chain in chains if chain}
        with self._transaction({version}):
            for name, hook in self._rules.hooks.items():
                if name in wanted:
                    self._tables[version].put(wanted[name])
                else:
                    self._take_out(version, hook, name)

    def _take_out(self, version: Version, hook: str, chain: str) -> None:
        if not self._tables[version].take_out(hook, chain):
            _log.warning("%s: chain %s stays, empty: a rule leads to it", PROGRAMS[version], chain)

    @contextmanager
    def _transaction(self, versions: Iterable[Version]) -> Iterator[None]:
        """Read these tables, and write them back at the end; nobody else who takes the lock comes between."""
        tables = [self._tables[version] for version in sorted(versions)]
        with translated(), xtables_lock(self._lock_patience), self._own_change():
            for table in tables:
                table.read()
            yield
            for table in tables:
                table.write()
