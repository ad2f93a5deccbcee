"""Peers come, receive announcements, and go; the server's address changes meanwhile."""

import re
import socket

import pytest

from tests.e2e import control
from tests.e2e.serving import C1, GATEWAY, PUBLIC, REMOTE, held, ports, serving, start, upnpc
from tests.lab import PATIENCE, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

RENUMBERED = "60.60.60.9"
# What each root device, device and service announces (UPnP Device Architecture 1.1 §1.2.2), without the uuids.
ANNOUNCED = {
    "upnp:rootdevice",
    *(f"urn:schemas-upnp-org:device:{name}" for name in ("InternetGatewayDevice:1", "InternetGatewayDevice:2")),
    *(f"urn:schemas-upnp-org:device:{name}" for name in ("WANDevice:1", "WANDevice:2")),
    *(f"urn:schemas-upnp-org:device:{name}" for name in ("WANConnectionDevice:1", "WANConnectionDevice:2")),
    *(f"urn:schemas-upnp-org:service:{name}" for name in ("WANIPConnection:1", "WANIPConnection:2")),
    *(f"urn:schemas-upnp-org:service:{name}" for name in ("Layer3Forwarding:1", "WANCommonInterfaceConfig:1")),
}


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "nft", "conntrack")


def test_a_removed_peer_loses_its_mappings(lab: Lab) -> None:
    key = lab.c1.run("sh", "-c", "wg show wg0 private-key | wg pubkey").stdout.strip()
    with serving(lab):
        upnpc(lab.c1, "-r", "8043", "tcp")
        upnpc(lab.c2, "-r", "8044", "tcp")
        lab.srv.run("wg", "set", "wg0", "peer", key, "remove")
        until(lambda: held(lab) == [("TCP", 8044)])
        assert ports(lab) == [("TCP", 8044)]


def test_a_live_peer_is_told_of_coming_and_going(lab: Lab) -> None:
    with lab.c1.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((C1, 1900))
        sock.settimeout(PATIENCE)
        with start(lab) as process:
            _assert_receives(sock, "ssdp:alive")
            process.stop()
        _assert_receives(sock, "ssdp:byebye")


def _assert_receives(sock: socket.socket, kind: str) -> None:
    """Receive until everything has been announced; TimeoutError if something is missing."""
    received: set[str] = set()
    while not received >= ANNOUNCED:
        text = sock.recv(4096).decode()
        assert text.startswith("NOTIFY * HTTP/1.1\r\n")
        assert f"\r\nNTS: {kind}\r\n" in text
        match = re.search(r"\r\nNT: (.*)\r\n", text)
        assert match
        received.add(match[1])


def test_a_new_public_address_is_told_and_works(lab: Lab) -> None:
    with serving(lab) as process, answering(lab.c1, 8043), answering(lab.c1, 8043, "udp"):
        upnpc(lab.c1, "-r", "8043", "tcp", "8043", "udp")
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        _renumber(lab)
        process.wait_for(f"external address: {re.escape(RENUMBERED)}")
        assert lab.c1.run("external-ip").stdout == f"{RENUMBERED}\n"
        assert ask(lab.net, RENUMBERED, 8043, "tcp").source == REMOTE
        assert ask(lab.net, RENUMBERED, 8043, "udp").source == REMOTE


def test_without_a_public_address_nothing_is_mapped_until_there_is_one(lab: Lab) -> None:
    with serving(lab) as process, answering(lab.c1, 8043):
        upnpc(lab.c1, "-r", "8043", "tcp")
        # Moved to wg0, the address still carries the tunnel, and the way out does not borrow it.
        _ip(lab, f"address add {PUBLIC}/32 dev wg0", f"address delete {PUBLIC}/24 dev ens0")
        _ip(lab, f"route add {REMOTE} dev ens0", f"route add default via {REMOTE}")
        process.wait_for("ens0 has no IPv4 address: ports cannot be mapped, pinholes can")
        assert control.ask(lab.c1, "GetExternalIPAddress") == 501
        assert control.add(lab.c1) == 501
        _ip(lab, f"address add {PUBLIC}/24 dev ens0", f"address delete {PUBLIC}/32 dev wg0")
        process.wait_for(f"external address: {re.escape(PUBLIC)}")
        assert control.add(lab.c1) == 200
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE


def _renumber(lab: Lab) -> None:
    _ip(lab, f"address delete {PUBLIC}/24 dev ens0", f"address add {RENUMBERED}/24 dev ens0")
    _ip(lab, f"route add default via {REMOTE}")
    endpoint = f"wg set wg0 peer $(wg show wg0 peers) endpoint {RENUMBERED}:51820"
    lab.c1.run("sh", "-c", f"{endpoint} && ping -q -c1 -w{PATIENCE:.0f} {GATEWAY}")


def _ip(lab: Lab, *commands: str) -> None:
    lab.srv.run("ip", "-batch", "-", input="\n".join(commands))
