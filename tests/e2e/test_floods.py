"""One peer sends thousands of requests a second, and another one that maps ports gets an answer to each of its own.

The figures are those of `python -m benchmarks.flood`; here only counts are asserted.
"""

import pytest

from benchmarks import flood
from tests.e2e import serving
from tests.lab import Lab
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

SECONDS = 2.0
FIRST_SECONDS = 4.0  # until caches are full and the allocator has what it needs
MOST_KILOBYTES = 1000
"""What a flood may add to the memory of a server that has seen one."""

MOST_LOGGED = 20_000
"""Octets in a second."""


@pytest.mark.parametrize("kind", ["natpmp", "filters", "search", "large", "routed", "http", "giant"])
def test_a_flood_costs_another_peer_no_answer(lab: Lab, kind: str) -> None:
    needs("nft")
    flood.let_route(lab)
    with serving.serving(lab) as process:
        flood.flood(lab, process, kind, FIRST_SECONDS, strict=True)
        before = flood.resident_kilobytes(process.pid)
        second = flood.flood(lab, process, kind, SECONDS, strict=True)
        assert flood.resident_kilobytes(process.pid) - before < MOST_KILOBYTES
    assert second.bystander.failures == []
    assert second.bystander.times["UPnP"]
    assert second.log_bytes < MOST_LOGGED
