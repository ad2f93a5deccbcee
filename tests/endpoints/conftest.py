"""A network namespace whose loopback has the addresses of the server, of two peers, and of an unknown source.

And what most tests of HTTP share: a gateway and the server.
"""

from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address

import pytest

from igd.endpoints.upnp_http import UPnPHttp
from tests.endpoints.http_client import serving
from tests.gateway_harness import C1, C2, SERVER, GatewayHarness
from tests.lab import Host

STRANGER = IPv4Address("10.100.0.9")


@pytest.fixture(scope="session")
def loopback(root: None) -> Iterator[Host]:
    """Return the namespace, with its addresses."""
    with Host("loopback") as host:
        for address in (SERVER, C1, C2, STRANGER):
            host.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
        host.run("ip", "link", "set", "lo", "multicast", "on")
        yield host


@pytest.fixture(autouse=True)
def network(loopback: Host) -> Iterator[None]:
    """Run the test, and all its coroutines, inside the namespace."""
    with loopback.entered():
        yield


@pytest.fixture
async def harness() -> GatewayHarness:
    """Return a gateway that has started."""
    return await GatewayHarness(rate=100).start()


@pytest.fixture
async def server(harness: GatewayHarness) -> AsyncIterator[UPnPHttp]:
    """Serve HTTP with this gateway."""
    async with serving(harness) as server:
        yield server
