"""A client whose default route names the VPN's server, as wg-quick's own does not."""

from tests.e2e.serving import GATEWAY
from tests.lab.wireguard import ENDPOINT

_SERVER = ENDPOINT.partition(":")[0]

THROUGH_GATEWAY = (
    "Table = off",
    f"PostUp = ip route add {_SERVER} $(ip route show default | cut -d' ' -f 2-5)",  # the tunnel itself goes as before
    f"PostUp = ip route replace default via {GATEWAY} dev %i onlink",
    "PostUp = ip -6 route replace default dev %i",
)
"""Lines for a client's [Interface]. Programs that speak NAT-PMP or PCP ask the gateway of their default route."""
