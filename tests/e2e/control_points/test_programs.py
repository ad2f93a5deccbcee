"""Programs that map their own ports, and nmap's scripts; all begin at once, because each searches for seconds.

In c1 they have what docs/clients.md advises. In c2 they show what it is good for: Syncthing runs without the flag
MULTICAST, and Kubo with the flag, but without the network in `Address`.
"""

import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.control_points import syncthing
from tests.e2e.control_points.reach import assert_closed
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, mappings
from tests.lab import Answer, Host, Lab, Process, answering, ask, call, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

KUBO = (sys.executable, Path(__file__).with_name("kubo.py"))
KUBO_PORT = 4001
WG_QUICKS_OWN = (
    "ip address add 10.100.0.3/32 dev wg0",
    "ip address del 10.100.0.3/24 dev wg0",
    "ip route replace default dev wg0",
    "ip link set wg0 multicast off",
)


class Running(NamedTuple):
    """The programs that were started, and the directory with their files."""

    syncthing: Process
    kubo: Process
    plain_syncthing: Process
    plain_kubo: Process
    nmap: Process
    files: Path


@pytest.fixture(scope="module")
def running(served: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    needs("syncthing", "nmap")
    files = tmp_path_factory.mktemp("programs")
    homes = [files / name for name in ("syncthing", "kubo", "plain syncthing", "plain kubo")]
    for home in homes:
        home.mkdir()
    for command in WG_QUICKS_OWN:
        served.c2.run(*command.split())
    with ExitStack() as stack:
        advised_syncthing = stack.enter_context(syncthing.start(served.c1, homes[0]))
        advised_kubo = stack.enter_context(_start_kubo(served.c1, homes[1]))
        nmap = stack.enter_context(served.c2.start("nmap", "--script", "broadcast-upnp-info"))
        plain_syncthing = stack.enter_context(syncthing.start(served.c2, homes[2]))
        plain_syncthing.wait_for("Starting discovery")  # it has read the flags of all interfaces
        served.c2.run("ip", "link", "set", "wg0", "multicast", "on")
        plain_kubo = stack.enter_context(_start_kubo(served.c2, homes[3]))
        yield Running(advised_syncthing, advised_kubo, plain_syncthing, plain_kubo, nmap, files)


def _start_kubo(host: Host, repository: Path) -> Process:
    return host.start("env", f"--chdir={repository}", "GOLOG_LOG_LEVEL=warn", *KUBO, "serve", repository)


def _external_ports(lab: Lab, client: str, internal_port: int) -> list[tuple[str, int]]:
    """Return protocol and external port of each mapping that leads there."""
    listed = (each for each in mappings(lab) if each["internal_address"] == client)
    return [(each["protocol"], each["external_port"]) for each in listed if each["internal_port"] == internal_port]


def test_syncthing(served: Lab, running: Running) -> None:
    """It maps by NAT-PMP and by both versions of UPnP, opens a pinhole from 1.29 on, and closes nothing at its end."""
    running.syncthing.wait_for("Detected [1-9] NAT services")
    opened = syncthing.opened(running.syncthing)
    assert len([host for host, _ in opened if host == PUBLIC]) == 3
    assert syncthing.listed(served) == opened
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    for host, port in opened:
        with call(served.net, host, port) as remote, trusting.wrap_socket(remote) as visitor:
            assert visitor.getpeercert(binary_form=True) == syncthing.certificate(running.files / "syncthing")
    assert running.syncthing.stop() == 0
    assert syncthing.listed(served) == opened


def test_syncthing_searches_only_on_interfaces_with_the_flag_multicast(served: Lab, running: Running) -> None:
    """It asks 0.0.0.0 by NAT-PMP, since wg-quick's default route has no gateway."""
    running.plain_syncthing.wait_for("Detected 0 NAT services")
    searched = {line.rpartition(" on ")[2] for line in running.plain_syncthing.lines if "Starting discovery" in line}
    assert searched == {"eth0"}
    assert _external_ports(served, C2, syncthing.PORT) == []


def test_kubo(served: Lab, running: Running) -> None:
    """It maps by UPnP. At its end it deletes the mapping of one protocol: its library remembers one for each port."""
    announced = rf"(/ip4/{PUBLIC}/tcp/([1-9]\d*)/p2p/\w+) (/ip4/{PUBLIC}/udp/([1-9]\d*)/quic-v1/p2p/\w+)"
    match = running.kubo.wait_for(announced)
    external = {("TCP", int(match[2])), ("UDP", int(match[4]))}
    assert set(_external_ports(served, C1, KUBO_PORT)) == external
    for address in (match[1], match[3]):
        protocol = address.split("/")[3]
        repository = running.files / f"visitor by {protocol}"
        repository.mkdir()
        connected = served.net.run("env", f"--chdir={repository}", *KUBO, "visit", repository, address).stdout
        assert f'["/ip4/{PUBLIC}/{protocol}/' in connected
    running.kubo.signal(signal.SIGUSR1)
    until(lambda: len(external.intersection(_external_ports(served, C1, KUBO_PORT))) == 1)


def test_kubo_maps_nothing_by_upnp_from_an_address_without_its_network(served: Lab, running: Running) -> None:
    running.plain_kubo.wait_for("failed to establish port mapping: newport = 0")
    assert _external_ports(served, C2, KUBO_PORT) == []


def test_nmap_finds_the_gateway(served: Lab, running: Running) -> None:
    assert running.nmap.wait() == 0
    printed = "\n".join(running.nmap.lines)
    assert f"Location: http://{GATEWAY}:2869/1/device.xml" in printed
    assert "Name: igd on wg0" in printed


def test_nmap_asks_the_gateway(served: Lab, running: Running) -> None:
    printed = _nmap(served, "1900,5351", "upnp-info,nat-pmp-info")
    assert f"Location: http://{GATEWAY}:2869/1/device.xml" in printed
    assert f"WAN IP: {PUBLIC}" in printed


def test_nmap_maps(served: Lab, running: Running) -> None:
    """Its `unmapall` deletes all that the client has of the protocol."""
    mapped = f"tcp {PUBLIC}:9401 -> {C2}:8401"
    assert f"Successfully mapped {mapped}" in _map_by_nmap(served, "map")
    with answering(served.c2, 8401):
        assert ask(served.net, PUBLIC, 9401) == Answer(REMOTE, "who am I?")
    assert "Successfully unmapped tcp" in _map_by_nmap(served, "unmap")
    assert_closed(served, 9401)
    assert f"Successfully mapped {mapped}" in _map_by_nmap(served, "map")
    assert "unmapped all tcp NAT mappings" in _map_by_nmap(served, "unmapall")
    assert_closed(served, 9401)


def _nmap(lab: Lab, ports: str, scripts: str, *words: str) -> str:
    return lab.c2.run("nmap", "-Pn", "-n", "-sU", "-p", ports, "--script", scripts, *words, GATEWAY).stdout


def _map_by_nmap(lab: Lab, operation: str) -> str:
    given = {"op": operation, "pubport": 9401, "privport": 8401, "protocol": "tcp", "lifetime": 600}
    arguments = ",".join(f"nat-pmp-mapport.{name}={value}" for name, value in given.items())
    return _nmap(lab, "5351", "nat-pmp-mapport", "--script-args", arguments)
