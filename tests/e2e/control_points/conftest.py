"""The lab in which control points are tried: a server that drops what it is not told to accept, and clients for all."""

from collections.abc import Iterator

import pytest

from tests.e2e.default_route import THROUGH_GATEWAY
from tests.e2e.serving import serving
from tests.lab import Lab
from tests.lab.fixtures import needs

MULTICAST = "PostUp = ip link set %i multicast on"


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
    """Serve clients that are set up as docs/clients.md has it for programs that find no gateway.

    Every test has ports of its own.
    """
    needs("nft")
    with Lab(client_lines=(*THROUGH_GATEWAY, MULTICAST), forward="drop", networks=True) as lab, serving(lab):
        yield lab
