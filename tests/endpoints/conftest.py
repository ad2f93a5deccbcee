"""A network namespace whose loopback has the addresses of the server, of two peers, and of an unknown source."""

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from tests.gateway_harness import C1, C2, SERVER
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
