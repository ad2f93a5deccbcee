"""Each peer uses every action of every protocol against the other, which loses nothing and of which nothing is learnt.

A new action, opcode or option without an attack in these tables fails here.
"""

import contextlib
import itertools
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

import pytest

from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp, opcodes, options
from igd.wire.pcp.opcodes import Announce, Map
from igd.wire.pcp.options import Filter, Options, PortSet
from igd.wire.upnp.actions import ACTIONS
from igd.wire.upnp.devices import LAYER3_FORWARDING, WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION, Service
from tests.e2e import control, two_peers
from tests.e2e.pcp_client import connected
from tests.e2e.serving import GATEWAY, PUBLIC, REMOTE
from tests.e2e.two_peers import ALL_PORTS, DESCRIPTION, NONCE, TAKEN, TCP, UDP, Attacked, Party
from tests.lab import PATIENCE, Lab
from tests.lab.fixtures import needs, requires_root
from tests.wire.pcp import client_codec
from tests.wire.pcp.client_codec import ErrorResponse, MapResponse, OtherResponse, Response

pytestmark = requires_root

BROADCAST = "10.100.0.255"  # of the tunnel's network, which is c1's
OPCODES = (*range(130), 255)  # all requests, and some responses
FREE = 9999  # a port that neither peer holds
OK, NO_SUCH, NOT_YOURS, CONFLICT, NOT_FOUND = 200, 714, 606, 718, 730


@pytest.fixture(scope="module", params=[("c1", True), ("c2", False)], ids=["c1 attacks c2", "c2 attacks c1"])
def scene(root: None, request: pytest.FixtureRequest) -> Iterator[Attacked]:
    """One peer attacks the other: the one with the wide network with THIRD_PARTY, the other one without."""
    needs("nft", "conntrack")
    attacker, third_party = request.param
    with Lab() as lab, two_peers.attacked(lab, attacker, third_party=third_party) as attacked:
        yield attacked


@pytest.fixture
def unharmed(scene: Attacked) -> Iterator[Attacked]:
    """The scene; at the end the victim's mappings, the kernel and old and new connections are as before."""
    before = scene.state()
    yield scene
    assert scene.state() == before
    scene.assert_traffic_passes()


# UPnP


class Call(NamedTuple):
    """An action's arguments without "New", the code of the answer, and what igd counts if it decided on it."""

    arguments: Mapping[str, object]
    code: int
    counted: str = ""


def _adds(scene: Attacked, request: str) -> Iterator[Call]:
    """Yield additions that are refused: what only another peer, the server or nobody has."""
    own = {"RemoteHost": "", "Enabled": 1, "PortMappingDescription": "x", "LeaseDuration": 300}
    own |= {"ExternalPort": FREE, "InternalPort": FREE, "Protocol": "TCP", "InternalClient": scene.attacker.address}
    for address in (*_foreign(scene.victim), BROADCAST):
        for port in (FREE, two_peers.UPNP_TCP, two_peers.RESERVED):
            yield Call(own | {"InternalClient": address, "ExternalPort": port}, NOT_YOURS, "MapPort NOT_YOUR_ADDRESS")
    if request == "AddPortMapping":
        for protocol, port in (*TAKEN, (UDP, 51820), (UDP, 5351)):
            for remote in ("", REMOTE):
                wanted = {"Protocol": protocol.name, "ExternalPort": port, "RemoteHost": remote}
                yield Call(own | wanted, CONFLICT, "MapPort CONFLICT")
        yield Call(own | {"ExternalPort": 0}, 716)
    yield Call(own | {"InternalClient": scene.victim.address6}, 600)


def _foreign(victim: Party) -> tuple[str, ...]:
    """Return addresses of the victim, of the server, of the internet, and of no host."""
    nobodys = (REMOTE, "127.0.0.1", "0.0.0.0", "255.255.255.255", "239.255.255.250")
    return victim.address, victim.routed, GATEWAY, PUBLIC, *nobodys


def _keys(*, remotes: Sequence[str] = ("", REMOTE)) -> Iterator[Mapping[str, object]]:
    for (protocol, port), remote in itertools.product(TAKEN, remotes):
        yield {"RemoteHost": remote, "ExternalPort": port, "Protocol": protocol.name}


