"""What an interface still needs before it can be served is reported, one thing after the other."""

import asyncio
import socket
import subprocess

import pytest

from igd.host.links import Links
from igd.host.ready import wait_until_up
from tests.lab import Host

pytestmark = pytest.mark.root


@pytest.mark.parametrize("address", ["10.100.0.1/24", "2001:470:100::1/64"])
async def test_it_waits_until_the_interface_is_up_with_an_address(root: None, address: str) -> None:
    """A link-local address does not count: nothing is served there."""
    steps = {
        "wg0 to exist": "link add wg0 type veth peer name other",
        "wg0 to be up": "link set wg0 up",
        "wg0 to have an address": f"addr add {address} dev wg0",
    }
    reported: list[str] = []

    def report(missing: str) -> None:
        reported.append(missing)
        subprocess.run(("ip", *steps[missing].split()), check=True)

    with Host("srv") as host, host.entered():
        async with asyncio.timeout(60), Links() as links:
            index = await wait_until_up(links, "wg0", report)
        assert index == socket.if_nametoindex("wg0")
    assert reported == list(steps)
