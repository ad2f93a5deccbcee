"""The way out is what the kernel would choose for a packet of a peer to the internet, however the host routes."""

import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from igd.host.external_address import ExternalAddresses, ExternalAddressReader
from igd.host.links import Links
from tests.lab import Host

pytestmark = pytest.mark.root

PEERS = (IPv4Address("10.100.0.2"), IPv4Address("10.100.0.3"))


@pytest.fixture(scope="module")
def host(root: None) -> Iterator[Host]:
    with Host("srv") as host:
        yield host


@pytest.fixture(autouse=True)
def network(host: Host) -> Iterator[None]:
    """Give the host ens0 (60.60.60.1), ens1 (61.61.61.1) and wg0, a default route by ens0, and forwarding."""
    with host.entered():
        for name, address in (("ens0", "60.60.60.1"), ("ens1", "61.61.61.1"), ("wg0", "10.100.0.1")):
            run(f"ip link add {name} type veth peer name {name}p", f"ip link set {name}p up", f"ip link set {name} up")
            run(f"ip addr add {address}/24 dev {name}")
        run("ip route add default via 60.60.60.254", "sysctl -qw net.ipv4.ip_forward=1")
        try:
            yield
        finally:
            run("ip rule flush", "ip rule add lookup main pref 32766", "ip addr flush dev lo scope global")
            run("ip route flush table all", "sysctl -qw net.ipv4.conf.all.rp_filter=0")
            names = [name for _, name in socket.if_nameindex() if name != "lo" and not name.endswith("p")]
            for name in names:
                run(f"ip link del {name}")


def run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


def choice(address: str) -> IPv4Address | str:
    """Return the value as the configuration has it."""
    return IPv4Address(address) if address[0].isdigit() else address


class Reading:
    """A reader whose result the tests compare."""

    def __init__(self, links: Links, configured: str, address: str) -> None:
        self.reader = ExternalAddressReader(links, "wg0", configured, choice(address))

    async def found(self, peers: tuple[IPv4Address, ...] = PEERS) -> tuple[str, str | None]:
        """Read, and return interface and matched address."""
        await self.reader.read(peers)
        matched = self.reader.addresses.matched
        return self.reader.interface, str(matched[0]) if matched else None


async def found(
    configured: str = "auto", address: str = "auto", peers: tuple[IPv4Address, ...] = PEERS
) -> tuple[str, str | None]:
    async with Links() as links:
        return await Reading(links, configured, address).found(peers)


async def warnings(configured: str = "auto", address: str = "auto") -> list[str]:
    async with Links() as links:
        reading = Reading(links, configured, address)
        await reading.found(())
        return reading.reader.warnings


BY_ENS1 = ("ens1", "61.61.61.1")


@pytest.mark.parametrize(
    "commands",
    [
        ["ip route replace default via 61.61.61.254"],
        ["ip route add 0.0.0.0/1 via 61.61.61.254", "ip route add 128.0.0.0/1 via 61.61.61.254"],  # as OpenVPN does
        ["ip route del default", "ip route add default via 61.61.61.254 metric 50"],
        [
            "ip route del default",
            *(f"ip route add default via {via} metric {m}" for via, m in (("60.60.60.254", 9), ("61.61.61.254", 8))),
        ],
        ["ip route add default via 61.61.61.254 table 100", "ip rule add lookup 100"],
        ["ip route add default via 61.61.61.254 table 100", "ip rule add not fwmark 51820 lookup 100"],  # as wg-quick
        ["ip route add default via 61.61.61.254 table 100", "ip rule add iif wg0 lookup 100"],
        ["ip route add default via 61.61.61.254 table 100", "ip rule add from 10.100.0.0/24 lookup 100"],
        ["ip route del default", "ip route add default nexthop via 61.61.61.254 nexthop via 61.61.61.253"],
        ["ip link set ens0 down", "ip route add default via 61.61.61.254"],
    ],
)
async def test_every_way_of_routing_peers_by_another_interface(commands: list[str]) -> None:
    assert await found() == ("ens0", "60.60.60.1")
    run(*commands)
    assert await found() == BY_ENS1


@pytest.mark.parametrize("peers", [(), PEERS])
async def test_policy_routing_for_the_peers_counts_before_there_is_one(peers: tuple[IPv4Address, ...]) -> None:
    run("ip route add default via 61.61.61.254 table 100", "ip rule add from 10.100.0.0/24 iif wg0 lookup 100")
    assert await found(peers=peers) == BY_ENS1


