"""The turns of long lists: one piece at a time, and other tasks between two pieces."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Turns:
    """A context in which one piece of a long list is read or written.

    However many lists are made at the same time, the event loop runs the other tasks after each piece of any of them.
    Lists take turns by pieces, so that a short one does not wait for a whole long one.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._turn.acquire()

    async def __aexit__(self, *_raised: object) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            self._turn.release()


def pieces(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in pieces of `size`; the last may be shorter."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
