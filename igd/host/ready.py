"""Waits until the WireGuard interface can be served."""

from collections.abc import Callable

from igd.host.links import Links


def to_exist(interface: str) -> str:
    """Return what is missing if there is no such interface."""
    return f"{interface} to exist"


async def wait_until_up(links: Links, interface: str, report_missing: Callable[[str], None]) -> int:
    """Wait until the interface is up and has an address; return its index, which is never reused.

    `report_missing` is called with a description of what is missing, whenever it changes. OSError.
    """
    reported = None
    async for _ in links.changes():
        link = await links.state(interface)
        if link is None:
            missing = to_exist(interface)
        elif not link.up:
            missing = f"{interface} to be up"
        elif all(address.ip.is_link_local for address in await links.addresses(interface)):
            missing = f"{interface} to have an address"
        else:
            return link.index
        if missing != reported:
            report_missing(missing)
            reported = missing
    raise AssertionError("changes never end")
