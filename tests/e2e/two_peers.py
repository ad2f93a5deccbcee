"""Two peers of one server: what the victim holds, what the attacker knows of it, and that nothing of it has changed."""

import ipaddress
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from igd.core.mapping import TransportProtocol
from igd.operator import admin_client, admin_paths
from igd.wire.pcp import natpmp
from igd.wire.pcp.options import Filter, Options, PortSet
from igd.wire.upnp.devices import WAN_IPV6_FIREWALL_CONTROL, Service
from tests.e2e import control
from tests.e2e.pcp_client import connected, granted, map_port
from tests.e2e.serving import GATEWAY, PUBLIC, REMOTE, rules, serving
from tests.lab import Host, Lab, answering
from tests.lab.talk import call
from tests.wire.pcp import client_codec
from tests.wire.pcp.client_codec import MapResponse

TCP, UDP = TransportProtocol.TCP, TransportProtocol.UDP
DESCRIPTION = "the victim's secret"
NONCE = b"victim nonce"
LEASE = 7200

FREE = 9999
"""A port that neither peer holds."""

FIRST = 9200
UPNP_TCP, UPNP_UDP, NATPMP_TCP, SAME_PORT, PCP_TCP, PCP_UDP, FILTERED, PINHOLE, CLOSED, STATIC, RESERVED, ROUTED = (
    range(FIRST, FIRST + 12)
)
PORT_SET = range(FIRST + 12, FIRST + 15)
ALL_PORTS = range(FIRST, PORT_SET.stop)

MAPPED = (
    *((TCP, port) for port in (UPNP_TCP, NATPMP_TCP, PCP_TCP, FILTERED, STATIC, ROUTED)),
    *((UDP, port) for port in (UPNP_UDP, SAME_PORT, PCP_UDP, *PORT_SET)),
)
"""The external ports of the victim's port mappings, which are its internal ports as well."""

TAKEN = (*MAPPED, (TCP, SAME_PORT), (TCP, RESERVED))
"""These, the companion of one, and a reserved port: no request of another peer is granted them."""


class Party(NamedTuple):
    """A peer, its own addresses, and a host of the network that is routed to it."""

    host: Host
    address: str
    address6: str
    routed: str

    @property
    def key(self) -> str:
        """The peer's public key."""
        return self.host.run("wg", "show", "wg0", "public-key").stdout.strip()


class Attacked(NamedTuple):
    """A running igd, its two peers, and a connection from the internet to the victim."""

    lab: Lab
    attacker: Party
    victim: Party
    third_party: bool
    remote: socket.socket

    def admin(self, path: str) -> Any:  # noqa: ANN401 - any JSON value
        """Return what `igd list` and `igd status` read, without the start of a program."""
        return admin_client.get(Path(f"/proc/{self.lab.srv.pid}/root/run/igd/wg0"), path)

    def count(self, outcome: str) -> int:
        """Return how often igd has counted this, such as "MapPort CONFLICT"."""
        count: int = self.admin(admin_paths.STATUS)["decisions"].get(outcome, 0)
        return count

    def state(self) -> object:
        """Return all mappings, and all rules of the server with the elements of all sets.

        Not whether the set of internal addresses has the attacker's: it keeps one for a while after the last mapping.
        """
        listed = [{**mapping, "lease": None} for mapping in self.admin(admin_paths.MAPPINGS)]
        return listed, re.sub(rf"(?m)^\s*{re.escape(self.attacker.address)}\n", "", rules(self.lab)).split()

    def assert_traffic_passes(self) -> None:
        """Ask over the connection that was there before the attacks, and over a new one."""
        with call(self.lab.net, PUBLIC, UPNP_TCP) as new:
            for remote in (self.remote, new):
                remote.sendall(b"still there\n")
                received = b""
                while not received.endswith(b"still there\n"):
                    piece = remote.recv(4096)
                    assert piece, "the connection has ended"
                    received += piece

    def assert_tells_nothing(self, answer: bytes) -> None:
        """Assert that an answer to the attacker has nothing of the victim; error descriptions repeat no argument."""
        victim = self.victim
        for secret in (DESCRIPTION, victim.address, victim.routed, victim.key, victim.address6):
            assert not re.search(rb"(?<![0-9])" + re.escape(secret).encode() + rb"(?![0-9])", answer), (secret, answer)

    def foreign_addresses(self) -> tuple[str, ...]:
        """Return addresses of the victim, of the server, of the internet, and of no host."""
        nobodys = (REMOTE, "127.0.0.1", "0.0.0.0", "255.255.255.255", "239.255.255.250")
        return self.victim.address, self.victim.routed, GATEWAY, PUBLIC, *nobodys


