"""`igd doctor` on a machine that systemd has booted: the unit, its drop-ins, and what starts it."""

import json
from collections.abc import Sequence

from tests.e2e.doctoring import Row
from tests.lab.fixtures import requires_root
from tests.systemd.booted import SERVICE, WG_QUICK, Layers, booted
from tests.systemd.machine import Machine

pytestmark = requires_root

IGD = "/opt/igd/bin/igd"


def wrong(machine: Machine) -> list[Row]:
    """Return the rows that are not green."""
    report = json.loads(machine.run(IGD, "doctor", "wg0", "--json", check=False).stdout)
    return [row for row in (Row(**row) for row in report["interfaces"]["wg0"]) if row.colour != "green"]


def named(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the check and the colour of each row."""
    return [(row.check, row.colour) for row in rows]


def assert_mended(machine: Machine, rows: Sequence[Row]) -> None:
    """Paste the lines of all rows that have some; then igd serves, and all is green."""
    for row in rows:
        machine.run("sh", "-c", row.remedy)
    machine.await_state(SERVICE, "active")
    assert wrong(machine) == []


def test_the_unit_its_drop_ins_and_what_starts_it(layers: Layers) -> None:
    with booted(layers, userspace=True) as (_, machine):
        machine.run("systemctl", "start", WG_QUICK)
        found = wrong(machine)
        assert named(found) == [("unit", "yellow"), ("drop-ins", "red"), ("daemon", "yellow")]
        assert_mended(machine, found)
        assert_starts_with_the_interface(machine)
        machine.run("systemctl", "stop", SERVICE)
        machine.run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
        found = wrong(machine)
        assert named(found) == [("drop-ins", "red"), ("daemon", "red")]
        assert_mended(machine, found)
        machine.run("touch", "/etc/systemd/system/igd@.service")
        found = wrong(machine)
        assert named(found) == [("unit", "yellow")]
        assert_mended(machine, found)
        machine.run("tee", "/etc/igd/wg0.toml", input="http_port = 0\n")
        machine.run("systemctl", "restart", SERVICE, check=False)
        (invalid, failed) = wrong(machine)
        assert named([invalid, failed]) == [("configuration", "red"), ("daemon", "red")]
        assert "its unit has failed (exit-code, exit status 2)" in failed.text
        machine.run("systemctl", "mask", SERVICE)
        machine.run("rm", "/etc/igd/wg0.toml")
        found = wrong(machine)
        assert named(found) == [("unit", "red"), ("daemon", "red")]
        assert_mended(machine, found)
        assert_starts_without_wg_quick(machine)


def assert_starts_with_the_interface(machine: Machine) -> None:
    """Assert that a restart of the interface has igd serve again."""
    (before,) = machine.shows(SERVICE, "MainPID")
    machine.run("systemctl", "restart", WG_QUICK)
    machine.await_state(SERVICE, "active")
    assert machine.shows(SERVICE, "MainPID") != (before,)


def assert_starts_without_wg_quick(machine: Machine) -> None:
    """Assert what the doctor prints where the unit is enabled for wg-quick@wg0, which nothing starts."""
    machine.run("sed", "-i", "/igd@/d", "/etc/wireguard/wg0.conf")
    machine.run("systemctl", "enable", SERVICE)
    (with_file,) = wrong(machine)
    machine.run("mv", "/etc/wireguard/wg0.conf", "/run/wg0.conf")
    (without_file,) = wrong(machine)
    assert named([with_file, without_file]) == [("unit", "yellow")] * 2
    assert "PostUp = systemctl start --no-block igd@%i || true" in with_file.remedy
    assert_mended(machine, [without_file])
    assert SERVICE in machine.shows("multi-user.target", "Wants")[0].split()
