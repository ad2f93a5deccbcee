"""`systemctl restart` and its cousins keep mappings and flows; a stop, by whatever way, removes them."""

from collections.abc import Iterator

import pytest

from tests.e2e.live_flow import Through, live
from tests.e2e.serving import PUBLIC, flows, rules, upnpc
from tests.lab import Lab, answering, call, put
from tests.lab.fixtures import requires_root
from tests.systemd.booted import SERVICE, WG_QUICK, Booted, Layers, booted, rules_without_tunnel
from tests.systemd.machine import Machine

pytestmark = requires_root

TCP, UDP = Through("tcp", 8043), Through("udp", 8044)
KEPT = "stopped for a restart: mappings and flows stay"
REMOVED = "what the igd before left in the firewall was removed, and its flows were ended: "
DROP_INS = "/run/systemd/system/igd@.service.d"
IGNORED = f"""
mkdir -p {DROP_INS}
printf '[Service]\\nKillSignal=SIGURG\\nTimeoutStopSec=1\\nExecStop=\\n' > {DROP_INS}/zz.conf
systemctl daemon-reload
"""


@pytest.fixture(scope="module")
def server(layers: Layers) -> Iterator[Booted]:
    """A machine with the tunnel up."""
    with booted(layers, forward="drop") as server:
        rules_without_tunnel(server.lab)
        server.machine.run("systemctl", "start", WG_QUICK)
        server.lab.wg_up(server.lab.c1)
        yield server


@pytest.fixture
def without_igd(server: Booted) -> Iterator[str]:
    """The server's rules without igd, which serves during the test, with two mappings, and writes a new journal."""
    lab, machine = server
    found = rules(lab)
    machine.run("journalctl", "--rotate", "--vacuum-time=1us")
    machine.run("systemctl", "start", SERVICE)
    upnpc(lab.c1, "-n", "10.100.0.2", "8043", "8043", "tcp", "3000")
    upnpc(lab.c1, "-n", "10.100.0.2", "8044", "8044", "udp", "3000")
    yield found
    machine.run("sh", "-c", f"rm -rf /etc/igd/wg0.toml {DROP_INS}; systemctl daemon-reload; systemctl stop {SERVICE}")


def serving(machine: Machine) -> str:
    """Wait until igd serves, and return its process's number."""
    machine.await_state(SERVICE, "active")
    return machine.shows(SERVICE, "MainPID")[0]


def renew_session(lab: Lab) -> None:
    """Have the client notice that the server's interface is another one."""
    lab.wg_down(lab.c1)
    lab.wg_up(lab.c1)


def leave_a_flow(lab: Lab) -> None:
    """Make a flow through a mapping, which only connection tracking knows from then on."""
    with answering(lab.c1, TCP.port), call(lab.net, PUBLIC, TCP.port) as remote:
        put(remote)
    assert len(flows(lab, TCP.port)) == 1


def assert_nothing_left(server: Booted, without_igd: str) -> None:
    assert rules(server.lab) == without_igd
    assert flows(server.lab, TCP.port) == []
    assert server.machine.run("ls", "/run/igd").stdout == ""


def test_restarts_keep_flows_and_the_stop_ends_them(server: Booted, without_igd: str) -> None:
    lab, machine = server
    with live(lab, [TCP, UDP]):
        for times, verb in enumerate(("restart", "try-restart"), 1):
            before = serving(machine)
            machine.run("systemctl", verb, SERVICE)
            assert serving(machine) != before
            assert machine.log(SERVICE).count(KEPT) == times
    machine.run("systemctl", "stop", SERVICE)
    assert "Main process exited" not in machine.log(SERVICE)
    assert_nothing_left(server, without_igd)


def test_a_new_igd_that_cannot_start_ends_what_the_old_one_left(server: Booted, without_igd: str) -> None:
    lab, machine = server
    leave_a_flow(lab)
    machine.run("sh", "-c", "mkdir -p /etc/igd; echo 'bakend = 1' > /etc/igd/wg0.toml")
    assert machine.run("systemctl", "restart", SERVICE, check=False).returncode == 1
    machine.await_state(SERVICE, "failed")
    log = machine.log(SERVICE)
    assert KEPT in log
    assert f"WARNING igd.process.in_kernel: {REMOVED}this one failed" in log
    assert_nothing_left(server, without_igd)


def test_a_stop_during_the_restart_ends_what_the_old_one_left(server: Booted, without_igd: str) -> None:
    lab, machine = server
    leave_a_flow(lab)
    lab.srv.run("ip", "link", "set", "wg0", "down")
    with machine.start("journalctl", "--follow", "--output=cat", f"--unit={SERVICE}") as journal:
        machine.run("systemctl", "restart", "--no-block", SERVICE)
        journal.wait_for("waiting for wg0 to be up")
    assert len(flows(lab, TCP.port)) == 1
    machine.run("systemctl", "restart", "--no-block", SERVICE)  # once more
    machine.run("systemctl", "stop", SERVICE)
    assert_nothing_left(server, without_igd)
    machine.run("systemctl", "restart", WG_QUICK)
    renew_session(lab)


@pytest.mark.parametrize("by", ["restart", "stop"])
def test_one_that_has_to_be_killed(server: Booted, without_igd: str, by: str) -> None:
    """Because it ignores the signal that systemd sends."""
    lab, machine = server
    leave_a_flow(lab)
    machine.run("sh", "-c", IGNORED)
    machine.run("systemctl", by, SERVICE)
    assert "code=killed, status=9/KILL" in machine.log(SERVICE)
    if by == "restart":
        serving(machine)
        assert len(flows(lab, TCP.port)) == 1
    else:
        assert_nothing_left(server, without_igd)


def test_a_restart_of_the_interface_is_a_stop(server: Booted, without_igd: str) -> None:
    lab, machine = server
    leave_a_flow(lab)
    before = serving(machine)
    machine.run("systemctl", "restart", WG_QUICK)
    assert serving(machine) != before
    log = machine.log(SERVICE)
    assert KEPT not in log
    assert flows(lab, TCP.port) == []
    machine.run("systemctl", "stop", SERVICE)
    assert_nothing_left(server, without_igd)
    renew_session(lab)