async def test_the_route_of_the_host_itself_counts_where_the_kernel_does_not_forward() -> None:
    run("sysctl -qw net.ipv4.ip_forward=0")
    assert await found() == ("ens0", "60.60.60.1")
    run("ip route replace default via 61.61.61.254")
    assert await found() == BY_ENS1


async def test_rp_filter_does_not_hide_the_way_out() -> None:
    run("sysctl -qw net.ipv4.conf.all.rp_filter=1", "ip route add 10.100.0.0/28 dev ens0p")
    assert await found() == ("ens0", "60.60.60.1")


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
async def test_peers_that_are_kept_from_the_internet_have_no_way_out(kind: str) -> None:
    """The host's own way is not theirs: this is how full tunnels guard against leaks."""
    run(f"ip route add {kind} default table 100", "ip rule add iif wg0 lookup 100")
    assert await found() == ("", None)


async def test_a_special_route_to_one_destination_is_outvoted() -> None:
    run("ip route add 198.41.0.0/16 via 61.61.61.254")
    assert await found() == ("ens0", "60.60.60.1")
    run("ip route add blackhole 193.0.14.0/24")
    assert (await found())[0] in {"ens0", "ens1"}  # no majority


async def test_equal_routes_do_not_make_it_flap() -> None:
    """The kernel hashes addresses: the peers' packets take both ways."""
    run("ip route replace default nexthop via 60.60.60.254 nexthop via 61.61.61.254")
    async with Links() as links:
        reading = Reading(links, "auto", "auto")
        first = await reading.found()
        assert first in {("ens0", "60.60.60.1"), BY_ENS1}
        for _ in range(3):
            assert await reading.found() == first
    other = BY_ENS1 if first[0] == "ens0" else ("ens0", "60.60.60.1")
    run(f"ip link set {first[0]} down")
    assert await found() == other


async def test_a_renamed_interface_is_followed() -> None:
    async with Links() as links:
        reading = Reading(links, "auto", "auto")
        assert await reading.found() == ("ens0", "60.60.60.1")
        run("ip link set ens0 down", "ip link set ens0 name wan0", "ip link set wan0 up")
        run("ip route add default via 60.60.60.254")
        assert await reading.found() == ("wan0", "60.60.60.1")
        run("ip link set wan0 name ens0")


async def test_a_point_to_point_link() -> None:
    run("ip link add ppp0 type veth peer name ppp0p", "ip link set ppp0 up")
    run("ip addr add 62.62.62.1 peer 10.64.64.64/32 dev ppp0", "ip route replace default dev ppp0")
    assert await found() == ("ppp0", "62.62.62.1")


async def test_an_interface_without_an_address_borrows_that_of_lo() -> None:
    run("ip link add ppp0 type veth peer name ppp0p", "ip link set ppp0 up", "ip route replace default dev ppp0")
    run("ip addr add 62.62.62.1/32 dev lo")
    assert await found() == ("ppp0", "62.62.62.1")
    assert await found("ppp0") == ("ppp0", "62.62.62.1")
    run("ip addr flush dev lo scope global")
    assert await found("ppp0") == ("ppp0", None), "another way out does not lead here"


@pytest.mark.parametrize("rule", ["", "ip rule add iif wg0 lookup 100"])
async def test_the_source_address_that_the_route_names(rule: str) -> None:
    run("ip addr add 62.62.62.1/32 dev lo")
    run(
        f"ip route replace default via 61.61.61.254 src 62.62.62.1 {'table 100' if rule else ''}",
        *([rule] if rule else []),
    )
    assert await found() == ("ens1", "62.62.62.1")


async def test_an_address_that_becomes_the_first_one() -> None:
    run("sysctl -qw net.ipv4.conf.ens0.promote_secondaries=1", "ip addr add 60.60.60.2/24 dev ens0")
    assert await found() == ("ens0", "60.60.60.1")
    run("ip addr del 60.60.60.1/24 dev ens0")
    assert await found() == ("ens0", "60.60.60.2")


async def test_a_deprecated_address_is_not_used_where_there_is_another() -> None:
    run("ip addr change 60.60.60.1/24 dev ens0 preferred_lft 0", "ip addr add 60.60.61.1/24 dev ens0")
    assert (await found("ens0"))[1] == "60.60.61.1"
    assert (await found())[1] == "60.60.61.1"


