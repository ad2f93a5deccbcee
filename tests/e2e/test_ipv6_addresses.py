"""Over IPv6 the gateway answers as over IPv4: by UPnP for the peer's IPv4 address, by PCP for pinholes."""

from collections.abc import Iterator

import pytest

from tests.e2e import control
from tests.e2e import own_addresses as own
from tests.e2e.own_addresses import Found, description, search, wg0_has
from tests.e2e.pcp_client import C1_IPV6, GATEWAY6
from tests.e2e.serving import C1, C2, GATEWAY, PUBLIC, REMOTE, serving
from tests.lab import Answer, Lab, Process, answering, ask, call, until
from tests.lab.fixtures import needs, requires_root

pytestmark = requires_root

SECOND6, SECOND6_NETWORK = "2001:470:200::1", "2001:470:200::1/64"
C2_SECOND6 = "2001:470:200::3"
LINK_LOCAL = "fe80::2"
_REST = {"RemoteHost": "", "PortMappingDescription": "", "LeaseDuration": 300}


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    """A lab in which c2 has an IPv6 address of another network than c1."""
    needs("upnpc", "ss")
    with Lab() as lab:
        own.allow(lab, lab.c1, C1, C1_IPV6, LINK_LOCAL)
        lab.c1.run("ip", "address", "add", f"{LINK_LOCAL}/64", "dev", "wg0", "nodad")
        own.allow(lab, lab.c2, C2, C2_SECOND6)
        lab.c2.run("ip", "address", "add", f"{C2_SECOND6}/128", "dev", "wg0")
        lab.c2.run("ip", "address", "del", "2001:470:100::3/128", "dev", "wg0")
        yield lab


@pytest.fixture(scope="module")
def process(lab: Lab) -> Iterator[Process]:
    """The daemon, which was started while wg0 had one address of each IP version."""
    with serving(lab) as process:
        own.served(lab, GATEWAY, GATEWAY6)
        yield process


def test_every_protocol(lab: Lab, process: Process) -> None:
    own.assert_answers(lab.c1, C1_IPV6, GATEWAY6, internal=C1)


def test_upnpc_finds_it_by_multicast(lab: Lab, process: Process) -> None:
    printed = lab.c1.run("upnpc", "-6", "-m", "wg0", "-s").stdout
    assert f" desc: {description(GATEWAY6)}\n" in printed
    assert f"ExternalIPAddress = {PUBLIC}" in printed


def test_a_mapping_to_an_ipv6_address_is_refused(lab: Lab, process: Process) -> None:
    printed = lab.c1.run("upnpc", "-u", description(GATEWAY6), "-r", "8310", "tcp", check=False).stdout
    assert "AddPortMapping(8310, 8310, 2001:470:100::2) failed with code 600" in printed


def test_a_mapping_without_an_address_leads_to_the_peers_only_one(lab: Lab, process: Process) -> None:
    """Over IPv4 it is the sender's; over IPv6, the IPv4 address in the peer's AllowedIPs, if it is the only one."""
    arguments = {"ExternalPort": 8312, "Protocol": "TCP", "InternalPort": 8312, "InternalClient": "", "Enabled": 1}
    until(lambda: _asked_over_ipv6(lab, arguments).status == 200)  # the peers may be those of the test before
    with answering(lab.c1, 8312):
        assert ask(lab.net, PUBLIC, 8312) == Answer(REMOTE, "who am I?")


def test_a_peer_of_two_ipv4_addresses_must_name_one(lab: Lab, process: Process) -> None:
    arguments = {"ExternalPort": 8313, "Protocol": "TCP", "InternalPort": 8313, "InternalClient": "", "Enabled": 1}
    own.allow(lab, lab.c1, C1, "10.100.0.77", C1_IPV6, LINK_LOCAL)
    try:
        until(lambda: _asked_over_ipv6(lab, arguments).status == 500)  # igd reads the peers once a second
        response = _asked_over_ipv6(lab, arguments)
    finally:
        own.allow(lab, lab.c1, C1, C1_IPV6, LINK_LOCAL)
    assert b"<errorCode>402</errorCode>" in response.rest
    assert b"NewInternalClient is required" in response.rest


def _asked_over_ipv6(lab: Lab, arguments: control.Arguments) -> control.Response:
    content = control.body("AddPortMapping", {**arguments, **_REST})
    request = control.head("AddPortMapping", {"Host": f"[{GATEWAY6}]:2869", "Content-Length": len(content)}) + content
    with call(lab.c1, GATEWAY6, 2869, source=C1_IPV6) as connection:
        connection.sendall(request)
        return control.read(connection)


def test_another_peers_ipv4_address_is_refused(lab: Lab, process: Process) -> None:
    printed = lab.c1.run("upnpc", "-u", description(GATEWAY6), "-a", C2, "8311", "8311", "tcp", check=False).stdout
    assert "failed with code 606" in printed


@pytest.mark.parametrize("group", own.GROUPS6)
def test_an_address_that_is_added_answers_its_own_network(lab: Lab, process: Process, group: str) -> None:
    with wg0_has(lab.srv, SECOND6_NETWORK):
        own.served(lab, GATEWAY, GATEWAY6, SECOND6)
        assert search(lab.c1, group, C1_IPV6) == Found(GATEWAY6, description(GATEWAY6))
        assert search(lab.c2, group, C2_SECOND6) == Found(SECOND6, description(SECOND6))
        for server in (GATEWAY6, SECOND6):
            own.assert_answers(lab.c2, C2_SECOND6, server, internal=C2)
    own.served(lab, GATEWAY, GATEWAY6)


