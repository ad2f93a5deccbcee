"""What an operator does: start igd, query it, stop it, make mistakes in its configuration, and take wg0 down."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.serving import GATEWAY, IGD, PUBLIC, REMOTE, flows, igd, ports, rules, serving, start, upnpc
from tests.lab import Lab, answering, ask
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "nft", "conntrack", "iptables-legacy-save")


@pytest.fixture(scope="module")
def idle(root: None) -> Iterator[Lab]:
    """Return a lab in which igd does not run before or after a test; leases may be left in the store."""
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_nothing_is_left(idle: Lab, number: int) -> None:
    before = rules(idle)
    with start(idle) as process, answering(idle.c1, 8043, "udp"):
        upnpc(idle.c1, "-r", "8043", "udp")
        ask(idle.net, PUBLIC, 8043, "udp")
        process.signal(number)
        assert process.wait() == 0
    assert rules(idle) == before
    assert flows(idle, 8043) == []


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_wg_quick_down_leaves_no_trace(backend: str) -> None:
    with Lab(forward="drop") as lab:
        lab.wg_down(lab.srv)
        down = rules(lab)
        lab.wg_up(lab.srv)
        with start(lab, f'[firewall]\nbackend = "{backend}"\n') as process:
            upnpc(lab.c1, "-r", "8043", "tcp")
            lab.wg_down(lab.srv)
            assert process.wait() == 0
        assert rules(lab) == down


def test_one_server_for_an_interface(idle: Lab) -> None:
    with serving(idle):
        second = igd(idle, "run", "wg0", check=False)
        assert (second.returncode, second.stdout) == (1, "")
        assert re.fullmatch(r"igd: wg0: another igd \(process \d+\) serves it already\n", second.stderr)
        upnpc(idle.c1, "-r", "8043", "tcp")
        assert ("TCP", 8043) in ports(idle)


def test_a_port_that_is_taken_is_named(idle: Lab) -> None:
    before = rules(idle)
    with idle.srv.start("socat", "-d", "-d", "TCP4-LISTEN:2869,reuseaddr", "STDOUT") as other:
        other.wait_for("listening on")
        printed = igd(idle, "run", "wg0", check=False)
    assert printed.returncode == 1
    assert "igd: wg0: [Errno 98] TCP 10.100.0.1:2869: Address already in use\n" in printed.stderr
    assert rules(idle) == before


def test_stop_ends_the_daemon(idle: Lab) -> None:
    before = rules(idle)
    with start(idle) as process:
        upnpc(idle.c1, "-r", "8043", "tcp")
        igd(idle, "stop", "wg0")
        assert process.wait() == 0
    assert rules(idle) == before


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_stop_clears_up_after_a_crash(backend: str) -> None:
    with Lab(forward="drop") as lab:
        before = rules(lab)
        with start(lab, f'[firewall]\nbackend = "{backend}"\n') as process, answering(lab.c1, 8043, "udp"):
            upnpc(lab.c1, "-r", "8043", "udp")
            process.signal(signal.SIGKILL)
            process.wait()
            assert ask(lab.net, PUBLIC, 8043, "udp").source == REMOTE
            igd(lab, "stop", "wg0")
            assert rules(lab) == before
            assert flows(lab, 8043) == []


def test_detached_it_serves_when_the_command_returns(idle: Lab) -> None:
    before = rules(idle)
    igd(idle, "run", "wg0", "--detach")
    upnpc(idle.c1, "-r", "8043", "tcp")
    assert ("TCP", 8043) in ports(idle)
    igd(idle, "stop", "wg0")
    assert rules(idle) == before


def test_it_waits_for_its_interface() -> None:
    with Lab(wg=False) as lab, lab.srv.start(*IGD, "run", "wg0") as process:
        process.wait_for("waiting for wg0")
        for command in ("list", "status"):
            asked = igd(lab, command, "wg0", check=False)
            assert (asked.returncode, asked.stdout) == (1, "")
            assert asked.stderr.startswith("igd: igd waits for wg0 to ")
        lab.wg_up(lab.srv, lab.c1)
        process.wait_for("ready for")
        assert f"ExternalIPAddress = {PUBLIC}" in upnpc(lab.c1, "-s")
        assert process.stop() == 0


def test_it_serves_where_systemd_cannot_be_notified(idle: Lab) -> None:
    command = ("env", "NOTIFY_SOCKET=/run/nothing", *IGD)
    with serving(idle, command=command) as process:
        process.wait_for("WARNING .*NOTIFY_SOCKET /run/nothing: .*: systemd was not notified of READY=1")
        upnpc(idle.c1, "-r", "8043", "tcp")


@pytest.mark.parametrize("variables", [[], ["PATH=/usr/bin:/bin"]])
def test_an_environment_without_path_is_enough(idle: Lab, variables: list[str]) -> None:
    """As cron, init scripts and udev rules have it."""
    before = rules(idle)
    env, sources, *command = IGD
    with serving(idle, command=(env, "--ignore-environment", *variables, sources, *command)):
        upnpc(idle.c1, "-r", "8043", "tcp")
        assert ("TCP", 8043) in ports(idle)
    assert rules(idle) == before


def test_without_wg_the_package_is_named(idle: Lab) -> None:
    before = rules(idle)
    env, *command = IGD
    printed = idle.srv.run(env, "PATH=/nowhere", *command, "run", "wg0", check=False)
    assert printed.returncode == 1
    assert printed.stderr.endswith("igd: wg0: the program wg is not in PATH; apt install wireguard-tools has it\n")
    assert rules(idle) == before


def test_without_a_daemon_commands_say_so(idle: Lab) -> None:
    for command in ("list", "status"):
        asked = igd(idle, command, "wg0", check=False)
        assert (asked.returncode, asked.stdout) == (1, "")
        assert asked.stderr.startswith("igd: igd is not running for wg0")
    assert igd(idle, "stop", "wg0").stderr == ""


def test_check_names_file_key_and_value_of_each_mistake(tmp_path: Path) -> None:
    path = tmp_path / "wg0.toml"
    path.write_text(
        'http_prot = 80\nexternal_address = "nowhere"\nallow = ["1024-70000 10.100.0.0/16 1024-65535"]\n'
        '[leases]\nmax = 5\n[firewall]\nbackend = "pf"\n'
    )
    printed = subprocess.run((*IGD, "check", path), capture_output=True, text=True, check=False)
    assert (printed.returncode, printed.stdout) == (2, "")
    lines = sorted(printed.stderr.splitlines())
    for line, key, value in zip(
        lines,
        ("allow", "external_address", "firewall.backend", "http_prot", "leases.max"),
        ("1024-70000", "nowhere", "pf", "unknown key", "5"),
        strict=True,
    ):
        assert line.startswith(f"igd: {path}: {key}: ")
        assert value in line


def test_run_refuses_the_same_mistakes(idle: Lab, tmp_path: Path) -> None:
    path = tmp_path / "wg0.toml"
    path.write_text("http_prot = 80\n")
    printed = igd(idle, "run", "wg0", "--config", str(path), check=False)
    assert printed.returncode == 2
    assert printed.stderr.startswith(f"igd: {path}: http_prot: unknown key")


BEHIND_NAT = "ip address flush dev ens0; ip address add 192.168.1.2/24 dev ens0; ip route add default dev ens0"


@pytest.mark.parametrize(
    ("config", "command", "warning"),
    [
        ("", "", ""),
        ('external_interface = "eth7"', "", "external_interface eth7 does not exist (there are: "),
        ('external_address = "60.60.60.99"', "", "no interface has external_address 60.60.60.99 (there "),
        ('external_address = "10.1.2.3"', "", "external_address 10.1.2.3 is not a public address"),
        ("", "ip route del default", "no IPv4 default route: "),
        ("", BEHIND_NAT, "ens0 has no public address, only 192.168.1.2"),
    ],
    ids=["nothing", "interface", "address", "private address", "no route", "1:1 NAT"],
)  # fmt: skip
def test_check_warns_about_the_host(config: str, command: str, warning: str) -> None:
    """With exit status 0: the configuration is valid, and the host may change."""
    with Lab(wg=False) as lab:
        lab.srv.write("/etc/igd/wg0.toml", config)
        lab.srv.run("sh", "-ec", command)
        checked = igd(lab, "check", "wg0")
        assert checked.stderr.startswith(f"igd: warning: {warning}" if warning else "")
        assert bool(checked.stderr) is bool(warning)
        assert "[firewall]\n" in checked.stdout


def test_check_shows_what_would_be_used(tmp_path: Path) -> None:
    path = tmp_path / "wg0.toml"
    path.write_text('[firewall]\nbackend = "iptables"\n')
    printed = subprocess.run((*IGD, "check", path), capture_output=True, text=True, check=True)
    assert 'backend = "iptables"\n' in printed.stdout
    assert "http_port = 2869\n" in printed.stdout
    assert "allow 1024-65535 0.0.0.0/0 1024-65535" in printed.stdout
    path.write_text(printed.stdout)
    assert subprocess.run((*IGD, "check", path), capture_output=True, text=True, check=True).stdout == printed.stdout


def test_the_configuration_is_obeyed(lab: Lab) -> None:
    config = """
        http_port = 5000
        rules = ["deny 8043 10.100.0.2 1-65535", "allow 22 10.100.0.2 22", "allow 8000-8999 10.100.0.2 8000-8999"]
        [leases]
        max = 60
        default = 60
        [limits]
        mappings_per_peer = 2
    """
    with serving(lab, config):
        printed = [
            lab.c1.run("upnpc", "-u", f"http://{GATEWAY}:5000/1/device.xml", "-r", port, "tcp", check=False).stdout
            for port in ("22", "8043", "9000", "8044", "8045")
        ]
        assert "22 TCP is redirected" in printed[0]
        assert "failed with code 606" in printed[1]
        assert "failed with code 606" in printed[2]
        assert "8044 TCP is redirected to internal 10.100.0.2:8044 (duration=60)" in printed[3]
        assert "failed with code 728" in printed[4]
        assert ports(lab) == [("TCP", 22), ("TCP", 8044)]


def test_the_default_is_what_the_firewall_of_the_server_calls_for() -> None:
    with Lab(iptables="legacy") as lab, serving(lab) as process:
        assert re.search("firewall backend iptables: .*iptables-legacy", "\n".join(process.lines))
