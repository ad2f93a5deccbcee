"""Each peer uses every action of UPnP, and SSDP, against the other, which loses nothing and of which nothing is learnt.

A new action without an attack in this table fails here.
"""

import contextlib
import itertools
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

from igd.wire.upnp.actions import ACTIONS
from igd.wire.upnp.devices import (
    LAYER3_FORWARDING,
    WAN_COMMON_INTERFACE_CONFIG,
    WAN_IP_CONNECTION,
    WAN_IPV6_FIREWALL_CONTROL,
    Service,
)
from tests.e2e import control, two_peers
from tests.e2e.serving import GATEWAY, REMOTE
from tests.e2e.two_peers import ALL_PORTS, FREE, TAKEN, UDP, Attacked, invoke
from tests.lab import PATIENCE
from tests.lab.fixtures import requires_root

pytestmark = requires_root

BROADCAST = "10.100.0.255"  # of the tunnel's network, which is c1's
OK, NO_SUCH, NOT_YOURS, CONFLICT, NOT_FOUND, NO_SUCH_PINHOLE = 200, 714, 606, 718, 730, 704


class Call(NamedTuple):
    """An action's arguments without "New", the code of the answer, and what igd counts if it decided on it."""

    arguments: Mapping[str, object]
    code: int
    counted: str = ""


def _adds(scene: Attacked, request: str) -> Iterator[Call]:
    """Yield additions that are refused: what only another peer, the server or nobody has."""
    own = {"RemoteHost": "", "Enabled": 1, "PortMappingDescription": "x", "LeaseDuration": 300}
    own |= {"ExternalPort": FREE, "InternalPort": FREE, "Protocol": "TCP", "InternalClient": scene.attacker.address}
    for address in (*scene.foreign_addresses(), BROADCAST):
        for port in (FREE, two_peers.UPNP_TCP, two_peers.RESERVED):
            yield Call(own | {"InternalClient": address, "ExternalPort": port}, NOT_YOURS, "MapPort NOT_YOUR_ADDRESS")
    if request == "AddPortMapping":
        for protocol, port in (*TAKEN, (UDP, 51820), (UDP, 5351)):
            for remote in ("", REMOTE):
                wanted = {"Protocol": protocol.name, "ExternalPort": port, "RemoteHost": remote}
                yield Call(own | wanted, CONFLICT, "MapPort CONFLICT")
        yield Call(own | {"ExternalPort": 0}, 716)
    yield Call(own | {"InternalClient": scene.victim.address6}, 600)


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
    harmless, unique_ids = [Call({}, OK)], _unique_ids(scene)
    return {
        (LAYER3_FORWARDING, "SetDefaultConnectionService"): [Call(connection, 723)],
        (LAYER3_FORWARDING, "GetDefaultConnectionService"): harmless,
        **{(WAN_COMMON_INTERFACE_CONFIG, f"GetTotal{unit}"): harmless for unit in _COUNTERS},
        (WAN_COMMON_INTERFACE_CONFIG, "GetCommonLinkProperties"): harmless,
        (WAN_COMMON_INTERFACE_CONFIG, "SetEnabledForInternet"): [
            Call({"EnabledForInternet": enabled}, NOT_YOURS) for enabled in (0, 1)
        ],
        (WAN_COMMON_INTERFACE_CONFIG, "GetEnabledForInternet"): harmless,
        (WAN_COMMON_INTERFACE_CONFIG, "GetMaximumActiveConnections"): harmless,
        (WAN_COMMON_INTERFACE_CONFIG, "GetActiveConnection"): [Call({"ActiveConnectionIndex": 1}, 713)],
        (WAN_IP_CONNECTION, "SetConnectionType"): [
            Call({"ConnectionType": "Unconfigured"}, 731),
            Call({"ConnectionType": "IP_Bridged"}, 731),
        ],
        (WAN_IP_CONNECTION, "GetConnectionTypeInfo"): harmless,
        (WAN_IP_CONNECTION, "RequestConnection"): harmless,
        (WAN_IP_CONNECTION, "ForceTermination"): [Call({}, NOT_YOURS)],
        (WAN_IP_CONNECTION, "RequestTermination"): [Call({}, NOT_YOURS)],
        **{(WAN_IP_CONNECTION, f"Set{what}"): [Call({what: 1}, NOT_YOURS)] for what in _DISCONNECTIONS},
        **{(WAN_IP_CONNECTION, f"Get{what}"): harmless for what in _DISCONNECTIONS},
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
        (WAN_IPV6_FIREWALL_CONTROL, "GetFirewallStatus"): harmless,
        (WAN_IPV6_FIREWALL_CONTROL, "GetOutboundPinholeTimeout"): [Call(_pinhole(scene.victim.address6), OK)],
        (WAN_IPV6_FIREWALL_CONTROL, "AddPinhole"): [*_pinholes(scene)],
        **{
            (WAN_IPV6_FIREWALL_CONTROL, action): [
                Call({"UniqueID": each, "LeaseTime": 1}, NO_SUCH_PINHOLE, f"{request} NO_SUCH_MAPPING")
                for each in unique_ids
            ]
            for action, request in _BY_UNIQUE_ID.items()
        },
    }