def test_an_address_is_changed(lab: Lab, process: Process) -> None:
    with wg0_has(lab.srv, SECOND6_NETWORK):
        with own.moved_to_loopback(lab.srv, f"{GATEWAY6}/64"):
            own.served(lab, GATEWAY, SECOND6)
            own.assert_refuses(lab.c2, C2_SECOND6, GATEWAY6)
            own.assert_answers(lab.c1, C1_IPV6, SECOND6, internal=C1)
        own.served(lab, GATEWAY, GATEWAY6, SECOND6)
    own.served(lab, GATEWAY, GATEWAY6)
    own.assert_answers(lab.c1, C1_IPV6, GATEWAY6, internal=C1)


def test_the_last_address_goes_and_comes_back(lab: Lab, process: Process) -> None:
    """With it the groups go: they would answer with no address."""
    with own.moved_to_loopback(lab.srv, f"{GATEWAY6}/64"):
        own.served(lab, GATEWAY)
        own.assert_refuses(lab.c1, C1_IPV6, GATEWAY6)
        own.assert_answers(lab.c1, C1, GATEWAY)
    own.served(lab, GATEWAY, GATEWAY6)
    for group in own.GROUPS6:
        assert search(lab.c1, group, C1_IPV6) == Found(GATEWAY6, description(GATEWAY6))


def test_a_link_local_address_is_told_to_link_local_peers_alone(lab: Lab, process: Process) -> None:
    with wg0_has(lab.srv, "fe80::1/64"):
        own.served(lab, GATEWAY, GATEWAY6, "fe80::1")
        for destination in (*own.GROUPS6, "fe80::1"):
            assert search(lab.c1, destination, LINK_LOCAL) == Found("fe80::1", description("fe80::1"))
        for group in own.GROUPS6:
            assert search(lab.c1, group, C1_IPV6) == Found(GATEWAY6, description(GATEWAY6))
        assert search(lab.c1, "fe80::1", C1_IPV6).location == description(GATEWAY6)
    own.served(lab, GATEWAY, GATEWAY6)
    lab.srv.run("ip", "route", "replace", LINK_LOCAL, "dev", "wg0")  # wg-quick routes each of AllowedIPs
    assert search(lab.c1, "ff02::c", LINK_LOCAL) == Found(GATEWAY6, description(GATEWAY6))


def test_a_link_local_address_alone_serves_link_local_peers(lab: Lab, process: Process) -> None:
    with own.moved_to_loopback(lab.srv, f"{GATEWAY6}/64"), wg0_has(lab.srv, "fe80::1/64"):
        own.served(lab, GATEWAY, "fe80::1")
        assert search(lab.c1, "ff02::c", LINK_LOCAL) == Found("fe80::1", description("fe80::1"))
        # Its newer versions search from the global address first, and get no answer.
        printed = lab.c1.run("upnpc", "-6", "-m", "wg0", "-s").stdout
        assert f" desc: {description('fe80::1')}\n" in printed
        assert f"ExternalIPAddress = {PUBLIC}" in printed
    own.served(lab, GATEWAY, GATEWAY6)


def test_a_deprecated_address_answers_but_another_is_told(lab: Lab, process: Process) -> None:
    """The kernel has the newest address first."""
    newer = "2001:470:100::99"
    with wg0_has(lab.srv, f"{newer}/64"):
        own.served(lab, GATEWAY, GATEWAY6, newer)
        assert search(lab.c1, "ff02::c", C1_IPV6) == Found(newer, description(newer))
        lab.srv.run("ip", "address", "change", f"{newer}/64", "dev", "wg0", "preferred_lft", "0")
        until(lambda: search(lab.c1, "ff02::c", C1_IPV6) == Found(GATEWAY6, description(GATEWAY6)))
        assert search(lab.c1, newer, C1_IPV6) == Found(newer, description(newer))
    own.served(lab, GATEWAY, GATEWAY6)


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ("ip link set wg0 mtu 1200", "ip link set wg0 mtu 1420"),  # below IPv6's least
        ("sysctl -qw net.ipv6.conf.wg0.disable_ipv6=1", "sysctl -qw net.ipv6.conf.wg0.disable_ipv6=0"),
        ("ip link set wg0 down", "ip link set wg0 up"),  # IPv4 addresses stay
    ],
    ids=["MTU", "sysctl", "link"],
)
def test_ipv6_is_switched_off_and_on(lab: Lab, process: Process, off: str, on: str) -> None:
    """The kernel forgets the addresses, and with some the groups that igd has joined."""
    lab.srv.run(*off.split())
    own.served(lab, GATEWAY)
    lab.srv.run(*on.split())
    lab.srv.run("ip", "address", "add", f"{GATEWAY6}/64", "dev", "wg0")
    own.served(lab, GATEWAY, GATEWAY6)
    for group in own.GROUPS6:
        assert search(lab.c1, group, C1_IPV6) == Found(GATEWAY6, description(GATEWAY6))
    assert search(lab.c1, own.GROUP, C1) == Found(GATEWAY, description(GATEWAY))
    own.assert_answers(lab.c1, C1, GATEWAY)
    own.assert_answers(lab.c1, C1_IPV6, GATEWAY6, internal=C1)
