"""Mappings by PCP and NAT-PMP admit whom they should, are the same as those by UPnP, and end when they should."""

import math
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from igd.wire.pcp.opcodes import Map
from igd.wire.pcp.options import NO_OPTIONS, Filter, PortSet
from tests.e2e.pcp_client import (
    ANYCAST,
    ANYCAST6,
    C1_IPV6,
    GATEWAY6,
    NONCE,
    connected,
    exchange,
    granted,
    map_port,
    refused,
)
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, decisions, mappings, ports, rules, serving, upnpc
from tests.lab import Answer, Host, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.swallowed import ALL_PACKETS, await_arrival
from tests.lab.talk import Protocol as Word
from tests.lab.wireguard import Iptables
from tests.wire.pcp import client_codec

pytestmark = requires_root

PROTOCOLS: dict[TransportProtocol, Word] = {TransportProtocol.TCP: "tcp", TransportProtocol.UDP: "udp"}
BACKENDS = pytest.mark.parametrize(
    ("backend", "iptables"), [("nftables", "nft"), ("iptables", "nft"), ("iptables", "legacy")]
)
WHO = "who am I?"
THIRD = "10.100.0.20"
GET_ADDRESS = client_codec.encode(natpmp.AddressRequest())


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "nft", "conntrack", "iptables-legacy-save")


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
    """A lab with igd in it, in which every test has ports of its own.

    c1 has the address THIRD too, and net sends what it has for the VPN to srv.
    """
    with Lab() as lab:
        key = lab.c1.run("sh", "-c", "wg show wg0 private-key | wg pubkey").stdout.strip()
        lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", f"{C1},{THIRD},{C1_IPV6}")
        lab.c1.run("ip", "address", "add", f"{THIRD}/32", "dev", "wg0")
        lab.net.run("ip", "route", "add", "10.100.0.0/24", "via", PUBLIC)
        with serving(lab, "[port_control]\nthird_party = true\n"):
            yield lab


def _backend(name: str) -> str:
    return f'[firewall]\nbackend = "{name}"\n'


@contextmanager
def _programs(client: Host, port: int) -> Iterator[None]:
    with answering(client, port, "tcp"), answering(client, port, "udp"):
        yield


# What is open


@BACKENDS
def test_a_mapping_is_open_until_it_is_deleted(backend: str, iptables: Iptables) -> None:
    with Lab(forward="drop", iptables=iptables) as lab:
        before = rules(lab)
        with serving(lab, _backend(backend)), _programs(lab.c1, 8043):
            for protocol, word in PROTOCOLS.items():
                mapped = granted(map_port(lab.c1, 8043, protocol, external_port=9043))
                assert mapped == Map(NONCE, protocol, 8043, 9043, ip_address(PUBLIC))
                assert ask(lab.net, PUBLIC, 9043, word) == Answer(REMOTE, WHO)
            for protocol, word in PROTOCOLS.items():
                granted(map_port(lab.c1, 8043, protocol, lifetime=0))
                with pytest.raises(ConnectionRefusedError):
                    ask(lab.net, PUBLIC, 9043, word)
        assert rules(lab) == before


@BACKENDS
def test_a_filter_lets_in_whom_it_names_alone(backend: str, iptables: Iptables) -> None:
    """Here c2 is no peer but somewhere on the internet, and so there are two sources."""
    with Lab(wg=False, forward="drop", iptables=iptables) as lab:
        lab.wg_up(lab.srv, lab.c1)
        with serving(lab, _backend(backend)), _programs(lab.c1, 8043):
            for protocol, word in PROTOCOLS.items():
                _filter(lab, protocol, Filter(96 + 24, 0, ip_address("80.80.80.0")))
                assert ask(lab.c2, PUBLIC, 8043, word) == Answer("80.80.80.1", WHO)
                with pytest.raises(ConnectionRefusedError):
                    ask(lab.net, PUBLIC, 8043, word)
                _filter(lab, protocol, Filter(96 + 32, 4000, ip_address(REMOTE)))  # besides the one before
                assert ask(lab.net, PUBLIC, 8043, word, source_port=4000) == Answer(REMOTE, WHO)
                with pytest.raises(ConnectionRefusedError):
                    ask(lab.net, PUBLIC, 8043, word, source_port=4001)
                assert ask(lab.c2, PUBLIC, 8043, word) == Answer("80.80.80.1", WHO)
                _filter(lab, protocol, Filter(0, 0, ip_address("0.0.0.0")))  # none at all
                assert ask(lab.net, PUBLIC, 8043, word) == Answer(REMOTE, WHO)


