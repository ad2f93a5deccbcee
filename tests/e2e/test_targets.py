"""A peer whose AllowedIPs have more than its own address maps to the server, and to hosts behind it."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp.options import NO_OPTIONS
from tests.e2e import control
from tests.e2e.pcp_client import C1_IPV6, granted, map_port, refused
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, mappings, serving
from tests.lab import Answer, Host, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import swallows
from tests.wire.pcp.client_codec import PcpResponse

pytestmark = requires_root

SPARE, SPARE6 = "10.100.0.50", "2001:470:100::50"
PORT, INSIDE = 9101, 8101
CONFIG = "[port_control]\nthird_party = true\n[firewall]\nbackend = {}\n"
BACKENDS = pytest.mark.parametrize("backend", ["nftables", "iptables"])

NOT_YOURS = 606
NOT_AUTHORIZED = 2
"""NAT-PMP's result "Not Authorized/Refused" (RFC 6886 §3.5)."""

REFUSED = {
    "the tunnel's broadcast address": "10.100.0.255",
    "the server's address in the tunnel": GATEWAY,
    "the server's external address": PUBLIC,
    "the external network's broadcast address": "60.60.60.255",
    "a host of the external network": "60.60.60.77",
    "the server's address on lo": "10.100.0.99",
    "the address of a service": "127.0.0.1",
    "an address of another peer": C2,
    "this network": "0.1.2.3",
    "link-local": "169.254.169.254",
    "multicast": "239.255.255.250",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
}
OWNED = "10.100.0.0/24,60.60.60.0/24,127.0.0.0/8,0.0.0.0/8,169.254.0.0/16,239.0.0.0/8,240.0.0.0/8,255.0.0.0/8"


@contextmanager
def _greedy(lab: Lab, backend: str) -> Iterator[None]:
    """Run igd; c1's AllowedIPs have OWNED, what of it can be routed to c1 is, and c1 has a second address."""
    lab.srv.run("ip", "address", "add", "10.100.0.99/32", "dev", "lo")
    for network in ("0.0.0.0/8", "169.254.0.0/16", "239.0.0.0/8", "240.0.0.0/8", "255.0.0.0/8"):
        lab.srv.run("ip", "route", "add", network, "dev", "wg0")
    key = lab.c1.run("wg", "show", "wg0", "public-key").stdout.strip()
    lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"{OWNED},2001:470:100::/64")
    for address in (f"{SPARE}/32", f"{SPARE6}/128"):
        lab.c1.run("ip", "address", "add", address, "dev", "wg0")
    with serving(lab, CONFIG.format(f'"{backend}"')):
        yield


@BACKENDS
def test_what_is_refused_at_once(lab: Lab, backend: str) -> None:
    needs("iptables-legacy")
    with _greedy(lab, backend):
        for why, address in REFUSED.items():
            assert control.add(lab.c1, {"InternalClient": address}) == NOT_YOURS, why
            assert refused(_for(lab.c1, address)) == pcp.Result.NOT_AUTHORIZED, why
        assert control.add(lab.c1, {"InternalClient": SPARE}) == 200
        assert {mapping["internal_address"] for mapping in mappings(lab)} == {SPARE}


def test_a_source_that_is_not_one_hosts_maps_nothing_by_natpmp(lab: Lab) -> None:
    with _greedy(lab, "nftables"):
        lab.c1.run("ip", "address", "add", "240.0.0.1/32", "dev", "wg0")
        assert _natpmp(lab.c1, "240.0.0.1") == NOT_AUTHORIZED
        assert _natpmp(lab.c1, SPARE) == 0
        assert {mapping["internal_address"] for mapping in mappings(lab)} == {SPARE}


def _for(client: Host, address: str, protocol: TransportProtocol = TransportProtocol.TCP) -> PcpResponse:
    """Ask by PCP for PORT, or a pinhole, to INSIDE of this address, from c1's own address of the same version."""
    source = C1_IPV6 if ":" in address else C1
    options = replace(NO_OPTIONS, third_party=ip_address(address))
    return map_port(client, INSIDE, protocol, source=source, external_port=PORT, options=options)


def _natpmp(client: Host, source: str) -> int:
    """Ask for a mapping from this address; return the result."""
    with client.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(20)
        asking.bind((source, 0))
        asking.sendto(struct.pack(">BBHHHI", 0, 2, 0, PORT, PORT, 60), (GATEWAY, 5351))
        (result,) = struct.unpack_from(">H", asking.recv(64), 2)
        return int(result)