def parties(lab: Lab) -> dict[str, Party]:
    """Return c1 and c2, to each of which the server routes a network; c1 is allowed all of the tunnel's network, too.

    c2's own address is the longer prefix, so it stays c2's.
    """
    found = {
        "c1": Party(lab.c1, "10.100.0.2", "2001:470:100::2", "10.101.0.9"),
        "c2": Party(lab.c2, "10.100.0.3", "2001:470:100::3", "10.102.0.9"),
    }
    for name, party in found.items():
        network = f"{party.routed.removesuffix('9')}0/24"
        wide = ",10.100.0.0/24,2001:470:100::/64" if name == "c1" else ""
        allowed = f"{party.address},{party.address6},{network}{wide}"
        lab.srv.run("wg", "set", "wg0", "peer", party.key, "allowed-ips", allowed)
        lab.srv.run("ip", "route", "add", network, "dev", "wg0")
        party.host.run("ip", "address", "add", f"{party.routed}/32", "dev", "wg0")
    return found


@contextmanager
def attacked(lab: Lab, attacker: str, backend: str, *, third_party: bool) -> Iterator[Attacked]:
    """Run igd, and let the other peer hold mappings of every kind; rate limits are not what is tested."""
    by_name = parties(lab)
    victim = by_name["c2" if attacker == "c1" else "c1"]
    config = (
        f'[firewall]\nbackend = "{backend}"\n'
        f"[limits]\nrequests_per_second = 10000\n[port_control]\nthird_party = {str(third_party).lower()}\n"
        f'[peers.victim]\npublic_key = "{victim.key}"\n'
        f'static = ["tcp {STATIC} {victim.address} {STATIC}"]\nreserve = ["tcp {RESERVED}"]\n'
    )
    with serving(lab, config), answering(victim.host, UPNP_TCP):
        _map_everything(victim)
        with call(lab.net, PUBLIC, UPNP_TCP) as remote:
            yield Attacked(lab, by_name[attacker], victim, third_party, remote)


def _map_everything(victim: Party) -> None:
    host, address = victim.host, victim.address
    _add(victim, UPNP_TCP, {})
    _add(victim, UPNP_UDP, {"Protocol": "UDP", "RemoteHost": REMOTE})
    _add(victim, ROUTED, {"InternalClient": victim.routed})
    for protocol, internal, external in ((TCP, NATPMP_TCP, NATPMP_TCP), (UDP, 0, SAME_PORT)):
        assert _natpmp(victim, natpmp.MapRequest(protocol, internal, external, LEASE)) == external
    admitted = Options(filters=(Filter(128, 0, ipaddress.ip_address(REMOTE)),))
    several = Options(port_set=PortSet(len(PORT_SET), PORT_SET[0]))
    for protocol, port, options in (
        (TCP, PCP_TCP, Options()),
        (UDP, PCP_UDP, Options()),
        (TCP, FILTERED, admitted),
        (UDP, PORT_SET[0], several),
    ):
        mapped = map_port(host, port, protocol, source=address, external_port=port, nonce=NONCE, options=options)
        assert granted(mapped).external_port == port
    granted(map_port(host, PINHOLE, source=victim.address6, nonce=NONCE))
    unique_id(victim)


def unique_id(victim: Party) -> int:
    """Return the UniqueID of the victim's pinhole, which UPnP requests as well."""
    wanted = {"RemoteHost": "", "RemotePort": 0, "InternalClient": victim.address6, "LeaseTime": LEASE}
    wanted |= {"InternalPort": PINHOLE, "Protocol": TCP.value}
    answer = invoke(victim.host, "", WAN_IPV6_FIREWALL_CONTROL, "AddPinhole", wanted)
    found = re.search(rb"<UniqueID>(\d+)</UniqueID>", answer.rest)
    assert found, answer
    return int(found[1])


def _add(victim: Party, port: int, arguments: control.Arguments) -> None:
    own = {"InternalClient": victim.address, "ExternalPort": port, "InternalPort": port, "LeaseDuration": LEASE}
    assert control.add(victim.host, {"PortMappingDescription": DESCRIPTION, **own, **arguments}) == 200


def _natpmp(party: Party, request: natpmp.MapRequest) -> int:
    with connected(party.host, GATEWAY) as sock:
        sock.send(client_codec.encode(request))
        response = client_codec.decode_natpmp(sock.recv(64))
    assert isinstance(response, MapResponse)
    assert response.result == natpmp.Result.SUCCESS
    return response.external_port


def close_a_port(victim: Party) -> None:
    """Have the victim map and close CLOSED, which is held down for it from then on."""
    assert _natpmp(victim, natpmp.MapRequest(TCP, CLOSED, CLOSED, LEASE)) == CLOSED
    _natpmp(victim, natpmp.MapRequest(TCP, CLOSED, 0, 0))


def invoke(
    client: Host, source: str, service: Service, action: str, arguments: Mapping[str, object]
) -> control.Response:
    """Invoke an action of a service, under its newest type; arguments are named without "New"."""
    urn = service.urn(2).encode()
    content = control.body(action, arguments).replace(control.SERVICE.encode(), urn)
    head = control.head(action, {"Content-Length": len(content)}).replace(control.SERVICE.encode(), urn)
    head = head.replace(control.PATH.encode(), service.control_path.encode(), 1)
    return control.exchange(client, head + content, source=source)
