"""Each peer uses every opcode and option of NAT-PMP and PCP against the other, which loses nothing.

A new opcode or option without an attack in these tables fails here.
"""

import itertools
import re
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp, opcodes, options
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import Filter, Options, PortSet
from igd.wire.upnp.devices import WAN_IP_CONNECTION
from tests.e2e import two_peers
from tests.e2e.pcp_client import connected
from tests.e2e.serving import GATEWAY, PUBLIC
from tests.e2e.two_peers import ALL_PORTS, FREE, NONCE, TAKEN, TCP, UDP, Attacked, Party, invoke
from tests.lab.fixtures import requires_root
from tests.wire.pcp import client_codec
from tests.wire.pcp.client_codec import ErrorResponse, MapResponse, OtherResponse, Response

pytestmark = requires_root

OPCODES = (*range(130), 255)  # all requests, and some responses


# All protocols that choose ports


def test_ports_that_the_gateway_chooses_are_never_the_others(unharmed: Attacked) -> None:
    """By AddAnyPortMapping, NAT-PMP and PCP, for each port of the victim as the suggestion."""
    two_peers.close_a_port(unharmed.victim)
    own = unharmed.attacker.address
    for protocol, port in (*TAKEN, (TCP, two_peers.CLOSED)):
        arguments = {"RemoteHost": "", "ExternalPort": port, "Protocol": protocol.name, "InternalPort": port}
        arguments |= {"InternalClient": own, "Enabled": 1, "PortMappingDescription": "", "LeaseDuration": 300}
        answer = invoke(unharmed.attacker.host, "", WAN_IP_CONNECTION, "AddAnyPortMapping", arguments)
        found = re.search(rb"<NewReservedPort>(\d+)<", answer.rest)
        assert found, answer
        by_natpmp = _natpmp(unharmed.attacker, natpmp.MapRequest(protocol, port, port, 300))
        assert isinstance(by_natpmp, MapResponse)
        by_pcp = _pcp(unharmed, _request(unharmed, protocol, port, external=port))
        assert isinstance(by_pcp, Response)
        assert isinstance(by_pcp.payload, Map)
        chosen = {int(found[1]), by_natpmp.external_port, by_pcp.payload.external_port}
        assert {(protocol, each) for each in chosen}.isdisjoint(TAKEN), (protocol, port)
    _close_all(unharmed)


def _close_all(scene: Attacked) -> None:
    """Close everything that the attacker holds, by requests that name all ports."""
    _pcp(scene, _request(scene, None, 0, lifetime=0))
    for protocol in ("TCP", "UDP"):
        arguments = {"StartPort": 0, "EndPort": 65535, "Protocol": protocol, "Manage": 1}
        invoke(scene.attacker.host, "", WAN_IP_CONNECTION, "DeletePortMappingRange", arguments)


# NAT-PMP


def _natpmp(party: Party, request: natpmp.Request) -> client_codec.NatpmpResponse:
    with connected(party.host, GATEWAY) as sock:
        sock.send(client_codec.encode(request))
        return client_codec.decode_natpmp(sock.recv(64))


def test_deletions_by_natpmp(unharmed: Attacked) -> None:
    """Of each internal port of the victim, and of all ports: there are none of the attacker, which is a success."""
    for protocol, port in (*((protocol, port) for protocol in (TCP, UDP) for port in (*ALL_PORTS, 0)),):
        response = _natpmp(unharmed.attacker, natpmp.MapRequest(protocol, port, 0, 0))
        assert isinstance(response, MapResponse)
        assert (response.result, response.external_port) == (natpmp.Result.SUCCESS, 0)


def test_every_opcode_of_natpmp(unharmed: Attacked) -> None:
    """Opcodes 0 to 2 are the only ones: the others are repeated with an error, and responses are not answered."""
    with connected(unharmed.attacker.host, GATEWAY) as sock:
        for opcode in OPCODES:
            sock.send(struct.pack("!BBHHHI", 0, opcode, 0, two_peers.UPNP_TCP, two_peers.UPNP_TCP, 0))
            if opcode & natpmp.RESPONSE_BIT:
                continue
            response = client_codec.decode_natpmp(sock.recv(64))
            if opcode == natpmp.GET_ADDRESS or opcode in natpmp.MAP:
                assert response.result == natpmp.Result.SUCCESS
            else:
                assert response == OtherResponse(opcode, natpmp.Result.UNSUPPORTED_OPCODE)
        sock.send(client_codec.encode(natpmp.AddressRequest()))  # nothing else has been answered
        assert sock.recv(64)[1] == natpmp.RESPONSE_BIT


