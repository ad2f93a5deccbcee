"""Programs that speak NAT-PMP get ports that the internet reaches (libtorrent, which speaks PCP: test_torrents.py)."""

import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from igd.core.mapping import TransportProtocol
from igd.wire.pcp import messages as pcp
from igd.wire.pcp import natpmp
from tests.e2e.default_route import THROUGH_GATEWAY
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, held, mappings, ports, serving, upnpc
from tests.lab import PATIENCE, Answer, Host, Lab, answering, ask, call, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol as Word
from tests.wire.pcp import client_codec

pytestmark = requires_root

PY_NATPMP = (sys.executable, "-m", "natpmp.natpmp_client")
WHO = "who am I?"


@pytest.fixture(scope="module")
def served(root: None) -> Iterator[Lab]:
    """A lab with igd in it, whose clients' default routes name it; every test has ports of its own."""
    needs("nft", "natpmpc", "upnpc", "conntrack")
    with Lab(client_lines=THROUGH_GATEWAY) as lab, serving(lab):
        yield lab


def _natpmpc(client: Host, *words: str, gateway: str = "") -> tuple[int, int, int]:
    """Map by natpmpc, and return the public port, the private port and the lifetime (seconds) that it prints."""
    printed = client.run("natpmpc", *(("-g", gateway) if gateway else ()), "-a", *words).stdout
    match = re.search(r"Mapped public port (\d+) protocol \w+ to local port (\d+) (?:liftime|lifetime) (\d+)", printed)
    assert match, printed
    return int(match[1]), int(match[2]), int(match[3])


def _internal(lab: Lab, client: str) -> set[tuple[str, int]]:
    """Return protocol and internal port of all that leads to this address."""
    listed = (mapping for mapping in mappings(lab) if mapping["internal_address"] == client)
    return {(mapping["protocol"], mapping["internal_port"]) for mapping in listed}


# natpmpc


def test_natpmpc_tells_the_public_address(served: Lab) -> None:
    assert f"Public IP address : {PUBLIC}\n" in served.c1.run("natpmpc").stdout
    assert f"Public IP address : {PUBLIC}\n" in served.c1.run("natpmpc", "-g", GATEWAY).stdout


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(
    ("wish", "private", "public"), [(9300, 8300, 9300), (0, 8301, 8301)], ids=["wish", "without a wish"]
)
def test_natpmpc_maps_and_deletes(served: Lab, protocol: Word, wish: int, private: int, public: int) -> None:
    with answering(served.c1, private, protocol):
        assert _natpmpc(served.c1, str(wish), str(private), protocol, "600") == (public, private, 600)
        assert ask(served.net, PUBLIC, public, protocol) == Answer(REMOTE, WHO)
        assert _natpmpc(served.c1, str(wish), str(private), protocol, "0") == (0, private, 0)
        assert _natpmpc(served.c1, str(wish), str(private), protocol, "0") == (0, private, 0)  # nothing there is fine
        with pytest.raises(ConnectionRefusedError):
            ask(served.net, PUBLIC, public, protocol)


def test_natpmpc_is_given_the_same_port_whatever_it_wishes(served: Lab) -> None:
    assert _natpmpc(served.c1, "9310", "8310", "udp", "600")[0] == 9310
    assert _natpmpc(served.c1, "9311", "8310", "udp", "600")[0] == 9310
    assert ("UDP", 9311) not in ports(served)


def test_natpmpc_gets_another_port_where_its_wish_is_taken(served: Lab) -> None:
    _natpmpc(served.c2, "8320", "8320", "udp", "600")
    for protocol in ("udp", "tcp"):  # TCP is free, but the port's other half is another host's
        public, _, _ = _natpmpc(served.c1, "8320", "8320", protocol, "600")
        assert public not in (0, 8320)
        assert ({"udp": "UDP", "tcp": "TCP"}[protocol], public) in ports(served)


def test_natpmpc_deletes_all_of_a_protocol_and_nobody_elses(lab: Lab) -> None:
    needs("natpmpc", "upnpc", "nft")
    with serving(lab):
        for client, port in ((lab.c1, "8043"), (lab.c1, "8044"), (lab.c2, "8045")):
            for protocol in ("tcp", "udp"):
                _natpmpc(client, port, port, protocol, gateway=GATEWAY)
        upnpc(lab.c1, "-r", "8046", "tcp")
        _natpmpc(lab.c1, "0", "0", "tcp", "0", gateway=GATEWAY)
        assert _internal(lab, C1) == {("UDP", 8043), ("UDP", 8044), ("TCP", 8046)}
        _natpmpc(lab.c1, "0", "0", "udp", "0", gateway=GATEWAY)
        assert _internal(lab, C1) == {("TCP", 8046)}  # UPnP's
        assert _internal(lab, C2) == {("TCP", 8045), ("UDP", 8045)}


