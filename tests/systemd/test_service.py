"""igd@ does its work as a user with one capability; what else it needs is in the drop-ins, and all of it is needed."""

import re

import pytest

from igd.host import flow_timeouts
from tests.e2e.behind_nat import coturn
from tests.e2e.serving import PUBLIC, REMOTE, rules, upnpc
from tests.lab import PATIENCE, Answer, CommandFailed, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.wireguard import Forward, Iptables
from tests.systemd.booted import (
    SERVICE,
    START,
    WG_QUICK,
    Layers,
    assert_ended_well,
    assert_serves,
    booted,
    rules_without_tunnel,
)
from tests.systemd.machine import Machine

pytestmark = requires_root

USERSPACE, LEGACY = "userspace-wireguard.conf", "iptables-legacy.conf"
_DROP_IN = "/etc/systemd/system/igd@.service.d/zz-test.conf"
_NO_CAPABILITIES = "[Service]\nAmbientCapabilities=\nCapabilityBoundingSet=\n"


def _connect_client(lab: Lab) -> None:
    lab.wg_up(lab.c1)
    lab.c1.run("ping", "-q", "-c1", f"-w{PATIENCE:.0f}", "10.100.0.1")


def _capabilities(machine: Machine, process: int) -> int:
    lines = machine.run("cat", f"/proc/{process}/status").stdout.splitlines()
    found = {key: value for key, _, value in (line.partition(":\t") for line in lines)}
    assert found["CapBnd"] == found["CapPrm"] == found["CapEff"]
    assert "0" not in found["Uid"].split()
    return int(found["CapEff"], 16)


def _assert_reads_flow_timeouts(machine: Machine, process: int) -> None:
    """Assert that the unit's user can read them where the unit's sandbox has them."""
    files = [
        str(flow_timeouts.DIRECTORY / f"nf_conntrack_{name}") for name in ("udp_timeout", "tcp_timeout_established")
    ]
    inside = ("nsenter", f"--target={process}", "--mount", "--net", "setpriv", "--reuid=igd", "--clear-groups")
    assert machine.run(*inside, "cat", *files).stdout.split() == ["30", "432000"]
    with pytest.raises(CommandFailed):
        machine.run(*inside[:-2], "tee", files[0])


@pytest.mark.parametrize(
    ("userspace", "drop_ins", "iptables", "forward", "capabilities"),
    [
        (False, [], "nft", "accept-lines", 1 << 12),  # NET_ADMIN
        (True, [USERSPACE], "nft", "drop", 1 << 12 | 1 << 1),  # and DAC_OVERRIDE
        (False, [LEGACY], "legacy", "drop", 1 << 12 | 1 << 13),  # and NET_RAW
    ],
    ids=["alone", "userspace", "legacy"],
)
def test_traffic_before_and_after_a_crash(
    layers: Layers, *, userspace: bool, drop_ins: list[str], iptables: Iptables, forward: Forward, capabilities: int
) -> None:
    with booted(
        layers, userspace=userspace, drop_ins=drop_ins, iptables=iptables, forward=forward, enabled=[SERVICE]
    ) as server:
        lab, machine = server
        before = rules_without_tunnel(lab)
        machine.run("systemctl", "start", WG_QUICK)
        first = assert_serves(machine)
        assert _capabilities(machine, first) == capabilities
        _assert_reads_flow_timeouts(machine, first)
        _connect_client(lab)
        with answering(lab.c1, 8043):
            upnpc(lab.c1, "-n", "10.100.0.2", "8043", "8043", "tcp", "300")
            assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
            with machine.start("journalctl", "--follow", "--lines=0", "--output=cat", f"--unit={SERVICE}") as journal:
                machine.run("systemctl", "kill", "--signal=KILL", SERVICE)
                assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
                journal.wait_for("ready for the peers of wg0")
            assert assert_serves(machine) != first
            assert "8043" in machine.run("/opt/igd/bin/igd", "list", "wg0").stdout
            assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
            upnpc(lab.c1, "-d", "8043", "tcp")
            with pytest.raises(ConnectionRefusedError):
                ask(lab.net, PUBLIC, 8043)
        machine.run("systemctl", "stop", WG_QUICK)
        machine.await_state(SERVICE, "inactive")
        assert rules(lab) == before


