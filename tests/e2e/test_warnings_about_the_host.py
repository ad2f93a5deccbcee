"""What keeps mapped flows from passing outside of igd is logged with the line that helps, and so is its end."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.firewalls import FIREWALLS, loaded
from tests.e2e.serving import C1, C2, GATEWAY, IGD, PUBLIC, REMOTE, igd, serving, upnpc
from tests.lab import Lab, Process, answering, ask, swallows
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

SECOND, FAR = "61.61.61.1", "80.80.80.1"
C1_IPV6, REMOTE_IPV6 = "2001:470:100::2", "2001:470:60::2"


LINE = r"(?:sysctl|ip|iptables-\w+|nft|sed|firewall-cmd) "


def follow_the_line(lab: Lab, process: Process, begin: str, line: str = LINE) -> None:
    """Wait for a warning that begins so and has, at its end, a command that begins with `line`; run the command."""
    lab.srv.run("sh", "-c", process.wait_for(rf"WARNING \S+: {begin}.*: ({line}.*)")[1])


@contextmanager
def mapped(lab: Lab, config: str = "") -> Iterator[Process]:
    """Serve c1's TCP 8043, which answers."""
    with serving(lab, config) as process, answering(lab.c1, 8043):
        upnpc(lab.c1, "-r", "8043", "tcp")
        yield process


def test_ipv4_forwarding_that_is_off_and_goes_off_again(lab: Lab) -> None:
    lab.srv.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    with mapped(lab) as process:
        assert swallows(lab.srv, lab.net, PUBLIC, 8043)
        follow_the_line(lab, process, "IPv4 forwarding is off: ")
        process.wait_for("no longer: IPv4 forwarding is off: ")
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        lab.srv.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
        process.wait_for(r"WARNING \S+: IPv4 forwarding is off: .*sysctl -w net.ipv4.ip_forward=1$")


@pytest.mark.parametrize("interface", ["ens0", "wg0"])
def test_ipv4_forwarding_that_is_off_on_one_interface(lab: Lab, interface: str) -> None:
    with mapped(lab) as process:
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        lab.srv.run("sysctl", "-qw", f"net.ipv4.conf.{interface}.forwarding=0")
        caller, address = (lab.net, PUBLIC) if interface == "ens0" else (lab.c1, REMOTE)
        assert swallows(lab.srv, caller, address, 8043)
        follow_the_line(lab, process, f"IPv4 forwarding is off on {interface}: ")
        process.wait_for(f"no longer: IPv4 forwarding is off on {interface}: ")
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        assert not any("forwarding is off: " in line for line in process.lines)


def test_ipv6_forwarding_that_is_off(lab: Lab) -> None:
    off, forced = "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.{}.force_forwarding=1"
    with serving(lab) as process, answering(lab.c1, 8043, ipv6=True):
        lab.srv.run("sysctl", "-qw", off)
        follow_the_line(lab, process, "IPv6 forwarding is off: ")
        process.wait_for("no longer: IPv6 forwarding is off: ")
        assert ask(lab.net, C1_IPV6, 8043).source == REMOTE_IPV6
        lab.srv.run("sysctl", "-qw", off)
        process.wait_for(r"WARNING \S+: IPv6 forwarding is off: ")
        assert swallows(lab.srv, lab.net, C1_IPV6, 8043)
        if lab.srv.run("sysctl", "-qw", forced.format("ens0"), check=False).returncode:
            pytest.skip("this kernel has no force_forwarding (Linux 6.17)")
        follow_the_line(lab, process, "IPv6 forwarding is off on wg0: ")
        process.wait_for("no longer: IPv6 forwarding is off on wg0: ")
        assert ask(lab.net, C1_IPV6, 8043).source == REMOTE_IPV6


def test_router_advertisements_are_accepted_after_the_line(lab: Lab) -> None:
    """A host that forwards IPv6 ignores them, and loses its default route, unless accept_ra is 2."""
    lab.srv.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.ens0.accept_ra=1")
    with serving(lab) as process:
        follow_the_line(lab, process, "IPv6 forwarding is off: ")
        process.wait_for("no longer: ")
    assert lab.srv.run("sysctl", "-n", "net.ipv6.conf.ens0.accept_ra").stdout == "2\n"


@contextmanager
def second_uplink(lab: Lab) -> Iterator[None]:
    """Give the server ens8 with 61.61.61.1, by which c2 reaches it, while its default route goes by ens0."""
    with lab.net.entered():
        pair = f"srv8 type veth peer name ens8 netns {lab.srv.pid}"
        subprocess.run(("ip", "link", "add", *pair.split()), check=True)
    for host, device, address in ((lab.net, "srv8", "61.61.61.254/24"), (lab.srv, "ens8", SECOND + "/24")):
        host.run("ip", "address", "add", address, "dev", device)
        host.run("ip", "link", "set", device, "up")
    lab.c2.run("ip", "route", "add", "61.61.61.0/24", "via", "80.80.80.254")
    yield


