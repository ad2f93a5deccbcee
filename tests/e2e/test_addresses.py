"""Each address that wg0 has at the moment answers on every protocol, and no other does."""

import socket
from collections.abc import Iterator

import pytest

from tests.e2e import own_addresses as own
from tests.e2e.own_addresses import Found, description, search, wg0_has
from tests.e2e.pcp_client import C1_IPV6, GATEWAY6
from tests.e2e.serving import C1, GATEWAY, PUBLIC, igd, serving
from tests.lab import PATIENCE, Lab, Process
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

SECOND, SECOND_NETWORK = "10.200.0.1", "10.200.0.1/24"
C2_SECOND = "10.200.0.3"
C2_IPV6 = "2001:470:100::3"


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    """A lab in which c2 has an address of another network than c1."""
    needs("upnpc", "natpmpc", "external-ip", "ss")
    with Lab() as lab:
        own.allow(lab, lab.c2, C2_SECOND, C2_IPV6)
        lab.c2.run("ip", "address", "add", f"{C2_SECOND}/32", "dev", "wg0")
        lab.c2.run("ip", "address", "del", "10.100.0.3/32", "dev", "wg0")
        yield lab


@pytest.fixture(scope="module")
def process(lab: Lab) -> Iterator[Process]:
    """The daemon, which was started while wg0 had one address of each IP version."""
    with serving(lab) as process:
        own.served(lab, GATEWAY, GATEWAY6)
        yield process


@pytest.fixture
def both(lab: Lab, process: Process) -> Iterator[Lab]:
    """The lab while wg0 has a second address."""
    with wg0_has(lab.srv, SECOND_NETWORK):
        own.served(lab, GATEWAY, SECOND, GATEWAY6)
        yield lab
    own.served(lab, GATEWAY, GATEWAY6)


def test_each_peer_is_answered_by_each_address(both: Lab) -> None:
    for server in (GATEWAY, SECOND):
        own.assert_answers(both.c1, C1, server)
        own.assert_answers(both.c2, C2_SECOND, server)


def test_a_multicast_search_is_answered_from_the_network_of_the_peer(both: Lab) -> None:
    assert search(both.c1, own.GROUP, C1) == Found(GATEWAY, description(GATEWAY))
    assert search(both.c2, own.GROUP, C2_SECOND) == Found(SECOND, description(SECOND))
    assert f" desc: {description(SECOND)}\n" in both.c2.run("upnpc", "-m", "wg0", "-s").stdout
    assert both.c2.run("external-ip").stdout == f"{PUBLIC}\n"


def test_the_status_has_the_urls_of_the_moment(both: Lab) -> None:
    urls = ", ".join(map(description, (GATEWAY, SECOND, GATEWAY6)))
    assert f" {urls}\n" in igd(both, "status", "wg0").stdout


def test_a_new_address_is_announced_to_the_peers_of_its_network(lab: Lab, process: Process) -> None:
    with _hearing(lab, C2_SECOND) as c2, _hearing6(lab, C2_IPV6) as c2_ipv6, wg0_has(lab.srv, SECOND_NETWORK):
        assert _next_from(c2, SECOND) == Found(SECOND, description(SECOND))
        assert own.found(c2_ipv6) == Found(GATEWAY6, description(GATEWAY6))
    own.served(lab, GATEWAY, GATEWAY6)


def test_nothing_is_left_at_an_address_that_has_gone(both: Lab) -> None:
    with own.moved_to_loopback(both.srv, SECOND_NETWORK):
        own.served(both, GATEWAY, GATEWAY6)
        own.assert_refuses(both.c1, C1, SECOND)
        own.assert_answers(both.c1, C1, GATEWAY)
        own.assert_answers(both.c2, C2_SECOND, GATEWAY)
        assert search(both.c2, own.GROUP, C2_SECOND) == Found(GATEWAY, description(GATEWAY))


def test_the_second_serves_all_when_the_first_has_gone(both: Lab) -> None:
    with own.moved_to_loopback(both.srv, f"{GATEWAY}/24"):
        own.served(both, SECOND, GATEWAY6)
        own.assert_refuses(both.c2, C2_SECOND, GATEWAY)
        own.assert_answers(both.c1, C1, SECOND)
        assert search(both.c1, own.GROUP, C1) == Found(SECOND, description(SECOND))
    own.served(both, GATEWAY, SECOND, GATEWAY6)


