"""The lab keeps what it promises to the tests that stand on it."""

import socket
import time
from pathlib import Path

import pytest

from .fixtures import requires_root
from .talk import Protocol, answering, ask, call, put, swallows
from .topology import Lab
from .wireguard import Forward, Iptables

pytestmark = requires_root

C1_IPV6 = "2001:470:100::2"
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")
KEPT_SESSION = 15  # seconds until a client notices that the server has forgotten their session


def test_is_up_when_it_is_entered(lab: Lab) -> None:
    assert "\t0" not in lab.srv.run("wg", "show", "wg0", "latest-handshakes").stdout


def test_from_net_nothing_reaches_a_client(lab: Lab) -> None:
    with answering(lab.c1, 8043):
        assert ask(lab.srv, "10.100.0.2", 8043).source == "10.100.0.1"
        with pytest.raises(ConnectionRefusedError):
            ask(lab.net, "60.60.60.1", 8043)
        with pytest.raises(OSError, match="unreachable"):
            ask(lab.net, "10.100.0.2", 8043)


@pytest.mark.parametrize("iptables", ["nft", "legacy"])
@pytest.mark.parametrize("forward", ["accept-lines", "drop"])
def test_clients_go_out_with_the_servers_address(forward: Forward, iptables: Iptables) -> None:
    with Lab(forward=forward, iptables=iptables) as lab:
        for client in (lab.c1, lab.c2):
            with answering(lab.net, 9000, "tcp"), answering(lab.net, 9000, "udp"):
                assert ask(client, "60.60.60.2", 9000, "tcp").source == "60.60.60.1"
                assert ask(client, "60.60.60.2", 9000, "udp").source == "60.60.60.1"


def test_ipv6_of_a_client_is_its_own_and_open(lab: Lab) -> None:
    with answering(lab.net, 9000, ipv6=True), answering(lab.c1, 8043, ipv6=True):
        assert ask(lab.c1, "2001:470:60::2", 9000).source == C1_IPV6
        assert ask(lab.net, C1_IPV6, 8043).source == "2001:470:60::2"


def test_a_dropping_server_lets_nothing_new_in() -> None:
    with Lab(forward="drop") as lab, answering(lab.net, 9000, ipv6=True), answering(lab.c1, 8043, ipv6=True):
        assert ask(lab.c1, "2001:470:60::2", 9000).source == C1_IPV6
        assert swallows(lab.srv, lab.net, C1_IPV6, 8043)


def test_nft_leaves_the_legacy_tables_alone(lab: Lab) -> None:
    assert lab.srv.run("cat", "/proc/net/ip_tables_names", check=False).stdout == ""


def test_a_udp_talk_goes_on_over_one_socket(lab: Lab) -> None:
    with answering(lab.net, 9000, "udp"), call(lab.c1, "60.60.60.2", 9000, "udp", source_port=4000) as remote:
        assert [put(remote, text).echo for text in ("one", "two")] == ["one", "two"]


def test_two_labs_do_not_meet() -> None:
    with Lab() as one, Lab() as two, answering(one.net, 9000):
        assert ask(one.c1, "60.60.60.2", 9000).source == "60.60.60.1"
        with pytest.raises(ConnectionRefusedError):
            ask(two.c1, "60.60.60.2", 9000)


def test_clients_find_a_restarted_server_at_once(lab: Lab) -> None:
    lab.wg_down(lab.srv)
    assert "MASQUERADE" not in lab.srv.run("iptables-nft-save").stdout
    started = time.monotonic()
    lab.wg_up(lab.srv)
    assert time.monotonic() - started < KEPT_SESSION
    with answering(lab.c2, 8043):
        assert ask(lab.srv, "10.100.0.3", 8043).source == "10.100.0.1"


def test_hook_lines_run() -> None:
    lines = ("PostUp = touch /run/up-%i", "PreDown = rm /run/up-%i", "PostDown = touch /run/down-%i")
    with Lab(wg=False, server_lines=lines) as lab:
        lab.wg_up(lab.srv)
        lab.srv.run("test", "-e", "/run/up-wg0")
        lab.wg_down(lab.srv)
        lab.srv.run("test", "-e", "/run/down-wg0", "-a", "!", "-e", "/run/up-wg0")


def test_files_stay_in_their_host(lab: Lab) -> None:
    for path in ("/etc/igd/wg0.toml", "/var/lib/igd/wg0.db", "/run/igd-lab-probe"):
        lab.srv.write(path, "a = 1\n")
        assert lab.srv.run("cat", path).stdout == "a = 1\n"
        assert lab.c1.run("test", "-e", path, check=False).returncode == 1
        assert not Path(path).exists()


def test_a_thread_enters_a_network_and_comes_back(lab: Lab) -> None:
    before = socket.if_nameindex()
    with lab.srv.entered():
        assert {name for _, name in socket.if_nameindex()} == {"lo", "ens0", "wg0"}
    assert socket.if_nameindex() == before


def test_only_what_causes_no_packet_is_swallowed(lab: Lab) -> None:
    with answering(lab.c1, 8043, ipv6=True):
        for protocol in PROTOCOLS:
            assert not swallows(lab.srv, lab.net, C1_IPV6, 8043, protocol), "forwarded"
            assert not swallows(lab.srv, lab.net, "60.60.60.1", 8043, protocol), "rejected by the server itself"
            lab.srv.run("ip6tables-nft", "-I", "FORWARD", "-p", protocol, "-j", "REJECT")
            assert not swallows(lab.srv, lab.net, C1_IPV6, 8043, protocol), "rejected by the firewall"
            lab.srv.run("ip6tables-nft", "-I", "FORWARD", "-p", protocol, "-j", "DROP")
            assert swallows(lab.srv, lab.net, C1_IPV6, 8043, protocol)
            lab.srv.run("iptables-nft", "-I", "INPUT", "-p", protocol, "-j", "DROP")
            assert swallows(lab.srv, lab.net, "60.60.60.1", 8043, protocol)


def test_every_rejected_packet_is_told(lab: Lab) -> None:
    for address in ("60.60.60.1", "2001:470:60::1"):
        for _ in range(50):
            with pytest.raises(ConnectionRefusedError):
                ask(lab.net, address, 7000, "udp")
