"""igd doctor's probes: what stops a mapped flow or a request is named, its lines open it, and nobody is harmed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.doctoring import Row, assert_mended, doctor, wrong
from tests.e2e.serving import REMOTE, rules, serving
from tests.lab import Host, Lab, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

STRANGERS = "192.31.196.0/24"
MARK = "0x10000000"


@pytest.fixture(scope="module")
def server(root: None) -> Iterator[Lab]:
    """A lab whose tests leave it as it was."""
    with Lab() as lab:
        yield lab


@contextmanager
def broken(host: Host, break_it: str, undo: str) -> Iterator[None]:
    """Run one command, and in the end the other, whatever the first has done."""
    try:
        host.run("sh", "-ec", break_it)
        yield
    finally:
        host.run("sh", "-ec", undo)


Commands = tuple[str, str]
"""What breaks the server, and what undoes it."""


def _table(chain: str, *rules: str, family: str = "inet") -> Commands:
    """Return the commands that load and remove a native table with one chain."""
    lines = "\n".join((f"table {family} guard {{ chain guard {{", chain, *rules, "}\n}"))
    return f"nft '{lines}'", f"nft delete table {family} guard"


def _hook(name: str, policy: str) -> str:
    return f"type filter hook {name} priority 0; policy {policy};"


def _added(rule: str, program: str = "iptables-nft") -> Commands:
    """Return the commands that add a rule to a table of iptables, and empty its chain."""
    table, chain, words = rule.split(" ", 2)
    return f"{program} -t {table} -A {chain} {words}", f"{program} -t {table} -F {chain}"


def _first(rule: str) -> Commands:
    return f"iptables-nft -I FORWARD {rule}", f"iptables-nft -D FORWARD {rule}"


OPENED: dict[str, tuple[str, Commands]] = {
    "policy drop of guard": (
        "FORWARD path",
        _table(_hook("forward", "drop"), "ct state established accept", 'iifname "wg0" accept'),
    ),
    "reject (nft, inet guard guard)": (
        "FORWARD path",
        _table(_hook("forward", "accept"), 'iifname "ens0" oifname "wg0" ct state new reject'),
    ),
    "TCP 2869 of this server, because of (policy DROP": (
        "server ports",
        _table(_hook("input", "drop"), "meta l4proto udp accept", "meta l4proto icmpv6 accept"),
    ),
    "UDP 5351": ("server ports", _added("filter INPUT -i wg0 -p udp --dport 5351 -j DROP")),
    "REJECT": ("server ports", _added("filter INPUT -i wg0 -p tcp --dport 2869 -j REJECT", "ip6tables-nft")),
    "--set-xmark 0x1/0xffffffff": ("FORWARD path", _added("mangle PREROUTING -i ens0 -j CONNMARK --set-mark 1")),
    "--save-mark": ("FORWARD path", _added("mangle FORWARD -j CONNMARK --save-mark")),
    "ct mark set 0x00000007": (
        "FORWARD path",
        _table(_hook("prerouting", "accept"), 'iifname "ens0" meta nfproto ipv4 counter ct mark set 7'),
    ),
}


@pytest.mark.parametrize("text", OPENED)
def test_what_stops_a_probe_is_named_and_the_lines_open_it(server: Lab, text: str) -> None:
    check, commands = OPENED[text]
    with broken(server.srv, *commands):
        assert_mended(server, check, text)


NAMED: dict[str, tuple[str, Commands]] = {
    "-A FORWARD -d 10.100.0.2/32 -j DROP": ("yellow", _first("-d 10.100.0.2 -j DROP")),
    f"-A PREROUTING -s {STRANGERS} -j DROP (iptables-nft, table raw)": (
        "red",
        _added(f"raw PREROUTING -s {STRANGERS} -j DROP"),
    ),
    "-A POSTROUTING -o wg0 -j DROP": ("red", _added("mangle POSTROUTING -o wg0 -j DROP")),
    "where it arrives on ens0": (
        "red",
        _table("type filter hook ingress device ens0 priority 0;", f"ip saddr {STRANGERS} drop", family="netdev"),
    ),
    "an answer in a mapped flow (TCP and UDP from wg0 to ens0) is dropped before FORWARD": (
        "red",
        (f"ip route add blackhole {STRANGERS}", f"ip route del {STRANGERS}"),
    ),
}


@pytest.mark.parametrize("text", NAMED)
def test_what_no_line_opens_is_named(server: Lab, text: str) -> None:
    colour, commands = NAMED[text]
    with broken(server.srv, *commands):
        found = [row for row in wrong(server) if row.check == "FORWARD path"]
    assert [(row.colour, row.remedy) for row in found] == [(colour, "")], found
    assert text in found[0].text


def test_what_another_row_explains_is_not_said_twice(server: Lab) -> None:
    with broken(server.srv, "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1"):
        assert [row.check for row in wrong(server)] == ["forwarding"]


def _path(lab: Lab) -> list[Row]:
    return [row for row in doctor(lab) if row.check == "FORWARD path"]


def test_iptables_legacy_is_named_too() -> None:
    """The kernel reports nothing of its rules."""
    needs("iptables-legacy")
    with Lab(forward="open", iptables="legacy") as lab:
        lab.srv.run(*"iptables-legacy -A FORWARD -d 10.100.0.3 -j DROP".split())
        (row,) = (row for row in _path(lab) if row.colour != "green")
        assert row.colour == "yellow"
        assert "one of these rules of iptables-legacy: -A FORWARD -d 10.100.0.3/32 -j DROP: " in row.text
        assert "(10.100.0.3)" in row.text
        assert "(10.100.0.2)" not in row.text
        lab.srv.run(*"iptables-legacy -P FORWARD DROP".split())
        assert any("policy DROP of FORWARD (iptables-legacy); igd lets" in row.text for row in _path(lab))
        with serving(lab):
            yellow, green = _path(lab)
            assert (yellow.colour, green.colour) == ("yellow", "green")
            assert green.text.startswith("18 probe packets passed between ens0 and ")


_ERROR = "icmp type 3 @th,192,32 != 0xc0000201"
"""But errors about what is for 192.0.2.1: doctor asks peers for echoes to that address, and FORWARD rejects them."""

_PROBE = "tcp dport 40000-59999 tcp sport 40000-59999"
"""Also if somebody has translated its addresses; ARP is no packet of it."""


@contextmanager
def _counted(lab: Lab) -> Iterator[None]:
    """Assert that no other host receives anything of a probe, be it an error about it."""
    chain = (
        "table ip seen { chain seen {",
        "type filter hook prerouting priority -500;",
        *(f"{what} counter" for what in (*(f"ip {end} {STRANGERS}" for end in ("saddr", "daddr")), _ERROR, _PROBE)),
        "}\n}",
    )
    hosts = (lab.net, lab.c1, lab.c2)
    for host in hosts:
        host.run("nft", "-f", "-", input="\n".join(chain) + "\n")
    try:
        yield
    finally:
        seen = [(host.name, host.run("nft", "list", "table", "ip", "seen").stdout) for host in hosts]
        for host in hosts:
            host.run("nft", "delete", "table", "ip", "seen")
    for name, listed in seen:
        assert listed.count("counter packets 0 ") == 4, (name, listed)


def _left(lab: Lab) -> list[str]:
    """Return what the server has of a probe: tables, devices and flows."""
    tables, links, flows = (
        lab.srv.run(*command.split()).stdout.splitlines()
        for command in ("nft list tables", "ip -oneline link", "conntrack -L")
    )
    return [line for line in (*tables, *links, *flows) if "probe" in line or "192.31.196." in line]


_MASQUERADE = "iptables-nft -t nat {} POSTROUTING -o wg0 -j MASQUERADE"
QUIET: dict[str, Commands] = {
    "all is well": ("true", "true"),
    "reset": _first("-p tcp -j REJECT --reject-with tcp-reset"),
    "unreachable": _first("-j REJECT"),
    "answers unreachable": _first("-s 10.100.0.0/24 -j REJECT"),
    "masqueraded into the tunnel": (_MASQUERADE.format("-A"), _MASQUERADE.format("-D")),
    "masqueraded on the wrong way": (
        "ip route replace 10.100.0.2 dev ens0",
        "ip route replace 10.100.0.2 dev wg0",
    ),
}


@pytest.mark.parametrize("name", QUIET)
def test_nothing_of_a_probe_leaves_the_server_nor_stays(server: Lab, name: str) -> None:
    needs("conntrack")
    with broken(server.srv, *QUIET[name]):
        before = rules(server)
        with _counted(server):
            doctor(server)
        assert rules(server) == before
    assert _left(server) == []


def test_no_packet_of_others_is_lost_meanwhile(server: Lab) -> None:
    ping = "ping -q -i 0.002 -c 2000"  # at least 4 s; the answers pass source NAT, FORWARD and the tunnel
    with server.c1.start(*ping.split(), REMOTE) as pinging:
        probes = 0
        while not any("packet loss" in line for line in pinging.lines):
            assert any("probe packets passed" in row.text for row in _path(server))
            probes += 1
    assert probes > 0
    (line,) = (line for line in pinging.lines if "packet loss" in line)
    assert " 0% packet loss" in line


_STUCK = """
import sys
from ipaddress import IPv4Address as A
from igd.core.mapping import Endpoint, TransportProtocol
from igd.firewall.probing.flow import ProbeFlow
from igd.firewall.probing.table import probe_table
from igd.firewall.site import Site
from igd.host.arrivals import Arrivals
to = Endpoint(A("10.100.0.2"), 40000)
flow = ProbeFlow(TransportProtocol.UDP, Endpoint(A("192.31.196.254"), 50000), Endpoint(A("60.60.60.1"), 40000), to)
with probe_table(Site("ens0", "wg0", ()), [flow]), Arrivals("ens0"), Arrivals("wg0"):
    print("probing", flush=True)
    import time; time.sleep(1000)
"""


def test_a_killed_probe_leaves_nothing(server: Lab) -> None:
    needs("conntrack")
    before = rules(server)
    sources = f"PYTHONPATH={Path(__file__).parents[2]}"
    with server.srv.start("env", sources, sys.executable, "-c", _STUCK) as probing:
        probing.wait_for("probing")
        assert len(_left(server)) == 4  # two tables, two devices
        probing.signal(9)
        probing.wait()
    until(lambda: _left(server) == [])
    assert rules(server) == before
