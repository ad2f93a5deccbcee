"""Installing, upgrading and uninstalling, by the very commands of docs/installing.md and docs/operating.md."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.serving import rules, upnpc
from tests.lab import PATIENCE, Lab
from tests.lab.fixtures import requires_root
from tests.systemd.booted import SERVICE, START, STOP, Layers, assert_serves, booted, rules_without_tunnel
from tests.systemd.footprint import contents
from tests.systemd.machine import Machine
from tests.systemd.tree import CHECKOUT

pytestmark = requires_root


INSTALLED = "/usr/src/igd"
"""A clone of this repository in the machine."""


def commands(document: str, begin: str, end: str = "") -> str:
    """Return the indented lines, which are commands, between two texts in a document, or behind the first."""
    text = (CHECKOUT / document).read_text()
    behind = text[text.index(begin) :]
    part = behind[: behind.index(end)] if end else behind
    return "\n".join(re.findall(r"(?m)^(?: {4}| {7})([a-z/].*)$", part))


def install(machine: Machine) -> None:
    """Install as docs/installing.md says, but for the virtual environment, which is there."""
    for path in sorted((CHECKOUT / "systemd").iterdir()):
        machine.run("install", "-D", "-m644", "/dev/stdin", f"{INSTALLED}/systemd/{path.name}", input=path.read_text())
    lines = commands("docs/installing.md", "2. Add the service", "3. Run")
    assert "userspace-wireguard.conf" in lines, "all drop-ins must be removed again"
    machine.run("sh", "-ec", f"cd {INSTALLED}; ln -s /opt/igd/bin/igd /usr/local/bin/igd; {lines}")


def test_nothing_is_left_after_uninstalling(layers: Layers) -> None:
    """What docs/operating.md says is carried out, after igd was installed by hand, used and killed."""
    with booted(layers, userspace=True, forward="drop", units="never there", lines=[START, STOP]) as server:
        lab, machine = server
        rules_before, before = rules_without_tunnel(lab), contents(machine)
        install(machine)
        machine.run("sh", "-ec", "mkdir -p /etc/igd; echo 'http_port = 5000' > /etc/igd/wg0.toml")
        machine.run("systemctl", "enable", SERVICE)
        machine.run("wg-quick", "up", "wg0")
        assert_serves(machine)
        lab.wg_up(lab.c1)
        lab.c1.run("upnpc", "-u", "http://10.100.0.1:5000/1/device.xml", "-r", "8043", "tcp")
        added = contents(machine).keys() - before.keys()
        assert {"/var/lib/igd/wg0/leases.sqlite", "/etc/sysusers.d/igd.conf", "/usr/local/bin/igd"} <= added
        machine.run("sh", "-c", f"systemctl mask --runtime {SERVICE}; systemctl kill --signal=KILL {SERVICE}")
        machine.await_state(SERVICE, "failed")
        machine.run("systemctl", "unmask", "--runtime", SERVICE)
        assert "igd_wg0" in rules(lab)

        lines = commands("docs/operating.md", "## Uninstalling")
        assert "userdel" in lines
        machine.run("sh", "-ec", lines)
        left = {path: value for path, value in contents(machine).items() if before.get(path) != value}
        assert left == {}
        assert {path for path in before.keys() - contents(machine).keys() if not path.startswith("/opt/igd")} == set()
        assert "igd" not in rules(lab)
        assert "igd" not in machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "igd*").stdout
        lab.c1.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", "10.100.0.1")
        machine.run("wg-quick", "down", "wg0")  # with its lines
        assert rules(lab) == rules_before
        machine.run("wg-quick", "up", "wg0")


def test_upgrading_keeps_the_mappings_and_the_epoch(layers: Layers) -> None:
    """What docs/operating.md says is carried out, but for pip, which needs the internet."""
    with booted(layers, lines=[START, STOP]) as server:
        lab, machine = server
        machine.run("wg-quick", "up", "wg0")
        first = assert_serves(machine)
        lab.wg_up(lab.c1)
        upnpc(lab.c1, "-r", "8043", "tcp")
        epoch = _epoch(lab)
        install(machine)
        pip, *lines = (line for line in commands("docs/operating.md", "## Upgrading", "Write `'.[ipt").splitlines()[1:])
        assert "pip install" in pip
        machine.run("sh", "-ec", "\n".join([f"cd {INSTALLED}", *lines]))
        machine.await_state(SERVICE, "active")
        assert machine.shows(SERVICE, "MainPID") != (str(first),)
        assert "stopped for a restart: mappings and flows stay" in machine.log(SERVICE)
        assert "8043" in machine.run("/opt/igd/bin/igd", "list", "wg0").stdout
        assert _epoch(lab) >= epoch


def _epoch(lab: Lab) -> int:
    """Return the seconds of NAT-PMP's epoch, which begins anew when mappings are lost."""
    printed = lab.c1.run("natpmpc", "-g", "10.100.0.1").stdout
    found = re.search(r"epoch = (\d+)", printed)
    assert found, printed
    return int(found[1])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("PostUp = systemctl start --no-block igd@%i", "PostUp = systemctl start --no-block igd@%i || true"),
        ("PostUp=systemctl start igd@wg0", "PostUp=systemctl start igd@wg0 || true"),
        ("PostDown = systemctl stop igd@%i", "PostDown = systemctl stop igd@%i || true"),
        ("PostUp = igd run %i --detach", "PostUp = igd run %i --detach || true"),
        ("PostDown = igd stop %i", "PostDown = igd stop %i || true"),
        *(
            (line, line)
            for line in (START, STOP, "PostUp = iptables -A FORWARD -i %i -j ACCEPT", "Address = 10.0.0.1/8")
        ),
    ],
)
def test_old_lines_get_the_fallback(tmp_path: Path, line: str, expected: str) -> None:
    (command,) = (
        line for line in commands("docs/operating.md", "## Upgrading", "## Unin").splitlines() if "sed" in line
    )
    (tmp_path / "wg0.conf").write_text(f"[Interface]\n{line}\n")
    for _ in range(2):
        subprocess.run(["sh", "-ec", command.replace("/etc/wireguard", str(tmp_path))], check=True)
        assert (tmp_path / "wg0.conf").read_text() == f"[Interface]\n{expected}\n"


@pytest.mark.parametrize("document", ["docs/installing.md", "docs/operating.md"])
def test_the_lines_that_are_recommended_are_these(document: str) -> None:
    text = (CHECKOUT / document).read_text()
    assert all(f"    {line}\n" in text for line in (START, STOP))
    assert not re.search(r"(?m)^ +P\w+ = .*\bigd\b(?!.*\|\| true$)", text)
