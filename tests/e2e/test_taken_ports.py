"""Ports of the public address that are taken: by the operator's own DNATs, and by another gateway."""

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e import control
from tests.e2e.serving import C1, C2, IGD, PUBLIC, REMOTE, serving, start, upnpc
from tests.lab import PATIENCE, Host, Lab, Process, answering, ask, call, put
from tests.lab.fixtures import needs, requires_root
from tests.lab.wireguard import make_keys

pytestmark = requires_root


def any_port(client: Host, address: str, wanted: int, *options: str, internal: int = 8043) -> int:
    """Request this external port or any other by upnpc (AddAnyPortMapping), and return the one that is granted."""
    asked = ("-n", address, str(internal), str(wanted), "tcp", "300")
    printed = client.run("upnpc", *options, *asked).stdout if options else upnpc(client, *asked)
    granted = re.search(rf"external {PUBLIC}:(\d+) TCP is redirected to internal {address}:{internal} ", printed)
    assert granted, printed
    return int(granted[1])


# The operator's own redirections


def dnat(lab: Lab, edit: str, port: int) -> None:
    rule = f"PREROUTING -d {PUBLIC} -p tcp --dport {port} -j DNAT --to-destination {C2}:80"
    lab.srv.run("iptables-nft", "-t", "nat", edit, *rule.split())


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_the_operators_redirections_stay_his(lab: Lab, backend: str) -> None:
    """Those that are there before igd starts, and those that are added while it runs, until they are deleted."""
    needs("upnpc")
    dnat(lab, "-A", 8080)
    with (
        answering(lab.c1, 8043),
        answering(lab.c2, 80),
        serving(lab, f'[firewall]\nbackend = "{backend}"\n') as process,
    ):
        dnat(lab, "-A", 9090)
        process.wait_for("taken by the operator's own redirections: TCP 8080, TCP 9090")
        for port in (8080, 9090):
            assert control.add(lab.c1, {"ExternalPort": port, "InternalPort": 8043}) == 718
            assert control.add(lab.c1, {"ExternalPort": port, "InternalPort": 8043, "Protocol": "UDP"}) == 200
            granted = any_port(lab.c1, C1, port)
            assert granted not in (8080, 9090)
            assert ask(lab.net, PUBLIC, granted).source == REMOTE
            with call(lab.net, PUBLIC, port) as remote:
                put(remote)
            assert "60.60.60.2" in lab.srv.run("conntrack", "-L", "--orig-dst", PUBLIC, "--reply-src", C2).stdout
        dnat(lab, "-D", 9090)
        process.wait_for("taken by the operator's own redirections: TCP 8080$")
        assert control.add(lab.c1, {"ExternalPort": 9090, "InternalPort": 8043}) == 200
        assert ask(lab.net, PUBLIC, 9090).source == REMOTE


# Another WireGuard interface, with its own gateway, behind the same public address

C2_ON_WG1 = "10.101.0.2"
WG1_URL = ("-u", "http://10.101.0.1:2869/1/device.xml")


def _lay_wg1(lab: Lab) -> None:
    """Move c2 from wg0 to the server's wg1."""
    server, client = make_keys(), make_keys()
    head = "[Interface]\nAddress = {}\nPrivateKey = {}\nPostUp = ip link set %i multicast off\n{}\n"
    head += "[Peer]\nPublicKey = {}\n"
    conf = head.format("10.101.0.1/24", server.private, "ListenPort = 51821", client.public)
    lab.srv.write("/etc/wireguard/wg1.conf", f"{conf}AllowedIPs = {C2_ON_WG1}/32\n")
    conf = head.format(f"{C2_ON_WG1}/32", client.private, "", server.public)
    lab.c2.write("/etc/wireguard/wg1.conf", f"{conf}AllowedIPs = 0.0.0.0/0\nEndpoint = {PUBLIC}:51821\n")
    lab.wg_down(lab.c2)
    for host in (lab.srv, lab.c2):
        host.run("wg-quick", "up", "wg1")
    lab.c2.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", "10.101.0.1")


@pytest.fixture(scope="module")
def two_tunnels(root: None) -> Iterator[Lab]:
    """A server with c1 on wg0 and c2 on wg1, whose FORWARD drops."""
    needs("upnpc")
    with Lab(forward="drop") as lab:
        _lay_wg1(lab)
        yield lab


