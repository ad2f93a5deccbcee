"""WANIPv6FirewallControl:1: what AddPinhole and its companions may look like, and what they ask of the gateway."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest

from igd.core.mapping import Endpoint, Remote, TransportProtocol
from igd.core.request import MapPort, PinholeTraffic, RenewPinhole
from igd.wire.upnp.actions import decode
from igd.wire.upnp.requests import Parties
from igd.wire.upnp.soap import Arguments, UPnPError
from tests.wire.upnp.test_actions import OPEN, PARTIES, PINHOLE, answered, call

SENDER = Endpoint(IPv6Address("2001:db8:1::3"), 8043)
OVER_IPV6 = Parties(SENDER.address, PARTIES.root)


def only(host: str, port: int = 0) -> MapPort:
    return replace(OPEN, remotes=(Remote(IPv6Network(host), port),))


SERVED: dict[str, tuple[dict[str, str], MapPort]] = {
    "any remote host, syncthing": ({"RemoteHost": "::/0"}, OPEN),
    "any remote host, a star": ({"RemoteHost": "*"}, OPEN),
    "any remote host, the unspecified address": ({"RemoteHost": "::"}, OPEN),
    "any remote host, of IPv4": ({"RemoteHost": "0.0.0.0"}, OPEN),
    "any remote host, spaces": ({"RemoteHost": " "}, OPEN),
    "any remote host in brackets": ({"RemoteHost": "[::]"}, OPEN),
    "no remote port": ({"RemotePort": ""}, OPEN),
    "one remote host": ({"RemoteHost": "2001:DB8:0::9"}, only("2001:db8::9")),
    "one remote host and port": ({"RemoteHost": "2001:db8::9", "RemotePort": "53"}, only("2001:db8::9", 53)),
    "one remote port of all hosts": ({"RemotePort": "53"}, only("::/0", 53)),
    "a remote host in brackets": ({"RemoteHost": " [2001:db8::9] "}, only("2001:db8::9")),
    "a remote host with a zone": ({"RemoteHost": "2001:db8::9%wg0"}, only("2001:db8::9")),
    "a remote network": ({"RemoteHost": "2001:db8::/32"}, only("2001:db8::/32")),
    "an internal client in brackets": ({"InternalClient": "[2001:db8:1::2]"}, OPEN),
    "an internal client with a zone": ({"InternalClient": "2001:db8:1::2%wg0"}, OPEN),
    "an internal client that is written at length": ({"InternalClient": "2001:0DB8:0001:0:0:0:0:0002"}, OPEN),
    "no internal client: the sender": ({"InternalClient": ""}, replace(OPEN, internal=SENDER)),
    "UDP": ({"Protocol": "17"}, replace(OPEN, protocol=TransportProtocol.UDP)),
    "a protocol's name": ({"Protocol": " udp "}, replace(OPEN, protocol=TransportProtocol.UDP)),
    "zeros and spaces": ({"Protocol": " 006", "InternalPort": "+8043 ", "LeaseTime": "0300"}, OPEN),
    "the shortest lease": ({"LeaseTime": "1"}, replace(OPEN, lifetime=1)),
    "the longest lease": ({"LeaseTime": "86400"}, replace(OPEN, lifetime=86400)),
    "arguments of its own": ({"Description": "web", "UniqueID": "5"}, OPEN),
}


@pytest.mark.parametrize(("changed", "request_"), SERVED.values(), ids=SERVED)
def test_what_is_clear_is_served(changed: dict[str, str], request_: MapPort) -> None:
    assert decode(*call("AddPinhole", PINHOLE | changed), OVER_IPV6).request == request_


@pytest.mark.parametrize("left_out", ["RemoteHost", "RemotePort", "InternalClient"])
def test_an_argument_that_is_left_out_has_its_default(left_out: str) -> None:
    sent = {name: text for name, text in PINHOLE.items() if name != left_out}
    request = decode(*call("AddPinhole", sent), OVER_IPV6).request
    assert request == (replace(OPEN, internal=SENDER) if left_out == "InternalClient" else OPEN)


ADDRESS_OVER_IPV4: dict[str, tuple[tuple[str, ...], str | None]] = {
    "the only IPv6 address": (("10.100.0.2", "2001:db8:1::2"), "2001:db8:1::2"),
    "beside a link-local one": (("10.100.0.2", "fe80::2", "2001:db8:1::2"), "2001:db8:1::2"),
    "two": (("2001:db8:1::2", "2001:db8:1::3"), None),
    "link-local only": (("fe80::2",), None),
    "none": (("10.100.0.2",), None),
}


@pytest.mark.parametrize(("addresses", "meant"), ADDRESS_OVER_IPV4.values(), ids=ADDRESS_OVER_IPV4)
def test_over_ipv4_an_empty_internal_client_is_the_peers_only_ipv6_address(
    addresses: tuple[str, ...], meant: str | None
) -> None:
    parties = Parties(IPv4Address("10.100.0.2"), PARTIES.root, tuple(map(ip_address, addresses)))
    asked = call("AddPinhole", PINHOLE | {"InternalClient": ""})
    if meant is None:
        with pytest.raises(UPnPError, match="InternalClient is required in a call over IPv4") as refused:
            decode(*asked, parties)
        assert refused.value.code == 402
    else:
        assert decode(*asked, parties).request == replace(OPEN, internal=Endpoint(IPv6Address(meant), 8043))


REFUSED: dict[str, tuple[dict[str, str], int]] = {
    "internal port 0": ({"InternalPort": "0"}, 706),
    "no internal port": ({"InternalPort": ""}, 402),
    "internal port 65536": ({"InternalPort": "65536"}, 601),
    "remote port 65536": ({"RemotePort": "65536"}, 601),
    "remote port -1": ({"RemotePort": "-1"}, 601),
    "all protocols": ({"Protocol": "65535"}, 707),
    "UDP-Lite": ({"Protocol": "136"}, 705),
    "ICMPv6": ({"Protocol": "58"}, 705),
    "protocol 0": ({"Protocol": "0"}, 705),
    "protocol 65536": ({"Protocol": "65536"}, 601),
    "no protocol": ({"Protocol": ""}, 402),
    "SCTP by name": ({"Protocol": "SCTP"}, 402),
    "both protocols": ({"Protocol": "TCP/UDP"}, 402),
    "no lease": ({"LeaseTime": ""}, 402),
    "lease 0": ({"LeaseTime": "0"}, 601),
    "more than a day": ({"LeaseTime": "86401"}, 601),
    "a lease below zero": ({"LeaseTime": "-1"}, 601),
    "a remote host of IPv4": ({"RemoteHost": "198.51.100.7"}, 600),
    "an IPv4-mapped remote host": ({"RemoteHost": "::ffff:198.51.100.7"}, 600),
    "a remote host's name": ({"RemoteHost": "example.org"}, 600),
    "a link-local remote host": ({"RemoteHost": "fe80::1%wg0"}, 600),
    "a multicast remote host": ({"RemoteHost": "ff02::1"}, 600),
    "a loopback remote host": ({"RemoteHost": "::1"}, 600),
    "a remote host and its prefix": ({"RemoteHost": "2001:db8::9/64"}, 600),
    "two remote hosts": ({"RemoteHost": "2001:db8::9,2001:db8::8"}, 600),
    "an internal client of IPv4": ({"InternalClient": "10.100.0.2"}, 600),
    "any internal client": ({"InternalClient": "*"}, 600),
    "an internal network": ({"InternalClient": "2001:db8:1::/64"}, 600),
    "an internal client's name": ({"InternalClient": "laptop"}, 600),
    "an internal client with a port": ({"InternalClient": "[2001:db8:1::2]:8043"}, 600),
    "a long remote host": ({"RemoteHost": "2" * 257}, 605),
}


@pytest.mark.parametrize(("changed", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_or_could_mean_two_things_is_refused(changed: dict[str, str], code: int) -> None:
    with pytest.raises(UPnPError) as caught:
        decode(*call("AddPinhole", PINHOLE | changed), OVER_IPV6)
    assert caught.value.code == code


@pytest.mark.parametrize("address", ["fe80::2", "ff02::1", "::", "::1", "::ffff:10.100.0.2", "2001:db8:ffff::1"])
def test_whose_address_it_is_the_gateway_decides(address: str) -> None:
    """It refuses another's, and what no host in the tunnel can have (606)."""
    request = decode(*call("AddPinhole", PINHOLE | {"InternalClient": f"{address}%wg0"}), OVER_IPV6).request
    assert request == replace(OPEN, internal=Endpoint(IPv6Address(address), 8043))