def test_the_lock_of_iptables_legacy_need_not_exist_before(layers: Layers) -> None:
    """After a boot there is none until a program of iptables-legacy has run. igd shares it with those programs."""
    files = {"/etc/igd/wg0.toml": '[firewall]\nbackend = "iptables"\n'}
    with booted(layers, drop_ins=[LEGACY], files=files) as server:
        lab, machine = server
        machine.run("wg-quick", "up", "wg0")
        machine.run("test", "!", "-e", "/run/xtables.lock")
        machine.run("systemctl", "start", SERVICE)
        assert_serves(machine)
        _connect_client(lab)
        with answering(lab.c1, 8043):
            upnpc(lab.c1, "-n", "10.100.0.2", "8043", "8043", "tcp", "300")
            assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
        machine.run("iptables-legacy", "-w", "1", "-t", "nat", "-A", "OUTPUT", "-j", "RETURN")
        upnpc(lab.c1, "-d", "8043", "tcp")
        machine.run("systemctl", "stop", SERVICE)
        assert "igd" not in rules(lab)


@pytest.mark.parametrize(
    "prepare",
    [
        "ln -s /run/elsewhere.lock /run/xtables.lock",
        "touch /run/elsewhere.lock; ln -s /run/elsewhere.lock /run/xtables.lock",
        "install -m 640 /dev/null /run/xtables.lock; mount --bind -o ro /run/xtables.lock /run/xtables.lock",
    ],
    ids=["link to nothing", "link", "read-only"],
)
def test_the_lock_of_iptables_legacy_may_be_somewhere_else(layers: Layers, prepare: str) -> None:
    with booted(layers, drop_ins=[LEGACY], iptables="legacy") as server:
        machine = server.machine
        machine.run("wg-quick", "up", "wg0")
        machine.run("sh", "-ec", f"rm -f /run/xtables.lock; {prepare}")
        machine.run("systemctl", "start", SERVICE)
        assert_serves(machine)
        assert "firewall backend iptables" in machine.log(SERVICE)


def test_a_lock_of_iptables_legacy_that_cannot_be_used_is_a_warning(layers: Layers) -> None:
    with booted(layers, drop_ins=[LEGACY], iptables="legacy") as server:
        machine = server.machine
        machine.run("wg-quick", "up", "wg0")
        machine.run("sh", "-ec", "rm -f /run/xtables.lock; mkdir -m 700 /run/xtables.lock")
        machine.run("systemctl", "start", SERVICE)
        assert_serves(machine)
        assert "cannot open iptables' lock /run/xtables.lock: " in machine.log(SERVICE)


@pytest.mark.parametrize("drop_ins", [[], [USERSPACE], [LEGACY], [USERSPACE, LEGACY]], ids=len)
def test_it_starts_where_somebody_listed_the_rules_of_iptables_legacy(layers: Layers, drop_ins: list[str]) -> None:
    """That creates empty tables. With CAP_DAC_OVERRIDE alone the service sees them, but not what is in them."""
    with booted(layers, userspace=USERSPACE in drop_ins, drop_ins=drop_ins) as server:
        lab, machine = server
        machine.run("iptables-legacy", "-L")
        machine.run("wg-quick", "up", "wg0")
        machine.run("systemctl", "start", SERVICE)
        first = assert_serves(machine)
        log = machine.log(SERVICE)
        assert ("see systemd/iptables-legacy.conf" in log) is (LEGACY not in drop_ins)
        assert ("no IPv4 rules of iptables-legacy are in use" in log) is (LEGACY in drop_ins)
        machine.run("ip6tables-legacy", "-t", "nat", "-L")  # and while it runs
        _connect_client(lab)
        with answering(lab.c1, 8043):
            upnpc(lab.c1, "-n", "10.100.0.2", "8043", "8043", "tcp", "300")
            assert ask(lab.net, PUBLIC, 8043) == Answer(REMOTE, "who am I?")
        assert machine.shows(SERVICE, "MainPID") == (str(first),)


