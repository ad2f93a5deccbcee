"""Behind another NAT: the address is asked for, heals, follows, and the NAT in front is told from a carrier's."""

import json
import re
import signal
from typing import Literal

import pytest

from tests.e2e import stored
from tests.e2e.behind_nat import IMPATIENT, INSIDE, OUTSIDE, SERVERS, STUN, Nat, behind_nat, coturn, nat_rules
from tests.e2e.pcp_client import granted, has_address, listening, map_port
from tests.e2e.serving import REMOTE, igd, serving, start, upnpc
from tests.lab import Answer, Host, Lab, answering, ask
from tests.lab.fixtures import needs, requires_root
from tests.lab.wireguard import Forward
from tests.wire.pcp.client_codec import AddressResponse

pytestmark = requires_root

FORWARDS = r"the NAT in front of this server forwards ports to it: an unrequested packet to UDP port \d+"
FORWARDS_NOTHING = (
    rf"the NAT in front of this server dropped an unrequested packet to UDP port \d+ of {OUTSIDE}: .*{INSIDE} at"
)
CANNOT_TELL = "cannot tell whether the NAT in front of this server forwards ports to it: "
PROTOCOLS: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp")
OTHER_OUTSIDE, OTHER_INSIDE = "60.60.60.7", "10.0.0.6"

ONLY_ANSWERS = """*filter
:INPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i wg0 -j ACCEPT
-A INPUT -p udp -m udp --dport 51820 -j ACCEPT
COMMIT
"""
ONLY_ANSWERS_NFT = """table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname "wg0" accept
        udp dport 51820 accept
    }
}
"""


@pytest.fixture(scope="module", autouse=True)
def programs(root: None) -> None:
    needs("turnserver", "external-ip", "upnpc", "nft", "ss")


def announced(lab: Lab) -> str | None:
    """Return the address that clients are told."""
    address: str | None = json.loads(igd(lab, "status", "wg0", "--json").stdout)["external_address"]
    return address


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("forward", ["accept-lines", "drop"])
def test_behind_a_1_to_1_nat_mappings_work(backend: str, forward: Forward) -> None:
    config = f'{STUN}[firewall]\nbackend = "{backend}"\n'
    with behind_nat("1:1", forward) as (lab, _), coturn(lab.net), serving(lab, config) as process:
        process.wait_for(FORWARDS)
        assert lab.c1.run("external-ip").stdout == f"{OUTSIDE}\n"
        for protocol in PROTOCOLS:
            upnpc(lab.c1, "-r", "8043", protocol)
        for protocol in PROTOCOLS:
            with answering(lab.c1, 8043, protocol):
                assert ask(lab.net, OUTSIDE, 8043, protocol) == Answer(REMOTE, "who am I?")
        assert str(granted(map_port(lab.c1, 8044)).external_address) == OUTSIDE
        assert re.search(rf"(?m)^nat +{FORWARDS}", igd(lab, "status", "wg0").stdout)


def test_a_nat_that_lets_only_answers_in_is_named() -> None:
    with behind_nat("masquerade") as (lab, _), coturn(lab.net), serving(lab, STUN) as process:
        process.wait_for(f"WARNING .*{FORWARDS_NOTHING}")
        upnpc(lab.c1, "-r", "8043", "udp")
        with answering(lab.c1, 8043, "udp"), pytest.raises(ConnectionRefusedError):  # by the NAT
            ask(lab.net, OUTSIDE, 8043, "udp")


def test_a_carriers_nat_is_named() -> None:
    """100.64.0.0/10 between the provider and us: nothing that the operator could forward at a router."""
    with behind_nat("masquerade") as (lab, nat), coturn(lab.net):
        nat.run("ip", "address", "add", "100.64.0.1/24", "dev", "inside")
        _ip(lab.srv, f"address delete {INSIDE}/24 dev ens0", "address add 100.64.0.5/24 dev ens0")
        _ip(lab.srv, "route add default via 100.64.0.1")
        with serving(lab, STUN) as process:
            process.wait_for(r"ask the provider for a public address, as 100\.64\.0\.5 is one of its own NAT")


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy", "nft"])
@pytest.mark.parametrize("kind", ["1:1", "masquerade"])
def test_where_our_own_input_drops_new_flows_nobody_can_tell(kind: Nat, program: str) -> None:
    with behind_nat(kind) as (lab, _), coturn(lab.net):
        if program == "nft":
            lab.srv.run("nft", "-f", "-", input=ONLY_ANSWERS_NFT)
        else:
            lab.srv.run(f"{program}-restore", "-n", input=ONLY_ANSWERS)
        with serving(lab, STUN) as process:
            process.wait_for(f"{CANNOT_TELL}this server's own firewall may drop the test packet .*policy (DROP|drop)")
            assert announced(lab) == OUTSIDE


