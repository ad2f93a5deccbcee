"""The commands that igd's log advises for a firewall are exactly what is needed."""

import re
from contextlib import ExitStack

import pytest

from tests.e2e.firewalls import FIREWALLS, firewalld, loaded
from tests.e2e.pcp_client import C1_IPV6, granted, map_port
from tests.e2e.serving import C1, GATEWAY, PUBLIC, REMOTE, serving, upnpc
from tests.lab import Answer, Lab, Process, answering, ask, swallows
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root


def advice_after(process: Process, introduction: str) -> list[str]:
    """Return the advice in the log after this introduction; it is complete when igd is ready."""
    return [line.partition(introduction)[2] for line in process.lines if introduction in line]


def test_the_lines_for_ufw_let_peers_in() -> None:
    needs("ufw", "upnpc", "natpmpc")
    with Lab() as lab:
        for words in ("--force reset", "allow 51820/udp", "--force enable"):  # nothing of the machine's, nor for wg0
            lab.srv.run("ufw", *words.split())
        try:
            with serving(lab) as process, answering(lab.c1, 8043):
                advised = advice_after(process, "this lets them in: ")
                ports = ("1900 proto udp", "2869 proto tcp", "5351 proto udp")
                assert advised == [f"ufw allow in on wg0 to any port {port}" for port in ports]
                assert swallows(lab.srv, lab.c1, GATEWAY, 2869)
                for line in advised:
                    lab.srv.run(*line.split())
                printed = lab.c1.run("upnpc", *f"-a {C1} 8043 8043 tcp 300".split()).stdout
                assert f"Found valid IGD : http://{GATEWAY}:2869/" in printed
                assert f"external {PUBLIC}:8043 TCP is redirected to internal {C1}:8043" in printed
                printed = lab.c1.run("natpmpc", *f"-g {GATEWAY} -a 8044 8043 tcp 300".split()).stdout
                assert "Mapped public port 8044 protocol TCP to local port 8043" in printed
                for port in (8043, 8044):
                    assert ask(lab.net, PUBLIC, port).source == REMOTE
        finally:
            lab.srv.run("ufw", "disable")


@pytest.mark.parametrize("zone", ["public", "internal"])
def test_the_lines_for_firewalld_let_peers_in(zone: str) -> None:
    """`public` is the zone of the internet, too. The policy stands before the zones, and does nothing."""
    needs("firewalld", "firewall-cmd", "dbus-daemon", "gdbus", "upnpc", "natpmpc")
    settings = (
        f"--zone={zone} --add-interface=wg0",
        "--zone=public --add-interface=ens0",
        "--zone=public --add-port=51820/udp",
        "--new-policy=first",
        "--policy=first --add-ingress-zone=ANY",
        "--policy=first --add-egress-zone=HOST",
        "--policy=first --set-priority=-20",
    )
    with Lab() as lab, ExitStack() as stack:
        firewalld(lab.srv, stack, *settings)
        with serving(lab) as process, answering(lab.c1, 8043):
            advised = advice_after(process, "this lets them in: ")
            assert advised
            assert all(f"firewall-cmd --permanent --zone={zone} --add-" in line for line in advised)
            for line in advised:
                for command in line.split(" and "):
                    lab.srv.run("sh", "-c", command)
            printed = lab.c1.run("upnpc", *f"-a {C1} 8043 8043 tcp 300".split()).stdout
            assert f"external {PUBLIC}:8043 TCP is redirected to internal {C1}:8043" in printed
            printed = lab.c1.run("natpmpc", *f"-g {GATEWAY} -a 8044 8043 tcp 300".split()).stdout
            assert "Mapped public port 8044 protocol TCP to local port 8043" in printed
            for port in (8043, 8044):
                assert ask(lab.net, PUBLIC, port).source == REMOTE


