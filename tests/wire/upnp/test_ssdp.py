"""UPnP Device Architecture §1: searches, answers and announcements."""

import contextlib
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.core.mapping import Endpoint
from igd.wire.malformed import Malformed
from igd.wire.upnp.ssdp import (
    Advert,
    Advertiser,
    Search,
    adverts,
    alive,
    byebye,
    matches,
    parse,
    respond,
    update,
)

ROOT = UUID("11111111-2222-3333-4444-555555555555")
ADVERTISER = Advertiser(ROOT, "Linux UPnP/1.1 igd/0.1", 7, 9)
HTTP = Endpoint(IPv4Address("10.100.0.1"), 5000)
HTTP6 = Endpoint(IPv6Address("2001:470:100::1"), 5000)
NOW = datetime(2026, 11, 23, 2, 28, 34, tzinfo=UTC)

IGD1 = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
IGD2 = "urn:schemas-upnp-org:device:InternetGatewayDevice:2"
HOST = b"HOST: 239.255.255.250:1900\r\n"

SEARCHES = {
    "miniupnpc": (
        b"M-SEARCH * HTTP/1.1\r\n" + HOST + b"ST: " + IGD1.encode() + b'\r\nMAN: "ssdp:discover"\r\nMX: 2\r\n\r\n',
        Search(IGD1, 2),
    ),
    "libtorrent: no spaces, an extra CRLF": (
        b"M-SEARCH * HTTP/1.1\r\n" + HOST + b'ST:upnp:rootdevice\r\nMAN:"ssdp:discover"\r\nMX:3\r\n\r\n\r\n',
        Search("upnp:rootdevice", 3),
    ),
    "async-upnp-client: no spaces": (
        b'M-SEARCH * HTTP/1.1\r\nHOST:239.255.255.250:1900\r\nMAN:"ssdp:discover"\r\nMX:4\r\nST:ssdp:all\r\n\r\n',
        Search("ssdp:all", 4),
    ),
    "upnpclient: HOST last": (
        b'M-SEARCH * HTTP/1.1\r\nST: ssdp:all\r\nMX: 2\r\nMAN: "ssdp:discover"\r\n' + HOST + b"\r\n",
        Search("ssdp:all", 2),
    ),
    "syncthing: MX 10, USER-AGENT, an extra CRLF": (
        b"M-SEARCH * HTTP/1.1\r\n" + HOST + b"ST: " + IGD2.encode() + b'\r\nMAN: "ssdp:discover"\r\nMX: 10\r\n'
        b"USER-AGENT: syncthing/1.0\r\n\r\n\r\n",
        Search(IGD2, 5),
    ),
    "nmap: headers in mixed case": (
        b"M-SEARCH * HTTP/1.1\r\nHost:239.255.255.250:1900\r\n" + b'ST:ssdp:all\r\nMan:"ssdp:discover"\r\nMX:5\r\n\r\n',
        Search("ssdp:all", 5),
    ),
    "Tailscale: unicast, without MX": (
        b'M-SEARCH * HTTP/1.1\r\nHOST: 10.100.0.1:1900\r\nST: ssdp:all\r\nMAN: "ssdp:discover"\r\n\r\n',
        Search("ssdp:all", None),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("datagram", "search"), SEARCHES.values(), ids=SEARCHES)
def test_searches_of_real_clients_are_read(datagram: bytes, search: Search) -> None:
    assert parse(datagram) == search


@pytest.mark.parametrize("datagram", [datagram for datagram, _ in SEARCHES.values()], ids=SEARCHES)
def test_a_search_cut_off_anywhere_is_malformed_or_another_search(datagram: bytes) -> None:
    for length in range(len(datagram)):
        with contextlib.suppress(Malformed):
            assert isinstance(parse(datagram[:length]), Search)


def test_announcements_and_answers_of_others_are_passed_over() -> None:
    advert = adverts(ROOT)[0]
    for message in (
        alive(advert, ADVERTISER, HTTP),
        byebye(advert, ADVERTISER, HTTP),
        respond(advert, ADVERTISER, HTTP, NOW),
    ):
        assert parse(message) is None


def test_an_mx_of_many_digits_is_five() -> None:
    assert parse(
        b'M-SEARCH * HTTP/1.1\r\nST: x\r\nMAN: "ssdp:discover"\r\nMX: ' + b"9" * 60000 + b"\r\n\r\n"
    ) == Search("x", 5)


@given(st.one_of(st.binary(), st.binary().map(lambda tail: b'M-SEARCH * HTTP/1.1\r\nMAN: "ssdp:discover"\r\n' + tail)))
def test_any_bytes_are_read_or_malformed(datagram: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(parse(datagram), Search | None)


# What is announced


def test_the_root_has_three_lines_each_embedded_device_two_each_type_one() -> None:
    first_version = [advert.target for advert in adverts(ROOT) if advert.version == 1]
    assert len(first_version) == len(set(first_version)) == 3 + 2 * 2 + 4


def test_version_two_follows_as_types_of_its_own() -> None:
    versions = [advert.version for advert in adverts(ROOT)]
    assert versions == sorted(versions)
    assert [advert.target for advert in adverts(ROOT) if advert.version == 2] == [
        IGD2,
        "urn:schemas-upnp-org:device:WANDevice:2",
        "urn:schemas-upnp-org:device:WANConnectionDevice:2",
        "urn:schemas-upnp-org:service:WANIPConnection:2",
    ]


def test_the_three_devices_have_different_names_which_last() -> None:
    names = [advert.target for advert in adverts(ROOT) if advert.target.startswith("uuid:")]
    assert names == [
        "uuid:11111111-2222-3333-4444-555555555555",
        "uuid:6d208993-fa70-535d-b1bd-7c4259b52b34",
        "uuid:98e8b6ec-0bb4-5c7b-8715-6190e2207005",
    ]
    assert names[1:] != [advert.target for advert in adverts(UUID(int=1)) if advert.target.startswith("uuid:")][1:]


@pytest.mark.parametrize("advert", adverts(ROOT), ids=lambda advert: advert.target)
def test_a_search_for_one_target_has_one_answer_in_its_version(advert: Advert) -> None:
    assert matches(advert.target, ROOT) == (advert,)
    assert (advert.version == 2) == advert.target.endswith(":2")


def test_a_search_for_everything_is_answered_with_everything() -> None:
    assert matches("ssdp:all", ROOT) == adverts(ROOT)


@pytest.mark.parametrize(
    ("target", "usn"),
    [
        ("upnp:rootdevice", f"uuid:{ROOT}::upnp:rootdevice"),
        (f"uuid:{ROOT}", f"uuid:{ROOT}"),
        (f"uuid:{str(ROOT).upper()}", f"uuid:{ROOT}"),
        (IGD1.upper(), f"uuid:{ROOT}::{IGD1}"),
        ("UPNP:RootDevice", f"uuid:{ROOT}::upnp:rootdevice"),
        (IGD1, f"uuid:{ROOT}::{IGD1}"),
        (
            "urn:schemas-upnp-org:service:WANIPConnection:1",
            "uuid:98e8b6ec-0bb4-5c7b-8715-6190e2207005::urn:schemas-upnp-org:service:WANIPConnection:1",
        ),
        (
            "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1",
            "uuid:6d208993-fa70-535d-b1bd-7c4259b52b34::urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1",
        ),
    ],
)
def test_usn(target: str, usn: str) -> None:
    assert [(advert.target, advert.usn) for advert in matches(target, ROOT)] == [(target, usn)]


@pytest.mark.parametrize(
    "target",
    [
        "urn:schemas-upnp-org:device:InternetGatewayDevice:3",
        "urn:schemas-upnp-org:device:InternetGatewayDevice",
        "urn:schemas-upnp-org:device:InternetGatewayDevice:01",
        "ssdp:all, upnp:rootdevice",
        str(ROOT),
        "urn:schemas-upnp-org:device:InternetGatewayDevice:",
        "urn:schemas-upnp-org:service:Layer3Forwarding:2",
        "urn:schemas-upnp-org:device:MediaServer:1",
        f"uuid:{UUID(int=1)}",
        "",
    ],
)
def test_other_targets_have_no_answer(target: str) -> None:
    assert matches(target, ROOT) == ()


def test_section_1_3_3_answer() -> None:
    assert respond(matches(IGD2, ROOT)[0], ADVERTISER, HTTP, NOW) == (
        b"HTTP/1.1 200 OK\r\n"
        b"CACHE-CONTROL: max-age=1800\r\n"
        b"DATE: Mon, 23 Nov 2026 02:28:34 GMT\r\n"
        b"EXT:\r\n"
        b"LOCATION: http://10.100.0.1:5000/2/device.xml\r\n"
        b"SERVER: Linux UPnP/1.1 igd/0.1\r\n"
        b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:2\r\n"
        b"USN: uuid:11111111-2222-3333-4444-555555555555::urn:schemas-upnp-org:device:InternetGatewayDevice:2\r\n"
        b"BOOTID.UPNP.ORG: 7\r\n"
        b"CONFIGID.UPNP.ORG: 9\r\n"
        b"\r\n"
    )


def test_section_1_2_2_alive() -> None:
    assert alive(matches("upnp:rootdevice", ROOT)[0], ADVERTISER, HTTP) == (
        b"NOTIFY * HTTP/1.1\r\n"
        b"HOST: 239.255.255.250:1900\r\n"
        b"CACHE-CONTROL: max-age=1800\r\n"
        b"LOCATION: http://10.100.0.1:5000/1/device.xml\r\n"
        b"SERVER: Linux UPnP/1.1 igd/0.1\r\n"
        b"NT: upnp:rootdevice\r\n"
        b"NTS: ssdp:alive\r\n"
        b"USN: uuid:11111111-2222-3333-4444-555555555555::upnp:rootdevice\r\n"
        b"BOOTID.UPNP.ORG: 7\r\n"
        b"CONFIGID.UPNP.ORG: 9\r\n"
        b"\r\n"
    )


def test_section_1_2_4_update() -> None:
    assert update(8, matches("upnp:rootdevice", ROOT)[0], ADVERTISER, HTTP) == (
        b"NOTIFY * HTTP/1.1\r\n"
        b"HOST: 239.255.255.250:1900\r\n"
        b"LOCATION: http://10.100.0.1:5000/1/device.xml\r\n"
        b"NEXTBOOTID.UPNP.ORG: 8\r\n"
        b"NT: upnp:rootdevice\r\n"
        b"NTS: ssdp:update\r\n"
        b"USN: uuid:11111111-2222-3333-4444-555555555555::upnp:rootdevice\r\n"
        b"BOOTID.UPNP.ORG: 7\r\n"
        b"CONFIGID.UPNP.ORG: 9\r\n"
        b"\r\n"
    )


def test_section_1_2_3_byebye() -> None:
    assert byebye(matches("upnp:rootdevice", ROOT)[0], ADVERTISER, HTTP) == (
        b"NOTIFY * HTTP/1.1\r\n"
        b"HOST: 239.255.255.250:1900\r\n"
        b"NT: upnp:rootdevice\r\n"
        b"NTS: ssdp:byebye\r\n"
        b"USN: uuid:11111111-2222-3333-4444-555555555555::upnp:rootdevice\r\n"
        b"BOOTID.UPNP.ORG: 7\r\n"
        b"CONFIGID.UPNP.ORG: 9\r\n"
        b"\r\n"
    )


def test_annex_a_an_announcement_to_ipv6_names_its_group_and_an_address_of_ipv6() -> None:
    advert = matches("upnp:rootdevice", ROOT)[0]
    for message in (alive(advert, ADVERTISER, HTTP6), byebye(advert, ADVERTISER, HTTP6)):
        assert b"\r\nHOST: [ff05::c]:1900\r\n" in message
    location = b"\r\nLOCATION: http://[2001:470:100::1]:5000/1/device.xml\r\n"
    assert location in alive(advert, ADVERTISER, HTTP6)
    assert location in respond(advert, ADVERTISER, HTTP6, NOW)


def test_annex_a_an_announcement_with_a_link_local_address_names_the_group_of_the_link() -> None:
    announced = alive(adverts(ROOT)[0], ADVERTISER, Endpoint(IPv6Address("fe80::1"), 5000))
    assert b"\r\nHOST: [ff02::c]:1900\r\n" in announced
    assert b"\r\nLOCATION: http://[fe80::1]:5000/1/device.xml\r\n" in announced
