"""Requests to a gateway's control URL as miniupnpc (upnpc, and most applications) makes them, with a stopwatch.

One connection for each request, the whole request in one write, and it is over when the last byte of the body is there.
"""

import re
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from tests.lab import Host

GATEWAY = "10.100.0.1"
CLIENT = "10.100.0.2"
LEASE_SECONDS = 3600
PATIENCE = 10.0  # seconds

_SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
_ENVELOPE = (
    '<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
    '<u:{action} xmlns:u="{service}">{arguments}</u:{action}></s:Body></s:Envelope>\r\n'
)
_HEAD = (
    "POST {path} HTTP/1.1\r\nHost: {gateway}:{port}\r\nUser-Agent: Debian/12, UPnP/1.1, MiniUPnPc/2.2.4\r\n"
    'Content-Length: {length}\r\nContent-Type: text/xml\r\nSOAPAction: "{service}#{action}"\r\n'
    "Connection: Close\r\nCache-Control: no-cache\r\nPragma: no-cache\r\n\r\n"
)


class Control(NamedTuple):
    """Where a gateway takes requests: HTTP, and NAT-PMP."""

    port: int
    path: str
    natpmp: int = 5351


class Action(NamedTuple):
    """What is asked, and with which arguments, in their order."""

    name: str
    arguments: Mapping[str, object]


EXTERNAL_ADDRESS = Action("GetExternalIPAddress", {})


def add(protocol: str, port: int, client: str = CLIENT) -> Action:
    """Ask for a mapping of a port to the same port of the client, or renew it."""
    arguments = {
        "NewRemoteHost": "",
        "NewExternalPort": port,
        "NewProtocol": protocol,
        "NewInternalPort": port,
        "NewInternalClient": client,
        "NewEnabled": 1,
        "NewPortMappingDescription": "benchmark",
        "NewLeaseDuration": LEASE_SECONDS,
    }
    return Action("AddPortMapping", arguments)


def delete(protocol: str, port: int) -> Action:
    """Ask for a mapping's end."""
    return Action("DeletePortMapping", {"NewRemoteHost": "", "NewExternalPort": port, "NewProtocol": protocol})


def ask(client: Host, control: Control, action: Action) -> float:
    """Ask from a client, and give the seconds from before connect to the end of the answer; OSError unless granted."""
    request = encode(control, action)
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        start = time.perf_counter()
        connection.connect((GATEWAY, control.port))
        connection.sendall(request)
        answer = receive(connection)
        seconds = time.perf_counter() - start
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise OSError(f"{action.name} {dict(action.arguments)}: {answer.decode(errors='replace')}")
    return seconds


def receive(connection: socket.socket) -> bytes:
    """Read one message whose head tells the length of its body; ConnectionAbortedError when it ends before."""
    received = b""
    while not _complete(received):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionAbortedError(f"closed after {received!r}")
        received += piece
    return received


def _complete(received: bytes) -> bool:
    head, blank_line, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    return bool(blank_line) and length is not None and len(body) >= int(length[1])


def encode(control: Control, action: Action) -> bytes:
    """Return the request as it is sent."""
    arguments = "".join(f"<{name}>{value}</{name}>" for name, value in action.arguments.items())
    body = _ENVELOPE.format(action=action.name, service=_SERVICE, arguments=arguments)
    head = _HEAD.format(
        path=control.path,
        gateway=GATEWAY,
        port=control.port,
        length=len(body),
        service=_SERVICE,
        action=action.name,
    )
    return (head + body).encode()