@pytest.mark.parametrize("bearer", ["lo", "ens1", "tun0"])
async def test_a_configured_address_on_whichever_interface(bearer: str) -> None:
    run("ip addr change 100.64.7.7/24 dev ens0", "ip tuntap add tun0 mode tun", "ip link set tun0 up")
    run(f"ip addr add 62.62.62.1/32 dev {bearer}")
    assert await found("auto", "62.62.62.1") == ("ens0", "62.62.62.1")
    assert await found("ens0", "62.62.62.1") == ("ens0", "62.62.62.1")
    assert not await warnings("auto", "62.62.62.1")


async def test_a_configured_interface_is_followed_and_what_is_missing_is_named() -> None:
    (missing,) = await warnings("eth7")
    names = "ens0p, ens0, ens1p, ens1, wg0p"
    assert missing == (
        f"external_interface eth7 does not exist (there are: {names}): ports cannot be mapped, pinholes can"
    )
    assert await found("ens1") == BY_ENS1
    assert not await warnings("ens1")
    run("ip addr flush dev ens1")
    assert await warnings("ens1") == ["ens1 has no IPv4 address: ports cannot be mapped, pinholes can"]
    run("ip link set ens1 down")
    assert await warnings("ens1") == ["external_interface ens1 is down: ports cannot be mapped, pinholes can"]


async def test_peers_own_connections_leave_by_the_default_route_also_if_another_interface_is_configured() -> None:
    async with Links() as links:
        reader = ExternalAddressReader(links, "wg0", "ens1", "auto")
        await reader.read(PEERS)
        assert (reader.interface, reader.default_interface) == ("ens1", "ens0")
        run("ip rule add from 10.100.0.0/24 table 7", "ip route add default via 61.61.61.254 table 7")
        assert await reader.read(PEERS), "the operator's rules are read again"
        assert (reader.interface, reader.default_interface) == ("ens1", "ens1")


async def test_what_else_is_missing_is_named() -> None:
    (public,) = await warnings("auto", "62.62.62.1")
    assert public == (
        "no interface has external_address 62.62.62.1 (there are: 60.60.60.1, 61.61.61.1): 60.60.60.1 is mapped instead"
    )
    run("ip route del default")
    assert await warnings() == ["no IPv4 default route: ports cannot be mapped, pinholes can"]
    assert await warnings("auto", "60.60.60.1") == ["no IPv4 default route: mapped flows get no answers"]
    run("ip route add default dev wg0")
    assert await warnings() == ["no IPv4 default route: ports cannot be mapped, pinholes can"]


async def test_behind_a_nat_the_lines_to_write_are_named() -> None:
    run("ip addr change 10.9.9.9/24 dev ens0", "ip addr del 60.60.60.1/24 dev ens0")
    run("ip route replace default via 10.9.9.254")
    (found,) = await warnings()
    assert found.startswith("ens0 has no public address, only 10.9.9.9: clients will refuse it; ")
    assert 'write external_address = "YOUR.PUBLIC.ADDRESS" or external_address = "stun"' in found
    assert not await warnings("auto", "60.60.60.1")
    assert not await warnings("auto", "stun")


class Stun:
    """Knows an address, and records from where it is to be asked."""

    def __init__(self) -> None:
        self.address: IPv4Address | None = None
        self.ways: list[tuple[str, IPv4Address | None]] = []

    def ask_from(self, interface: str, source: IPv4Address | None) -> None:
        """Record the way."""
        self.ways.append((interface, source))


async def test_an_address_from_outside_is_announced_when_it_is_known() -> None:
    async with Links() as links:
        reader = ExternalAddressReader(links, "wg0", "auto", "stun")
        reader.stun = stun = Stun()
        await reader.read(PEERS)
        own = IPv4Address("60.60.60.1")
        assert reader.addresses == ExternalAddresses(None, (own,))
        stun.address = IPv4Address("62.62.62.62")
        assert await reader.read(PEERS)
        assert reader.addresses == ExternalAddresses(stun.address, (own,))
        run("ip route del default")
        await reader.read(PEERS)
        assert reader.addresses == ExternalAddresses(None, ())
        assert stun.ways == [("ens0", own), ("ens0", own), ("", None)]


async def test_only_changes_are_reported() -> None:
    async with Links() as links:
        reader = ExternalAddressReader(links, "wg0", "auto", "auto")
        assert await reader.read(PEERS)
        assert not await reader.read(PEERS)
        run("ip route del default")
        assert await reader.read(PEERS)
        assert (reader.interface, reader.addresses) == ("", ExternalAddresses(None, ()))
