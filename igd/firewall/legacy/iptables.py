"""The backend for hosts of iptables-legacy: chains of ours in `nat`, one rule per mapping (rules.py).

A mapping hides a socket of the server itself, unlike with nftables: iptables has `-m socket` in mangle only.

A table is read, changed and written back as a whole, under iptables' lock. A program that does not take the lock can
lose its change if it writes in the fraction of a millisecond between our read and our write. To read the table again
after each write would cost a third more and leave the same gap.
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
from igd.firewall.legacy.xtables_lock import LOCK_TIMEOUT, xtables_lock
from igd.firewall.operator_rules.xtables import legacy_tables
from igd.firewall.site import Site
from igd.log_lines import of_peer

_log = logging.getLogger(__name__)


class Iptables:
    """A Backend (igd.firewall.backend) that keeps the chains `igd_<interface>`, `igd_<interface>/out` and `.../pcp`.

    Changes within `own_change()` are not reported as foreign (LegacyWatch.own_change). python-iptables works in the
    network namespace of the calling thread, and in one thread of a process only.
    """

    def __init__(
        self,
        site: Site,
        lock_timeout: float = LOCK_TIMEOUT,
        own_change: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._rules = LegacyRules(site)
        self._lock_timeout = lock_timeout
        self._own_change = own_change
        self._tables = {version: LegacyTable(version) for version in PROGRAMS}
        self._address: IPv4Address | None = None  # the source of packets with a preserved port
        self._pinhole_chain = False  # IPv6's chain for pinholes exists
        self._anycast6_failed = False  # and was logged

    def replace_all(self, addresses: Iterable[IPv4Address], entries: Iterable[Entry], now: float) -> None:  # noqa: ARG002 - iptables' rules have no timeout
        """Hold exactly `entries` for packets to `addresses`, whatever was there of ours before.

        One transaction for each IP version, IPv4 first, so that it is done where the kernel has no nat for IPv6. That
        is an error only if there are pinholes.
        """
        addresses, entries = tuple(addresses), tuple(entries)
        self._address = addresses[0] if addresses else None
        rules = self._rules
        self._hold(4, (rules.dnat(addresses, entries), rules.sources(self._address, entries), rules.anycast(4)))
        pinholes, anycast = rules.pinholes(entries), rules.anycast(6)
        if pinholes.rules or NAT in legacy_tables(6):
            self._hold(6, (pinholes if pinholes.rules else None, anycast))
        elif anycast:
            self._try_anycast6(anycast)
        self._pinhole_chain = bool(pinholes.rules)

    def apply(self, changes: Sequence[Change], now: float) -> None:  # noqa: ARG002 - iptables' rules have no timeout
        """Carry out `changes`; raise FirewallError where the kernel does not hold the result.

        Changes of one IP version are one transaction. With two versions the second may fail after the first is written,
        but not because of the changes themselves: both tables are changed in memory before the first is written.
        """
        edits = self._rules.edits(changes, self._address)
        if not edits:  # renewals
            return
        with self._transaction({edit.version for edit in edits}):
            first = self._create_pinhole_chain(edits)
            for edit in edits:
                self._tables[edit.version].edit(edit)
            last = self._remove_pinhole_chain(edits)
        self._pinhole_chain = (self._pinhole_chain or bool(first)) and not last
        for line in first:
            _log.info("%s", line)
        for change in changes:
            for edit in self._rules.edits([change], self._address):
                _log.info("%s", edit.command(), extra=of_peer(change.peer, important=False))
        for line in last:
            _log.info("%s", line)

    def remove_all(self) -> None:
        """Remove everything of ours from the kernel; having nothing there is not an error."""
        for version in PROGRAMS:
            if removal.is_there(version, self._rules.hooks):
                with self._own_change():  # the programs take the lock themselves
                    removal.remove(version, self._rules.hooks)
        self._pinhole_chain = False

    def close(self) -> None:
        """Close the handles; the kernel's state stays as it is."""
        for table in self._tables.values():
            table.close()

    def _create_pinhole_chain(self, edits: Iterable[Edit]) -> list[str]:
        """Create IPv6's chain for the first pinhole; return the commands that do the same."""
        if self._pinhole_chain or not any(edit.version == 6 and edit.adds for edit in edits):
            return []
        chain = self._rules.pinholes(())
        self._tables[6].put(chain)
        return chain.creation()

    def _remove_pinhole_chain(self, edits: Iterable[Edit]) -> list[str]:
        """Remove that chain after the last pinhole; return the commands that do the same."""
        if all(edit.version == 4 for edit in edits) or self._tables[6].holds(self._rules.main):
            return []
        chain = self._rules.pinholes(())
        self._take_out(6, chain.hook, chain.name)
        return chain.removal()

    def _try_anycast6(self, anycast: OwnChain) -> None:
        """Hold this chain and no other; log once where the kernel has no nat for IPv6."""
        try:
            self._hold(6, (anycast,))
        except NoTableError as error:
            if not self._anycast6_failed:
                _log.warning("PCP requests to the IPv6 anycast address do not reach igd: %s", error)
            self._anycast6_failed = True

    def _hold(self, version: Version, chains: Iterable[OwnChain | None]) -> None:
        """Hold these chains of ours, and no others."""
        wanted = {chain.name: chain for chain in chains if chain}
        with self._transaction({version}):
            for name, hook in self._rules.hooks.items():
                if name in wanted:
                    self._tables[version].put(wanted[name])
                else:
                    self._take_out(version, hook, name)

    def _take_out(self, version: Version, hook: str, chain: str) -> None:
        if not self._tables[version].take_out(hook, chain):
            _log.warning("%s: chain %s stays, empty: a rule jumps to it", PROGRAMS[version], chain)

    @contextmanager
    def _transaction(self, versions: Iterable[Version]) -> Iterator[None]:
        """Read these tables, and write them back at the end, under the lock."""
        tables = [self._tables[version] for version in sorted(versions)]
        with translated(), xtables_lock(self._lock_timeout), self._own_change():
            for table in tables:
                table.read()
            yield
            for table in tables:
                table.write()
