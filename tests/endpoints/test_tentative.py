"""An IPv6 address that is tentative (RFC 4862 §5.4) cannot be used yet."""

import asyncio
from collections.abc import Iterator
from ipaddress import ip_interface

import pytest

from igd.core.peers import Interface
from igd.endpoints.port_control import PortControl
from tests.gateway_harness import SERVER, GatewayHarness
from tests.lab import PATIENCE, Host

pytestmark = pytest.mark.root

OWN = ip_interface("2001:db8:5::1/64")


@pytest.fixture
def tentative(loopback: Host) -> Iterator[str]:
    """Return an interface on which duplicate address detection takes five seconds."""
    loopback.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    loopback.run("sysctl", "-qw", "net.ipv6.conf.v0.accept_dad=1", "net.ipv6.conf.v0.dad_transmits=5")
    for end in ("v0", "v1"):
        loopback.run("ip", "link", "set", end, "up")
    loopback.run("ip", "address", "add", f"{SERVER}/32", "dev", "v0")
    loopback.run("ip", "address", "add", str(OWN), "dev", "v0")
    yield "v0"
    loopback.run("ip", "link", "del", "v0")


@pytest.mark.parametrize("others", [[], [ip_interface(SERVER)]], ids=["alone", "with others"])
async def test_it_is_served_once_it_can_be_used(tentative: str, others: list[Interface]) -> None:
    harness = await GatewayHarness().start()
    server = PortControl(tentative, harness.gateway, lambda: 0, third_party=False)
    failed = await server.listen_on([*others, OWN])
    assert failed == [f"peers are not served at UDP [{OWN.ip}]:5351: Cannot assign requested address; trying again"]
    async with asyncio.timeout(PATIENCE):
        while await server.listen_on([*others, OWN]):  # noqa: ASYNC110 - what the daemon does
            await asyncio.sleep(0.1)
    await server.close()
