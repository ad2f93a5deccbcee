"""`igd reload` with each backend, and before there is anything to reload for: what needs an igd of its own."""

import json
import signal
from collections.abc import Iterator

import pytest

from igd.commands.command import FAILED
from tests.e2e import control
from tests.e2e.serving import C1, C2, IGD, PUBLIC, REMOTE, igd, mappings, ports, serving
from tests.e2e.test_reload import FILE, section
from tests.e2e.test_reload import reload as reloaded
from tests.lab import Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import call, put

pytestmark = requires_root


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    """A lab for all tests: each starts its own igd."""
    needs("nft", "iptables-legacy-save", "conntrack")
    with Lab() as lab, answering(lab.c1, 8043), answering(lab.c1, 8044), answering(lab.c2, 8044):
        yield lab


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_mappings_and_connections_survive_and_what_is_forbidden_ends(lab: Lab, backend: str) -> None:
    firewall = f'[firewall]\nbackend = "{backend}"\n'
    with serving(lab, firewall):
        control.add(lab.c1, {"ExternalPort": 8043, "InternalPort": 8043})
        control.add(lab.c2, {"ExternalPort": 8044, "InternalPort": 8044, "InternalClient": C2})
        with call(lab.net, PUBLIC, 8043) as kept, call(lab.net, PUBLIC, 8044) as ended:
            put(kept)
            put(ended)
            before = [each for each in mappings(lab) if each["external_port"] == 8043]
            deny = f'rules = ["deny 8044 {C2} 0-65535", "allow 1-65535 0.0.0.0/0 0-65535"]\n'
            printed = reloaded(lab, deny + firewall + section(lab.c1, f'static = ["tcp 80 {C1} 8044"]'))
            assert "wg0: changed: rules, peers.laptop\n" in printed
            assert f"no longer allows it: TCP 8044 -> {C2}:8044" in printed
            kept.sendall(b"still here?\n")
            assert b"still here?" in kept.recv(100)
            ended.sendall(b"and you?\n")
            with pytest.raises(ConnectionResetError):
                ended.recv(100)
        assert sorted(ports(lab)) == [("TCP", 80), ("TCP", 8043)]
        after = [each for each in mappings(lab) if each["external_port"] == 8043]
        assert [each["name"] for each in after] == ["laptop"]
        assert [{**each, "name": None, "lease": 0} for each in after] == [{**each, "lease": 0} for each in before]
        assert ask(lab.net, PUBLIC, 80).source == REMOTE
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, 8044)
        reloaded(lab, firewall)
        assert ports(lab) == [("TCP", 8043)]
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, 80)


def test_what_is_reloaded_before_the_interface_is_up_is_what_igd_starts_with(lab: Lab) -> None:
    lab.wg_down(lab.srv)
    try:
        lab.srv.write(FILE, "")
        with lab.srv.start(*IGD, "run", "wg0") as process:
            process.wait_for("waiting for wg0")
            lab.srv.write(FILE, "http_port = 5000\n")
            process.signal(signal.SIGHUP)
            process.wait_for("the configuration was reloaded: http_port")
            assert igd(lab, "reload", "wg0", check=False).returncode == FAILED
            lab.wg_up(lab.srv)
            process.wait_for("ready for")
            assert ":5000/" in igd(lab, "status", "wg0").stdout
    finally:
        if lab.srv.run("ip", "link", "show", "wg0", check=False).returncode:
            lab.wg_up(lab.srv)


def test_what_was_detached_from_a_terminal_reloads_at_sighup(lab: Lab) -> None:
    """It was started in one, which is not its own any more."""
    needs("script")
    lab.srv.write(FILE, "")
    lab.srv.run("script", "--quiet", "--return", "--command", " ".join([*IGD, "run", "wg0", "--detach"]), "/dev/null")
    try:
        process = json.loads(igd(lab, "status", "wg0", "--json").stdout)["pid"]
        lab.srv.write(FILE, section(lab.c1, f'static = ["tcp 80 {C1} 8044"]'))
        lab.srv.run("kill", "-HUP", str(process))
        until(lambda: ("TCP", 80) in ports(lab))  # and what another test has left in the store
        assert json.loads(igd(lab, "status", "wg0", "--json").stdout)["pid"] == process
    finally:
        igd(lab, "stop", "wg0")
