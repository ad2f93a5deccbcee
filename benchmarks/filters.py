"""What three peers that change filters cost another: `python -m benchmarks.filters [--backend iptables]`."""

import argparse
import contextlib
import itertools
import random
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from benchmarks.bystander import Bystander
from benchmarks.figures import Series, table
from benchmarks.flooder import PORT_CONTROL, socket_to
from igd.core.mapping import TransportProtocol
from igd.core.table import MAX_REMOTES
from igd.wire.pcp import messages as pcp
from igd.wire.pcp.opcodes import Map
from igd.wire.pcp.options import Filter, Options
from tests.e2e import serving
from tests.lab import Lab
from tests.lab.wireguard import ENDPOINT, Iptables, make_keys
from tests.wire.pcp import client_codec

ATTACKERS = ("10.100.0.11", "10.100.0.12", "10.100.0.13")
MAPPINGS = 64 // MAX_REMOTES  # of each attacker: with so many filters it may have no more
PAUSE_SECONDS = 0.02  # between two rounds of the other peer
TURNS = 3

_PYTHON = ("env", f"PYTHONPATH={Path(__file__).parents[1]}", sys.executable, "-m")
_CONFIG = '[firewall]\nbackend = "{}"\n'
_IPTABLES: dict[str, Iptables] = {"nftables": "nft", "iptables": "legacy"}

_TUNNEL = """[Interface]
PrivateKey = {private}
Address = {address}/32
Table = off
FwMark = 51820
PostUp = ip link set %i multicast off
PostUp = ip route add 10.100.0.1 dev %i table {number} && ip rule add from {address} lookup {number} priority 10
[Peer]
PublicKey = {server}
AllowedIPs = 10.100.0.1/32
Endpoint = {endpoint}
PersistentKeepalive = 1
"""


def attack(address: str, prefixlen: int, pace: float) -> None:
    """Change the filters of one mapping after the other from this address, and print the granted changes a second."""
    sock = socket_to(PORT_CONTROL, address)
    granted, since = 0, time.monotonic()
    for number in itertools.count():
        sock.send(_request(address, 3000 + int(address[-1]) * 1000 + number % MAPPINGS, prefixlen))
        with contextlib.suppress(BlockingIOError):
            while True:
                granted += isinstance(client_codec.decode_pcp(sock.recv(2048)), client_codec.Response)
        if time.monotonic() > since + 1:
            print(f"granted {granted}", flush=True)
            granted, since = 0, time.monotonic()
        time.sleep(1 / pace)


def _request(address: str, port: int, prefixlen: int) -> bytes:
    """Return a request that replaces all filters of a mapping."""
    shift = 32 - prefixlen
    networks = (IPv4Address(random.getrandbits(prefixlen) << shift) for _ in range(MAX_REMOTES))
    filters = (Filter(0, 0, IPv4Address(0)), *(Filter(96 + prefixlen, 0, network) for network in networks))
    payload = Map(b"twelve bytes", TransportProtocol.UDP, port, 0, IPv4Address(0))
    return client_codec.encode(pcp.Request(600, IPv4Address(address), payload, Options(filters=filters)))


def add_peers(lab: Lab) -> None:
    """Give the host c1 a tunnel of its own for each attacker."""
    server = lab.srv.run("wg", "show", "wg0", "public-key").stdout.strip()
    for number, address in enumerate(ATTACKERS, start=1):
        keys = make_keys()
        lab.srv.run("wg", "set", "wg0", "peer", keys.public, "allowed-ips", f"{address}/32")
        tunnel = _TUNNEL.format(
            private=keys.private, address=address, number=100 + number, server=server, endpoint=ENDPOINT
        )
        lab.c1.write(f"/etc/wireguard/wg{number}.conf", tunnel)
        lab.c1.run("wg-quick", "up", f"wg{number}")
        lab.c1.run("ping", "-q", "-c1", "-w10", "-I", address, "10.100.0.1")


@contextlib.contextmanager
def attacking(lab: Lab, *options: str) -> Iterator[list[int]]:
    """Have all attackers change filters; the list then has the granted changes of each of their seconds."""
    granted: list[int] = []
    with contextlib.ExitStack() as stack:
        program = ("chrt", "-o", "0", *_PYTHON, "benchmarks.filters", *options, "--attack")
        processes = [stack.enter_context(lab.c1.start(*program, address)) for address in ATTACKERS]
        for process in processes:
            process.wait_for("granted")
        yield granted
        for process in processes:
            process.stop()
            granted += [int(line.split()[1]) for line in process.lines if line.startswith("granted")][1:]


def ask(bystander: Bystander, seconds: float) -> None:
    """Have the other peer map and delete ports for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        bystander.ask_all()
        time.sleep(PAUSE_SECONDS)


def measure(backend: str, prefixlen: int, pace: float, seconds: float) -> str:
    """Let the other peer ask alone and beside the attackers, in turns."""
    with Lab(iptables=_IPTABLES[backend]) as lab:
        add_peers(lab)
        quiet, attacked = (Bystander(lab.c2, strict=True) for _ in range(2))
        granted: list[int] = []
        with serving.serving(lab, _CONFIG.format(backend)):
            for _turn in range(TURNS):
                ask(quiet, seconds)
                with attacking(lab, "--prefix", str(prefixlen), "--pace", str(pace)) as seen:
                    ask(attacked, seconds)
                granted += seen
        for failure in sorted({*quiet.failures, *attacked.failures}):
            print(failure, file=sys.stderr)
    rows = [_row(name, quiet, attacked) for name in quiet.times]
    changes = f"each attacker asks for {pace:g} changes a second and makes {sum(granted) / len(granted):.0f}"
    title = f"{backend}, {MAX_REMOTES} filters of /{prefixlen}; {changes}"
    return table(title, ("the other peer", "quiet ms", "attacked ms", "worst", "ratio"), rows)


def _row(name: str, quiet: Bystander, attacked: Bystander) -> tuple[str, ...]:
    alone, beside = Series(tuple(quiet.times[name])), Series(tuple(attacked.times[name]))
    worst = f"{max(beside.values) * 1e3:.0f}"
    return name, alone.shown(1e3, 1), beside.shown(1e3, 1), worst, f"{beside.median / alone.median:.2f}"


def main() -> None:
    """Measure, or be an attacker."""
    parser = argparse.ArgumentParser(prog="benchmarks.filters", description=__doc__)
    parser.add_argument("--backend", choices=[*_IPTABLES], default="nftables")
    parser.add_argument("--prefix", type=int, default=32, help="the prefix length of the filters")
    parser.add_argument("--pace", type=float, default=250.0, help="requests of each attacker a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="the length of one turn")
    parser.add_argument("--attack", metavar="ADDRESS", help="be the attacker with this address")
    options = parser.parse_args()
    if options.attack:
        attack(options.attack, options.prefix, options.pace)
    else:
        print(measure(options.backend, options.prefix, options.pace, options.seconds), flush=True)


if __name__ == "__main__":
    main()