def _filter(lab: Lab, protocol: TransportProtocol, wanted: Filter) -> None:
    answer = map_port(lab.c1, 8043, protocol, options=replace(NO_OPTIONS, filters=(wanted,)))
    assert granted(answer).external_port == 8043
    assert isinstance(answer, client_codec.Response)
    assert answer.options.filters == (wanted,)


@pytest.mark.parametrize("server", [GATEWAY, ANYCAST])
def test_ports_in_a_row(served: Lab, server: str) -> None:
    first = 8100 if server == GATEWAY else 8110
    options = replace(NO_OPTIONS, port_set=PortSet(4, first, parity=True))
    answer = map_port(
        served.c1, first, TransportProtocol.UDP, external_port=first + 1001, options=options, server=server
    )
    external = granted(answer).external_port
    assert isinstance(answer, client_codec.Response)
    assert answer.options == options
    assert external % 2 == first % 2
    for step in range(4):
        with answering(served.c1, first + step, "udp"):
            assert ask(served.net, PUBLIC, external + step, "udp") == Answer(REMOTE, WHO)


# What is one


def test_three_protocols_and_one_mapping(served: Lab) -> None:
    wish = client_codec.encode(natpmp.MapRequest(TransportProtocol.UDP, 8200, 9200, 300))
    response = client_codec.decode_natpmp(exchange(served.c1, GATEWAY, wish))
    assert isinstance(response, client_codec.MapResponse)
    assert (response.external_port, response.lifetime) == (9200, 300)
    answer = map_port(served.c1, 8200, TransportProtocol.UDP, external_port=9201)
    assert (granted(answer).external_port, answer.lifetime) == (9200, 7200)
    assert f"UDP  9200->{C1}:8200" in upnpc(served.c1, "-l")
    upnpc(served.c1, "-d", "9200", "udp")
    assert ("UDP", 9200) not in ports(served)
    granted(map_port(served.c1, 8200, TransportProtocol.UDP, lifetime=0))  # nothing there, and that is fine


def test_a_nonce_keeps_others_off(served: Lab) -> None:
    granted(map_port(served.c1, 8210))
    other = b"another one."
    assert refused(map_port(served.c1, 8210, nonce=other)) is pcp.Result.NOT_AUTHORIZED
    assert refused(map_port(served.c1, 8210, nonce=other, lifetime=0)) is pcp.Result.NOT_AUTHORIZED
    assert ("TCP", 8210) in ports(served)


def test_a_port_that_is_taken(served: Lab) -> None:
    upnpc(served.c2, "-r", "8220", "tcp")
    that_or_none = replace(NO_OPTIONS, prefer_failure=True)
    answer = map_port(served.c1, 8220, external_port=8220, options=that_or_none)
    assert refused(answer) is pcp.Result.CANNOT_PROVIDE_EXTERNAL
    external = granted(map_port(served.c1, 8220, external_port=8220)).external_port
    assert external != 8220
    with answering(served.c1, 8220):
        assert ask(served.net, PUBLIC, external) == Answer(REMOTE, WHO)


# Who may ask, and how often


