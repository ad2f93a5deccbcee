"""`igd reload` and SIGHUP: the new configuration is in force, and mappings and connections do not notice."""

import itertools
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from igd.commands.command import MISUSED
from igd.operator import admin_client, admin_paths
from tests.e2e import control, pcp_client
from tests.e2e.serving import (
    GATEWAY,
    PUBLIC,
    REMOTE,
    decisions,
    igd,
    mappings,
    ports,
    rules,
    serving,
    upnpc,
)
from tests.lab import Host, Lab, Process, answering, ask, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

FILE = "/etc/igd/wg0.toml"

MARKS = itertools.count()
"""Unknown keys of configurations that are refused, by which a test finds its place in the log."""


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    """A lab for all tests."""
    needs("upnpc", "nft", "iptables-legacy-save", "conntrack")
    with Lab() as lab, answering(lab.c1, 8043):
        yield lab


def section(client: Host, *lines: str) -> str:
    key = client.run("wg", "show", "wg0", "public-key").stdout.strip()
    return "\n".join(["", "[peers.laptop]", f'public_key = "{key}"', *lines, ""])


def reload(lab: Lab, config: str) -> str:
    """Write this configuration and reload it; return what `igd reload` prints, errors included."""
    lab.srv.write(FILE, config)
    result = igd(lab, "reload", "wg0")
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def running(lab: Lab) -> Iterator[Process]:
    with serving(lab, "http_port = 2869\n") as process:
        yield process


@pytest.fixture
def served(lab: Lab, running: Process) -> Iterator[Process]:
    """An igd with its defaults and without mappings, whose log is read from here on."""
    mark = f"mark_{next(MARKS)}"
    lab.srv.write(FILE, f"{mark} = 1\n")
    running.signal(signal.SIGHUP)
    running.wait_for(mark)
    yield running
    admin = Path(f"/proc/{lab.srv.pid}/root/run/igd/wg0")
    for config in ('rules = ["deny 1-65535 0.0.0.0/0 0-65535"]\n', ""):
        lab.srv.write(FILE, config)
        admin_client.post(admin, admin_paths.RELOAD, {})
    assert admin_client.get(admin, admin_paths.MAPPINGS) == []


@pytest.mark.parametrize("bad", ["nonsense = 1\n", "[limits\n", 'rules = ["allow all"]\n', "\0", ""])
def test_a_bad_file_is_refused_and_changes_nothing(lab: Lab, served: Process, bad: str) -> None:
    """The last one has the interface's own key as a peer's, which only the running igd can know."""
    upnpc(lab.c1, "-r", "8043", "tcp")
    before = rules(lab)
    lab.srv.write(FILE, 'rules = ["deny 1-65535 0.0.0.0/0 0-65535"]\n' + (bad or section(lab.srv)))
    result = igd(lab, "reload", "wg0", check=False)
    assert result.returncode == MISUSED
    assert result.stdout == ""
    assert "igd: wg0: the former configuration stays in force\n" in result.stderr
    assert "Traceback" not in result.stderr
    served.wait_for("the configuration was not reloaded, the former one stays in force: .")
    assert ports(lab) == [("TCP", 8043)]
    assert rules(lab) == before
    assert "is redirected" in upnpc(lab.c1, "-r", "8044", "tcp")
    upnpc(lab.c1, "-d", "8044", "tcp")


def test_what_needs_a_restart_is_named_and_the_rest_is_in_force(lab: Lab, served: Process) -> None:
    config = 'http_port = 5000\nfriendly_name = "x"\n[limits]\nmappings_per_peer = 1\n[firewall]\nhairpin = false\n'
    for _ in range(2):  # also where nothing else has changed since
        printed = reload(lab, config)
        assert "only a restart changes http_port, friendly_name, firewall.hairpin: systemctl restart igd@wg0" in printed
    served.wait_for("in force after a restart: http_port, friendly_name, firewall.hairpin")
    assert "is redirected" in upnpc(lab.c1, "-r", "8043", "tcp")
    assert control.add(lab.c1, {"ExternalPort": 9999, "InternalPort": 9999}) != 200
    assert "nothing has changed" in reload(lab, "[limits]\nmappings_per_peer = 1\n")


def test_every_limit_is_the_new_one(lab: Lab, served: Process) -> None:
    assert "changed: limits.requests_per_second" in reload(lab, "[limits]\nrequests_per_second = 5\n")
    assert "10/second" in rules(lab), "the kernel drops what is above twice the rate"
    with pcp_client.connected(lab.c1, GATEWAY) as flood:
        for _ in range(100):
            flood.send(b"\0\0")  # NAT-PMP asks for the external address
    until(lambda: decisions(lab).get("admission TOO_MANY_REQUESTS", 0) > 0)
    reload(lab, "")
    assert "400/second" in rules(lab)


def test_the_external_address_and_way_out_follow(lab: Lab, served: Process) -> None:
    upnpc(lab.c1, "-r", "8043", "tcp")
    assert "external_address" in reload(lab, 'external_address = "198.51.100.7"\n')
    served.wait_for(r"external address: 198\.51\.100\.7")
    assert "ExternalIPAddress = 198.51.100.7" in upnpc(lab.c1, "-s")
    assert ask(lab.net, PUBLIC, 8043).source == REMOTE, "the NAT in front translates to the same address"
    reload(lab, "")
    served.wait_for(rf"external address: {re.escape(PUBLIC)}")
    assert ask(lab.net, PUBLIC, 8043).source == REMOTE


def test_masquerade_comes_and_goes(lab: Lab, served: Process) -> None:
    upnpc(lab.c1, "-r", "8043", "tcp")
    reload(lab, section(lab.c1, "masquerade_inbound = true"))
    assert ask(lab.net, PUBLIC, 8043).source == "10.100.0.1"
    reload(lab, "")
    assert ask(lab.net, PUBLIC, 8043).source == REMOTE


def test_a_file_of_another_name_is_a_warning_at_a_reload_too(lab: Lab, served: Process) -> None:
    lab.srv.run("mv", FILE, "/etc/igd/wg0.conf")
    try:
        printed = igd(lab, "reload", "wg0").stderr
    finally:
        lab.srv.run("rm", "/etc/igd/wg0.conf")
    assert (
        "/etc/igd/wg0.conf is not read: the configuration of wg0 is /etc/igd/wg0.toml, which does not exist" in printed
    )


def test_many_signals_are_few_reloads_and_the_last_file_is_in_force(lab: Lab, served: Process) -> None:
    upnpc(lab.c1, "-r", "8043", "tcp")
    before = len(served.lines)
    for _ in range(200):
        served.signal(signal.SIGHUP)
    lab.srv.write(FILE, section(lab.c1))
    served.signal(signal.SIGHUP)
    until(lambda: [each["name"] for each in mappings(lab)] == ["laptop"])
    assert sum("was reloaded" in line for line in served.lines[before:]) < 200


def test_sighup_reloads_and_the_log_has_what_came_of_it(lab: Lab, served: Process) -> None:
    lab.srv.write(FILE, section(lab.c1))
    served.signal(signal.SIGHUP)
    served.wait_for(r"the configuration was reloaded: peers\.laptop")
    lab.srv.write(FILE, "nonsense = 1\n")
    served.signal(signal.SIGHUP)
    served.wait_for("the configuration was not reloaded, .* unknown")
    upnpc(lab.c1, "-r", "8043", "tcp")
    assert [each["name"] for each in mappings(lab)] == ["laptop"]
    served.signal(signal.SIGHUP)
    served.wait_for("the configuration was not reloaded, ")
