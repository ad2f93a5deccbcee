"""igd@ starts and stops with wg-quick, whoever runs that; nothing hangs, and nothing is left behind."""

import pytest

from tests.lab import until
from tests.lab.fixtures import requires_root
from tests.systemd.booted import (
    SERVICE,
    START,
    STOP,
    WG_QUICK,
    Layers,
    assert_ended_well,
    assert_serves,
    booted,
    rules_without_tunnel,
)

pytestmark = requires_root

START_AND_WAIT = "PostUp = systemctl start igd@%i"
STOP_BEFORE = "PreDown = systemctl stop igd@%i || true"
HOOKS = pytest.mark.parametrize("lines", [(START_AND_WAIT, STOP), (START, STOP), (START, STOP_BEFORE)])


def test_enabled_it_comes_and_goes_with_the_interfaces_service(layers: Layers) -> None:
    with booted(layers, enabled=[SERVICE]) as server:
        before = rules_without_tunnel(server.lab)
        server.machine.run("systemctl", "start", WG_QUICK)
        assert_serves(server.machine)
        server.machine.run("systemctl", "stop", WG_QUICK)
        assert_ended_well(server, before)


def test_enabled_it_serves_the_new_interface_after_a_restart(layers: Layers) -> None:
    """Even when wg-quick takes its time, and a new igd could meet the old interface meanwhile."""
    with booted(layers, lines=["PreDown = sleep 2"], enabled=[SERVICE]) as server:
        server.machine.run("systemctl", "start", WG_QUICK)
        first = assert_serves(server.machine)
        server.machine.run("systemctl", "restart", WG_QUICK)
        assert assert_serves(server.machine) != first
        assert server.machine.log(SERVICE).count("ready for the peers of wg0") == 2


def test_enabled_it_is_there_after_booting(layers: Layers) -> None:
    """And stays: the firewall, which begins with a flush of everything, has loaded before."""
    slow = {"/etc/systemd/system/nftables.service.d/slow.conf": "[Service]\nExecStartPre=sleep 2\n"}
    with booted(layers, enabled=["nftables", WG_QUICK, SERVICE], files=slow) as server:
        assert_serves(server.machine)
        server.machine.run("systemctl", "is-active", "nftables", WG_QUICK)
        server.machine.run("nft", "list", "table", "inet", "igd_wg0")


def test_enabled_it_ends_when_somebody_takes_the_interface_down_by_hand(layers: Layers) -> None:
    with booted(layers, enabled=[SERVICE]) as server:
        before = rules_without_tunnel(server.lab)
        server.machine.run("systemctl", "start", WG_QUICK)
        assert_serves(server.machine)
        server.machine.run("wg-quick", "down", "wg0")
        assert_ended_well(server, before)


def test_it_waits_for_its_interface_and_does_not_make_it(layers: Layers) -> None:
    with booted(layers) as server:
        before, machine = rules_without_tunnel(server.lab), server.machine
        with machine.start("journalctl", "--follow", "--output=cat", f"--unit={SERVICE}") as journal:
            machine.run("systemctl", "start", "--no-block", SERVICE)
            journal.wait_for("waiting for wg0")
        state, status = machine.shows(SERVICE, "ActiveState", "StatusText")
        assert (state, status) == ("activating", "Waiting for wg0 to exist")
        machine.run("wg-quick", "up", "wg0")
        assert_serves(machine)
        assert machine.shows(WG_QUICK, "ActiveState") == ("inactive",)
        machine.run("wg-quick", "down", "wg0")
        assert_ended_well(server, before)


def test_its_status_names_what_is_missing_while_it_serves(layers: Layers) -> None:
    """The service may read what it needs: the policy routing for peers, and whether the kernel forwards."""
    with booted(layers) as server:
        machine, srv = server.machine, server.lab.srv
        serving = "Serving the peers of wg0"
        machine.run("wg-quick", "up", "wg0")
        machine.run("systemctl", "start", SERVICE)
        assert machine.shows(SERVICE, "StatusText") == (serving,)
        srv.run("ip", "route", "add", "unreachable", "default", "table", "100")
        srv.run("ip", "rule", "add", "iif", "wg0", "lookup", "100")
        missing = f"{serving}; no IPv4 default route: ports cannot be mapped, pinholes can"
        until(lambda: machine.shows(SERVICE, "StatusText") == (missing,))
        srv.run("ip", "rule", "del", "iif", "wg0", "lookup", "100")
        until(lambda: machine.shows(SERVICE, "StatusText") == (serving,))


@HOOKS
def test_hooks_when_systemd_runs_wg_quick(layers: Layers, lines: tuple[str, ...]) -> None:
    with booted(layers, lines=lines) as server:
        before, machine = rules_without_tunnel(server.lab), server.machine
        machine.run("systemctl", "start", WG_QUICK)
        first = assert_serves(machine)
        machine.run("systemctl", "restart", WG_QUICK)
        assert assert_serves(machine) != first
        machine.run("systemctl", "stop", WG_QUICK)
        assert_ended_well(server, before)
        assert machine.shows(WG_QUICK, "Result") == ("success",)


@HOOKS
def test_hooks_when_somebody_runs_wg_quick_by_hand(layers: Layers, lines: tuple[str, ...]) -> None:
    with booted(layers, lines=lines) as server:
        before, machine = rules_without_tunnel(server.lab), server.machine
        machine.run("wg-quick", "up", "wg0")
        assert_serves(machine)
        assert machine.shows(WG_QUICK, "ActiveState") == ("inactive",)
        machine.run("wg-quick", "down", "wg0")
        assert_ended_well(server, before)


def test_hooks_and_enabled_at_once(layers: Layers) -> None:
    with booted(layers, lines=[START_AND_WAIT, STOP], enabled=[WG_QUICK, SERVICE]) as server:
        first = assert_serves(server.machine)
        server.machine.run("systemctl", "restart", WG_QUICK)
        assert assert_serves(server.machine) != first
        server.machine.run("systemctl", "stop", WG_QUICK)
        server.machine.await_state(SERVICE, "inactive")


def test_an_interface_with_a_hyphen_in_its_name(layers: Layers) -> None:
    """Systemd would make a slash of it in %I."""
    with booted(layers, lines=[START, STOP]) as server:
        machine = server.machine
        machine.run("mv", "/etc/wireguard/wg0.conf", "/etc/wireguard/wg-home.conf")
        machine.run("systemctl", "start", "wg-quick@wg-home")
        machine.await_state("igd@wg-home.service", "active")
        assert "wg-home" in machine.run("/opt/igd/bin/igd", "status", "wg-home").stdout
        machine.run("systemctl", "stop", "wg-quick@wg-home")
        machine.await_state("igd@wg-home.service", "inactive")