def test_a_pinhole_to_the_servers_own_address_is_refused(lab: Lab) -> None:
    with _greedy(lab, "nftables"):
        for address in ("2001:470:100::1", "2001:470:100::"):
            assert refused(_for(lab.c1, address)) == pcp.Result.NOT_AUTHORIZED
        granted(_for(lab.c1, SPARE6))


def test_a_pinhole_opens_nothing_of_the_server_and_closes_nothing(lab: Lab) -> None:
    """The address becomes the server's: the operator's INPUT alone decides."""
    with _greedy(lab, "nftables"), answering(lab.srv, INSIDE, ipv6=True):
        granted(_for(lab.c1, SPARE6))
        lab.srv.run("ip", "address", "add", f"{SPARE6}/128", "dev", "lo")
        assert ask(lab.net, SPARE6, INSIDE) == Answer("2001:470:60::2", "who am I?")
        lab.srv.run("ip6tables-nft", "-A", "INPUT", "-i", "ens0", "-p", "tcp", "--dport", str(INSIDE), "-j", "DROP")
        assert swallows(lab.srv, lab.net, SPARE6, INSIDE)


def test_not_a_byte_reaches_the_server_at_an_address_that_it_gets_later(lab: Lab) -> None:
    """From before it gets the address until the mappings have ended, by flows of before and by new ones."""
    with _greedy(lab, "nftables"), ExitStack() as stack:
        for protocol in TransportProtocol:
            granted(_for(lab.c1, SPARE, protocol))
        service = stack.enter_context(lab.srv.socket(socket.AF_INET, socket.SOCK_DGRAM))
        listening = stack.enter_context(lab.srv.socket(socket.AF_INET, socket.SOCK_STREAM))
        for private in (service, listening):
            private.bind(("0.0.0.0", INSIDE))
            private.setblocking(False)  # noqa: FBT003 - the parameter has no name
        listening.listen()
        sent = stack.enter_context(_attacking(lab.net))
        until(lambda: sent() > 100)
        lab.srv.run("ip", "address", "add", f"{SPARE}/32", "dev", "lo")
        until(lambda: mappings(lab) == [])
        after = sent()
        until(lambda: sent() > after + 100)
        with pytest.raises(BlockingIOError):
            service.recv(64)
        with pytest.raises(BlockingIOError):
            listening.accept()


@contextmanager
def _attacking(net: Host) -> Iterator[Callable[[], int]]:
    """Send to the mapped port without a pause, in one flow and in ever new ones; yield what counts the rounds."""
    ended, rounds = threading.Event(), [0]

    def attack() -> None:
        with closing(net.socket(socket.AF_INET, socket.SOCK_DGRAM)) as same:
            same.connect((PUBLIC, PORT))
            while not ended.is_set():
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    with suppress(OSError), closing(net.socket(socket.AF_INET, kind)) as new:
                        new.setblocking(False)  # noqa: FBT003 - the parameter has no name
                        new.connect_ex((PUBLIC, PORT))
                        new.send(b"attack")
                with suppress(OSError):
                    same.send(b"attack")
                rounds[0] += 1

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        yield lambda: rounds[0]
    finally:
        ended.set()
        thread.join()


def test_a_rule_that_igd_cannot_see_leads_to_no_host_behind_the_server() -> None:
    """It is for packets that arrive from the internet: by igd's own look-up the address is in the tunnel."""
    with Lab(forward="open") as lab, _greedy(lab, "nftables"):
        granted(_for(lab.c1, SPARE))
        for command in (
            "link add lan0 type veth peer name lan0-end",
            "link set lan0-end up",
            "link set lan0 up",
            f"neighbour add {SPARE} lladdr 02:00:00:00:00:03 dev lan0 nud permanent",
            f"route add {SPARE} dev lan0 table 100",
        ):
            lab.srv.run("ip", *command.split())
        with answering(lab.c1, INSIDE):
            assert ask(lab.net, PUBLIC, PORT).echo == "who am I?"
            lab.srv.run(*f"ip rule add iif ens0 to {SPARE} lookup 100".split())
            assert swallows(lab.srv, lab.net, PUBLIC, PORT)
            assert len(mappings(lab)) == 1
            lab.srv.run(*f"ip rule del iif ens0 to {SPARE} lookup 100".split())
            assert ask(lab.net, PUBLIC, PORT).echo == "who am I?"
