"""From the internet through the server to a mapping of the client: how much gets through in a second."""

import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.gateways import Gateway
from benchmarks.soap import CLIENT, GATEWAY
from tests.lab import Lab

IN_FLIGHT = 16
"""How many connections are opened at once."""

_PUBLIC = "60.60.60.1"
_REMOTE = "60.60.60.2"
_CABLE = "direct"  # the client's end
_ASIDE = "tunnel"  # what the real wg0 is called meanwhile
_PATIENCE = 5.0  # seconds
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset, so that no port has to wait
_DATAGRAM = bytes(64)
_BURST = 256


@contextmanager
def cable(gateway: Gateway) -> Iterator[None]:
    """Have a plain cable from the server to the client in the place of wg0 meanwhile, and the gateway stand still.

    Encryption costs the same whoever maps the ports, and as a program it costs many times what is to be compared. The
    rules know wg0 by its name, so the cable bears it; they are the kernel's, and packets do not need the gateway.
    """
    lab = gateway.lab
    with ExitStack() as undo:
        gateway.signal(signal.SIGSTOP)
        undo.callback(gateway.signal, signal.SIGCONT)
        _rename(lab, "wg0", _ASIDE)
        undo.callback(_rename, lab, _ASIDE, "wg0")
        with lab.srv.entered():  # in the server's network, but among our own process ids
            ends = f"wg0 type veth peer name {_CABLE} netns {lab.c1.pid}"
            subprocess.run(("ip", "link", "add", *ends.split()), check=True)
        undo.callback(lab.srv.run, *["ip", "link", "delete", "wg0"])
        lab.srv.run(*["ip", "link", "set", "wg0", "up"])
        lab.srv.run(*f"ip route add {CLIENT}/32 dev wg0".split())
        lab.c1.run(*f"ip link set {_CABLE} up".split())
        lab.c1.run(*f"ip route add {_REMOTE}/32 via {GATEWAY} dev {_CABLE} onlink".split())
        lab.c1.run("nft", "flush", "ruleset")  # wg-quick's: to the tunnel's address only through the tunnel
        lab.net.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")  # so that none is used again soon
        yield


def _rename(lab: Lab, name: str, new_name: str) -> None:
    for change in ("down", f"name {new_name}"):  # before Linux 6.2 only what is down is renamed
        lab.srv.run(*f"ip link set {name} {change}".split())
    lab.srv.run(*f"ip link set {new_name} up".split())


def connections_per_second(lab: Lab, port: int, seconds: float) -> float:
    """Open TCP connections to the mapping of this port, IN_FLIGHT at a time; each counts once the client accepts it."""
    with lab.c1.socket(socket.AF_INET, socket.SOCK_STREAM) as listener, lab.net.entered():
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((CLIENT, port))
        listener.listen(4 * IN_FLIGHT)
        listener.settimeout(_PATIENCE)
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            _connect_and_abort(listener, port)
            count += IN_FLIGHT
    return count / passed


def _connect_and_abort(listener: socket.socket, port: int) -> None:
    with ExitStack() as life:
        for _ in range(IN_FLIGHT):
            remote = life.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            remote.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            remote.setblocking(False)  # noqa: FBT003 - as socket has it
            remote.connect_ex((_PUBLIC, port))
        for _ in range(IN_FLIGHT):
            listener.accept()[0].close()


def datagrams_per_second(lab: Lab, port: int, seconds: float) -> float:
    """Send UDP datagrams of 64 bytes in one flow to the mapping of this port; those count that reach the client."""
    with lab.c1.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside, lab.net.entered():
        inside.bind((CLIENT, port))
        inside.settimeout(_PATIENCE)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
            outside.settimeout(_PATIENCE)
            outside.connect((_PUBLIC, port))
            _talk(outside, inside)
            before, start = _arrived(lab), time.perf_counter()
            while (passed := time.perf_counter() - start) < seconds:
                for _ in range(_BURST):
                    outside.send(_DATAGRAM)
            return (_arrived(lab) - before) / passed


def _talk(outside: socket.socket, inside: socket.socket) -> None:
    """Make it a flow that has been answered, as firewalls like them."""
    outside.send(_DATAGRAM)
    _, source = inside.recvfrom(len(_DATAGRAM))
    inside.sendto(_DATAGRAM, source)
    outside.recv(len(_DATAGRAM))


def _arrived(lab: Lab) -> int:
    """Return how many packets the client's end of the cable has received (the second column of /proc/net/dev)."""
    lines = Path(f"/proc/{lab.c1.pid}/net/dev").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[2]) for line in lines if line.split()[0] == f"{_CABLE}:")
