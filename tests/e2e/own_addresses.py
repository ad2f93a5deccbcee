"""The addresses of wg0: what igd listens on, and what a peer gets who asks there by each protocol."""

import ipaddress
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from tests.e2e import pcp_client
from tests.e2e.serving import PUBLIC
from tests.lab import PATIENCE, Host, Lab, call, until

GROUP = "239.255.255.250"
GROUPS6 = ("ff02::c", "ff05::c")

UDP_PORTS, TCP_PORT = (1900, 5351), 2869
ROOT_DEVICE = "upnp:rootdevice"


class Found(NamedTuple):
    """Where an answer or an announcement came from, and the LOCATION in it."""

    sender: str
    location: str


def description(address: str) -> str:
    """Return the URL of the description at this address of the server."""
    return f"http://{f'[{address}]' if ':' in address else address}:{TCP_PORT}/1/device.xml"


def listening(lab: Lab) -> set[tuple[str, str, int]]:
    """Return protocol, address and port of each socket of igd, the groups included."""
    lines = lab.srv.run("ss", "-Hlnut").stdout
    found = re.findall(r"(?m)^(\w+) +\w+ +\d+ +\d+ +(\S+)%wg0:(\d+) ", lines)
    return {(protocol, address.strip("[]"), int(port)) for protocol, address, port in found}


def expected(*addresses: str) -> set[tuple[str, str, int]]:
    """Return what `listening` returns while igd serves these addresses and no others."""
    udp = {("udp", address, port) for address in addresses for port in UDP_PORTS}
    groups = {GROUP if ":" not in address else group for address in addresses for group in GROUPS6}
    return udp | {("tcp", address, TCP_PORT) for address in addresses} | {("udp", group, 1900) for group in groups}


def served(lab: Lab, *addresses: str) -> None:
    """Wait until igd serves these addresses, and no others."""
    until(lambda: listening(lab) == expected(*addresses))


@contextmanager
def wg0_has(host: Host, *addresses: str) -> Iterator[None]:
    """Give wg0 more addresses, such as 10.200.0.1/24."""
    for address in addresses:
        host.run("ip", "address", "add", address, "dev", "wg0")
    try:
        yield
    finally:
        for address in addresses:
            host.run("ip", "address", "del", address, "dev", "wg0", check=False)


@contextmanager
def moved_to_loopback(host: Host, address: str) -> Iterator[None]:
    """Take an address such as 10.200.0.1/24 from wg0, and keep it the server's: a socket that is left there answers.

    The route to its network stays.
    """
    interface = ipaddress.ip_interface(address)
    own = str(interface.ip)
    host.run("ip", "address", "add", own, "dev", "lo")
    host.run("ip", "address", "del", address, "dev", "wg0")
    host.run("ip", "route", "replace", str(interface.network), "dev", "wg0")
    try:
        yield
    finally:
        host.run("ip", "route", "del", str(interface.network), "dev", "wg0", check=False)
        host.run("ip", "address", "add", address, "dev", "wg0")
        host.run("ip", "address", "del", own, "dev", "lo")


def allow(lab: Lab, client: Host, *addresses: str) -> None:
    """Let the server's WireGuard accept these source addresses from a client, and no others."""
    key = client.run("wg", "show", "wg0", "public-key").stdout.strip()
    networks = [str(ipaddress.ip_network(address)) for address in addresses]
    lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", ",".join(networks))


def search(client: Host, destination: str, source: str, target: str = ROOT_DEVICE, device: str = "wg0") -> Found:
    """Search from this address of a client; the destination is a group, or an address of the server."""
    with searching(client, destination, source, target, device) as sock:
        return found(sock)


def searching(
    client: Host, destination: str, source: str, target: str = ROOT_DEVICE, device: str = "wg0"
) -> socket.socket:
    """Send a search from a new socket of the client."""
    ipv6 = ":" in destination
    sock = client.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.bind((source, 0))
    host = f"[{destination}]" if ipv6 else destination
    lines = ["M-SEARCH * HTTP/1.1", f"HOST: {host}:1900", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {target}"]
    sock.sendto(("\r\n".join(lines) + "\r\n\r\n").encode(), (destination, 1900))
    return sock


def found(sock: socket.socket) -> Found:
    """Receive an answer or an announcement."""
    answer, (sender, *_) = sock.recvfrom(4096)
    location = re.search(rb"\r\nLOCATION: (\S+)\r\n", answer)
    assert location, answer
    return Found(sender, location[1].decode())


def assert_answers(client: Host, source: str, server: str, *, internal: str = "") -> None:
    """Assert that a client gets answers at this address of the server, from there, by each protocol.

    `internal` is the client's IPv4 address, to map a port by UPnP over IPv6.
    """
    assert search(client, server, source) == Found(server, description(server))
    printed = client.run("upnpc", "-u", description(server), "-s").stdout
    assert f"ExternalIPAddress = {PUBLIC}" in printed
    # The client connects its socket, and so gets no answer from elsewhere.
    mapped = pcp_client.map_port(client, 8300, TransportProtocol.UDP, source=source, server=server)
    pcp_client.granted(mapped)
    if ":" in server:
        mapped_by_upnp = client.run("upnpc", "-u", description(server), "-a", internal, "8301", "8301", "udp").stdout
        assert f"8301 UDP is redirected to internal {internal}:8301" in mapped_by_upnp
        client.run("upnpc", "-u", description(server), "-d", "8301", "udp")
    else:
        printed = client.run("natpmpc", "-g", server).stdout
        assert f"Public IP address : {PUBLIC}" in printed


def assert_refuses(client: Host, source: str, server: str) -> None:
    """Assert that nothing of igd is left at this address, which is still the server's, but no longer wg0's."""
    with pytest.raises(ConnectionRefusedError):
        call(client, server, TCP_PORT, source=source)
    for port in UDP_PORTS:
        with call(client, server, port, "udp", source=source) as sock:
            sock.send(b"")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(pcp.MAX_MESSAGE_SIZE)