def test_arguments_may_have_the_prefix_of_other_services() -> None:
    prefixed = {f"New{name}": text for name, text in PINHOLE.items()}
    assert decode(*call("AddPinhole", prefixed), OVER_IPV6).request == OPEN
    bare = {"UniqueID": "9", "LeaseTime": "600"}
    assert decode(*call("UpdatePinhole", bare), OVER_IPV6).request == RenewPinhole(9, 600)


@pytest.mark.parametrize(("lease", "code"), [("0", 601), ("86401", 601), ("", 402), ("a day", 402)])
def test_a_new_lease_has_the_same_limits(lease: str, code: int) -> None:
    with pytest.raises(UPnPError) as caught:
        decode(*call("UpdatePinhole", {"UniqueID": "9", "NewLeaseTime": lease}), PARTIES)
    assert caught.value.code == code


def test_before_the_first_packet_nobody_knows_whether_a_pinhole_works() -> None:
    with pytest.raises(UPnPError) as caught:
        answered(call("CheckPinholeWorking", {"UniqueID": "9"}), PinholeTraffic(0))
    assert caught.value.code == 709


TIMEOUTS: list[tuple[Arguments, int]] = [
    ({"Protocol": "65535"}, 707),
    ({"Protocol": "132"}, 705),
    ({"InternalPort": "x"}, 402),
]


@pytest.mark.parametrize(("changed", "code"), TIMEOUTS)
def test_a_timeout_is_that_of_one_protocol(changed: Arguments, code: int) -> None:
    with pytest.raises(UPnPError) as caught:
        decode(*call("GetOutboundPinholeTimeout", {**PINHOLE, **changed}), PARTIES)
    assert caught.value.code == code


def test_a_timeout_depends_on_no_port() -> None:
    wildcards = PINHOLE | {"InternalPort": "0", "InternalClient": "", "RemoteHost": "", "RemotePort": "0"}
    asked = decode(*call("GetOutboundPinholeTimeout", PINHOLE), PARTIES).request
    assert decode(*call("GetOutboundPinholeTimeout", wildcards), PARTIES).request == asked