def test_rules_of_input_that_are_about_others_do_not_matter() -> None:
    """A ban, and a port that is not the tested one: what the server sends would pass them."""
    with behind_nat("masquerade") as (lab, _), coturn(lab.net):
        lab.srv.run("iptables-nft", "-A", "INPUT", "-s", "60.60.60.200", "-j", "DROP")
        lab.srv.run("iptables-nft", "-A", "INPUT", "-p", "udp", "--dport", "53", "-j", "DROP")
        with serving(lab, STUN) as process:
            process.wait_for(FORWARDS_NOTHING)


def test_a_dropping_input_that_accepts_the_mappable_ports_can_tell() -> None:
    with behind_nat("1:1") as (lab, _), coturn(lab.net):
        lab.srv.run("iptables-nft-restore", "-n", input=ONLY_ANSWERS)
        lab.srv.run("iptables-nft", "-A", "INPUT", "-p", "udp", "--dport", "20000:20099", "-j", "ACCEPT")
        with serving(lab, f'{STUN}allow = ["20000-20099 10.100.0.0/16 1024-65535"]\n') as process:
            process.wait_for(f"{FORWARDS}")


def test_a_router_that_forwards_the_allowed_ports_only_forwards_ports() -> None:
    """The port that is tested is one that peers may map, and not just any."""
    with behind_nat("masquerade") as (lab, nat), coturn(lab.net):
        nat.run(
            *f"iptables-nft -t nat -A PREROUTING -i outside -p udp --dport 20000:20099 -j DNAT --to {INSIDE}".split()
        )
        with serving(lab, f'{STUN}allow = ["20000-20099 10.100.0.0/16 1024-65535"]\n') as process:
            process.wait_for(FORWARDS)


def test_a_server_without_rfc_5780_tells_the_address_alone() -> None:
    with behind_nat("1:1") as (lab, _), coturn(lab.net, addresses=SERVERS[:1]), serving(lab, STUN) as process:
        process.wait_for(f"{CANNOT_TELL}{SERVERS[0]}:3478 does not speak RFC 5780$")
        assert lab.c1.run("external-ip").stdout == f"{OUTSIDE}\n"


def test_the_second_server_is_asked_if_the_first_is_dead() -> None:
    servers = 'stun_servers = ["60.60.60.2:9", "60.60.60.2"]'
    with behind_nat("1:1") as (lab, _), coturn(lab.net):
        lab.net.run("iptables-nft", "-A", "INPUT", "-p", "udp", "--dport", "9", "-j", "DROP")
        with serving(lab, f'external_address = "stun"\n{servers}\n') as process:
            process.wait_for(f"STUN server 60.60.60.2:3478 sees this server at {OUTSIDE}")


def test_a_server_that_starts_late_heals_it() -> None:
    """Meanwhile the peers are served, and hear of no address rather than of a wrong one."""
    with behind_nat("1:1") as (lab, _), serving(lab, STUN, IMPATIENT) as process:
        process.wait_for("no STUN server gives an answer .*Connection refused.*: clients hear of no external address")
        assert announced(lab) is None
        assert OUTSIDE not in lab.c1.run("external-ip", check=False).stdout
        assert INSIDE not in lab.c1.run("external-ip", check=False).stdout
        with coturn(lab.net), listening(lab.c1) as ear:
            process.wait_for("a STUN server answers again")
            ear.receive(has_address(OUTSIDE))
            assert lab.c1.run("external-ip").stdout == f"{OUTSIDE}\n"


def test_a_name_is_resolved_by_the_systems_resolver() -> None:
    with behind_nat("1:1") as (lab, _), coturn(lab.net):
        lab.srv.write("/etc/hosts", "127.0.0.1 localhost\n60.60.60.2 stun.example.net\n")
        config = 'external_address = "stun"\nstun_servers = ["stun.example.net:3478"]\n'
        with serving(lab, config) as process:
            process.wait_for(f"STUN server stun.example.net:3478 sees this server at {OUTSIDE}")


