"""Waits for a file descriptor on the event loop."""

import asyncio


async def wait_until_readable(descriptor: int, event: asyncio.Event | None = None) -> None:
    """Wait until `descriptor` is readable, which sets `event`; for a pidfd, until its process exits.

    Return also when `event` is set by others.
    """
    loop, readable = asyncio.get_running_loop(), event or asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
