"""How clients write a request line and headers: what is read as the same request, and what is refused and why."""

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from igd.wire.upnp.http_head import LONGEST_TARGET, HttpError
from igd.wire.upnp.http_request import RequestOctets

OWN = ("10.100.0.1", 2869)
LINE = b"POST /control/WANIPConn1 HTTP/1.1"
HEADERS = b'\r\nHost: 10.100.0.1:2869\r\nSOAPAction: "u#A"\r\nContent-Length: 3'
CANONICAL = LINE + HEADERS + b"\r\n\r\nabc"


def head(line: bytes = LINE, headers: bytes = HEADERS) -> bytes:
    return line + headers + b"\r\n\r\nabc"


def received(octets: bytes) -> bytes | None:
    return RequestOctets(100, OWN).receive(octets)


SAME = {
    "as it should be": head(),
    "empty lines before": b"\r\n\n\r\n" + head(),
    "a method in lower case": head(b"post /control/WANIPConn1 HTTP/1.1"),
    "a version in lower case": head(b"POST /control/WANIPConn1 http/1.1"),
    "a later version": head(b"POST /control/WANIPConn1 HTTP/1.2"),
    "several spaces": head(b"POST  /control/WANIPConn1 \t HTTP/1.1  "),
    "an absolute target": head(b"POST http://10.100.0.1:2869/control/WANIPConn1 HTTP/1.1"),
    "an absolute target in capitals": head(b"POST HTTP://10.100.0.1:2869//control/WANIPConn1 HTTP/1.1"),
    "an absolute target counts more than Host": head(
        b"POST http://10.100.0.1:2869/control/WANIPConn1 HTTP/1.1"
    ).replace(b"Host: 10.100.0.1:2869", b"Host: b"),
    "a fragment": head(b"POST /control/WANIPConn1#x HTTP/1.1"),
    "double slashes": head(b"POST //control//WANIPConn1 HTTP/1.1"),
    "a slash behind": head(b"POST /control/WANIPConn1/ HTTP/1.1"),
    "no slash in front": head(b"POST control/WANIPConn1 HTTP/1.1"),
    "dots": head(b"POST /1/./../control/WANIPConn1 HTTP/1.1"),
    "no Host": head(headers=b'\r\nSOAPAction: "u#A"\r\nContent-Length: 3'),
    "an empty Host": head().replace(b"Host: 10.100.0.1:2869", b"Host:"),
    "Host twice": head().replace(b"SOAP", b"HOST: 10.100.0.1:2869\r\nSOAP"),
    "names in any case": head().replace(b"SOAPAction", b"Soapaction").replace(b"Content-Length", b"content-LENGTH"),
    "no space behind the colon": head().replace(b": ", b":"),
    "space before the colon": head().replace(b": ", b" \t: "),
    "a folded line": head().replace(b"SOAPAction: ", b"SOAPAction:\r\n\t "),
    "line feeds": head().replace(b"\r", b""),
    "equal lengths": head().replace(b"Content-Length: 3", b"Content-Length: 3\r\nContent-Length: 03"),
    "a list of equal lengths": head().replace(b"Length: 3", b"Length: 3, 3"),
    "identity": head().replace(b"SOAP", b"Transfer-Encoding: Identity\r\nContent-Encoding: identity\r\nSOAP"),
    "chunks in capitals": head()
    .replace(b"Content-Length: 3", b"Transfer-Encoding: CHUNKED")
    .replace(b"abc", b"2;a\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n"),
    "M-POST": head(b"M-POST /control/WANIPConn1 HTTP/1.1").replace(
        b"SOAP", b'MAN: "http://schemas.xmlsoap.org/soap/envelope/"; ns=01\r\n01-SOAP'
    ),
    "what means nothing here": head().replace(
        b"SOAP",
        b"Connection: Upgrade, keep-alive\r\nUpgrade: h2c\r\nAccept-Encoding: gzip\r\nRange: bytes=0-1\r\n"
        b"If-Modified-Since: x\r\nExpect: 100-CONTINUE\r\nX: \xff\0\x01\r\nX: " + b"y" * 9_000 + b"\r\nSOAP",
    ),
    "more behind the body": head() + b"\r\n" + head(),
}


@pytest.mark.parametrize("octets", SAME.values(), ids=SAME)
def test_what_means_the_same_is_read_the_same(octets: bytes) -> None:
    assert received(octets) == CANONICAL


