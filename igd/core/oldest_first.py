"""What one peer has, by age: the item at an index, whatever their number."""

import bisect
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class OldestFirst(Generic[Item]):
    """Items in the order in which they were added; the one at an index is found at once, however many there are."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._ages: list[int] = []  # of the items, in the same order
        self._age: dict[Item, int] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __getitem__(self, index: int) -> Item:
        return self._items[index]

    def among(self, items: Iterable[Item]) -> list[Item]:
        """Return those of `items` that are here, oldest first."""
        return sorted((item for item in items if item in self._age), key=self._age.__getitem__)

    def add(self, item: Item) -> None:
        """Add an item as the youngest; one that is there keeps its place."""
        if item not in self._age:
            self._age[item] = self._next
            self._items.append(item)
            self._ages.append(self._next)
            self._next += 1

    def remove(self, item: Item) -> None:
        """Remove an item that is there; those after it move up."""
        index = bisect.bisect_left(self._ages, self._age.pop(item))
        del self._items[index]
        del self._ages[index]
