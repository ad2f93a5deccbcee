"""The package is installed, upgraded, removed and purged on a machine that systemd has booted."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.serving import PUBLIC, REMOTE, upnpc
from tests.lab import Answer, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root
from tests.systemd import tree
from tests.systemd.booted import SERVICE, START, STOP, Booted, booted, rules_without_tunnel
from tests.systemd.footprint import Footprint, footprint
from tests.systemd.machine import Machine
from tests.systemd.package import DEB, NEWER, NEWER_DEB, packages

pytestmark = requires_root

WAITING = "igd@wg9.service"
"""An instance whose interface does not exist."""
_UNIT = "/usr/lib/systemd/system/igd@.service"
_WANTS = "/etc/systemd/system/sys-subsystem-net-devices-wg0.device.wants"
_DROP_IN = "/usr/share/igd/drop-ins/userspace-wireguard.conf"


@pytest.fixture(scope="module")
def packages_tree(root: None) -> Path:
    needs("mmdebstrap", "systemd-nspawn", "dh", "lintian")
    return packages()


@pytest.fixture(scope="module")
def empty_server(packages_tree: Path) -> Iterator[tuple[Booted, Footprint]]:
    """A machine without igd, and what is on it; wg0.conf has lines for igd that somebody wrote."""
    layers = (packages_tree, tree.system())
    with booted(layers, userspace=True, forward="drop", units="never there", lines=[START, STOP]) as server:
        rules_without_tunnel(server.lab)
        yield server, footprint(server)


@pytest.fixture
def server(empty_server: tuple[Booted, Footprint]) -> Iterator[Booted]:
    """The machine with the package, and nothing of it runs; afterwards purging leaves the machine as it was."""
    booted, before = empty_server
    booted.machine.run("dpkg", "--install", DEB)
    booted.machine.run("install", "-D", "-m644", "-t", "/etc/systemd/system/igd@.service.d", _DROP_IN)
    booted.machine.run("systemctl", "daemon-reload")
    yield booted
    booted.machine.run("dpkg", "--purge", "igd")
    booted.machine.run("sh", "-c", "! ip link show dev wg0 2>/dev/null || wg-quick down wg0")
    after = footprint(booted)
    assert dict(before.contents.items() ^ after.contents.items()) == {}
    assert before.usr ^ after.usr == set()
    assert after.units == before.units
    assert after.rules == before.rules
    assert "igd run" not in booted.lab.srv.run("ps", "-eo", "args").stdout


def assert_serves(machine: Machine) -> int:
    """Wait until igd serves, and return its process's number."""
    machine.await_state(SERVICE, "active")
    assert re.search("(?m)^interface +wg0$", machine.run("igd", "status", "wg0").stdout)
    return int(*machine.shows(SERVICE, "MainPID"))


def another_process(machine: Machine, unit: str, than: int) -> int:
    """Wait until the unit has a process, which is not this one, and return its number."""
    machine.run("sh", "-c", f"until systemctl show -P MainPID {unit} | grep -vwE '0|{than}'; do sleep 0.05; done")
    return int(*machine.shows(unit, "MainPID"))


def map_a_port(lab: Lab) -> None:
    """Have the client map a port, and assert that it is reached."""
    lab.wg_up(lab.c1)
    with answering(lab.c1, 8043):
        upnpc(lab.c1, "-n", "10.100.0.2", "8043", "8043", "tcp", "3000")
        assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
    lab.wg_down(lab.c1)


def mapped(machine: Machine) -> bool:
    return "8043" in machine.run("igd", "list", "wg0").stdout


def version(machine: Machine) -> str:
    return machine.run("igd", "--version").stdout.split()[-1]


def test_it_serves_from_the_interfaces_next_start(server: Booted) -> None:
    """Nothing is edited but wg0.conf; no unit was there before."""
    lab, machine = server
    assert machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "igd*").stdout == ""
    machine.run("wg-quick", "up", "wg0")
    assert_serves(machine)
    map_a_port(lab)
    machine.run("wg-quick", "down", "wg0")
    machine.await_state(SERVICE, "inactive")
    assert_imports_its_own(machine)
    assert_compiled(machine)
    assert_documented(machine)


def assert_imports_its_own(machine: Machine) -> None:
    """Assert that python-iptables is usable without a compiler, and that the caller changes no import."""
    machine.run("/usr/lib/igd/bin/python3", "-I", "-c", "import iptc; iptc.Table(iptc.Table.NAT)")
    broken = "mkdir -p /tmp/broken; cd /tmp/broken; echo 1/0 | tee igd.py aiohttp.py ipaddress.py >/dev/null"
    machine.run("sh", "-ec", f"{broken}; PYTHONPATH=. igd list --help")


def assert_compiled(machine: Machine) -> None:
    """Assert that the modules are compiled: the service may not write them, and would compile them at each start."""
    sources, compiled = (
        set(machine.run("find", "/usr/lib/igd/lib", "-name", pattern).stdout.splitlines())
        for pattern in ("*.py", "*.pyc")
    )
    missing = sources - {re.sub(r"__pycache__/([^/]+)\.cpython-\d+\.pyc", r"\1.py", path) for path in compiled}
    assert not any("/site-packages/igd/" in path for path in missing)
    assert len(missing) < len(sources) / 100  # some are for other versions of Python