@pytest.mark.parametrize(
    ("userspace", "iptables", "drop_ins", "missing", "warning"),
    [
        (False, "nft", [], _NO_CAPABILITIES, "CAP_NET_ADMIN is needed"),
        (True, "nft", [], "", "wg show wg0 public-key: .*Permission denied"),
        (False, "legacy", [], "", "cannot open iptables' lock /run/xtables.lock: Permission denied"),
        (
            False,
            "legacy",
            [LEGACY],
            f"{_NO_CAPABILITIES}AmbientCapabilities=CAP_NET_ADMIN\nCapabilityBoundingSet=CAP_NET_ADMIN\n",
            "Permission denied",
        ),
    ],
    ids=["CAP_NET_ADMIN", "CAP_DAC_OVERRIDE", "lock", "CAP_NET_RAW"],
)
def test_without_what_it_needs_it_says_so(
    layers: Layers, *, userspace: bool, iptables: Iptables, drop_ins: list[str], missing: str, warning: str
) -> None:
    files = {_DROP_IN: missing}
    if iptables == "legacy":
        files["/etc/igd/wg0.toml"] = '[firewall]\nbackend = "iptables"\n'
    with booted(layers, userspace=userspace, iptables=iptables, drop_ins=drop_ins, files=files) as server:
        machine = server.machine
        machine.run("wg-quick", "up", "wg0")
        assert machine.run("systemctl", "start", SERVICE, check=False).returncode == 1
        machine.run("systemctl", "stop", SERVICE)
        assert re.search(warning, machine.log(SERVICE)), machine.log(SERVICE)


def test_it_sees_which_settings_of_the_kernel_drop_mapped_flows(layers: Layers) -> None:
    """ProtectKernelTunables= and ProtectProc= let it read /proc/sys."""
    with booted(layers) as server:
        lab, machine = server
        machine.run("wg-quick", "up", "wg0")
        machine.run("systemctl", "start", SERVICE)
        assert_serves(machine)
        with machine.start("journalctl", "--follow", "--lines=0", "--output=cat", f"--unit={SERVICE}") as journal:
            lab.srv.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
            journal.wait_for("WARNING .* IPv4 forwarding is off")
            lab.srv.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
            journal.wait_for("INFO .* no longer: IPv4 forwarding is off")


def test_a_mistake_in_the_configuration_is_not_tried_again_and_the_tunnel_stays(layers: Layers) -> None:
    with booted(layers, lines=[START], files={"/etc/igd/wg0.toml": "bakend = 1\n"}) as server:
        machine = server.machine
        machine.run("wg-quick", "up", "wg0")
        machine.await_state(SERVICE, "failed")
        assert machine.shows(SERVICE, "SubState", "ExecMainStatus") == ("failed", "2")
        status = machine.run("systemctl", "status", SERVICE, check=False).stdout
        assert "igd: /etc/igd/wg0.toml: bakend: unknown key" in status
        machine.run("journalctl", "--rotate", "--vacuum-time=1us")  # a server's journal may be short
        (kept,) = machine.shows(SERVICE, "StatusText")
        assert kept.startswith("/etc/igd/wg0.toml: bakend: unknown key")
        machine.run("ip", "link", "show", "dev", "wg0")


@pytest.mark.parametrize(
    ("hiding", "warning", "remedy"),
    [
        (
            "chmod 600 /etc/igd/wg0.toml",
            "user igd may not read /etc/igd/wg0.toml (mode 0600, root:root)",
            "chgrp igd /etc/igd/wg0.toml && chmod g+r /etc/igd/wg0.toml",
        ),
        (
            "chmod 700 /etc/igd",
            "user igd may not enter /etc/igd (mode 0700, root:root)",
            "chgrp igd /etc/igd && chmod g+x /etc/igd",
        ),
        (
            "mv /etc/igd/wg0.toml /root; ln -s /root/wg0.toml /etc/igd/wg0.toml",
            "user igd may not enter /root",
            "igd@.service hides it, so put the file itself in /etc/igd, and no symbolic link",
        ),
        (
            "mv /etc/igd/wg0.toml /etc/igd/Wg0.toml; ln -s Wg0.toml /etc/igd/wg0.toml; chmod 640 /etc/igd/Wg0.toml",
            "user igd may not read /etc/igd/Wg0.toml (mode 0640, root:root)",
            "chgrp igd /etc/igd/Wg0.toml && chmod g+r /etc/igd/Wg0.toml",
        ),
    ],
    ids=["file", "directory", "link to a home", "link"],
)
def test_a_configuration_that_its_user_may_not_read(layers: Layers, hiding: str, warning: str, remedy: str) -> None:
    """`systemctl status` has the remedy, `igd check` of root has it too, and then igd starts."""
    with booted(layers, lines=[START], files={"/etc/igd/wg0.toml": "http_port = 5000\n"}) as server:
        machine = server.machine
        machine.run("sh", "-ec", hiding)
        checked = machine.run("/opt/igd/bin/igd", "check", "wg0")
        assert f"igd: warning: {warning}" in checked.stderr
        assert "http_port = 5000\n" in checked.stdout
        machine.run("wg-quick", "up", "wg0")
        machine.await_state(SERVICE, "failed")
        status = machine.run("systemctl", "status", "--full", SERVICE, check=False).stdout
        assert f"igd: /etc/igd/wg0.toml: {warning}" in status
        assert f": {remedy}\n" in status
        machine.run("sh", "-ec", remedy if remedy.startswith("chgrp") else "mv -f /root/wg0.toml /etc/igd/wg0.toml")
        machine.run("systemctl", "start", SERVICE)
        assert "5000" in machine.run("/opt/igd/bin/igd", "status", "wg0").stdout
        assert machine.run("/opt/igd/bin/igd", "check", "wg0").stderr == ""