# PCP


def _request(
    scene: Attacked,
    protocol: int | None,
    port: int,
    *,
    external: int = 0,
    lifetime: int = 300,
    nonce: bytes = NONCE,
    chosen: Options = options.NO_OPTIONS,
    client: str = "",
) -> pcp.Request:
    payload = Map(nonce, protocol or 0, port, external, ip_address("0.0.0.0"))
    return pcp.Request(lifetime, ip_address(client or scene.attacker.address), payload, chosen)


def _pcp(scene: Attacked, request: pcp.Request) -> client_codec.PcpResponse:
    """Exchange messages over the IP version of the attacker's address, whatever client the request claims."""
    with connected(scene.attacker.host, GATEWAY) as sock:
        sock.send(client_codec.encode(request))
        return client_codec.decode_pcp(sock.recv(1200))


def _victims(scene: Attacked) -> Iterator[tuple[int, int]]:
    """Yield what the victim has inside: protocol and internal port of its mappings."""
    yield from two_peers.MAPPED
    yield TCP, two_peers.PINHOLE


def _for_third_party(scene: Attacked) -> Iterator[tuple[pcp.Request, pcp.Result, str]]:
    off = not scene.third_party
    refused = pcp.Result.UNSUPP_OPTION if off else pcp.Result.NOT_AUTHORIZED
    for (protocol, port), address in itertools.product(
        _victims(scene), (scene.victim.address, scene.victim.address6, scene.victim.routed)
    ):
        third = Options(third_party=ip_address(address))
        for lifetime, kind in ((300, "MapPort"), (0, "UnmapInternal")):
            request = _request(scene, protocol, port, external=port, lifetime=lifetime, chosen=third)
            yield request, refused, "" if off else f"{kind} NOT_YOUR_ADDRESS"
    for address in scene.foreign_addresses():
        request = _request(scene, None, 0, lifetime=0, chosen=Options(third_party=ip_address(address)))
        yield request, refused, "" if off else "UnmapInternal NOT_YOUR_ADDRESS"


def _with_prefer_failure(scene: Attacked) -> Iterator[tuple[pcp.Request, pcp.Result, str]]:
    """Yield requests for exactly the victim's ports, with its nonce and with another, and for the one just closed."""
    two_peers.close_a_port(scene.victim)
    for (protocol, port), nonce in itertools.product((*TAKEN, (TCP, two_peers.CLOSED)), (NONCE, b"another one.")):
        request = _request(scene, protocol, port, external=port, nonce=nonce, chosen=Options(prefer_failure=True))
        yield request, pcp.Result.CANNOT_PROVIDE_EXTERNAL, "MapPort CONFLICT"


def _with_filters(scene: Attacked) -> Iterator[tuple[pcp.Request, pcp.Result, str]]:
    """Yield requests that would cut off the victim's remotes, add others, or remove its filter."""
    networks = (Filter(128, 0, ip_address("192.0.2.1")), Filter(0, 0, ip_address("0.0.0.0")))
    for (protocol, port), each in itertools.product(TAKEN, networks):
        chosen = Options(prefer_failure=True, filters=(each,))
        request = _request(scene, protocol, port, external=port, chosen=chosen)
        yield request, pcp.Result.CANNOT_PROVIDE_EXTERNAL, "MapPort CONFLICT"


def _with_port_sets(scene: Attacked) -> Iterator[tuple[pcp.Request, pcp.Result, str]]:
    """Yield deletions of sets in which the victim's ports lie: the attacker has none of them, which is a success."""
    for protocol in (TCP, UDP):
        for size in (len(ALL_PORTS), 65535):
            chosen = Options(port_set=PortSet(size, ALL_PORTS[0]))
            request = _request(scene, protocol, ALL_PORTS[0], lifetime=0, chosen=chosen)
            yield request, pcp.Result.SUCCESS, "UnmapInternal GRANTED"


