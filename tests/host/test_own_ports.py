"""A port that the server itself listens on is recognised, whatever the socket."""

import contextlib
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from igd.core.mapping import TransportProtocol
from igd.host.own_ports import OwnPorts
from tests.firewall.three_hosts import new_namespace, run

pytestmark = pytest.mark.root

EXTERNAL = IPv4Address("127.0.0.60")
KINDS = {TransportProtocol.TCP: socket.SOCK_STREAM, TransportProtocol.UDP: socket.SOCK_DGRAM}


@pytest.fixture(autouse=True)
def own_ports() -> Iterator[OwnPorts]:
    with new_namespace():
        run("ip", "link", "set", "lo", "up")
        with contextlib.closing(OwnPorts(lambda: "lo")) as made:
            yield made


@pytest.mark.parametrize("protocol", TransportProtocol)
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
def test_a_listener_on_the_address_uses_the_port(
    own_ports: OwnPorts, protocol: TransportProtocol, family: socket.AddressFamily, address: str, *, used: bool
) -> None:
    with socket.socket(family, KINDS[protocol]) as service:
        service.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, int(protocol is TransportProtocol.TCP)
        )  # as services do
        service.bind((address, 8043))
        if protocol is TransportProtocol.TCP:
            service.listen()
        assert own_ports.in_use(protocol, EXTERNAL, 8043) is used
        other = TransportProtocol.UDP if protocol is TransportProtocol.TCP else TransportProtocol.TCP
        assert not own_ports.in_use(other, EXTERNAL, 8043)
        assert not own_ports.in_use(protocol, EXTERNAL, 8044)
    assert not own_ports.in_use(protocol, EXTERNAL, 8043)


def test_connections_of_a_closed_listener_do_not_count(own_ports: OwnPorts) -> None:
    with socket.socket() as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind((str(EXTERNAL), 8043))
        service.listen()
        client = socket.create_connection((str(EXTERNAL), 8043))
        accepted, _ = service.accept()
    with client, accepted:
        assert not own_ports.in_use(TransportProtocol.TCP, EXTERNAL, 8043)


def test_a_foreign_address_has_no_ports_in_use(own_ports: OwnPorts) -> None:
    assert not own_ports.in_use(TransportProtocol.TCP, IPv4Address("60.60.60.1"), 8043)


@pytest.mark.parametrize("kind", KINDS.values())
def test_an_outgoing_connection_does_not_use_its_port(own_ports: OwnPorts, kind: socket.SocketKind) -> None:
    protocol = TransportProtocol.TCP if kind == socket.SOCK_STREAM else TransportProtocol.UDP
    with socket.socket(socket.AF_INET, kind) as service, socket.socket(socket.AF_INET, kind) as client:
        service.bind((str(EXTERNAL), 8043))
        if protocol is TransportProtocol.TCP:
            service.listen()
        client.bind((str(EXTERNAL), 40000))
        client.connect((str(EXTERNAL), 8043))
        assert not own_ports.in_use(protocol, EXTERNAL, 40000)
        assert own_ports.in_use(protocol, EXTERNAL, 8043)


def test_privileged_ports_are_visible_to_other_users(own_ports: OwnPorts) -> None:
    with socket.socket() as service:
        service.bind((str(EXTERNAL), 22))
        service.listen()
        os.seteuid(65534)
        try:
            assert own_ports.in_use(TransportProtocol.TCP, EXTERNAL, 22)
        finally:
            os.seteuid(0)


def test_a_socket_bound_to_another_interface_does_not_count(own_ports: OwnPorts) -> None:
    run("ip", "link", "add", "ext0", "type", "veth", "peer", "name", "wg0")
    with socket.socket() as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wg0")
        service.bind(("0.0.0.0", 8043))
        service.listen()
        assert not own_ports.in_use(TransportProtocol.TCP, EXTERNAL, 8043)
        with contextlib.closing(OwnPorts(lambda: "wg0")) as inside:
            assert inside.in_use(TransportProtocol.TCP, EXTERNAL, 8043)


def test_a_missing_interface_does_not_matter() -> None:
    with contextlib.closing(OwnPorts(lambda: "none0")) as own_ports, socket.socket() as service:
        service.bind((str(EXTERNAL), 8043))
        service.listen()
        assert own_ports.in_use(TransportProtocol.TCP, EXTERNAL, 8043)
