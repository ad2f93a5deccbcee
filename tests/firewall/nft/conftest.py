"""The nftables backend, alone or on the server."""

import contextlib
from collections.abc import Iterator

import pytest

from igd.firewall.nft.nftables import Nftables
from tests.firewall.listings import SITE
from tests.firewall.three_hosts import ThreeHosts


@pytest.fixture
def backend(alone: None) -> Iterator[Nftables]:
    """Return a backend in a network namespace of its own, in which the test is too."""
    with contextlib.closing(Nftables(SITE)) as made:
        yield made


@pytest.fixture
def gateway(hosts: ThreeHosts) -> Iterator[Nftables]:
    """Return a backend on the server."""
    with contextlib.closing(Nftables(SITE)) as made:
        yield made
