"""A host that is broken in one way: `igd doctor` names it, and when its lines are pasted, all is green."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from igd import VERSION
from tests.e2e.behind_nat import SERVERS, STUN, behind_nat, coturn
from tests.e2e.clocks import Clocks
from tests.e2e.doctoring import assert_mended, doctor, paste, wrong
from tests.e2e.serving import C1, IGD, PUBLIC, igd, upnpc
from tests.lab import Host, Lab, answering, ask, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

CONFIG, WG_QUICK = "/etc/igd/wg0.toml", "/etc/wireguard/wg0.conf"


@pytest.fixture(scope="module")
def server(root: None) -> Iterator[Lab]:
    """A lab that each test leaves without anything wrong."""
    with Lab() as lab:
        lab.srv.run("cp", WG_QUICK, "/run/wg0.conf")
        yield lab


@pytest.fixture
def healthy(server: Lab) -> Iterator[Lab]:
    """The lab, without a configuration, and with the file of wg-quick as it was."""
    yield server
    server.srv.run("rm", "-f", CONFIG)
    server.srv.run("cp", "/run/wg0.conf", WG_QUICK)
    server.srv.run("ip", "rule", "del", "table", "7", check=False)  # the remedy mends the table, and keeps the rule


def test_a_healthy_server_is_green(healthy: Lab) -> None:
    rows = doctor(healthy)
    assert [row.check for row in rows if row.colour != "green"] == ["daemon"]
    assert [row.check for row in rows if row.remedy] == ["daemon"]
    printed = igd(healthy, "doctor", check=False).stdout
    colours = [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert colours == [row.colour for row in rows]
    assert "\x1b" not in printed


BREAKS = [
    (
        "interface",
        "ip -6 address del 2001:470:100::1/64 dev wg0 && ip -6 route replace 2001:470:100::/64 dev wg0",
        "lacks the address 2001:470:100::1/64",
    ),
    ("routes to peers", "ip route replace 10.100.0.3/32 dev ens0", "10.100.0.3/32 of peer"),
    ("routes to peers", "ip route replace blackhole 10.100.0.3/32", "dropped by a route (blackhole)"),
    (
        "routes to peers",
        "ip rule add to 10.100.0.3 table 7; ip route replace default dev ens0 table 7",
        "leave by ens0",
    ),
    ("way out", f"echo 'external_interface = \"eth7\"' >{CONFIG}", "external_interface eth7 does not exist"),
    ("external address", f"printf '# mine\\nexternal_address = \"61.61.61.1\"\\n' >{CONFIG}", "external_address 61"),
    ("forwarding", "sysctl -qw net.ipv4.ip_forward=0", "IPv4 forwarding is off: "),
    ("forwarding", "sysctl -qw net.ipv4.conf.ens0.forwarding=0", "IPv4 forwarding is off on ens0"),
    ("MASQUERADE", "iptables-nft -t nat -F POSTROUTING", "no rule translates"),
    ("IPv6", "sysctl -qw net.ipv6.conf.all.forwarding=0", "IPv6 forwarding is off"),
    ("IPv6", "ip -6 route replace 2001:470:100::3/128 dev ens0", "leave by ens0"),
]


@pytest.mark.parametrize(("check", "command", "text"), BREAKS)
def test_one_thing_is_broken(healthy: Lab, check: str, command: str, text: str) -> None:
    healthy.srv.run("sh", "-c", command)
    assert_mended(healthy, check, text)


def test_the_interface_does_not_work() -> None:
    with Lab() as lab:
        for command in ("ip link set wg0 down", "wg-quick down wg0", "ip address flush dev wg0"):
            lab.srv.run("sh", "-c", command)
            (row,) = (row for row in wrong(lab) if row.check == "interface")
            assert row.colour == "red"
            paste(lab, [row])
            assert wrong(lab) == []
        lab.srv.run("sh", "-c", "wg-quick down wg0; rm /etc/wireguard/wg0.conf")
        found = wrong(lab)
        assert [(row.check, row.colour, row.remedy) for row in found] == [("interface", "red", "")]


def test_an_interface_that_is_not_wireguards(healthy: Lab) -> None:
    done = igd(healthy, "doctor", "ens0", "--json", check=False)
    rows = {row["check"]: row for row in json.loads(done.stdout)["interfaces"]["ens0"]}
    assert (rows["interface"]["colour"], done.returncode) == ("red", 1)
    assert "it is not a WireGuard interface" in rows["interface"]["text"]


def test_another_user_sees_a_part(healthy: Lab) -> None:
    """What is not known is yellow, and nothing ends in a traceback."""
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *IGD)
    rows = doctor(healthy, as_nobody)
    assert "red" not in {row.colour for row in rows}
    assert "sudo igd doctor wg0" in {row.remedy for row in rows if row.colour == "yellow"}


def test_a_strict_rp_filter_and_a_peer_without_a_route(healthy: Lab) -> None:
    """`wg set` allows addresses and adds no route to them."""
    (peer,) = (line.split()[0] for line in allowed_ips(healthy) if f"{C1}/32" in line)
    healthy.srv.run("sysctl", "-qw", "net.ipv4.conf.wg0.rp_filter=1")
    healthy.srv.run("wg", "set", "wg0", "peer", peer, "allowed-ips", f"{C1}/32,2001:470:100::2/128,10.200.0.2/32")
    found = wrong(healthy)
    assert [(row.check, row.colour) for row in found] == [("routes to peers", "red"), ("rp_filter", "red")]
    paste(healthy, found[1:])
    assert wrong(healthy) == []
    healthy.srv.run("ip", "route", "del", "10.200.0.2")
    paste(healthy, found[:1])
    assert wrong(healthy) == []
    healthy.srv.run("sysctl", "-qw", "net.ipv4.conf.wg0.rp_filter=0")


def allowed_ips(lab: Lab) -> list[str]:
    """Return what `wg` prints about the server's peers."""
    return lab.srv.run("wg", "show", "wg0", "allowed-ips").stdout.splitlines()


