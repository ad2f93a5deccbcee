"""`igd migrate` takes the place of a miniupnpd that runs: its clients and their connections go on."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pytest

from tests.e2e import former_gateway, pcp_client, serving
from tests.e2e.former_gateway import FILE
from tests.e2e.serving import C1, C2, PUBLIC
from tests.lab import Host, Lab, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol, answering, ask, call, put
from tests.wire.pcp.client_codec import ErrorResponse

pytestmark = requires_root

_PORTS = range(8001, 8008)
"""c1 maps each for TCP and UDP; another six mappings are made by other protocols, for other ends and by c2."""

_LIVE: tuple[tuple[str, Protocol, int], ...] = ((C1, "tcp", 8001), (C1, "udp", 8001), (C2, "tcp", 9001))
_DESCRIPTION = "it's mine, 50 %"


@dataclass(frozen=True)
class Migrated:
    """A lab in which igd has taken the place of miniupnpd, and what was seen before."""

    lab: Lab
    url: str
    lists: tuple[dict[str, list[str]], dict[str, list[str]]]
    epoch: int
    planned: str
    rules: str
    printed: str
    live: dict[tuple[str, Protocol, int], socket.socket]


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def migrated(
    root: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Migrated]:
    """Have a miniupnpd make 20 mappings, connect through four of them, and run igd migrate."""
    needs("upnpc", "natpmpc", "miniupnpd", "conntrack", "dpkg-deb")
    backend: former_gateway.Backend = request.param
    program = former_gateway.program(backend, tmp_path_factory.mktemp("miniupnpd"))
    with ExitStack() as life:
        lab = life.enter_context(former_gateway.laboratory(backend))
        miniupnpd, url = former_gateway.start(lab, program)
        life.enter_context(miniupnpd)
        epoch = _map_everything(lab, url)
        hosts = {C1: lab.c1, C2: lab.c2}
        live = {}
        for address, protocol, port in _LIVE:
            life.enter_context(answering(hosts[address], port, protocol))
            live[address, protocol, port] = life.enter_context(closing(call(lab.net, PUBLIC, port, protocol)))
        assert put(live[C1, "udp", 8001]).source == serving.REMOTE
        before = {host.name: _listed(host, url) for host in (lab.c1, lab.c2)}
        rules = serving.rules(lab)
        planned = serving.igd(lab, "migrate", FILE).stdout
        assert serving.rules(lab) == rules
        printed = serving.igd(lab, "migrate", FILE, "--write").stdout
        assert miniupnpd.wait() == 0
        after = {host.name: _listed(host, url) for host in (lab.c1, lab.c2)}
        yield Migrated(lab, url, (before, after), epoch, planned, rules, printed, live)


def _map_everything(lab: Lab, url: str) -> int:
    """Make 20 mappings by all protocols; return the epoch of NAT-PMP."""
    pairs = [word for port in _PORTS for protocol in ("tcp", "udp") for word in (str(port), protocol)]
    lab.c1.run("upnpc", "-u", url, "-e", "libminiupnpc", "-r", *pairs)
    lab.c1.run("upnpc", "-u", url, "-e", _DESCRIPTION, "-a", C1, "8100", "8101", "tcp", "3600")
    lab.c1.run("upnpc", "-u", url, "-a", C1, "8102", "8102", "udp", "3600")
    _, epoch = serving.natpmpc(lab.c1, "8103", "8103", "udp", "3600")
    pcp_client.map_port(lab.c1, 8104)
    lab.c2.run("upnpc", "-u", url, "-r", "9001", "tcp", "9001", "udp")
    return epoch


def _listed(client: Host, url: str) -> list[str]:
    """Return the lines of upnpc -l for the client's own mappings, without numbers and leases; miniupnpd lists all."""
    address = {"c1": C1, "c2": C2}[client.name]
    printed = client.run("upnpc", "-u", url, "-l").stdout
    rows = re.findall(r"(?m)^ *\d+ ((?:TCP|UDP) .*) \d+$", printed)
    return [row for row in rows if f"->{address}:" in row]


def test_all_mappings_are_listed_as_before_at_the_url_that_clients_know(migrated: Migrated) -> None:
    lab = migrated.lab
    before, after = migrated.lists
    assert sum(map(len, before.values())) == 20
    assert after == before
    assert f"ExternalIPAddress = {PUBLIC}" in lab.c1.run("upnpc", "-u", migrated.url, "-s").stdout
    description = lab.c1.run("curl", "-s", migrated.url).stdout
    assert f"<UDN>uuid:{former_gateway.UUID}</UDN>" in description


def test_live_connections_go_on(migrated: Migrated) -> None:
    for (address, protocol, port), remote in migrated.live.items():
        assert put(remote).source == serving.REMOTE, (address, protocol, port)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_new_connections_reach_the_clients(migrated: Migrated, protocol: Protocol) -> None:
    for port in _PORTS[3:]:
        with answering(migrated.lab.c1, port, protocol):
            assert ask(migrated.lab.net, PUBLIC, port, protocol).source == serving.REMOTE
    with answering(migrated.lab.c1, 8100):
        assert ask(migrated.lab.net, PUBLIC, 8101).source == serving.REMOTE


def test_clients_of_all_protocols_renew_their_mappings(migrated: Migrated) -> None:
    """PCP by the nonce of the first request; NAT-PMP finds that the gateway has lost nothing."""
    lab = migrated.lab
    port, epoch = serving.natpmpc(lab.c1, "8103", "8103", "udp", "3600")
    assert (port, epoch >= migrated.epoch) == (8103, True)
    assert pcp_client.map_port(lab.c1, 8104, lifetime=9000).lifetime == 9000
    assert isinstance(pcp_client.map_port(lab.c1, 8104, nonce=b"another one."), ErrorResponse)
    lab.c1.run("upnpc", "-u", migrated.url, "-a", C1, "8102", "8102", "udp", "3600")


def test_a_mapping_that_its_client_closes_takes_its_connections_along(migrated: Migrated) -> None:
    lab = migrated.lab
    (flow,) = serving.flows(lab, 9001)
    assert "mark=268435456" in flow
    lab.c2.run("upnpc", "-u", migrated.url, "-d", "9001", "tcp")
    until(lambda: not serving.flows(lab, 9001))
    lab.c2.run("upnpc", "-u", migrated.url, "-r", "9001", "tcp")


def test_nothing_is_left_of_miniupnpd_but_its_empty_chains(migrated: Migrated) -> None:
    left = serving.operators_rules(migrated.lab)
    assert "8001" in migrated.rules
    assert not re.search(r"80\d\d|8100|8104|9001", left), left
    assert "jump miniupnpd" in left or "-j MINIUPNPD" in left


def test_without_write_it_shows_the_same_and_changes_nothing(migrated: Migrated) -> None:
    assert "20 can be taken over" in migrated.planned
    assert "nothing was changed" in migrated.planned
    assert migrated.planned.partition("nothing was changed")[0] in migrated.printed


def test_it_changes_nothing_while_igd_runs(migrated: Migrated) -> None:
    before = migrated.lab.srv.run("cat", "/etc/igd/wg0.toml").stdout
    refused = serving.igd(migrated.lab, "migrate", FILE, "--write", check=False)
    assert (refused.returncode, "another igd" in refused.stderr) == (1, True)
    assert migrated.lab.srv.run("cat", "/etc/igd/wg0.toml").stdout == before
