"""Peers come, receive announcements, and go; the server's address changes meanwhile."""

import re
import socket
from collections.abc import Callable

import pytest

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import natpmp
from tests.e2e import control, pcp_client
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, held, ports, serving, start, upnpc
from tests.lab import PATIENCE, Host, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.wireguard import Iptables
from tests.wire.pcp import client_codec

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
    key = lab.c1.run("wg", "show", "wg0", "public-key").stdout.strip()
    with serving(lab):
        upnpc(lab.c1, "-r", "8043", "tcp")
        upnpc(lab.c2, "-r", "8044", "tcp")
        lab.srv.run("wg", "set", "wg0", "peer", key, "remove")
        until(lambda: held(lab) == [("TCP", 8044)])
        assert ports(lab) == [("TCP", 8044)]


@pytest.mark.parametrize("protocol", ["NAT-PMP", "PCP", "UPnP", "SSDP"])
def test_an_added_peer_is_served_at_its_first_packet(lab: Lab, protocol: str) -> None:
    """Another peer's request has just had the list of peers read."""
    key = lab.c2.run("wg", "show", "wg0", "public-key").stdout.strip()
    lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", "192.0.2.3/32")
    with serving(lab):
        assert control.add(lab.c1) == 200  # a change is decided on the present peers
        lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"{C2}/32")
        _FIRST_REQUEST[protocol](lab.c2)


def _assert_natpmp(client: Host) -> None:
    request = client_codec.encode(natpmp.MapRequest(TransportProtocol.TCP, 8043, 8043, 300))
    response = client_codec.decode_natpmp(pcp_client.exchange(client, GATEWAY, request))
    assert response.result == natpmp.Result.SUCCESS


def _assert_found(client: Host) -> None:
    search = (
        'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n'
    )
    with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(search.encode(), (GATEWAY, 1900))
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


def _assert_upnp(client: Host) -> None:
    assert control.add(client, {"InternalClient": C2, "ExternalPort": 8043}) == 200


_FIRST_REQUEST: dict[str, Callable[[Host], object]] = {
    "NAT-PMP": _assert_natpmp,
    "PCP": lambda client: pcp_client.granted(pcp_client.map_port(client, 8043, source=C2)),
    "UPnP": _assert_upnp,
    "SSDP": _assert_found,
}


@pytest.mark.parametrize(("backend", "iptables"), [("nftables", "nft"), ("iptables", "legacy")])
def test_the_first_peer_with_ipv6_gets_its_packets_through_a_firewall_that_drops(
    backend: str, iptables: Iptables
) -> None:
    """The server has no address of IPv6 in the tunnel at first, and so no network of it."""
    with Lab(forward="drop", iptables=iptables) as lab, answering(lab.c1, 8043, ipv6=True):
        key = lab.c1.run("wg", "show", "wg0", "public-key").stdout.strip()
        for client, address in ((lab.c1, C1), (lab.c2, C2)):
            own = client.run("wg", "show", "wg0", "public-key").stdout.strip()
            lab.srv.run("wg", "set", "wg0", "peer", own, "allowed-ips", address)
        lab.srv.run("ip", "-6", "address", "flush", "dev", "wg0")
        with serving(lab, f'[firewall]\nbackend = "{backend}"\n'):
            save = f"ip6tables-{iptables}-save"
            assert "igd" not in lab.srv.run(save).stdout
            lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"{C1},{pcp_client.C1_IPV6}")
            until(lambda: '-A FORWARD -m comment --comment "igd wg0"' in lab.srv.run(save).stdout)
            _ip(lab, f"address add {pcp_client.GATEWAY6}/64 dev wg0", f"route replace {pcp_client.C1_IPV6} dev wg0")
            until(lambda: pcp_client.GATEWAY6 in lab.srv.run("ss", "-Hlun").stdout)
            pcp_client.granted(pcp_client.map_port(lab.c1, 8043, source=pcp_client.C1_IPV6))
            assert ask(lab.net, pcp_client.C1_IPV6, 8043).echo == "who am I?"


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
        source = f"dev ens0 src {PUBLIC}"  # else WireGuard's packets may leave from its address in the tunnel
        _ip(lab, f"route add {REMOTE} {source}", f"route add default via {REMOTE} {source}")
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