def test_a_third_party_is_another_address_of_the_same_peer(served: Lab) -> None:
    with answering(served.c1, 8230):
        options = replace(NO_OPTIONS, third_party=ip_address(THIRD))
        granted(map_port(served.c1, 8230, options=options))
        assert ask(served.net, PUBLIC, 8230) == Answer(REMOTE, WHO)
        (mapping,) = (mapping for mapping in mappings(served) if mapping["external_port"] == 8230)
        assert mapping["internal_address"] == THIRD
    options = replace(NO_OPTIONS, third_party=ip_address(C2))
    assert refused(map_port(served.c1, 8231, options=options)) is pcp.Result.NOT_AUTHORIZED


@pytest.mark.parametrize("address", [PUBLIC, GATEWAY, "2001:470:60::1", GATEWAY6])
def test_the_internet_asks_in_vain(served: Lab, address: str) -> None:
    with pytest.raises(ConnectionRefusedError):  # the server itself says so, by ICMP
        exchange(served.net, address, GET_ADDRESS)


def test_the_server_itself_is_no_peer(served: Lab) -> None:
    assert refused(map_port(served.srv, 8240, source=GATEWAY)) is pcp.Result.NOT_AUTHORIZED
    response = client_codec.decode_natpmp(exchange(served.srv, GATEWAY, GET_ADDRESS))
    assert isinstance(response, client_codec.AddressResponse)
    assert (response.result, str(response.address)) == (natpmp.Result.NOT_AUTHORIZED, "0.0.0.0")


def test_who_asks_too_often_is_not_heard_and_disturbs_nobody(lab: Lab) -> None:
    with serving(lab, "[limits]\nrequests_per_second = 5\n"), connected(lab.c1, GATEWAY) as flooding:
        begin = time.monotonic()
        answers: list[bytes] = []
        for _ in range(100):
            flooding.send(GET_ADDRESS)
        until(lambda: len(_collect(flooding, answers)) >= 5)
        assert exchange(lab.c2, GATEWAY, GET_ADDRESS)
        heard = len(_collect(flooding, answers)) + _dropped(lab)
        seconds = 1 + math.ceil(time.monotonic() - begin)
        assert len(answers) <= 5 * seconds  # five at once, and five each second
        assert len(answers) < heard <= 10 * seconds < 100  # the kernel drops what is above twice the rate
        until(lambda: flooding.send(GET_ADDRESS) and _collect(flooding, []), 0.5)  # once some time has passed


def _dropped(lab: Lab) -> int:
    return decisions(lab).get("port control dropped", 0)


def _collect(flooding: socket.socket, answers: list[bytes]) -> list[bytes]:
    """Add the answers that have come, and return all."""
    while select.select([flooding], [], [], 0)[0]:
        answers.append(flooding.recv(2048))
    return answers


def test_switched_off_nobody_listens(lab: Lab) -> None:
    with serving(lab, "[port_control]\nenabled = false\n"):
        for server in (GATEWAY, GATEWAY6):
            with pytest.raises(ConnectionRefusedError):
                exchange(lab.c1, server, GET_ADDRESS)
        upnpc(lab.c1, "-r", "8043", "tcp")


def test_anycast_can_be_switched_off_alone(lab: Lab) -> None:
    with serving(lab, "[port_control]\nanycast = false\n"):
        assert exchange(lab.c1, GATEWAY, GET_ADDRESS)
        watching = lab.net.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ALL_PACKETS)
        with watching, connected(lab.c1, ANYCAST) as sock:
            sock.send(GET_ADDRESS)
            await_arrival(watching, sock.getsockname()[1])  # on the internet


@BACKENDS
@pytest.mark.parametrize("server", [ANYCAST, ANYCAST6])
def test_nobody_needs_to_know_the_gateways_address(server: str, backend: str, iptables: Iptables) -> None:
    source = C1 if server == ANYCAST else C1_IPV6
    with Lab(forward="drop", iptables=iptables) as lab, serving(lab, _backend(backend)):
        granted(map_port(lab.c1, 8043, source=source, server=server))
        with answering(lab.c1, 8043, ipv6=source == C1_IPV6):
            assert ask(lab.net, PUBLIC if source == C1 else C1_IPV6, 8043).echo == WHO
