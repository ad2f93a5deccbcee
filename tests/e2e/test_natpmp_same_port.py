"""NAT-PMP with internal port 0: one port for both protocols, as the clients of ProtonVPN's servers request it."""

import contextlib
import re
import signal
import socket
import struct

import pytest

from igd.wire.pcp import messages as pcp
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, mappings, ports, serving, start
from tests.lab import PATIENCE, Answer, Host, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol as Word

pytestmark = requires_root

PROTOCOLS: tuple[Word, ...] = ("udp", "tcp")
GLUETUN = {"udp": 1, "tcp": 2}


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("natpmpc", "nft", "conntrack")


def natpmpc(client: Host, public: int, private: int, protocol: str, lifetime: int) -> int:
    """Map by natpmpc and return the public port; it echoes the private port and the lifetime."""
    words = map(str, (public, private, protocol, lifetime))
    printed = client.run("natpmpc", "-a", *words, "-g", GATEWAY).stdout
    match = re.search(r"Mapped public port (\d+) protocol \w+ to local port (\d+) (?:liftime|lifetime) (\d+)", printed)
    assert match, printed
    assert (int(match[2]), int(match[3])) == (private, lifetime)
    return int(match[1])


def assert_reached(lab: Lab, client: Host, port: int) -> None:
    """Assert that a service of `client` at this port is reached at the same port outside, by either protocol."""
    for protocol in PROTOCOLS:
        with answering(client, port, protocol):
            assert ask(lab.net, PUBLIC, port, protocol) == Answer(REMOTE, "who am I?")


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_the_loop_of_the_guides(backend: str) -> None:
    """`natpmpc -a 1 0 udp 60 -g GATEWAY && natpmpc -a 1 0 tcp 60 -g GATEWAY`, again and again, on two hosts."""
    with Lab() as lab, serving(lab, f'[firewall]\nbackend = "{backend}"\n'):
        granted = {client: natpmpc(client, 1, 0, "udp", 60) for client in (lab.c1, lab.c2)}
        assert len(set(granted.values())) == 2
        for client, port in granted.items():
            for public, private in ((1, 0), (0, 0), (port, 0), (port, port)):
                assert {natpmpc(client, public, private, protocol, 60) for protocol in PROTOCOLS} == {port}
            assert_reached(lab, client, port)
        assert len(ports(lab)) == 4
        port = granted[lab.c1]
        natpmpc(lab.c1, 0, port, "udp", 0)
        natpmpc(lab.c1, 0, 0, "tcp", 0)
        assert {mapping["internal_address"] for mapping in mappings(lab)} == {C2}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_port_survives_a_restart(lab: Lab, number: int) -> None:
    with start(lab) as process:
        port = natpmpc(lab.c1, 1, 0, "tcp", 600)
        process.signal(number)
        process.wait()
        with serving(lab):
            assert natpmpc(lab.c1, 1, 0, "udp", 600) == port
            assert natpmpc(lab.c1, 1, 0, "tcp", 600) == port
            assert_reached(lab, lab.c1, port)


def test_a_port_that_is_not_renewed_is_closed(lab: Lab) -> None:
    with serving(lab):
        for protocol in PROTOCOLS:
            natpmpc(lab.c1, 1, 0, protocol, 2)
        until(lambda: not ports(lab))


def _exchange(gluetun: socket.socket, request: str) -> tuple[int, int, int, int, int]:
    """Send these octets, and return opcode, result, internal port, external port and lifetime of the response."""
    gluetun.sendto(bytes.fromhex(request), (GATEWAY, pcp.SERVER_PORT))
    _, opcode, result, _, internal, external, lifetime = struct.unpack("!BBHIHHI", gluetun.recv(64))
    return opcode, result, internal, external, lifetime


def test_gluetun(lab: Lab) -> None:
    """What gluetun sends first, and every 45 seconds from then on; it requires what it compares here."""
    with serving(lab), contextlib.closing(lab.c1.socket(socket.AF_INET, socket.SOCK_DGRAM)) as gluetun:
        gluetun.settimeout(PATIENCE)
        _, _, _, port, _ = _exchange(gluetun, "0001 0000 0000 0000 0000003c")
        for suggested in (0, port, port):
            for protocol, opcode in GLUETUN.items():
                request = f"00{opcode:02x} 0000 0000 {suggested:04x} 0000003c"
                assert _exchange(gluetun, request) == (0x80 | opcode, 0, 0, port, 60), protocol
        assert sorted(ports(lab)) == [("TCP", port), ("UDP", port)]
        assert {(each["internal_address"], each["internal_port"]) for each in mappings(lab)} == {(C1, port)}
        assert_reached(lab, lab.c1, port)


def test_gluetun_keeps_its_port_when_igd_is_killed(lab: Lab) -> None:
    """It fails, and gives its port up, where a renewal is answered with another one."""
    with start(lab) as process, contextlib.closing(lab.c1.socket(socket.AF_INET, socket.SOCK_DGRAM)) as gluetun:
        gluetun.settimeout(PATIENCE)
        _, _, _, port, _ = _exchange(gluetun, "0001 0000 0000 0000 0000003c")
        process.signal(signal.SIGKILL)
        process.wait()
        with serving(lab):
            for opcode in GLUETUN.values():
                request = f"00{opcode:02x} 0000 0000 {port:04x} 0000003c"
                assert _exchange(gluetun, request) == (0x80 | opcode, 0, 0, port, 60)
            assert_reached(lab, lab.c1, port)
