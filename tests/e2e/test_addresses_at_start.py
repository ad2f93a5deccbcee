"""What wg0 has when igd starts decides nothing for later: what comes is served, and what is in the way is named."""

import ipaddress
import re
import socket
from collections.abc import Iterator

import pytest

from igd.wire.pcp import messages as pcp
from igd.wire.pcp.opcodes import Announce
from tests.e2e import own_addresses as own
from tests.e2e.own_addresses import Found, description, search, wg0_has
from tests.e2e.pcp_client import ANYCAST, ANYCAST6, C1_IPV6, GATEWAY6, connected, granted, map_port
from tests.e2e.serving import C1, C2, GATEWAY, igd, serving
from tests.lab import PATIENCE, Lab, until
from tests.lab.fixtures import needs, requires_root
from tests.wire.pcp import client_codec

pytestmark = requires_root

SECOND, SECOND_NETWORK = "10.200.0.1", "10.200.0.1/24"
C2_SECOND = "10.200.0.3"
ANYCASTS = {GATEWAY: (ANYCAST, C1), GATEWAY6: (ANYCAST6, C1_IPV6)}


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    """A lab in which igd does not run before or after a test."""
    needs("upnpc", "natpmpc", "ss")
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize(
    ("late", "present"),
    [(f"{GATEWAY}/24", GATEWAY6), (f"{GATEWAY6}/64", GATEWAY)],
    ids=["without IPv4", "without IPv6"],
)
def test_an_address_that_comes_late_is_served(lab: Lab, late: str, present: str) -> None:
    """PCP's anycast address leads to it, too."""
    lab.srv.run("ip", "address", "del", late, "dev", "wg0")
    with serving(lab):
        own.served(lab, present)
        urls = re.escape(description(present))
        assert re.search(rf"^urls +{urls}$", igd(lab, "status", "wg0").stdout, re.MULTILINE)
        lab.srv.run("ip", "address", "add", late, "dev", "wg0")
        own.served(lab, GATEWAY, GATEWAY6)
        own.assert_answers(lab.c1, C1, GATEWAY)
        own.assert_answers(lab.c1, C1_IPV6, GATEWAY6, internal=C1)
        assert search(lab.c1, own.GROUP, C1) == Found(GATEWAY, description(GATEWAY))
        assert search(lab.c1, "ff02::c", C1_IPV6) == Found(GATEWAY6, description(GATEWAY6))
        for anycast, source in ANYCASTS.values():
            granted(map_port(lab.c1, 8320, source=source, server=anycast))


def test_announcements_leave_from_the_network_of_the_peer(lab: Lab) -> None:
    own.allow(lab, lab.c2, C2, C2_SECOND)
    with wg0_has(lab.srv, SECOND_NETWORK), wg0_has(lab.c2, f"{C2_SECOND}/32"):
        senders = {C2: GATEWAY, C2_SECOND: SECOND}
        heard = {address: _bound(lab, address, pcp.CLIENT_PORT) for address in senders}
        adverts = {address: _bound(lab, address, 1900) for address in senders}
        with serving(lab):
            for address, sender in senders.items():
                assert heard[address].recvfrom(2048)[1][0] == sender
                assert own.found(adverts[address]) == Found(sender, description(sender))
        for sock in (*heard.values(), *adverts.values()):
            sock.close()


def test_a_start_while_a_port_is_in_use_on_one_of_two_addresses(lab: Lab) -> None:
    with (
        wg0_has(lab.srv, SECOND_NETWORK),
        lab.srv.start("socat", "-d", "-d", f"TCP4-LISTEN:2869,bind={GATEWAY},reuseaddr", "STDOUT") as other,
    ):
        other.wait_for("listening on")
        with serving(lab) as process:
            assert any(f"not served at TCP {GATEWAY}:2869: Address already in use" in line for line in process.lines)
            own.assert_answers(lab.c1, C1, SECOND)
            assert search(lab.c1, own.GROUP, C1) == Found(GATEWAY, description(SECOND))
            other.stop()
            own.served(lab, GATEWAY, SECOND, GATEWAY6)
            assert search(lab.c1, own.GROUP, C1) == Found(GATEWAY, description(GATEWAY))


@pytest.mark.parametrize("server", [GATEWAY, GATEWAY6])
def test_a_port_in_use_by_all_addresses_of_a_version(lab: Lab, server: str) -> None:
    """Without IPv4 there is nobody to serve; without IPv6 there is, as before wg0 had IPv6."""
    family = "6" if ":" in server else "4"
    only = ",ipv6only=1" if family == "6" else ""
    with lab.srv.start("socat", "-d", "-d", "-u", f"UDP{family}-RECV:5351{only}", "STDOUT") as other:
        other.wait_for("starting data transfer")
        if family == "4":
            printed = igd(lab, "run", "wg0", check=False)
            assert printed.returncode == 1
            assert f"igd: wg0: [Errno 98] UDP {GATEWAY}:5351: Address already in use\n" in printed.stderr
        else:
            with serving(lab) as process:
                assert any(f"not served at UDP [{GATEWAY6}]:5351: Address" in line for line in process.lines)
                own.assert_answers(lab.c1, C1, GATEWAY)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("server", [GATEWAY, GATEWAY6])
def test_pcps_anycast_address_follows_the_address(lab: Lab, server: str, backend: str) -> None:
    """Also for a client that keeps its socket: connection tracking knows the old address."""
    anycast, source = ANYCASTS[server]
    prefix, other = ("/64", "2001:470:100::99") if ":" in server else ("/24", "10.100.0.99")
    config = f'[firewall]\nbackend = "{backend}"\n'
    with serving(lab, config), connected(lab.c1, anycast) as client:
        assert _announced(client, source)
        with own.moved_to_loopback(lab.srv, server + prefix), wg0_has(lab.srv, other + prefix):
            own.served(lab, other, *{GATEWAY, GATEWAY6} - {server})
            until(lambda: _announced(client, source))


def _announced(client: socket.socket, source: str) -> bool:
    """Send PCP's ANNOUNCE, and return whether there is a response within a second."""
    client.settimeout(1)
    client.send(client_codec.encode(pcp.Request(0, ipaddress.ip_address(source), Announce())))
    try:
        return isinstance(client_codec.decode_pcp(client.recv(2048)), client_codec.Response)
    except (TimeoutError, ConnectionRefusedError):  # the address is still on lo, where nobody listens
        return False


def _bound(lab: Lab, address: str, port: int) -> socket.socket:
    """Return a socket of c2 at this address."""
    sock = lab.c2.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    sock.bind((address, port))
    return sock
