"""The elements of pinholes for some remotes only: several pinholes of one endpoint may need the same. Bytes only."""

from collections.abc import Iterable
from typing import NamedTuple

from igd.core.mapping import Change, Entry, Key, Pinhole
from igd.firewall.nft import elements
from igd.firewall.nft.elements import Placed


class Update(NamedTuple):
    """The change of the sets: first delete the elements with these keys, which may be gone, then add these elements."""

    deleted: list[Placed]
    added: list[Placed]


class RestrictedPinholes:
    """Knows which entries need an element; after a failed transaction, call `replace`.

    An element lives as long as the one of them that ends last, and has its comment.
    """

    def __init__(self) -> None:
        self._needed_by: dict[Placed, dict[Key, Entry]] = {}

    def replace(self, entries: Iterable[Entry], now: float) -> list[Placed]:
        """Return all elements for `entries`."""
        self._needed_by = {}
        for entry in entries:
            for place in _places(entry):
                self._needed_by.setdefault(place, {})[entry.mapping.key] = entry
        return [self._element(place, now) for place in self._needed_by]

    def change(self, changes: Iterable[Change], now: float) -> Update:
        """Return what these changes do to the elements."""
        present: dict[Placed, bool] = {}  # of the elements of these changes, which the kernel has
        for change in changes:
            for entry, opens in ((change.before, False), (change.after, True)):
                for place in _places(entry):
                    present.setdefault(place, place in self._needed_by)
                    needed_by = self._needed_by.setdefault(place, {})
                    needed_by.pop(change.key, None)
                    if opens and entry is not None:
                        needed_by[change.key] = entry
        update = Update([place for place, was_there in present.items() if was_there], [])
        for place in present:
            if self._needed_by[place]:
                update.added.append(self._element(place, now))
            else:
                del self._needed_by[place]
        return update

    def _element(self, place: Placed, now: float) -> Placed:
        nft_set, key = place
        longest = max(self._needed_by[place].values(), key=lambda entry: entry.lease.expires)
        return nft_set, elements.element(key, elements.timeout_and_comment(longest, now))


def is_restricted(entry: Entry | None) -> bool:
    """Return whether the entry is a pinhole for some remotes only."""
    return (
        entry is not None
        and isinstance(entry.mapping, Pinhole)
        and not elements.admits_every_source(entry.mapping.remotes)
    )


def _places(entry: Entry | None) -> list[Placed]:
    return elements.places(entry.mapping) if entry is not None and is_restricted(entry) else []
