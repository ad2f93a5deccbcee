"""`igd setup` on a booted machine: a client maps and is reached; --undo leaves neither a file nor a unit nor a rule."""

from collections.abc import Iterator

import pytest

from tests.e2e.serving import PUBLIC, REMOTE, rules, upnpc
from tests.lab import Answer, answering, ask
from tests.lab.fixtures import requires_root
from tests.systemd.booted import SERVICE, WG_QUICK, Booted, Layers, booted, rules_without_tunnel
from tests.systemd.footprint import contents
from tests.systemd.machine import Machine

pytestmark = requires_root

IGD = "/opt/igd/bin/igd"
DEVICE = "sys-subsystem-net-devices-wg\\x2dhome.device"


@pytest.fixture(scope="module")
def server(layers: Layers) -> Iterator[Booted]:
    """Return a machine with igd's units, without any file of igd's in /etc but those, and with its interface up."""
    with booted(layers, userspace=True, enabled=[WG_QUICK]) as server:
        rules_without_tunnel(server.lab)  # makes the empty chains
        server.machine.await_state(WG_QUICK, "active")
        yield server


def state(server: Booted) -> set[tuple[str, str]]:
    """Return files, units and rules of the machine, and wg-quick's file."""
    units = "systemctl list-units --all --plain --no-legend 'igd*' 'wg-quick*'; systemctl list-unit-files 'igd*'"
    shown = server.machine.run("sh", "-c", f"cat /etc/wireguard/wg0.conf; {units}").stdout
    return {*contents(server.machine).items(), ("units", shown), ("rules", rules(server.lab))}


def serving_process(machine: Machine) -> str:
    """Wait until igd serves, and return its process."""
    machine.await_state(SERVICE, "active")
    return machine.shows(SERVICE, "MainPID")[0]


def test_a_client_maps_and_is_reached_until_it_is_undone(server: Booted) -> None:
    lab, machine = server
    before = state(server)
    done = machine.run(IGD, "setup", "wg0", "--yes")
    assert f"public address   {PUBLIC}\n" in done.stdout
    assert "userspace-wireguard.conf" in machine.shows(SERVICE, "DropInPaths")[0]
    lab.wg_up(lab.c1)
    with answering(lab.c1, 8043):
        upnpc(lab.c1, "-r", "8043", "tcp")
        assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")

    first = serving_process(machine)
    machine.run("systemctl", "restart", WG_QUICK)
    assert serving_process(machine) != first
    assert "nothing is to be done" in machine.run(IGD, "setup", "wg0", "--yes").stdout

    machine.run(IGD, "setup", "wg0", "--undo", "--yes")
    assert state(server) ^ before == set()


def test_leases_are_kept_if_asked_for(server: Booted) -> None:
    """As when the package is removed and not purged."""
    machine = server.machine
    before = state(server)
    machine.run(IGD, "setup", "wg0", "--yes")
    machine.run(IGD, "setup", "wg0", "--undo", "--yes", "--keep-leases")
    machine.run("test", "-f", "/var/lib/igd/wg0/leases.sqlite")
    machine.run("rm", "-r", "/var/lib/igd")
    assert state(server) ^ before == set()


@pytest.mark.parametrize(
    ("path", "text", "manager"),
    [
        ("/etc/systemd/network/90-wg.netdev", "[NetDev]\nKind=wireguard\nName=wg-home\n", "systemd-networkd"),
        (
            "/run/NetworkManager/system-connections/home.nmconnection",
            "[connection]\ntype=wireguard\ninterface-name=wg-home\n",
            "NetworkManager",
        ),
    ],
)
def test_an_interface_of_another_manager_starts_igd_by_its_device(
    server: Booted, path: str, text: str, manager: str
) -> None:
    machine = server.machine
    machine.run("install", "-D", "-m600", "/dev/stdin", path, input=text)
    before = state(server)
    done = machine.run(IGD, "setup", "wg-home", "--yes")
    assert f"managed by   {manager}, {path}\n" in done.stdout
    machine.run("test", "-L", f"/etc/systemd/system/{DEVICE}.wants/igd@wg-home.service")
    assert machine.shows(DEVICE, "Wants") == ("igd@wg-home.service",)
    machine.run(IGD, "setup", "wg-home", "--undo", "--yes")
    assert state(server) ^ before == set()
    machine.run("rm", path)


def test_a_masked_unit_and_a_missing_one_are_named_with_what_helps(server: Booted) -> None:
    machine = server.machine
    machine.run("systemctl", "mask", SERVICE)
    masked = machine.run(IGD, "setup", "wg0", "--yes", check=False)
    machine.run("systemctl", "unmask", SERVICE)
    assert "igd@wg0 is masked; this permits it: systemctl unmask igd@wg0 igd@" in masked.stderr

    units = "/etc/systemd/system/igd@.service /etc/systemd/system/igd-order@.target"
    before = state(server)
    machine.run("sh", "-ec", f"rm {units}; systemctl daemon-reload")
    missing = machine.run(IGD, "setup", "wg0", "--yes", check=False)
    remedy = missing.stderr.splitlines()[1].removeprefix("igd: ")
    machine.run("sh", "-ec", remedy)
    assert state(server) ^ before == set()


def test_a_name_that_cannot_stand_in_a_units_name_is_started_by_wg_quick_alone(server: Booted) -> None:
    machine = server.machine
    machine.run("cp", "/etc/wireguard/wg0.conf", "/etc/wireguard/wg+1.conf")
    planned = machine.run(IGD, "setup", "wg+1", check=False).stdout
    machine.run("rm", "/etc/wireguard/wg+1.conf")
    assert "PostUp = /opt/igd/bin/igd run %i --detach || true" in planned
    assert "systemctl" not in planned
