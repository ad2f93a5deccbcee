"""Waits for a file descriptor on the event loop."""

import asyncio


async def wait_until_readable(descriptor: int) -> None:
    """Wait until `descriptor` is readable; for a pidfd, until its process exits."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
