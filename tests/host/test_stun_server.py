"""How a STUN server is written in the configuration."""

import pytest

from igd.host.stun_server import StunServer


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("stun.example.net", "stun.example.net", 3478),
        ("stun.example.net:19302", "stun.example.net", 19302),
        ("stun", "stun", 3478),  # a name of /etc/hosts or of the search domain
        ("stun.example.net.", "stun.example.net.", 3478),
        ("198.51.100.7", "198.51.100.7", 3478),
        ("198.51.100.7:1", "198.51.100.7", 1),
        ("3com.example", "3com.example", 3478),
        ("xn--bcher-kva.example:65535", "xn--bcher-kva.example", 65535),
    ],
)
def test_names_and_addresses(text: str, host: str, port: int) -> None:
    assert StunServer.parse(text) == (host, port)
    assert str(StunServer.parse(text)) == f"{host}:{port}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":3478",
        "stun.example.net:",
        "stun.example.net:0",
        "stun.example.net:65536",
        "stun.example.net:\u0663",
        "stun:stun.example.net",  # a URI of RFC 7064
        "stun:stun.example.net:3478",
        "stun example.net",
        "-stun.example.net",
        "stun..example.net",
        "198.51.100.256",
        "198.51.100",
        "1",
        "x" * 64,
        "a." * 127 + "b",
        "::ffff:198.51.100.7",
    ],
)
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a host name or IPv4 address such as stun\.example\.net"):
        StunServer.parse(text)


@pytest.mark.parametrize("text", ["2001:db8::1", "[2001:db8::1]:3478", "[::1]"])
def test_an_ipv6_address_names_the_reason(text: str) -> None:
    with pytest.raises(ValueError, match="only an IPv4 server sees the external IPv4 address"):
        StunServer.parse(text)
