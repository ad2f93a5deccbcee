"""PCP's and NAT-PMP's ports and epoch survive restarts, and changes are announced to the clients concerned alone."""

import select
import signal
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest

from igd.wire.pcp import natpmp
from tests.e2e import stored
from tests.e2e.pcp_client import C1_IPV6, connected, granted, has_address, has_mapping, is_restart, listening, map_port
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, held, natpmpc, ports, serving, start
from tests.lab import PATIENCE, Answer, Host, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.wire.pcp import client_codec

pytestmark = requires_root

RENUMBERED = "60.60.60.9"
OTHER_NONCE = b"another one."
EPOCH_ERROR = 2  # seconds that clients tolerate (RFC 6887 §8.5)


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("natpmpc", "nft", "conntrack")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_ports_and_epoch(lab: Lab, number: int) -> None:
    with start(lab) as process, answering(lab.c1, 8043, "udp"):
        natpmpc(lab.c2, "8043", "8043", "udp", "300")
        begin = time.monotonic()
        port, epoch = natpmpc(lab.c1, "8043", "8043", "udp", "300")
        end = time.monotonic()
        assert port != 8043  # so that it would hardly be found again by chance
        process.signal(number)
        process.wait()
        stored.change(lab, "UPDATE state SET began = began - 3600")  # as if an hour had passed before
        with serving(lab):
            assert ask(lab.net, PUBLIC, port, "udp") == Answer(REMOTE, "who am I?")
            least = 3600 + time.monotonic() - end
            renewed, epoch_then = natpmpc(lab.c1, "8043", "8043", "udp", "300")
            assert renewed == port
            most = 3600 + time.monotonic() - begin
            assert least - EPOCH_ERROR <= epoch_then - epoch <= most + EPOCH_ERROR
            assert len(ports(lab)) == 2


def test_live_peers_hear_of_a_start(lab: Lab) -> None:
    with listening(lab.c1) as first, listening(lab.c2, C2) as second, serving(lab):
        for ear in (first, second):
            for _ in range(2):  # one may be lost
                ear.receive(is_restart)
                ear.receive(has_address(PUBLIC))


def test_a_new_public_address_is_told_and_works(lab: Lab) -> None:
    with listening(lab.c1) as ear, listening(lab.c1, C1_IPV6) as ear6, serving(lab), answering(lab.c1, 8043):
        before = granted(map_port(lab.c1, 8043))
        pinhole = granted(map_port(lab.c1, 8043, source=C1_IPV6))
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        for _ in range(5):  # the start is announced again and again; the next time is four seconds away
            ear.receive(has_address(PUBLIC))
        _renumber(lab)
        after = replace(before, external_address=ip_address(RENUMBERED))
        for _ in range(2):  # one may be lost
            ear.receive(has_address(RENUMBERED))
            ear.receive(has_mapping(after))
            ear6.receive(has_mapping(pinhole))
        assert ask(lab.net, RENUMBERED, 8043) == Answer(REMOTE, "who am I?")
        assert granted(map_port(lab.c1, 8043)) == after


def _renumber(lab: Lab) -> None:
    _ip(lab.srv, f"address delete {PUBLIC}/24 dev ens0", f"address add {RENUMBERED}/24 dev ens0")
    _ip(lab.srv, f"route add default via {REMOTE}")
    endpoint = f"wg set wg0 peer $(wg show wg0 peers) endpoint {RENUMBERED}:51820"
    lab.c1.run("sh", "-c", f"{endpoint} && ping -q -c1 -w{PATIENCE:.0f} {GATEWAY}")


def _ip(host: Host, *commands: str) -> None:
    host.run("ip", "-batch", "-", input="\n".join(commands))


def test_an_address_that_changes_hands_takes_nothing_along(lab: Lab) -> None:
    first, second = (_key(client) for client in (lab.c1, lab.c2))
    with serving(lab):
        lost = granted(map_port(lab.c1, 8043))
        kept = granted(map_port(lab.c2, 8044, source=C2, nonce=OTHER_NONCE))
        lab.srv.run("wg", "set", "wg0", "peer", first, "remove")
        with connected(lab.c1, GATEWAY) as removed:
            removed.send(client_codec.encode(natpmp.AddressRequest()))
            assert granted(map_port(lab.c2, 8044, source=C2, nonce=OTHER_NONCE)) == kept  # requested later
            assert not select.select([removed], [], [], 0)[0]
        lab.srv.run("wg", "set", "wg0", "peer", second, "allowed-ips", f"{C2}/32,{C1}/32")
        _ip(lab.c2, f"address add {C1}/32 dev wg0")
        until(lambda: held(lab) == [("TCP", 8044)])
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, 8043)
    with listening(lab.c2) as heir, listening(lab.c2, C2) as ear, serving(lab):
        for _ in range(3):
            ear.receive(has_mapping(kept))
            heard = heir.receive(lambda heard: has_address(PUBLIC)(heard) or has_mapping(lost)(heard))
            assert has_address(PUBLIC)(heard)


def _key(client: Host) -> str:
    return client.run("sh", "-c", "wg show wg0 private-key | wg pubkey").stdout.strip()