def test_the_settings_for_firewalld_let_pinholes_through() -> None:
    """Mapped IPv4 ports need none: firewalld accepts every flow with a translated destination."""
    needs("firewalld", "firewall-cmd", "dbus-daemon", "gdbus")
    zones = "--zone=trusted --add-interface=wg0", "--zone=public --add-interface=ens0"
    port = "--zone=public --add-port=51820/udp"
    with Lab() as lab, answering(lab.c1, 8043, ipv6=True):
        with ExitStack() as stack:
            firewalld(lab.srv, stack, *zones, port)
            with serving(lab) as process:
                (line,) = advice_after(process, "what helps is ")
                granted(map_port(lab.c1, 8043, source=C1_IPV6))
                with pytest.raises(PermissionError):  # rejected: administratively prohibited
                    ask(lab.net, C1_IPV6, 8043)
        advised = re.fullmatch(r"(forward_chain = .*) under (\[firewall\]); firewalld 2 .*: (\w+=)no in (.*)", line)
        assert advised
        lab.srv.run("sed", "-i", f"s/^{advised[3]}.*/{advised[3]}no/", f"/etc/firewalld/{advised[4]}")
        with ExitStack() as stack:
            firewalld(lab.srv, stack)
            with serving(lab, f"{advised[2]}\n{advised[1]}\n"):
                assert ask(lab.net, C1_IPV6, 8043) == Answer("2001:470:60::2", "who am I?")


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_the_line_for_a_chain_of_nftables_that_drops_lets_in_what_is_mapped(backend: str) -> None:
    needs("nft", "upnpc")
    native = next(firewall for firewall in FIREWALLS if firewall.name == "native-drop")
    with (
        Lab(forward=native.forward) as lab,
        loaded(native, lab),
        answering(lab.c1, 8043),
        serving(lab, f'[firewall]\nbackend = "{backend}"\n') as process,
    ):
        (line,) = advice_after(process, "or by hand: ")
        assert line.startswith('nft \'add rule inet filter forward iifname != "wg0" oifname "wg0" ct mark & ')
        upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
        assert swallows(lab.srv, lab.net, PUBLIC, 8043)
        lab.srv.run("sh", "-c", line)
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE


def test_the_setting_for_a_chain_of_nftables_that_drops_lets_in_what_is_mapped() -> None:
    """The other of the two remedies in the same line of the log."""
    needs("nft", "upnpc")
    native = next(firewall for firewall in FIREWALLS if firewall.name == "native-drop")
    with Lab(forward=native.forward) as lab, loaded(native, lab), answering(lab.c1, 8043):
        with serving(lab) as process:
            advised = re.search(
                r"what helps is (forward_chain = .*) under (\[firewall\]); or", "\n".join(process.lines)
            )
            assert advised
        with serving(lab, f"{advised[2]}\n{advised[1]}\n") as process:
            assert advice_after(process, "what helps is ") == []
            upnpc(lab.c1, "-a", C1, "8043", "8043", "tcp", "300")
            assert ask(lab.net, PUBLIC, 8043).source == REMOTE


_ZONES = {
    "address": ((f"--zone=drop --add-source={REMOTE}",), (f"--zone=drop --remove-source={REMOTE}",)),
    "set": (
        (
            "--permanent --new-ipset=banned --type=hash:ip",
            f"--permanent --ipset=banned --add-entry={REMOTE}",
            "--permanent --zone=drop --add-source=ipset:banned",
            "--reload",
        ),
        ("--permanent --zone=drop --remove-source=ipset:banned", "--reload"),
    ),
}


@pytest.mark.parametrize("source", _ZONES)
def test_the_line_for_a_zone_of_firewalld_keeps_its_sources_from_mapped_ports(source: str) -> None:
    """For them it redirects nothing, but it accepts what igd redirects."""
    firewalld = next(firewall for firewall in FIREWALLS if firewall.name == "firewalld")
    needs("upnpc", *firewalld.programs)
    dropped, undropped = _ZONES[source]
    with (
        Lab(forward=firewalld.forward) as lab,
        loaded(firewalld, lab),
        answering(lab.c1, 8043),
        serving(lab) as process,
    ):
        upnpc(lab.c1, "-r", "8043", "tcp")
        assert advice_after(process, "this keeps one out: ") == []
        for words in dropped:
            lab.srv.run("firewall-cmd", *words.split())
        found = process.wait_for("that a zone of firewalld drops .* this keeps one out: (.*)")
        assert ask(lab.net, PUBLIC, 8043).source == REMOTE
        if source == "address":  # with a set, firewalld 2 needs the program ipset for direct rules
            lab.srv.run(*found[1].replace("ADDRESS", REMOTE).split())
            assert swallows(lab.srv, lab.net, PUBLIC, 8043)
        for words in undropped:
            lab.srv.run("firewall-cmd", *words.split())
        process.wait_for("no longer: sources that a zone of firewalld drops")
