"""NAT-PMP requests as natpmpc makes them, with a stopwatch: a socket for each, one datagram there and one back."""

import socket
import time

from benchmarks.soap import GATEWAY, LEASE_SECONDS, PATIENCE
from igd.core.mapping import TransportProtocol
from igd.wire.pcp import natpmp
from tests.lab import Host
from tests.wire.pcp import client_codec


def ask(client: Host, port: int, request: natpmp.Request) -> float:
    """Ask who listens on this port, and give the seconds from before the datagram is sent; OSError unless granted."""
    datagram = client_codec.encode(request)
    with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PATIENCE)
        asking.connect((GATEWAY, port))
        start = time.perf_counter()
        asking.send(datagram)
        answer = client_codec.decode_natpmp(asking.recv(2048))
        seconds = time.perf_counter() - start
    if answer.result != natpmp.Result.SUCCESS:
        raise OSError(f"{request}: {answer}")
    return seconds


def mapping(protocol: TransportProtocol, port: int) -> natpmp.MapRequest:
    """Ask for a mapping of a port to the same port of the client, or renew it."""
    return natpmp.MapRequest(protocol, port, port, LEASE_SECONDS)


def deletion(protocol: TransportProtocol, port: int) -> natpmp.MapRequest:
    """Ask for a mapping's end."""
    return natpmp.MapRequest(protocol, port, 0, 0)
