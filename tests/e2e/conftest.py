"""Two peers that attack each other."""

from collections.abc import Iterator

import pytest

from tests.e2e import two_peers
from tests.e2e.two_peers import Attacked
from tests.lab import Lab
from tests.lab.fixtures import needs


@pytest.fixture(
    scope="module", params=[("c1", True, "nftables"), ("c2", False, "iptables")], ids=["c1 attacks c2", "c2 attacks c1"]
)
def scene(root: None, request: pytest.FixtureRequest) -> Iterator[Attacked]:
    """One peer attacks the other: the one with the wide network with THIRD_PARTY, the other one without.

    The first with nftables, the second with iptables-legacy.
    """
    needs("nft", "conntrack", "iptables-legacy")
    attacker, third_party, backend = request.param
    with Lab() as lab, two_peers.attacked(lab, attacker, backend, third_party=third_party) as attacked:
        yield attacked


@pytest.fixture
def unharmed(scene: Attacked) -> Iterator[Attacked]:
    """The scene; at the end the victim's mappings, the kernel and old and new connections are as before."""
    before = scene.state()
    yield scene
    assert scene.state() == before
    scene.assert_traffic_passes()
