"""Where the tests of firewalls run."""

from collections.abc import Iterator

import pytest

from tests.firewall.three_hosts import ThreeHosts, new_namespace, three_hosts


@pytest.fixture
def hosts() -> Iterator[ThreeHosts]:
    """Return a remote, the server, where the test is, and a peer."""
    with three_hosts() as made:
        yield made


@pytest.fixture
def alone() -> Iterator[None]:
    """Run the test in a network namespace of its own."""
    with new_namespace():
        yield