def _ranges(code: int, counted: str = "") -> Iterator[Call]:
    for protocol, manage in itertools.product(("TCP", "UDP"), (0, 1)):
        for first, last in ((ALL_PORTS[0], ALL_PORTS[-1]), (0, 65535)):
            wanted = {"StartPort": first, "EndPort": last, "Protocol": protocol, "Manage": manage, "NumberOfPorts": 0}
            yield Call(wanted, code, counted)
        yield Call({**wanted, "StartPort": 65535, "EndPort": 1}, 733)


def _calls(scene: Attacked) -> dict[tuple[Service, str], list[Call]]:
    """Return the attacks by every action; those without arguments change nothing for anyone."""
    connection = {"DefaultConnectionService": f"uuid:{scene.victim.address}:WANConnectionDevice:1,urn:x"}
    harmless = [Call({}, OK)]
    return {
        (LAYER3_FORWARDING, "SetDefaultConnectionService"): [Call(connection, 723)],
        (LAYER3_FORWARDING, "GetDefaultConnectionService"): harmless,
        **{(WAN_COMMON_INTERFACE_CONFIG, f"GetTotal{unit}"): harmless for unit in _COUNTERS},
        (WAN_COMMON_INTERFACE_CONFIG, "GetCommonLinkProperties"): harmless,
        (WAN_IP_CONNECTION, "SetConnectionType"): [
            Call({"ConnectionType": "Unconfigured"}, 731),
            Call({"ConnectionType": "IP_Bridged"}, 731),
        ],
        (WAN_IP_CONNECTION, "GetConnectionTypeInfo"): harmless,
        (WAN_IP_CONNECTION, "RequestConnection"): harmless,
        (WAN_IP_CONNECTION, "ForceTermination"): [Call({}, NOT_YOURS)],
        (WAN_IP_CONNECTION, "GetStatusInfo"): harmless,
        (WAN_IP_CONNECTION, "GetNATRSIPStatus"): harmless,
        (WAN_IP_CONNECTION, "GetExternalIPAddress"): harmless,
        (WAN_IP_CONNECTION, "GetGenericPortMappingEntry"): [
            Call({"PortMappingIndex": index}, 713) for index in (0, 1, 13, 65535)
        ],
        (WAN_IP_CONNECTION, "GetSpecificPortMappingEntry"): [
            Call(key, NO_SUCH, "GetMapping NO_SUCH_MAPPING") for key in _keys()
        ],
        (WAN_IP_CONNECTION, "AddPortMapping"): [*_adds(scene, "AddPortMapping")],
        (WAN_IP_CONNECTION, "AddAnyPortMapping"): [*_adds(scene, "AddAnyPortMapping")],
        (WAN_IP_CONNECTION, "DeletePortMapping"): [
            *(Call(key, NO_SUCH, "UnmapPorts NO_SUCH_MAPPING") for key in _keys()),
            Call({"RemoteHost": "", "ExternalPort": 0, "Protocol": "TCP"}, NO_SUCH),
        ],
        (WAN_IP_CONNECTION, "DeletePortMappingRange"): [*_ranges(NOT_FOUND, "UnmapPorts NO_SUCH_MAPPING")],
        (WAN_IP_CONNECTION, "GetListOfPortMappings"): [*_ranges(NOT_FOUND)],
    }


_COUNTERS = ("BytesSent", "BytesReceived", "PacketsSent", "PacketsReceived")
EVERY_ACTION = [(service, action.name) for service, actions in ACTIONS.items() for action in actions]


@pytest.mark.parametrize(("service", "action"), EVERY_ACTION, ids=[name for _, name in EVERY_ACTION])
def test_every_action_of_upnp(unharmed: Attacked, service: Service, action: str) -> None:
    """From the attacker's own address and, the first of them, from a host of its routed network."""
    calls = _calls(unharmed)[service, action]
    for source, attacks in (("", calls), (unharmed.attacker.routed, calls[:1])):
        for call in attacks:
            counted = unharmed.count(call.counted)
            answer = _invoke(unharmed.attacker, source, service, action, call.arguments)
            assert _code(answer) == call.code, (source, call)
            assert unharmed.count(call.counted) - counted == bool(call.counted), call
            _assert_tells_nothing(unharmed, answer.rest)


