"""The elements that hold pinholes: several pinholes of one endpoint may need the same ones. Bytes only."""

from collections.abc import Iterable
from typing import NamedTuple

from igd.core.mapping import Change, Entry, Key, Pinhole
from igd.firewall.nft import elements
from igd.firewall.nft.elements import Placed


class Update(NamedTuple):
    """The change of the sets: first delete the elements with these keys, which may be gone, then add these elements."""

    deleted: list[Placed]
    added: list[Placed]


class PinholeElements:
    """Knows which pinholes need an element, so that it goes with the last; after a failed transaction, call `replace`.

    An element lives as long as the one of them that ends last, and has its comment.
    """

    def __init__(self) -> None:
        self._needed_by: dict[Placed, dict[Key, Entry]] = {}

    def replace(self, entries: Iterable[Entry], now: float) -> list[Placed]:
        """Return all elements for the pinholes of `entries`."""
        self._needed_by = {}
        for entry in entries:
            for place in _places(entry):
                self._needed_by.setdefault(place, {})[entry.mapping.key] = entry
        return [self._element(place, now) for place in self._needed_by]

    def change(self, changes: Iterable[Change], now: float) -> Update:
        """Return what these changes do to the elements."""
        present: dict[Placed, bool] = {}  # of the elements of these changes, which the kernel has
        for change in changes:
            for entry in filter(None, (change.before, change.after)):
                for place in _places(entry):
                    present.setdefault(place, place in self._needed_by)
                    needed_by = self._needed_by.setdefault(place, {})
                    if entry is change.after:
                        needed_by[entry.mapping.key] = entry
                    else:
                        needed_by.pop(entry.mapping.key, None)
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


def _places(entry: Entry) -> list[Placed]:
    return elements.places(entry.mapping) if isinstance(entry.mapping, Pinhole) else []
