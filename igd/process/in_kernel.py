"""Records that the kernel holds something of igd's, so that it is adopted or removed after this process has ended.

The record exists from before the first change of the kernel until everything was removed: a killed daemon leaves it,
and so does one that was stopped for a restart. It has what the removal needs: the configuration may be another by then.
"""

import json
import logging
import os
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from igd.config import Config, ConfigError, default_path, load
from igd.firewall import kernel
from igd.firewall.backend import FirewallError
from igd.process import lock_holder
from igd.process.instance import Instance
from igd.store.leases import addresses_in

NAME = "in-kernel"
"""The record's file in the runtime directory; igd@.service knows its name."""

_READ = 1 << 20
"""How much of the record is read: root reads it, and whoever controls the service's user may have written it."""

log = logging.getLogger(__name__)


class _Record(NamedTuple):
    """The mark of the flows, the lease file, and the internal addresses of static mappings, which are not in it."""

    mark: int
    store: Path
    static: frozenset[IPv4Address | IPv6Address]


class InKernel:
    """What the kernel holds for one interface. Whoever calls its methods holds the lock of `instance`.

    `stays`: it stays when this process ends.
    """

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._path = instance.runtime_directory / NAME
        self.stays = False

    def adopt(self, config: Config) -> None:
        """Keep what an earlier process left for as long as this one starts.

        Remove it instead if the mark is another one now: nothing would recognize its flows. FirewallError.
        """
        left = self._read()
        if left is not None and left.mark != config.firewall.mark:
            self.remove(f"firewall.mark was {left.mark:#x} and is {config.firewall.mark:#x}")
            left = None
        if left is not None:
            log.info("mappings and flows that the igd before left are taken over")
            self.stays = True

    def record(self, config: Config) -> None:
        """Record what an igd with this configuration holds."""
        self._write(_of(config, self.instance))

    def remove_left(self, why: str) -> None:
        """Remove what an earlier process left, if there is a record of it; log `why`. FirewallError."""
        if self.is_recorded:
            self.remove(why)

    def remove(self, why: str = "") -> None:
        """Remove everything of igd's from the kernel, for every backend, and end the flows; FirewallError."""
        record = self._read() or _configured(self.instance)
        addresses = record.static.union(addresses_in(record.store))
        kernel.remove_everything(self.instance.interface, record.mark, tuple(map(ip_network, addresses)))
        self.forget()
        if why:
            log.warning("what the igd before left in the firewall was removed, and its flows were ended: %s", why)

    def forget(self) -> None:
        """Delete the record, because the kernel holds nothing any more."""
        self.stays = False
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    @property
    def is_recorded(self) -> bool:
        """Whether there is a record; anybody may ask, without the lock."""
        return os.path.lexists(self._path)

    def _read(self) -> _Record | None:
        """Return the record, or None if there is no valid one."""
        try:
            with os.fdopen(lock_holder.opened(self._path), "rb") as file:
                found = json.loads(file.read(_READ))
            mark = found["mark"]
            if not isinstance(mark, int) or not 0 < mark < 1 << 32:
                return None
            return _Record(mark, Path(found["store"]), frozenset(map(ip_address, found["static"])))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def _write(self, record: _Record) -> None:
        """Write the record. A failure is logged: without it, a restart is as a crash was before."""
        text = json.dumps({"mark": record.mark, "store": str(record.store), "static": sorted(map(str, record.static))})
        try:
            with os.fdopen(lock_holder.opened(self._path, os.O_CREAT), "r+", encoding="utf-8") as file:
                file.write(text)
                file.truncate()
        except OSError as error:
            log.warning("%s: %s: if this igd is killed, only `igd stop` removes what it leaves", self._path, error)


def end_unserved(instance: Instance) -> None:
    """Remove what an earlier process left, because this one has failed; do nothing if another one serves.

    Log a failure.
    """
    in_kernel = InKernel(instance)
    if not in_kernel.is_recorded:
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(instance.lock())
        except OSError:
            return
        try:
            in_kernel.remove_left("this one failed")
        except FirewallError as error:
            text = "the firewall keeps what the igd before left; `igd stop %s` removes it: %s"
            log.error(text, instance.interface, error)


def _of(config: Config, instance: Instance) -> _Record:
    static = frozenset(each.internal.address for peer in config.peers.values() for each in peer.static)
    return _Record(config.firewall.mark, config.store.path or instance.store_path, static)


def _configured(instance: Instance) -> _Record:
    """Return what the default configuration says, or the defaults if it is missing or invalid."""
    try:
        config = load(default_path(instance.interface))
    except ConfigError:
        config = Config()
    return _of(config, instance)
