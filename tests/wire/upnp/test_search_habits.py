"""What a search may look like: what is unambiguous is read, what could mean two things is malformed."""

import pytest

from igd.wire.malformed import Malformed
from igd.wire.upnp.ssdp import Search, parse

IGD1 = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
START = "M-SEARCH * HTTP/1.1"
HOST = "HOST: 239.255.255.250:1900"
MAN = 'MAN: "ssdp:discover"'
ST = f"ST: {IGD1}"
FOUND = Search(IGD1, 2)


def lines(*headers: str, start: str = START) -> bytes:
    """Return a message of these lines."""
    return "".join(f"{line}\r\n" for line in (start, *headers, "")).encode("latin-1")


USUAL = lines(HOST, MAN, "MX: 2", ST)

READ = {
    "as the standard has it": USUAL,
    "HTTP/1.0": lines(HOST, MAN, "MX: 2", ST, start="M-SEARCH * HTTP/1.0"),
    "the method in lower case": lines(HOST, MAN, "MX: 2", ST, start="m-search * http/1.1"),
    "no version": lines(HOST, MAN, "MX: 2", ST, start="M-SEARCH *"),
    "spaces in the start line": lines(HOST, MAN, "MX: 2", ST, start="M-SEARCH  *  HTTP/1.1 "),
    "names in lower case, spaces before the colon": lines(
        "host : x", 'man : "ssdp:discover"', "mx : 2", f"st : {IGD1}"
    ),
    "tabs instead of spaces, and none": lines(HOST, 'MAN:\t"ssdp:discover"\t', "MX:2", f"ST:{IGD1}\t"),
    "no HOST": lines(MAN, "MX: 2", ST),
    "HOST of somebody else": lines("HOST: 192.0.2.1:80", MAN, "MX: 2", ST),
    "two HOSTs": lines(HOST, "HOST: [ff02::c]:1900", MAN, "MX: 2", ST),
    "MAN without quotes": lines(HOST, "MAN: ssdp:discover", "MX: 2", ST),
    "MAN in single quotes": lines(HOST, "MAN: 'ssdp:discover'", "MX: 2", ST),
    "MAN in other case": lines(HOST, 'MAN: "SSDP:Discover"', "MX: 2", ST),
    "MAN with a namespace (RFC 2774)": lines(HOST, 'MAN: "ssdp:discover"; ns=01', "MX: 2", ST),
    "no MAN": lines(HOST, "MX: 2", ST),
    "an empty MAN": lines(HOST, "MAN:", "MX: 2", ST),
    "ST in quotes": lines(HOST, MAN, "MX: 2", f'ST: "{IGD1}"'),
    "MX with a sign": lines(HOST, MAN, "MX: +2", ST),
    "MX with a fraction": lines(HOST, MAN, "MX: 2.0", ST),
    "MX with a leading zero": lines(HOST, MAN, "MX: 02", ST),
    "headers that are continued": lines(HOST, "MAN:", '\t"ssdp:discover"', "MX: 2", "ST:", f"  {IGD1}"),
    "headers twice with one value": lines(HOST, MAN, MAN, "MX: 2", "MX: 2", ST, ST),
    "a content": USUAL + b"ST: upnp:rootdevice\r\n",
    "line feeds only": USUAL.replace(b"\r", b""),
    "line feeds only, no empty line": USUAL.replace(b"\r", b"").rstrip(),
    "no empty line": USUAL.rstrip(),
    "empty lines before it": b"\r\n\r\n" + USUAL,
    "empty lines after it": USUAL + b"\r\n\r\n",
    "a zero after it": USUAL + b"\0",
    "a zero after the last value": USUAL.rstrip() + b"\0\0",
    "another language in another header": lines(HOST, MAN, "MX: 2", ST, "X: \xe4\xff"),
}


@pytest.mark.parametrize("datagram", READ.values(), ids=READ)
def test_what_is_unambiguous_is_read(datagram: bytes) -> None:
    assert parse(datagram) == FOUND


@pytest.mark.parametrize(
    ("mx", "seconds"), [("0", 0), ("1", 1), ("5", 5), ("6", 5), ("120", 5), ("00", 0), ("0.9", 0), ("9" * 2000, 5)]
)
def test_section_1_3_3_mx_is_five_at_most(mx: str, seconds: int) -> None:
    assert parse(lines(MAN, f"MX: {mx}", ST)) == Search(IGD1, seconds)


@pytest.mark.parametrize("headers", [(MAN, ST), (MAN, "MX:", ST)], ids=["missing", "empty"])
def test_without_mx_the_answer_is_not_delayed(headers: tuple[str, ...]) -> None:
    assert parse(lines(*headers)) == Search(IGD1, None)


MALFORMED = {
    "nothing": b"",
    "zeros": b"\0\0",
    "empty lines": b"\r\n\r\n",
    "another protocol": b"\x00\x01\x02",
    "another method": USUAL.replace(b"M-SEARCH", b"GET"),
    "a longer method": USUAL.replace(b"M-SEARCH", b"M-SEARCHES"),
    "a zero before it": b"\0" + USUAL,
    "only the method": b"M-SEARCH",
    "no ST": lines(HOST, MAN, "MX: 2"),
    "an empty ST": lines(HOST, MAN, "MX: 2", "ST:"),
    "ST is quotes": lines(HOST, MAN, "MX: 2", 'ST: ""'),
    "two STs": lines(HOST, MAN, "MX: 2", ST, "ST: upnp:rootdevice"),
    "another MAN": lines(HOST, 'MAN: "ssdp:alive"', "MX: 2", ST),
    "two MANs": lines(HOST, MAN, 'MAN: "ssdp:alive"', "MX: 2", ST),
    "two MXs": lines(HOST, MAN, "MX: 2", "MX: 3", ST),
    "MX in words": lines(HOST, MAN, "MX: soon", ST),
    "MX with a unit": lines(HOST, MAN, "MX: 2s", ST),
    "MX below zero": lines(HOST, MAN, "MX: -1", ST),
    "MX in hexadecimal": lines(HOST, MAN, "MX: 0x2", ST),
    "a digit that is not decimal": lines(HOST, MAN, "MX: \xb2", ST),
    "a line without a colon": lines(HOST, MAN, "MX 2", ST),
    "headers that continue the start line": lines(f" {MAN}", " MX: 2", f" {ST}"),
    "carriage returns only": USUAL.replace(b"\n", b""),
}


@pytest.mark.parametrize("datagram", MALFORMED.values(), ids=MALFORMED)
def test_what_could_mean_two_things_or_nothing_is_malformed(datagram: bytes) -> None:
    with pytest.raises(Malformed):
        parse(datagram)


@pytest.mark.parametrize("start", ["NOTIFY * HTTP/1.1", "notify * HTTP/1.1", "HTTP/1.1 200 OK", "http/1.0 200"])
def test_messages_of_other_servers_are_passed_over(start: str) -> None:
    assert parse(lines(HOST, ST, start=start)) is None
