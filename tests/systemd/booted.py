"""The lab's server as a machine that systemd has booted, and what the tests ask of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.e2e.serving import rules
from tests.lab import Lab
from tests.lab.wireguard import Forward, Iptables
from tests.systemd.machine import Machine, Units

SERVICE = "igd@wg0.service"
WG_QUICK = "wg-quick@wg0.service"

START = "PostUp = systemctl start --no-block igd@%i || true"
STOP = "PostDown = systemctl stop igd@%i || true"
"""The lines that docs/installing.md recommends."""

Layers = tuple[Path, Path]


class Booted(NamedTuple):
    """A lab, and the machine that is its server."""

    lab: Lab
    machine: Machine


@contextmanager
def booted(
    layers: Layers,
    *,
    lines: Sequence[str] = (),
    forward: Forward = "accept-lines",
    iptables: Iptables = "nft",
    userspace: bool = False,
    drop_ins: Sequence[str] = (),
    enabled: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    units: Units = "installed",
) -> Iterator[Booted]:
    """Build a lab and boot its server; no tunnel is up, but what is enabled may bring one up. See Lab and Machine."""
    with (
        Lab(wg=False, server_lines=lines, forward=forward, iptables=iptables) as lab,
        Machine(
            lab.srv, layers, userspace=userspace, drop_ins=drop_ins, enabled=enabled, files=files, units=units
        ) as machine,
    ):
        yield Booted(lab, machine)


def rules_without_tunnel(lab: Lab) -> str:
    """Return the server's rules as wg-quick's own lines leave them, with the empty chains that they make."""
    for rule in (("filter", "FORWARD"), ("nat", "POSTROUTING")):
        for verb in ("-A", "-D"):
            lab.srv.run("iptables-nft", "-t", rule[0], verb, rule[1], "-j", "ACCEPT")
    return rules(lab)


def assert_serves(machine: Machine) -> int:
    """Wait until igd serves, and give its process's number."""
    machine.await_state(SERVICE, "active")
    assert "interface           wg0" in machine.run("/opt/igd/bin/igd", "status", "wg0").stdout
    return int(*machine.shows(SERVICE, "MainPID"))


def assert_ended_well(booted: Booted, rules_before: str) -> None:
    """Wait until igd has ended, and assert that it ended well each time, was not restarted, and left nothing."""
    machine = booted.machine
    machine.await_state(SERVICE, "inactive")
    log = machine.log(SERVICE)  # all that is left once systemd has forgotten the unit
    assert log.count(": Deactivated successfully.") == log.count("\nStarted igd@wg0"), log
    assert "Scheduled restart" not in log, log
    assert "Main process exited" not in log, log
    assert machine.run("ls", "/run/igd").stdout == ""
    assert rules(booted.lab) == rules_before
