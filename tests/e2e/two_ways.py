"""A server with two ways out, ens0 and ens1, whose tunnels use neither of them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.serving import GATEWAY
from tests.lab import PATIENCE, Host, Lab

SECOND, SECOND_REMOTE = "61.61.61.1", "61.61.61.254"
_TUNNELS = "63.63.63.1"


@contextmanager
def two_ways() -> Iterator[Lab]:
    """Build a lab in which net reaches the server at ens0 (the default route), ens1 and a cable for the tunnels."""
    with Lab() as lab:
        cable(lab, "isp2", SECOND_REMOTE, "ens1", SECOND)
        cable(lab, "tunnels", "63.63.63.254", "ens9", _TUNNELS)
        ip(lab.srv, "route add 70.70.70.0/24 via 63.63.63.254", "route add 80.80.80.0/24 via 63.63.63.254")
        for client in (lab.c1, lab.c2):
            client.run("sh", "-c", f"wg set wg0 peer $(wg show wg0 peers) endpoint {_TUNNELS}:51820")
            client.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", GATEWAY)
        yield lab


def cable(lab: Lab, end: str, remote: str, device: str, address: str = "") -> None:
    """Connect net (`end`, with the address `remote`) with the server's new `device`; prefix lengths are 24."""
    pair = f"{end} type veth peer name {device} netns {lab.srv.pid}"
    with lab.net.entered():  # in net's network, but among our own process ids
        subprocess.run(("ip", "link", "add", *pair.split()), check=True)
    ip(lab.net, f"address add {remote}/24 dev {end}", f"link set {end} up")
    ip(lab.srv, *([f"address add {address}/24 dev {device}"] if address else []), f"link set {device} up")


def ip(host: Host, *commands: str) -> None:
    """Run commands of ip in a host."""
    host.run("ip", "-batch", "-", input="\n".join(commands) + "\n")
