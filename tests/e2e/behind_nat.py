"""A server behind a NAT of its own: the lab with one more host, and coturn on the internet.

    net 60.60.60.2, .3 --- 60.60.60.1 outside nat inside 10.0.0.1 --- 10.0.0.5 ens0 srv

The tunnels go to 60.60.60.1 as in the lab, and nat forwards them. `Nat` says what else it forwards.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from tests.lab import Host, Lab, Process, until
from tests.lab.wireguard import Forward

OUTSIDE, INSIDE = "60.60.60.1", "10.0.0.5"
SERVERS = ("60.60.60.2", "60.60.60.3")
STUN = 'external_address = "stun"\nstun_servers = ["60.60.60.2"]\n'

Nat = Literal["1:1", "masquerade"]

_SOURCES = Path(__file__).parents[2]
_IMPATIENT = """
from igd.host.stun_address import Pace
from igd.process import behind_nat
behind_nat.PACE = Pace(again=0.5, retry=0.1, longest_retry=0.5)
from igd.cli import main
main()
"""
IMPATIENT = ("env", f"PYTHONPATH={_SOURCES}", sys.executable, "-c", _IMPATIENT)
"""igd, which asks again after half a second and not after five minutes."""


class BehindNat(NamedTuple):
    """The lab and the NAT in front of its server."""

    lab: Lab
    nat: Host


@contextmanager
def behind_nat(kind: Nat, forward: Forward = "accept-lines") -> Iterator[BehindNat]:
    """Build the hosts, with the tunnels up."""
    with Lab(wg=False, forward=forward) as lab, Host("nat") as nat:
        _cable(lab.srv, f"set ens0 netns {nat.pid} name outside")
        _cable(nat, f"add inside type veth peer name ens0 netns {lab.srv.pid}")
        _ip(
            nat,
            f"address add {OUTSIDE}/24 dev outside",
            "link set outside up",
            "route add default via 60.60.60.2",
            "address add 10.0.0.1/24 dev inside",
            "link set inside up",
        )
        _ip(lab.srv, f"address add {INSIDE}/24 dev ens0", "link set ens0 up", "route add default via 10.0.0.1")
        lab.net.run("ip", "address", "add", f"{SERVERS[1]}/24", "dev", "srv")
        nat.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        nat.run("iptables-nft-restore", input=nat_rules(kind, OUTSIDE))
        lab.wg_up(lab.srv, lab.c1, lab.c2)
        yield BehindNat(lab, nat)


def nat_rules(kind: Nat, outside: str) -> str:
    """Return the NAT's rules for iptables-restore."""
    forwarded = "" if kind == "1:1" else "-p udp --dport 51820 "
    return "\n".join(
        [
            "*nat",
            f"-A PREROUTING -i outside {forwarded}-j DNAT --to-destination {INSIDE}",
            f"-A POSTROUTING -o outside -j SNAT --to-source {outside}",
            "COMMIT\n",
        ]
    )


def _cable(host: Host, command: str) -> None:
    with host.entered():  # in its network, but among our own process ids
        subprocess.run(("ip", "link", *command.split()), check=True)


def _ip(host: Host, *commands: str) -> None:
    host.run("ip", "-batch", "-", input="\n".join(commands) + "\n")


@contextmanager
def coturn(host: Host, *options: str, addresses: tuple[str, ...] = SERVERS) -> Iterator[Process]:
    """Run coturn on these addresses, as a STUN server alone, once it listens."""
    own = ("--pidfile=/run/turnserver.pid", "--userdb=/run/turndb", "--log-file=stdout", "--no-cli")
    udp = ("--stun-only", "--no-tcp", "--no-tls", "--no-dtls", f"--relay-ip={addresses[0]}")
    listening = (f"--listening-ip={address}" for address in addresses)
    with host.start("turnserver", "-n", *own, *udp, *listening, *options) as server:
        until(lambda: ":3478 " in host.run("ss", "-Hlun").stdout)
        yield server