def test_a_peer_that_was_added_to_the_file_only(healthy: Lab) -> None:
    key = healthy.srv.run("wg", "genkey").stdout.strip()
    healthy.srv.run("tee", "-a", WG_QUICK, input=f"\n[Peer]\nPublicKey = {key}\nAllowedIPs = 10.100.0.4\n")
    assert_mended(healthy, "peers", "allows 10.100.0.4/32 for peer", "yellow")
    assert f"{key}\t10.100.0.4/32" in allowed_ips(healthy)
    healthy.srv.run("wg", "set", "wg0", "peer", key, "remove")


def test_two_peers_with_one_address(healthy: Lab) -> None:
    """WireGuard gives the address to the last, and the first can send nothing."""
    before = allowed_ips(healthy)
    keys = [line.split()[0] for line in before if f"{C1}/32" in line]
    healthy.srv.run("sed", "-i", "s|10.100.0.3/32, 2001:470:100::3/128|10.100.0.2/32, 2001:470:100::2/128|", WG_QUICK)
    healthy.srv.run("sh", "-c", "wg-quick strip wg0 | wg syncconf wg0 /dev/stdin")
    found = wrong(healthy)
    assert {(row.check, row.colour) for row in found} == {("peers", "red")}
    assert found[0].text.startswith(f"peer {keys[0][:8]} has no AllowedIPs")
    assert f"{WG_QUICK} has 10.100.0.2/32 in the AllowedIPs of " in found[1].text
    healthy.srv.run(
        "sh", "-c", "cp /run/wg0.conf /etc/wireguard/wg0.conf && wg-quick strip wg0 | wg syncconf wg0 /dev/stdin"
    )
    assert wrong(healthy) == []