def _invoke(
    party: Party, source: str, service: Service, action: str, arguments: Mapping[str, object]
) -> control.Response:
    urn = service.urn(2).encode()
    content = control.body(action, arguments).replace(control.SERVICE.encode(), urn)
    head = control.head(action, {"Content-Length": len(content)}).replace(control.SERVICE.encode(), urn)
    head = head.replace(control.PATH.encode(), service.control_path.encode(), 1)
    return control.exchange(party.host, head + content, source=source)


def _code(answer: control.Response) -> int:
    found = re.search(rb"<errorCode>(\d+)</errorCode>", answer.rest)
    return int(found[1]) if found else answer.status


def _assert_tells_nothing(scene: Attacked, answer: bytes) -> None:
    """Assert that the answer has nothing of the victim; an error description may repeat no argument either."""
    for secret in (DESCRIPTION, scene.victim.address, scene.victim.routed, scene.victim.key, scene.victim.address6):
        assert not re.search(rb"(?<![0-9])" + re.escape(secret).encode() + rb"(?![0-9])", answer), (secret, answer)


def test_the_page_and_the_documents_are_the_askers(unharmed: Attacked) -> None:
    for path in ("/", "/1/device.xml", "/2/device.xml", f"/?peer={unharmed.victim.key}", f"/{unharmed.victim.address}"):
        request = f"GET {path} HTTP/1.1\r\nHost: {GATEWAY}:2869\r\nX-Forwarded-For: {unharmed.victim.address}\r\n\r\n"
        answer = control.exchange(unharmed.attacker.host, request.encode())
        assert answer.status == (404 if unharmed.victim.address in path else 200)
        _assert_tells_nothing(unharmed, answer.rest)


def test_ports_that_the_gateway_chooses_are_never_the_others(unharmed: Attacked) -> None:
    """By AddAnyPortMapping, NAT-PMP and PCP, for each port of the victim as the suggestion."""
    two_peers.close_a_port(unharmed.victim)
    own = unharmed.attacker.address
    for protocol, port in (*TAKEN, (TCP, two_peers.CLOSED)):
        arguments = {"RemoteHost": "", "ExternalPort": port, "Protocol": protocol.name, "InternalPort": port}
        arguments |= {"InternalClient": own, "Enabled": 1, "PortMappingDescription": "", "LeaseDuration": 300}
        answer = _invoke(unharmed.attacker, "", WAN_IP_CONNECTION, "AddAnyPortMapping", arguments)
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
        _invoke(scene.attacker, "", WAN_IP_CONNECTION, "DeletePortMappingRange", arguments)


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
    for address in _foreign(scene.victim):
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


# The victim's address as the source, and SSDP


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


def test_searches_and_announcements(unharmed: Attacked) -> None:
    """Searches are answered to the asker alone; announcements in the gateway's or the victim's name go nowhere."""
    ours = b"ST: upnp:rootdevice"
    search = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
    with (
        unharmed.victim.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening,
        unharmed.attacker.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        listening.bind((unharmed.victim.address, 1900))
        listening.setblocking(False)  # noqa: FBT003 - the parameter has no name
        sock.settimeout(PATIENCE)
        location = f"LOCATION: http://{unharmed.victim.address}:1900/\r\n".encode()
        for kind in (b"ssdp:byebye", b"ssdp:alive", b"ssdp:update"):
            notify = b"NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nNT: upnp:rootdevice\r\nNTS: " + kind
            sock.sendto(notify + b"\r\n" + location + b"\r\n", (GATEWAY, 1900))
        for target in (b"ssdp:all", b"uuid:" + unharmed.victim.address.encode(), b"upnp:rootdevice"):
            sock.sendto(search + location + b"ST: " + target + b"\r\n\r\n", (GATEWAY, 1900))
        answers = b""
        while answers.count(ours) < 2:
            answers += sock.recv(4096)
        _assert_tells_nothing(unharmed, answers)
        with contextlib.suppress(BlockingIOError):
            pytest.fail(f"the victim has received {listening.recv(4096)!r}")
