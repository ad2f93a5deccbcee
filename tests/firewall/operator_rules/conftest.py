"""Random rule sets are tried in a real kernel."""

from collections.abc import Iterator

import pytest

from tests.firewall.mapped_flows import MAPPED
from tests.firewall.three_hosts import ThreeHosts, run, three_hosts


@pytest.fixture(scope="module")
def mapped() -> Iterator[ThreeHosts]:
    """Three hosts; the server marks and translates the flows of one mapping."""
    with three_hosts() as hosts:
        run("nft", "-f", "-", text=MAPPED)
        yield hosts