@pytest.mark.parametrize(
    ("config", "strict"),
    [
        ('external_interface = "ens8"\n', "net.ipv4.conf.ens8.rp_filter=1"),
        ('external_interface = "ens8"\n', "net.ipv4.conf.all.rp_filter=1"),
        (f'external_address = "{SECOND}"\n', "net.ipv4.conf.ens8.rp_filter=1"),
    ],
)
def test_a_strict_rp_filter_that_drops_mapped_flows(lab: Lab, config: str, strict: str) -> None:
    with second_uplink(lab), mapped(lab, config) as process:
        assert ask(lab.c2, SECOND, 8043).source == FAR
        lab.srv.run("sysctl", "-qw", strict)
        assert swallows(lab.srv, lab.c2, SECOND, 8043)
        follow_the_line(lab, process, f"packets from the internet to {SECOND} that arrive on ens8 are dropped: ")
        process.wait_for("no longer: packets from the internet")
        assert ask(lab.c2, SECOND, 8043).source == FAR


def test_a_strict_rp_filter_on_the_way_back_is_no_problem(lab: Lab) -> None:
    lab.srv.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    with mapped(lab) as process:
        lab.srv.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
        process.wait_for("IPv4 forwarding is off: ")
        assert not any("rp_filter" in line for line in process.lines)


def test_a_strict_rp_filter_that_drops_what_comes_for_an_address_on_lo(lab: Lab) -> None:
    """The address is routed to the server by ens8, and the server's packets leave by ens0."""
    with second_uplink(lab):
        lab.srv.run("ip", "address", "add", "62.62.62.1/32", "dev", "lo")
        lab.net.run("ip", "route", "add", "62.62.62.1", "via", SECOND)
        lab.c2.run("ip", "route", "add", "62.62.62.1", "via", "80.80.80.254")
        lab.srv.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
        with mapped(lab, 'external_interface = "ens8"\nexternal_address = "62.62.62.1"\n') as process:
            assert swallows(lab.srv, lab.c2, "62.62.62.1", 8043)
            follow_the_line(lab, process, "packets from the internet to 62.62.62.1 that arrive on ens8 are dropped: ")
            process.wait_for("no longer: packets from the internet")
            assert ask(lab.c2, "62.62.62.1", 8043).source == FAR


def allow(lab: Lab, address: str, *more: str) -> None:
    """Set the AllowedIPs of the peer with this address to `address` and these."""
    peers = lab.srv.run("wg", "show", "wg0", "allowed-ips").stdout.splitlines()
    (key,) = (line.split()[0] for line in peers if f"{address}/32" in line)
    lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", ",".join([f"{address}/32", *more]))


def test_a_strict_rp_filter_and_a_peer_without_a_route(lab: Lab) -> None:
    """`wg set` allows addresses and adds no route to them."""
    lab.srv.run("sysctl", "-qw", "net.ipv4.conf.wg0.rp_filter=1")
    lab.c1.run("ip", "address", "add", "10.200.0.2/32", "dev", "wg0")
    lab.c1.run("ip", "route", "add", GATEWAY, "dev", "wg0", "src", "10.200.0.2")
    with serving(lab) as process, answering(lab.srv, 9000):
        allow(lab, C1, "10.200.0.2/32")
        assert swallows(lab.srv, lab.c1, GATEWAY, 9000)
        follow_the_line(lab, process, "packets from peers in 10.200.0.2/32 are dropped: ")
        process.wait_for("no longer: packets from peers in 10.200.0.2/32")
        assert ask(lab.c1, GATEWAY, 9000).source == "10.200.0.2"


def test_a_family_that_peers_begin_to_use(lab: Lab) -> None:
    allow(lab, C1)
    allow(lab, C2)
    lab.srv.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0", "net.ipv4.ip_forward=0")
    with lab.srv.start(*IGD, "run", "wg0") as process:
        process.wait_for("IPv4 forwarding is off: ")
        assert not any("IPv6" in line for line in process.lines)
        allow(lab, C1, f"{C1_IPV6}/128")
        process.wait_for("IPv6 forwarding is off: ")
        allow(lab, C1)
        process.wait_for("no longer: IPv6 forwarding is off: ")
        assert process.stop() == 0


MISSING = "no rule translates the source addresses of peers in 10.100.0.0/24 on ens0 "
NOT_LEGACY = "iptables-nft -t nat -D POSTROUTING -o ens0 -j MASQUERADE"
# Its version decides whether firewalld flushes the rules of iptables-nft when it starts.
BARE_FIREWALLD = "firewall-cmd --permanent --zone=public --remove-masquerade && firewall-cmd --reload"
LEGACY = "iptables-legacy -t nat -D POSTROUTING -o ens0 -j MASQUERADE"


