"""The way out is followed while igd runs: traffic passes by the new one, and the epoch begins anew with the address."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from igd.wire.pcp import messages as pcp
from tests.e2e import stored
from tests.e2e.pcp_client import granted, has_address, listening, map_port, refused
from tests.e2e.serving import C1, GATEWAY, PUBLIC, REMOTE, igd, serving, start, upnpc
from tests.e2e.two_ways import SECOND, SECOND_REMOTE, cable, ip, two_ways
from tests.lab import Lab, Process, answering, ask, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

BACKENDS = ("nftables", "iptables")
OTHER = "62.62.62.1"
HOUR = 3600


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("upnpc", "natpmpc", "nft")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def mapped(lab: Lab, backend: str, config: str = "") -> Iterator[Process]:
    """Serve with an epoch that began an hour ago, and map UDP and TCP port 8043 of c1."""
    config = f'{config}\n[firewall]\nbackend = "{backend}"\n'
    with start(lab, config) as process:
        assert process.stop() == 0
    stored.change(lab, "UPDATE state SET began = began - 3600")
    with serving(lab, config) as process, answering(lab.c1, 8043, "udp"), answering(lab.c1, 8043, "tcp"):
        for protocol in ("udp", "tcp"):
            upnpc(lab.c1, "-r", "8043", protocol)
        yield process


def external(lab: Lab) -> tuple[str, int]:
    """Return the external address and the epoch that natpmpc prints."""
    printed = lab.c1.run("natpmpc", "-g", GATEWAY).stdout
    match = re.search(r"Public IP address : (\S+)\nepoch = (\d+)\n", printed)
    assert match, printed
    return match[1], int(match[2])


def announces(lab: Lab, address: str) -> bool:
    """Return whether NAT-PMP and UPnP name this external address."""
    printed = lab.c1.run("natpmpc", "-g", GATEWAY, check=False).stdout
    return f"Public IP address : {address}\n" in printed and f"ExternalIPAddress = {address}\n" in upnpc(lab.c1, "-s")


def assert_moved(lab: Lab, address: str, *, remote: str) -> None:
    """Assert that packets to the new address reach c1, that it is told, and that the epoch has begun anew."""
    assert_reached(lab, address, remote=remote)
    assert external(lab)[1] < HOUR


def assert_stayed(lab: Lab, address: str, *, remote: str) -> None:
    """Assert that packets to the address reach c1, and that the epoch goes on."""
    assert_reached(lab, address, remote=remote)
    assert external(lab)[1] >= HOUR


def assert_reached(lab: Lab, address: str, *, remote: str) -> None:
    until(lambda: announces(lab, address))
    for protocol in ("udp", "tcp"):
        assert ask(lab.net, address, 8043, protocol).source == remote


def default_replaced(lab: Lab) -> None:
    ip(lab.srv, f"route replace default via {SECOND_REMOTE}")


def interface_down(lab: Lab) -> None:
    ip(lab.srv, f"route add default via {SECOND_REMOTE} metric 200", "link set ens0 down")


def better_metric(lab: Lab) -> None:
    ip(lab.srv, f"route add default via {REMOTE} metric 100", f"route add default via {SECOND_REMOTE} metric 50")
    ip(lab.srv, f"route del default via {REMOTE} metric 0")


def by_rule(lab: Lab) -> None:
    """Route as wg-quick does for a full tunnel of the server's own."""
    ip(lab.srv, f"route add default via {SECOND_REMOTE} table 100", "rule add not fwmark 0xca6c table 100")
    ip(lab.srv, "rule add table main suppress_prefixlength 0")


def for_peers_only(lab: Lab) -> None:
    ip(lab.srv, f"route add default via {SECOND_REMOTE} table 100", "rule add iif wg0 lookup 100")


def for_their_network_only(lab: Lab) -> None:
    ip(lab.srv, f"route add default via {SECOND_REMOTE} table 100", "rule add from 10.100.0.0/24 lookup 100")


def two_halves(lab: Lab) -> None:
    ip(lab.srv, f"route add 0.0.0.0/1 via {SECOND_REMOTE}", f"route add 128.0.0.0/1 via {SECOND_REMOTE}")


