"""The tunnel does not depend on igd: it stays when igd is broken or gone, and so do the lines in wg0.conf."""

import pytest

from tests.e2e.serving import rules
from tests.lab import PATIENCE
from tests.lab.fixtures import requires_root
from tests.systemd.booted import (
    SERVICE,
    START,
    STOP,
    WG_QUICK,
    Booted,
    Layers,
    assert_serves,
    booted,
    rules_without_tunnel,
)

pytestmark = requires_root

LINES = (START, STOP, "PostDown = touch /run/down-%i")
PRE_DOWN = (START, "PreDown = systemctl stop igd@%i || true", LINES[2])
UNITS = "/etc/systemd/system/igd@.service /etc/systemd/system/igd-order@.target"


def assert_tunnel(server: Booted) -> None:
    """Assert that a client reaches the server through the tunnel."""
    server.lab.wg_up(server.lab.c1)
    server.lab.c1.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", "10.100.0.1")
    server.lab.wg_down(server.lab.c1)


@pytest.mark.parametrize("lines", [LINES, PRE_DOWN], ids=["PostDown", "PreDown"])
@pytest.mark.parametrize(
    ("breaking", "warning"),
    [
        (f"rm {UNITS}; systemctl daemon-reload", "Unit igd@wg0.service not found"),
        (f"rm {UNITS}", ""),
        ("systemctl mask igd@wg0", "Unit igd@wg0.service is masked"),
        (f"rm {UNITS}; systemctl mask igd@; rm -r /opt/igd", "Unit igd@wg0.service is masked"),
    ],
    ids=["removed", "removed without daemon-reload", "masked", "all masked, and no igd"],
)
def test_lines_of_an_igd_that_is_gone_leave_the_tunnel_alone(
    layers: Layers, lines: tuple[str, ...], breaking: str, warning: str
) -> None:
    """Whoever runs wg-quick; the error is in its output, and in the journal, and later lines are carried out."""
    with booted(layers, lines=lines) as server:
        before, machine = rules_without_tunnel(server.lab), server.machine
        machine.run("sh", "-ec", breaking)
        assert warning in machine.run("wg-quick", "up", "wg0").stderr
        assert_tunnel(server)
        machine.run("wg-quick", "down", "wg0")
        assert rules(server.lab) == before
        machine.run("rm", "/run/down-wg0")

        machine.run("journalctl", "--rotate", "--vacuum-time=1us")
        machine.run("systemctl", "start", WG_QUICK)
        assert warning in machine.log()
        assert_tunnel(server)
        machine.run("systemctl", "stop", WG_QUICK)
        assert machine.shows(WG_QUICK, "ActiveState", "Result") == ("inactive", "success")
        machine.run("test", "-e", "/run/down-wg0")
        assert rules(server.lab) == before


@pytest.mark.parametrize(
    ("breaking", "warning"),
    [
        ("rm -r /opt/igd", "status=203/EXEC"),
        ("chmod a-x /opt/igd/bin/igd", "status=203/EXEC"),
        ("rm /opt/igd/bin/python*", "status=203/EXEC"),
        ("rm -r /opt/igd/lib/python*/site-packages/igd", "No module named 'igd'"),
        ("userdel igd", "status=217/USER"),
    ],
    ids=["removed", "not executable", "no python", "no package", "no user"],
)
def test_an_igd_that_cannot_start_leaves_the_tunnel_alone_and_starts_once_it_can(
    layers: Layers, breaking: str, warning: str
) -> None:
    """As while a virtual environment is built again: the service tries every two seconds."""
    with booted(layers, lines=LINES, userspace=True, drop_ins=["userspace-wireguard.conf"]) as server:
        machine = server.machine
        machine.run("sh", "-ec", f"cp -a /opt/igd /opt/kept; cp /etc/passwd /etc/shadow /etc/group /opt; {breaking}")
        with machine.start("journalctl", "--follow", "--output=cat", f"--unit={SERVICE}") as journal:
            machine.run("wg-quick", "up", "wg0")
            journal.wait_for(warning)
            assert_tunnel(server)
        machine.run(
            "sh", "-ec", "cp -a /opt/passwd /opt/shadow /opt/group /etc; rm -rf /opt/igd; mv /opt/kept /opt/igd"
        )
        assert_serves(machine)
        machine.run("wg-quick", "down", "wg0")
        machine.await_state(SERVICE, "inactive")


def test_after_a_reboot_nothing_waits_for_an_igd_that_is_gone(layers: Layers) -> None:
    """`systemctl enable` leaves a link, and a drop-in may be left too."""
    drop_in = {"/etc/systemd/system/igd@wg0.service.d/override.conf": "[Service]\nEnvironment=A=b\n"}
    with booted(layers, lines=LINES, enabled=[WG_QUICK, SERVICE], units="removed", files=drop_in) as server:
        machine = server.machine
        machine.await_state(WG_QUICK, "active")
        assert_tunnel(server)
        assert "Failed to start igd@wg0.service" in machine.log()
        machine.run("systemctl", "restart", WG_QUICK)
        assert_tunnel(server)


def test_lines_without_a_fallback_take_the_tunnel_down(layers: Layers) -> None:
    """What docs/operating.md says of lines that are left over, and why the recommended ones have `|| true`."""
    with booted(layers, lines=["PostUp = systemctl start --no-block igd@%i"], units="removed") as server:
        up = server.machine.run("wg-quick", "up", "wg0", check=False)
        assert (up.returncode, "Unit igd@wg0.service not found" in up.stderr) == (5, True)
        assert server.machine.run("ip", "link", "show", "dev", "wg0", check=False).returncode == 1