def test_a_default_route_into_the_tunnel(healthy: Lab) -> None:
    """wg-quick adds it for a peer with AllowedIPs 0.0.0.0/0, which on a server is a mistake."""
    halves = ["0.0.0.0/1", "128.0.0.0/1"]
    for half in halves:
        healthy.srv.run("ip", "route", "add", half, "dev", "wg0")
    found = [row for row in wrong(healthy) if row.check == "way out"]
    assert [(row.colour, row.remedy) for row in found] == [("red", "")]
    assert "the default route leads into wg0 itself" in found[0].text
    for half in halves:
        healthy.srv.run("ip", "route", "del", half)
    assert wrong(healthy) == []


@pytest.mark.parametrize("named", [False, True])
def test_a_peer_with_a_split_tunnel(healthy: Lab, *, named: bool) -> None:
    needs("upnpc")
    (peer,) = (line.split()[0] for line in allowed_ips(healthy) if f"{C1}/32" in line)
    if named:
        healthy.srv.write(CONFIG, f'[peers."my laptop"]\npublic_key = "{peer}"\n')
    server_key = healthy.c1.run("wg", "show", "wg0", "peers").stdout.strip()
    allow = ("wg", "set", "wg0", "peer", server_key, "allowed-ips")
    with (
        broken(healthy.c1, (*allow, "10.100.0.0/24,2001:470:100::/64"), (*allow, "0.0.0.0/0,::/0")),
        detached(healthy),
        answering(healthy.c1, 8043),
    ):
        upnpc(healthy.c1, "-r", "8043", "tcp")
        assert_mended(healthy, "split tunnels", "my laptop" if named else peer[:8], "yellow")
        assert ask(healthy.net, PUBLIC, 8043).source == "10.100.0.1"


def test_no_daemon_runs(healthy: Lab) -> None:
    with detached(healthy):
        rows = doctor(healthy)
        assert {row.colour for row in rows} == {"green"}
        (daemon,) = (row.text for row in rows if row.check == "daemon")
        assert daemon.startswith(f"igd {VERSION} serves wg0: ")


def test_a_configuration_that_the_daemon_has_not_read(healthy: Lab) -> None:
    with detached(healthy):
        healthy.srv.write(CONFIG, "http_port = 5000\n")
        assert_mended(healthy, "daemon", f"{CONFIG} was changed since igd read it", "yellow")
        assert ":5000/" in igd(healthy, "status", "wg0").stdout
        healthy.srv.write(CONFIG, "# a comment\nhttp_port = 5000\n")
        assert wrong(healthy) == []


@contextmanager
def broken(host: Host, breaking: Sequence[str], mending: Sequence[str]) -> Iterator[None]:
    """Run a command that breaks something which no line of the doctor's mends, and at the end one that mends it."""
    host.run(*breaking)
    try:
        yield
    finally:
        host.run(*mending)


@contextmanager
def detached(lab: Lab) -> Iterator[None]:
    """Start igd by the line that the doctor prints."""
    paste(lab, [row for row in doctor(lab) if row.check == "daemon"])
    try:
        yield
    finally:
        igd(lab, "stop", "wg0")


def test_a_neighbour_that_nobody_answers_for(healthy: Lab) -> None:
    """A peer has an address of the network between the server and its router."""
    address = ("2001:470:100::ffff/64", "dev", "ens0")
    add, delete = (("ip", "address", verb, *address) for verb in ("add", "del"))
    with broken(healthy.srv, (*add, "noprefixroute"), delete):
        assert_mended(healthy, "IPv6", "looks for it among its neighbours", count=2)


def test_another_program_on_the_port_of_nat_pmp(healthy: Lab) -> None:
    with healthy.srv.start("socat", "-u", "UDP4-RECVFROM:5351,fork", "/dev/null"):
        until(lambda: ":5351 " in healthy.srv.run("ss", "-Hlun").stdout)
        assert_mended(healthy, "other servers", "listens on UDP 5351 of 0.0.0.0")