@pytest.mark.parametrize(
    "change",
    [default_replaced, interface_down, better_metric, by_rule, for_peers_only, for_their_network_only, two_halves],
)
def test_the_second_way_out_is_taken(backend: str, change: Callable[[Lab], None]) -> None:
    with two_ways() as lab, mapped(lab, backend):
        assert_stayed(lab, PUBLIC, remote=REMOTE)
        change(lab)
        assert_moved(lab, SECOND, remote=SECOND_REMOTE)


def test_peers_are_told_of_the_second_way_out(backend: str) -> None:
    with two_ways() as lab, listening(lab.c1, C1) as ear, mapped(lab, backend):
        default_replaced(lab)
        ear.receive(has_address(SECOND))
        assert lab.c1.run("external-ip").stdout.strip() == SECOND


def renamed(lab: Lab) -> tuple[str, str]:
    ip(lab.srv, "link set ens0 down", "link set ens0 name wan0", "link set wan0 up")
    ip(lab.srv, f"route add default via {REMOTE}")
    return PUBLIC, REMOTE


def replaced_by_another_way_to_the_same_address(lab: Lab) -> tuple[str, str]:
    """The address stays, and the interface is another."""
    ip(lab.srv, f"address del {PUBLIC}/24 dev ens0", f"address add {PUBLIC}/32 dev lo")
    ip(lab.srv, f"route replace default via {SECOND_REMOTE} src {PUBLIC}")
    ip(lab.net, f"route add {PUBLIC}/32 via {SECOND}")
    return PUBLIC, SECOND_REMOTE


@pytest.mark.parametrize("change", [renamed, replaced_by_another_way_to_the_same_address])
def test_the_epoch_goes_on_where_the_address_stays(backend: str, change: Callable[[Lab], tuple[str, str]]) -> None:
    with two_ways() as lab, mapped(lab, backend):
        address, remote = change(lab)
        until(lambda: '"ens0"' not in igd(lab, "status", "wg0", "--json").stdout)
        assert_stayed(lab, address, remote=remote)


def created_anew(lab: Lab) -> tuple[str, str]:
    ip(lab.srv, "link del ens0")
    cable(lab, "again", "60.60.70.2", "ens0", "60.60.70.1")
    ip(lab.srv, "route add default via 60.60.70.2")
    return "60.60.70.1", "60.60.70.2"


def secondary_becomes_primary(lab: Lab) -> tuple[str, str]:
    lab.srv.run("sysctl", "-qw", "net.ipv4.conf.ens0.promote_secondaries=1")
    ip(lab.srv, "address add 60.60.60.9/24 dev ens0", f"address del {PUBLIC}/24 dev ens0")
    ip(lab.srv, f"route replace default via {REMOTE}")
    return "60.60.60.9", REMOTE


def point_to_point(lab: Lab) -> tuple[str, str]:
    cable(lab, "pppoe", "62.62.62.254", "ppp0")
    ip(lab.srv, f"address add {OTHER} peer 62.62.62.254/32 dev ppp0", "route replace default dev ppp0")
    return OTHER, "62.62.62.254"


def borrowed_from_lo(lab: Lab) -> tuple[str, str]:
    ip(lab.net, f"route add {OTHER}/32 via {PUBLIC}")
    ip(lab.srv, f"address add {OTHER}/32 dev lo", f"route replace default via {REMOTE} src {OTHER}")
    return OTHER, REMOTE


@pytest.mark.parametrize("change", [created_anew, secondary_becomes_primary, point_to_point, borrowed_from_lo])
def test_another_address_is_taken(backend: str, change: Callable[[Lab], tuple[str, str]]) -> None:
    with two_ways() as lab, mapped(lab, backend):
        address, remote = change(lab)
        assert_moved(lab, address, remote=remote)


def test_with_several_equal_routes_it_keeps_one_while_that_is_there(backend: str) -> None:
    with two_ways() as lab, mapped(lab, backend):
        ip(lab.srv, f"route replace default nexthop via {REMOTE} dev ens0 nexthop via {SECOND_REMOTE} dev ens1")
        ways = {PUBLIC: (REMOTE, "ens0"), SECOND: (SECOND_REMOTE, "ens1")}
        lab.srv.run("sysctl", "-qw", "net.ipv4.fib_multipath_hash_policy=1")
        until(lambda: external(lab)[0] in ways)
        first = external(lab)[0]
        assert_reached(lab, first, remote=ways[first][0])
        ip(lab.srv, f"link set {ways[first][1]} down")
        (other,) = set(ways) - {first}
        assert_moved(lab, other, remote=ways[other][0])


