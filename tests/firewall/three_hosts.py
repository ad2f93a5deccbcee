"""Three network namespaces in one row, made of veth pairs: somebody on the internet, the server, and a peer.

    remote 60.60.60.2 -- (ext0) 60.60.60.1 server 10.100.0.1 (wg0) -- 10.100.0.2 peer
           2001:470:60::2 -- 2001:470:60::1 server 2001:470:100::1 -- 2001:470:100::2

Nobody lives in them: they are held open by their file descriptors and end with them. The calling thread is in the
server's while the fixture lasts.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from tests.lab import PATIENCE, await_ipv6, until
from tests.lab.namespaces import SYSCTLS

EXTERNAL = IPv4Address("60.60.60.1")
REMOTE = "60.60.60.2"
PEER = IPv4Address("10.100.0.2")
REMOTE6 = "2001:470:60::2"
PEER6 = IPv6Address("2001:470:100::2")
PEERS = (IPv4Network("10.100.0.0/24"), IPv6Network("2001:470:100::/64"))

CLONE_NEWNET = 0x40000000
_MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"  # of the server, and of the host at the other end
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _join(namespace: int) -> None:
    _checked(_libc.setns(namespace, CLONE_NEWNET))


@contextlib.contextmanager
def new_namespace() -> Iterator[int]:
    """Move the calling thread into a new, empty network namespace, and return its descriptor."""
    before = _own_namespace()
    _checked(_libc.unshare(CLONE_NEWNET))
    inside = _own_namespace()
    for name, _, value in (setting.partition("=") for setting in SYSCTLS):
        Path("/proc/sys/net", name).write_text(value)
    try:
        yield inside
    finally:
        _join(before)
        os.close(before)
        os.close(inside)


@contextlib.contextmanager
def joined(namespace: int) -> Iterator[None]:
    """Move the calling thread into another namespace for a while."""
    before = _own_namespace()
    _join(namespace)
    try:
        yield
    finally:
        _join(before)
        os.close(before)


def run(*command: str, text: str | None = None) -> str:
    """Return what a program printed; raise where it failed."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _ip(*lines: str) -> None:
    run("ip", "-batch", "-", text="\n".join(lines) + "\n")


@dataclass(frozen=True)
class ThreeHosts:
    """The namespaces' descriptors."""

    remote: int
    server: int
    peer: int


@contextlib.contextmanager
def three_hosts() -> Iterator[ThreeHosts]:
    """Build them; give them back whatever happens."""
    with contextlib.ExitStack() as stack:
        namespaces = []
        for _host in range(3):
            with new_namespace() as inside:
                namespaces.append(os.dup(inside))
            stack.callback(os.close, namespaces[-1])
        remote, server, peer = namespaces
        stack.enter_context(joined(server))
        _wire(remote, peer)
        yield ThreeHosts(remote, server, peer)


def _wire(remote: int, peer: int) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
    own = f"/proc/{os.getpid()}/fd"
    # A link that has the same index as its other end is told of its carrier up to a second late (linkwatch).
    _ip(
        f"link add ext0 index 10 address {_MACS[0]} type veth peer name eth0 address {_MACS[1]} netns {own}/{remote}",
        f"link add wg0 index 11 address {_MACS[0]} type veth peer name eth0 address {_MACS[1]} netns {own}/{peer}",
        *_addresses("ext0", f"{EXTERNAL}/24", "2001:470:60::1/64"),
        *_addresses("wg0", "10.100.0.1/24", "2001:470:100::1/64"),
        *_neighbours("ext0", _MACS[1], REMOTE, REMOTE6),
        *_neighbours("wg0", _MACS[1], str(PEER), str(PEER6)),
    )
    with joined(remote):
        _ip(
            *_addresses("eth0", f"{REMOTE}/24", f"{REMOTE6}/64"),
            *_neighbours("eth0", _MACS[0], str(EXTERNAL), "2001:470:60::1"),
            "route add ::/0 via 2001:470:60::1",
        )
    with joined(peer):
        _ip(
            *_addresses("eth0", f"{PEER}/24", f"{PEER6}/64"),
            *_neighbours("eth0", _MACS[0], "10.100.0.1", "2001:470:100::1"),
            "route add default via 10.100.0.1",
            "route add ::/0 via 2001:470:100::1",
        )
    # Until a link has its carrier, packets are lost. It is shown before it is complete, under a lock that `set` awaits.
    until(lambda: run("ip", "-brief", "link", "show", "up").count(" UP ") == 2, 0.01)
    _ip("link set lo up")
    for namespace in (None, remote, peer):
        with joined(namespace) if namespace else contextlib.nullcontext():
            await_ipv6()


def _addresses(link: str, ipv4: str, ipv6: str) -> tuple[str, ...]:
    # nodad: without it an IPv6 address cannot be used for a second or two
    return (f"address add {ipv4} dev {link}", f"address add {ipv6} dev {link} nodad", f"link set {link} up")


def _neighbours(link: str, mac: str, *addresses: str) -> tuple[str, ...]:
    """Nothing is delayed or lost while an address is resolved: what the server forwards leaves it at once."""
    return tuple(f"neighbour add {address} lladdr {mac} dev {link} nud permanent" for address in addresses)
