"""The text for the operator is complete, aligned, and free of terminal control characters."""

import json
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest

from igd.core.mapping import Endpoint, Pinhole, PortMapping, Remote, TransportProtocol
from igd.core.request import Mapped
from igd.operator.status import listing, mapping_as_json, printable, table

STATUS = {
    "version": "0.1",
    "pid": 7,
    "interface": "wg0",
    "external_interface": "eth0",
    "warnings": ["no IPv4 default route", "a\x1b[2J"],
    "external_address": "60.60.60.1",
    "matched_addresses": ("10.0.0.5", "10.0.0.6"),
    "backend": "nftables: it is there",
    "urls": ("http://10.100.0.1:2869/1/device.xml", "http://[2001:470:100::1]:2869/1/device.xml"),
    "uuid": "u",
    "uptime": 12,
    "mappings": 3,
    "peers": {"laptop": 2, "GLiBCyzM": 1},
    "decisions": {"MapPort GRANTED": 4, "MapPort CONFLICT": 1},
}


def mapped(port: int, description: str = "") -> Mapped:
    return Mapped(
        PortMapping(TransportProtocol.TCP, port, Endpoint(IPv4Address("10.100.0.2"), 80), "key=", description), 300
    )


def test_a_mapping_as_plain_values() -> None:
    plain = mapping_as_json(mapped(8043, "web"), "")
    assert plain == {
        "protocol": "TCP",
        "external_port": 8043,
        "internal_address": "10.100.0.2",
        "internal_port": 80,
        "unique_id": None,
        "remotes": [],
        "lease": 300,
        "static": False,
        "suspended": False,
        "peer": "key=",
        "name": None,
        "description": "web",
    }
    assert json.loads(json.dumps(plain)) == plain


def test_a_pinhole_has_its_unique_id() -> None:
    pinhole = Pinhole(TransportProtocol.TCP, Endpoint(IPv6Address("2001:db8::2"), 80), "key=", unique_id=7)
    assert mapping_as_json(Mapped(pinhole, 300), "")["unique_id"] == 7


def test_mappings_as_a_table() -> None:
    shown = table([mapping_as_json(mapped(8043, "a web server"), ""), mapping_as_json(mapped(1), "laptop")])
    assert shown == (
        "PROTOCOL  EXTERNAL  FROM      INTERNAL       LEASE  PEER    DESCRIPTION\n"
        "TCP       8043      anywhere  10.100.0.2:80  300s   key=    a web server\n"
        "TCP       1         anywhere  10.100.0.2:80  300s   laptop"
    )


def test_a_pinhole_for_two_networks_as_a_table() -> None:
    remotes = (Remote(IPv6Network("2001:db8::/32")), Remote(IPv6Network("::/0"), 53))
    pinhole = Pinhole(TransportProtocol.UDP, Endpoint(IPv6Address("2001:470:100::2"), 80), "key=", "", remotes)
    line = table([mapping_as_json(Mapped(pinhole, 300), "")]).splitlines()[1]
    assert line == "UDP       80        2001:db8::/32, ::/0 port 53  [2001:470:100::2]:80  300s   key="


def test_an_empty_table_has_a_header() -> None:
    assert table([]).split() == ["PROTOCOL", "EXTERNAL", "FROM", "INTERNAL", "LEASE", "PEER", "DESCRIPTION"]


def test_the_status_as_lines() -> None:
    lines = listing(STATUS).splitlines()
    assert lines[0].split() == ["version", "0.1"]
    assert [line.split() for line in lines if line.startswith(("external address", "matched"))] == [
        ["external", "address", "60.60.60.1"],
        ["matched", "addresses", "10.0.0.5,", "10.0.0.6"],
    ]
    assert [line.split() for line in lines[-2:]] == [["MapPort", "CONFLICT", "1"], ["MapPort", "GRANTED", "4"]]


def test_unknown_values_are_shown_as_a_dash() -> None:
    unknown = STATUS | {"external_address": None, "matched_addresses": (), "decisions": {}}
    assert [line.split()[-1] for line in listing(unknown).splitlines() if "address" in line] == ["-", "-"]


def test_the_status_survives_json() -> None:
    assert listing(json.loads(json.dumps(STATUS))) == listing(STATUS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Küche 🏠 'x' \\", "Küche 🏠 'x' \\"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202etxt", "\\u202etxt"),
        ("\x9b2J\0", "\\x9b2J\\x00"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_terminal_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()
