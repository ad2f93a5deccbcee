"""Asks igd at the tunnel's addresses, as a peer does, whether it answers.

The server itself is no peer, and each answer is a refusal. It proves that the sockets are there and that igd decides;
what the server's INPUT does to packets from the tunnel, it does not prove.
"""

import http.client
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from igd.core.mapping import Endpoint
from igd.core.peers import Address, Interface
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp

SECONDS = 5.0
"""How long an answer may take, and each of ATTEMPTS."""

ATTEMPTS = 3


class Answer(NamedTuple):
    """Who was asked, and why there was no answer; an empty string: there was one."""

    asked: str
    failure: str


def ask(urls: Iterable[str], *, port_control: bool) -> list[Answer]:
    """Ask for the page at these URLs of the daemon, and for the external address at the same addresses."""
    answers = []
    for url in urls:
        parts = urlsplit(url)
        address = ip_address((parts.hostname or "").partition("%")[0])
        port = parts.port or 80
        answers.append(_answer(f"UPnP at TCP {Endpoint(address, port)}", partial(_ask_http, str(address), port)))
        if port_control and address.version == 4:
            where = Endpoint(address, pcp.SERVER_PORT)
            answers.append(_answer(f"NAT-PMP and PCP at UDP {where}", partial(_ask_natpmp, address)))
    return answers


def for_a_client(announced: str | None, addresses: Sequence[Interface]) -> str:
    """Return the public address, and the lines that map a port and show it from a client."""
    gateway = next((each.ip for each in addresses if each.version == 4), None)
    lines = ["", f"public address   {announced or 'none yet: ports cannot be mapped, see igd status'}"]
    lines += ["on a client      upnpc -r 8043 tcp        (apt install miniupnpc)"]
    if gateway:
        lines += [f"or               natpmpc -g {gateway} -a 8043 8043 tcp        (apt install natpmpc)"]
    return "\n".join(lines)


def _answer(asked: str, question: Callable[[], None]) -> Answer:
    try:
        question()
    except (OSError, http.client.HTTPException) as error:
        return Answer(asked, str(error) or type(error).__name__)
    return Answer(asked, "")


def _ask_http(host: str, port: int) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
    finally:
        connection.close()
    if response.status not in {http.HTTPStatus.OK, http.HTTPStatus.FORBIDDEN}:
        raise OSError(f"response {response.status} {response.reason}")


def _ask_natpmp(address: Address) -> None:
    """Send a request for the external address (RFC 6886 §3.2), and again if it is lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect((str(address), pcp.SERVER_PORT))
        for attempt in range(ATTEMPTS):
            sock.send(bytes((natpmp.VERSION, natpmp.GET_ADDRESS)))
            try:
                response = sock.recv(natpmp.MAX_MESSAGE_SIZE)
            except TimeoutError:
                if attempt + 1 == ATTEMPTS:
                    raise
                continue
            if response[:2] != bytes((natpmp.VERSION, natpmp.GET_ADDRESS | natpmp.RESPONSE_BIT)):
                raise OSError(f"unknown response {response.hex()}")
            return
