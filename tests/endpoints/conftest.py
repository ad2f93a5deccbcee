"""A network of our own whose loopback bears the addresses of the server, of two peers, and of a stranger."""

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from tests.gateway_harness import C1, C2, SERVER
from tests.lab import Host

STRANGER = IPv4Address("10.100.0.9")


@pytest.fixture(scope="session")
def loopback(root: None) -> Iterator[Host]:  # noqa: ARG001 - asked for what it checks
    """Make the host."""
    with Host("loopback") as host:
        for address in (SERVER, C1, C2, STRANGER):
            host.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
        host.run("ip", "link", "set", "lo", "multicast", "on")
        yield host


@pytest.fixture(autouse=True)
def network(loopback: Host) -> Iterator[None]:
    """Put the test, and with it every coroutine that there is, into the host's network."""
    with loopback.entered():
        yield
