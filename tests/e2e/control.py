"""Requests to the gateway's control URL, byte for byte as a test wants them."""

import contextlib
import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

from tests.e2e.serving import C1, GATEWAY
from tests.lab import PATIENCE, Host

ADDRESS = (GATEWAY, 2869)
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
PATH = "/control/WANIPConn1"

Arguments = Mapping[str, object]
NONE: Arguments = {}


class Response(NamedTuple):
    """A response: the HTTP status, and all bytes after the status line."""

    status: int
    rest: bytes


def connect(client: Host, source: str = "") -> socket.socket:
    """Connect from a client, from this address of it where it matters."""
    connection = client.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE)
        connection.bind((source, 0))
        connection.connect(ADDRESS)
    except OSError:
        connection.close()
        raise
    return connection


def read(connection: socket.socket) -> Response:
    """Read a response, which ends with the connection; ConnectionAbortedError where none comes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    match = re.match(rb"HTTP/1\.[01] (\d+) [^\r]*\r\n", received)
    if match is None:
        raise ConnectionAbortedError(f"closed after {received!r}")
    return Response(int(match[1]), received[match.end() :])


def exchange(client: Host, request: bytes, *, source: str = "") -> Response:
    """Send one request and read the response."""
    with connect(client, source) as connection:
        connection.sendall(request)
        return read(connection)


def head(action: str, headers: Mapping[str, object]) -> bytes:
    """Return request line and headers of a control request; these headers are added, or left out if None."""
    fields: dict[str, object] = {
        "Host": f"{GATEWAY}:2869",
        "Content-Type": 'text/xml; charset="utf-8"',
        "SOAPAction": f'"{SERVICE}#{action}"',
        **headers,
    }
    lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def body(action: str, arguments: Arguments = NONE) -> bytes:
    """Return a control request's envelope; each argument is named without its "New"."""
    inside = "".join(f"<New{name}>{value}</New{name}>" for name, value in arguments.items())
    return (
        '<?xml version="1.0"?>\n<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{SERVICE}">{inside}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode()


def post(client: Host, action: str, content: bytes, *, source: str = "") -> Response:
    """Send a control request of this content, with its length."""
    return exchange(client, head(action, {"Content-Length": len(content)}) + content, source=source)


def ask(client: Host, action: str, arguments: Arguments = NONE, *, source: str = "") -> int:
    """Invoke an action; return 200, or the code of a UPnP error (UPnP Device Architecture §3.2.5)."""
    response = post(client, action, body(action, arguments), source=source)
    if response.status != 500:
        return response.status
    code = re.search(rb"<faultstring>UPnPError</faultstring>.*<errorCode>(\d+)</errorCode>", response.rest, re.DOTALL)
    assert code is not None, response
    return int(code[1])


def add(client: Host, arguments: Arguments = NONE, *, source: str = "") -> int:
    """Invoke AddPortMapping, with these arguments instead of valid ones for c1; return what `ask` returns."""
    good: Arguments = {
        "RemoteHost": "",
        "ExternalPort": 9001,
        "Protocol": "TCP",
        "InternalPort": 9001,
        "InternalClient": C1,
        "Enabled": 1,
        "PortMappingDescription": "",
        "LeaseDuration": 300,
    }
    return ask(client, "AddPortMapping", {**good, **arguments}, source=source)


def key(external_port: int, protocol: str = "TCP") -> Arguments:
    """Return the arguments that name a mapping."""
    return {"RemoteHost": "", "ExternalPort": external_port, "Protocol": protocol}