@contextmanager
def both_serving(lab: Lab, backend: str) -> Iterator[tuple[Process, Process]]:
    """Run a gateway for each tunnel, without leases of an earlier test."""
    lab.srv.run("find", "/var/lib/igd", "-mindepth", "1", "-delete")
    config = f'[firewall]\nbackend = "{backend}"\n'
    with start(lab, config) as on_wg0:
        lab.srv.write("/etc/igd/wg1.toml", config)
        with lab.srv.start(*IGD, "run", "wg1") as on_wg1:
            on_wg1.wait_for("ready for")
            yield on_wg0, on_wg1


def _have_them_look(lab: Lab, gateways: tuple[Process, Process]) -> None:
    """Make a change that both log: each has then read what the other holds, which otherwise takes up to a second.

    Before that, between two that start together or that use iptables-legacy, a port may be granted twice.
    """
    dnat(lab, "-A", 7)
    for gateway in gateways:
        gateway.wait_for("taken by the operator's own redirections: TCP 7")
    dnat(lab, "-D", 7)


def upnpc_on_wg1(lab: Lab, *words: str) -> str:
    return lab.c2.run("upnpc", *WG1_URL, *words, check=False).stdout


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_two_gateways_keep_out_of_each_others_way(two_tunnels: Lab, backend: str) -> None:
    lab = two_tunnels
    with both_serving(lab, backend) as gateways, ExitStack() as stack:
        for client, port in itertools.product((lab.c1, lab.c2), (8043, 8044)):
            stack.enter_context(answering(client, port))
        assert control.add(lab.c1, {"ExternalPort": 9100, "InternalPort": 8043}) == 200
        assert "redirected" in upnpc_on_wg1(lab, "-a", C2_ON_WG1, "8043", "9200", "tcp", "300")
        _have_them_look(lab, gateways)
        assert "failed with code 718" in upnpc_on_wg1(lab, "-a", C2_ON_WG1, "8043", "9100", "tcp", "300")
        assert control.add(lab.c1, {"ExternalPort": 9200, "InternalPort": 8043}) == 718
        others = any_port(lab.c2, C2_ON_WG1, 9100, *WG1_URL, internal=8044), any_port(lab.c1, C1, 9200, internal=8044)
        assert len({*others, 9100, 9200}) == 4
        for port in (9100, 9200, *others):
            assert ask(lab.net, PUBLIC, port).source == REMOTE


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_end_of_one_is_not_felt_by_the_others_peers(two_tunnels: Lab, backend: str, first: int) -> None:
    lab = two_tunnels
    ports = (9100, 9200)
    with both_serving(lab, backend) as gateways, answering(lab.c1, 8043, "udp"), answering(lab.c2, 8043, "udp"):
        assert control.add(lab.c1, {"ExternalPort": 9100, "InternalPort": 8043, "Protocol": "UDP"}) == 200
        assert "redirected" in upnpc_on_wg1(lab, "-a", C2_ON_WG1, "8043", "9200", "udp", "300")
        ended, lasting = ports[first], ports[1 - first]
        with call(lab.net, PUBLIC, ended, "udp") as doomed, call(lab.net, PUBLIC, lasting, "udp") as remote:
            assert put(doomed).source == put(remote).source == REMOTE
            kept = _rules_of(lab, 1 - first)
            assert kept
            assert gateways[first].stop() == 0
            assert put(remote).source == REMOTE
            with pytest.raises(ConnectionRefusedError):
                put(doomed)
            assert _rules_of(lab, first) == []
            assert _rules_of(lab, 1 - first) == kept
        assert ask(lab.net, PUBLIC, lasting, "udp").source == REMOTE
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, ended, "udp")


def _rules_of(lab: Lab, number: int) -> list[str]:
    """Return the lines of the server's rules that name one gateway: its table, chains, jumps and comments."""
    saved = (
        lab.srv.run(*words.split()).stdout for words in ("nft list tables", "iptables-nft-save", "iptables-legacy-save")
    )
    return [
        line for text in saved for line in text.splitlines() if f"igd_wg{number}" in line or f"igd wg{number}" in line
    ]
