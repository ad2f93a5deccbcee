"""Rule sets that are flushed, or restored from an older copy: the mappings that clients were granted stay."""

import signal
from typing import Literal

import pytest

from tests.e2e import control
from tests.e2e.serving import C1, PUBLIC, REMOTE, assert_only_aged, held, listed, serving, start, upnpc
from tests.lab import Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root
from tests.lab.talk import Protocol

pytestmark = requires_root

PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")


def legacy_nat(lab: Lab) -> list[str]:
    """Return the rules that igd keeps in iptables-legacy, with the jumps to them."""
    saved = lab.srv.run("iptables-legacy-save", "-t", "nat").stdout
    return [line for line in saved.splitlines() if line.startswith("-A") and "igd_wg0" in line]


@pytest.fixture
def legacy() -> Lab:
    """A server that uses iptables-legacy."""
    return Lab(iptables="legacy")


def test_a_flush_of_iptables_legacy_is_repaired(legacy: Lab) -> None:
    needs("upnpc", "iptables-legacy-save")
    with legacy as lab, serving(lab, '[firewall]\nbackend = "iptables"\n') as process, answering(lab.c1, 8043):
        upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
        before = legacy_nat(lab)
        for table in ("-F PREROUTING", "-F igd_wg0", "-F"):
            lab.srv.run("iptables-legacy", "-t", "nat", *table.split())
            process.wait_for("changed by another program through iptables-legacy")
            until(lambda: legacy_nat(lab) == before)
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE


def test_a_restored_save_of_iptables_legacy_neither_opens_nor_closes_a_port(legacy: Lab) -> None:
    needs("upnpc", "iptables-legacy-save", "iptables-legacy-restore")
    with (
        legacy as lab,
        serving(lab, '[firewall]\nbackend = "iptables"\n') as process,
        answering(lab.c1, 8043),
        answering(lab.c1, 8044),
    ):
        assert control.add(lab.c1, {"ExternalPort": 8043, "InternalPort": 8043}) == 200
        old = lab.srv.run("iptables-legacy-save").stdout
        assert control.ask(lab.c1, "DeletePortMapping", control.key(8043)) == 200
        assert control.add(lab.c1, {"ExternalPort": 8044, "InternalPort": 8044}) == 200
        now = legacy_nat(lab)
        lab.srv.run("iptables-legacy-restore", input=old)
        process.wait_for("changed by another program through iptables-legacy")
        until(lambda: legacy_nat(lab) == now)
        assert ask(lab.net, PUBLIC, 8044).source == REMOTE
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, 8043)


def test_a_rule_set_that_is_saved_and_loaded_while_igd_is_dead_goes_on_and_is_taken_over(lab: Lab) -> None:
    """As an operator does who keeps the firewall in a file, with our rules in it."""
    needs("nft", "upnpc")
    with start(lab) as doomed, answering(lab.c1, 8043), answering(lab.c1, 8043, "udp"):
        upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "200")
        upnpc(lab.c1, "-a", C1, "8043", "8043", "udp", "300", REMOTE)
        before = listed(lab)
        doomed.signal(signal.SIGKILL)
        assert doomed.wait() == -signal.SIGKILL
        lab.srv.run("sh", "-c", "nft list ruleset > /run/saved && nft flush ruleset")
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, PUBLIC, 8043)
        lab.srv.run("nft", "-f", "/run/saved")
        for protocol in PROTOCOLS:
            assert ask(lab.net, PUBLIC, 8043, protocol).source == REMOTE
        with serving(lab):
            assert held(lab) == [("TCP", 8043)]  # the other is for one remote
            for protocol in PROTOCOLS:
                assert ask(lab.net, PUBLIC, 8043, protocol).source == REMOTE
            assert_only_aged(before, listed(lab))
            upnpc(lab.c1, "-d", "8043", "tcp")
            with pytest.raises(ConnectionRefusedError):
                ask(lab.net, PUBLIC, 8043)


def test_with_an_own_table_a_flush_of_everything_is_not_felt(lab: Lab) -> None:
    needs("nft", "upnpc")
    with serving(lab, "[firewall]\nown_table = true\n"), answering(lab.c1, 8043), answering(lab.c1, 8044):
        upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
        handle = _handle(lab)
        for _time in range(2):
            lab.srv.run("nft", "flush", "ruleset")
            assert _handle(lab) == handle
            assert held(lab)[0] == ("TCP", 8043)
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE
            upnpc(lab.c1, "-a", C1, "8044", "8044", "tcp", "300")
            assert ask(lab.net, PUBLIC, 8044).source == REMOTE
    assert "igd" not in lab.srv.run("nft", "list", "ruleset").stdout


def _handle(lab: Lab) -> str:
    """Return the line by which the table is known from one that was made anew."""
    return lab.srv.run("nft", "-a", "list", "table", "inet", "igd_wg0").stdout.splitlines()[0]


@pytest.mark.parametrize("iptables", ["nft", "legacy"])
def test_bans_that_come_and_go_are_not_taken_for_damage(iptables: Literal["nft", "legacy"]) -> None:
    """The log says that igd's part was repaired only where it was, and the mappings are not loaded again."""
    needs("upnpc", f"iptables-{iptables}")
    with Lab(forward="drop", iptables=iptables) as lab, serving(lab) as process:
        upnpc(lab.c1, "-r", "8043", "tcp")
        lines = "\n".join(f"-{verb} FORWARD -s 198.51.100.{n} -j DROP" for n in range(1, 100) for verb in "ID")
        program = f"iptables-{iptables}"
        lab.srv.run("sh", "-c", f"while read -r line; do {program} -w $line; done", input=f"{lines}\n")
        lab.srv.run(program, "-F", "FORWARD")
        process.wait_for("igd's part was repaired")
        assert sum("was repaired" in line for line in process.lines) == 1