REFUSED = {
    "no version": (b"GET /\r\n\r\n", 400, "request line"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 400, "request line"),
    "another method": (b"CONNECT a:1 HTTP/1.1\r\n\r\n", 501, "method"),
    "a method misspelt": (b"GEET / HTTP/1.1\r\n\r\n", 501, "method"),
    "a space in the target": (head(b"POST /control/WAN IPConn1 HTTP/1.1"), 400, "request line"),
    "an octet above 127 in the target": (head(b"POST /\xe9 HTTP/1.1"), 400, "request line"),
    "a folded request line": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "request line"),
    "a long target": (head(b"GET /" + b"a" * LONGEST_TARGET + b" HTTP/1.1"), 400, "target"),
    "a line without a colon": (b"GET / HTTP/1.1\r\nHost a\r\n\r\n", 400, "not a header"),
    "a space in a name": (b"GET / HTTP/1.1\r\nHo st: a\r\n\r\n", 400, "not a header"),
    "no name": (b"GET / HTTP/1.1\r\n: a\r\n\r\n", 400, "not a header"),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host has two values"),
    "two SOAPActions": (head().replace(b"SOAP", b'soapaction: "u#B"\r\nSOAP'), 400, "SOAPAction has two values"),
    "a long Host": (b"GET / HTTP/1.1\r\nHost: " + b"a" * 2_000 + b"\r\n\r\n", 400, "Host has more"),
    "two lengths": (head().replace(b"Length: 3", b"Length: 3\r\nContent-Length: 4"), 400, "one number"),
    "a list of two lengths": (head().replace(b"Length: 3", b"Length: 3,4"), 400, "one number"),
    "a length with a sign": (head().replace(b"Length: 3", b"Length: +3"), 400, "one number"),
    "an empty length": (head().replace(b"Length: 3", b"Length:"), 400, "one number"),
    "a length of many digits": (head().replace(b"Length: 3", b"Length: 1" + b"0" * 5_000), 400, "one number"),
    "a length and chunks": (head().replace(b"SOAP", b"Transfer-Encoding: chunked\r\nSOAP"), 400, "both"),
    "another coding": (head().replace(b"SOAP", b"Transfer-Encoding: gzip, chunked\r\nSOAP"), 501, "Transfer-Encoding"),
    "a compressed body": (head().replace(b"SOAP", b"Content-Encoding: gzip\r\nSOAP"), 415, "Content-Encoding"),
    "a body that is too large": (head().replace(b"Length: 3", b"Length: 101") + bytes(100), 413, "a body"),
}


@pytest.mark.parametrize(("octets", "status", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_could_mean_two_things_is_refused_with_the_reason(octets: bytes, status: int, reason: str) -> None:
    with pytest.raises(HttpError, match=reason) as refused:
        received(octets)
    assert refused.value.status == status


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("parser", [HttpRequestParser, HttpRequestParserPy])
@pytest.mark.parametrize("octets", SAME.values(), ids=SAME)
def test_both_parsers_of_aiohttp_read_one_request(
    octets: bytes, parser: type[HttpRequestParserPy], loop: asyncio.AbstractEventLoop
) -> None:
    request = received(octets)
    assert request is not None
    found, upgraded, rest = parser(BaseProtocol(loop), loop, 2**16).feed_data(request)
    assert (len(found), upgraded, rest) == (1, False, b"")
    assert found[0][0].method == "POST"


@pytest.mark.parametrize(("own", "host"), [(OWN, b"10.100.0.1:2869"), (("fd00::1", 80, 0, 0), b"[fd00::1]:80")])
def test_a_request_without_host_means_the_address_where_it_is_received(own: tuple[str, int], host: bytes) -> None:
    for version in (b"1.0", b"1.1"):
        line = b"GET / HTTP/" + version + b"\r\n"
        found = RequestOctets(100, own).receive(line + b"X-Host: a\r\n\r\n")
        assert found == line + b"Host: " + host + b"\r\n\r\n"


def test_a_long_user_agent_is_cut() -> None:
    found = received(b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: " + b"\xe9" * 9_000 + b"\r\n\r\n")
    assert found == b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: " + b"\xe9" * LONGEST_TARGET + b"\r\n\r\n"


def test_a_query_is_kept() -> None:
    found = received(b"GET /a?b=//c#d HTTP/1.1\r\nHost: a\r\n\r\n")
    assert found == b"GET /a?b=//c HTTP/1.1\r\nHost: a\r\n\r\n"