def _without_options(scene: Attacked) -> Iterator[tuple[pcp.Request, pcp.Result, str]]:
    """Yield deletions with the victim's nonce, as the attacker and as the victim."""
    for protocol, port in (*_victims(scene), (None, 0), (TCP, 0), (UDP, 0)):
        yield _request(scene, protocol, port, lifetime=0), pcp.Result.SUCCESS, "UnmapInternal GRANTED"
        for client in (scene.victim.address, scene.victim.address6, scene.victim.routed, "0.0.0.0", PUBLIC):
            request = _request(scene, protocol, port, lifetime=0, client=client)
            yield request, pcp.Result.ADDRESS_MISMATCH, ""


ATTACKS_BY_OPTION = {
    None: _without_options,
    options.THIRD_PARTY: _for_third_party,
    options.PREFER_FAILURE: _with_prefer_failure,
    options.FILTER: _with_filters,
    options.PORT_SET: _with_port_sets,
}


@pytest.mark.parametrize("option", [None, *sorted(opcodes.LAYOUTS[opcodes.Opcode.MAP].options)])
def test_every_option_of_pcps_map(unharmed: Attacked, option: int | None) -> None:
    for request, result, counted in ATTACKS_BY_OPTION[option](unharmed):
        before = unharmed.count(counted)
        response = _pcp(unharmed, request)
        found = response.result if isinstance(response, ErrorResponse) else pcp.Result.SUCCESS
        assert found == result, request
        assert unharmed.count(counted) - before == bool(counted), request


def test_port_sets_end_before_the_others_ports(unharmed: Attacked) -> None:
    first = ALL_PORTS[0] - 4
    for protocol in (TCP, UDP):
        several = Options(port_set=PortSet(40, first))
        response = _pcp(unharmed, _request(unharmed, protocol, first, external=first, chosen=several))
        assert isinstance(response, Response)
        assert isinstance(response.payload, Map)
        size = response.options.port_set.size if response.options.port_set else 1
        got = range(response.payload.external_port, response.payload.external_port + size)
        assert {(protocol, port) for port in got}.isdisjoint(TAKEN)
    _close_all(unharmed)


def test_every_opcode_of_pcp(unharmed: Attacked) -> None:
    """ANNOUNCE and MAP are the only ones: the others are answered with an error, and responses are not answered."""
    assert set(opcodes.LAYOUTS) == {opcodes.Opcode.ANNOUNCE, opcodes.Opcode.MAP}
    client = ip_address(unharmed.attacker.address)
    with connected(unharmed.attacker.host, GATEWAY) as sock:
        for opcode in OPCODES:
            map_all = bytearray(client_codec.encode(_request(unharmed, None, 0, lifetime=0)))
            map_all[1] = opcode
            sock.send(bytes(map_all[:24] if opcode == opcodes.Opcode.ANNOUNCE else map_all))
            if opcode & pcp.RESPONSE_BIT:
                continue
            response = client_codec.decode_pcp(sock.recv(1200))
            if opcode in opcodes.LAYOUTS:
                assert isinstance(response, Response)
            else:
                assert isinstance(response, ErrorResponse)
                assert response.result == pcp.Result.UNSUPP_OPCODE
        sock.send(client_codec.encode(pcp.Request(0, client, Announce())))  # nothing else has been answered
        last = client_codec.decode_pcp(sock.recv(1200))
        assert isinstance(last, Response)
        assert last.payload == Announce()


# The victim's address as the source


def test_requests_in_the_victims_name(unharmed: Attacked) -> None:
    """WireGuard drops what comes from the attacker with the victim's address; igd sees nothing of it."""
    scene, victim = unharmed, unharmed.victim
    scene.attacker.host.run("ip", "address", "add", f"{victim.address}/32", "dev", "wg0")
    before = scene.count("UnmapInternal GRANTED")
    try:
        forged = [
            client_codec.encode(natpmp.MapRequest(TCP, 0, 0, 0)),
            client_codec.encode(_request(scene, None, 0, lifetime=0, client=victim.address)),
        ]
        with scene.attacker.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((victim.address, 0))
            for datagram in forged:
                sock.sendto(datagram, (GATEWAY, pcp.SERVER_PORT))
    finally:
        scene.attacker.host.run("ip", "address", "delete", f"{victim.address}/32", "dev", "wg0")
    _natpmp(scene.attacker, natpmp.MapRequest(TCP, FREE, 0, 0))  # is received after them
    assert scene.count("UnmapInternal GRANTED") == before + 1