@pytest.mark.parametrize(
    ("name", "remove", "line"),
    [
        ("accept", NOT_LEGACY, "iptables-nft -t nat -A POSTROUTING -s 10.100.0.0/24 -o ens0 -j MASQUERADE"),
        ("docker", NOT_LEGACY, "iptables-nft -t nat -A POSTROUTING -s 10.100.0.0/24 -o ens0 -j MASQUERADE"),
        ("legacy-drop", LEGACY, "iptables-legacy -t nat -A POSTROUTING -s 10.100.0.0/24 -o ens0 -j MASQUERADE"),
        ("native-drop", "nft delete table ip nat", "nft 'add table ip nat; add chain ip nat postrouting {"),
        ("ufw", NOT_LEGACY, "sed -i '1i *nat"),
        (
            "firewalld",
            f"{BARE_FIREWALLD} && iptables-nft -t nat -F POSTROUTING",
            "firewall-cmd --permanent --zone=public --add-masquerade && firewall-cmd --reload",
        ),
    ],
)
def test_peers_whose_addresses_are_not_translated(name: str, remove: str, line: str) -> None:
    firewall = next(firewall for firewall in FIREWALLS if firewall.name == name)
    needs("upnpc", *firewall.programs)
    with (
        Lab(forward=firewall.forward, iptables=firewall.iptables) as lab,
        loaded(firewall, lab),
        answering(lab.net, 9000),
        mapped(lab, f"[firewall]\n{firewall.igd}\n") as process,
    ):
        assert ask(lab.c1, REMOTE, 9000).source == PUBLIC
        lab.srv.run("sh", "-c", remove)
        assert swallows(lab.net, lab.c1, REMOTE, 9000)
        follow_the_line(lab, process, MISSING, re.escape(line))
        process.wait_for(f"no longer: {MISSING}")
        assert ask(lab.c1, REMOTE, 9000).source == PUBLIC
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE


def test_translation_that_is_removed_again(lab: Lab) -> None:
    lab.srv.run("sh", "-c", NOT_LEGACY)
    with lab.srv.start(*IGD, "run", "wg0") as process:
        for _ in range(2):
            process.wait_for(f"WARNING .*: {MISSING}")
            lab.srv.run("sh", "-c", NOT_LEGACY.replace("-D", "-A"))
            process.wait_for(f"INFO .*: no longer: {MISSING}")
            lab.srv.run("sh", "-c", NOT_LEGACY)
        process.wait_for(f"WARNING .*: {MISSING}")
        assert process.stop() == 0
        assert sum("no longer: " in line for line in process.lines) == 2


def test_the_line_for_a_chain_of_nftables() -> None:
    with Lab(forward="open") as lab:
        lab.srv.run("nft", "flush", "ruleset")
        lab.srv.run(
            "nft", "-f", "-", input="table inet mine { chain out { type nat hook postrouting priority 100; }\n}\n"
        )
        with serving(lab) as process, answering(lab.net, 9000):
            lab.srv.run("nft", "add", "chain", "inet", "mine", "other")
            (warning,) = (line for line in process.lines if MISSING in line)
            lab.srv.run("sh", "-c", warning.rpartition(" this helps: ")[2])
            process.wait_for(f"no longer: {MISSING}")
            assert ask(lab.c1, REMOTE, 9000).source == PUBLIC


def test_a_peer_that_no_rule_covers_is_added(lab: Lab) -> None:
    lab.srv.run("sh", "-c", NOT_LEGACY)
    for address in (C1, C2):
        lab.srv.run("sh", "-c", f"iptables-nft -t nat -A POSTROUTING -s {address} -o ens0 -j MASQUERADE")
    with serving(lab) as process, answering(lab.net, 9000):
        assert ask(lab.c1, REMOTE, 9000).source == PUBLIC
        assert not any("translates the source" in line for line in process.lines)
        key = lab.srv.run("wg", "genkey").stdout.strip()
        lab.srv.run("wg", "set", "wg0", "peer", key, "allowed-ips", "10.100.0.4/32")
        process.wait_for("no rule translates the source addresses of peers in 10.100.0.4/32 on ens0 ")
        lab.srv.run("wg", "set", "wg0", "peer", key, "remove")
        process.wait_for("no longer: no rule translates the source addresses of peers in 10.100.0.4/32 on ens0 ")


def test_igd_check_examines_the_host(lab: Lab) -> None:
    lab.srv.write("/etc/igd/wg0.toml", 'external_interface = "eth7"\n')
    lab.srv.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    lab.srv.run("iptables-nft", "-t", "nat", "-F", "POSTROUTING")
    checked = igd(lab, "check", "wg0")
    warnings = [line.removeprefix("igd: warning: ") for line in checked.stderr.splitlines()]
    assert [warning.partition(":")[0] for warning in warnings] == [
        "external_interface eth7 does not exist (there are",
        "IPv4 forwarding is off",
        "no rule translates the source addresses of peers in 10.100.0.0/24 on ens0 (MASQUERADE)",
    ]
    lab.srv.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    lab.srv.write("/etc/igd/wg0.toml", 'external_interface = "ens0"\n')
    (warning,) = igd(lab, "check", "wg0").stderr.splitlines()
    assert warning.startswith("igd: warning: no rule translates the source addresses of peers in 10.100.0.0/24 on ens0")
    lab.srv.run("sh", "-c", warning.rpartition(": ")[2])
    assert igd(lab, "check", "wg0").stderr == ""