def test_a_configuration_that_is_not_read_because_of_its_name(layers: Layers) -> None:
    files = {"/etc/igd/wg0.conf": "http_port = 5000\n", "/etc/igd.toml": ""}
    with booted(layers, lines=[START], files=files) as server:
        machine = server.machine
        machine.run("wg-quick", "up", "wg0")
        assert_serves(machine)
        status = machine.run("systemctl", "status", "--full", SERVICE).stdout
        for file in files:
            assert f"WARNING igd.commands.serving: {file} is not read: the configuration of wg0 is " in status


def test_only_root_may_ask_the_daemon_and_systemctl_reloads_it(layers: Layers) -> None:
    with booted(layers) as server:
        before, machine = rules_without_tunnel(server.lab), server.machine
        machine.run("wg-quick", "up", "wg0")
        machine.run("systemctl", "start", SERVICE)
        assert_serves(machine)
        asked = machine.run(
            "setpriv", "--reuid=nobody", "--clear-groups", "/opt/igd/bin/igd", "list", "wg0", check=False
        )
        assert (asked.returncode, "answers root and its own user only" in asked.stderr) == (1, True), asked
        _assert_reloads(machine)
        machine.run("wg-quick", "down", "wg0")
        assert_ended_well(server, before)


def _assert_reloads(machine: Machine) -> None:
    """Assert that a good file is in force, and that a bad one is refused with its error, by the process that runs."""
    process = machine.shows(SERVICE, "MainPID")
    write = "umask 022; mkdir -p /etc/igd; echo '{}' >/etc/igd/wg0.toml"
    machine.run("sh", "-c", write.format("idle_after = 600"))
    machine.run("systemctl", "reload", SERVICE)
    assert "the configuration was reloaded: idle_after" in machine.log(SERVICE)
    machine.run("sh", "-c", write.format("nonsense = 1"))
    assert machine.run("systemctl", "reload", SERVICE, check=False).returncode != 0
    assert "the configuration was not reloaded, the former one stays in force: /etc/igd/wg0.toml: " in machine.log(
        SERVICE
    )
    assert machine.shows(SERVICE, "MainPID", "ActiveState") == (*process, "active")


@pytest.mark.parametrize("drop_ins", [[], [USERSPACE, LEGACY]])
def test_exposure_is_two_at_most(layers: Layers, drop_ins: list[str]) -> None:
    with booted(layers, drop_ins=drop_ins) as server:
        verified = server.machine.run("systemd-analyze", "verify", SERVICE, "igd-order@wg0.target")
        assert verified.stderr == ""
        # the threshold is in tenths
        security = ("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", SERVICE)
        server.machine.run(*security)


def test_a_stun_server_is_asked_by_name_with_one_capability(layers: Layers) -> None:
    """Neither the resolver nor a socket that is bound to an interface needs more than the service has."""
    needs("turnserver")
    config = 'external_address = "stun"\nstun_servers = ["stun.example.net"]\n'
    files = {"/etc/igd/wg0.toml": config, "/etc/hosts": f"{REMOTE} stun.example.net\n"}
    with booted(layers, files=files, enabled=[SERVICE]) as (lab, machine):
        machine.run("systemctl", "start", WG_QUICK)
        waiting = "waiting for an answer of a STUN server (stun.example.net:3478 (60.60.60.2): Connection refused)"
        until(lambda: waiting in machine.shows(SERVICE, "StatusText")[0], 0.2)
        assert_serves(machine)
        with coturn(lab.net, addresses=(REMOTE,)):
            until(lambda: machine.shows(SERVICE, "StatusText")[0] == "Serving the peers of wg0", 0.2)
        assert f"STUN server stun.example.net:3478 sees this server at {PUBLIC}" in machine.log(SERVICE)