def _pinhole(client: str, port: int = two_peers.PINHOLE) -> dict[str, object]:
    flow = {"RemoteHost": "", "RemotePort": 0, "InternalClient": client, "InternalPort": port, "Protocol": 6}
    return flow | {"LeaseTime": 300}


def _pinholes(scene: Attacked) -> Iterator[Call]:
    """Yield pinholes to what is not the attacker's."""
    foreign = (scene.victim.address6, "2001:470:100::1", "2001:4860:4860::8888", "fe80::1", "ff02::1", "::", "::1")
    for address, port in itertools.product(foreign, (FREE, two_peers.PINHOLE)):
        yield Call(_pinhole(address, port), NOT_YOURS, "MapPort NOT_YOUR_ADDRESS")
    yield Call(_pinhole(scene.victim.address), 600)


def _unique_ids(scene: Attacked) -> tuple[int, ...]:
    """Return the UniqueID of the victim's pinhole, and some that nobody has."""
    found = two_peers.unique_id(scene.victim)
    return found, 0, found ^ 1, 65535 if found != 65535 else 1


_BY_UNIQUE_ID = {
    "UpdatePinhole": "RenewPinhole",
    "DeletePinhole": "UnmapPinhole",
    "GetPinholePackets": "GetPinholeTraffic",
    "CheckPinholeWorking": "GetPinholeTraffic",
}
_DISCONNECTIONS = ("AutoDisconnectTime", "IdleDisconnectTime", "WarnDisconnectDelay")
_COUNTERS = ("BytesSent", "BytesReceived", "PacketsSent", "PacketsReceived")
EVERY_ACTION = [(service, action.name) for service, actions in ACTIONS.items() for action in actions]


@pytest.mark.parametrize(("service", "action"), EVERY_ACTION, ids=[name for _, name in EVERY_ACTION])
def test_every_action_of_upnp(unharmed: Attacked, service: Service, action: str) -> None:
    """From the attacker's own address and, the first of them, from a host of its routed network."""
    calls = _calls(unharmed)[service, action]
    for source, attacks in (("", calls), (unharmed.attacker.routed, calls[:1])):
        for call in attacks:
            counted = unharmed.count(call.counted)
            answer = invoke(unharmed.attacker.host, source, service, action, call.arguments)
            assert _code(answer) == call.code, (source, call)
            assert unharmed.count(call.counted) - counted == bool(call.counted), call
            unharmed.assert_tells_nothing(answer.rest)


def _code(answer: control.Response) -> int:
    found = re.search(rb"<errorCode>(\d+)</errorCode>", answer.rest)
    return int(found[1]) if found else answer.status


def test_the_page_and_the_documents_are_the_askers(unharmed: Attacked) -> None:
    for path in ("/", "/1/device.xml", "/2/device.xml", f"/?peer={unharmed.victim.key}", f"/{unharmed.victim.address}"):
        request = f"GET {path} HTTP/1.1\r\nHost: {GATEWAY}:2869\r\nX-Forwarded-For: {unharmed.victim.address}\r\n\r\n"
        answer = control.exchange(unharmed.attacker.host, request.encode())
        assert answer.status == (404 if unharmed.victim.address in path else 200)
        unharmed.assert_tells_nothing(answer.rest)


# SSDP


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
        unharmed.assert_tells_nothing(answers)
        with contextlib.suppress(BlockingIOError):
            pytest.fail(f"the victim has received {listening.recv(4096)!r}")