def test_an_address_is_replaced_by_another_of_the_same_network(lab: Lab, process: Process) -> None:
    lab.srv.run("sysctl", "-qw", "net.ipv4.conf.wg0.promote_secondaries=1")
    with wg0_has(lab.srv, "10.100.0.99/24"):
        own.served(lab, GATEWAY, "10.100.0.99", GATEWAY6)
        with own.moved_to_loopback(lab.srv, f"{GATEWAY}/24"):
            own.served(lab, "10.100.0.99", GATEWAY6)
            own.assert_refuses(lab.c1, C1, GATEWAY)
            own.assert_answers(lab.c1, C1, "10.100.0.99")
    own.served(lab, GATEWAY, GATEWAY6)
    own.assert_answers(lab.c1, C1, GATEWAY)


def test_the_prefix_of_an_address_changes(lab: Lab, process: Process) -> None:
    """The socket stays: what is under way on it is not lost."""
    before = lab.srv.run("ss", "-Hlnute").stdout
    with wg0_has(lab.srv, f"{GATEWAY}/16"):
        lab.srv.run("ip", "address", "del", f"{GATEWAY}/24", "dev", "wg0")
        own.assert_answers(lab.c1, C1, GATEWAY)
        lab.srv.run("ip", "address", "add", f"{GATEWAY}/24", "dev", "wg0")
    own.served(lab, GATEWAY, GATEWAY6)
    assert _inodes(lab.srv.run("ss", "-Hlnute").stdout) == _inodes(before)


def test_ipv6_serves_while_there_is_no_ipv4(lab: Lab, process: Process) -> None:
    with own.moved_to_loopback(lab.srv, f"{GATEWAY}/24"):
        own.served(lab, GATEWAY6)
        own.assert_refuses(lab.c1, C1, GATEWAY)
        own.assert_answers(lab.c1, C1_IPV6, GATEWAY6, internal=C1)
    own.served(lab, GATEWAY, GATEWAY6)
    assert search(lab.c1, own.GROUP, C1) == Found(GATEWAY, description(GATEWAY))


@pytest.mark.parametrize(("port", "listener"), [(2869, "TCP4-LISTEN"), (5351, "UDP4-RECV")], ids=["HTTP", "PCP"])
def test_a_port_in_use_on_one_address(lab: Lab, process: Process, port: int, listener: str) -> None:
    there = f"{listener}:{port},bind={SECOND},freebind,reuseaddr={int(listener == 'TCP4-LISTEN')}"
    with lab.srv.start("socat", "-d", "-d", "-u", there, "STDOUT") as other:
        other.wait_for("listening on|starting data transfer")
        with wg0_has(lab.srv, SECOND_NETWORK):
            name = f"{listener[:3]} {SECOND}:{port}"
            process.wait_for(f"WARNING .*peers are not served at {name}: Address already in use")
            own.assert_answers(lab.c1, C1, GATEWAY)
            if port == 2869:  # no URL leads to the other program
                for destination in (own.GROUP, SECOND):
                    assert search(lab.c2, destination, C2_SECOND).location == description(GATEWAY)
            other.stop()
            own.served(lab, GATEWAY, SECOND, GATEWAY6)
            own.assert_answers(lab.c2, C2_SECOND, SECOND)
    own.served(lab, GATEWAY, GATEWAY6)


def _hearing(lab: Lab, address: str) -> socket.socket:
    return _bound(lab.c2.socket(socket.AF_INET, socket.SOCK_DGRAM), address)


def _hearing6(lab: Lab, address: str) -> socket.socket:
    return _bound(lab.c2.socket(socket.AF_INET6, socket.SOCK_DGRAM), address)


def _bound(sock: socket.socket, address: str) -> socket.socket:
    sock.settimeout(PATIENCE)
    sock.bind((address, 1900))
    return sock


def _next_from(sock: socket.socket, sender: str) -> Found:
    """Pass over what earlier tests caused."""
    while (announced := own.found(sock)).sender != sender:
        pass
    return announced


def _inodes(listing: str) -> set[str]:
    return {word for line in listing.splitlines() if "%wg0" in line for word in line.split() if word.startswith("ino:")}
