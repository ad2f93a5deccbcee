"""Only wg0 is served: the internet does not get a word, nor does the server itself get a mapping."""

import re
import socket
from collections.abc import Iterator

import pytest

from tests.e2e import control
from tests.e2e.serving import C1, GATEWAY, PUBLIC, REMOTE, igd, serving, upnpc
from tests.lab import Host, Lab, call
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

GROUP = "239.255.255.250"
SEARCH = f'M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n'.encode()
SILENCE = 0.5  # seconds: the gateway answers within a tenth


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:  # noqa: ARG001  asked for what it checks
    """A lab with igd and a mapping in it, in which net sends what it has for the VPN to the server."""
    needs("upnpc", "nft")
    with Lab() as lab, serving(lab):
        lab.net.run("ip", "route", "add", "10.100.0.0/24", "via", PUBLIC)
        upnpc(lab.c1, "-r", "8043", "tcp")
        yield lab


@pytest.mark.parametrize("address", [PUBLIC, GATEWAY])
def test_the_internet_cannot_connect(served: Lab, address: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        call(served.net, address, 2869)


@pytest.mark.parametrize("address", [PUBLIC, GATEWAY])
def test_the_internet_searches_in_vain(served: Lab, address: str) -> None:
    with call(served.net, address, 1900, "udp") as remote:
        remote.sendall(SEARCH)
        with pytest.raises(ConnectionRefusedError):  # the server itself says so, by ICMP
            remote.recv(4096)


def test_a_multicast_search_from_the_internet_is_not_heard(served: Lab) -> None:
    answered = _answered(served)
    with _searching(served.net, REMOTE) as remote, pytest.raises(TimeoutError):
        remote.recv(4096)
    assert _answered(served) == answered
    with _searching(served.c1, C1) as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
    assert _answered(served) == answered + 1


def test_the_server_itself_is_no_peer(served: Lab) -> None:
    page = b"GET /1/device.xml HTTP/1.1\r\nHost: 10.100.0.1:2869\r\n\r\n"
    assert control.exchange(served.srv, page).status == 403
    assert control.add(served.srv) == 606
    for address in (PUBLIC, "127.0.0.1"):
        with pytest.raises(ConnectionRefusedError):
            call(served.srv, address, 2869)


def _searching(host: Host, address: str) -> socket.socket:
    searching = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    searching.settimeout(SILENCE)
    searching.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
    searching.bind((address, 0))
    searching.sendto(SEARCH, (GROUP, 1900))
    return searching


def _answered(lab: Lab) -> int:
    status = igd(lab, "status", "wg0").stdout
    match = re.search(r"ssdp answered +(\d+)", status)
    return int(match[1]) if match else 0
