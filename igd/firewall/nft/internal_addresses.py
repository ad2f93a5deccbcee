"""The addresses that the port mappings lead to, which the set INTERNAL holds. Bytes only.

An address stays for RELEASE_SECONDS after its last mapping: the flows of a closed mapping end a moment after it.
"""

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

from igd.core.mapping import Change, Entry, PortMapping
from igd.firewall.nft import elements
from igd.firewall.nft.elements import INTERNAL, Placed

RELEASE_SECONDS = 2.0


class Update(NamedTuple):
    """The change of the set: first delete the elements with these keys, which may be gone, then add these elements."""

    deleted: list[Placed]
    added: list[Placed]


class InternalAddresses:
    """Counts the port mappings of each address; after a failed transaction, call `replace`."""

    def __init__(self) -> None:
        self._mapped: Counter[IPv4Address] = Counter()
        self._released: dict[IPv4Address, float] = {}  # addresses that may still be in the set, and until when

    def replace(self, entries: Iterable[Entry], held: Iterable[IPv4Address], now: float) -> list[Placed]:
        """Return all elements for `entries`; the addresses that the set has `held` stay for a while."""
        self._mapped = Counter(address for entry in entries for address in _internal(entry))
        released = set(held) - set(self._mapped)
        self._released = dict.fromkeys(released, now + RELEASE_SECONDS)
        return [*map(_permanent, self._mapped), *map(_passing, released)]

    def change(self, changes: Iterable[Change], now: float) -> Update:
        """Return what these changes do to the set."""
        update = Update([], [])
        for address, (before, after) in self._count(changes).items():
            if before and not after:
                self._released[address] = now + RELEASE_SECONDS
                update.deleted.append(_key(address))
                update.added.append(_passing(address))
            elif after and not before:
                if self._released.pop(address, None) is not None:
                    update.deleted.append(_key(address))
                update.added.append(_permanent(address))
        self._released = {address: until for address, until in self._released.items() if until + RELEASE_SECONDS > now}
        return update

    def _count(self, changes: Iterable[Change]) -> dict[IPv4Address, tuple[int, int]]:
        """Count the mappings anew; return the numbers before and after for each address of the changes."""
        steps: Counter[IPv4Address] = Counter()
        for change in changes:
            steps.update(_internal(change.after))
            steps.subtract(_internal(change.before))
        before = {address: self._mapped[address] for address in steps}
        self._mapped.update(steps)
        after = {address: self._mapped[address] for address in steps}
        self._mapped = +self._mapped
        return {address: (before[address], after[address]) for address in steps}


def _internal(entry: Entry | None) -> list[IPv4Address]:
    """Return the address that a port mapping leads to; none for a pinhole, which translates nothing."""
    address = entry.mapping.internal.address if entry and isinstance(entry.mapping, PortMapping) else None
    return [address] if isinstance(address, IPv4Address) else []


def _key(address: IPv4Address) -> Placed:
    return INTERNAL, elements.address_key(address)


def _permanent(address: IPv4Address) -> Placed:
    return INTERNAL, elements.element(elements.address_key(address))


def _passing(address: IPv4Address) -> Placed:
    return INTERNAL, elements.element(elements.address_key(address), elements.timeout(RELEASE_SECONDS))