def test_without_a_way_out_there_is_no_external_address_and_mappings_stay(backend: str) -> None:
    with two_ways() as lab, mapped(lab, backend) as process:
        ip(lab.srv, "route del default")
        process.wait_for("no IPv4 default route: ports cannot be mapped, pinholes can")
        until(lambda: refused_now(lab))
        assert "no IPv4 default route" in igd(lab, "status", "wg0").stdout
        ip(lab.srv, f"route add default via {REMOTE}")
        assert_stayed(lab, PUBLIC, remote=REMOTE)
        ip(lab.srv, "route del default")
        until(lambda: refused_now(lab))
        ip(lab.srv, f"route add default via {SECOND_REMOTE}")
        assert_moved(lab, SECOND, remote=SECOND_REMOTE)


def refused_now(lab: Lab) -> bool:
    """Return whether NAT-PMP says that there is no external address."""
    return "Public IP address" not in lab.c1.run("natpmpc", "-g", GATEWAY, check=False).stdout


def test_a_configured_interface_comes_goes_and_comes(backend: str) -> None:
    config = f'external_interface = "wan7"\n[firewall]\nbackend = "{backend}"\n'
    with two_ways() as lab, serving(lab, config) as process, answering(lab.c1, 8043):
        process.wait_for("external_interface wan7 does not exist .there are: ens0, ens1, ens9.: ports cannot be mapped")
        assert refused(map_port(lab.c1, 8043)) is pcp.Result.NETWORK_FAILURE
        for address in (f"{OTHER}", "62.62.62.7"):
            cable(lab, "isp7", "62.62.62.254", "wan7", address)
            until(lambda address=address: announces(lab, address))  # type: ignore[misc]
            granted(map_port(lab.c1, 8043))
            assert ask(lab.net, address, 8043).source == "62.62.62.254"
            ip(lab.srv, "link del wan7")
            until(lambda: refused_now(lab))
        process.wait_for("external_interface wan7 does not exist")


@pytest.mark.parametrize("bearer", ["lo", "tun7"])
def test_a_configured_address_is_matched_where_it_is(backend: str, bearer: str) -> None:
    """An address that is routed to the server; the way out has a private one."""
    with two_ways() as lab:
        ip(lab.srv, "tuntap add tun7 mode tun", "link set tun7 up", f"address add {OTHER}/32 dev {bearer}")
        ip(lab.srv, f"address del {PUBLIC}/24 dev ens0", "address add 100.64.7.7/24 dev ens0")
        ip(lab.net, "address add 100.64.7.254/24 dev srv", f"route add {OTHER}/32 via 100.64.7.7")
        ip(lab.srv, "route replace default via 100.64.7.254")
        with mapped(lab, backend, f'external_address = "{OTHER}"'):
            assert_stayed(lab, OTHER, remote="100.64.7.254")


def test_a_preserved_source_port_follows_the_way_out(backend: str) -> None:
    """Rules that name the interface are replaced."""
    with two_ways() as lab:
        config = f'[firewall]\nbackend = "{backend}"\npreserve_source_port = true\n'
        with serving(lab, config), answering(lab.net, 9999, "udp"):
            lab.c1.run("natpmpc", "-g", GATEWAY, "-a", "8043", "9043", "udp", "300")
            for interface, address, remote in (("ens1", SECOND, SECOND_REMOTE), ("ens0", PUBLIC, REMOTE)):
                ip(lab.srv, f"route replace default dev {interface} via {remote}")
                until(lambda name=interface: f'"{name}"' in named(lab, backend))  # type: ignore[misc]
                assert ask(lab.c1, remote, 9999, "udp", source=C1, source_port=9043).source == address
            ip(lab.srv, "route del default")
            until(lambda: "ens" not in named(lab, backend))


def named(lab: Lab, backend: str) -> str:
    """Return the rule that preserves source ports; interfaces are quoted."""
    if backend == "nftables":
        return lab.srv.run("nft", "list", "chain", "inet", "igd_wg0", "postrouting").stdout
    saved = lab.srv.run("iptables-legacy-save", "-t", "nat").stdout
    return re.sub(r"-o (\S+)", r'"\1"', "\n".join(line for line in saved.splitlines() if "SNAT" in line))
