"""Discovery through the tunnel: changes of addresses are announced, and other servers do not come into it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e import own_addresses as own
from tests.e2e.own_addresses import Found, description, search, wg0_has
from tests.e2e.serving import C1, GATEWAY, IGD, decisions, serving
from tests.lab import PATIENCE, Lab, Process
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

SECOND_NETWORK = "10.200.0.1/24"
WG1, C2_WG1 = "10.101.0.1", "10.101.0.3"


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    """A lab in which igd does not run before or after a test."""
    needs("socat")
    with Lab() as lab:
        yield lab


def test_a_change_of_addresses_is_announced_by_update_and_alive(lab: Lab) -> None:
    with hearing(lab) as heard:
        with serving(lab):
            alive = next_of(heard, "ssdp:alive")
            with wg0_has(lab.srv, SECOND_NETWORK):
                alive = assert_changes(heard, alive)
            alive = assert_changes(heard, alive)
        assert next_of(heard, "ssdp:byebye")["BOOTID.UPNP.ORG"] == alive["BOOTID.UPNP.ORG"]
        with serving(lab):
            assert int(next_of(heard, "ssdp:alive")["BOOTID.UPNP.ORG"]) > int(alive["BOOTID.UPNP.ORG"])


def test_every_source_port_gets_its_answer(lab: Lab) -> None:
    """Some clients search from port 1900 itself."""
    with serving(lab):
        for port in (1900, 900, 1):
            with lab.c1.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(PATIENCE)
                client.bind((C1, port))
                client.sendto(b"M-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\n\r\n", (GATEWAY, 1900))
                while not client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n"):
                    assert port == 1900  # which gets announcements, too


@pytest.mark.parametrize("first", ["igd", "the other"])
def test_another_server_on_the_same_port_of_all_interfaces(lab: Lab, first: str) -> None:
    """As minidlna: it is bound to no address, allows others beside it, and receives what comes to other groups."""
    if first == "igd":
        with serving(lab), other_server(lab):
            assert_found(lab, GATEWAY)
    else:
        with other_server(lab), serving(lab):
            assert_found(lab, GATEWAY)


def test_two_instances_answer_on_their_own_interface_only(lab: Lab) -> None:
    with second_tunnel(lab), serving(lab), lab.srv.start(*IGD, "run", "wg1") as second:
        second.wait_for(f"ready for the peers of wg1 at {WG1}")
        before = decisions(lab).get("ssdp answered", 0)
        for destination in (own.GROUP, WG1):
            assert search(lab.c2, destination, C2_WG1, device="wg1") == Found(WG1, description(WG1))
        assert decisions(lab).get("ssdp answered", 0) == before
        assert_found(lab, GATEWAY)
        assert decisions(lab)["ssdp answered"] == before + 2
        assert second.stop() == 0


def assert_found(lab: Lab, server: str) -> None:
    for destination in (own.GROUP, server):
        assert search(lab.c1, destination, C1) == Found(server, description(server))


def assert_changes(heard: socket.socket, alive: dict[str, str]) -> dict[str, str]:
    """Receive ssdp:update, whose BOOTID is that of `alive`; return the next ssdp:alive, which has the announced one."""
    update = next_of(heard, "ssdp:update")
    assert update["BOOTID.UPNP.ORG"] == alive["BOOTID.UPNP.ORG"]
    assert int(update["NEXTBOOTID.UPNP.ORG"]) > int(update["BOOTID.UPNP.ORG"])
    assert update["LOCATION"] == description(GATEWAY)
    alive = next_of(heard, "ssdp:alive")
    assert alive["BOOTID.UPNP.ORG"] == update["NEXTBOOTID.UPNP.ORG"]
    return alive


@contextmanager
def hearing(lab: Lab) -> Iterator[socket.socket]:
    """Have c1 hear announcements."""
    with lab.c1.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.settimeout(PATIENCE)
        heard.bind((C1, 1900))
        yield heard


def next_of(heard: socket.socket, nts: str) -> dict[str, str]:
    """Return the headers of the next announcement of this kind, and pass over others."""
    while True:
        lines = heard.recv(4096).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        if headers["NTS"] == nts:
            return headers


@contextmanager
def other_server(lab: Lab) -> Iterator[Process]:
    with lab.srv.start("socat", "-d", "-d", "-u", "UDP4-RECV:1900,reuseaddr", "STDOUT") as other:
        other.wait_for("starting data transfer")
        yield other


@contextmanager
def second_tunnel(lab: Lab) -> Iterator[None]:
    """Give the server wg1, and c2 a tunnel to it beside wg0."""
    server, client = (host.run("wg", "genkey").stdout.strip() for host in (lab.srv, lab.c2))
    public = [lab.srv.run("wg", "pubkey", input=private).stdout.strip() for private in (server, client)]
    lab.srv.write(
        "/etc/wireguard/wg1.conf",
        f"[Interface]\nAddress = {WG1}/24\nListenPort = 51821\nPrivateKey = {server}\n"
        f"[Peer]\nPublicKey = {public[1]}\nAllowedIPs = {C2_WG1}/32\n",
    )
    lab.c2.write(
        "/etc/wireguard/wg1.conf",
        f"[Interface]\nAddress = {C2_WG1}/24\nPrivateKey = {client}\nTable = off\n"
        f"[Peer]\nPublicKey = {public[0]}\nAllowedIPs = 0.0.0.0/0\nEndpoint = 60.60.60.1:51821\n",
    )
    for host in (lab.srv, lab.c2):
        host.run("wg-quick", "up", "wg1")
    try:
        yield
    finally:
        for host in (lab.srv, lab.c2):
            host.run("wg-quick", "down", "wg1")
