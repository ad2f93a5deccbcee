"""UniqueIDs of pinholes (WANIPv6FirewallControl:1): which are in use, and which a new pinhole gets."""

import itertools
import random
from collections.abc import Container, Iterable

from igd.core.mapping import AnyMapping, Key, Pinhole

UNIQUE_IDS = range(1, 2**16)
"""All UniqueIDs (WANIPv6FirewallControl:1 §2.3.9, ui2). 0 is left out: clients take it for none."""

RETIRED = 1024
"""How many UniqueIDs of closed pinholes are kept from new ones: a client may still name the closed pinhole by one."""


class UniqueIds:
    """The UniqueIDs that pinholes have, or will have after a planned change, and the keys of these pinholes."""

    def __init__(self, pinholes: Iterable[Pinhole] = ()) -> None:
        self._keys: dict[int, Key] = {each.unique_id: each.key for each in pinholes}
        self._retired: dict[int, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, unique_id: int) -> Key | None:
        """Return the key of the pinhole that has this UniqueID, or None."""
        return self._keys.get(unique_id)

    @property
    def are_used_up(self) -> bool:
        """Whether no UniqueID is free."""
        return len(self._keys) == len(UNIQUE_IDS)

    def free(self, rng: random.Random, chosen: Container[int] = ()) -> int | None:
        """Return a free UniqueID that is not in `chosen`, at random; None if there is none.

        One that a pinhole had not long ago comes only when there is no other, the oldest first.
        """
        if self.are_used_up:
            return None
        first = rng.choice(UNIQUE_IDS)
        in_turn = itertools.chain(range(first, UNIQUE_IDS.stop), range(UNIQUE_IDS.start, first))
        unused = (each for each in in_turn if each not in self._retired)
        found = (each for each in itertools.chain(unused, self._retired) if each not in self._keys)
        return next((each for each in found if each not in chosen), None)

    def take(self, mapping: AnyMapping) -> None:
        """Record the UniqueID of a pinhole that is opened, planned or renewed; port mappings have none."""
        if isinstance(mapping, Pinhole):
            number, key = mapping.unique_id, mapping.key
            assert number in UNIQUE_IDS, "a pinhole has a UniqueID"
            assert self._keys.get(number, key) == key, "the UniqueID of another pinhole"
            self._keys[number] = key
            self._retired.pop(number, None)

    def release(self, mapping: AnyMapping) -> None:
        """Free the UniqueID of a pinhole that was planned and is not opened: no client knows it."""
        if isinstance(mapping, Pinhole):
            del self._keys[mapping.unique_id]

    def retire(self, mapping: AnyMapping) -> None:
        """Free the UniqueID of a pinhole that is closed."""
        if isinstance(mapping, Pinhole):
            del self._keys[mapping.unique_id]
            self._retired[mapping.unique_id] = None
            if len(self._retired) > RETIRED:
                del self._retired[next(iter(self._retired))]