@pytest.mark.parametrize(
    ("port", "asked", "told"), [(8330, (), 3600), (8331, ("7200",), 7200), (8332, ("4294967295",), 604800)]
)
def test_natpmpc_is_told_the_lifetime_that_it_gets(served: Lab, port: int, asked: tuple[str, ...], told: int) -> None:
    assert _natpmpc(served.c1, str(port), str(port), "udp", *asked) == (port, port, told)
    (mapping,) = (mapping for mapping in mappings(served) if mapping["external_port"] == port)
    assert mapping["lease"] == pytest.approx(told, abs=PATIENCE)


def test_what_natpmpc_maps_for_two_seconds_is_gone_afterwards(served: Lab) -> None:
    with answering(served.c1, 8340, "udp"):
        assert any(_reached_during(served, lease) for lease in (2, 8, 32))  # the longer ones on a slow machine
        until(lambda: ("UDP", 8340) not in held(served))
        with pytest.raises(ConnectionRefusedError):
            ask(served.net, PUBLIC, 8340, "udp")


def _reached_during(lab: Lab, lease: int) -> bool:
    """Map 8340 for so many seconds, and return whether a client was reached by it before it was gone."""
    _natpmpc(lab.c1, "8340", "8340", "udp", str(lease))
    with suppress(ConnectionRefusedError):
        return ask(lab.net, PUBLIC, 8340, "udp").source == REMOTE
    return False


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_natpmpc_behind_a_firewall_that_drops(backend: str) -> None:
    needs("natpmpc", "nft")
    with Lab(forward="drop") as lab, serving(lab, f'[firewall]\nbackend = "{backend}"\n'):
        for protocol in ("tcp", "udp"):
            _natpmpc(lab.c1, "9043", "8043", protocol, gateway=GATEWAY)
            with answering(lab.c1, 8043, protocol):
                assert ask(lab.net, PUBLIC, 9043, protocol) == Answer(REMOTE, WHO)


# Others


@pytest.mark.parametrize("gateway", [("-g", GATEWAY), ()], ids=["told", "of the default route"])
def test_py_natpmp_maps_and_deletes(served: Lab, gateway: tuple[str, ...]) -> None:
    port = "9350" if gateway else "9351"
    options: dict[Word, tuple[str, ...]] = {"tcp": (), "udp": ("-u",)}
    for protocol, option in options.items():
        words = (*PY_NATPMP, *gateway, *option)
        told = served.c1.run(*words, "-l", "600", port, "8350").stdout
        assert "result 0, ssec " in told
        assert told.endswith(f"private_port 8350, public port {port}, lifetime 600\n")
        with answering(served.c1, 8350, protocol):
            assert ask(served.net, PUBLIC, int(port), protocol) == Answer(REMOTE, WHO)
        told = served.c1.run(*words, "-l", "0", port, "8350").stdout
        assert told.endswith("private_port 8350, public port 0, lifetime 0\n")
    assert int(port) not in [external for _, external in ports(served)]


def test_py_natpmp_tells_the_public_address(served: Lab) -> None:
    tell = "import natpmp; print(natpmp.get_gateway_addr(), natpmp.get_public_address())"
    assert served.c1.run(sys.executable, "-c", tell).stdout == f"{GATEWAY} {PUBLIC}\n"


def test_transmission_maps_its_port_where_upnp_finds_nothing(tmp_path: Path) -> None:
    """It prefers UPnP and has one switch for both; by NAT-PMP it maps TCP alone, and leaves that to its lease."""
    needs("nft", "transmission-daemon")
    settings = {"peer-port": 51413, "port-forwarding-enabled": True, "dht-enabled": False, "rpc-enabled": False}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with Lab(client_lines=THROUGH_GATEWAY) as lab, serving(lab):
        lab.c1.run("ip", "route", "add", "unreachable", "239.255.255.250")
        with lab.c1.start("transmission-daemon", "--foreground", "--config-dir", tmp_path):
            until(lambda: held(lab))
            (mapping,) = mappings(lab)
            assert (mapping["protocol"], mapping["external_port"]) == ("TCP", 51413)
            assert (mapping["description"], mapping["lease"]) == ("NAT-PMP", pytest.approx(3600, abs=PATIENCE))
            call(lab.net, PUBLIC, 51413).close()


def test_who_asks_from_the_port_of_announcements_is_answered_there(lab: Lab) -> None:
    """As nat-port-mapper (npm) does: its requests and the announcements use one socket."""
    request = client_codec.encode(natpmp.MapRequest(TransportProtocol.TCP, 8043, 0, 600))
    with lab.c1.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, serving(lab):
        asking.bind(("", pcp.CLIENT_PORT))
        asking.settimeout(PATIENCE)
        asking.sendto(request, (GATEWAY, pcp.SERVER_PORT))
        received = (asking.recv(2048) for _ in range(20))
        heard = (client_codec.decode_natpmp(datagram) for datagram in received if natpmp.is_natpmp(datagram))
        answer = next(each for each in heard if isinstance(each, client_codec.MapResponse))
        assert (answer.result, answer.external_port) == (natpmp.Result.SUCCESS, 8043)
