"""What is planned for which machine."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from igd.config import Config, parse
from igd.core.peers import Peers
from igd.operator.setup import steps
from igd.operator.setup.machine import LEGACY, USERSPACE, Machine, Manager, Service
from igd.operator.setup.plan import CannotSetUpError, plan
from igd.operator.setup.wg_quick_hooks import DETACHED, START, STOP
from tests.operator.test_wg_quick import KEY

CONF = Path("/etc/wireguard/wg0.conf")
PACKAGED = Service("/usr/lib/systemd/system/igd@.service", active=False, drop_ins=frozenset())
BY_HAND = replace(PACKAGED, unit="/etc/systemd/system/igd@.service")

USUAL = Machine(
    "wg0",
    Config(),
    up=True,
    peers=Peers([], []),
    manager=Manager.WG_QUICK,
    manager_file=CONF,
    manager_content=b"[Interface]\nAddress = 10.100.0.1/24\n",
    service=PACKAGED,
)


def with_lines(*lines: str) -> Machine:
    return replace(USUAL, manager_content=USUAL.manager_content + "".join(f"{line}\n" for line in lines).encode())


def shown(machine: Machine) -> str:
    """Return the plan as the operator sees it."""
    planned = plan(machine)
    return "\n".join([steps.as_text(planned.steps), *planned.notes])


@pytest.mark.parametrize("service", [PACKAGED, BY_HAND], ids=["package", "by hand"])
def test_the_usual_machine_gets_two_lines_and_a_start(service: Service) -> None:
    assert shown(replace(USUAL, service=service)) == "\n".join(
        [
            " 1. do    add to /etc/wireguard/wg0.conf:",
            f"              {START}",
            f"              {STOP}",
            "    undo  take out these lines",
            "    why   igd starts and stops with the interface, whoever runs wg-quick",
            " 2. do    systemctl start igd@wg0",
            "    undo  systemctl stop igd@wg0",
            "          delete /var/lib/igd/wg0",
            "          delete /run/igd/wg0",
            "    why   wg0 is up",
        ]
    )


def test_what_is_there_is_not_done_again() -> None:
    there = replace(with_lines(START, STOP), running=True)
    assert plan(there) == ([], [])
    assert plan(replace(there, service=None)) == ([], [])


@pytest.mark.parametrize(
    ("present", "added"),
    [
        ((START,), [STOP]),
        (("PreDown = systemctl stop igd@wg0",), [START]),
        ((DETACHED[0],), [DETACHED[1]]),
        (("PostUp = systemctl start igd@wg1", "PostDown = systemctl stop igd@wg1"), [START, STOP]),
    ],
    ids=["no stop", "no start", "without systemd's service", "of another interface"],
)
def test_lines_that_somebody_wrote_are_completed(present: tuple[str, ...], added: list[str]) -> None:
    first, *_ = plan(with_lines(*present)).steps
    assert list(first.writes[0].lines) == added


def test_lines_that_run_igd_without_systemd_stay_and_are_what_starts_it() -> None:
    (start,) = plan(with_lines(*DETACHED)).steps
    assert (start.do, start.undo) == ((("igd", "run", "wg0", "--detach"),), (("igd", "stop", "wg0"),))


def test_an_igd_that_is_not_in_path_is_named_by_its_path() -> None:
    lines, start = plan(replace(USUAL, service=None, program="/opt/igd/bin/igd")).steps
    assert lines.writes[0].lines[0] == "PostUp = /opt/igd/bin/igd run %i --detach || true"
    assert start.do == (("/opt/igd/bin/igd", "run", "wg0", "--detach"),)


def test_a_line_that_stops_the_tunnel_once_igd_is_gone_is_noted_with_what_mends_it() -> None:
    (note,) = plan(with_lines("PostUp = systemctl start igd@%i", STOP)).notes
    assert "wg-quick fails at this line once igd is gone; this mends it: sed -i -E" in note


def test_drop_ins_that_are_needed_and_not_there() -> None:
    needing = replace(with_lines(START, STOP), userspace=True, legacy_rules=True, running=True)
    made = [write.path for step in plan(needing).steps for write in step.writes]
    assert made == [Path("/etc/systemd/system/igd@wg0.service.d") / name for name in (USERSPACE, LEGACY)]
    there = replace(needing, service=replace(PACKAGED, drop_ins=frozenset({USERSPACE, LEGACY})))
    assert plan(there).steps == []


@pytest.mark.parametrize("manager", [Manager.NETWORKD, Manager.NETWORK_MANAGER, Manager.UNKNOWN])
def test_another_manager_gets_a_link_at_the_device(manager: Manager) -> None:
    machine = replace(USUAL, interface="wg-home", manager=manager, manager_file=None, manager_content=b"")
    link, start = plan(machine).steps
    assert (
        "rm",
        "-f",
        "/etc/systemd/system/sys-subsystem-net-devices-wg\\x2dhome.device.wants/igd@wg-home.service",
    ) in (link.undo)
    assert start.do == (("systemctl", "start", "igd@wg-home"),)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (
            replace(USUAL, service=replace(PACKAGED, unit="")),
            r"no unit igd@.service; this installs it:\ncp /.*/igd@.service",
        ),
        (replace(USUAL, service=replace(PACKAGED, unit="", masked=True)), "systemctl unmask igd@wg0"),
        (replace(USUAL, service=None, manager=Manager.NETWORKD), "without systemd, wg-quick must start igd"),
        (
            replace(USUAL, peers=None, manager=Manager.UNKNOWN),
            "there is no interface wg0, and no /etc/wireguard/wg0.conf",
        ),
        (replace(USUAL, manager_content=b"[Peer]\n"), r"/etc/wireguard/wg0.conf: it has no section \[Interface\]"),
    ],
)
def test_what_cannot_be_set_up_is_refused_with_what_helps(machine: Machine, reason: str) -> None:
    with pytest.raises(CannotSetUpError, match=reason):
        plan(machine)


def test_names_and_the_forward_chain_go_into_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("igd.config.DIRECTORY", tmp_path)
    named = with_lines(START, STOP, "# laptop", "[Peer]", f"PublicKey = {KEY}")
    (step, _start) = plan(replace(named, forward_chains=("inet filter forward",))).steps
    (write,) = step.writes
    config = parse(write.content.decode(), write.path)
    assert (write.path, config.firewall.forward_chain) == (tmp_path / "wg0.toml", "inet filter forward")
    assert config.policies.name_of(KEY) == "laptop"


def test_what_does_not_fit_into_the_configuration_is_left_to_the_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("igd.config.DIRECTORY", tmp_path)
    before = b"[firewall]\nhairpin = false\n"
    machine = replace(
        with_lines(START, STOP),
        config=parse(before.decode(), Path("x")),
        config_before=before,
        forward_chains=("inet filter forward",),
        running=True,
    )
    assert plan(machine) == (
        [],
        [f'add to {tmp_path}/wg0.toml, where it fits: [firewall]; forward_chain = "inet filter forward"'],
    )


def test_a_miniupnpd_is_noted() -> None:
    notes = plan(replace(with_lines("PostUp = miniupnpd -i eth0"), miniupnpd=(77,))).notes
    assert [note for note in notes if "miniupnpd" in note] == notes
    assert len(notes) == 2


# The firewall


UFW = "ufw allow in on wg0 to any port 1900 proto udp"
FIREWALLD = "firewall-cmd --permanent --zone=public --add-port={}/udp && firewall-cmd --reload"
RICH = """firewall-cmd --permanent --add-rich-rule='rule family="ipv4" accept' && firewall-cmd --reload"""
INSERTED = "iptables-nft -I INPUT 3 -i wg0 -p udp --dport 1900 -j ACCEPT"
APPENDED = "ip6tables-legacy -A INPUT -i wg0 -p udp --dport 1900 -j ACCEPT"
NATIVE = 'nft add rule inet filter input iifname "wg0" udp dport 1900 accept'


@pytest.mark.parametrize(
    ("lines", "do", "undo", "files"),
    [
        ([UFW], [UFW], ["ufw delete allow in on wg0 to any port 1900 proto udp"], 2),
        (
            [FIREWALLD.format(1900)],
            [
                "firewall-cmd --zone=public --add-port=1900/udp",
                "firewall-cmd --permanent --zone=public --add-port=1900/udp",
            ],
            [
                "firewall-cmd --zone=public --remove-port=1900/udp",
                "firewall-cmd --permanent --zone=public --remove-port=1900/udp",
            ],
            2,
        ),
        (
            [RICH],
            ["""firewall-cmd --permanent '--add-rich-rule=rule family="ipv4" accept'"""],
            ["""firewall-cmd --permanent '--remove-rich-rule=rule family="ipv4" accept'"""],
            0,
        ),
        ([INSERTED], [INSERTED], ["iptables-nft -D INPUT -i wg0 -p udp --dport 1900 -j ACCEPT"], 0),
        ([APPENDED], [APPENDED], ["ip6tables-legacy -D INPUT -i wg0 -p udp --dport 1900 -j ACCEPT"], 0),
    ],
    ids=["ufw", "firewalld", "firewalld, by networks", "iptables", "ip6tables"],
)
def test_each_line_has_the_one_that_takes_it_back(lines: list[str], do: list[str], undo: list[str], files: int) -> None:
    machine = replace(with_lines(START, STOP), opens=dict.fromkeys(lines, "a rule"), running=True)
    step = next(each for each in plan(machine).steps if each.do)
    text = steps.as_text([step])
    assert all(each in text for each in [*do, *undo]), text
    assert "--reload" not in text, "it forgets what others have added to the running firewall"
    assert len(step.tracks) == files


def test_iptables_rules_come_back_with_the_interface() -> None:
    machine = replace(with_lines(START, STOP), opens={INSERTED: "a rule"}, running=True)
    write = next(write for step in plan(machine).steps for write in step.writes)
    assert write.lines == (
        "PostUp = iptables-nft -I INPUT 3 -i %i -p udp --dport 1900 -j ACCEPT || true",
        "PostDown = iptables-nft -D INPUT -i %i -p udp --dport 1900 -j ACCEPT || true",
    )
    assert "until the next boot" in shown(replace(machine, manager=Manager.NETWORKD))


def test_rules_of_nftables_are_left_to_their_owner() -> None:
    planned = plan(replace(with_lines(START, STOP), opens={NATIVE: "a rule"}, running=True))
    assert planned == ([], [f"the firewall drops what peers send to igd; this lets it in: {NATIVE}"])


def test_every_reason_and_undo_is_shown() -> None:
    machine = replace(USUAL, userspace=True, legacy_rules=True, opens={UFW: "x", INSERTED: "y"})
    text = shown(machine)
    for title in ("do", "undo", "why"):
        assert len(re.findall(rf"(?m)^ *(?:\d+\. )?{title} +\S", text)) == len(plan(machine).steps)
