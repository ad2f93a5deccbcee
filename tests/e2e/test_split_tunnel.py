"""The configuration in docs/clients.md for a client that sends only some of its traffic through the tunnel."""

import pytest

from tests.e2e.serving import C1, PUBLIC, REMOTE, serving
from tests.lab import Lab, answering, ask

pytestmark = pytest.mark.root

LINES = (
    "Table = off",
    "PostUp = ip route add 10.100.0.0/24 dev %i; ip route add 239.255.255.250 dev %i",
    f"PostUp = ip rule add from {C1} table 51820; ip route add default dev %i table 51820",
    f"PostDown = ip rule del from {C1} table 51820",
)


def test_a_client_with_a_split_tunnel_finds_the_gateway_and_is_reached_through_it() -> None:
    with Lab(client_lines=LINES) as lab, serving(lab):
        route = lab.c1.run("ip", "route", "get", REMOTE).stdout
        assert "dev eth0" in route, "the rest of its traffic stays outside the tunnel"
        mapped = lab.c1.run("upnpc", *f"-n {C1} 8043 8043 tcp 300".split()).stdout
        assert f"external {PUBLIC}:8043 TCP is redirected to internal {C1}:8043" in mapped
        with answering(lab.c1, 8043, "tcp"):
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE
