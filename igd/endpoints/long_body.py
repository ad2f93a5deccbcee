"""The body of a response with a long list, sent in pieces: other requests do not wait for it."""

import asyncio
from collections.abc import Sequence

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from igd.turns import pieces

SENT_AT_ONCE = 16
"""How many parts are sent before other requests get their turn. Each has the mappings that were written at once."""


class LongBody(Payload):
    """A body that consists of `parts`, and its length.

    aiohttp would copy a body of 10 MB as a whole, which takes 20 ms. The first parts go into the packet of the head.
    """

    def __init__(self, parts: Sequence[bytes], content_type: str) -> None:
        self._size = sum(map(len, parts))
        super().__init__(parts, headers={"Content-Length": str(self._size)}, content_type=content_type)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the body."""
        for piece in pieces(self._value, SENT_AT_ONCE):
            await writer.write(b"".join(piece))
            await asyncio.sleep(0)
