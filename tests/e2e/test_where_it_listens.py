"""Only wg0 is served: the internet gets no answer, and the server itself gets no mapping."""

import socket
from collections.abc import Iterator

import pytest

from tests.e2e import control
from tests.e2e.serving import C1, GATEWAY, PUBLIC, REMOTE, decisions, serving, upnpc
from tests.lab import PATIENCE, Host, Lab, call
from tests.lab.fixtures import needs, requires_root
from tests.lab.swallowed import ALL_PACKETS, await_arrival

pytestmark = requires_root

GROUP = "239.255.255.250"
SEARCH = f'M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n'.encode()


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
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
    before = searches(served)
    watching = served.srv.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ALL_PACKETS)
    with watching, _searching(served.net, REMOTE) as remote:
        await_arrival(watching, remote.getsockname()[1])
        with _searching(served.c1, C1) as client:  # would be read after the other, and so counted after it
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
    assert searches(served) == before + 1


def test_the_server_itself_is_no_peer(served: Lab) -> None:
    page = b"GET /1/device.xml HTTP/1.1\r\nHost: 10.100.0.1:2869\r\n\r\n"
    assert control.exchange(served.srv, page).status == 403
    assert control.add(served.srv) == 606
    for address in (PUBLIC, "127.0.0.1"):
        with pytest.raises(ConnectionRefusedError):
            call(served.srv, address, 2869)


def _searching(host: Host, address: str) -> socket.socket:
    searching = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    searching.settimeout(PATIENCE)
    searching.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
    searching.bind((address, 0))
    searching.sendto(SEARCH, (GROUP, 1900))
    return searching


def searches(lab: Lab) -> int:
    """Return how many searches igd has read, whatever became of them."""
    return sum(count for what, count in decisions(lab).items() if what.startswith("ssdp "))