def assert_documented(machine: Machine) -> None:
    """Assert that manual pages, completions and documents are where the programs look for them."""
    machine.run("bash", "-ec", ". /usr/share/bash-completion/completions/igd; complete -p igd")
    assert {
        "/usr/share/man/man8/igd.8.gz",
        "/usr/share/man/man5/igd.toml.5.gz",
        "/usr/share/zsh/vendor-completions/_igd",
        "/usr/share/fish/vendor_completions.d/igd.fish",
        "/usr/share/doc/igd/README.md",
        "/usr/share/doc/igd/docs/operating.md",
    } <= set(machine.run("dpkg", "--listfiles", "igd").stdout.split())


def test_an_upgrade_restarts_what_runs_and_keeps_the_mappings(server: Booted) -> None:
    """An instance that waits for its interface waits on, as the new version, and the upgrade does not wait for it."""
    lab, machine = server
    machine.run("wg-quick", "up", "wg0")
    first = assert_serves(machine)
    machine.run("systemctl", "start", "--no-block", WAITING)
    waiting = another_process(machine, WAITING, 0)
    map_a_port(lab)
    machine.run("dpkg", "--install", NEWER_DEB)
    assert version(machine) == NEWER
    another_process(machine, SERVICE, first)
    assert_serves(machine)
    assert mapped(machine)
    another_process(machine, WAITING, waiting)
    assert machine.shows(WAITING, "ActiveState") == ("activating",)


def test_an_upgrade_starts_nothing_that_was_stopped(server: Booted) -> None:
    """Units of an older installation are named: they are used instead of the package's, with the older program."""
    machine, unit = server.machine, "/etc/systemd/system/igd@.service"
    machine.run("wg-quick", "up", "wg0")
    assert_serves(machine)
    machine.run("systemctl", "stop", SERVICE)
    machine.run("cp", _UNIT, unit)
    assert f"igd: {unit} is used instead" in machine.run("dpkg", "--install", NEWER_DEB).stderr
    machine.run("rm", unit)
    assert machine.shows(SERVICE, "ActiveState") == ("inactive",)


def test_removal_keeps_leases_and_configuration(server: Booted) -> None:
    """The tunnel stays up and goes down with its lines; installed again, the mapping is there."""
    lab, machine = server
    machine.run("sh", "-ec", "echo 'http_port = 2869' >/etc/igd/wg0.toml")
    machine.run("systemctl", "enable", SERVICE)
    machine.run("sh", "-ec", f"mkdir {_WANTS}; ln -s {_UNIT} {_WANTS}/{SERVICE}; ln -s {_UNIT} {_WANTS}/{WAITING}")
    machine.run("wg-quick", "up", "wg0")
    assert_serves(machine)
    map_a_port(lab)
    machine.run("dpkg", "--remove", "igd")
    assert "igd" not in footprint(server).rules
    machine.run(
        "sh", "-ec", "test -s /var/lib/igd/wg0/leases.sqlite; grep 2869 /etc/igd/wg0.toml; ! test -e /usr/lib/igd"
    )
    for verb in ("down", "up"):
        machine.run("wg-quick", verb, "wg0")
    machine.run("dpkg", "--install", DEB)
    machine.run("systemctl", "start", SERVICE)
    assert_serves(machine)
    assert mapped(machine)


def test_removal_takes_back_what_setup_did(server: Booted) -> None:
    """The lines in wg0.conf go, and leases stay for an igd that is installed again."""
    lab, machine = server
    conf = "/etc/wireguard/wg0.conf"
    machine.run("sh", "-ec", f"cp -p {conf} {conf}.kept; sed -i /igd@/d {conf}; cp -p {conf} {conf}.without")
    machine.run("wg-quick", "up", "wg0")
    machine.run("igd", "setup", "wg0", "--yes")
    assert machine.run("grep", "-c", "igd@", conf).stdout != "0\n"
    assert_serves(machine)
    map_a_port(lab)
    machine.run("dpkg", "--remove", "igd")
    machine.run("sh", "-ec", f"cmp {conf} {conf}.without; mv {conf}.kept {conf}; rm {conf}.without")
    assert "igd" not in footprint(server).rules
    machine.run("test", "-s", "/var/lib/igd/wg0/leases.sqlite")


@pytest.mark.parametrize("killed", [False, True], ids=["runs", "was killed"])
def test_removal_stops_one_that_systemd_did_not_start(server: Booted, killed: bool) -> None:
    """And takes out of the firewall what a killed one has left there."""
    lab, machine = server
    machine.run("sh", "-ec", f"systemctl mask --runtime {SERVICE}; wg-quick up wg0; igd run wg0 --detach")
    map_a_port(lab)
    if killed:
        machine.run("sh", "-ec", "kill -KILL $(cat /run/igd/wg0/lock)")
    machine.run("systemctl", "unmask", "--runtime", SERVICE)
    assert "igd" in footprint(server).rules
    machine.run("dpkg", "--remove", "igd")
    assert "igd" not in footprint(server).rules


_WITHOUT_SYSTEMD = """
set -e
mkdir /run/upper /run/work /run/root
mount -t overlay -o "lowerdir=$1:$2,upperdir=/run/upper,workdir=/run/work" overlay /run/root
for words in "--install $3" "--install $4" "--remove igd" "--install $3" "--purge igd"; do
    chroot /run/root dpkg $words
done
! chroot /run/root getent passwd igd
! test -e /run/root/usr/lib/igd
"""


def test_it_is_installed_where_systemd_does_not_run(packages_tree: Path) -> None:
    """As in a container's image."""
    with Lab(wg=False) as lab:
        lab.srv.run("sh", "-c", _WITHOUT_SYSTEMD, "sh", packages_tree, tree.system(), DEB, NEWER_DEB)
