"""A host that is broken in one way: `igd doctor` names it, and when its lines are pasted, all is green."""

from collections.abc import Iterator

import pytest

from tests.e2e.doctoring import assert_mended, doctor
from tests.e2e.serving import igd
from tests.lab import Lab
from tests.lab.fixtures import requires_root

pytestmark = requires_root

CONFIG = "/etc/igd/wg0.toml"


@pytest.fixture(scope="module")
def server(root: None) -> Iterator[Lab]:
    """A lab whose tests leave it as it was: all green."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def healthy(server: Lab) -> Iterator[Lab]:
    """The lab without a configuration."""
    yield server
    server.srv.run("rm", "-f", CONFIG)


def test_a_healthy_server_is_green(healthy: Lab) -> None:
    rows = doctor(healthy)
    assert {row.colour for row in rows} == {"green"}
    assert [row.check for row in rows if row.remedy] == []
    printed = igd(healthy, "doctor", "wg0").stdout
    assert [line.split("  ", 1)[0].strip() for line in printed.splitlines()] == ["green"] * len(rows)
    assert "\x1b" not in printed


BREAKS = [
    (
        "interface",
        "ip -6 address del 2001:470:100::1/64 dev wg0 && ip -6 route replace 2001:470:100::/64 dev wg0",
        "has not the address",
    ),
    ("routes to peers", "ip route replace 10.100.0.3/32 dev ens0", "10.100.0.3/32 of peer"),
    ("routes to peers", "ip route replace blackhole 10.100.0.3/32", "dropped by a route (blackhole)"),
    ("way out", f"echo 'external_interface = \"eth7\"' >{CONFIG}", "external_interface eth7 does not exist"),
    (
        "external address",
        f"printf '# mine\\nexternal_address = \"61.61.61.1\"\\n' >{CONFIG}",
        "no interface has external_address",
    ),
    ("forwarding", "sysctl -qw net.ipv4.ip_forward=0", "IPv4 forwarding is off: "),
    ("forwarding", "sysctl -qw net.ipv4.conf.ens0.forwarding=0", "IPv4 forwarding is off on ens0"),
    ("MASQUERADE", "iptables-nft -t nat -F POSTROUTING", "no rule translates"),
    ("IPv6", "sysctl -qw net.ipv6.conf.all.forwarding=0", "IPv6 forwarding is off"),
    ("IPv6", "ip route replace 2001:470:100::3/128 dev ens0", "leave by ens0"),
    ("IPv6", "ip -6 address add 2001:470:100::ffff/64 dev ens0 noprefixroute", "looks for it among its neighbours"),
]


@pytest.mark.parametrize(("check", "command", "text"), BREAKS)
def test_one_thing_is_broken(healthy: Lab, check: str, command: str, text: str) -> None:
    healthy.srv.run("sh", "-c", command)
    assert_mended(healthy, check, text, count=2 if "neighbours" in text else 1)
