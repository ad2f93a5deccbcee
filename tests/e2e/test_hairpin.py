"""A peer reaches another peer through the server's public address, as docs/operating.md says."""

import pytest

from tests.e2e.serving import C1, C2, PUBLIC, serving, upnpc
from tests.lab import Lab, answering, ask
from tests.lab.fixtures import requires_root

pytestmark = requires_root


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_another_peer_gets_through_and_keeps_its_address(backend: str) -> None:
    with Lab(forward="drop") as lab, serving(lab, f'[firewall]\nbackend = "{backend}"\n'):
        for protocol in ("tcp", "udp"):
            upnpc(lab.c1, "-a", C1, "8043", "8043", protocol, "300")
            with answering(lab.c1, 8043, protocol):
                assert ask(lab.c2, PUBLIC, 8043, protocol).source == C2
