"""Resolves a host name by the system's resolver, for as long as the caller waits."""

import asyncio
import contextlib
import socket
import threading
from ipaddress import IPv4Address


async def resolve(host: str) -> list[IPv4Address]:
    """Return the IPv4 addresses of a name, or of an address itself; OSError.

    The resolver, which may take a minute, runs in a thread that is not joined: a stop does not wait for it.
    """
    with contextlib.suppress(ValueError):
        return [IPv4Address(host)]
    loop = asyncio.get_running_loop()
    resolved: asyncio.Future[list[IPv4Address]] = loop.create_future()

    def report(outcome: list[IPv4Address] | OSError) -> None:
        if resolved.done():  # the caller was cancelled
            return
        if isinstance(outcome, OSError):
            resolved.set_exception(outcome)
        else:
            resolved.set_result(outcome)

    def run() -> None:
        outcome: list[IPv4Address] | OSError
        try:
            found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_DGRAM)
            outcome = [IPv4Address(address[0]) for *_, address in found]
        except OSError as error:
            outcome = error
        except UnicodeError as error:  # Python's IDNA refuses a label that is too long
            outcome = OSError(str(error))
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(report, outcome)

    threading.Thread(target=run, name=f"resolve {host}", daemon=True).start()
    return await resolved
