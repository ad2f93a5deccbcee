"""A port on which the server itself listens is seen as such, whoever listens and however."""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from igd.core.mapping import Protocol
from igd.host.own_ports import in_use
from tests.firewall.three_hosts import new_namespace, run

pytestmark = pytest.mark.root

EXTERNAL = IPv4Address("127.0.0.60")
KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    with new_namespace():
        run("ip", "link", "set", "lo", "up")
        yield


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("family", "address", "used"),
    [
        (socket.AF_INET, "0.0.0.0", True),
        (socket.AF_INET, str(EXTERNAL), True),
        (socket.AF_INET6, "::", True),
        (socket.AF_INET, "127.0.0.1", False),
        (socket.AF_INET6, "::1", False),
    ],
)
def test_who_listens_on_the_address_uses_the_port(
    protocol: Protocol, family: socket.AddressFamily, address: str, *, used: bool
) -> None:
    with socket.socket(family, KINDS[protocol]) as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(protocol is Protocol.TCP))  # as services do
        service.bind((address, 8043))
        if protocol is Protocol.TCP:
            service.listen()
        assert in_use(protocol, EXTERNAL, 8043) is used
        other = Protocol.UDP if protocol is Protocol.TCP else Protocol.TCP
        assert not in_use(other, EXTERNAL, 8043)
        assert not in_use(protocol, EXTERNAL, 8044)
    assert not in_use(protocol, EXTERNAL, 8043)


def test_connections_of_a_service_that_has_ended_do_not_count() -> None:
    with socket.socket() as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind((str(EXTERNAL), 8043))
        service.listen()
        client = socket.create_connection((str(EXTERNAL), 8043))
        accepted, _ = service.accept()
    with client, accepted:
        assert not in_use(Protocol.TCP, EXTERNAL, 8043)


def test_an_address_that_is_not_the_servers_has_no_ports_in_use() -> None:
    assert not in_use(Protocol.TCP, IPv4Address("60.60.60.1"), 8043)
