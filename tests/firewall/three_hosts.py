"""Three network namespaces in one row, made of veth pairs: somebody on the internet, the server, and a peer.

    remote 60.60.60.2 -- (ext0) 60.60.60.1 server 10.100.0.1 (wg0) -- 10.100.0.2 peer
           2001:470:60::2 -- 2001:470:60::1 server 2001:470:100::1 -- 2001:470:100::2

Nobody lives in them: they are held open by their file descriptors and end with them. The calling thread is in the
server's while the fixture lasts.
"""

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

EXTERNAL = IPv4Address("60.60.60.1")
REMOTE = "60.60.60.2"
PEER = IPv4Address("10.100.0.2")
REMOTE6 = "2001:470:60::2"
PEER6 = IPv6Address("2001:470:100::2")
PEERS = (IPv4Network("10.100.0.0/24"), IPv6Network("2001:470:100::/64"))

CLONE_NEWNET = 0x40000000
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
    """Let the calling thread be in a new, empty network namespace; give its descriptor."""
    before = _own_namespace()
    _checked(_libc.unshare(CLONE_NEWNET))
    inside = _own_namespace()
    for which in ("all", "default"):  # without it, an IPv6 address may not be used for a second or two
        Path(f"/proc/sys/net/ipv6/conf/{which}/accept_dad").write_text("0")
    try:
        yield inside
    finally:
        _join(before)
        os.close(before)
        os.close(inside)


@contextlib.contextmanager
def joined(namespace: int) -> Iterator[None]:
    """Let the calling thread be in another namespace for a while."""
    before = _own_namespace()
    _join(namespace)
    try:
        yield
    finally:
        _join(before)
        os.close(before)


def run(*command: str, text: str | None = None) -> str:
    """Give what a program printed; raise where it failed."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _ip(*lines: str) -> None:
    run("ip", "-batch", "-", text="\n".join(lines) + "\n")


@dataclass(frozen=True)
class ThreeHosts:
    """The namespaces' descriptors, and sockets inside them."""

    remote: int
    server: int
    peer: int

    def listening(self, protocol: str, port: int, where: int | None = None) -> socket.socket:
        """Give a socket on the peer (or elsewhere) that waits for connections or datagrams."""
        with joined(self.peer if where is None else where):
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            listener = socket.socket(socket.AF_INET, kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.settimeout(5)
            listener.bind(("0.0.0.0", port))
            if protocol == "tcp":
                listener.listen()
            return listener

    def talk(self, protocol: str, port: int, listener: socket.socket, patience: float = 5) -> str | None:
        """Send "hello" from the remote to the external address, answer it, and give the source address that was seen.

        None: what was sent did not arrive, or its answer did not, within `patience` seconds.
        """
        with joined(self.remote):
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            caller = socket.socket(socket.AF_INET, kind)
        listener.settimeout(patience)
        caller.settimeout(patience)
        with caller, contextlib.suppress(TimeoutError, ConnectionError, OSError):
            caller.connect((str(EXTERNAL), port))
            return _over_tcp(caller, listener) if protocol == "tcp" else _over_udp(caller, listener)
        return None


def _over_tcp(caller: socket.socket, listener: socket.socket) -> str:
    answering, source = listener.accept()
    with answering:
        answering.settimeout(5)
        caller.sendall(b"hello")
        assert answering.recv(64) == b"hello"
        answering.sendall(b"hello yourself")
        assert caller.recv(64) == b"hello yourself"
    return str(source[0])


def _over_udp(caller: socket.socket, listener: socket.socket) -> str:
    for _round in range(2):  # the second time the flow is no longer new
        caller.send(b"hello")
        data, source = listener.recvfrom(64)
        assert data == b"hello"
        listener.sendto(b"hello yourself", source)
        assert caller.recv(64) == b"hello yourself"
    return str(source[0])


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
    _ip(
        f"link add ext0 type veth peer name eth0 netns {own}/{remote}",
        f"link add wg0 type veth peer name eth0 netns {own}/{peer}",
        *_addresses("ext0", f"{EXTERNAL}/24", "2001:470:60::1/64"),
        *_addresses("wg0", "10.100.0.1/24", "2001:470:100::1/64"),
        "link set lo up",
    )
    with joined(remote):
        _ip(*_addresses("eth0", f"{REMOTE}/24", f"{REMOTE6}/64"), "route add ::/0 via 2001:470:60::1")
    with joined(peer):
        routes = ("route add default via 10.100.0.1", "route add ::/0 via 2001:470:100::1")
        _ip(*_addresses("eth0", f"{PEER}/24", f"{PEER6}/64"), *routes)


def _addresses(link: str, ipv4: str, ipv6: str) -> tuple[str, ...]:
    # nodad: without it an IPv6 address cannot be used for a second or two
    return (f"address add {ipv4} dev {link}", f"address add {ipv6} dev {link} nodad", f"link set {link} up")