def test_a_resolver_that_does_not_answer_keeps_nobody_from_stopping() -> None:
    with behind_nat("1:1") as (lab, _):
        lab.net.run("iptables-nft", "-A", "INPUT", "-p", "udp", "--dport", "53", "-j", "DROP")
        lab.srv.write("/etc/resolv.conf", "nameserver 60.60.60.2\noptions timeout:30 attempts:5\n")
        with serving(lab, 'external_address = "stun"\nstun_servers = ["stun.example.net"]\n') as process:
            process.wait_for("the name was not resolved in 10 s")


def test_a_new_address_of_the_nat_is_noticed_and_told() -> None:
    with behind_nat("1:1") as (lab, nat), coturn(lab.net):
        with serving(lab, STUN) as process:
            process.wait_for(f"external address: {OUTSIDE}$")
            upnpc(lab.c1, "-r", "8043", "tcp")
        stored.change(lab, "UPDATE state SET began = began - 3600")
        with serving(lab, STUN, IMPATIENT) as process, listening(lab.c1) as ear, answering(lab.c1, 8043):
            process.wait_for(f"external address: {OUTSIDE}$")
            nat.run("ip", "address", "add", f"{OTHER_OUTSIDE}/24", "dev", "outside")
            nat.run("iptables-nft-restore", input=nat_rules("1:1", OTHER_OUTSIDE))
            process.wait_for(f"external address: {OTHER_OUTSIDE}$")
            assert _epoch(ear.receive(has_address(OTHER_OUTSIDE))) < 3600, "it begins anew"
            assert lab.c1.run("external-ip").stdout == f"{OTHER_OUTSIDE}\n"
            assert ask(lab.net, OTHER_OUTSIDE, 8043) == Answer(REMOTE, "who am I?")


def test_a_restart_with_the_same_address_keeps_the_epoch() -> None:
    with behind_nat("1:1") as (lab, _), coturn(lab.net):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with start(lab, STUN) as process:
                process.wait_for(f"external address: {OUTSIDE}$")
                process.signal(number)
                process.wait()
            if number == signal.SIGTERM:
                stored.change(lab, "UPDATE state SET began = began - 3600")
        with listening(lab.c1) as ear, serving(lab, STUN):
            assert _epoch(ear.receive(has_address(OUTSIDE))) >= 3600


def test_a_change_of_the_link_asks_again() -> None:
    """With the usual pause of five minutes: what is asked at once is asked because of the change."""
    with behind_nat("1:1") as (lab, nat), coturn(lab.net), serving(lab, STUN) as process:
        process.wait_for(f"external address: {OUTSIDE}$")
        nat.run("ip", "address", "add", f"{OTHER_OUTSIDE}/24", "dev", "outside")
        inside = f"iptables-nft -t nat -I POSTROUTING -o outside -s {OTHER_INSIDE} -j SNAT --to-source {OTHER_OUTSIDE}"
        nat.run(*inside.split())
        _ip(lab.srv, f"address delete {INSIDE}/24 dev ens0", f"address add {OTHER_INSIDE}/24 dev ens0")
        _ip(lab.srv, "route add default via 10.0.0.1")
        process.wait_for(f"external address: {OTHER_OUTSIDE}$")
        assert announced(lab) == OTHER_OUTSIDE


def test_a_link_that_goes_and_comes_back_is_asked_again() -> None:
    with behind_nat("1:1") as (lab, _), coturn(lab.net), serving(lab, STUN) as process:
        process.wait_for(f"external address: {OUTSIDE}$")
        lab.srv.run("ip", "link", "set", "ens0", "down")
        process.wait_for("external address: none")
        _ip(lab.srv, "link set ens0 up", "route add default via 10.0.0.1")
        process.wait_for(f"STUN server 60.60.60.2:3478 sees this server at {OUTSIDE}")
        process.wait_for(f"external address: {OUTSIDE}$")


def test_servers_that_die_do_not_take_the_address_along() -> None:
    with behind_nat("1:1") as (lab, _), serving(lab, STUN, IMPATIENT) as process:
        with coturn(lab.net):
            process.wait_for(f"external address: {OUTSIDE}$")
        process.wait_for(f"no STUN server gives an answer .*: the external address stays {OUTSIDE}")
        assert lab.c1.run("external-ip").stdout == f"{OUTSIDE}\n"
        with coturn(lab.net):
            process.wait_for("a STUN server answers again")


def _epoch(announcement: object) -> int:
    assert isinstance(announcement, AddressResponse)
    return announcement.epoch


def _ip(host: Host, *commands: str) -> None:
    host.run("ip", "-batch", "-", input="\n".join(commands) + "\n")