def test_programs_beside_igd_are_no_other_servers(healthy: Lab) -> None:
    """On another interface, or listening for searches of their own kind of devices."""
    with (
        healthy.srv.start("socat", "-u", "UDP4-RECVFROM:5351,bind=60.60.60.1,fork", "/dev/null"),
        healthy.srv.start("socat", "-u", "UDP4-RECVFROM:1900,fork", "/dev/null"),
    ):
        until(lambda: len(healthy.srv.run("ss", "-Hlun", "sport = :5351 or sport = :1900").stdout.splitlines()) == 2)
        assert wrong(healthy) == []


def test_lines_of_wg_quick_on_which_the_tunnel_depends(healthy: Lab) -> None:
    lines = r"/^ListenPort/i PostUp = systemctl start igd@%i\npostdown=systemctl stop igd@%i # igd"
    healthy.srv.run("sed", "-i", lines, WG_QUICK)
    found = wrong(healthy)
    assert [(row.check, row.colour) for row in found] == [
        ("wg-quick lines", "yellow"),
        ("wg-quick lines", "yellow"),
        ("daemon", "red"),
    ]
    try:
        paste(healthy, found)
        assert wrong(healthy) == []
    finally:
        igd(healthy, "stop", "wg0")
    shown = healthy.srv.run("grep", "-i", "igd@", WG_QUICK).stdout.splitlines()
    assert shown == [
        "PostUp = systemctl start --no-block igd@%i || true",
        "postdown=systemctl stop igd@%i || true # igd",
    ]


def test_a_clock_of_1970(healthy: Lab) -> None:
    needs("gcc")
    clocks = Clocks(healthy.srv)
    clocks.set_wall(to=3600)
    (row,) = wrong(healthy, clocks.command)
    assert (row.check, row.colour) == ("clock", "yellow")
    assert row.text.startswith("it is 1970-01-01 01:00 UTC")
    clocks.set_wall(to=1_800_000_000)
    assert wrong(healthy, clocks.command) == []


def test_an_invalid_configuration(healthy: Lab) -> None:
    healthy.srv.write(CONFIG, "http_port = 0\nnonsense = 1\n")
    found = wrong(healthy)
    assert [(row.check, row.colour) for row in found] == [("configuration", "red")] * 2
    assert found[0].text.startswith(f"{CONFIG}: http_port: ")


def test_behind_a_nat_that_forwards_everything() -> None:
    """The line names public STUN servers, of which one is in the lab."""
    needs("turnserver")
    with behind_nat("1:1") as (lab, _), coturn(lab.net):
        lab.srv.run("tee", "-a", "/etc/hosts", input=f"{SERVERS[0]} stun.cloudflare.com\n")
        found = assert_mended(lab, "external address", "10.0.0.5 is not a public address")
        assert "stun.cloudflare.com" in found[0].remedy
        shown = {row.check: row.text for row in doctor(lab)}["external address"]
        assert shown.startswith("60.60.60.1: the NAT in front of this server forwards ports to it")


def test_behind_a_nat_that_forwards_nothing() -> None:
    needs("turnserver")
    with behind_nat("masquerade") as (lab, _), coturn(lab.net):
        lab.srv.write(CONFIG, STUN)
        (row,) = wrong(lab)
        assert (row.check, row.colour, row.remedy) == ("external address", "red", "")
        assert "forward the ports that peers may map, UDP and TCP, to 10.0.0.5 at the router" in row.text


def test_behind_the_nat_of_a_provider(healthy: Lab) -> None:
    healthy.srv.run(
        "sh", "-c", "ip address add 100.64.7.7/24 dev ens0; ip route replace default via 60.60.60.2 src 100.64.7.7"
    )
    healthy.srv.run("ip", "address", "del", f"{PUBLIC}/24", "dev", "ens0")
    rows = [row for row in doctor(healthy) if row.check == "external address"]
    healthy.srv.run("ip", "address", "add", f"{PUBLIC}/24", "dev", "ens0")
    healthy.srv.run("ip", "address", "del", "100.64.7.7/24", "dev", "ens0")
    healthy.srv.run("ip", "route", "replace", "default", "via", "60.60.60.2")
    assert [(row.colour, row.remedy) for row in rows] == [("red", "")]
    assert "CGNAT" in rows[0].text
